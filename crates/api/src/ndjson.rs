//! Output of a process as lines of JSON, in the two formats of the contract. A stream that cannot go on never looks as if
//! it had ended well: `full` streams say why in their last record, `simple` ones have no word for it and are cut.

use crate::{
    exec_guard::KillGuard,
    records::{Format, Records},
};
use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use futures::stream;
use http::{HeaderName, header};
use stacyvm_provider::OutputStream;
use tokio_util::sync::CancellationToken;

/// Tells proxies (nginx and those that took it over) to pass each piece on as it comes.
pub(crate) const UNBUFFERED: (HeaderName, &str) = (HeaderName::from_static("x-accel-buffering"), "no");

/// Streams `output`. The guard's process is killed if the client goes away before the end.
pub(crate) fn response(
    output: OutputStream,
    format: Format,
    guard: Option<KillGuard>,
    stop: CancellationToken,
) -> Response {
    let body = stream::unfold(Records::new(output, format, guard, stop), |mut records| async move {
        let line = records.next().await?;
        Some((line, records))
    });
    let headers = [
        (header::CONTENT_TYPE, "application/x-ndjson"),
        (header::CACHE_CONTROL, "no-cache"),
        // A proxy that collects an answer before it passes it on makes a stream of none.
        (UNBUFFERED.0, UNBUFFERED.1),
    ];
    (headers, Body::from_stream(body)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use futures::StreamExt;
    use http_body_util::BodyExt;
    use proptest::prelude::*;
    use stacyvm_provider::{Error, Outcome, OutputEvent, ProcessInfo, StdStream};
    use stacyvm_types::{Encoding, StreamChunk};
    use std::time::{Duration, SystemTime};

    fn ended(timed_out: bool) -> OutputEvent {
        OutputEvent::Exit(Box::new(ProcessInfo {
            id: "p-1".into(),
            pid: 2,
            argv: vec![],
            cwd: "/".into(),
            user: "sandbox".into(),
            tag: String::new(),
            started: SystemTime::UNIX_EPOCH,
            ended: Some(SystemTime::UNIX_EPOCH),
            outcome: Some(if timed_out { Outcome::Signaled(9) } else { Outcome::Exited(3) }),
            timed_out,
            oom_killed: false,
            limits_hit: Vec::new(),
            output_start: 0,
            output_end: 0,
            output_open: false,
            stdin_open: false,
            stdin_offset: 0,
            pty: None,
        }))
    }

    fn chunk(stream: StdStream, offset: u64, data: &'static [u8]) -> OutputEvent {
        OutputEvent::Chunk { stream, offset, data: Bytes::from_static(data) }
    }

    fn simple(encoding: Encoding) -> Format {
        Format::Simple { encoding, sandbox: "sb-1".into(), heartbeat: Duration::from_secs(15) }
    }

    fn full() -> Format {
        Format::Full { process: "p-1".into(), heartbeat: Duration::from_secs(15) }
    }

    /// The lines, and whether the stream was cut.
    async fn lines(
        events: Vec<stacyvm_provider::Result<OutputEvent>>,
        format: Format,
    ) -> (Vec<String>, bool) {
        let response = response(stream::iter(events).boxed(), format, None, CancellationToken::new());
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/x-ndjson");
        let (mut body, mut text, mut cut) = (response.into_body(), String::new(), false);
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => text += std::str::from_utf8(&frame.into_data().unwrap()).unwrap(),
                Err(_) => cut = true,
            }
        }
        (text.lines().map(str::to_owned).collect(), cut)
    }

    #[tokio::test]
    async fn simple_lines_have_two_keys_and_no_last_word() {
        let events = vec![
            Ok(chunk(StdStream::Stdout, 0, b"a\n")),
            Ok(chunk(StdStream::Stderr, 2, b"<b>")),
            Ok(ended(false)),
        ];
        let expected = [r#"{"stream":"stdout","data":"a\n"}"#, r#"{"stream":"stderr","data":"<b>"}"#];
        assert_eq!(lines(events, simple(Encoding::Utf8)).await, (expected.map(String::from).to_vec(), false));
    }

    #[tokio::test]
    async fn a_deadline_is_said_on_stderr() {
        let (got, cut) = lines(vec![Ok(ended(true))], simple(Encoding::Utf8)).await;
        assert_eq!(
            (got, cut),
            (vec![r#"{"stream":"stderr","data":"exec timeout: sb-1"}"#.to_owned()], false)
        );
    }

    #[tokio::test]
    async fn full_records_carry_offsets_gaps_and_the_exit() {
        let events = vec![
            Ok(OutputEvent::Gap { offset: 0, length: 5 }),
            Ok(chunk(StdStream::Stdout, 5, b"\xff\x00")),
            Ok(ended(false)),
        ];
        let expected = [
            r#"{"stream":"start","process_id":"p-1"}"#,
            r#"{"stream":"gap","offset":0,"length":5}"#,
            r#"{"stream":"stdout","offset":5,"data":"/wA="}"#,
            r#"{"stream":"exit","exit_code":3,"truncated":true}"#,
        ];
        assert_eq!(lines(events, full()).await, (expected.map(String::from).to_vec(), false));
    }

    #[tokio::test]
    async fn a_broken_stream_is_cut_or_says_so() {
        let events =
            || vec![Ok(chunk(StdStream::Stdout, 0, b"a")), Err(Error::unavailable("the guest is gone"))];
        let (got, cut) = lines(events(), simple(Encoding::Utf8)).await;
        assert_eq!((got.len(), cut), (1, true));
        let (got, cut) = lines(events(), full()).await;
        assert!(!cut);
        assert_eq!(got[2], r#"{"stream":"error","code":"UNAVAILABLE","message":"the guest is gone"}"#);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_filled_and_a_stopping_server_says_so() {
        let stop = CancellationToken::new();
        let response = response(stream::pending().boxed(), full(), None, stop.clone());
        let mut body = response.into_body();
        let mut line = async || {
            let frame = body.frame().await.unwrap().unwrap();
            String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap()
        };
        assert!(line().await.contains("start"));
        assert_eq!(line().await, "{\"stream\":\"heartbeat\"}\n");
        stop.cancel();
        assert!(line().await.contains("UNAVAILABLE"));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_of_simple_streams_is_filled_with_empty_lines() {
        let later = async {
            tokio::time::sleep(Duration::from_secs(50)).await;
            Ok(chunk(StdStream::Stdout, 0, b"a"))
        };
        let events = stream::once(later).chain(stream::iter([Ok(ended(false))]));
        let response = response(events.boxed(), simple(Encoding::Utf8), None, CancellationToken::new());
        let text = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(text, "\n\n\n{\"stream\":\"stdout\",\"data\":\"a\"}\n");
    }

    proptest! {
        #[test]
        fn text_survives_any_cut(text in "\\PC{0,60}", size in 1..7usize) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let mut events = Vec::new();
            for (i, piece) in text.as_bytes().chunks(size).enumerate() {
                let data = Bytes::copy_from_slice(piece);
                events.push(Ok(OutputEvent::Chunk { stream: StdStream::Stdout, offset: (i * size) as u64, data }));
            }
            events.push(Ok(ended(false)));
            let (lines, _) = runtime.block_on(lines(events, simple(Encoding::Utf8)));
            let data: String =
                lines.iter().map(|line| serde_json::from_str::<StreamChunk>(line).unwrap().data).collect();
            prop_assert_eq!(data, text);
        }
    }
}
