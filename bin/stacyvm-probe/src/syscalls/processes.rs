//! Making processes, handles to them, looking into them, and waiting for events.

use super::{
    Entry,
    attempt::{Attempt, Judge, NONE, Not, as_linux, at, at_mut, call, child, leave, raw, wait, works},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::{FromRawFd, OwnedFd},
    io::Errno,
};

pub(super) const TABLE: &[Entry] = &[
    ("clone3", clone3),
    ("pidfd_open", pidfd_open),
    ("pidfd_getfd", pidfd_getfd),
    ("pidfd_send_signal", pidfd_send_signal),
    ("ptrace of a child", ptrace),
    ("process_vm_readv", process_vm_readv),
    ("kcmp", kcmp),
    ("PR_SET_CHILD_SUBREAPER", subreaper),
    ("PR_SET_PDEATHSIG", parent_death_signal),
    ("PR_SET_NAME", name),
    ("personality ADDR_NO_RANDOMIZE", personality),
    ("signalfd4", signalfd),
    ("timerfd", timerfd),
    ("eventfd2", eventfd),
    ("epoll_pwait2", epoll_pwait2),
    ("futex_waitv", futex_waitv),
    ("rseq", rseq),
    ("membarrier", membarrier),
    ("io_uring_setup", io_uring),
    ("io_setup", aio),
    ("close_range", close_range),
    ("getrandom", getrandom),
];

/// A descriptor that a call made.
#[expect(unsafe_code, reason = "the number comes from the kernel")]
pub(super) fn own(fd: usize) -> OwnedFd {
    // SAFETY: the caller passes what a system call has just returned as a new descriptor.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

/// Whether it becomes readable, even on a busy host, before the attempt is taken to hang.
pub(super) fn readable(fd: &OwnedFd) -> bool {
    let patience = Timespec { tv_sec: 3, tv_nsec: 0 };
    poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&patience)) == Ok(1)
}

fn me() -> usize {
    std::process::id() as usize
}

pub(super) fn prctl(option: i32, args: [usize; 4]) -> Result<usize, Errno> {
    call(libc::SYS_prctl, [option as usize, args[0], args[1], args[2], args[3]])
}

fn clone3() -> Attempt {
    // flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls
    let arguments = [0_u64, 0, 0, 0, libc::SIGCHLD as u64, 0, 0, 0];
    match call(libc::SYS_clone3, [at(&arguments), size_of_val(&arguments)])? {
        0 => leave(7),
        pid => as_linux(wait(pid)? == 7 << 8, "another exit status"),
    }
}

fn pidfd_open() -> Attempt {
    let pid = child(|| 0)?;
    let fd = own(call(libc::SYS_pidfd_open, [pid, 0])?);
    as_linux(readable(&fd), "does not tell the end of the process")
}

fn pidfd_getfd() -> Attempt {
    let (_reader, writer) = rustix::pipe::pipe()?;
    let process = own(call(libc::SYS_pidfd_open, [me(), 0])?);
    let copy = own(call(libc::SYS_pidfd_getfd, [raw(&process), raw(&writer), 0])?);
    let inode = |fd| rustix::fs::fstat(fd).map(|stat| stat.st_ino);
    as_linux(inode(&copy)? == inode(&writer)?, "another file")
}

fn pidfd_send_signal() -> Attempt {
    let process = own(call(libc::SYS_pidfd_open, [me(), 0])?);
    call(libc::SYS_pidfd_send_signal, [raw(&process), 0, 0, 0])?;
    works()
}

fn ptrace() -> Attempt {
    let pid = child(|| {
        if call(libc::SYS_ptrace, [libc::PTRACE_TRACEME as usize, 0, 0, 0]).is_err() {
            return 1;
        }
        i32::from(call(libc::SYS_kill, [me(), libc::SIGSTOP as usize]).is_err())
    })?;
    let status = wait(pid)?;
    if !libc::WIFSTOPPED(status) {
        return Err(Not::Refused("the child cannot be traced".to_owned()));
    }
    call(libc::SYS_ptrace, [libc::PTRACE_CONT as usize, pid, 0, 0])?;
    as_linux(wait(pid)? == 0, "another exit status")
}

fn process_vm_readv() -> Attempt {
    let (source, mut target) = (*b"memory", [0_u8; 6]);
    let (from, to) = ([at(&source), 6], [at_mut(&mut target), 6]);
    call(libc::SYS_process_vm_readv, [me(), at(&to), 1, at(&from), 1, 0])?;
    as_linux(std::hint::black_box(target) == source, "other bytes")
}

fn kcmp() -> Attempt {
    const FILE: usize = 0;
    let (reader, writer) = rustix::pipe::pipe()?;
    let same = call(libc::SYS_kcmp, [me(), me(), FILE, raw(&reader), raw(&reader)])?;
    let other = call(libc::SYS_kcmp, [me(), me(), FILE, raw(&reader), raw(&writer)])?;
    as_linux(same == 0 && other != 0, "cannot tell files apart")
}

fn subreaper() -> Attempt {
    prctl(libc::PR_SET_CHILD_SUBREAPER, [1, 0, 0, 0])?;
    let (reader, writer) = rustix::pipe::pipe()?;
    let middle = child(|| {
        let parent = me();
        let orphan = child(|| {
            for _ in 0..1500 {
                let now = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
                if now as usize != parent {
                    return i32::from(rustix::io::write(&writer, &now.to_ne_bytes()).is_err());
                }
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            1
        });
        i32::from(orphan.is_err())
    })?;
    wait(middle)?;
    drop(writer);
    let mut parent = [0; 4];
    rustix::io::read(&reader, &mut parent)?;
    let parent = i32::from_ne_bytes(parent) as usize;
    as_linux(parent == me(), format!("an orphan goes to process {parent}"))
}

fn parent_death_signal() -> Attempt {
    let mut signal = 0_i32;
    prctl(libc::PR_SET_PDEATHSIG, [libc::SIGUSR1 as usize, 0, 0, 0])?;
    prctl(libc::PR_GET_PDEATHSIG, [at_mut(&mut signal), 0, 0, 0])?;
    as_linux(std::hint::black_box(signal) == libc::SIGUSR1, "is not kept")
}

fn name() -> Attempt {
    prctl(libc::PR_SET_NAME, [at(c"probed"), 0, 0, 0])?;
    let seen = std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
    as_linux(seen.trim() == "probed", "does not show in /proc/self/comm")
}

fn personality() -> Attempt {
    const NO_RANDOM: usize = 0x004_0000;
    call(libc::SYS_personality, [NO_RANDOM]).unknown_if(&[Errno::INVAL])?;
    as_linux(call(libc::SYS_personality, [0xffff_ffff])? & NO_RANDOM != 0, "is not kept")
}

fn signalfd() -> Attempt {
    let set = 1_u64 << (libc::SIGUSR1 - 1);
    call(libc::SYS_rt_sigprocmask, [libc::SIG_BLOCK as usize, at(&set), 0, 8])?;
    let fd = own(call(libc::SYS_signalfd4, [NONE, at(&set), 8, 0])?);
    call(libc::SYS_kill, [me(), libc::SIGUSR1 as usize])?;
    let mut record = [0; 128];
    if !readable(&fd) {
        return Err(Not::Differs("is not readable when a signal is pending".to_owned()));
    }
    rustix::io::read(&fd, &mut record)?;
    as_linux(i32::from(record[0]) == libc::SIGUSR1, "another signal")
}

fn timerfd() -> Attempt {
    let fd = own(call(libc::SYS_timerfd_create, [libc::CLOCK_MONOTONIC as usize, 0])?);
    // Interval, then first expiry, each in seconds and nanoseconds.
    let times = [0_i64, 0, 0, 5_000_000];
    call(libc::SYS_timerfd_settime, [raw(&fd), 0, at(&times), 0])?;
    as_linux(readable(&fd), "does not expire")
}

fn eventfd() -> Attempt {
    let fd = own(call(libc::SYS_eventfd2, [0, 0])?);
    rustix::io::write(&fd, &3_u64.to_ne_bytes())?;
    let mut value = [0; 8];
    rustix::io::read(&fd, &mut value)?;
    as_linux(u64::from_ne_bytes(value) == 3, "another value")
}

fn epoll_pwait2() -> Attempt {
    let epoll = own(call(libc::SYS_epoll_create1, [0])?);
    let (mut event, timeout) = ([0_u64; 2], [0_i64, 1000]);
    let args = [raw(&epoll), at_mut(&mut event), 1, at(&timeout), 0, 8];
    as_linux(call(libc::SYS_epoll_pwait2, args)? == 0, "an event of nothing")
}

fn futex_waitv() -> Attempt {
    const PRIVATE_32: u64 = 2 | 128;
    let word = 1_u32;
    // Value, address, flags; the value is not what the word holds, so nothing waits.
    let waiter = [0_u64, at(&word) as u64, PRIVATE_32];
    match call(libc::SYS_futex_waitv, [at(&waiter), 1, 0, 0, 0]) {
        Err(Errno::AGAIN) => works(),
        Err(errno) => Err(errno.into()),
        Ok(_) => Err(Not::Differs("waits for a value that is not there".to_owned())),
    }
}

fn rseq() -> Attempt {
    #[repr(align(32))]
    struct Area([u32; 8]);
    // The kernel writes to it for as long as the thread lives.
    let area = Box::leak(Box::new(Area([0; 8])));
    match call(libc::SYS_rseq, [at_mut(&mut area.0), 32, 0, 0x5305_3053]) {
        Ok(_) => works(),
        Err(Errno::INVAL | Errno::BUSY) => Ok("in use by the C library".to_owned()),
        Err(errno) => Err(errno.into()),
    }
}

fn membarrier() -> Attempt {
    const EXPEDITED: usize = 1 << 3;
    const REGISTER: usize = 1 << 4;
    let known = call(libc::SYS_membarrier, [0, 0, 0])?;
    if known & EXPEDITED == 0 {
        return Err(Not::Absent("no private expedited barrier".to_owned()));
    }
    call(libc::SYS_membarrier, [REGISTER, 0, 0])?;
    call(libc::SYS_membarrier, [EXPEDITED, 0, 0])?;
    works()
}

fn io_uring() -> Attempt {
    let mut parameters = [0_u8; 120];
    call(libc::SYS_io_uring_setup, [4, at_mut(&mut parameters)])?;
    works()
}

fn aio() -> Attempt {
    let mut context = 0_usize;
    call(libc::SYS_io_setup, [8, at_mut(&mut context)])?;
    works()
}

fn close_range() -> Attempt {
    let (reader, _writer) = rustix::pipe::pipe()?;
    let high = 900;
    let copy = call(libc::SYS_fcntl, [raw(&reader), libc::F_DUPFD as usize, high])?;
    call(libc::SYS_close_range, [copy, copy, 0])?;
    let open = call(libc::SYS_fcntl, [copy, libc::F_GETFD as usize]).is_ok();
    as_linux(!open, "closes nothing")
}

fn getrandom() -> Attempt {
    let mut bytes = [0_u8; 32];
    let count = call(libc::SYS_getrandom, [at_mut(&mut bytes), 32, 0])?;
    as_linux(count == 32 && std::hint::black_box(bytes) != [0; 32], "too few bytes")
}
