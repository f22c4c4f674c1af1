//! Privileges: what the agent keeps for itself, and how the last of them are taken from a process it starts.
#![expect(unsafe_code, reason = "descriptors handed over by number; closing all others")]

use rustix::{
    io::Errno,
    process::{DumpableBehavior, set_dumpable_behavior},
    thread::{self, CapabilitySet, CapabilitySets},
};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use tokio::io::{Interest, unix::AsyncFd};

/// All that the agent needs: change users, signal their processes, work on their files.
const KEPT: CapabilitySet = CapabilitySet::SETUID
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER);

/// What a process that runs as root of a user namespace has besides, where the runtime gives it: to keep bits that chmod would
/// clear and to set capabilities of files, for package managers.
const FOR_ROOT: CapabilitySet = CapabilitySet::FSETID.union(CapabilitySet::SETFCAP);

/// Makes this program's memory and descriptors unreadable for processes of the same user; inherited by `fork`.
///
/// # Errors
/// The kernel's.
pub(crate) fn hide() -> Result<(), Errno> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// Gives up every capability beyond [`KEPT`], for ever, and returns those of [`KEPT`] that were never there. With
/// `inherit`, a process that is to be root may be given them: nothing becomes inheritable once the bounding set is empty.
///
/// # Errors
/// The kernel's.
pub(crate) fn keep_only_needed(inherit: bool) -> Result<CapabilitySet, Errno> {
    let held = thread::capabilities(None)?;
    let kept = held.permitted & KEPT;
    let inheritable = if inherit { held.permitted & KEPT.union(FOR_ROOT) } else { CapabilitySet::empty() };
    thread::set_capabilities(None, CapabilitySets { inheritable, ..held })?;
    empty_bounding_set()?;
    clear_ambient_set()?;
    let permitted = kept.union(inheritable);
    thread::set_capabilities(None, CapabilitySets { effective: kept, permitted, inheritable })?;
    Ok(KEPT - kept)
}

/// Lets the programs that this thread executes as root have what the agent itself has and what is [`FOR_ROOT`], and no more:
/// with an empty bounding set, what is inheritable is all that they get.
///
/// # Errors
/// The kernel's.
pub(crate) fn keep_for_root() -> Result<(), Errno> {
    let kept = thread::capabilities(None)?.permitted & KEPT.union(FOR_ROOT);
    thread::set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: kept })
}

/// Takes every capability from this thread and from whatever it executes.
///
/// # Errors
/// The kernel's.
pub(crate) fn drop_all() -> Result<(), Errno> {
    clear_ambient_set()?;
    let none = CapabilitySet::empty();
    thread::set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
}

fn clear_ambient_set() -> Result<(), Errno> {
    match thread::clear_ambient_capability_set() {
        // A kernel without ambient capabilities (gVisor) has none to clear.
        Err(Errno::INVAL) => Ok(()),
        result => result,
    }
}

/// Empties the bounding set as far as this thread may. Without `CAP_SETPCAP` nothing is changed, which `no_new_privs`
/// makes harmless: no program can be executed that would gain from what is left.
///
/// # Errors
/// The kernel's, except for the missing permission.
pub(crate) fn empty_bounding_set() -> Result<(), Errno> {
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        match thread::capability_is_in_bounding_set(capability) {
            Ok(false) => continue,
            Ok(true) => {}
            // Behind the last one that this kernel knows.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno),
        }
        match thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            Err(Errno::PERM) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Takes over an inherited descriptor, at a number beyond the three standard ones and closed on `exec`.
///
/// # Errors
/// The descriptor is not open, or the limit of open files is reached.
pub(crate) fn inherit(number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: the number comes from the command line, and its use is to hand the descriptor over to us: nothing else in
    // this program refers to it. That it is open is checked by the calls below.
    let inherited = unsafe { OwnedFd::from_raw_fd(number) };
    let moved = rustix::io::fcntl_dupfd_cloexec(&inherited, 3);
    if moved.is_err() || number < 3 {
        // An unopened number must not be closed, and a standard one must stay taken.
        std::mem::forget(inherited);
    }
    let moved = moved?;
    if number < 3 {
        let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty())?;
        let mut target = std::mem::ManuallyDrop::new(
            // SAFETY: 0, 1 or 2, just seen to be open; `ManuallyDrop` keeps it so.
            unsafe { OwnedFd::from_raw_fd(number) },
        );
        rustix::io::dup2(&null, &mut target)?;
    }
    Ok(moved)
}

/// Watches a non-blocking descriptor with the current runtime.
///
/// # Errors
/// The runtime's.
pub(crate) fn watch(descriptor: OwnedFd, interest: Interest) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and names the same file until it is dropped, which is when the runtime forgets it.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, interest) }?)
}

/// Closes every descriptor from 3 on except `kept`.
///
/// # Safety
/// Nothing in this process may use one of the closed descriptors afterwards, not even to drop it: for a fresh child
/// process that ends with `_exit`.
pub(crate) unsafe fn close_all_but(kept: &[RawFd]) {
    let mut kept: Vec<RawFd> = kept.to_vec();
    kept.sort_unstable();
    let mut first = 3;
    for next in kept.into_iter().filter(|fd| *fd >= 3).chain([RawFd::MAX]) {
        if next > first {
            // Failure (a kernel before 5.9) leaves descriptors open that all have close-on-exec.
            // SAFETY: numbers only; the caller vouches for what becomes of the descriptors.
            unsafe { libc::syscall(libc::SYS_close_range, first, next - 1, 0) };
        }
        first = next.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_not_open_is_refused() {
        assert_eq!(inherit(1_000_000).unwrap_err(), Errno::BADF);
    }
}
