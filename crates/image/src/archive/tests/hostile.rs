//! Archives of images that lie.

use super::*;
use stacyvm_provider::ErrorKind;

type Files = BTreeMap<String, Vec<u8>>;

fn docker(config: &str, layers: &[&str]) -> Vec<u8> {
    json!([{ "Config": config, "RepoTags": ["app"], "Layers": layers }]).to_string().into_bytes()
}

/// A layout that is fine, to be damaged, with the digests of manifest, configuration and first layer.
fn good() -> (Files, [String; 3]) {
    let saved = Saved::here("word");
    let mut blobs = BTreeMap::new();
    let descriptor = saved.blobs(&mut blobs, "tar+gzip", gzip);
    let path = |digest: &str| format!("blobs/sha256/{}", digest.strip_prefix("sha256:").unwrap());
    let manifest = path(descriptor["digest"].as_str().unwrap());
    let parsed: Value = serde_json::from_slice(&blobs[&manifest]).unwrap();
    let layer = path(parsed["layers"][0]["digest"].as_str().unwrap());
    let config = path(&saved.id().to_string());
    (layout(blobs, &[descriptor]), [manifest, config, layer])
}

#[test]
fn what_contradicts_itself_is_refused_with_the_part_named() {
    let saved = Saved::here("word");
    let config = format!("{}.json", saved.id().hex());
    let layer = |n: usize| format!("{}.tar", saved.diff_ids()[n].hex());
    let base = Archive::default()
        .file(&config, &saved.config)
        .file(&layer(0), &saved.layers[0])
        .file(&layer(1), &saved.layers[1]);
    let with = |manifest: &[u8]| base.clone().file("manifest.json", manifest).end();
    let names = [layer(0), layer(1)];
    let layers: Vec<&str> = names.iter().map(String::as_str).collect();
    assert!(import(&store().1, &with(&docker(&config, &layers))).is_ok());

    let other_config = Archive::default().file(&config, b"{\"os\":\"linux\",\"architecture\":\"amd64\"}");
    let first = Archive::default().file("manifest.json", b"[]");
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("no list", with(b"{}"), "manifest.json cannot be read"),
        ("no images", with(b"[]"), "has 0 images"),
        (
            "too many",
            with(Value::from(vec![json!({ "Config": "x" }); 300]).to_string().as_bytes()),
            "has 300 images",
        ),
        ("no configuration", with(&docker("missing.json", &layers)), "\"missing.json\" is not in it"),
        ("no layers", with(&docker(&config, &[])), "has 0 layers, its configuration 2"),
        ("a layer less", with(&docker(&config, &layers[..1])), "has 1 layers, its configuration 2"),
        (
            "a missing layer",
            with(&docker(&config, &[layers[0], "x/layer.tar"])),
            "\"x/layer.tar\" of app:latest is not in it",
        ),
        (
            "layers swapped",
            with(&docker(&config, &[layers[1], layers[0]])),
            "is not the one that its image names",
        ),
        ("a layer from elsewhere", with(&docker(&config, &[layers[0], "../../etc/passwd"])), "is not in it"),
        (
            "another configuration",
            other_config.file("manifest.json", &docker(&config, &layers)).end(),
            "is not the one that it is named after",
        ),
        (
            "a name that is none",
            with(br#"[{"Config":"x.json","RepoTags":["../../x"],"Layers":[]}]"#),
            "is no name of an image",
        ),
        (
            "twice",
            base.clone().file("manifest.json", b"[]").file("./manifest.json", b"[]").end(),
            "is in it twice",
        ),
        ("a link out", first.clone().symlink("x/layer.tar", "../../etc/passwd").end(), "a link out of it"),
        ("an absolute link", first.clone().symlink("l", "/etc/passwd").end(), "a link out of it"),
        (
            "links in a circle",
            base.clone()
                .file("manifest.json", &docker(&config, &["a", "b"]))
                .symlink("a", "b")
                .symlink("b", "a")
                .end(),
            "a link that leads to links",
        ),
        ("a device", first.clone().entry(b'3', b"x", b"", b"").end(), "no plain file"),
        ("a path out", first.file("../x", b"").end(), "has `..`"),
    ];
    for (name, archive, message) in cases {
        let (_tmp, store) = store();
        let error = import(&store, &archive).expect_err(name);
        assert!(error.message().contains(message), "{name}: {error}");
        assert!(store.list().unwrap().is_empty(), "{name}");
        assert_eq!(fs::read_dir(store.root().join("staging")).unwrap().count(), 0, "{name}");
    }
}

#[test]
fn a_layout_of_which_any_part_is_another_is_refused() {
    let (files, parts) = good();
    assert!(import(&store().1, &archived(&files)).is_ok());
    for (number, part) in parts.iter().enumerate() {
        for damage in ["flip", "shorter", "longer", "missing"] {
            let mut files = files.clone();
            let bytes = files.get_mut(part).unwrap();
            match damage {
                "flip" => bytes[20] ^= 1,
                "shorter" => drop(bytes.pop()),
                "longer" => bytes.push(b' '),
                _ => drop(files.remove(part)),
            }
            let (_tmp, store) = store();
            let error = import(&store, &archived(&files)).expect_err(part);
            let expected =
                if damage == "missing" { "is not in it" } else { "has other bytes than its digest says" };
            assert!(error.message().contains(expected), "{number} {damage}: {error}");
            assert!(store.list().unwrap().is_empty());
            // The same as a directory.
            let tmp = tempfile::tempdir().unwrap();
            written(&files, tmp.path());
            let error = store.import(Source::Path(tmp.path()), &Import::default()).expect_err(part);
            assert!(error.message().contains(expected), "{number} {damage}: {error}");
        }
    }
}

#[test]
fn indexes_without_end_or_sense_are_refused() {
    let index = |manifests: &[Value]| layout(BTreeMap::new(), manifests);
    let own = |size: usize, digest: Digest| json!({ "mediaType": INDEX, "digest": digest, "size": size });
    let mut deep = BTreeMap::new();
    let mut descriptor = own(2, Digest::of(b"{}"));
    for _ in 0..6 {
        let bytes = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor] })
            .to_string()
            .into_bytes();
        descriptor = own(bytes.len(), Digest::of(&bytes));
        deep.insert(format!("blobs/sha256/{}", Digest::of(&bytes).hex()), bytes);
    }
    let many: Vec<Value> = (0..300)
        .map(|n| named(own(5, Digest::of(b"x")), "org.opencontainers.image.ref.name", &format!("app:{n}")))
        .collect();
    for (name, files, message) in [
        ("nested too deep", layout(deep, &[descriptor]), "too deep"),
        ("no images", index(&[]), "has 0 images"),
        ("too many", index(&many), "has 300 images"),
        ("a huge manifest", index(&[own(1 << 30, Digest::of(b"x"))]), "manifest"),
        (
            "no digest",
            index(&[json!({ "mediaType": MANIFEST, "digest": "sha256:../../x", "size": 5 })]),
            "does not exist for",
        ),
        ("no index", BTreeMap::from([("index.json".to_owned(), b"[]".to_vec())]), "lists no manifests"),
    ] {
        let (_tmp, store) = store();
        let error = import(&store, &archived(&files)).expect_err(name);
        assert!(error.message().contains(message), "{name}: {error}");
    }
    let entries: Vec<Value> = vec![json!({ "mediaType": MANIFEST, "digest": 5 })];
    assert!(import(&store().1, &archived(&index(&entries))).is_err());
}

#[test]
fn links_in_a_directory_do_not_lead_out_of_it() {
    let (files, parts) = good();
    let tmp = tempfile::tempdir().unwrap();
    let (inside, outside) = (tmp.path().join("layout"), tmp.path().join("outside"));
    written(&files, &inside);
    fs::rename(inside.join(&parts[2]), &outside).unwrap();
    std::os::unix::fs::symlink(&outside, inside.join(&parts[2])).unwrap();
    let (_tmp, store) = store();
    assert!(store.import(Source::Path(&inside), &Import::default()).is_err());
    // A pipe that nobody writes to would keep us for ever.
    fs::remove_file(inside.join(&parts[2])).unwrap();
    let mode = rustix::fs::Mode::RWXU;
    rustix::fs::mknodat(rustix::fs::CWD, inside.join(&parts[2]), rustix::fs::FileType::Fifo, mode, 0)
        .unwrap();
    let error = store.import(Source::Path(&inside), &Import::default()).unwrap_err();
    assert!(error.message().contains("is not in it"), "{error}");
}

#[test]
fn what_is_cut_or_too_large_leaves_nothing() {
    let saved = Saved::here("word");
    let whole = Saved::old_docker(&[(&saved, &["app"])]).end();
    let (tmp, store) = store();
    for at in (0..whole.len()).step_by(1_531) {
        let _ = import(&store, &whole[..at]);
    }
    let zipped = gzip(&whole);
    for at in (1..zipped.len()).step_by(37) {
        assert!(import(&store, &zipped[..at]).is_err(), "{at}");
    }
    let small = Import { bytes: 4096, ..Import::default() };
    for archive in [&whole, &zipped] {
        let error = store.import(Source::Stream(Box::new(archive.as_slice())), &small).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceLimit);
    }
    let path = tmp.path().join("zipped");
    fs::write(&path, &zipped).unwrap();
    let error = store.import(Source::Path(&path), &small).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceLimit, "{error}");
    assert_eq!(fs::read_dir(store.root().join("staging")).unwrap().count(), 0);
    let error = store.import(Source::Path(&tmp.path().join("none")), &Import::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = store
        .import(Source::Path(Path::new("/proc/self/fd/../../1/nothing")), &Import::default())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

struct Broken;

impl std::io::Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::Error::other("the other side hung up"))
    }
}

#[test]
fn a_stream_that_breaks_is_told_from_a_damaged_archive() {
    let error = store().1.import(Source::Stream(Box::new(Broken)), &Import::default()).unwrap_err();
    assert!(error.message().contains("hung up") && error.message().contains("send it again"), "{error}");
}
