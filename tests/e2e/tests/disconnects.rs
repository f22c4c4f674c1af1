//! A thousand connections that are cut: of what a process says and is told, every byte once, and then its true exit code.

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use stacyvm_client::{Client, Error, Options};
use stacyvm_e2e::{
    Host,
    proxy::{Cut, Proxy},
};
use stacyvm_types::StreamRecord;

/// Connections that must be cut.
const CUTS: usize = 1000;
/// Enough numbers that this many connections do not hold them.
const NUMBERS: u32 = 12_000_000;
/// Bytes of a connection. A record may take most of them, and one that is cut is nothing.
const BYTES: std::ops::Range<usize> = 1..200_000;

async fn through_a_cutter(host: &Host) -> Result<(Proxy, Client)> {
    let address = host.server.base_url().trim_start_matches("http://").parse()?;
    let proxy = Proxy::to(address, Cut::After(BYTES)).await?;
    let client = Client::new(&Options { server: proxy.base_url(), ..Options::default() })?;
    Ok((proxy, client))
}

/// Tries until the connection is not cut meanwhile. What is asked must be safe to ask again.
async fn insist<T>(ask: impl AsyncFn() -> Result<T, Error>) -> Result<T> {
    for _ in 0..1000 {
        match ask().await {
            Err(error) if error.is_transient() => {}
            answer => return Ok(answer?),
        }
    }
    bail!("a thousand connections were not enough for one answer")
}

#[tokio::test]
async fn a_chatty_process_is_heard_exactly() -> Result<()> {
    let host = Host::start().await?;
    let sandbox = host.spawn().await?;
    let process = sandbox.start(&format!("seq 1 {NUMBERS}; exit 42"), false).await?;
    let (proxy, client) = through_a_cutter(&host).await?;
    let (mut heard, mut exit) = (Vec::<u8>::new(), None);
    while exit.is_none() {
        let mut records = match client.output(&sandbox.id, &process, heard.len() as u64).await {
            Ok(records) => records,
            Err(error) if error.is_transient() => continue,
            Err(error) => return Err(error.into()),
        };
        // A cut shows as an error or as an end without a last word.
        while let Ok(Some(record)) = records.next().await {
            match record {
                StreamRecord::Stdout(chunk) => {
                    ensure!(chunk.offset == heard.len() as u64, "{} behind {}", chunk.offset, heard.len());
                    heard.extend(STANDARD.decode(chunk.data)?);
                }
                StreamRecord::Exit(record) => exit = Some(record),
                StreamRecord::Start { .. } | StreamRecord::Heartbeat => {}
                other => bail!("{other:?}"),
            }
        }
    }
    let exit = exit.context("no exit")?;
    ensure!(exit.exit_code == Some(42) && !exit.truncated, "{exit:?}");
    let said: Vec<u8> = (1..=NUMBERS).flat_map(|number| format!("{number}\n").into_bytes()).collect();
    ensure!(heard == said, "{} bytes were heard, {} were said", heard.len(), said.len());
    ensure!(proxy.cuts() >= CUTS, "only {} connections were cut", proxy.cuts());
    println!("{} connections were cut in {} bytes", proxy.cuts(), heard.len());
    host.finish().await
}

#[tokio::test]
async fn what_is_typed_arrives_exactly() -> Result<()> {
    let host = Host::start().await?;
    let sandbox = host.spawn().await?;
    let process = sandbox.start("sha256sum", true).await?;
    let address = host.server.base_url().trim_start_matches("http://").parse()?;
    // Answers are short, and so are the lives of connections.
    let proxy = Proxy::to(address, Cut::After(1..400)).await?;
    let client = Client::new(&Options { server: proxy.base_url(), ..Options::default() })?;
    let said: Bytes = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut offset = 0;
    while offset < said.len() {
        let piece = said.slice(offset..said.len().min(offset + 5000));
        let at = offset as u64;
        let ack = insist(async || {
            client.write_stdin(&sandbox.id, &process, "me", (at, piece.clone(), false)).await
        })
        .await?;
        offset = usize::try_from(ack.accepted)?;
    }
    insist(async || {
        client.write_stdin(&sandbox.id, &process, "me", (offset as u64, Bytes::new(), true)).await
    })
    .await?;
    host.server.get(&sandbox.path(&format!("/processes/{process}/wait"))).await?;
    let heard =
        host.server.get_text(&sandbox.path(&format!("/processes/{process}/output?records=simple"))).await?;
    let url = host.server.url(&sandbox.path("/files?path=/workspace/said"));
    host.server.http().put(url).body(said).send().await?.error_for_status()?;
    let expected = sandbox.stdout("sha256sum < /workspace/said").await?;
    ensure!(heard.contains(expected.trim_end()), "{heard} is not {expected}");
    ensure!(proxy.cuts() >= 200, "only {} connections were cut", proxy.cuts());
    host.finish().await
}
