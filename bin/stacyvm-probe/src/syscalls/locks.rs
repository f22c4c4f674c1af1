//! Locks on files: an answer that is wrong here loses data.

use super::{
    Entry,
    attempt::{Attempt, Judge, Not, at, call, raw, works},
    files::file,
};
use rustix::{fd::OwnedFd, io::Errno};

pub(super) const TABLE: &[Entry] = &[
    ("flock", || keeps_out("flock", |file| call(libc::SYS_flock, [raw(file), EXCLUSIVE_AT_ONCE]))),
    ("open file description locks", || keeps_out("described", |file| record(file, OFD_SETLK))),
    ("record locks", record_locks),
];

const EXCLUSIVE_AT_ONCE: usize = (libc::LOCK_EX | libc::LOCK_NB) as usize;
const OFD_SETLK: usize = 37;

/// Locks the whole file for writing, at once or not at all.
fn record(file: &OwnedFd, command: usize) -> Result<usize, Errno> {
    let kind = libc::F_WRLCK as i16;
    let lock = libc::flock { l_type: kind, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
    call(libc::SYS_fcntl, [raw(file), command, at(&lock)])
}

/// A lock that is held keeps out whoever has opened the file again.
fn keeps_out(name: &str, lock: impl Fn(&OwnedFd) -> Result<usize, Errno>) -> Attempt {
    let (first, second) = (file(name)?, file(name)?);
    lock(&first).unknown_if(&[Errno::INVAL])?;
    match lock(&second) {
        Err(Errno::AGAIN | Errno::ACCESS) => works(),
        Err(errno) => Err(errno.into()),
        Ok(_) => Err(Not::Differs("two hold it".to_owned())),
    }
}

fn record_locks() -> Attempt {
    const SETLK: usize = libc::F_SETLK as usize;
    let held = file("recorded")?;
    record(&held, SETLK)?;
    let pid = super::attempt::child(|| match file("recorded").and_then(|file| record(&file, SETLK)) {
        Err(Errno::AGAIN | Errno::ACCESS) => 0,
        _ => 1,
    })?;
    super::attempt::as_linux(super::attempt::wait(pid)? == 0, "two processes hold it")
}
