//! Where and when processes run, and what they are told about it.

use super::{
    Entry,
    attempt::{Attempt, Judge, as_linux, at, at_mut, call, works},
};
use rustix::io::Errno;

pub(super) const TABLE: &[Entry] = &[
    ("sched_setaffinity", affinity),
    ("sched_setscheduler SCHED_BATCH", || scheduler(libc::SCHED_BATCH, 0)),
    ("sched_setscheduler SCHED_FIFO", || scheduler(libc::SCHED_FIFO, 1)),
    ("setpriority", priority),
    ("ioprio_set", io_priority),
    ("mbind", mbind),
    ("set_mempolicy", set_mempolicy),
    ("getrusage ru_maxrss", peak_memory),
];

fn affinity() -> Attempt {
    let mut mask = [0_u64; 128];
    let size = size_of_val(&mask);
    let length = call(libc::SYS_sched_getaffinity, [0, size, at_mut(&mut mask)])?;
    let first = mask.iter().position(|word| *word != 0).unwrap_or(0);
    let mut one = [0_u64; 128];
    one[first] = mask[first] & mask[first].wrapping_neg();
    call(libc::SYS_sched_setaffinity, [0, length, at(&one)])?;
    mask.fill(0);
    call(libc::SYS_sched_getaffinity, [0, size, at_mut(&mut mask)])?;
    as_linux(mask == one, "is not kept")
}

fn scheduler(policy: i32, priority: i32) -> Attempt {
    let policy = policy as usize;
    call(libc::SYS_sched_setscheduler, [0, policy, at(&priority)]).unknown_if(&[Errno::INVAL])?;
    as_linux(call(libc::SYS_sched_getscheduler, [0])? == policy, "is not kept")
}

fn priority() -> Attempt {
    call(libc::SYS_setpriority, [libc::PRIO_PROCESS as usize, 0, 5])?;
    // The kernel gives 20 less the nice value.
    let now = call(libc::SYS_getpriority, [libc::PRIO_PROCESS as usize, 0])?;
    as_linux(now == 15, "is not kept")
}

fn io_priority() -> Attempt {
    const PROCESS: usize = 1;
    const LOWEST: usize = 2 << 13 | 7;
    call(libc::SYS_ioprio_set, [PROCESS, 0, LOWEST])?;
    as_linux(call(libc::SYS_ioprio_get, [PROCESS, 0])? == LOWEST, "is not kept")
}

fn mbind() -> Attempt {
    let page = super::memory::map(4096)?;
    call(libc::SYS_mbind, [page, 4096, 0, 0, 0, 0])?;
    works()
}

fn set_mempolicy() -> Attempt {
    call(libc::SYS_set_mempolicy, [0, 0, 0])?;
    works()
}

fn peak_memory() -> Attempt {
    const MAXRSS: usize = 4;
    // More than what a kernel may still hold in counters of each processor.
    let mut touched = vec![1_u8; 8 << 20];
    touched.fill(std::hint::black_box(2));
    std::hint::black_box(&touched);
    // Two times of two words, then the numbers.
    let mut usage = [0_u64; 18];
    call(libc::SYS_getrusage, [libc::RUSAGE_SELF as usize, at_mut(&mut usage)])?;
    as_linux(std::hint::black_box(usage)[MAXRSS] > 0, "is 0")
}
