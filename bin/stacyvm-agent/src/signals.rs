//! Signals: blocked in all of our processes and read from a descriptor, back to the system's defaults in those we start.
#![expect(unsafe_code, reason = "signal masks and dispositions are libc calls")]

use crate::fail::errno_of;
use rustix::{io::Errno, process::Pid};
use std::{
    mem::MaybeUninit,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// Highest signal number of Linux.
pub(crate) const LAST: i32 = 64;

fn last_error() -> Errno {
    errno_of(&std::io::Error::last_os_error())
}

fn set_of(signals: &[i32]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `sigemptyset` initialises the set, and `sigaddset` changes it; both get a valid pointer.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        set.assume_init()
    }
}

/// Blocks every signal in this thread and those made by it, and lets `SIGCHLD` have its default disposition, without which
/// exit statuses are thrown away. What somebody is to know is read from a [`descriptor`].
pub(crate) fn block_all() -> Result<(), Errno> {
    let mut all = MaybeUninit::uninit();
    // SAFETY: `sigfillset` initialises the set that `sigprocmask` reads; no old mask is asked for. `SIG_DFL` is a valid
    // disposition.
    let status = unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        libc::sigfillset(all.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, all.as_ptr(), std::ptr::null_mut())
    };
    if status == 0 { Ok(()) } else { Err(last_error()) }
}

/// Lets the kernel reap the children of this process.
pub(crate) fn discard_children() {
    // SAFETY: `SIG_IGN` is a valid disposition.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// The state in which a program expects to be started: nothing blocked, nothing ignored.
pub(crate) fn reset() -> Result<(), Errno> {
    let none = set_of(&[]);
    // The kernel's own structure (handler, flags, restorer, mask), not libc's, which keeps a few signals for itself.
    let default = [libc::SIG_DFL; 4];
    // SAFETY: the structure is as large as the kernel expects, and all zero; numbers that cannot be changed are refused.
    // The mask is initialised.
    let status = unsafe {
        for signal in 1..=LAST {
            let (mask_size, no_old) = (size_of::<u64>(), std::ptr::null_mut::<libc::c_void>());
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), no_old, mask_size);
        }
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut())
    };
    if status == 0 { Ok(()) } else { Err(last_error()) }
}

/// A non-blocking descriptor that becomes readable when one of `signals`, which must be blocked, is pending.
pub(crate) fn descriptor(signals: &[i32]) -> Result<OwnedFd, Errno> {
    let set = set_of(signals);
    // SAFETY: the set is initialised; the result is checked before it becomes an owned descriptor.
    unsafe {
        match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(last_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// A signal that came.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Came {
    /// Its number.
    pub(crate) number: i32,
    /// The kernel says that it comes from outside of this process's namespace. Who is inside has a number there, and what a
    /// process queues with words of its own carries another code.
    pub(crate) from_outside: bool,
}

/// The next pending signal of a [`descriptor`].
pub(crate) fn next(descriptor: &OwnedFd) -> Option<Came> {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: the buffer has the size given, and any bytes make a valid `signalfd_siginfo`.
    let (read, info) = unsafe {
        let read = libc::read(descriptor.as_raw_fd(), info.as_mut_ptr().cast(), size);
        (read, info.assume_init())
    };
    let number = i32::try_from(info.ssi_signo).ok()?;
    let from_outside = info.ssi_code == libc::SI_USER && info.ssi_pid == 0;
    (usize::try_from(read) == Ok(size)).then_some(Came { number, from_outside })
}

/// Sends `signal`, any number, to one process.
pub(crate) fn send(pid: Pid, signal: i32) -> Result<(), Errno> {
    // SAFETY: no memory is involved.
    if unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) } == 0 { Ok(()) } else { Err(last_error()) }
}
