//! What changes the whole machine or sees all of it: every sandbox should refuse it. Nothing here takes effect, whoever asks.

use super::{
    Entry,
    attempt::{Attempt, HERE, Judge, NONE, as_linux, at, at_mut, call, works},
};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    thread::CapabilitySet,
};

pub(super) const TABLE: &[Entry] = &[
    ("bpf", bpf),
    ("perf_event_open", perf_event_open),
    ("fanotify_init", fanotify_init),
    ("userfaultfd", userfaultfd),
    ("open_by_handle_at", open_by_handle_at),
    ("kexec_load", kexec_load),
    ("init_module", init_module),
    ("delete_module", delete_module),
    ("reboot", reboot),
    ("clock_settime", clock_settime),
    ("settimeofday", || settimeofday().permitted_if(&[Errno::INVAL])),
    ("sethostname", sethostname),
    ("swapon", swapon),
    ("syslog", syslog),
    ("mknod of a device", mknod),
    ("sysctl write", sysctl),
];

fn bpf() -> Attempt {
    const MAP_CREATE: usize = 0;
    const ARRAY: u32 = 2;
    // Type, key size, value size, entries, flags.
    let attributes = [ARRAY, 4, 4, 1, 0];
    call(libc::SYS_bpf, [MAP_CREATE, at(&attributes), size_of_val(&attributes)])?;
    works()
}

fn perf_event_open() -> Attempt {
    const SOFTWARE: u64 = 1;
    const SIZE: u64 = 64;
    const DISABLED_USER_ONLY: u64 = 1 | 1 << 5 | 1 << 6;
    let attributes = [SIZE << 32 | SOFTWARE, 0, 0, 0, 0, DISABLED_USER_ONLY, 0, 0];
    let opened = call(libc::SYS_perf_event_open, [at(&attributes), 0, NONE, NONE, 0]);
    opened.unknown_if(&[Errno::NOENT])?;
    works()
}

fn fanotify_init() -> Attempt {
    // Without this flag only root may have one.
    const REPORT_FID: usize = 0x200;
    call(libc::SYS_fanotify_init, [REPORT_FID, 0])?;
    works()
}

fn userfaultfd() -> Attempt {
    const USER_MODE_ONLY: usize = 1;
    call(libc::SYS_userfaultfd, [USER_MODE_ONLY])?;
    works()
}

/// Length, type, and room for the handle itself.
fn handle() -> (Result<usize, Errno>, [u32; 34]) {
    let (mut handle, mut mount) = ([0; 34], 0_i32);
    handle[0] = 128;
    let named =
        call(libc::SYS_name_to_handle_at, [HERE, at(c"."), at_mut(&mut handle), at_mut(&mut mount), 0]);
    (named, handle)
}

/// A handle of this directory, for [`super::files`].
pub(super) fn name_to_handle_at() -> Attempt {
    handle().0?;
    works()
}

fn open_by_handle_at() -> Attempt {
    let mut handle = match handle() {
        (Ok(_), handle) => handle,
        // One of nothing: to be permitted and to be stale are told apart.
        (Err(_), _) => std::array::from_fn(|index| if index < 2 { [8, 1][index] } else { 0 }),
    };
    let opened = call(libc::SYS_open_by_handle_at, [HERE, at_mut(&mut handle), libc::O_RDONLY as usize]);
    opened.permitted_if(&[Errno::STALE])
}

fn kexec_load() -> Attempt {
    // More segments than there may be, with flags that there are not.
    call(libc::SYS_kexec_load, [0, 1 << 20, 0, 0x00ff_0000]).permitted_if(&[Errno::INVAL])
}

fn init_module() -> Attempt {
    // Nothing is no module.
    call(libc::SYS_init_module, [0, 0, at(c"")]).permitted_if(&[Errno::NOEXEC, Errno::FAULT, Errno::INVAL])
}

fn delete_module() -> Attempt {
    let name = at(c"stacyvm_no_such_module");
    call(libc::SYS_delete_module, [name, libc::O_NONBLOCK as usize]).permitted_if(&[Errno::NOENT])
}

fn reboot() -> Attempt {
    // Neither of the two magic numbers, without which nothing happens.
    call(libc::SYS_reboot, [0, 0, 0, 0]).permitted_if(&[Errno::INVAL])
}

fn clock_settime() -> Attempt {
    let realtime = libc::CLOCK_REALTIME as usize;
    if settimeofday() == Err(Errno::INVAL) {
        // It would be permitted: a time that does not exist.
        return call(libc::SYS_clock_settime, [realtime, at(&[0_i64, -1])]).permitted_if(&[Errno::INVAL]);
    }
    let mut now = [0_i64; 2];
    call(libc::SYS_clock_gettime, [realtime, at_mut(&mut now)])?;
    call(libc::SYS_clock_settime, [realtime, at(&now)])?;
    works()
}

/// No time, and a time zone that does not exist, which is found out behind the check of permissions.
fn settimeofday() -> Result<usize, Errno> {
    call(libc::SYS_settimeofday, [0, at(&[i32::MAX, 0])])
}

fn sethostname() -> Attempt {
    let name = rustix::system::uname().nodename().to_bytes().to_vec();
    call(libc::SYS_sethostname, [at(name.as_slice()), name.len()])?;
    works()
}

fn swapon() -> Attempt {
    call(libc::SYS_swapon, [at(c"no-such-file"), 0]).permitted_if(&[Errno::NOENT])
}

fn syslog() -> Attempt {
    const READ_ALL: usize = 3;
    let mut log = [0_u8; 256];
    call(libc::SYS_syslog, [READ_ALL, at_mut(&mut log), log.len()])?;
    works()
}

fn mknod() -> Attempt {
    let mode = libc::S_IFCHR as usize | 0o600;
    call(libc::SYS_mknodat, [HERE, at(c"device"), mode, libc::makedev(1, 3) as usize])?;
    let held = rustix::thread::capabilities(None)?.effective.contains(CapabilitySet::MKNOD);
    as_linux(held, "permitted without CAP_MKNOD")
}

fn sysctl() -> Attempt {
    // Opened only, nothing is written.
    rustix::fs::open("/proc/sys/kernel/domainname", OFlags::WRONLY, Mode::empty())
        .unknown_if(&[Errno::NOENT])?;
    works()
}
