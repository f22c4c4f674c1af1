//! Manifests as builders write them, and as nobody should.

use super::*;
use stacyvm_provider::ErrorKind;

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn blob(media_type: &str, content: &str, size: &str) -> String {
    let digest = Digest::of(content.as_bytes());
    format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size}}}"#)
}

fn manifest(media_type: &str, config: &str, layers: &[String]) -> String {
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{media_type}","config":{config},"layers":[{}]}}"#,
        layers.join(",")
    )
}

fn read(text: &str, media_type: Option<&str>) -> Result<Manifest> {
    match Document::parse(text.as_bytes(), media_type, "some:1")? {
        Document::Manifest(manifest) => Ok(manifest),
        Document::Index(index) => panic!("an index of {}", index.manifests().len()),
    }
}

fn config_of(layers: usize) -> ImageConfig {
    ImageConfig { diff_ids: vec![Digest::of(b"x"); layers], ..ImageConfig::default() }
}

#[test]
fn manifests_of_both_kinds_are_read() {
    let docker = "application/vnd.docker.image.rootfs.diff.tar";
    for (config, layers) in [
        (
            OCI_CONFIG,
            [
                ("application/vnd.oci.image.layer.v1.tar", LayerMedia::Tar),
                (GZIP, LayerMedia::Gzip),
                ("application/vnd.oci.image.layer.v1.tar+zstd", LayerMedia::Zstd),
            ],
        ),
        (
            DOCKER_CONFIG,
            [
                (docker, LayerMedia::Tar),
                ("application/vnd.docker.image.rootfs.diff.tar.gzip", LayerMedia::Gzip),
                ("application/vnd.docker.image.rootfs.diff.tar.zstd", LayerMedia::Zstd),
            ],
        ),
    ] {
        let kind = if config == OCI_CONFIG { OCI_MANIFEST } else { DOCKER_MANIFEST };
        let listed: Vec<String> = layers.iter().map(|(media, _)| blob(media, media, "7")).collect();
        let text = manifest(kind, &blob(config, "c", "5"), &listed);
        for said in [None, Some(kind), Some("application/json"), Some(&format!("{kind}; charset=utf-8"))] {
            let manifest = read(&text, said).unwrap();
            assert_eq!(manifest.config, Blob { digest: Digest::of(b"c"), size: 5 });
            let media: Vec<LayerMedia> = manifest.layers.iter().map(|layer| layer.media).collect();
            assert_eq!(media, layers.map(|(_, media)| media));
            assert_eq!(manifest.size(), 21);
            let config = config_of(3);
            assert_eq!(manifest.with(&config, "x").unwrap().len(), 3);
        }
    }
}

#[test]
fn an_index_keeps_what_can_be_read() {
    let text = format!(
        r#"{{"schemaVersion":2,"manifests":[{},{{"mediaType":"x","digest":"sha512:00","size":1}},
        {{"mediaType":"{OCI_MANIFEST}","digest":"{}","size":3,"annotations":{{"org.opencontainers.image.ref.name":"v1"}}}}]}}"#,
        testing::entry(OCI_MANIFEST, b"a", Some(("linux", "arm64", "v8"))),
        Digest::of(b"b"),
    );
    let Document::Index(index) = Document::parse(text.as_bytes(), Some(DOCKER_LIST), "x").unwrap() else {
        panic!("a manifest")
    };
    let [first, second] = index.manifests() else { panic!("{index:?}") };
    assert_eq!(first.platform, Some(Platform::new("linux", "arm64", None)));
    assert_eq!((second.name.as_deref(), second.size), (Some("v1"), 3));
}

#[test]
fn every_refusal_names_the_image_and_what() {
    let (c, l) = (blob(OCI_CONFIG, "c", "5"), blob(GZIP, "l", "7"));
    let made = |config: &str, layers: &[String]| manifest(OCI_MANIFEST, config, layers);
    let oci = made(&c, std::slice::from_ref(&l));
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let nondistributable = "application/vnd.oci.image.layer.nondistributable.v1.tar";
    use ErrorKind::{InvalidArgument, ResourceLimit, Unsupported};
    for (text, said, kind, part) in [
        (String::new(), None, InvalidArgument, "not understood"),
        ("[]".to_owned(), None, InvalidArgument, "not understood"),
        ("{}".to_owned(), None, InvalidArgument, "neither"),
        (r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(), None, Unsupported, "first schema"),
        (
            "{}".to_owned(),
            Some("application/vnd.docker.distribution.manifest.v1+prettyjws"),
            Unsupported,
            "first schema",
        ),
        (format!(r#"{{"config":{c},"layers":[{l}],"manifests":[]}}"#), None, InvalidArgument, "neither"),
        (oci.clone(), Some(OCI_INDEX), InvalidArgument, "said to be"),
        (manifest(DOCKER_LIST, &c, std::slice::from_ref(&l)), None, InvalidArgument, "said to be"),
        (oci.clone(), Some("application/vnd.example.thing+json"), InvalidArgument, "vnd.example.thing"),
        (
            made(&blob("application/vnd.cncf.helm.config.v1+json", "c", "5"), std::slice::from_ref(&l)),
            None,
            Unsupported,
            "helm",
        ),
        (made(&c, &[]), None, InvalidArgument, "no layers"),
        (made(&c, &vec![l.clone(); 128]), None, ResourceLimit, "128 layers"),
        (made(&c, &[blob(GZIP, "l", "0")]), None, InvalidArgument, "0 bytes"),
        (made(&c, &[blob(GZIP, "l", "-1")]), None, InvalidArgument, "-1 bytes"),
        (made(&c, &[blob(GZIP, "l", "18446744073709551615")]), None, InvalidArgument, "18446744073709551615"),
        (made(&c, &[l.clone(), blob(GZIP, "l", "8")]), None, InvalidArgument, "two sizes"),
        (made(&blob(OCI_CONFIG, "c", "4194305"), std::slice::from_ref(&l)), None, ResourceLimit, "4194305"),
        (made(&c, &[blob(foreign, "l", "7")]), None, Unsupported, foreign),
        (made(&c, &[blob(nondistributable, "l", "7")]), None, Unsupported, nondistributable),
        (made(&c, &[blob("application/vnd.x.tar+lz4", "l", "7")]), None, Unsupported, "vnd.x.tar+lz4"),
        (oci.replace(Digest::of(b"l").hex(), "../../etc"), None, InvalidArgument, "../../etc"),
        (oci.replace("\"size\":7", "\"size\":\"7\""), None, InvalidArgument, "not understood"),
        (
            format!(r#"{{"manifests":[{}]}}"#, blob(OCI_MANIFEST, "m", "4194305")),
            None,
            ResourceLimit,
            "4194305",
        ),
        (
            format!(r#"{{"manifests":[{}]}}"#, blob(OCI_MANIFEST, "m", "-3")),
            None,
            InvalidArgument,
            "-3 bytes",
        ),
        (" ".repeat(LARGEST + 1), None, ResourceLimit, "4194305"),
    ] {
        let error = Document::parse(text.as_bytes(), said, "some:1").expect_err(&text);
        assert_eq!(error.kind(), kind, "{text}: {error}");
        assert!(error.message().contains("some:1") && error.message().contains(part), "{part}: {error}");
    }
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let layer = blob(GZIP, "l", "7");
    let manifest =
        read(&manifest(OCI_MANIFEST, &blob(OCI_CONFIG, "c", "5"), &[layer.clone(), layer]), None).unwrap();
    assert_eq!(manifest.size(), 7);
    manifest.bounded(7, "some:1").unwrap();
    let error = manifest.bounded(6, "some:1").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceLimit);
    assert!(error.message().contains("7 bytes, 6 are allowed"), "{error}");
    for ids in [0, 1, 3] {
        let config = config_of(ids);
        let error = manifest.with(&config, "some:1").unwrap_err();
        assert!(error.message().contains(&format!("2 layers, its configuration {ids}")), "{error}");
    }
}

#[test]
fn depth_of_json_is_bounded() {
    let text = format!(r#"{{"annotations":{}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert!(Document::parse(text.as_bytes(), None, "some:1").is_err());
    assert!(ImageConfig::parse(text.as_bytes(), "some:1").is_err());
}
