//! The calls that a sandbox's processes may make, those that are refused, and why.
//!
//! Three answers. What is allowed works as the kernel says. What is refused is `EPERM`, the error that a program gets which
//! lacks the privilege, and that it is prepared for. Everything else, calls of kernels to come included, is `ENOSYS`, as on
//! a kernel that does not have it: libraries then use what there was before.
//!
//! Nothing is allowed that Docker's default profile refuses to a container, neither that of Engine 20.10 nor a current one:
//! [`super::docker`] holds this policy against both. Some of what current ones allow again is closed here, as nothing
//! ordinary lacks it: `process_vm_readv` and `process_vm_writev` (debuggers have `ptrace` and `/proc/PID/mem`),
//! `name_to_handle_at`, protection keys, calls since Linux 6.5, for which libraries have older ones. Tighter than both:
//! kinds of sockets, devices, terminals, `io_uring`, and the list in [`super::docker`].
//!
//! Root of a sandbox may hold capabilities for package managers: `chroot`, the changes of users, groups and owners, and
//! `mknod` of what is no device are left to the kernel's own checks. What makes namespaces or mounts is not.

use super::numbers;
use libc::{EAFNOSUPPORT, ENOSYS, EPERM, EPROTONOSUPPORT, c_long};
use std::collections::BTreeMap;

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Allow,
    /// It fails with this error.
    Refuse(i32),
    /// It depends on the arguments: the first row that fits decides. The last row fits always.
    Depends(&'static [Row]),
}

/// Conditions on arguments, all of which must hold, and the answer then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) tests: &'static [(u8, Test)],
    /// Not [`Answer::Depends`] again.
    pub(super) answer: Answer,
}

/// A condition on the low 32 bits of an argument, which are all that the kernel looks at in those that are tested here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Test {
    Is(u32),
    HasNoneOf(u32),
}

/// The answer to whatever is not named in [`calls`].
pub(super) const UNKNOWN: Answer = Answer::Refuse(ENOSYS);

const fn row(tests: &'static [(u8, Test)], answer: Answer) -> Row {
    Row { tests, answer }
}

const REFUSED: Answer = Answer::Refuse(EPERM);

/// New namespaces give a process capabilities over them, and with those most of the kernel's surface.
const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

const CLONE: Answer =
    Answer::Depends(&[row(&[(0, Test::HasNoneOf(NAMESPACES))], Answer::Allow), row(&[], REFUSED)]);

const fn domain(domain: i32) -> (u8, Test) {
    (0, Test::Is(domain as u32))
}

const fn protocol(protocol: i32) -> (u8, Test) {
    (2, Test::Is(protocol as u32))
}

const NETLINK: (u8, Test) = domain(libc::AF_NETLINK);

/// The rest (`AF_VSOCK` to the hypervisor, `AF_ALG`, `AF_PACKET`, buses and radios) is host hardware or old code.
const SOCKET: Answer = Answer::Depends(&[
    row(&[domain(libc::AF_UNIX)], Answer::Allow),
    row(&[domain(libc::AF_INET)], Answer::Allow),
    row(&[domain(libc::AF_INET6)], Answer::Allow),
    // Interfaces and routes, as `getaddrinfo` reads them; sockets, as `ss` does; hot-plugging, without which libraries of
    // devices do not start. Not netfilter, audit, crypto and the like.
    row(&[NETLINK, protocol(libc::NETLINK_ROUTE)], Answer::Allow),
    row(&[NETLINK, protocol(libc::NETLINK_SOCK_DIAG)], Answer::Allow),
    row(&[NETLINK, protocol(libc::NETLINK_KOBJECT_UEVENT)], Answer::Allow),
    row(&[NETLINK], Answer::Refuse(EPROTONOSUPPORT)),
    row(&[], Answer::Refuse(EAFNOSUPPORT)),
]);

/// Linux, with 32-bit names and old version numbers at most, and the question what it is now: no other system's habits.
const PERSONALITY: Answer = Answer::Depends(&[
    row(&[(0, Test::Is(0))], Answer::Allow),
    row(&[(0, Test::Is(0x8))], Answer::Allow),
    row(&[(0, Test::Is(0x2_0000))], Answer::Allow),
    row(&[(0, Test::Is(0x2_0008))], Answer::Allow),
    row(&[(0, Test::Is(0xffff_ffff))], Answer::Allow),
    row(&[], REFUSED),
]);

/// Typing into a terminal that one only reads from.
const IOCTL: Answer = Answer::Depends(&[
    row(&[(1, Test::Is(libc::TIOCSTI as u32))], REFUSED),
    row(&[(1, Test::Is(libc::TIOCLINUX as u32))], REFUSED),
    row(&[], Answer::Allow),
]);

/// Files, pipes and sockets, no devices: both kinds of these have this bit of the type, and the others lack it.
const DEVICE: u32 = 0o20000;
const MKNODAT: Answer =
    Answer::Depends(&[row(&[(2, Test::HasNoneOf(DEVICE))], Answer::Allow), row(&[], REFUSED)]);
/// The older call, of one architecture only.
#[cfg(target_arch = "x86_64")]
const MKNOD: Answer =
    Answer::Depends(&[row(&[(1, Test::HasNoneOf(DEVICE))], Answer::Allow), row(&[], REFUSED)]);

/// Calls whose arguments decide.
const DEPENDING: &[(c_long, Answer)] = &[
    (libc::SYS_clone, CLONE),
    (libc::SYS_socket, SOCKET),
    (libc::SYS_socketpair, SOCKET),
    (libc::SYS_personality, PERSONALITY),
    (libc::SYS_ioctl, IOCTL),
    (libc::SYS_mknodat, MKNODAT),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mknod, MKNOD),
];

/// What becomes of every call that is known, by number.
///
/// `clone3` is not: its flags are in memory, where a filter cannot see them. Libraries fall back to `clone`.
pub(super) fn calls() -> BTreeMap<u32, Answer> {
    let number = |number: c_long| u32::try_from(number).unwrap_or(u32::MAX);
    let all =
        |lists: &[&[c_long]], answer| lists.concat().into_iter().map(move |call| (number(call), answer));
    let depending = DEPENDING.iter().map(|(call, answer)| (number(*call), *answer));
    all(numbers::REFUSED, REFUSED).chain(all(numbers::ALLOWED, Answer::Allow)).chain(depending).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_call_is_in_two_lists() {
        let refused: BTreeSet<_> = numbers::REFUSED.concat().into_iter().collect();
        let allowed: BTreeSet<_> = numbers::ALLOWED.concat().into_iter().collect();
        assert_eq!(refused.intersection(&allowed).next(), None);
        assert_eq!(refused.len(), numbers::REFUSED.concat().len(), "a call is refused twice");
        assert_eq!(allowed.len(), numbers::ALLOWED.concat().len(), "a call is allowed twice");
        for (number, _) in DEPENDING {
            assert!(!refused.contains(number) && !allowed.contains(number), "{number} is decided twice");
        }
    }

    #[test]
    fn every_question_has_a_last_answer_and_no_further_question() {
        for (number, answer) in calls() {
            let Answer::Depends(rows) = answer else { continue };
            assert!(rows.last().unwrap().tests.is_empty(), "{number}");
            assert!(rows.iter().all(|row| !matches!(row.answer, Answer::Depends(_))), "{number}");
        }
    }

    #[test]
    fn what_reaches_the_rest_of_the_kernel_is_closed() {
        let calls = calls();
        for number in [
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_bpf,
            libc::SYS_keyctl,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_io_uring_setup,
            libc::SYS_init_module,
            libc::SYS_kexec_load,
            libc::SYS_open_by_handle_at,
            libc::SYS_clone3,
        ] {
            let answer = calls.get(&(number as u32)).copied().unwrap_or(UNKNOWN);
            assert!(matches!(answer, Answer::Refuse(_)), "{number}: {answer:?}");
        }
    }
}
