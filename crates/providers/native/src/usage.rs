//! Resource use of a sandbox: from its cgroups, and where it has none, from its processes.

use crate::{cgroup::Controller, process, record::State};
use stacyvm_provider::{RuntimeStats, SandboxId, SandboxSpec};
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// Most processes that are looked at one by one.
const MAX_PROCESSES: usize = 8192;

/// Adds up what the sandbox uses now.
pub(crate) fn measure(state: &State, spec: Option<&SandboxSpec>) -> RuntimeStats {
    let usage = state.cgroups.usage();
    let limited = state.cgroups.0.iter().any(|g| g.controllers.contains(&Controller::Memory));
    let limit = spec.filter(|_| limited).map_or(0, |s| u64::from(s.memory_mb) << 20);
    let processes = match (usage.cpu, usage.memory, usage.pids) {
        (Some(_), Some(_), Some(_)) => Processes::default(),
        _ => Processes::of(state.process.pid),
    };
    RuntimeStats {
        cpu_time: usage.cpu.unwrap_or(processes.cpu),
        memory_bytes: usage.memory.unwrap_or(processes.resident),
        memory_limit_bytes: limit,
        pids: usage.pids.unwrap_or(processes.threads),
    }
}

/// Processor time of sandboxes that no cgroup counts: at least this much. What a process had used is forgotten with it, so the
/// sum over those that run may shrink, and what was said before stands.
#[derive(Debug, Default)]
pub(crate) struct TimeSeen(Mutex<HashMap<SandboxId, Duration>>);

impl TimeSeen {
    /// The most that was seen, `now` included.
    pub(crate) fn most(&self, id: &SandboxId, now: Duration) -> Duration {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let most = seen.entry(id.clone()).or_default();
        *most = now.max(*most);
        *most
    }

    /// The sandbox is gone.
    pub(crate) fn forget(&self, id: &SandboxId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

/// Sums over processes. Memory that several of them share counts several times; time of processes that ended counts only
/// where their parent waited for them, which is why this is for hosts without cgroups.
#[derive(Debug, Default)]
struct Processes {
    cpu: Duration,
    resident: u64,
    threads: u64,
}

impl Processes {
    fn of(first: i32) -> Self {
        let page = rustix::param::page_size() as u64;
        let ticks_per_second = rustix::param::clock_ticks_per_second().max(1);
        let mut sum = Self::default();
        let mut ticks = 0;
        for stat in process::tree(first, MAX_PROCESSES).into_iter().filter_map(|p| process::stat(p).ok()) {
            ticks += stat.ticks;
            sum.resident += stat.resident_pages * page;
            sum.threads += stat.threads;
        }
        sum.cpu = Duration::from_millis(ticks * 1000 / ticks_per_second);
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Identity;

    #[test]
    fn time_never_shrinks() {
        let (seen, id) = (TimeSeen::default(), "sb-1".parse().unwrap());
        let ms = Duration::from_millis;
        let said = [10, 30, 20, 40].map(|now| seen.most(&id, ms(now)));
        assert_eq!(said, [10, 30, 30, 40].map(ms));
        seen.forget(&id);
        assert_eq!(seen.most(&id, ms(1)), ms(1));
    }

    #[test]
    fn without_cgroups_the_processes_are_added_up() {
        let process = Identity::of(std::process::id() as i32).unwrap();
        let stats = measure(
            &State { process, cgroups: Default::default(), lower: "/".into(), ids: None, network: None },
            None,
        );
        assert!(stats.pids >= 1 && stats.memory_bytes > 0, "{stats:?}");
        assert_eq!(stats.memory_limit_bytes, 0);
    }
}
