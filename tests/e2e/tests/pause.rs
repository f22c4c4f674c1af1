//! A paused sandbox through a killed server: readers wait, and every number arrives once.

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use futures::StreamExt;
use serde_json::{Value, json};
use stacyvm_e2e::{Host, Sandbox};
use std::time::Duration;

/// Numbers that are counted, one each 20 ms.
const NUMBERS: usize = 200;
/// Longer than a connection to a guest may be silent (10 s to the test of it, 10 s for the answer).
const LONG: Duration = Duration::from_secs(25);

fn counter() -> String {
    format!("i=0; while [ $i -lt {NUMBERS} ]; do echo $i; i=$((i+1)); sleep 0.02; done")
}

/// What was read of one process.
#[derive(Default)]
struct Reader {
    text: Vec<u8>,
    exited: bool,
}

impl Reader {
    /// Follows the output from where it is, until it ends or the server goes away.
    async fn follow(&mut self, host: &Host, sandbox: &Sandbox<'_>, process: &str) -> Result<()> {
        let path = sandbox.path(&format!("/processes/{process}/output?offset={}", self.text.len()));
        let reply = host.server.http().get(host.server.url(&path)).send().await?.error_for_status()?;
        let (mut body, mut rest) = (reply.bytes_stream(), Vec::new());
        // A server that was killed cuts the stream, maybe in the middle of a line.
        while let Some(Ok(piece)) = body.next().await {
            rest.extend_from_slice(&piece);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                self.take(&serde_json::from_slice(&line).context("not NDJSON")?)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, record: &Value) -> Result<()> {
        match record["stream"].as_str() {
            Some("stdout") => {
                ensure!(record["offset"] == self.text.len(), "{record} behind {} bytes", self.text.len());
                self.text.extend(BASE64_STANDARD.decode(record["data"].as_str().context("no data")?)?);
            }
            Some("exit") => {
                ensure!(record["exit_code"] == 0, "{record}");
                self.exited = true;
            }
            Some("start" | "heartbeat") => {}
            _ => bail!("unexpected record {record}"),
        }
        Ok(())
    }
}

async fn turn(host: &Host, sandbox: &Sandbox<'_>, verb: &str, state: &str) -> Result<()> {
    let answer = host.server.post(&sandbox.path(&format!("/{verb}")), &json!({})).await?;
    ensure!(answer["state"] == state, "{answer}");
    Ok(())
}

#[tokio::test]
async fn every_number_arrives_once_over_a_long_pause() -> Result<()> {
    let host = Host::start().await?;
    let sandbox = host.spawn().await?;
    let process = sandbox.start(&counter(), false).await?;
    let mut reader = Reader::default();
    let pausing = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        turn(&host, &sandbox, "pause", "paused").await?;
        tokio::time::sleep(LONG).await;
        ensure!(host.states().await?[0].1 == "paused");
        turn(&host, &sandbox, "resume", "running").await
    };
    let (followed, paused) = tokio::join!(reader.follow(&host, &sandbox, &process), pausing);
    paused?;
    followed?;
    check(&reader)?;
    host.finish().await
}

#[tokio::test]
async fn every_number_arrives_once_over_a_server_that_was_killed_meanwhile() -> Result<()> {
    let mut host = Host::start().await?;
    let id = host.spawn().await?.id;
    let process = host.sandbox(&id)?.start(&counter(), false).await?;
    let mut reader = Reader::default();
    {
        let sandbox = host.sandbox(&id)?;
        let killing = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            turn(&host, &sandbox, "pause", "paused").await?;
            tokio::time::sleep(Duration::from_secs(2)).await;
            let pid = i32::try_from(host.server.pid())?;
            let pid = rustix::process::Pid::from_raw(pid).context("no pid")?;
            Ok::<_, anyhow::Error>(rustix::process::kill_process(pid, rustix::process::Signal::KILL)?)
        };
        let (followed, killed) = tokio::join!(reader.follow(&host, &sandbox, &process), killing);
        killed?;
        followed?;
    }
    ensure!(!reader.exited && !reader.text.is_empty(), "the pause came too late");
    host.server.wait_for_exit(Duration::from_secs(20)).await?;
    host.server.restart().await?;

    let sandbox = host.sandbox(&id)?;
    host.until("it is found paused", |states| states == [(id.clone(), "paused".to_owned())]).await?;
    let refused = sandbox.exec("true").await.err().context("a command in a paused sandbox")?;
    ensure!(refused.to_string().contains("resume it"), "{refused}");
    ensure!(host.server.get(&sandbox.path("/logs?source=console")).await?.is_array());
    let resuming = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        turn(&host, &sandbox, "resume", "running").await
    };
    let (followed, resumed) = tokio::join!(reader.follow(&host, &sandbox, &process), resuming);
    resumed?;
    followed?;
    check(&reader)?;
    ensure!(sandbox.stdout("echo on").await? == "on\n");

    // And one that is not resumed any more.
    turn(&host, &sandbox, "pause", "paused").await?;
    sandbox.destroy().await?;
    host.finish().await
}

fn check(reader: &Reader) -> Result<()> {
    ensure!(reader.exited, "it ended before the process did, behind {} bytes", reader.text.len());
    let expected: String = (0..NUMBERS).map(|number| format!("{number}\n")).collect();
    ensure!(reader.text == expected.as_bytes(), "{}", String::from_utf8_lossy(&reader.text));
    Ok(())
}
