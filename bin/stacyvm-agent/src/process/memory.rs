//! Whether the kernel killed something of this sandbox for want of memory: a counter of the sandbox's cgroup, where it can
//! be seen. Where it cannot, nothing is claimed.

use rustix::fs::{Mode, OFlags, open};
use std::os::fd::OwnedFd;

/// Where a container finds the files of its own cgroup: version 2, then version 1.
const FILES: [&str; 2] = ["/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"];

/// The counter, if there is one.
#[derive(Debug, Default)]
pub(crate) struct OomKills(Option<OwnedFd>);

impl OomKills {
    /// Reads from `inherited`, or looks for the counter where a container has it.
    pub(crate) fn new(inherited: Option<OwnedFd>) -> Self {
        let look = || {
            FILES.iter().find_map(|file| open(*file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok())
        };
        Self(inherited.or_else(look))
    }

    /// For an agent that has no cgroup of its own.
    pub(crate) fn unknown() -> Self {
        Self(None)
    }

    /// Kills so far.
    pub(crate) fn count(&self) -> Option<u64> {
        let mut text = [0; 1024];
        let length = rustix::io::pread(self.0.as_ref()?, &mut text, 0).ok()?;
        parse(str::from_utf8(&text[..length]).ok()?)
    }
}

fn parse(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_understood() {
        assert_eq!(parse("low 0\nhigh 0\nmax 3\noom 2\noom_kill 2\noom_group_kill 0\n"), Some(2));
        assert_eq!(parse("oom_kill_disable 0\nunder_oom 0\noom_kill 17\n"), Some(17));
        assert_eq!(parse("oom_kill_disable 0\n"), None);
    }
}
