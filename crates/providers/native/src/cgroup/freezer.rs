//! Freezing a sandbox and finding it frozen again. The kernel remembers which is frozen, so nobody else has to.
//!
//! On version 2 every sandbox has a cgroup already, and that is frozen. On version 1 freezing is a hierarchy of its own.
//! Joining one more would cost every create, so a sandbox joins at its first pause and stays in: its processes are
//! moved while they run, those that they start meanwhile too, until none is outside. Only then is it frozen, in one
//! step: a server that dies on the way leaves a sandbox that runs or one that is paused, and none that is half of each.

use super::{
    Controller, SandboxCgroups, Version,
    host::{make, pids, write},
};
use crate::{
    failure::{Doing, Failure},
    process,
};
use rustix::{
    fd::AsFd,
    process::{Pid, PidfdFlags, pidfd_open},
};
use stacyvm_fault::{Point, hit};
use std::{
    collections::HashSet,
    fs, io,
    path::PathBuf,
    time::{Duration, Instant},
};

/// Time to gather a sandbox whose processes multiply. Later ones are gathered behind the freeze, where they stand still.
const GATHER: Duration = Duration::from_secs(2);
/// Time for all of it, and for processes that wait for the system to come to where they can be stopped.
pub(crate) const FREEZE: Duration = Duration::from_secs(8);
/// Pause between looks at whether all have stopped.
const LOOK: Duration = Duration::from_millis(2);

/// Where one sandbox is frozen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Freezer {
    pub(super) version: Version,
    pub(super) path: PathBuf,
    /// Its processes are beneath this cgroup from their start.
    pub(super) member: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Thawed,
    Freezing,
    Frozen,
}

impl Freezer {
    /// Whether the sandbox was told to stand still. One that was never paused was not.
    pub(crate) fn is_frozen(&self) -> io::Result<bool> {
        Ok(self.state()? != State::Thawed)
    }

    fn state(&self) -> io::Result<State> {
        let read = |name: &str| match fs::read_to_string(self.path.join(name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            result => result,
        };
        Ok(match self.version {
            Version::V1 => match read("freezer.state")?.trim() {
                "FROZEN" => State::Frozen,
                "FREEZING" => State::Freezing,
                _ => State::Thawed,
            },
            Version::V2 => match read("cgroup.freeze")?.trim() {
                "1" if read("cgroup.events")?.lines().any(|l| l == "frozen 1") => State::Frozen,
                "1" => State::Freezing,
                _ => State::Thawed,
            },
        })
    }

    fn set(&self, frozen: bool) -> io::Result<()> {
        match (self.version, frozen) {
            (Version::V1, true) => write(&self.path.join("freezer.state"), "FROZEN"),
            (Version::V1, false) => write(&self.path.join("freezer.state"), "THAWED"),
            (Version::V2, true) => write(&self.path.join("cgroup.freeze"), "1"),
            (Version::V2, false) => write(&self.path.join("cgroup.freeze"), "0"),
        }
    }

    /// Lets the sandbox go on.
    pub(crate) fn thaw(&self) -> Result<(), Failure> {
        match self.set(false) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.doing(|| format!("thaw the cgroup {}", self.path.display())),
        }
    }

    /// Stops every process of the sandbox, whose cgroups are `sandbox`. False: some did not stop in time, and all go on.
    pub(crate) fn freeze(&self, sandbox: &SandboxCgroups) -> Result<bool, Failure> {
        let started = Instant::now();
        if !self.member {
            self.make()?;
            while !self.gathered(sandbox)? && started.elapsed() < GATHER {}
        }
        hit(Point::NativePauseJoined);
        let doing = || format!("freeze the cgroup {}", self.path.display());
        loop {
            // Again and again: on version 1 a process that was on its way into a sleep without signals, as the parent of
            // a `vfork` is, is passed over for ever once it sleeps.
            self.set(true).doing(doing)?;
            if (self.member || self.gathered(sandbox)?) && self.state().doing(doing)? == State::Frozen {
                hit(Point::NativePauseFrozen);
                return Ok(true);
            }
            if started.elapsed() >= FREEZE {
                self.thaw()?;
                return Ok(false);
            }
            std::thread::sleep(LOOK);
        }
    }

    fn make(&self) -> Result<(), Failure> {
        let mut tries = 0;
        loop {
            match self.path.parent().map_or(Ok(()), make).and_then(|()| make(&self.path)) {
                // The destroy of another sandbox has just removed the parent, which was empty.
                Err(failure) if failure.errno == libc::ENOENT && tries < 5 => tries += 1,
                result => return result,
            }
        }
    }

    /// Moves what is outside into the cgroup. True if nothing was: not at one look, in the middle of which a process may
    /// have been started and its parent have ended, but at two.
    fn gathered(&self, sandbox: &SandboxCgroups) -> Result<bool, Failure> {
        for _ in 0..2 {
            let outside = self.outside(sandbox)?;
            if !outside.is_empty() {
                self.take(&outside, sandbox)?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn outside(&self, sandbox: &SandboxCgroups) -> Result<Vec<i32>, Failure> {
        let doing = || format!("list the processes in {}", self.path.display());
        // In this order: what is started inside between the two is in neither, and not taken for outside.
        let all = sandbox.members().doing(doing)?;
        let inside: HashSet<_> = pids(&self.procs()).doing(doing)?.into_iter().collect();
        Ok(all.into_iter().filter(|pid| !inside.contains(pid)).collect())
    }

    /// Moves processes by their numbers, which may have become somebody else's since they were listed.
    fn take(&self, outside: &[i32], sandbox: &SandboxCgroups) -> Result<(), Failure> {
        let doing = || format!("move processes to {}", self.path.display());
        let open = |pid: &i32| Some((*pid, pidfd_open(Pid::from_raw(*pid)?, PidfdFlags::empty()).ok()?));
        let opened: Vec<_> = outside.iter().filter_map(open).collect();
        // Still members after the descriptors were made, so the descriptors are of members.
        let members: HashSet<_> = sandbox.members().doing(doing)?.into_iter().collect();
        for (pid, pidfd) in opened.into_iter().filter(|(pid, _)| members.contains(pid)) {
            match write(&self.procs(), &pid.to_string()) {
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => continue,
                result => result.doing(doing)?,
            }
            // It had its number until now, or it had not and the move may have been another one's.
            if process::ended(pidfd.as_fd()).doing(doing)? {
                self.give_back(pid, sandbox);
            }
        }
        Ok(())
    }

    /// Lets a process go that is none of the sandbox's.
    fn give_back(&self, pid: i32, sandbox: &SandboxCgroups) {
        let is_inside = pids(&self.procs()).is_ok_and(|inside| inside.contains(&pid));
        let is_member = sandbox.members().is_ok_and(|members| members.contains(&pid));
        if is_inside
            && !is_member
            && let Some(root) = self.path.ancestors().nth(2)
        {
            let _ = write(&root.join("cgroup.procs"), &pid.to_string());
        }
    }

    fn procs(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }
}

impl SandboxCgroups {
    /// Numbers of all processes of the sandbox: they are in every one of its cgroups, so one tells.
    fn members(&self) -> io::Result<Vec<i32>> {
        let counted = self.0.iter().find(|group| group.controllers.contains(&Controller::Cpuacct));
        let Some(group) = counted else { return Err(io::Error::from(io::ErrorKind::NotFound)) };
        let mut members = Vec::new();
        for directory in ["work", "agent"] {
            match pids(&group.path.join(directory).join("cgroup.procs")) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                listed => members.extend(listed?),
            }
        }
        Ok(members)
    }
}

#[cfg(test)]
mod tests {
    use super::super::sandbox::Group;
    use super::*;

    fn fake(version: Version) -> (tempfile::TempDir, Freezer) {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("stacyvm-i1/sb-1");
        fs::create_dir_all(&path).unwrap();
        (tmp, Freezer { version, path, member: version == Version::V2 })
    }

    #[test]
    fn what_was_never_paused_is_not_frozen_and_can_be_thawed() {
        for version in [Version::V1, Version::V2] {
            let (_tmp, freezer) = fake(version);
            assert!(!freezer.is_frozen().unwrap());
            freezer.thaw().unwrap();
            fs::remove_dir(&freezer.path).unwrap();
            assert!(!freezer.is_frozen().unwrap());
            freezer.thaw().unwrap();
        }
    }

    #[test]
    fn the_kernels_words_are_understood() {
        let (_tmp, v1) = fake(Version::V1);
        for (text, state) in
            [("THAWED\n", State::Thawed), ("FREEZING\n", State::Freezing), ("FROZEN\n", State::Frozen)]
        {
            fs::write(v1.path.join("freezer.state"), text).unwrap();
            assert_eq!(v1.state().unwrap(), state);
        }
        let (_tmp, v2) = fake(Version::V2);
        for (freeze, events, state) in [
            ("0\n", "populated 1\nfrozen 0\n", State::Thawed),
            ("1\n", "populated 1\nfrozen 0\n", State::Freezing),
            ("1\n", "populated 1\nfrozen 1\n", State::Frozen),
        ] {
            fs::write(v2.path.join("cgroup.freeze"), freeze).unwrap();
            fs::write(v2.path.join("cgroup.events"), events).unwrap();
            assert_eq!(v2.state().unwrap(), state);
        }
    }

    #[test]
    fn version_2_freezes_where_the_processes_are() {
        let (_tmp, freezer) = fake(Version::V2);
        fs::write(freezer.path.join("cgroup.freeze"), "0").unwrap();
        fs::write(freezer.path.join("cgroup.events"), "frozen 1\n").unwrap();
        assert!(freezer.freeze(&SandboxCgroups::default()).unwrap());
        assert!(freezer.is_frozen().unwrap());
        freezer.thaw().unwrap();
        assert!(!freezer.is_frozen().unwrap());
    }

    #[test]
    fn members_are_those_of_the_work_and_the_agent() {
        let tmp = tempfile::tempdir().unwrap();
        let group = |controllers: &[Controller]| Group {
            version: Version::V1,
            path: tmp.path().to_owned(),
            controllers: controllers.iter().copied().collect(),
        };
        let groups = SandboxCgroups(vec![group(&[Controller::Cpuacct])]);
        assert!(groups.members().unwrap().is_empty());
        for (directory, text) in [("work", "7\n8\n"), ("agent", "9\n")] {
            fs::create_dir(tmp.path().join(directory)).unwrap();
            fs::write(tmp.path().join(directory).join("cgroup.procs"), text).unwrap();
        }
        assert_eq!(groups.members().unwrap(), [7, 8, 9]);
        assert!(SandboxCgroups(vec![group(&[Controller::Pids])]).members().is_err());
    }
}
