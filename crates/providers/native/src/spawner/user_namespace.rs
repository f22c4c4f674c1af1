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
    fs::{Mode, OFlags, Uid},
    pipe::{PipeFlags, pipe_with},
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
fn enter_new(ids: Option<IdRange>) -> io::Result<()> {
    if let Some(ids) = ids {
        // The effective user only, which leaves the right to take its own rights back.
        let owner = Uid::from_raw(ids.base());
        set_thread_res_uid(Uid::ROOT, owner, Uid::ROOT)?;
        let sets = capabilities(None)?;
        set_capabilities(None, CapabilitySets { effective: sets.permitted, ..sets })?;
    }
    sys::new_user_namespace()
}

/// Makes a user namespace with the ids of `ids`, or with one user. It exists for as long as the descriptor is open, or a
/// process is in it.
pub(super) fn make(ids: Option<IdRange>) -> Result<OwnedFd, Failure> {
    let doing = || "make the namespaces of a sandbox".to_owned();
    let (ready, tell_ready) = pipe_with(PipeFlags::CLOEXEC).doing(doing)?;
    let (pid, pidfd) = sys::clone_idle(|| {
        let errno = enter_new(ids).err().map_or(0, |e| e.raw_os_error().unwrap_or(libc::EIO));
        rustix::io::write(&tell_ready, &errno.to_ne_bytes()).is_ok() && errno == 0
    })
    .doing(doing)?;
    drop(tell_ready);
    let fill = || {
        let mut errno = [0; 4];
        match rustix::io::read(&ready, &mut errno).doing(doing)? {
            4 => {}
            _ => return Err(Failure::plain(doing())),
        }
        match i32::from_ne_bytes(errno) {
            0 => {}
            errno => return Err(io::Error::from_raw_os_error(errno)).doing(doing),
        }
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
