//! Resource use of the host and of this process, read from `/proc`.

use rustix::fs::statvfs;
use stacyvm_types::SystemStats;
use std::{
    fs,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Shortest time between two looks that a rate is computed from.
const SHORTEST: Duration = Duration::from_millis(200);
/// Longest time: an older look says nothing about now.
const LONGEST: Duration = Duration::from_secs(30);

/// Computes rates between looks at the host.
pub(crate) struct HostSampler {
    data_dir: PathBuf,
    last: Mutex<Option<Sample>>,
}

/// Counters of the host at one moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    cpu: Cpu,
    net: Net,
}

/// Processor time since boot, in ticks of all processors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Cpu {
    busy: u64,
    total: u64,
}

/// Bytes since boot on all interfaces but loopback.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Net {
    received: u64,
    sent: u64,
}

impl HostSampler {
    pub(crate) fn new(data_dir: PathBuf) -> Self {
        Self { data_dir, last: Mutex::new(None) }
    }

    /// The host now; rates since the last look, or over a short sample if there was none lately.
    pub(crate) async fn stats(&self) -> SystemStats {
        let recent = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let usable = recent.filter(|last| (SHORTEST..=LONGEST).contains(&last.at.elapsed()));
        let before = match usable {
            Some(last) => last,
            None => {
                let first = Sample::take();
                tokio::time::sleep(SHORTEST).await;
                first
            }
        };
        let now = Sample::take();
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        let seconds = now.at.duration_since(before.at).as_secs_f64();
        let rate = |now: u64, before: u64| (now.saturating_sub(before)) as f64 / seconds.max(0.001);
        SystemStats {
            cpu_pct: percent(
                now.cpu.busy.saturating_sub(before.cpu.busy),
                now.cpu.total.saturating_sub(before.cpu.total),
            ),
            mem_pct: memory_percent(&read("/proc/meminfo")),
            disk_pct: self.disk_percent(),
            net_rx_bps: rate(now.net.received, before.net.received),
            net_tx_bps: rate(now.net.sent, before.net.sent),
            load1: read("/proc/loadavg")
                .split_whitespace()
                .next()
                .and_then(|n| n.parse().ok())
                .unwrap_or(0.0),
        }
    }

    /// As `df` counts: space that only root may use is not counted as free.
    fn disk_percent(&self) -> f64 {
        let Ok(disk) = statvfs(&self.data_dir) else { return 0.0 };
        let used = disk.f_blocks.saturating_sub(disk.f_bfree);
        percent(used, used + disk.f_bavail)
    }
}

impl Sample {
    fn take() -> Self {
        Self { at: Instant::now(), cpu: cpu(&read("/proc/stat")), net: net(&read("/proc/net/dev")) }
    }
}

/// Memory of this process in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct OwnMemory {
    /// Resident, without file pages.
    pub(crate) anonymous: u64,
    /// Resident.
    pub(crate) resident: u64,
    /// Data segment.
    pub(crate) data: u64,
}

/// Memory of this process now.
pub(crate) fn own_memory() -> OwnMemory {
    own_memory_from(&read("/proc/self/status"))
}

fn own_memory_from(status: &str) -> OwnMemory {
    let bytes = |key| kilobytes(status, key) * 1024;
    OwnMemory { anonymous: bytes("RssAnon:"), resident: bytes("VmRSS:"), data: bytes("VmData:") }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { (part as f64 / whole as f64 * 1000.0).round() / 10.0 }
}

/// The number in a line `Key:   123 kB`.
fn kilobytes(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|line| line.split_whitespace().next()).and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn memory_percent(meminfo: &str) -> f64 {
    let total = kilobytes(meminfo, "MemTotal:");
    percent(total.saturating_sub(kilobytes(meminfo, "MemAvailable:")), total)
}

/// The first line of `/proc/stat`: user nice system idle iowait irq softirq steal; guest time is part of user.
fn cpu(stat: &str) -> Cpu {
    let Some(line) = stat.lines().find_map(|line| line.strip_prefix("cpu ")) else { return Cpu::default() };
    let ticks: Vec<u64> = line.split_whitespace().take(8).filter_map(|n| n.parse().ok()).collect();
    let total = ticks.iter().sum();
    let idle: u64 = ticks.get(3..5).unwrap_or_default().iter().sum();
    Cpu { busy: total - idle, total }
}

fn net(dev: &str) -> Net {
    let mut net = Net::default();
    for line in dev.lines() {
        let Some((name, counters)) = line.split_once(':') else { continue };
        if name.trim() == "lo" {
            continue;
        }
        let counters: Vec<u64> = counters.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        net.received += counters.first().copied().unwrap_or(0);
        net.sent += counters.get(8).copied().unwrap_or(0);
    }
    net
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_is_what_is_neither_idle_nor_waiting() {
        let stat = "cpu  10 1 9 70 10 0 0 0 5 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(cpu(stat), Cpu { busy: 20, total: 100 });
        assert_eq!(cpu("nonsense"), Cpu::default());
        assert_eq!(cpu("cpu  1"), Cpu { busy: 1, total: 1 });
    }

    #[test]
    fn loopback_traffic_is_not_counted() {
        let dev = "Inter-|   Receive\n face |bytes packets\n    lo: 999 1 0 0 0 0 0 0 999 1 0 0 0 0 0 0\n\
                   \x20 eth0: 100 1 0 0 0 0 0 0 200 1 0 0 0 0 0 0\n eth1:7 1 0 0 0 0 0 0 8 1 0 0 0 0 0 0\n";
        assert_eq!(net(dev), Net { received: 107, sent: 208 });
    }

    #[test]
    fn memory_is_read_by_key() {
        assert_eq!(memory_percent("MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable:  250 kB\n"), 75.0);
        assert_eq!(memory_percent(""), 0.0);
        let own = own_memory_from("VmRSS:\t  20 kB\nRssAnon:\t  12 kB\nVmData:\t 30 kB\n");
        assert_eq!(own, OwnMemory { anonymous: 12 << 10, resident: 20 << 10, data: 30 << 10 });
    }

    #[tokio::test]
    async fn a_real_host_has_memory_and_a_disk() {
        let sampler = HostSampler::new("/".into());
        let stats = sampler.stats().await;
        assert!(stats.mem_pct > 0.0 && stats.mem_pct <= 100.0, "{stats:?}");
        assert!(stats.disk_pct > 0.0 && stats.disk_pct <= 100.0, "{stats:?}");
        assert!((0.0..=100.0).contains(&stats.cpu_pct), "{stats:?}");
        assert!(own_memory().resident > 0);
    }
}
