//! Devices, and what `/proc` shows: much software reads it rather than asking the kernel.

use super::{
    Entry,
    attempt::{Attempt, Judge, NONE, Not, as_linux, at, at_mut, call, child, raw, works},
};
use crate::files::slurp;
use rustix::{
    fd::OwnedFd,
    fs::{Mode, OFlags},
    io::Errno,
};

pub(super) const TABLE: &[Entry] = &[
    ("/dev/kvm", || open("/dev/kvm").map(drop_it)),
    ("/dev/fuse", || open("/dev/fuse").map(drop_it)),
    ("/dev/net/tun", || open("/dev/net/tun").map(drop_it)),
    ("/dev/shm", shared_memory),
    ("pseudo-terminal", terminal),
    ("/proc/self/task/children", children),
    ("/proc/self/smaps", || shows("/proc/self/smaps", "\nPss:")),
    ("/proc/self/io", || shows("/proc/self/io", "rchar:")),
    ("/proc/self/pagemap", pagemap),
    ("/proc/self/mountinfo", || shows("/proc/self/mountinfo", " / / ")),
    ("/proc/self/cgroup", || shows("/proc/self/cgroup", ":/")),
    ("/proc/self/status VmRSS", || shows("/proc/self/status", "\nVmRSS:")),
    ("/proc/self/oom_score_adj", oom_score),
    ("/proc/pressure", || shows("/proc/pressure/cpu", "some ")),
    ("/proc/vmstat", || shows("/proc/vmstat", "pgfault ")),
    ("/proc/sys/kernel/random/uuid", || shows("/proc/sys/kernel/random/uuid", "-")),
    ("/sys/fs/cgroup", cgroup),
];

fn drop_it(_: OwnedFd) -> String {
    String::new()
}

fn open(path: &str) -> Result<OwnedFd, Not> {
    rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unknown_if(&[Errno::NOENT])
}

/// A file that holds this text.
fn shows(path: &str, text: &str) -> Attempt {
    let content = match slurp(path.as_bytes()) {
        Ok(content) => content,
        Err(crate::Failure::System(_, errno)) => Err(errno).unknown_if(&[Errno::NOENT])?,
        Err(crate::Failure::Usage(what)) => return Err(Not::Failed(what.to_owned())),
    };
    as_linux(String::from_utf8_lossy(&content).contains(text), format!("does not hold {:?}", text.trim()))
}

fn shared_memory() -> Attempt {
    let path = format!("/dev/shm/stacyvm-probe-{}", std::process::id());
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600)).unknown_if(&[Errno::NOENT])?;
    rustix::fs::unlink(&path)?;
    works()
}

fn terminal() -> Attempt {
    let terminal = open("/dev/ptmx")?;
    let (unlock, mut number) = (0_i32, 0_u32);
    call(libc::SYS_ioctl, [raw(&terminal), libc::TIOCSPTLCK as usize, at(&unlock)])?;
    call(libc::SYS_ioctl, [raw(&terminal), libc::TIOCGPTN as usize, at_mut(&mut number)])?;
    open(&format!("/dev/pts/{}", std::hint::black_box(number)))?;
    works()
}

fn children() -> Attempt {
    let me = std::process::id();
    let pid = child(|| {
        std::thread::sleep(std::time::Duration::from_secs(2));
        0
    })?;
    let seen = shows(&format!("/proc/{me}/task/{me}/children"), &pid.to_string());
    let _ = call(libc::SYS_kill, [pid, libc::SIGKILL as usize]);
    let _ = call(libc::SYS_wait4, [NONE, 0, 0, 0]);
    seen
}

fn pagemap() -> Attempt {
    let map = rustix::fs::open("/proc/self/pagemap", OFlags::RDONLY, Mode::empty());
    let (map, value) = (map.unknown_if(&[Errno::NOENT])?, 1_u64);
    let mut entry = [0; 8];
    let offset = (at(&value) / 4096 * 8) as u64;
    rustix::io::pread(&map, &mut entry, offset)?;
    as_linux(u64::from_ne_bytes(entry) >> 63 == 1, "a page in use is not present")
}

fn oom_score() -> Attempt {
    let file = open("/proc/self/oom_score_adj")?;
    rustix::io::write(&file, b"1000")?;
    shows("/proc/self/oom_score_adj", "1000")
}

fn cgroup() -> Attempt {
    let entries = std::fs::read_dir("/sys/fs/cgroup");
    let entries = entries.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO));
    let count = entries.unknown_if(&[Errno::NOENT])?.count();
    if count == 0 { Err(Not::Absent("is empty".to_owned())) } else { works() }
}
