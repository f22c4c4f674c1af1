//! Identities, capabilities and the filters that programs put on themselves.

use super::{
    Entry,
    attempt::{Attempt, Judge, Not, as_linux, at, at_mut, call, works},
    processes::prctl,
};
use rustix::io::Errno;

pub(super) const TABLE: &[Entry] = &[
    ("setuid", setuid),
    ("capset", capset),
    ("PR_SET_NO_NEW_PRIVS", no_new_privileges),
    ("PR_CAP_AMBIENT", ambient),
    ("seccomp SECCOMP_GET_ACTION_AVAIL", action_available),
    ("seccomp filter", || filter(0).map(|_| String::new())),
    ("seccomp user notification", || filter(NEW_LISTENER).map(|_| String::new())),
    ("landlock_create_ruleset", landlock),
    ("add_key", add_key),
    ("keyctl", keyctl),
];

const SET_FILTER: usize = 1;
const ACTION_AVAILABLE: usize = 2;
const NEW_LISTENER: usize = 1 << 3;

fn setuid() -> Attempt {
    let other = if rustix::process::getuid().is_root() { 65534 } else { 0 };
    // A user namespace need not have a user of this number.
    call(libc::SYS_setuid, [other]).unknown_if(&[Errno::INVAL])?;
    as_linux(rustix::process::geteuid().as_raw() as usize == other, "changes nothing")
}

fn capset() -> Attempt {
    const VERSION: u32 = 0x2008_0522;
    let (header, mut sets) = ([VERSION, 0], [0_u32; 6]);
    call(libc::SYS_capget, [at(&header), at_mut(&mut sets)])?;
    // Giving all up is what everybody may.
    let none = [0_u32; 6];
    call(libc::SYS_capset, [at(&header), at(&none)])?;
    call(libc::SYS_capget, [at(&header), at_mut(&mut sets)])?;
    as_linux(sets == none, "gives nothing up")
}

fn no_new_privileges() -> Attempt {
    prctl(libc::PR_SET_NO_NEW_PRIVS, [1, 0, 0, 0])?;
    as_linux(prctl(libc::PR_GET_NO_NEW_PRIVS, [0; 4])? == 1, "is not kept")
}

fn ambient() -> Attempt {
    let is_set = libc::PR_CAP_AMBIENT_IS_SET as usize;
    prctl(libc::PR_CAP_AMBIENT, [is_set, 0, 0, 0]).unknown_if(&[Errno::INVAL])?;
    works()
}

fn action_available() -> Attempt {
    let notify = libc::SECCOMP_RET_USER_NOTIF;
    call(libc::SYS_seccomp, [ACTION_AVAILABLE, 0, at(&notify)]).unknown_if(&[Errno::INVAL])?;
    works()
}

/// A filter that allows everything.
fn filter(flags: usize) -> Result<usize, Not> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, [1, 0, 0, 0])?;
    let program = [libc::sock_filter { code: 6, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW }];
    let program = libc::sock_fprog { len: 1, filter: std::ptr::from_ref(&program[0]).cast_mut() };
    call(libc::SYS_seccomp, [SET_FILTER, flags, at(&program)]).unknown_if(&[Errno::INVAL])
}

fn landlock() -> Attempt {
    const VERSION: usize = 1;
    Ok(format!("ABI {}", call(libc::SYS_landlock_create_ruleset, [0, 0, VERSION])?))
}

/// `KEY_SPEC_PROCESS_KEYRING`.
const PROCESS_KEYRING: usize = -2_isize as usize;

fn add_key() -> Attempt {
    let (kind, name, content) = (c"user", c"stacyvm-probe", *b"content");
    call(libc::SYS_add_key, [at(kind), at(name), at(&content), content.len(), PROCESS_KEYRING])?;
    works()
}

fn keyctl() -> Attempt {
    const GET_KEYRING_ID: usize = 0;
    call(libc::SYS_keyctl, [GET_KEYRING_ID, PROCESS_KEYRING, 1])?;
    works()
}
