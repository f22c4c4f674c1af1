//! The client against a server that breaks connections, answers like a proxy, stops in the middle of files.

use crate::{Client, CreateOptions, Error, EventQuery, Heard, Options, Output, Upload};
use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use futures::{StreamExt, stream};
use stacyvm_types::{CreateSandbox, ErrorCode, MissedEvents, StreamName, WireDuration};
use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn serve(router: Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().nest("/api/v1", router)).await.unwrap() });
    address
}

fn client(address: SocketAddr) -> Client {
    let options =
        Options { server: address.to_string(), api_key: Some("k".to_owned()), ..Options::default() };
    Client::new(&options).unwrap()
}

/// The log of a process: byte `i` is `i % 251`, stdout and stderr in turns of 1000.
const LOG: u64 = 50_000;

fn byte(offset: u64) -> u8 {
    u8::try_from(offset % 251).unwrap()
}

/// Sends some of the log from the offset asked for, a little of what was sent before, and breaks off in a way of its own
/// each time: in the middle of a line, with an error record, with 503, with a gap for what it pretends to have lost.
async fn output(
    State(calls): State<Arc<AtomicUsize>>,
    Query(query): Query<HashMap<String, u64>>,
) -> Response {
    let call = calls.fetch_add(1, Ordering::SeqCst);
    let asked = query["offset"];
    if call % 5 == 1 {
        return StatusCode::BAD_GATEWAY.into_response();
    }
    let mut text = String::from("{\"stream\":\"start\",\"process_id\":\"p\"}\n{\"stream\":\"heartbeat\"}\n");
    let mut offset = asked.saturating_sub(100);
    let end = (asked + 7_777).min(LOG);
    while offset < end {
        let length = (1000 - offset % 1000).min(end - offset);
        let name = if offset / 1000 % 2 == 0 { "stdout" } else { "stderr" };
        let data: Vec<u8> = (offset..offset + length).map(byte).collect();
        let data = STANDARD.encode(data);
        text += &format!("{{\"stream\":\"{name}\",\"offset\":{offset},\"data\":\"{data}\"}}\n");
        offset += length;
    }
    if end == LOG {
        text += "{\"stream\":\"exit\",\"exit_code\":7}\n";
    } else if call % 5 == 2 {
        text += "{\"stream\":\"error\",\"code\":\"UNAVAILABLE\",\"message\":\"stopping\"}\n";
    } else {
        text += "{\"stream\":\"stdout\",\"offs";
    }
    text.into_response()
}

#[tokio::test]
async fn every_byte_arrives_once_however_often_the_connection_breaks() {
    let calls = Arc::new(AtomicUsize::new(0));
    let router = Router::new()
        .route("/sandboxes/{id}/processes/{process}/output", get(output))
        .with_state(Arc::clone(&calls));
    let client = client(serve(router).await);
    let mut attachment = client.attach("sb-1", "p", 0, Duration::from_secs(20));
    let mut offset = 0;
    let exit = loop {
        match attachment.next().await.unwrap() {
            Output::Data { stream, data } => {
                let expected = if offset / 1000 % 2 == 0 { StreamName::Stdout } else { StreamName::Stderr };
                assert_eq!(stream, expected);
                for found in data {
                    assert_eq!(found, byte(offset));
                    offset += 1;
                }
            }
            Output::Gap { .. } => panic!("nothing was lost"),
            Output::Reconnecting { .. } => {}
            Output::Exit(exit) => break exit,
        }
    };
    assert_eq!((exit.exit_code, offset, attachment.offset()), (Some(7), LOG, LOG));
    assert!(calls.load(Ordering::SeqCst) > 5);
}

#[tokio::test]
async fn patience_ends() {
    let router = Router::new()
        .route("/sandboxes/{id}/processes/{process}/output", get(|| async { StatusCode::BAD_GATEWAY }));
    let client = client(serve(router).await);
    let mut attachment = client.attach("sb-1", "p", 0, Duration::from_millis(100));
    assert!(matches!(attachment.next().await, Err(Error::Api { status: 502, code: None, .. })));
    let mut attachment = client.attach("sb-1", "p", 0, Duration::from_millis(1500));
    let told = attachment.next().await.unwrap();
    assert_eq!(told, Output::Reconnecting { reason: "HTTP 502: Bad Gateway".to_owned() });
    assert!(attachment.next().await.is_err(), "it is told once");
}

#[tokio::test]
async fn errors_are_told_apart() {
    let router = Router::new()
        .route(
            "/sandboxes/{id}",
            get(|Path(id): Path<String>| async move {
                match id.as_str() {
                    "gone" => (
                        StatusCode::NOT_FOUND,
                        Json(serde_json::json!({"code": "NOT_FOUND", "message": "sandbox not found: gone"})),
                    )
                        .into_response(),
                    "proxy" => (StatusCode::SERVICE_UNAVAILABLE, "<h1>No\n\nupstream</h1>").into_response(),
                    "moved" => (StatusCode::FOUND, [("location", "http://127.0.0.1:1/")]).into_response(),
                    _ => "not json".into_response(),
                }
            }),
        )
        .route("/sandboxes", get(|| async { StatusCode::UNAUTHORIZED }));
    let client = client(serve(router).await);
    let gone = client.sandbox("gone").await.unwrap_err();
    assert!(gone.is_not_found() && gone.code() == Some(ErrorCode::NotFound) && !gone.is_transient());
    assert_eq!(gone.to_string(), "sandbox not found: gone");
    let proxy = client.sandbox("proxy").await.unwrap_err();
    assert_eq!(proxy.to_string(), "HTTP 503: <h1>No upstream</h1>");
    assert!(proxy.is_transient());
    assert!(matches!(client.sandbox("moved").await, Err(Error::Api { status: 302, .. })));
    assert!(matches!(client.sandbox("odd").await, Err(Error::Protocol(_))));
    assert_eq!(client.list().await.unwrap_err().to_string(), "HTTP 401: Unauthorized");
}

#[tokio::test]
async fn a_server_that_is_not_there() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = client(address).health().await.unwrap_err();
    assert!(
        matches!(&error, Error::Connect { server, .. } if *server == format!("http://{address}")),
        "{error:?}"
    );
    assert!(error.is_transient());
}

#[tokio::test]
async fn keys_are_sent() {
    let echo = |headers: HeaderMap| async move {
        let value = |name| headers.get(name).map(|v| v.to_str().unwrap().to_owned());
        assert_eq!((value("x-api-key"), value("idempotency-key")), (Some("k".into()), Some("once".into())));
        (StatusCode::CONFLICT, Json(serde_json::json!({"code": "CONFLICT", "message": "seen"})))
    };
    let client = client(serve(Router::new().route("/sandboxes", post(echo))).await);
    let options = CreateOptions { idempotency_key: Some("once".to_owned()) };
    let error = client.create(&CreateSandbox::default(), &options).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Conflict));
}

/// Answers an upload with how much arrived, whole or not.
async fn upload(State(arrived): State<Arc<AtomicUsize>>, body: Body) -> Response {
    let mut body = body.into_data_stream();
    while let Some(piece) = body.next().await {
        let Ok(piece) = piece else { return StatusCode::BAD_REQUEST.into_response() };
        arrived.fetch_add(piece.len(), Ordering::SeqCst);
    }
    let size = arrived.load(Ordering::SeqCst);
    let info = serde_json::json!({"path": "/f", "size": size, "mode": "644", "is_dir": false, "mod_time": "2026-01-01T00:00:00Z"});
    Json(info).into_response()
}

#[tokio::test]
async fn uploads_arrive_whole_or_fail() {
    let arrived = Arc::new(AtomicUsize::new(0));
    let router = Router::new().route("/sandboxes/{id}/files", put(upload)).with_state(Arc::clone(&arrived));
    let client = client(serve(router).await);
    let pieces = || (0..100).map(|_| Ok(Bytes::from(vec![1; 10_000])));
    let file = Upload { path: "/f".to_owned(), mode: Some(0o600), size: Some(1_000_000) };
    assert_eq!(client.upload("sb-1", &file, stream::iter(pieces())).await.unwrap().size, 1_000_000);

    let broken = pieces().take(3).chain([Err(io::Error::other("disk on fire"))]);
    let error = client.upload("sb-1", &file, stream::iter(broken)).await.unwrap_err();
    assert!(matches!(&error, Error::Source(e) if e.to_string() == "disk on fire"), "{error:?}");
}

/// Answers every request with 1000 announced bytes, of which it sends `sent`, and closes.
async fn file_server(sent: usize) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 4096];
            let length = stream.read(&mut head).await.unwrap();
            assert!(head[..length].ends_with(b"\r\n\r\n"));
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n").await.unwrap();
            stream.write_all(&vec![7; sent]).await.unwrap();
        }
    });
    address
}

#[tokio::test]
async fn a_download_that_ends_early_is_an_error() {
    let mut whole = client(file_server(1000).await).download("sb-1", "/f", 0).await.unwrap();
    assert_eq!(whole.remaining(), Some(1000));
    let mut length = 0;
    while let Some(piece) = whole.next().await.unwrap() {
        length += piece.len();
    }
    assert_eq!((length, whole.remaining()), (1000, Some(0)));

    let mut cut = client(file_server(600).await).download("sb-1", "/f", 0).await.unwrap();
    let error = loop {
        match cut.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended as if it were whole"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Broken(_)), "{error:?}");
    let ranged = client(file_server(1000).await).download("sb-1", "/f", 5).await.unwrap_err();
    assert!(matches!(ranged, Error::Protocol(_)), "{ranged:?}");
}

/// Sends what follows the id that is asked for, one event and then the end of the connection; in between, bad gateways.
async fn events(State(calls): State<Arc<AtomicUsize>>, headers: HeaderMap) -> Response {
    let call = calls.fetch_add(1, Ordering::SeqCst);
    let last = headers.get("last-event-id").map(|id| id.to_str().unwrap().to_owned());
    let event = |id: &str| {
        format!(
            "id: {id}\ndata: {{\"id\":\"{id}\",\"type\":\"sandbox.running\",\ndata:\"timestamp\":\"2026-01-01T00:00:00Z\"}}\n\n"
        )
    };
    match (call, last.as_deref()) {
        (0, None) => ": hello\nid: evt-6\n\n".into_response(),
        (1, Some("evt-6")) => format!("{}id: evt-8\ndata: {{\"cut", event("evt-7")).into_response(),
        (2, Some("evt-7")) => StatusCode::BAD_GATEWAY.into_response(),
        // Two that a filter left out, and a name of the future.
        (3, Some("evt-7")) => "id: evt-9\n: keep-alive\n\nevent: new\ndata: 1\n\n".into_response(),
        (4, Some("evt-9")) => {
            let missed = "event: missed\r\nid: evt-19\r\ndata: {\"after\":\"evt-9\",\"next\":\"evt-20\",\"count\":10}\r\n\r\n";
            (missed.to_owned() + &event("evt-20")).into_response()
        }
        (5, Some("evt-20")) => StatusCode::UNAUTHORIZED.into_response(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn events_go_on_where_the_last_connection_ended() {
    let calls = Arc::new(AtomicUsize::new(0));
    let client = client(serve(Router::new().route("/events", get(events)).with_state(calls)).await);
    let mut watch = client.watch_events(EventQuery::default(), Duration::from_secs(20));
    let mut next = async || watch.next().await.map(Option::unwrap);
    let id = |heard: Heard| match heard {
        Heard::Event(event) => event.id,
        other => panic!("{other:?}"),
    };
    assert_eq!(id(next().await.unwrap()), "evt-7");
    let missed = MissedEvents { after: "evt-9".into(), next: Some("evt-20".into()), count: Some(10) };
    assert_eq!(next().await.unwrap(), Heard::Missed(missed));
    assert_eq!(id(next().await.unwrap()), "evt-20");
    assert!(matches!(next().await, Err(Error::Api { status: 401, .. })), "not a loss that passes");
}

fn running(id: &str) -> String {
    format!(
        "id: {id}\ndata: {{\"id\":\"{id}\",\"type\":\"sandbox.running\",\"timestamp\":\"2026-01-01T00:00:00Z\"}}\n\n"
    )
}

#[tokio::test]
async fn an_event_that_was_cut_comes_again() {
    let answer = |headers: HeaderMap| async move {
        let last = headers.get("last-event-id").map(|id| id.to_str().unwrap().to_owned());
        match last.as_deref() {
            None => running("evt-1") + "id: evt-2\n",
            Some("evt-1") => running("evt-2") + "event: missed\nid: evt-8\n",
            Some("evt-2") => running("evt-9"),
            other => panic!("{other:?}"),
        }
    };
    let client = client(serve(Router::new().route("/events", get(answer))).await);
    let mut watch = client.watch_events(EventQuery::default(), Duration::from_secs(20));
    for expected in ["evt-1", "evt-2", "evt-9"] {
        let heard = watch.next().await.unwrap();
        assert!(matches!(&heard, Some(Heard::Event(event)) if event.id == expected), "{heard:?}");
    }
}

#[tokio::test]
async fn the_past_is_read_to_its_end_over_cuts() {
    let answer = |headers: HeaderMap| async move {
        let last = headers.get("last-event-id").map(|id| id.to_str().unwrap().to_owned());
        match last.as_deref() {
            None => {
                let cut = stream::once(async {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    Err(io::Error::other("cut"))
                });
                Body::from_stream(stream::iter([Ok(running("evt-1"))]).chain(cut)).into_response()
            }
            Some("evt-1") => running("evt-2").into_response(),
            other => panic!("{other:?}"),
        }
    };
    let client = client(serve(Router::new().route("/events", get(answer))).await);
    let query = EventQuery { past: true, ..EventQuery::default() };
    let mut watch = client.watch_events(query, Duration::from_secs(20));
    for expected in ["evt-1", "evt-2"] {
        let heard = watch.next().await.unwrap();
        assert!(matches!(&heard, Some(Heard::Event(event)) if event.id == expected), "{heard:?}");
    }
    assert_eq!(watch.next().await.unwrap(), None);
}

/// Connections on which nothing happens for a little more than a moment; on the fourth, an event.
async fn quiet(
    State(calls): State<Arc<AtomicUsize>>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let call = calls.fetch_add(1, Ordering::SeqCst);
    // The moment that is meant stays the same.
    let ago: WireDuration = query["since"].parse().unwrap();
    let begun = Duration::from_secs(600) + Duration::from_millis(1_100) * u32::try_from(call).unwrap();
    assert!(ago.to_std().unwrap() >= begun, "{call}: {query:?}");
    if call == 3 {
        return running("evt-1").into_response();
    }
    let end = stream::once(async {
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        Ok::<_, io::Error>(": nothing\n")
    });
    Body::from_stream(stream::iter([Ok("id: evt-0\n\n")]).chain(end)).into_response()
}

#[tokio::test]
async fn a_quiet_watcher_is_patient_with_each_loss_anew() {
    let calls = Arc::new(AtomicUsize::new(0));
    let client = client(serve(Router::new().route("/events", get(quiet)).with_state(calls)).await);
    let query = EventQuery { since: Some("10m".into()), ..EventQuery::default() };
    let mut watch = client.watch_events(query, Duration::from_millis(900));
    let heard = watch.next().await.unwrap();
    assert!(matches!(&heard, Some(Heard::Event(event)) if event.id == "evt-1"), "{heard:?}");
}

#[tokio::test]
async fn queries_are_spelt_as_the_server_reads_them() {
    let echo = |Query(query): Query<HashMap<String, String>>| async move {
        let mut pairs: Vec<_> = query.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        pairs.sort();
        (
            StatusCode::BAD_REQUEST,
            Json(serde_json::json!({"code": "BAD_REQUEST", "message": pairs.join(" ")})),
        )
    };
    let client = client(serve(Router::new().route("/events", get(echo))).await);
    let query = EventQuery {
        after: Some("evt-1".into()),
        since: Some("10m".into()),
        types: vec!["exec".into(), "file.read".into()],
        sandboxes: vec!["sb-1".into()],
        owner: Some("zoë".into()),
        past: true,
    };
    let error = client.events(&query).await.unwrap_err();
    assert_eq!(error.to_string(), "follow=false owner=zoë sandbox_id=sb-1 since=10m type=exec,file.read");
    assert_eq!(client.events(&EventQuery::default()).await.unwrap_err().to_string(), "");
}
