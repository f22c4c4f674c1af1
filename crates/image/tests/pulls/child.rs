//! Pulls in a process of its own: one that is killed, and one whose environment says how the network is reached and who keeps
//! the passwords.

use crate::{
    behave::basic,
    fake::Fake,
    images::{Image, Shelf},
    puller,
    secure::tls,
    sink::Folder,
};
use stacyvm_image::Settings;
use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// A process that pulls `a:1` of a registry into a directory.
pub(crate) fn command(fake: &Fake, sink: &Folder, insecure: bool) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "child::child", "--ignored"])
        .env("STACYVM_TEST_CHILD_HOST", fake.host())
        .env("STACYVM_TEST_CHILD_ROOT", sink.root())
        .env("STACYVM_TEST_CHILD_INSECURE", insecure.to_string());
    command
}

#[tokio::test]
#[ignore = "run by others, as a process of its own"]
async fn child() {
    let given = |name: &str| std::env::var(format!("STACYVM_TEST_CHILD_{name}")).ok();
    let (host, root) = (given("HOST").unwrap(), given("ROOT").unwrap());
    let settings = Settings {
        insecure: given("INSECURE").filter(|text| text == "true").map(|_| host.clone()).into_iter().collect(),
        ca_file: given("CA").map(Into::into),
        auth_file: given("AUTH").map(Into::into),
        ..Settings::default()
    };
    let sink = Folder::at(Path::new(&root));
    puller(settings, &sink).0.pull(&format!("{host}/a:1").parse().unwrap()).await.unwrap();
}

/// Runs a process to its end, beside this one's servers.
async fn run(mut command: Command) {
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// A proxy; what it was asked for.
async fn proxy() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let heard = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let heard = Arc::clone(&heard);
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                let target = head.split(' ').nth(1).unwrap().to_owned();
                heard.lock().unwrap().push(head);
                let mut server = TcpStream::connect(target).await.unwrap();
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (address.to_string(), asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environments_proxy_is_gone_through_for_tls() {
    let image = Image::sized(1, 10_000);
    let shelf = Shelf::default().with("a", "1", &image);
    let (acceptor, pem) = tls();
    let fake = Fake::start_tls(move |asked| shelf.answer(asked), acceptor).await;
    let (address, asked) = proxy().await;
    let sink = Folder::new();
    let ca = sink.root().join("ca.pem");
    std::fs::write(&ca, pem).unwrap();
    let mut child = command(&fake, &sink, false);
    child.env("HTTPS_PROXY", format!("http://user:word@{address}")).env("STACYVM_TEST_CHILD_CA", &ca);
    child.env_remove("NO_PROXY").env_remove("no_proxy").env_remove("https_proxy");
    run(child).await;
    sink.has(&image.layers);
    let asked = asked.lock().unwrap();
    assert!(!asked.is_empty());
    for head in &*asked {
        assert!(head.starts_with(&format!("CONNECT {} ", fake.host())), "{head}");
        assert!(head.to_ascii_lowercase().contains("proxy-authorization: basic "), "{head}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn helpers_that_keep_passwords_are_asked() {
    let image = Image::sized(2, 10_000);
    let fake = Fake::start(basic(Shelf::default().with("a", "1", &image))).await;
    let sink = Folder::new();
    let (helper, file) = (sink.root().join("docker-credential-test"), sink.root().join("config.json"));
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = get ] && [ \"$(cat)\" = {} ] && echo '{{\"Username\":\"tester\",\"Secret\":\"hunter2\"}}'\n",
        fake.host()
    );
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(&file, format!(r#"{{"credHelpers":{{"{}":"test"}}}}"#, fake.host())).unwrap();
    let path = format!("{}:{}", sink.root().display(), std::env::var("PATH").unwrap());
    let mut child = command(&fake, &sink, true);
    child.env("STACYVM_TEST_CHILD_AUTH", &file).env("PATH", path);
    run(child).await;
    sink.has(&image.layers);
}
