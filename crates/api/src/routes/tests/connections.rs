//! What happens to commands when their connections break: over real sockets, because that is where it happens.

use crate::testing::{Api, eventually};
use stacyvm_provider::Outcome;
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

struct Server {
    api: Api,
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<std::io::Result<()>>,
}

impl Server {
    async fn start() -> Self {
        let api = Api::start().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let task = tokio::spawn(crate::serve(listener, api.router.clone(), stop.clone().cancelled_owned()));
        Self { api, address, stop, task }
    }

    /// Sends a request and leaves the connection open.
    async fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
        let path = path.replace("{id}", &self.api.id);
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let head = format!("{method} /api/v1{path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n{body}");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    }

    async fn exec(&self, body: &str) -> TcpStream {
        let headers = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        self.send("POST", "/sandboxes/{id}/exec", &headers, body).await
    }

    /// The one process that was started.
    async fn process(&self) -> String {
        eventually("started", || !self.api.guest.process_ids().is_empty()).await;
        self.api.guest.process_ids().remove(0)
    }

    async fn stop(self) -> Api {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
        self.api
    }
}

async fn until(stream: &mut TcpStream, end: &str) -> String {
    let (mut text, mut buffer) = (String::new(), [0; 4096]);
    while !text.contains(end) {
        let read = tokio::time::timeout(Duration::from_secs(30), stream.read(&mut buffer)).await;
        let n = read.unwrap().unwrap();
        assert!(n > 0, "ended: {text}");
        text += std::str::from_utf8(&buffer[..n]).unwrap();
    }
    text
}

#[tokio::test]
async fn a_streamed_or_awaited_command_is_killed_when_its_connection_closes() {
    for (body, first) in [
        (r#"{"command":"out=x hang","stream":true}"#, Some(r#"{"stream":"stdout""#)),
        (r#"{"command":"hang"}"#, None),
    ] {
        let server = Server::start().await;
        let mut connection = server.exec(body).await;
        if let Some(first) = first {
            until(&mut connection, first).await;
        }
        let process = server.process().await;
        assert_eq!(server.api.guest.outcome(&process), None);
        drop(connection);
        let killed = || server.api.guest.outcome(&process) == Some(Outcome::Signaled(9));
        eventually("killed", killed).await;
        server.stop().await;
    }
}

#[tokio::test]
async fn a_server_that_stops_cuts_streams_but_kills_nothing() {
    let server = Server::start().await;
    let mut simple = server.exec(r#"{"command":"out=x hang","stream":true}"#).await;
    until(&mut simple, r#"{"stream":"stdout""#).await;
    let mut full = server.exec(r#"{"command":"out=x hang","stream":true,"records":"full"}"#).await;
    until(&mut full, r#"{"stream":"stdout""#).await;
    let api = server.stop().await;
    // The simple stream has no word for it, so it must not end as if it were complete.
    let mut rest = String::new();
    let _ = simple.read_to_string(&mut rest).await;
    assert!(!rest.ends_with("0\r\n\r\n"), "{rest}");
    let text = until(&mut full, "0\r\n\r\n").await;
    assert!(text.contains(r#"{"stream":"error","code":"UNAVAILABLE""#), "{text}");
    for process in api.guest.process_ids() {
        assert_eq!(api.guest.outcome(&process), None, "{process}");
    }
}

#[tokio::test]
async fn an_upload_whose_client_goes_away_leaves_the_old_file() {
    let server = Server::start().await;
    let path = "/sandboxes/{id}/files?path=/workspace/f";
    let mut connection = server.send("PUT", path, "Content-Length: 3\r\n", "old").await;
    until(&mut connection, "written").await;
    let connection = server.send("PUT", path, "Content-Length: 100\r\n", "half of it").await;
    drop(connection);
    let connection = server.send("PUT", path, "Transfer-Encoding: chunked\r\n", "4\r\nhalf\r\n").await;
    drop(connection);
    let mut connection = server.send("GET", path, "", "").await;
    assert!(until(&mut connection, "old").await.contains("Content-Length: 3\r\n".to_lowercase().as_str()));
    server.stop().await;
}

#[tokio::test]
async fn an_answer_arrives_while_the_client_is_still_sending() {
    const SIZE: usize = 16 << 20;
    let server = Server::start().await;
    let headers = format!("Content-Length: {SIZE}\r\n");
    let mut connection = server.send("PUT", "/sandboxes/sb-0/files?path=/f", &headers, "").await;
    // More than any socket buffer holds; a connection that is simply closed breaks this.
    for _ in 0..SIZE >> 16 {
        connection.write_all(&[0; 1 << 16]).await.unwrap();
    }
    let text = until(&mut connection, "}\n").await;
    assert!(text.starts_with("HTTP/1.1 404"), "{text}");
    server.stop().await;
}
