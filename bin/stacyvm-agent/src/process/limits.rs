//! Which limits of this sandbox were hit, as far as that can be seen from inside.
//!
//! The kernel counts what it killed for want of memory and which forks it refused, for the sandbox as a whole: whoever ran
//! while a counter grew is said to have hit the limit. It does not count writes that found the disk full, so the disks are
//! looked at when a process ends and not well. Where there is nothing to be seen, nothing is claimed.

use crate::files::{path::SandboxPath, resolve::Root};
use rustix::fs::{Mode, OFlags, StatVfsMountFlags, fstat, fstatvfs, open};
use stacyvm_guest::proto::Limit;
use std::os::fd::OwnedFd;

/// Where a container finds the files of its own cgroup: version 2, then version 1.
const OOM_FILES: [&str; 2] = ["/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"];
const PIDS_FILES: [&str; 2] = ["/sys/fs/cgroup/pids.events", "/sys/fs/cgroup/pids/pids.events"];
/// Where a sandbox can have filesystems of its own that it may write to.
const DISKS: [&str; 4] = ["/", "/workspace", "/tmp", "/dev/shm"];
/// Space that counts as none, in bytes: what is left when a write of usual size did not fit any more.
const NOTHING: u64 = 64 << 10;

/// What can be looked at.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    oom: Option<OwnedFd>,
    pids: Option<OwnedFd>,
    disks: Vec<OwnedFd>,
}

/// Files that a runtime handed over because the sandbox cannot see them.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    /// `memory.events` (cgroup v2) or `memory.oom_control` (v1).
    pub(crate) memory_events: Option<OwnedFd>,
    /// `pids.events`.
    pub(crate) pids_events: Option<OwnedFd>,
}

/// The kernel's counters at one moment; `None`: not to be seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    oom: Option<u64>,
    pids: Option<u64>,
}

/// A set of limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Hit {
    pub(crate) oom: bool,
    pub(crate) disk_full: bool,
    pub(crate) pids: bool,
}

impl Hit {
    /// Those that either holds.
    #[must_use]
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            oom: self.oom || other.oom,
            disk_full: self.disk_full || other.disk_full,
            pids: self.pids || other.pids,
        }
    }

    /// In the words of the protocol.
    pub(crate) fn numbers(self) -> Vec<i32> {
        let all = [(self.oom, Limit::Oom), (self.disk_full, Limit::DiskFull), (self.pids, Limit::Pids)];
        all.iter().filter(|(hit, _)| *hit).map(|(_, limit)| i32::from(*limit)).collect()
    }
}

impl Counts {
    /// What was hit between `self` and `later`.
    pub(crate) fn until(self, later: Self) -> Hit {
        let more =
            |before: Option<u64>, now: Option<u64>| before.zip(now).is_some_and(|(before, now)| now > before);
        Hit { oom: more(self.oom, later.oom), disk_full: false, pids: more(self.pids, later.pids) }
    }
}

impl Limits {
    /// For a sandbox with a cgroup of its own: counters from `inherited`, or where a container has them.
    pub(crate) fn new(root: &Root, inherited: Inherited) -> Self {
        let look = |files: [&str; 2]| {
            files.iter().find_map(|file| open(*file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok())
        };
        Self {
            oom: inherited.memory_events.or_else(|| look(OOM_FILES)),
            pids: inherited.pids_events.or_else(|| look(PIDS_FILES)),
            ..Self::without_cgroup(root)
        }
    }

    /// For one that has none.
    pub(crate) fn without_cgroup(root: &Root) -> Self {
        Self { disks: disks(root), ..Self::default() }
    }

    /// The counters now.
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            oom: self.oom.as_ref().and_then(|file| read(file, "oom_kill ")),
            pids: self.pids.as_ref().and_then(|file| read(file, "max ")),
        }
    }

    /// Whether a filesystem that the sandbox may write to has no room now.
    pub(crate) fn disk_full(&self) -> bool {
        self.disks.iter().any(is_full)
    }
}

/// The filesystems that the sandbox may write to, each once. Found at the start, before anything of the sandbox runs that
/// could put something else in their place.
fn disks(root: &Root) -> Vec<OwnedFd> {
    let (mut disks, mut seen) = (Vec::new(), Vec::new());
    for path in DISKS {
        let Ok(path) = SandboxPath::parse(path) else { continue };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(directory) = root.open(&path, flags, Mode::empty()) else { continue };
        let Ok(stat) = fstat(&directory) else { continue };
        let writable = fstatvfs(&directory).is_ok_and(|fs| !fs.f_flag.contains(StatVfsMountFlags::RDONLY));
        if writable && !seen.contains(&stat.st_dev) {
            seen.push(stat.st_dev);
            disks.push(directory);
        }
    }
    disks
}

fn is_full(directory: &OwnedFd) -> bool {
    let Ok(fs) = fstatvfs(directory) else { return false };
    // Of what does not count blocks or inodes there are none at all.
    fs.f_blocks > 0 && fs.f_bavail.saturating_mul(fs.f_frsize) < NOTHING || fs.f_files > 0 && fs.f_favail == 0
}

/// The number behind `key` in a cgroup's file.
fn read(file: &OwnedFd, key: &str) -> Option<u64> {
    let mut text = [0; 1024];
    let length = rustix::io::pread(file, &mut text, 0).ok()?;
    parse(str::from_utf8(&text[..length]).ok()?, key)
}

fn parse(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_understood() {
        let oom = |text| parse(text, "oom_kill ");
        assert_eq!(oom("low 0\nhigh 0\nmax 3\noom 2\noom_kill 2\noom_group_kill 0\n"), Some(2));
        assert_eq!(oom("oom_kill_disable 0\nunder_oom 0\noom_kill 17\n"), Some(17));
        assert_eq!(oom("oom_kill_disable 0\n"), None);
        assert_eq!(parse("max 4\n", "max "), Some(4));
    }

    #[test]
    fn a_counter_that_grew_was_hit_and_one_that_is_not_seen_was_not() {
        let counts = |oom, pids| Counts { oom, pids };
        let hit = |before: Counts, now| before.until(now).numbers();
        assert!(hit(counts(Some(1), Some(1)), counts(Some(1), Some(1))).is_empty());
        assert_eq!(hit(counts(Some(1), Some(1)), counts(Some(2), Some(9))), [1, 3]);
        assert!(hit(counts(None, Some(1)), counts(Some(2), None)).is_empty());
    }

    #[test]
    fn each_filesystem_is_looked_at_once() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["workspace", "tmp"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        let root = Root::new(Some(directory.path())).unwrap();
        let limits = Limits::without_cgroup(&root);
        assert_eq!(limits.disks.len(), 1);
        assert_eq!(limits.counts(), Counts::default());
        assert!(!limits.disk_full(), "the disk of this host is full");
    }
}
