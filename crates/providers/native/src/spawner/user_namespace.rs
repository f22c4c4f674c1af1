//! User namespaces, made in advance: in each, the ids from 0 on are a range of the host's that nobody else has.

use super::protocol::{receive, send, socket_pair};
use crate::{
    failure::{Doing, Failure},
    ids::IdRange,
    image::profile::USER,
    process, sys,
};
use rustix::{
    fd::{AsFd, AsRawFd, OwnedFd},
    fs::{Mode, OFlags, Uid},
    thread::{CapabilitySets, capabilities, set_capabilities, set_thread_res_uid},
};
use std::{fs, io, time::Duration};

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

/// Moves this process into a user namespace that belongs to its future root. What the kernel counts by user, it counts for the
/// owner of a namespace too: one that belonged to root of the host would have root, and every other sandbox, run out with it.
fn enter_new(ids: Option<IdRange>) -> io::Result<OwnedFd> {
    if let Some(ids) = ids {
        // The effective user only, which leaves the right to take its own rights back.
        let owner = Uid::from_raw(ids.base());
        set_thread_res_uid(Uid::ROOT, owner, Uid::ROOT)?;
        let sets = capabilities(None)?;
        set_capabilities(None, CapabilitySets { effective: sets.permitted, ..sets })?;
    }
    sys::new_user_namespace()?;
    // By itself: the namespaces of a process with another user are not everybody's to open.
    Ok(rustix::fs::open("/proc/self/ns/user", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Closes what is the spawner's: its socket, its lock.
fn alone(socket: &OwnedFd) -> io::Result<()> {
    sys::close_all_except(&[socket.as_raw_fd()])
}

/// Makes a user namespace with the ids of `ids`, or with one user. It exists for as long as the descriptor is open, or a
/// process is in it.
pub(super) fn make(ids: Option<IdRange>) -> Result<OwnedFd, Failure> {
    let doing = || "make the namespaces of a sandbox".to_owned();
    let (ours, theirs) = socket_pair().doing(doing)?;
    let (pid, pidfd) = sys::clone_idle(|| match alone(&theirs).and_then(|()| enter_new(ids)) {
        Ok(namespace) => send(theirs.as_fd(), &0, &[namespace.as_fd()]).is_ok(),
        Err(e) => {
            // Whether it arrives or not, there is no namespace.
            let _ = send(theirs.as_fd(), &e.raw_os_error().unwrap_or(libc::EIO), &[]);
            false
        }
    })
    .doing(doing)?;
    drop(theirs);
    let fill = || {
        let namespace = match receive::<i32>(ours.as_fd()).doing(doing)? {
            Some((0, fds)) => fds.into_iter().next().ok_or_else(|| Failure::plain(doing()))?,
            Some((errno, _)) => return Err(io::Error::from_raw_os_error(errno)).doing(doing),
            None => return Err(Failure::plain(doing())),
        };
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
        Ok(namespace)
    };
    let namespace = fill();
    process::kill_and_wait(pidfd.as_fd(), END).doing(|| "end a process of ours".to_owned())?;
    namespace
}
