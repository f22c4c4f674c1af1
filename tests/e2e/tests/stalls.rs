//! Clients and processes that stand still hold up nobody else.

use anyhow::{Result, ensure};
use bytes::Bytes;
use futures::{StreamExt, stream};
use serde_json::json;
use stacyvm_e2e::Host;
use std::time::{Duration, Instant};

/// "At once" for a call that must not wait for any of the stalled ones. Generous: a stall would last for ever.
const AT_ONCE: Duration = Duration::from_secs(3);

#[tokio::test]
async fn kill_and_health_answer_while_everything_else_stands_still() -> Result<()> {
    let host = Host::start().await?;
    let sandbox = host.spawn().await?;

    // A process that never reads its stdin, with stdin offered until nothing more is taken.
    let deaf = sandbox.start("sleep 600", true).await?;
    let mut offset = 0;
    for _ in 0..40 {
        let path = sandbox.path(&format!("/processes/{deaf}/stdin?offset={offset}"));
        let ack = host.server.post_bytes(&path, vec![b'x'; 64 << 10]).await?;
        let accepted = ack["accepted"].as_u64().unwrap_or_default();
        if accepted == offset {
            break;
        }
        offset = accepted;
    }
    ensure!(offset > 0 && offset < 40 * (64 << 10), "a pipe that nobody reads took {offset} bytes");

    // Five attached clients that never read what a chatty process says.
    let chatty = sandbox.start("yes stacyvm", false).await?;
    let mut silent = Vec::new();
    for _ in 0..5 {
        let path = sandbox.path(&format!("/processes/{chatty}/output?offset=0&follow=true"));
        silent.push(host.server.http().get(host.server.url(&path)).send().await?);
    }

    // An upload that stalls after its first piece.
    let first = stream::iter([std::io::Result::Ok(Bytes::from(vec![1; 100_000]))]);
    let upload = host
        .server
        .http()
        .put(host.server.url(&sandbox.path("/files?path=/workspace/stalled")))
        .body(reqwest::Body::wrap_stream(first.chain(stream::pending())))
        .send();
    let upload = tokio::spawn(upload);
    tokio::time::sleep(Duration::from_millis(500)).await;

    let timed = async |what: &str, call: &dyn Fn() -> futures::future::BoxFuture<'static, Result<()>>| {
        let start = Instant::now();
        tokio::time::timeout(AT_ONCE, call())
            .await
            .map_err(|_| anyhow::anyhow!("{what} did not answer at once"))??;
        eprintln!("{what}: {:?}", start.elapsed());
        anyhow::Ok(())
    };
    let server = &host.server;
    let get = |path: String| {
        let request = server.http().get(server.url(&path));
        move || -> futures::future::BoxFuture<'static, Result<()>> {
            let request = request.try_clone();
            Box::pin(async move {
                request.ok_or_else(|| anyhow::anyhow!("not repeatable"))?.send().await?.error_for_status()?;
                Ok(())
            })
        }
    };
    timed("health", &get("/health".into())).await?;
    timed("list processes", &get(sandbox.path("/processes"))).await?;
    let echo = tokio::time::timeout(AT_ONCE, sandbox.stdout("echo fine")).await??;
    ensure!(echo == "fine\n");
    for process in [&deaf, &chatty] {
        let body = json!({"signal": "KILL", "tree": true});
        let path = sandbox.path(&format!("/processes/{process}/signal"));
        tokio::time::timeout(AT_ONCE, server.post(&path, &body)).await??;
        let path = sandbox.path(&format!("/processes/{process}/wait?timeout=3s"));
        let ended = tokio::time::timeout(AT_ONCE, server.get(&path)).await??;
        ensure!(ended["signal"] == 9, "{ended}");
    }
    upload.abort();
    drop(silent);
    tokio::time::timeout(AT_ONCE * 2, sandbox.destroy()).await??;
    host.finish().await
}

#[tokio::test]
async fn an_abandoned_upload_leaves_the_old_file() -> Result<()> {
    let host = Host::start().await?;
    let sandbox = host.spawn().await?;
    let address = host.server.url(&sandbox.path("/files?path=/workspace/f"));
    host.server.http().put(&address).body("old").send().await?.error_for_status()?;
    let part = stream::iter([std::io::Result::Ok(Bytes::from(vec![1; 300_000]))]);
    let request =
        host.server.http().put(&address).body(reqwest::Body::wrap_stream(part.chain(stream::pending())));
    let upload = tokio::spawn(request.send());
    tokio::time::sleep(Duration::from_millis(300)).await;
    upload.abort();
    let _ = upload.await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    ensure!(sandbox.stdout("cat f").await? == "old");
    ensure!(sandbox.stdout("ls -A").await? == "f\n", "the temporary file is gone");
    host.finish().await
}
