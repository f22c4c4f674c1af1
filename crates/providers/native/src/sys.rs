//! The system calls that no safe wrapper offers, each behind a function that cannot be misused from safe code.
//!
//! All `unsafe` of this crate is here.

#![expect(unsafe_code, reason = "system calls without a safe wrapper; every block says why it is sound")]

use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::{ffi::CString, io};
use tokio::io::{Interest, unix::AsyncFd};

/// Namespaces of a sandbox. The cgroup namespace is left out on purpose: it is unshared later, when the process is in
/// its own cgroup, so that this cgroup becomes the root that it sees.
const NAMESPACES: u64 =
    (libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC) as u64;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` of the kernel, version 2.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Which side of [`clone_sandbox`] this is.
#[derive(Debug)]
pub(crate) enum Cloned {
    /// The caller goes on; the new process has this number and descriptor.
    Parent { pid: i32, pidfd: OwnedFd },
    /// This is the first process of the new sandbox.
    Child,
}

/// Makes a process in namespaces of its own, directly in `cgroup` (v2) if given. Like `fork`, it returns twice. With
/// `own_users` also in a user namespace, in which it may do everything and is nobody until its ids are mapped; with
/// `own_network` in a network namespace that is new, else in the one that the caller is in.
///
/// # Errors
/// Those of `clone3`; `EDEADLK` if the caller has more than one thread: a lock that another thread held at that moment
/// would stay locked in the child for ever.
pub(crate) fn clone_sandbox(
    cgroup: Option<BorrowedFd<'_>>,
    own_users: bool,
    own_network: bool,
) -> io::Result<Cloned> {
    let users = if own_users { libc::CLONE_NEWUSER as u64 } else { 0 };
    let network = if own_network { libc::CLONE_NEWNET as u64 } else { 0 };
    clone_process(NAMESPACES | users | network, cgroup)
}

fn clone_process(namespaces: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::from_raw_os_error(libc::EDEADLK));
    }
    let mut pidfd: i32 = -1;
    let mut args = CloneArgs {
        flags: namespaces | libc::CLONE_PIDFD as u64,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::try_from(cgroup.as_raw_fd()).unwrap_or(u64::MAX);
    }
    // SAFETY: without CLONE_VM and with a null stack this is fork(2): the child runs on a copy of this memory. There is
    // one thread (checked above, and nothing here starts one), so no lock is held by a thread that the child lacks.
    // `args` and `pidfd` outlive the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        pid => {
            // SAFETY: CLONE_PIDFD succeeded, so the kernel stored a fresh descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent { pid: i32::try_from(pid).unwrap_or(i32::MAX), pidfd })
        }
    }
}

/// Makes a process that runs `prepare` and does nothing more until it is killed or the caller ends, or ends at once if that
/// fails.
///
/// # Errors
/// Those of `clone3`; `EDEADLK` as in [`clone_sandbox`].
pub(crate) fn clone_idle(prepare: impl FnOnce() -> bool) -> io::Result<(i32, OwnedFd)> {
    match clone_process(0, None)? {
        Cloned::Parent { pid, pidfd } => Ok((pid, pidfd)),
        Cloned::Child => {
            let prepared = prepare();
            // SAFETY: touch no memory, and do not return.
            unsafe {
                // Behind it: a change of user takes this away.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                // The parent may have ended before that was said.
                if !prepared || libc::getppid() <= 1 {
                    libc::_exit(1);
                }
                loop {
                    libc::pause();
                }
            }
        }
    }
}

/// Moves this process into a user namespace of its own, which belongs to its effective user.
pub(crate) fn new_user_namespace() -> io::Result<()> {
    // SAFETY: touches no memory.
    match unsafe { libc::unshare(libc::CLONE_NEWUSER) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Ends this process at once, without destructors or exit handlers, which belong to the process it was cloned from.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: takes no memory and does not return.
    unsafe { libc::_exit(code) }
}

/// Replaces this process by the program in `program`.
///
/// Returns only on failure.
pub(crate) fn exec_fd(program: BorrowedFd<'_>, argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays are null-terminated and point at strings that outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    io::Error::last_os_error()
}

/// Closes every descriptor that is not in `keep`.
pub(crate) fn close_all_except(keep: &[i32]) -> io::Result<()> {
    let keep: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    between(&keep, |first, last| close_range(first, last, 0))
}

/// Marks every descriptor that is not in `keep` to be closed by `execve`.
pub(crate) fn close_on_exec_except(keep: &[u32]) -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    between(keep, |first, last| close_range(first, last, CLOSE_RANGE_CLOEXEC))
}

/// Calls `work` with the ranges of numbers in which none of these is.
fn between(keep: &[u32], mut work: impl FnMut(u32, u32) -> io::Result<()>) -> io::Result<()> {
    let mut keep = keep.to_vec();
    keep.sort_unstable();
    keep.dedup();
    let mut first = 0;
    for fd in keep {
        if fd > first {
            work(first, fd - 1)?;
        }
        first = fd + 1;
    }
    work(first, u32::MAX)
}

fn close_range(first: u32, last: u32, flags: u32) -> io::Result<()> {
    // SAFETY: touches no memory. Callers are processes about to exec or to run set-up code that uses `keep` only, so
    // no owner of a closed descriptor runs afterwards.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Puts a copy of `fd` at number `at`, open across `execve`.
pub(crate) fn place_fd(fd: BorrowedFd<'_>, at: u32) -> io::Result<()> {
    // SAFETY: touches no memory; used right before exec, when nothing owns `at` any more.
    match unsafe { libc::dup2(fd.as_raw_fd(), at as i32) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Takes the descriptor with this number, if it is open, as ours.
pub(crate) fn inherited_fd(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: only asks about the number.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and its number is one that the parent of this program set aside for this use, so
    // nothing else in the process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Ignores these signals, also in children until they call [`default_signals`].
pub(crate) fn ignore_signals(signals: &[i32]) {
    for signal in signals {
        // SAFETY: installs no handler, so no code of ours can run in signal context.
        unsafe { libc::signal(*signal, libc::SIG_IGN) };
    }
}

/// Every signal back to its default and none blocked: what a fresh program expects.
pub(crate) fn default_signals() {
    // All zeros: default handler, no flags, empty mask. At least as large as the kernel's structure anywhere.
    let default = [0_u64; 8];
    for signal in 1..=64 {
        // The system call and not the library's function, which keeps some numbers to itself.
        // SAFETY: reads `default`, which outlives the call; installs no handler. SIGKILL and SIGSTOP are refused.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), 0_usize, 8_usize) };
    }
    // SAFETY: an all-zero sigset_t is a valid place for sigemptyset to fill, and outlives both calls.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Ordinary scheduling, whatever the server was given: a sandbox must not come before the host's other work, and a
/// real-time process cannot join a cgroup that limits processor time.
pub(crate) fn plain_scheduling() {
    // SAFETY: a zeroed structure is valid, and means priority 0, the only one that this policy has; it outlives the call.
    unsafe {
        let parameters: libc::sched_param = std::mem::zeroed();
        // Cannot fail for a policy that asks for less; if it does, things stay as they are.
        libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const parameters);
    }
}

/// Sets attributes of a whole mount tree, submounts included. With a user namespace, files in it belong to whom that
/// namespace maps their owners to; for that nobody may see the tree yet.
///
/// # Errors
/// The kernel's; nothing is changed then. `EINVAL` if a filesystem in it cannot be mapped.
pub(crate) fn set_mount_attributes(
    tree: BorrowedFd<'_>,
    mut set: u64,
    map: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;
    #[repr(C)]
    struct MountAttr {
        set: u64,
        clear: u64,
        propagation: u64,
        userns: u64,
    }
    if map.is_some() {
        set |= MOUNT_ATTR_IDMAP;
    }
    let userns = map.map_or(0, |fd| u64::try_from(fd.as_raw_fd()).unwrap_or(u64::MAX));
    let attributes = MountAttr { set, clear: 0, propagation: libc::MS_PRIVATE, userns };
    // SAFETY: the path is a string constant, and `attributes` has the layout of `struct mount_attr` (version 0) whose
    // size is passed along; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Brings up the loopback interface of the current network namespace.
pub(crate) fn loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct InterfaceFlags {
        name: [u8; libc::IFNAMSIZ],
        flags: i16,
        rest: [u8; 22],
    }
    let mut request = InterfaceFlags { name: [0; libc::IFNAMSIZ], flags: 0, rest: [0; 22] };
    request.name[..2].copy_from_slice(b"lo");
    // SAFETY: `request` has the size and layout of `struct ifreq`; this reads the name and writes the flags.
    let read = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request) };
    if read == -1 {
        return Err(io::Error::last_os_error());
    }
    // Only this bit: the kernel sets the others itself.
    request.flags |= libc::IFF_UP as i16;
    // SAFETY: as above; this reads both.
    let written = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request) };
    if written == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Leaves the session keyring of whoever started us behind: possessing it would give a sandbox the keys in it. The new
/// one has no name, because keyrings of one name are one keyring.
///
/// Kernels without keyrings have nothing to leave.
pub(crate) fn new_session_keyring() {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name is documented to mean a new anonymous keyring; no memory is read.
    unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
}

/// Makes the cgroup that we are in the root of what we see of cgroups.
pub(crate) fn new_cgroup_namespace() -> io::Result<()> {
    // SAFETY: touches no memory, and no descriptors or mounts are shared with another thread.
    match unsafe { libc::unshare(libc::CLONE_NEWCGROUP) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Has a socket told of everything that went wrong with what it sent, also of what may pass by itself.
pub(crate) fn report_errors(socket: BorrowedFd<'_>, v6: bool) -> io::Result<()> {
    let (level, option) =
        if v6 { (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) } else { (libc::IPPROTO_IP, libc::IP_RECVERR) };
    let on: libc::c_int = 1;
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: reads `length` bytes of `on`, which outlives the call.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), length) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Gives this thread a network namespace of its own. For threads that are about to end: others stay where they are.
pub(crate) fn unshare_network() -> io::Result<()> {
    // SAFETY: touches no memory; what is unshared is this thread's alone.
    match unsafe { libc::unshare(libc::CLONE_NEWNET) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The network namespace that this thread is in.
pub(crate) fn own_network() -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags, open};
    Ok(open("/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Moves this thread into a network namespace.
pub(crate) fn enter_network(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: touches no memory; only this thread moves.
    match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Puts this process under a filter of system calls, on top of those that it is under already.
pub(crate) fn install_filter(program: &[libc::sock_filter]) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel reads `length` instructions, which is how many there are, and writes none.
    match unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Whether this kernel's filters can give this answer to a call.
pub(crate) fn filter_can_answer(answer: u32) -> bool {
    // SAFETY: reads `answer`, which outlives the call.
    unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const answer) == 0 }
}

/// Any system call, for tests of the filter. No argument is the address of anything.
#[cfg(test)]
pub(crate) fn call(number: i64, arguments: [u64; 3]) -> io::Result<i64> {
    let [a, b, c] = arguments;
    // SAFETY: the tests call this with numbers that the filter refuses, with addresses that are no memory of this
    // process, or for what touches none.
    match unsafe { libc::syscall(number, a, b, c, u64::MAX, u64::MAX, u64::MAX) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

/// A system call without arguments, by the entry for 32-bit programs; for tests of the filter.
#[cfg(all(test, target_arch = "x86_64"))]
pub(crate) fn call_as_32_bit(number: u32) -> i32 {
    let mut result = number;
    // SAFETY: the kernel keeps all registers but the one with the result and, in old ones, those that are named here; the
    // tests call this with a number that touches no memory.
    unsafe {
        std::arch::asm!("int 0x80", inout("eax") result, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    result as i32
}

/// Watches a process descriptor in the current runtime.
pub(crate) fn watch(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the `AsyncFd` takes the descriptor as its owner, so it stays open and the same until it is dropped.
    unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }.map_err(Into::into)
}

/// Wait status of an ended process that somebody else was the parent of, where the kernel keeps it (6.15 and later).
pub(crate) fn exit_status(pidfd: BorrowedFd<'_>) -> Option<i32> {
    #[repr(C)]
    #[derive(Default)]
    struct PidfdInfo {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        exit_code: i32,
    }
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    // _IOWR(0xFF, 11, struct pidfd_info)
    const PIDFD_GET_INFO: u64 = (3 << 30) | ((size_of::<PidfdInfo>() as u64) << 16) | (0xFF << 8) | 11;
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the request number carries the size of `info`, so the kernel writes no further; it is the first version
    // of that structure, which every later kernel accepts.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO as _, &raw mut info) };
    (result == 0 && info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code)
}
