//! The cgroups of one sandbox: make, fill, read and remove them.

use super::{
    Controller, Limits, Version,
    host::{enable, make, pids, write},
};
use crate::{
    failure::{Doing, Failure},
    process,
};
use rustix::{
    fd::{AsFd, OwnedFd},
    process::{Pid, PidfdFlags, pidfd_open},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Period over which processor time is counted, in microseconds.
const CPU_PERIOD: u64 = 100_000;

/// The cgroups of one sandbox, one per hierarchy. Kept in its record, so that what was made is found again even if the
/// host is mounted differently by then.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SandboxCgroups(pub(crate) Vec<Group>);

/// The cgroup of one sandbox in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Group {
    pub(crate) version: Version,
    pub(crate) path: PathBuf,
    pub(crate) controllers: BTreeSet<Controller>,
}

/// How a process joins one of the cgroups of the work: by its number in `file`, or `0` if it does that itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Join {
    pub(crate) file: PathBuf,
    /// The first process has to (version 1); else it was cloned into it.
    pub(crate) by_hand: bool,
}

/// Resource use, as far as there are cgroups that count it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) cpu: Option<Duration>,
    /// Bytes, without page cache that can be dropped.
    pub(crate) memory: Option<u64>,
    pub(crate) pids: Option<u64>,
}

impl Group {
    fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    fn agent(&self) -> PathBuf {
        self.path.join("agent")
    }

    fn has(&self, controller: Controller) -> bool {
        self.controllers.contains(&controller)
    }

    /// Whether the agent has to be kept apart from the work here.
    fn limits(&self) -> bool {
        self.controllers.iter().any(|c| *c != Controller::Cpuacct)
    }
}

impl SandboxCgroups {
    /// Makes the cgroups and sets the limits. Way down and controllers must be there ([`super::Host::prepare`]).
    pub(crate) fn make(&self, limits: Limits) -> Result<(), Failure> {
        for group in &self.0 {
            make(&group.path)?;
            if group.version == Version::V2 {
                enable(&group.path, &group.controllers, false)?;
            }
            make(&group.work())?;
            if group.limits() {
                make(&group.agent())?;
            }
            let work = group.work();
            let set = |file: &str, value: u64| {
                write(&work.join(file), &value.to_string()).doing(|| format!("set the limit {file}"))
            };
            // Absent where the kernel was built or booted without accounting of swap: nothing to limit then.
            let set_if_there = |file: &str, value: u64| {
                if work.join(file).exists() { set(file, value) } else { Ok(()) }
            };
            if group.has(Controller::Memory) {
                let bytes = u64::from(limits.memory_mb) << 20;
                match group.version {
                    Version::V1 => {
                        set("memory.limit_in_bytes", bytes)?;
                        set_if_there("memory.memsw.limit_in_bytes", bytes)?;
                    }
                    Version::V2 => {
                        set("memory.max", bytes)?;
                        set_if_there("memory.swap.max", 0)?;
                    }
                }
            }
            if group.has(Controller::Cpu) {
                let quota = u64::from(limits.vcpus) * CPU_PERIOD;
                match group.version {
                    Version::V1 => {
                        set("cpu.cfs_period_us", CPU_PERIOD)?;
                        set("cpu.cfs_quota_us", quota)?;
                    }
                    Version::V2 => write(&work.join("cpu.max"), &format!("{quota} {CPU_PERIOD}"))
                        .doing(|| "set the limit cpu.max".to_owned())?,
                }
            }
            if group.has(Controller::Pids) {
                set("pids.max", u64::from(limits.pids))?;
            }
        }
        Ok(())
    }

    /// How the work joins.
    pub(crate) fn joins(&self) -> Vec<Join> {
        let join = |group: &Group| match group.version {
            Version::V1 => Join { file: group.work().join("tasks"), by_hand: true },
            Version::V2 => Join { file: group.work().join("cgroup.procs"), by_hand: false },
        };
        self.0.iter().map(join).collect()
    }

    /// The directory into which it is cloned (version 2).
    pub(crate) fn open_clone_target(&self) -> Result<Option<OwnedFd>, Failure> {
        let Some(group) = self.0.iter().find(|g| g.version == Version::V2) else { return Ok(None) };
        use rustix::fs::{Mode, OFlags, open};
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        open(group.work(), flags, Mode::empty())
            .map(Some)
            .doing(|| format!("open the cgroup {}", group.work().display()))
    }

    /// Moves the agent's main process out of reach of the limits on the work.
    pub(crate) fn separate_agent(&self, pid: i32) -> io::Result<()> {
        let mut limited = self.0.iter().filter(|g| g.limits());
        limited.try_for_each(|g| write(&g.agent().join("cgroup.procs"), &pid.to_string()))
    }

    /// Kills what is left in the cgroups.
    ///
    /// Whatever runs in a sandbox dies with its first process; what can be left is a first process that was cloned and
    /// not recorded.
    pub(crate) fn kill(&self) {
        for directory in self.0.iter().flat_map(|g| [g.work(), g.agent(), g.path.clone()]) {
            if write(&directory.join("cgroup.kill"), "1").is_ok() {
                continue;
            }
            let procs = directory.join("cgroup.procs");
            for pid in pids(&procs).unwrap_or_default() {
                let Some(pid) = Pid::from_raw(pid) else { continue };
                let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
                // Still a member after the descriptor was made, so the descriptor is of a member.
                if pids(&procs).unwrap_or_default().contains(&pid.as_raw_pid()) {
                    let _ = process::kill_and_wait(pidfd.as_fd(), Duration::ZERO);
                }
            }
        }
    }

    /// Removes the cgroups, killing what is in them, until they are gone or `limit` is over.
    pub(crate) fn remove(&self, limit: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + limit;
        let mut pause = Duration::from_micros(500);
        loop {
            let left = self.0.iter().find_map(|g| remove_group(g).err().map(|e| (g, e)));
            let Some((group, error)) = left else { return Ok(()) };
            // A process that was killed leaves its cgroup a little later than it is reported dead.
            if error.raw_os_error() != Some(libc::EBUSY) || Instant::now() >= deadline {
                return Err(error).doing(|| format!("remove the cgroup {}", group.path.display()));
            }
            self.kill();
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// The file in which the kernel counts the processes of the sandbox that it killed for its memory limit.
    fn memory_events(&self) -> Option<PathBuf> {
        let group = self.0.iter().find(|g| g.has(Controller::Memory))?;
        Some(group.work().join(match group.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        }))
    }

    /// The same, open for the agent, which sees no cgroups.
    pub(crate) fn open_memory_events(&self) -> Result<Option<OwnedFd>, Failure> {
        let Some(path) = self.memory_events() else { return Ok(None) };
        let file = fs::File::open(&path).doing(|| format!("open {}", path.display()))?;
        Ok(Some(file.into()))
    }

    /// The file in which the kernel counts the processes that it did not let the sandbox make. Kernels before 4.4 have none.
    pub(crate) fn open_pids_events(&self) -> Option<OwnedFd> {
        let group = self.0.iter().find(|g| g.has(Controller::Pids))?;
        fs::File::open(group.work().join("pids.events")).ok().map(Into::into)
    }

    /// How many processes of the sandbox the kernel killed because its memory limit was hit.
    pub(crate) fn oom_kills(&self) -> u64 {
        self.memory_events().and_then(|path| keyed(&path, "oom_kill")).unwrap_or(0)
    }

    /// Resource use now.
    pub(crate) fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for group in &self.0 {
            let file = |name: &str| group.path.join(name);
            match group.version {
                Version::V1 => {
                    if group.has(Controller::Memory) {
                        usage.memory = memory(
                            &file("memory.usage_in_bytes"),
                            &file("memory.stat"),
                            "total_inactive_file",
                        );
                    }
                    if group.has(Controller::Cpuacct) {
                        usage.cpu = number(&file("cpuacct.usage")).map(Duration::from_nanos);
                    }
                }
                Version::V2 => {
                    if group.has(Controller::Memory) {
                        usage.memory = memory(&file("memory.current"), &file("memory.stat"), "inactive_file");
                    }
                    usage.cpu =
                        usage.cpu.or(keyed(&file("cpu.stat"), "usage_usec").map(Duration::from_micros));
                }
            }
            if group.has(Controller::Pids) {
                usage.pids = number(&file("pids.current"));
            }
        }
        usage
    }
}

fn remove_group(group: &Group) -> io::Result<()> {
    for path in [group.work(), group.agent(), group.path.clone()] {
        match fs::remove_dir(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The number behind `key` in a file of `key number` lines.
fn keyed(path: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let value = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' '))?;
    value.trim().parse().ok()
}

fn memory(usage: &Path, stat: &Path, droppable: &str) -> Option<u64> {
    Some(number(usage)?.saturating_sub(keyed(stat, droppable).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of plain files in place of the kernel's: directories and control files are there already, as `make`
    /// tolerates.
    fn fake(
        version: Version,
        controllers: &[Controller],
        files: &[&str],
    ) -> (tempfile::TempDir, SandboxCgroups) {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("sb-1");
        for directory in [path.clone(), path.join("work"), path.join("agent")] {
            fs::create_dir_all(&directory).unwrap();
            for file in files {
                fs::write(directory.join(file), "").unwrap();
            }
        }
        let groups = vec![Group { version, path, controllers: controllers.iter().copied().collect() }];
        (tmp, SandboxCgroups(groups))
    }

    fn read(tmp: &tempfile::TempDir, file: &str) -> String {
        fs::read_to_string(tmp.path().join("sb-1").join(file)).unwrap()
    }

    const LIMITS: Limits = Limits { memory_mb: 64, vcpus: 2, pids: 33 };

    #[test]
    fn version_1_limits_sit_on_the_work() {
        let files = [
            "memory.limit_in_bytes",
            "memory.memsw.limit_in_bytes",
            "cpu.cfs_period_us",
            "cpu.cfs_quota_us",
            "pids.max",
        ];
        let (tmp, groups) = fake(Version::V1, &Controller::ALL, &files);
        groups.make(LIMITS).unwrap();
        assert_eq!(read(&tmp, "work/memory.limit_in_bytes"), (64 << 20).to_string());
        assert_eq!(read(&tmp, "work/memory.memsw.limit_in_bytes"), (64 << 20).to_string());
        assert_eq!(read(&tmp, "work/cpu.cfs_quota_us"), "200000");
        assert_eq!(read(&tmp, "work/pids.max"), "33");
        assert!(files.iter().all(|f| read(&tmp, &format!("agent/{f}")).is_empty()));
        let file = tmp.path().join("sb-1/work/tasks");
        assert_eq!(groups.joins(), [Join { file, by_hand: true }]);
        assert!(groups.open_clone_target().unwrap().is_none());
    }

    #[test]
    fn version_2_limits_sit_on_the_work() {
        let files = ["memory.max", "memory.swap.max", "cpu.max", "pids.max", "cgroup.subtree_control"];
        let (tmp, groups) =
            fake(Version::V2, &[Controller::Memory, Controller::Cpu, Controller::Pids], &files);
        groups.make(LIMITS).unwrap();
        assert_eq!(read(&tmp, "work/memory.max"), (64 << 20).to_string());
        assert_eq!(read(&tmp, "work/memory.swap.max"), "0");
        assert_eq!(read(&tmp, "work/cpu.max"), "200000 100000");
        assert_eq!(read(&tmp, "work/pids.max"), "33");
        assert_eq!(read(&tmp, "cgroup.subtree_control"), "+memory +cpu +pids");
        let file = tmp.path().join("sb-1/work/cgroup.procs");
        assert_eq!(groups.joins(), [Join { file, by_hand: false }]);
        assert!(groups.open_clone_target().unwrap().is_some());
    }

    #[test]
    fn a_limit_that_cannot_be_set_is_an_error() {
        let (_tmp, groups) = fake(Version::V1, &[Controller::Pids], &[]);
        assert!(groups.make(LIMITS).unwrap_err().doing.contains("pids.max"));
    }

    #[test]
    fn usage_counts_what_has_a_cgroup() {
        let (tmp, groups) =
            fake(Version::V1, &[Controller::Memory, Controller::Cpuacct, Controller::Pids], &[]);
        let write = |file: &str, text: &str| fs::write(tmp.path().join("sb-1").join(file), text).unwrap();
        write("memory.usage_in_bytes", "1000\n");
        write("memory.stat", "cache 700\ninactive_file 1\ntotal_inactive_file 600\n");
        write("cpuacct.usage", "1500000000\n");
        write("pids.current", "4\n");
        write("work/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n");
        let usage = groups.usage();
        assert_eq!(usage.memory, Some(400));
        assert_eq!(usage.cpu, Some(Duration::from_millis(1500)));
        assert_eq!(usage.pids, Some(4));
        assert_eq!(groups.oom_kills(), 3);

        let (tmp, groups) = fake(Version::V2, &[Controller::Memory, Controller::Cpu], &[]);
        let write = |file: &str, text: &str| fs::write(tmp.path().join("sb-1").join(file), text).unwrap();
        write("memory.current", "1000\n");
        write("memory.stat", "anon 1\ninactive_file 250\n");
        write("cpu.stat", "usage_usec 42\nuser_usec 40\n");
        write("work/memory.events", "low 0\noom 2\noom_kill 1\noom_group_kill 0\n");
        let usage = groups.usage();
        assert_eq!((usage.memory, usage.pids), (Some(750), None));
        assert_eq!(usage.cpu, Some(Duration::from_micros(42)));
        assert_eq!(groups.oom_kills(), 1);
    }

    #[test]
    fn removal_is_for_cgroups_that_exist_or_not() {
        let (tmp, groups) = fake(Version::V1, &[Controller::Pids], &[]);
        groups.remove(Duration::ZERO).unwrap();
        assert!(!tmp.path().join("sb-1").exists());
        groups.remove(Duration::ZERO).unwrap();
    }
}
