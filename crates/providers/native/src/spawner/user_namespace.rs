//! User namespaces, made in advance: in each, the ids from 0 on are a range of the host's that nobody else has.

use crate::{
    failure::{Doing, Failure},
    ids::IdRange,
    process, sys,
};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{Mode, OFlags},
};
use std::{fs, time::Duration};

/// Time for a process that does nothing to end.
const END: Duration = Duration::from_secs(5);

/// Makes a user namespace with the ids of `ids`. It exists for as long as the descriptor is open, or a process is in it.
pub(super) fn make(ids: IdRange) -> Result<OwnedFd, Failure> {
    let (pid, pidfd) = sys::clone_user_namespace().doing(|| "make the namespaces of a sandbox".to_owned())?;
    let map = format!("0 {} {}", ids.base(), IdRange::LENGTH);
    let fill = || {
        for file in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{pid}/{file}"), &map)
                .doing(|| format!("set the {file} of a sandbox"))?;
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::open(format!("/proc/{pid}/ns/user"), flags, Mode::empty())
            .doing(|| "open the user namespace of a sandbox".to_owned())
    };
    let namespace = fill();
    process::kill_and_wait(pidfd.as_fd(), END).doing(|| "end a process of ours".to_owned())?;
    namespace
}
