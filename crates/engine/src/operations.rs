//! Counters per operation and provider, for metrics and diagnostics: in memory, since the start of the server.

use jiff::Timestamp;
use stacyvm_types::OperationCounts;
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Creating a sandbox.
    Spawn,
    /// A command that is waited for.
    Exec,
    /// A process that is started and attached to.
    ExecStream,
    /// Destroying a sandbox.
    Destroy,
    /// Pausing a sandbox.
    Pause,
    /// Resuming a sandbox.
    Resume,
    /// Writing a file.
    FileWrite,
    /// Reading a file.
    FileRead,
    /// Listing a directory.
    FileList,
    /// Deleting a file.
    FileDelete,
    /// Moving a file.
    FileMove,
    /// Changing a file's mode.
    FileChmod,
    /// Looking at a file's metadata.
    FileStat,
    /// Finding files.
    FileGlob,
}

impl Operation {
    /// The name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Spawn => "spawn",
            Self::Exec => "exec",
            Self::ExecStream => "exec_stream",
            Self::Destroy => "destroy",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::FileWrite => "file_write",
            Self::FileRead => "file_read",
            Self::FileList => "file_list",
            Self::FileDelete => "file_delete",
            Self::FileMove => "file_move",
            Self::FileChmod => "file_chmod",
            Self::FileStat => "file_stat",
            Self::FileGlob => "file_glob",
        }
    }
}

/// Longest error text that is kept, in characters.
const ERROR_CHARS: usize = 300;

#[derive(Debug, Default)]
struct Count {
    success: u64,
    failure: u64,
    total: Duration,
    min: Option<Duration>,
    max: Duration,
    last_error: Option<String>,
    last: Option<Timestamp>,
}

/// The counters. As many as there are operations times configured providers.
#[derive(Debug, Default)]
pub(crate) struct Operations {
    counts: Mutex<BTreeMap<(Operation, String), Count>>,
}

impl Operations {
    pub(crate) fn record(
        &self,
        operation: Operation,
        provider: &str,
        outcome: Result<(), &str>,
        took: Duration,
    ) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry((operation, provider.to_owned())).or_default();
        match outcome {
            Ok(()) => count.success += 1,
            Err(error) => {
                count.failure += 1;
                count.last_error = Some(error.chars().take(ERROR_CHARS).collect());
            }
        }
        count.total = count.total.saturating_add(took);
        count.min = Some(count.min.map_or(took, |min| min.min(took)));
        count.max = count.max.max(took);
        count.last = Some(Timestamp::now());
    }

    pub(crate) fn snapshot(&self) -> Vec<OperationCounts> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = counts.iter().map(|((operation, provider), count)| {
            let observed = count.success + count.failure;
            OperationCounts {
                operation: operation.as_str().into(),
                provider: provider.clone(),
                success_total: count.success,
                failure_total: count.failure,
                latency_count: observed,
                latency_total_ms: millis(count.total),
                latency_min_ms: millis(count.min.unwrap_or_default()),
                latency_max_ms: millis(count.max),
                latency_avg_ms: if observed == 0 { 0.0 } else { millis(count.total) / observed as f64 },
                last_error: count.last_error.clone(),
                last_observed_unix: count.last.map(Timestamp::as_second),
            }
        });
        rows.collect()
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn successes_failures_and_times_add_up_per_provider() {
        let operations = Operations::default();
        operations.record(Operation::Exec, "a", Ok(()), Duration::from_millis(10));
        operations.record(Operation::Exec, "a", Err("no such command"), Duration::from_millis(30));
        operations.record(Operation::Exec, "b", Ok(()), Duration::from_millis(1));
        let rows = operations.snapshot();
        assert_eq!(rows.len(), 2);
        let a = &rows[0];
        assert_eq!((a.operation.as_str(), a.provider.as_str()), ("exec", "a"));
        assert_eq!((a.success_total, a.failure_total, a.latency_count), (1, 1, 2));
        assert_eq!((a.latency_min_ms, a.latency_max_ms, a.latency_avg_ms), (10.0, 30.0, 20.0));
        assert_eq!(a.last_error.as_deref(), Some("no such command"));
    }
}
