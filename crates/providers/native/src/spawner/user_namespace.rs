//! User namespaces, made in advance: in each, the ids from 0 on are a range of the host's that nobody else has.

use crate::{
    failure::{Doing, Failure},
    ids::IdRange,
    process,
    spawner::USER,
    sys,
};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{Mode, OFlags},
};
use std::{fs, time::Duration};

/// Time for a process that does nothing to end.
const END: Duration = Duration::from_secs(5);

/// Gives the namespace of a process that a user without privileges has cloned its one user: whom everything in it belongs to.
pub(super) fn map_one(pid: i32) -> Result<(), Failure> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let files = [
        // What the kernel asks of those who may not set groups: that nobody in there may either.
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{USER} {uid} 1")),
        ("gid_map", format!("{USER} {gid} 1")),
    ];
    for (file, text) in files {
        fs::write(format!("/proc/{pid}/{file}"), text).doing(|| format!("set the {file} of a sandbox"))?;
    }
    Ok(())
}

/// Makes a user namespace with the ids of `ids`, or with one user. It exists for as long as the descriptor is open, or a process is in it.
pub(super) fn make(ids: Option<IdRange>) -> Result<OwnedFd, Failure> {
    let (pid, pidfd) = sys::clone_user_namespace().doing(|| "make the namespaces of a sandbox".to_owned())?;
    let fill = || {
        match ids {
            None => map_one(pid)?,
            Some(ids) => {
                let map = format!("0 {} {}", ids.base(), IdRange::LENGTH);
                for file in ["uid_map", "gid_map"] {
                    fs::write(format!("/proc/{pid}/{file}"), &map)
                        .doing(|| format!("set the {file} of a sandbox"))?;
                }
            }
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::open(format!("/proc/{pid}/ns/user"), flags, Mode::empty())
            .doing(|| "open the user namespace of a sandbox".to_owned())
    };
    let namespace = fill();
    process::kill_and_wait(pidfd.as_fd(), END).doing(|| "end a process of ours".to_owned())?;
    namespace
}
