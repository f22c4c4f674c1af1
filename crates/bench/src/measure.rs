//! How a sample is taken.

use anyhow::{Context, Result, ensure};
use std::{
    io::Read,
    process::Command,
    time::{Duration, Instant},
};

/// Samples of one side in a row, where what is measured is warm: as many as one side takes before it is the other's turn.
pub(crate) const BLOCK: usize = 10;

/// Milliseconds since then.
pub(crate) fn ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// MiB in a second since then.
#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
pub(crate) fn rate(bytes: usize, start: Instant) -> f64 {
    (bytes >> 10) as f64 / 1024.0 / start.elapsed().as_secs_f64()
}

/// Lets the host come to rest before a sample, so that no side pays for what the one before it left to be done.
pub(crate) async fn settle() {
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// A block of one side: the host comes to rest, one round brings everything back into its caches, the rest counts.
pub(crate) async fn block(into: &mut Vec<f64>, mut once: impl AsyncFnMut() -> Result<()>) -> Result<()> {
    settle().await;
    once().await?;
    for _ in 0..BLOCK {
        let start = Instant::now();
        once().await?;
        into.push(ms(start));
    }
    Ok(())
}

/// Runs a command to its end, which has to be a success.
pub(crate) fn succeed(mut command: Command) -> Result<()> {
    let output = command.output().with_context(|| command.get_program().display().to_string())?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {}", output.status, error.trim());
    Ok(())
}

/// Milliseconds of a command from start to end.
pub(crate) fn timed(command: Command) -> Result<f64> {
    let start = Instant::now();
    succeed(command)?;
    Ok(ms(start))
}

/// Milliseconds until the first byte of output; the command is waited for, but not timed to its end.
pub(crate) fn first_output(mut command: Command) -> Result<f64> {
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| command.get_program().display().to_string())?;
    let mut out = child.stdout.take().context("no pipe")?;
    let read = out.read_exact(&mut [0]);
    let after = ms(start);
    let output = child.wait_with_output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && read.is_ok(), "{command:?}: {}: {}", output.status, error.trim());
    Ok(after)
}

/// Memory that this host could give to somebody, in MiB.
pub(crate) fn available() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    Ok(crate::host::memory(&text, "MemAvailable").context("no MemAvailable")? / 1024.0)
}
