//! How the suite sees what the contract does not show: processes of this host, signs of life, expected bytes.

use crate::{
    check::{Failure, Verdict, ensure},
    context::{Context, PROMPT, Sandbox},
};
use std::{fs, time::Duration};

/// Bytes `from..to` of what `probe flood` writes.
pub(crate) fn flood(from: u64, to: u64) -> Vec<u8> {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut state = from.wrapping_mul(STEP);
    let mut bytes = vec![0; usize::try_from(to - from).unwrap_or_default()];
    for byte in &mut bytes {
        *byte = (state >> 56) as u8;
        state = state.wrapping_add(STEP);
    }
    bytes
}

/// Bytes that look random and are the same for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut bytes = vec![0; length];
    for piece in bytes.chunks_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb).to_be_bytes();
        piece.copy_from_slice(&word[..piece.len()]);
    }
    bytes
}

/// The hash that `probe stdin-hash` prints.
pub(crate) fn fnv1a(data: &[u8]) -> u64 {
    data.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Describes where two byte strings differ, without printing them.
pub(crate) fn same(what: &str, seen: &[u8], expected: &[u8]) -> Verdict {
    if seen == expected {
        return Ok(());
    }
    let first = seen.iter().zip(expected).position(|(a, b)| a != b).unwrap_or(seen.len().min(expected.len()));
    let (got, want) = (seen.len(), expected.len());
    Err(Failure(format!("{what}: {got} bytes where {want} were expected, first difference at {first}")))
}

/// Processes of this host whose command line holds `token`; zombies have none.
pub(crate) fn host_processes(token: &str) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let holds = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.windows(token.len()).any(|part| part == token.as_bytes())
    };
    numbers.filter(holds).collect()
}

/// Number of the parent process, as this host counts.
pub(crate) fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Waits until something that may take a moment is so.
pub(crate) async fn eventually<F>(cx: &Context, what: &str, mut seen: impl FnMut() -> F) -> Verdict
where
    F: Future<Output = Verdict<bool>>,
{
    let limit = cx.patient(PROMPT);
    let looking = async {
        while !seen().await? {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    };
    tokio::time::timeout(limit, looking)
        .await
        .unwrap_or_else(|_| Err(Failure(format!("{what}: not within {limit:?}"))))
}

/// Demands that the process behind a beating file lives.
pub(crate) async fn beats(cx: &Context, sandbox: &Sandbox, path: &str) -> Verdict {
    let before = sandbox.size(path).await?;
    eventually(cx, "a background process that should live shows no sign of life", || async {
        Ok(sandbox.size(path).await? > before)
    })
    .await
}

/// Demands that the process behind a beating file has ended, or does within a moment.
pub(crate) async fn falls_silent(cx: &Context, sandbox: &Sandbox, path: &str) -> Verdict {
    ensure!(sandbox.size(path).await? > 0, "the background process never lived");
    eventually(cx, "a background process that should have ended still lives", || async {
        let before = sandbox.size(path).await?;
        // Beats come every 10 ms; a busy host may skip many.
        tokio::time::sleep(cx.patient(Duration::from_millis(600))).await;
        Ok(sandbox.size(path).await? == before)
    })
    .await
}
