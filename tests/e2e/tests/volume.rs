//! Much more than fits in memory, through exec and through files: the server does not grow, and a slow reader slows only
//! itself. 256 MiB each way, or as many as `STACYVM_TEST_VOLUME_MIB` says (`make volume`: 10 GiB).

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::json;
use stacyvm_e2e::{Host, Sandbox};
use stacyvm_testkit::Server;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

/// Most that the server may grow by, in bytes.
const GROWTH: u64 = 64 << 20;
const MIB: u64 = 1 << 20;

fn volume() -> Result<u64> {
    let mib = std::env::var("STACYVM_TEST_VOLUME_MIB").unwrap_or_else(|_| "256".into());
    Ok(mib.parse::<u64>().context("STACYVM_TEST_VOLUME_MIB")? * MIB)
}

/// Looks at the server's memory until it is dropped.
struct Watch {
    most: Arc<AtomicU64>,
    before: u64,
    done: Arc<AtomicBool>,
}

impl Watch {
    fn over(server: &Server) -> Result<Self> {
        let status = format!("/proc/{}/status", server.pid());
        let before = server.resident_bytes()?;
        let (most, done) = (Arc::new(AtomicU64::new(before)), Arc::new(AtomicBool::new(false)));
        let (seen, end) = (Arc::clone(&most), Arc::clone(&done));
        std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let text = std::fs::read_to_string(&status).unwrap_or_default();
                let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
                let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
                seen.fetch_max(kib.unwrap_or(0) * 1024, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Ok(Self { most, before, done })
    }

    fn growth(&self) -> u64 {
        self.most.load(Ordering::Relaxed).saturating_sub(self.before)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

/// Bytes of output in a stream of two-key lines of base64, counted and not kept.
async fn heard(host: &Host, sandbox: &Sandbox<'_>, command: &str) -> Result<u64> {
    let body = json!({"command": command, "stream": true, "encoding": "base64", "timeout": "0s"});
    let request = host.server.http().post(host.server.url(&sandbox.path("/exec"))).json(&body);
    let mut pieces = request.send().await?.error_for_status()?.bytes_stream();
    // Everything but the data of the lines has a fixed length, and is told from it by that.
    let (mut data, mut line) = (0, Vec::new());
    while let Some(piece) = pieces.next().await {
        line.extend_from_slice(&piece?);
        while let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            let rest = line.split_off(end + 1);
            if line.len() > 1 {
                data += decoded(&line)?;
            }
            line = rest;
        }
    }
    Ok(data)
}

/// Bytes that the base64 of a line stands for.
fn decoded(line: &[u8]) -> Result<u64> {
    let begin = br#"{"stream":"stdout","data":""#;
    let text = line.strip_prefix(&begin[..]).and_then(|rest| rest.strip_suffix(b"\"}\n"));
    let text = text.with_context(|| {
        format!("a line of another kind: {}", String::from_utf8_lossy(&line[..40.min(line.len())]))
    })?;
    let padding = text.iter().rev().take_while(|byte| **byte == b'=').count();
    Ok((text.len() / 4 * 3 - padding) as u64)
}

#[tokio::test]
async fn exec_streams_more_than_fits_in_memory() -> Result<()> {
    let host = Host::start().await?;
    let sandbox = host.spawn().await?;
    let volume = volume()?;
    let watch = Watch::over(&host.server)?;
    // Somebody who started to read and does not go on.
    let slow =
        json!({"command": "head -c 1G /dev/zero", "stream": true, "encoding": "base64", "timeout": "0s"});
    let request = host.server.http().post(host.server.url(&sandbox.path("/exec"))).json(&slow);
    let mut slow = request.send().await?.error_for_status()?.bytes_stream();
    slow.next().await.context("nothing to read slowly")??;
    let heard = heard(&host, &sandbox, &format!("head -c {volume} /dev/zero")).await?;
    ensure!(heard == volume, "{heard} bytes of {volume} were heard");
    println!("exec: {} MiB, the server grew by {} KiB", volume / MIB, watch.growth() / 1024);
    ensure!(watch.growth() < GROWTH, "the server grew by {} bytes", watch.growth());
    drop((watch, slow));
    host.finish().await
}

#[tokio::test]
async fn files_larger_than_memory_go_in_and_out() -> Result<()> {
    let host = Host::start().await?;
    let sandbox = host.spawn_as(&json!({"image": "host", "ttl": "60m", "memory_mb": 256})).await?;
    let volume = volume()?;
    let watch = Watch::over(&host.server)?;
    let piece = Bytes::from(vec![7_u8; MIB as usize]);
    let content = stream::iter(0..volume / MIB).map(move |_| anyhow::Ok(piece.clone()));
    let url = host.server.url(&sandbox.path("/files?path=/workspace/large"));
    let put = host.server.http().put(&url).body(reqwest::Body::wrap_stream(content));
    put.send().await?.error_for_status()?;
    let pieces = host.server.http().get(&url).send().await?.error_for_status()?.bytes_stream();
    let back = pieces.map_err(anyhow::Error::from).try_fold(0_u64, async |sum, piece| {
        ensure!(piece.iter().all(|byte| *byte == 7), "another byte came back");
        Ok(sum + piece.len() as u64)
    });
    let back = back.await?;
    ensure!(back == volume, "{back} bytes of {volume} came back");
    println!("files: {} MiB in and out, the server grew by {} KiB", volume / MIB, watch.growth() / 1024);
    ensure!(watch.growth() < GROWTH, "the server grew by {} bytes", watch.growth());
    drop(watch);
    host.finish().await
}
