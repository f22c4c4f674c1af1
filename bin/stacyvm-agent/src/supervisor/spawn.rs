//! A child that borrows its parent's memory until it executes a program, while the parent waits: what `vfork` does, without
//! a copy of the page tables and the faults that follow from it.
//!
//! A borrower that has changed to the sandbox's user must not be open to that user's debugger, through which the parent's
//! memory could be written. The kernel sees to that when a process changes its user, except on hosts with
//! `fs.suid_dumpable = 1`; there, and where this cannot be read, the child gets a copy.
#![expect(unsafe_code, reason = "clone and a stack for it")]

use crate::fail::errno_of;
use rustix::{
    io::Errno,
    mm::{MapFlags, ProtFlags, mmap_anonymous, munmap},
    process::Pid,
};
use std::{ffi::c_void, io::ErrorKind, mem::MaybeUninit, path::Path, ptr};

/// Bytes of stack for the child, which only makes system calls and short lists.
const STACK: usize = 64 << 10;

#[repr(align(16))]
struct Stack([MaybeUninit<u8>; STACK]);

/// Whether children may borrow memory on this host.
pub(crate) fn may_borrow() -> bool {
    match std::fs::read_to_string("/proc/sys/fs/suid_dumpable") {
        Ok(value) => matches!(value.trim(), "0" | "2"),
        // A kernel without the setting (gVisor) does as the others do by default; one that is hidden is not known.
        Err(error) => error.kind() == ErrorKind::NotFound && Path::new("/proc/sys/kernel/hostname").exists(),
    }
}

/// Starts a child that runs `child` and ends with it, unless `child` executes a program. Returns when either has happened,
/// with what `child` returned if it did.
///
/// # Errors
/// The kernel's; there is no child then.
///
/// # Safety
/// This process must have one thread. `child` must not unwind, and with `borrow` all that it writes to is the parent's.
pub(super) unsafe fn spawn<R, F>(borrow: bool, child: F) -> Result<(Pid, Option<R>), Errno>
where
    R: Copy,
    F: FnOnce() -> R,
{
    struct Call<R, F> {
        child: Option<F>,
        /// Where the result goes: memory that both have in any case.
        result: *mut Option<R>,
    }
    extern "C" fn enter<R: Copy, F: FnOnce() -> R>(call: *mut c_void) -> libc::c_int {
        // SAFETY: the parent's `call` below, which waits there as long as this runs; or this process's copy of it.
        let call = unsafe { &mut *call.cast::<Call<R, F>>() };
        if let Some(child) = call.child.take() {
            let result = child();
            // SAFETY: the parent's page, which it reads when this process has ended.
            unsafe { call.result.write(Some(result)) };
        }
        0
    }
    let size = size_of::<Option<R>>().max(1);
    // SAFETY: a fresh mapping.
    let page = unsafe {
        mmap_anonymous(ptr::null_mut(), size, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED)?
    };
    let result = page.cast::<Option<R>>();
    // SAFETY: large enough, and aligned to a page.
    unsafe { result.write(None) };
    let mut stack = Stack([MaybeUninit::uninit(); STACK]);
    let mut call = Call { child: Some(child), result };
    let borrowing = if borrow { libc::CLONE_VM } else { 0 };
    // SAFETY: the stack is aligned and ends where it says; `call` outlives the child's use of it, since with `CLONE_VFORK`
    // this returns when the child has ended or executed a program.
    let (pid, value) = unsafe {
        let top = stack.0.as_mut_ptr().add(STACK).cast::<c_void>();
        let flags = borrowing | libc::CLONE_VFORK | libc::SIGCHLD;
        let pid = libc::clone(enter::<R, F>, top, flags, (&raw mut call).cast());
        let pid = if pid < 0 { Err(errno_of(&std::io::Error::last_os_error())) } else { Ok(pid) };
        (pid, result.read_volatile())
    };
    // SAFETY: mapped above, and not referred to any more.
    let _ = unsafe { munmap(page, size) };
    Ok((Pid::from_raw(pid?).ok_or(Errno::CHILD)?, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{WaitOptions, waitpid};

    // Single-threaded is what the supervisor is and a test is not; these children touch nothing that another thread may
    // hold.
    fn ended(pid: Pid) -> Option<i32> {
        waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap().1.exit_status()
    }

    #[test]
    fn what_the_child_returns_arrives() {
        for borrow in [true, false] {
            // SAFETY: see above.
            let (pid, value) = unsafe { spawn(borrow, || 17u8) }.unwrap();
            assert_eq!((value, ended(pid)), (Some(17), Some(0)));
        }
    }

    #[test]
    fn a_child_that_executes_a_program_returns_nothing() {
        for borrow in [true, false] {
            let argv = [c"/bin/sh".as_ptr(), c"-c".as_ptr(), c"exit 3".as_ptr(), ptr::null()];
            // SAFETY: see above; the strings are constants.
            let spawned = unsafe { spawn(borrow, || libc::execv(argv[0], argv.as_ptr())) };
            let (pid, value) = spawned.unwrap();
            assert_eq!((value, ended(pid)), (None, Some(3)));
        }
    }
}
