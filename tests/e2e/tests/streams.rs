//! Streams that are silent for longer than a proxy in between allows.

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use serde_json::{Value, json};
use stacyvm_e2e::{
    Host,
    proxy::{Cut, Proxy},
};
use std::time::Duration;

/// Time after which the proxy cuts: many signs of life, so that a busy host makes no difference.
const IDLE: Duration = Duration::from_secs(3);
/// Seconds for which commands are silent.
const SILENT: u32 = 7;
const OFTEN: &[(&str, &str)] = &[("STACYVM_SERVER_STREAM_HEARTBEAT", "200ms")];

async fn proxy(host: &Host) -> Result<Proxy> {
    let address = host.server.base_url().trim_start_matches("http://").parse()?;
    Proxy::to(address, Cut::Silent(IDLE)).await
}

/// The body of an exec as it arrives, and whether its end did, too.
async fn exec(host: &Host, url: &str, id: &str, body: &Value) -> Result<(String, bool)> {
    let url = format!("{url}/api/v1/sandboxes/{id}/exec");
    let reply = host.server.http().post(url).json(body).send().await?.error_for_status()?;
    let (mut text, mut pieces) = (String::new(), reply.bytes_stream());
    while let Some(piece) = pieces.next().await {
        match piece {
            Ok(piece) => text += std::str::from_utf8(&piece)?,
            Err(_) => return Ok((text, false)),
        }
    }
    Ok((text, true))
}

#[tokio::test]
async fn silent_streams_survive_a_proxy_that_cuts_silent_connections() -> Result<()> {
    let host = Host::start_with(OFTEN).await?;
    let sandbox = host.spawn().await?;
    let proxy = proxy(&host).await?;
    let url = proxy.base_url();
    let command = format!("sleep {SILENT}; echo late");
    let simple = json!({"command": command, "stream": true});
    let full = json!({"command": command, "stream": true, "records": "full"});
    let events = async {
        let url = format!("{url}/api/v1/events?type=file");
        let reply = host.server.http().get(url).send().await?.error_for_status()?;
        let (mut text, mut pieces) = (String::new(), reply.bytes_stream());
        while !text.contains("file.written") {
            text += std::str::from_utf8(&pieces.next().await.context("the stream of events ended")??)?;
        }
        anyhow::Ok(())
    };
    let writing = async {
        tokio::time::sleep(Duration::from_secs(SILENT.into())).await;
        host.server.post(&sandbox.path("/files"), &json!({"path": "/workspace/f", "content": "x"})).await
    };
    let (simple, full, events, written) = tokio::join!(
        exec(&host, &url, &sandbox.id, &simple),
        exec(&host, &url, &sandbox.id, &full),
        events,
        writing
    );
    let (text, whole) = simple?;
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    ensure!(whole && lines == [r#"{"stream":"stdout","data":"late\n"}"#], "{text}");
    ensure!(text.starts_with('\n'), "silence was not filled: {text:?}");
    let (text, whole) = full?;
    ensure!(
        whole && text.contains(r#"{"stream":"heartbeat"}"#) && text.contains(r#""exit_code":0"#),
        "{text}"
    );
    events?;
    written?;
    host.finish().await
}

#[tokio::test]
async fn the_same_proxy_cuts_what_says_nothing() -> Result<()> {
    let host = Host::start_with(&[("STACYVM_SERVER_STREAM_HEARTBEAT", "30s")]).await?;
    let sandbox = host.spawn().await?;
    let proxy = proxy(&host).await?;
    let body = json!({"command": format!("sleep {SILENT}; echo late"), "stream": true});
    let (text, whole) = exec(&host, &proxy.base_url(), &sandbox.id, &body).await?;
    ensure!(!whole && text.is_empty(), "{text:?}");
    host.finish().await
}
