//! Conversations over a loopback connection, with the real router and a guest that plays scripts.

use crate::{
    ApiConfig,
    testing::{Api, eventually},
};
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::{net::SocketAddr, time::Duration};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message, client::IntoClientRequest},
};
use tokio_util::sync::CancellationToken;

struct Server {
    api: Api,
    address: SocketAddr,
    stop: CancellationToken,
    served: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Server {
    async fn start(config: ApiConfig) -> Self {
        let api = Api::with(config).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let served = tokio::spawn(crate::serve(listener, api.router.clone(), stop.clone().cancelled_owned()));
        Self { api, address, stop, served }
    }

    /// A connection, or the status with which it was refused.
    async fn try_open(&self, path: &str, headers: &[(&'static str, &str)]) -> Result<Talk, u16> {
        let path = path.replace("{id}", &self.api.id);
        let mut request = format!("ws://{}/api/v1{path}", self.address).into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let stream = TcpStream::connect(self.address).await.unwrap();
        match client_async(request, stream).await {
            Ok((socket, _)) => Ok(Talk(socket)),
            Err(Error::Http(response)) => Err(response.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }

    async fn open(&self, path: &str) -> Talk {
        self.try_open(path, &[]).await.unwrap()
    }

    fn only_process(&self) -> String {
        let ids = self.api.guest.process_ids();
        assert_eq!(ids.len(), 1, "{ids:?}");
        ids[0].clone()
    }
}

struct Talk(WebSocketStream<TcpStream>);

impl Talk {
    async fn say(&mut self, message: Value) {
        self.0.send(Message::text(message.to_string())).await.unwrap();
    }

    /// The next object, or the close with its code.
    async fn hear(&mut self) -> Value {
        loop {
            let message = tokio::time::timeout(Duration::from_secs(30), self.0.next()).await.unwrap();
            match message {
                Some(Ok(Message::Text(text))) => return serde_json::from_str(&text).unwrap(),
                Some(Ok(Message::Close(frame))) => {
                    let frame = frame.unwrap();
                    return json!({ "close": u16::from(frame.code), "reason": frame.reason.as_str() });
                }
                Some(Ok(_)) => {}
                end => panic!("it ended with {end:?}"),
            }
        }
    }

    async fn hear_all(&mut self) -> Vec<Value> {
        let mut heard = Vec::new();
        loop {
            let next = self.hear().await;
            let last = next.get("close").is_some();
            heard.push(next);
            if last {
                return heard;
            }
        }
    }

    /// The id of the process that has started.
    async fn started(&mut self) -> String {
        let record = self.hear().await;
        assert_eq!(record["type"], "started", "{record}");
        record["process_id"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn a_command_is_started_shown_and_its_exit_told() {
    let server = Server::start(ApiConfig::default()).await;
    let mut talk = server.open("/sandboxes/{id}/exec/ws").await;
    talk.say(json!({"type": "start", "command": "out=hi err=no hex=c3 hex=a4 exit=3"})).await;
    let process = talk.started().await;
    let heard = talk.hear_all().await;
    let expected = [
        json!({"type": "stdout", "offset": 0, "data": "hi"}),
        json!({"type": "stderr", "offset": 2, "data": "no"}),
        // The first half of the character waited for the second.
        json!({"type": "stdout", "offset": 5, "data": "ä"}),
        json!({"type": "exit", "exit_code": 3}),
        json!({"close": 1000, "reason": ""}),
    ];
    assert_eq!(heard, expected);
    assert_eq!(server.only_process(), process);
}

#[tokio::test]
async fn base64_carries_every_byte() {
    let server = Server::start(ApiConfig::default()).await;
    let mut talk = server.open("/sandboxes/{id}/exec/ws").await;
    talk.say(json!({"type": "start", "command": "hex=ff00", "encoding": "base64"})).await;
    talk.started().await;
    assert_eq!(talk.hear().await, json!({"type": "stdout", "offset": 0, "data": "/wA="}));
}

#[tokio::test]
async fn the_form_of_earlier_clients_is_answered_as_before() {
    let server = Server::start(ApiConfig::default()).await;
    let mut talk = server.open("/sandboxes/{id}/exec/ws").await;
    talk.say(json!({"command": "out=hi exit=3"})).await;
    let expected = [
        json!({"stream": "stdout", "data": "hi"}),
        json!({"type": "done"}),
        json!({"close": 1000, "reason": ""}),
    ];
    assert_eq!(talk.hear_all().await, expected);

    let mut talk = server.open("/sandboxes/{id}/exec/ws").await;
    talk.say(json!({"command": "missing"})).await;
    let heard = talk.hear_all().await;
    assert!(heard[0]["error"].as_str().unwrap().contains("missing"), "{heard:?}");
    assert_eq!(heard[1], json!({"close": 1011, "reason": "exec failed"}));
}

#[tokio::test]
async fn what_is_no_beginning_is_refused_with_a_reason() {
    let server = Server::start(ApiConfig::default()).await;
    for bad in [
        json!("hello"),
        json!({"command": 5}),
        json!({"type": "stdin", "data": "x"}),
        json!({"type": "start", "command": "", "mode": "argv"}),
        json!({"type": "start", "command": "x", "pty": {"rows": 0, "cols": 80}}),
    ] {
        let mut talk = server.open("/sandboxes/{id}/exec/ws").await;
        talk.say(bad.clone()).await;
        let heard = talk.hear_all().await;
        assert_eq!(heard.len(), 2, "{bad}: {heard:?}");
        assert_eq!(heard[0]["code"], "BAD_REQUEST", "{bad}: {heard:?}");
        assert_eq!(heard[1], json!({"close": 1007, "reason": "invalid request"}), "{bad}");
    }
    assert!(server.api.guest.process_ids().is_empty());
    let mut talk = server.open("/sandboxes/{id}/exec/ws").await;
    talk.0.send(Message::binary(vec![1, 2])).await.unwrap();
    assert_eq!(talk.hear_all().await[1]["close"], 1007);
}

#[tokio::test]
async fn stdin_is_taken_in_order_and_acknowledged() {
    let server = Server::start(ApiConfig::default()).await;
    let mut talk = server.open("/sandboxes/{id}/exec/ws").await;
    talk.say(json!({"type": "start", "command": "hang", "stdin": true})).await;
    let process = talk.started().await;
    talk.say(json!({"type": "stdin", "data": "one "})).await;
    talk.0.send(Message::binary(&b"\xff\x00 "[..])).await.unwrap();
    talk.say(json!({"type": "stdin", "data": "dHdv", "encoding": "base64"})).await;
    // Said again, as after a lost connection.
    talk.say(json!({"type": "stdin", "data": "two!", "offset": 7, "eof": true})).await;
    for (accepted, closed) in [(4, false), (7, false), (10, false), (11, true)] {
        assert_eq!(talk.hear().await, json!({"type": "stdin", "accepted": accepted, "closed": closed}));
    }
    assert_eq!(server.api.guest.stdin(&process), b"one \xff\x00 two!");
    talk.say(json!({"type": "stdin", "data": "x", "offset": 99})).await;
    assert_eq!(talk.hear().await["type"], "error");
    talk.say(json!({"type": "stdin", "data": "%", "encoding": "base64"})).await;
    assert_eq!(talk.hear().await["code"], "BAD_REQUEST");
}

#[tokio::test]
async fn large_stdin_goes_in_pieces() {
    let server = Server::start(ApiConfig::default()).await;
    let mut talk = server.open("/sandboxes/{id}/exec/ws").await;
    talk.say(json!({"type": "start", "command": "hang", "stdin": true})).await;
    let process = talk.started().await;
    let data: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    talk.0.send(Message::binary(data.clone())).await.unwrap();
    assert_eq!(talk.hear().await["accepted"], 300_000);
    assert!(server.api.guest.stdin(&process) == data);
}

#[tokio::test]
async fn a_terminal_is_resized_and_signals_arrive() {
    let server = Server::start(ApiConfig::default()).await;
    let mut talk = server.open("/sandboxes/{id}/exec/ws").await;
    talk.say(json!({"type": "start", "command": "hang", "pty": {"rows": 24, "cols": 80}})).await;
    let process = talk.started().await;
    talk.say(json!({"type": "resize", "rows": 50, "cols": 132})).await;
    talk.say(json!({"type": "start", "command": "again"})).await;
    assert_eq!(talk.hear().await["code"], "BAD_REQUEST");
    let shown = server.api.get(&format!("/sandboxes/{{id}}/processes/{process}")).await.json();
    assert_eq!(shown["pty"], json!({"rows": 50, "cols": 132}));
    talk.say(json!({"type": "signal", "signal": "SIGNOPE"})).await;
    assert_eq!(talk.hear().await["code"], "BAD_REQUEST");
    talk.say(json!({"type": "signal", "signal": "TERM"})).await;
    let heard = talk.hear_all().await;
    assert_eq!(heard[0], json!({"type": "exit", "exit_code": 143, "signal": 15}));
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_command_along_unless_it_said_otherwise() {
    let server = Server::start(ApiConfig::default()).await;
    for (detach, survives) in [(false, false), (true, true)] {
        let mut talk = server.open("/sandboxes/{id}/exec/ws").await;
        talk.say(json!({"type": "start", "command": "hang", "detach": detach})).await;
        let process = talk.started().await;
        drop(talk);
        let guest = server.api.guest.clone();
        if survives {
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert!(guest.outcome(&process).is_none());
        } else {
            eventually("the command is killed", move || guest.outcome(&process).is_some()).await;
        }
    }
}

#[tokio::test]
async fn another_connection_goes_on_where_one_ended() {
    let server = Server::start(ApiConfig::default()).await;
    let body = r#"{"id":"p-1","command":"out=abc out=def hang","stdin":true}"#;
    server.api.post("/sandboxes/{id}/processes", body).await.expect(201);
    let mut first = server.open("/sandboxes/{id}/processes/p-1/ws").await;
    first.started().await;
    assert_eq!(first.hear().await["data"], "abc");
    first.say(json!({"type": "stdin", "data": "one"})).await;
    assert_eq!(first.hear().await["data"], "def");
    assert_eq!(first.hear().await["accepted"], 3);
    drop(first);

    let mut second = server.open("/sandboxes/{id}/processes/p-1/ws?offset=4").await;
    let started = second.hear().await;
    assert_eq!((&started["process_id"], &started["stdin_offset"]), (&json!("p-1"), &json!(3)));
    assert_eq!(second.hear().await, json!({"type": "stdout", "offset": 4, "data": "ef"}));
    // Both may type; neither loses a byte to the other.
    let mut third = server.open("/sandboxes/{id}/processes/p-1/ws?offset=6").await;
    third.started().await;
    third.say(json!({"type": "stdin", "data": "two"})).await;
    assert_eq!(third.hear().await["accepted"], 6);
    // It counts what was there when it began, and its own.
    second.say(json!({"type": "stdin", "data": "three"})).await;
    assert_eq!(second.hear().await["accepted"], 8);
    assert_eq!(server.api.guest.stdin("p-1"), b"onetwothree");
    drop((second, third));
    assert!(server.api.guest.outcome("p-1").is_none());
}

#[tokio::test]
async fn a_process_that_does_not_read_is_signalled_all_the_same() {
    let server = Server::start(ApiConfig::default()).await;
    let mut talk = server.open("/sandboxes/{id}/exec/ws").await;
    talk.say(json!({"type": "start", "command": "hang deaf", "stdin": true})).await;
    talk.started().await;
    for _ in 0..6 {
        talk.0.send(Message::binary(vec![7; 900_000])).await.unwrap();
    }
    assert_eq!(talk.hear().await["code"], "RESOURCE_LIMIT");
    talk.say(json!({"type": "signal", "signal": "KILL"})).await;
    let heard = talk.hear_all().await;
    assert!(heard.contains(&json!({"type": "exit", "exit_code": 137, "signal": 9})), "{heard:?}");
}

#[tokio::test]
async fn signs_of_life_may_come_before_the_first_message() {
    let server = Server::start(ApiConfig::default()).await;
    let mut talk = server.open("/sandboxes/{id}/exec/ws").await;
    talk.0.send(Message::Ping("are you there".into())).await.unwrap();
    talk.0.send(Message::Pong("I am".into())).await.unwrap();
    talk.say(json!({"type": "start", "command": "out=hi"})).await;
    talk.started().await;
    assert_eq!(talk.hear().await["data"], "hi");
}

#[tokio::test]
async fn a_client_that_shows_no_sign_of_life_is_gone() {
    let mut config = ApiConfig::default();
    config.limits.heartbeat = Duration::from_millis(10);
    let server = Server::start(config).await;
    let mut talk = server.open("/sandboxes/{id}/exec/ws").await;
    talk.say(json!({"type": "start", "command": "hang"})).await;
    let process = talk.started().await;
    // Pings are answered only by a client that reads.
    let guest = server.api.guest.clone();
    eventually("the command is killed", move || guest.outcome(&process).is_some()).await;
    drop(talk);
}

#[tokio::test]
async fn silence_is_filled_with_pings() {
    let mut config = ApiConfig::default();
    config.limits.heartbeat = Duration::from_millis(20);
    let server = Server::start(config).await;
    let mut talk = server.open("/sandboxes/{id}/exec/ws").await;
    talk.say(json!({"type": "start", "command": "hang"})).await;
    talk.started().await;
    let next = tokio::time::timeout(Duration::from_secs(30), talk.0.next()).await.unwrap();
    assert!(matches!(next, Some(Ok(Message::Ping(_)))), "{next:?}");
}

#[tokio::test]
async fn a_server_that_stops_says_so_and_waits_for_nobody() {
    let server = Server::start(ApiConfig::default()).await;
    let mut talk = server.open("/sandboxes/{id}/exec/ws").await;
    talk.say(json!({"type": "start", "command": "hang"})).await;
    let process = talk.started().await;
    server.stop.cancel();
    let heard = talk.hear_all().await;
    assert_eq!((&heard[0]["type"], &heard[0]["code"]), (&json!("error"), &json!("UNAVAILABLE")));
    assert_eq!(heard[1]["close"], 1012);
    // Not killed: whoever comes back finds it.
    assert!(server.api.guest.outcome(&process).is_none());
    drop(talk);
    tokio::time::timeout(Duration::from_secs(30), server.served).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn what_is_not_there_or_no_websocket_is_said_in_http() {
    let server = Server::start(ApiConfig::default()).await;
    for path in ["/sandboxes/sb-ffffffffffffffff/exec/ws", "/sandboxes/{id}/processes/p-none/ws"] {
        assert_eq!(server.try_open(path, &[]).await.err(), Some(404), "{path}");
    }
    server.api.get("/sandboxes/{id}/exec/ws").await.expect_error(400, "BAD_REQUEST");
}

#[tokio::test]
async fn foreign_pages_get_no_conversation() {
    let path = "/sandboxes/{id}/exec/ws";
    let keyed = |origins: &[&str]| ApiConfig {
        api_key: Some("k".into()),
        cors_allowed_origins: origins.iter().map(|&origin| origin.into()).collect(),
        ..ApiConfig::default()
    };
    let evil = ("origin", "https://evil.example");
    let server = Server::start(ApiConfig::default()).await;
    assert_eq!(server.try_open(path, &[evil]).await.err(), Some(403));
    assert!(server.try_open(path, &[("origin", &format!("http://{}", server.address))]).await.is_ok());

    let server = Server::start(keyed(&["https://ui.example"])).await;
    assert_eq!(server.try_open(path, &[]).await.err(), Some(401));
    let key = ("x-api-key", "k");
    assert!(server.try_open(path, &[key]).await.is_ok());
    assert!(server.try_open(path, &[key, ("origin", "https://ui.example")]).await.is_ok());
    assert_eq!(server.try_open(path, &[key, evil]).await.err(), Some(403));
    let server = Server::start(keyed(&["*"])).await;
    assert!(server.try_open(path, &[key, evil]).await.is_ok());
}
