//! Processes that count, and readers that check that every number arrives once, across whatever interrupts them.

use crate::Host;
use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::Value;
use std::time::Duration;

/// Prints a number every 10 ms, for ever, without work worth mentioning where there is Python.
const LIGHT: &str = "command -v python3 >/dev/null && exec python3 -uc 'import itertools, time
for n in itertools.count():
    print(n)
    time.sleep(0.01)'
i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done";
/// The same with a process for each pause.
const FORKING: &str = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done";

/// How much the counters make the host work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Next to nothing, where the image has Python.
    Light,
    /// A new process every 10 ms each: fifty of them leave a small host no time for anything else.
    Forking,
}

/// One counter and what was read of it.
pub struct Counter {
    /// Sandbox that it runs in.
    pub sandbox: String,
    process: String,
    text: Vec<u8>,
}

impl Counter {
    fn path(&self, tail: &str) -> String {
        format!("/sandboxes/{}/processes/{}{tail}", self.sandbox, self.process)
    }

    /// Appends what the process has written since the last call.
    ///
    /// # Errors
    /// For a byte that is missing, repeated or out of order.
    pub async fn catch_up(&mut self, host: &Host) -> Result<()> {
        let path = self.path(&format!("/output?offset={}&follow=false", self.text.len()));
        let body = host.server.get_text(&path).await?;
        for line in body.lines().filter(|line| !line.trim().is_empty()) {
            let record: Value = serde_json::from_str(line).context("not NDJSON")?;
            match record["stream"].as_str() {
                Some("stdout") => {
                    ensure!(
                        record["offset"] == self.text.len(),
                        "offset {} behind {}",
                        record["offset"],
                        self.text.len()
                    );
                    self.text.extend(BASE64_STANDARD.decode(record["data"].as_str().context("no data")?)?);
                }
                Some("start" | "heartbeat") => {}
                other => anyhow::bail!("unexpected record {other:?}: {record}"),
            }
        }
        Ok(())
    }

    /// Every number once, in order; the last line may be cut.
    ///
    /// # Errors
    /// Names the first line that is wrong.
    pub fn check(&self) -> Result<usize> {
        let text = std::str::from_utf8(&self.text)?;
        let complete = &text[..text.rfind('\n').context("no line at all")?];
        let mut count = 0;
        for (expected, line) in complete.split('\n').enumerate() {
            ensure!(line == expected.to_string(), "{}: line {expected} is {line:?}", self.sandbox);
            count = expected + 1;
        }
        Ok(count)
    }
}

/// Starts `count` sandboxes with a counter in each.
///
/// # Errors
/// When one cannot be made.
pub async fn start(host: &Host, count: usize, work: Work) -> Result<Vec<Counter>> {
    let mut counters = Vec::new();
    for _ in 0..count {
        let sandbox = host.spawn().await?;
        let process = sandbox.start(if work == Work::Light { LIGHT } else { FORKING }, false).await?;
        counters.push(Counter { sandbox: sandbox.id.clone(), process, text: Vec::new() });
    }
    Ok(counters)
}

/// Interrupts `count` counters twice with `interrupt`: all of them go on, and every number arrives once.
///
/// # Errors
/// When something was lost.
pub async fn nothing_is_lost(
    mut host: Host,
    count: usize,
    work: Work,
    interrupt: impl AsyncFn(&mut Host) -> Result<()>,
) -> Result<()> {
    let mut counters = start(&host, count, work).await?;
    for counter in &mut counters {
        counter.catch_up(&host).await?;
    }
    for _ in 0..2 {
        interrupt(&mut host).await?;
        host.until("all are running", |s| s.len() == count && s.iter().all(|(_, state)| state == "running"))
            .await?;
        for counter in &mut counters {
            counter.catch_up(&host).await?;
        }
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    for counter in &mut counters {
        let before = counter.check()?;
        counter.catch_up(&host).await?;
        let after = counter.check()?;
        ensure!(after > before, "{} stopped counting at {before}", counter.sandbox);
    }
    host.finish().await
}
