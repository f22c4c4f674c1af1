//! The filter in force: a process under it makes every call that is refused, and the kernel answers as the policy says.
//!
//! This program starts itself again for that, as root where the tests run as root: the error is then the filter's own, as
//! the kernel would not have refused.

use super::policy::{Answer, UNKNOWN, calls};
use crate::sys;
use std::{
    os::unix::process::ExitStatusExt,
    process::{Command, Output},
};

/// Tells the program started again what to do.
const TASK: &str = "STACYVM_TEST_SECCOMP_TASK";

/// `uretprobe` and `uprobe`, which a kernel itself puts into a process that its administrator looks into. Newer kernels ask no
/// filter about them, and end whoever makes them otherwise.
const UNFILTERED: &[u32] = if cfg!(target_arch = "x86_64") { &[335, 336] } else { &[] };

/// Runs `test` of this module in a process of its own, told to do `task`.
fn again(test: &str, task: &str) -> Output {
    let name = format!("{}::{test}", module_path!().split_once("::").unwrap().1);
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", &name, "--nocapture"]).env(TASK, task).output().unwrap();
    // A name that does not exist would be no failure.
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("running 1 test"), "{said}");
    output
}

fn succeeds(test: &str) {
    let output = again(test, "run");
    assert!(output.status.success(), "{output:?}");
}

/// Whether this is the program that was started again; the filter is in force then.
fn entered() -> bool {
    if std::env::var_os(TASK).is_none() {
        return false;
    }
    rustix::thread::set_no_new_privs(true).unwrap();
    super::enter().unwrap();
    true
}

fn fails(number: u32, arguments: [u64; 3]) -> Option<i32> {
    sys::call(number.into(), arguments).err().and_then(|error| error.raw_os_error())
}

#[test]
fn every_refused_number_is_refused_by_the_kernel() {
    if !entered() {
        return succeeds("every_refused_number_is_refused_by_the_kernel");
    }
    let calls = calls();
    let mut refused = 0;
    for number in 0..1024 {
        if UNFILTERED.contains(&number) {
            continue;
        }
        let Answer::Refuse(expected) = calls.get(&number).copied().unwrap_or(UNKNOWN) else { continue };
        // Arguments of no use, in case that it is not refused.
        assert_eq!(fails(number, [u64::MAX; 3]), Some(expected), "{number}");
        // The same number in the manner of x32.
        assert_eq!(fails(0x4000_0000 | number, [u64::MAX; 3]), Some(libc::ENOSYS), "x32 {number}");
        refused += 1;
    }
    assert!(refused > 600, "{refused}");
    // Not even those are there for x32 that are allowed otherwise.
    assert_eq!(fails(0x4000_0000 | libc::SYS_getpid as u32, [0; 3]), Some(libc::ENOSYS));
}

#[test]
fn arguments_decide_in_the_kernel() {
    if !entered() {
        return succeeds("arguments_decide_in_the_kernel");
    }
    let number = |number: libc::c_long| number as u32;
    // Bits above those that the kernel looks at change nothing.
    for high in [0, 1 << 32, 0xffff_ffff << 32] {
        for flag in [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWNET, libc::CLONE_NEWPID] {
            let flags = u64::from(flag as u32) | high;
            assert_eq!(fails(number(libc::SYS_clone), [flags, 0, 0]), Some(libc::EPERM), "{flags:x}");
        }
        for family in
            [libc::AF_VSOCK, libc::AF_ALG, libc::AF_PACKET, libc::AF_KEY, libc::AF_BLUETOOTH, libc::AF_XDP]
        {
            let family = u64::from(family as u32) | high;
            let error = fails(number(libc::SYS_socket), [family, 3, 0]);
            assert_eq!(error, Some(libc::EAFNOSUPPORT), "{family:x}");
        }
        for protocol in
            [libc::NETLINK_NETFILTER, libc::NETLINK_AUDIT, libc::NETLINK_GENERIC, libc::NETLINK_XFRM]
        {
            let protocol = u64::from(protocol as u32) | high;
            let error = fails(number(libc::SYS_socket), [libc::AF_NETLINK as u64, 3, protocol]);
            assert_eq!(error, Some(libc::EPROTONOSUPPORT), "{protocol:x}");
        }
        const TIOCSTI: u64 = 0x5412;
        const TIOCLINUX: u64 = 0x541c;
        for request in [TIOCSTI, TIOCLINUX] {
            // Descriptor 0 is no terminal, which the kernel would say.
            let error = fails(number(libc::SYS_ioctl), [0, request | high, 0]);
            assert_eq!(error, Some(libc::EPERM), "{request:x}");
        }
        let personality = libc::ADDR_NO_RANDOMIZE as u64 | high;
        assert_eq!(fails(number(libc::SYS_personality), [personality, 0, 0]), Some(libc::EPERM));
        for mode in [libc::S_IFCHR, libc::S_IFBLK] {
            // No path: the kernel would find that out.
            let error = fails(number(libc::SYS_mknodat), [0, 0, u64::from(mode) | high]);
            assert_eq!(error, Some(libc::EPERM), "{mode:o}");
        }
    }
    assert_eq!(fails(number(libc::SYS_mknodat), [0, 0, u64::from(libc::S_IFIFO)]), Some(libc::EFAULT));
    assert_eq!(fails(number(libc::SYS_chroot), [0, 0, 0]), Some(libc::EFAULT));
    assert_eq!(fails(number(libc::SYS_personality), [0xffff_ffff, 0, 0]), None);
    assert_eq!(fails(number(libc::SYS_getpid), [0; 3]), None);
    assert!(std::thread::spawn(|| 1).join().is_ok());
    assert!(Command::new("true").status().unwrap().success());
}

/// `int 0x80`, by which a 64-bit program makes the calls of a 32-bit one, where other numbers mean other things.
#[cfg(target_arch = "x86_64")]
#[test]
fn the_entry_of_32_bit_programs_ends_the_process() {
    const GETPID: u32 = 20;
    match std::env::var(TASK).as_deref() {
        // That the kernel has this entry at all: else there is nothing to close.
        Ok("without") => assert_eq!(i64::from(sys::call_as_32_bit(GETPID)), i64::from(std::process::id())),
        Ok(_) => {
            assert!(entered());
            sys::call_as_32_bit(GETPID);
        }
        Err(_) => {
            let test = "the_entry_of_32_bit_programs_ends_the_process";
            if !again(test, "without").status.success() {
                println!("not run: this kernel has no calls for 32-bit programs");
                return;
            }
            let ended = again(test, "run");
            assert_eq!(ended.status.signal(), Some(libc::SIGSYS), "{ended:?}");
        }
    }
}
