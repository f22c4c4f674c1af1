//! Resource use of a container, from the daemon's one-shot statistics.

use bollard::models::ContainerStatsResponse;
use stacyvm_provider::RuntimeStats;
use std::time::Duration;

/// The contract's numbers. Without a limit the daemon says that all of its host's memory is the limit.
pub(crate) fn from(stats: &ContainerStatsResponse, host_memory: u64) -> RuntimeStats {
    let memory = stats.memory_stats.as_ref();
    let detail =
        |name: &str| memory.and_then(|memory| memory.stats.as_ref()?.get(name).copied()).unwrap_or(0);
    let used = memory.and_then(|memory| memory.usage).unwrap_or(0);
    // Page cache that can be dropped: cgroup v2 has one word for it, v1 another.
    let cache = detail("inactive_file").max(detail("total_inactive_file"));
    let limit = memory.and_then(|memory| memory.limit).unwrap_or(0);
    let cpu = stats.cpu_stats.as_ref().and_then(|cpu| cpu.cpu_usage.as_ref()?.total_usage).unwrap_or(0);
    RuntimeStats {
        cpu_time: Duration::from_nanos(cpu),
        memory_bytes: used.saturating_sub(cache),
        memory_limit_bytes: if limit < host_memory { limit } else { 0 },
        pids: stats.pids_stats.as_ref().and_then(|pids| pids.current).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_cgroups_are_understood() {
        let read = |text: &str| from(&serde_json::from_str(text).unwrap(), 1000);
        let v1 = read(
            r#"{"memory_stats":{"usage":100,"limit":500,"stats":{"total_inactive_file":30}},
            "cpu_stats":{"cpu_usage":{"total_usage":2000000}},"pids_stats":{"current":4}}"#,
        );
        assert_eq!((v1.memory_bytes, v1.memory_limit_bytes, v1.pids), (70, 500, 4));
        assert_eq!(v1.cpu_time, Duration::from_millis(2));
        let v2 = read(r#"{"memory_stats":{"usage":100,"limit":1000,"stats":{"inactive_file":10}}}"#);
        assert_eq!((v2.memory_bytes, v2.memory_limit_bytes), (90, 0));
        assert_eq!(read("{}").memory_bytes, 0);
    }
}
