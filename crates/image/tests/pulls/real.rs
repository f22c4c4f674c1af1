//! The real thing: Debian's `docker-registry`, filled through its API. `scripts/setup-test-host.sh` installs it.

use crate::{
    images::{INDEX, Image, MANIFEST, index, layer, noise},
    is, puller,
    sink::Folder,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use stacyvm_image::{Credentials, Digest, Platform, Reference, Secret, Settings, Sink};
use stacyvm_provider::ErrorKind::{InvalidArgument, NotFound, Unavailable};
use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// User and password of the closed registry, and the line of its htpasswd.
const USER: (&str, &str) = ("tester", "let me in");
const HTPASSWD: &str = "tester:$2y$05$RJbKQ6u1EDxLlN5Z/musd.PPtozHCbKIP56IXMD9Bt3JFA1AUwv1W\n";

struct Real {
    host: String,
    closed: bool,
    process: Child,
    directory: tempfile::TempDir,
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Real {
    /// Starts one on a free port; `None` where it is not installed.
    async fn start(closed: bool) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (host, root) = (format!("127.0.0.1:{port}"), directory.path().display());
        let mut config = format!(
            "version: 0.1\nlog: {{accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: {root}/data}}}}\nhttp: {{addr: {host}}}\n"
        );
        if closed {
            std::fs::write(directory.path().join("htpasswd"), HTPASSWD).unwrap();
            config.push_str(&format!("auth: {{htpasswd: {{realm: test, path: {root}/htpasswd}}}}\n"));
        }
        let path = directory.path().join("config.yml");
        std::fs::write(&path, config).unwrap();
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let started = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        let process = match started {
            Ok(process) => process,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                println!("not run: docker-registry is not installed; scripts/setup-test-host.sh installs it");
                return None;
            }
            Err(error) => panic!("docker-registry does not start: {error}"),
        };
        let real = Self { host, closed, process, directory };
        let begun = Instant::now();
        while tokio::net::TcpStream::connect(&real.host).await.is_err() {
            let log = std::fs::read_to_string(real.directory.path().join("log")).unwrap();
            assert!(begun.elapsed() < Duration::from_secs(20), "docker-registry does not answer: {log}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Some(real)
    }

    async fn send(&self, method: &str, target: &str, media: &str, body: &[u8]) -> http::response::Parts {
        let url = if target.starts_with("http") {
            target.to_owned()
        } else {
            format!("http://{}{target}", self.host)
        };
        let mut request = http::Request::builder().method(method).uri(url).header("Content-Type", media);
        if self.closed {
            let auth = BASE64_STANDARD.encode(format!("{}:{}", USER.0, USER.1));
            request = request.header("Authorization", format!("Basic {auth}"));
        }
        let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let request = request.body(Full::new(Bytes::copy_from_slice(body))).unwrap();
        let (head, body) = client.request(request).await.unwrap().into_parts();
        let words = body.collect().await.unwrap().to_bytes();
        assert!(head.status.is_success(), "{method} {target}: {} {words:?}", head.status);
        head
    }

    async fn push(&self, repository: &str, tag: &str, image: &Image) {
        for blob in image.layers.iter().chain([&image.config]) {
            let begun =
                self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), "text/plain", b"").await;
            let location = begun.headers["location"].to_str().unwrap();
            let target = format!("{location}&digest={}", Digest::of(blob));
            self.send("PUT", &target, "application/octet-stream", blob).await;
        }
        self.push_manifest(repository, tag, MANIFEST, &image.manifest).await;
    }

    async fn push_manifest(&self, repository: &str, tag: &str, media: &str, bytes: &[u8]) {
        self.send("PUT", &format!("/v2/{repository}/manifests/{tag}"), media, bytes).await;
    }

    fn name(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.host).parse().unwrap()
    }

    fn settings(&self) -> Settings {
        Settings { insecure: vec![self.host.clone()], ..Settings::default() }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_come_by_tag_by_digest_and_by_platform() {
    let Some(real) = Real::start(false).await else { return };
    let layers = vec![layer("base", &noise(1, 200_000)), layer("top", b"top")];
    let image = Image::of(layers);
    let other: Platform = "linux/s390x".parse().unwrap();
    let theirs = Image::for_platform(vec![layer("theirs", b"x")], &other);
    real.push("o/a", "1", &image).await;
    real.push("o/a", "other", &theirs).await;
    let both = index(&[
        (MANIFEST, &theirs.manifest, Some(&other)),
        (MANIFEST, &image.manifest, Some(&Platform::host())),
    ]);
    real.push_manifest("o/a", "both", INDEX, &both).await;
    for (rest, digest) in [
        ("o/a:1".to_owned(), image.digest()),
        (format!("o/a@{}", image.digest()), image.digest()),
        ("o/a:both".to_owned(), Digest::of(&both)),
        (format!("o/a:both@{}", Digest::of(&both)), Digest::of(&both)),
    ] {
        let sink = Folder::new();
        let pulled = puller(real.settings(), &sink).0.pull(&real.name(&rest)).await.unwrap();
        assert_eq!((&pulled.digest, &pulled.manifest), (&digest, &image.digest()));
        sink.has(&image.layers);
    }
    let refused = async |settings: Settings, rest: &str| {
        puller(settings, &Folder::new()).0.pull(&real.name(rest)).await.unwrap_err()
    };
    is(&refused(real.settings(), "o/a:2").await, NotFound, &["its tag or digest does not"]);
    is(&refused(real.settings(), "o/none:1").await, NotFound, &["has no image"]);
    is(&refused(real.settings(), "o/a:other").await, InvalidArgument, &["linux/s390x"]);
    let unlisted = Settings { attempts: 1, ..Settings::default() };
    is(&refused(unlisted, "o/a:1").await, Unavailable, &["does not speak TLS", "images.insecure_registries"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_needed_where_it_is() {
    let Some(real) = Real::start(true).await else { return };
    let image = Image::sized(2, 10_000);
    real.push("o/a", "1", &image).await;
    let with = |password: &str| {
        let credentials = Credentials::of(real.host.clone(), USER.0, Secret::new(password));
        Settings { credentials: [(real.host.clone(), credentials)].into(), ..real.settings() }
    };
    let sink = Folder::new();
    puller(with(USER.1), &sink).0.pull(&real.name("o/a:1")).await.unwrap();
    sink.has(&image.layers);
    let refused = async |settings: Settings| {
        puller(settings, &Folder::new()).0.pull(&real.name("o/a:1")).await.unwrap_err()
    };
    is(&refused(real.settings()).await, InvalidArgument, &["wants credentials"]);
    is(&refused(with("wrong")).await, InvalidArgument, &["refused the credentials"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_at_any_point_it_is_whole_in_the_end() {
    let Some(real) = Real::start(false).await else { return };
    let image = Image::sized(3, 3_000_000);
    real.push("o/big", "1", &image).await;
    let sink = Folder::new();
    for wait in noise(3, 12) {
        // A process that ends: its runtime goes with all its tasks.
        let (settings, reference, root) = (real.settings(), real.name("o/big:1"), sink.root().to_owned());
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let _ = runtime.block_on(async {
                let (puller, _) = puller(settings, &Folder::at(&root));
                tokio::time::timeout(Duration::from_micros(u64::from(wait) * 400), puller.pull(&reference))
                    .await
            });
            runtime.shutdown_timeout(Duration::from_secs(10));
        })
        .join()
        .unwrap();
    }
    // And partial files of any length.
    let big = &image.layers[1];
    let _ = std::fs::remove_file(sink.layer(&Digest::of(big)));
    for length in noise(4, 6) {
        let length = usize::from(length) * 11_000;
        std::fs::write(sink.partial(&Digest::of(big)), &big[..length]).unwrap();
        let here = Folder::at(sink.root());
        puller(real.settings(), &here).0.pull(&real.name("o/big:1")).await.unwrap();
        here.has(&image.layers);
        std::fs::remove_file(here.layer(&Digest::of(big))).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_images_at_once_bring_each_layer_once() {
    let Some(real) = Real::start(false).await else { return };
    let common = layer("common", &noise(5, 2_000_000));
    for n in 0..5u8 {
        real.push(&format!("o/a{n}"), "1", &Image::of(vec![common.clone(), layer("own", &[n])])).await;
    }
    let sink = Folder::new();
    let (puller, _) = puller(real.settings(), &sink);
    let mut pulls = JoinSet::new();
    for n in 0..10 {
        let (puller, reference) = (puller.clone(), real.name(&format!("o/a{}:1", n % 5)));
        pulls.spawn(async move { puller.pull(&reference).await.unwrap() });
    }
    assert_eq!(pulls.join_all().await.len(), 10);
    assert_eq!(sink.added.load(std::sync::atomic::Ordering::SeqCst), 6);
    sink.has(&[common]);
}
