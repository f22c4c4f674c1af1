//! `surface PORT NAME TOKEN HOST`: what stands open between this process and the rest of the machine.
//!
//! The host has a server on PORT of its loopback interface, another at the abstract name NAME, a process with TOKEN
//! backwards among its words, and is called HOST. Lines as of `syscalls`, with the outcome `is` for what is no question of
//! open or closed. Nothing is changed: files are opened at most.

use super::{
    Entry, TABLES,
    attempt::{self, Attempt, Judge, Not, at, at_mut, call, child, leave, raw, wait, works},
    in_directory, is_gvisor,
};
use crate::{Args, Result, files::slurp, identity, streams::say};
use rustix::{
    fd::OwnedFd,
    fs::{FileType, Mode, OFlags},
    io::Errno,
    thread::CapabilitySet,
};
use std::{
    fs, io,
    net::{SocketAddr, TcpStream},
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::FileTypeExt,
            net::{SocketAddr as UnixAddr, UnixStream},
        },
    },
    path::Path,
    time::Duration,
};

/// Of the system calls and features, those by which a process gets at more than its own.
const SELECTED: [&str; 44] = [
    "setuid",
    "chroot",
    "mount",
    "fsopen",
    "open_tree OPEN_TREE_CLONE",
    "pivot_root",
    "mknod of a device",
    "unshare user",
    "unshare mount",
    "unshare net",
    "user namespace with a map",
    "mount in a user namespace",
    "setns",
    "ptrace of a child",
    "process_vm_readv",
    "pidfd_getfd",
    "kcmp",
    "name_to_handle_at",
    "open_by_handle_at",
    "add_key",
    "keyctl",
    "bpf",
    "io_uring_setup",
    "userfaultfd",
    "perf_event_open",
    "fanotify_init",
    "mbind",
    "personality ADDR_NO_RANDOMIZE",
    "kexec_load",
    "init_module",
    "delete_module",
    "reboot",
    "swapon",
    "clock_settime",
    "sethostname",
    "syslog",
    "socket SOCK_RAW",
    "socket ICMP datagrams",
    "socket AF_PACKET",
    "socket AF_VSOCK",
    "socket AF_ALG",
    "netlink netfilter",
    "/dev/kvm",
    "sysctl write",
];

/// What is asked here only.
const MORE: &[Entry] = &[
    ("modify_ldt", modify_ldt),
    ("calls of 32-bit programs", calls_of_32_bit),
    ("typing into a terminal", type_into_terminal),
    ("setuid bits of files", setuid_bits),
    ("writing /proc/sys/kernel/core_pattern", || opens("/proc/sys/kernel/core_pattern", OFlags::WRONLY)),
    ("writing /proc/sysrq-trigger", || opens("/proc/sysrq-trigger", OFlags::WRONLY)),
    ("writing to /sys", || opens("/sys/kernel/mm/transparent_hugepage/enabled", OFlags::WRONLY)),
    ("writing to cgroups", write_to_cgroups),
    ("/proc/kcore", || opens("/proc/kcore", OFlags::RDONLY)),
    ("/proc/kmsg", || opens("/proc/kmsg", OFlags::RDONLY)),
    ("/proc/keys", || opens("/proc/keys", OFlags::RDONLY)),
    ("/proc/key-users", || opens("/proc/key-users", OFlags::RDONLY)),
    ("/proc/timer_list", || holds("/proc/timer_list")),
    ("/proc/sched_debug", || holds("/proc/sched_debug")),
    ("/proc/interrupts", || holds("/proc/interrupts")),
    ("/proc/kallsyms with addresses", kernel_addresses),
    ("/proc/sys/kernel/core_pattern", || holds("/proc/sys/kernel/core_pattern")),
    ("/proc/acpi", || lists("/proc/acpi")),
    ("/proc/scsi", || lists("/proc/scsi")),
    ("/sys/firmware", || lists("/sys/firmware")),
    ("/sys/devices/virtual/powercap", || lists("/sys/devices/virtual/powercap")),
    ("/sys/class/net", || lists("/sys/class/net")),
    ("/sys/block", || lists("/sys/block")),
];

pub(crate) fn surface(args: &Args) -> Result {
    in_directory(Path::new("/tmp"), || report(args))
}

fn report(args: &Args) -> Result {
    let tell = |name: &str, verdict: &Attempt| {
        let (outcome, detail) = attempt::words(verdict);
        say(format!("{name}\t{outcome}\t{detail}\n").as_bytes())
    };
    let mut count = 0;
    for (name, value) in facts()? {
        say(format!("{name}\tis\t{value}\n").as_bytes())?;
        count += 1;
    }
    let address: SocketAddr = ([127, 0, 0, 1], u16::try_from(args.number(0)?).unwrap_or_default()).into();
    let (name, token, host) = (args.bytes(1)?, args.text(2)?, args.bytes(3)?);
    let beyond = [
        ("processes of the host", attempt::run(|| sees_process(token))),
        ("the host's name", attempt::run(|| found(rustix::system::uname().nodename().to_bytes() == host))),
        (
            "the host's loopback interface",
            attempt::run(|| reached(TcpStream::connect_timeout(&address, PATIENCE))),
        ),
        (
            "abstract sockets of the host",
            attempt::run(|| {
                reached(UnixAddr::from_abstract_name(name).and_then(|name| UnixStream::connect_addr(&name)))
            }),
        ),
    ];
    for (name, verdict) in &beyond {
        tell(name, verdict)?;
        count += 1;
    }
    let of = |name: &&str| TABLES.into_iter().flatten().find(|(known, _)| known == name);
    for (name, attempt) in SELECTED.iter().filter_map(of).chain(MORE) {
        tell(name, &attempt::run(*attempt))?;
        count += 1;
    }
    say(format!("#end\t{count}\n").as_bytes())?;
    Ok(0)
}

/// Who we are and what we were given.
fn facts() -> Result<Vec<(&'static str, String)>> {
    let status = String::from_utf8_lossy(&slurp(b"/proc/self/status")?).into_owned();
    let field = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.map(str::trim).unwrap_or_default().to_owned()
    };
    let set = |key: &str| capabilities(u64::from_str_radix(&field(key), 16).unwrap_or_default());
    let seccomp = match field("Seccomp").as_str() {
        "0" => "none",
        "2" => "a filter",
        "" => "not told",
        _ => "strict",
    };
    let held = rustix::thread::no_new_privs().unwrap_or(false);
    Ok(vec![
        ("user", user()),
        ("capabilities", set("CapEff")),
        ("capabilities that could be had", set("CapBnd")),
        ("no_new_privs", if held { "yes" } else { "no" }.to_owned()),
        ("seccomp", seccomp.to_owned()),
        ("network interfaces", interfaces()),
        ("devices beside the six of every sandbox", devices()),
    ])
}

/// The number of the user, and whether it is the one that the host has for it.
fn user() -> String {
    let uid = rustix::process::getuid().as_raw();
    let map = slurp(b"/proc/self/uid_map").unwrap_or_default();
    let map = String::from_utf8_lossy(&map).into_owned();
    let same = map.lines().any(|line| {
        let numbers: Vec<u32> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        matches!(numbers[..], [inside, outside, count] if inside == outside && (inside..=inside.saturating_add(count)).contains(&uid))
    });
    match (is_gvisor(), same) {
        (true, _) => format!("{uid}, of a kernel of its own"),
        (false, true) => format!("{uid}, the same on the host"),
        (false, false) => format!("{uid}, another on the host"),
    }
}

fn capabilities(set: u64) -> String {
    // One that this kernel does not have may be in the set all the same.
    let known = CapabilitySet::all().bits();
    match (set & known).count_ones() {
        0 => "none".to_owned(),
        count if count >= 38 => "all".to_owned(),
        count => count.to_string(),
    }
}

fn interfaces() -> String {
    let lines = slurp(b"/proc/net/dev").unwrap_or_default();
    let lines = String::from_utf8_lossy(&lines).into_owned();
    let mut names: Vec<_> =
        lines.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect();
    names.sort();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// Devices in `/dev` that hold more than nothing, zeros, random numbers and our own terminal.
fn devices() -> String {
    const ORDINARY: [&str; 7] = ["null", "zero", "full", "random", "urandom", "tty", "ptmx"];
    let is_device = |entry: &fs::DirEntry| {
        entry.file_type().is_ok_and(|kind| kind.is_char_device() || kind.is_block_device())
    };
    let entries = fs::read_dir("/dev").into_iter().flatten().flatten().filter(is_device);
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<_> = names.filter(|name| !ORDINARY.contains(&name.as_str())).collect();
    names.sort();
    match names.len() {
        0 => "none".to_owned(),
        count if count > 6 => format!("{count}"),
        _ => names.join(", "),
    }
}

/// Something that should not be there.
fn found(is: bool) -> Attempt {
    if is { works() } else { Err(Not::Absent("not seen".to_owned())) }
}

/// How long a connection may take.
const PATIENCE: Duration = Duration::from_millis(700);

fn reached<T>(outcome: io::Result<T>) -> Attempt {
    match outcome {
        Ok(_) => works(),
        Err(error) => match Errno::from_io_error(&error) {
            Some(errno) => {
                Err(errno).unknown_if(&[Errno::CONNREFUSED, Errno::NETUNREACH, Errno::HOSTUNREACH])
            }
            None => Err(Not::Absent("no answer".to_owned())),
        },
    }
}

fn sees_process(backwards: &str) -> Attempt {
    let token: String = backwards.chars().rev().collect();
    let pids = identity::visible_processes().map_err(|_| Not::Absent("there is no /proc".to_owned()))?;
    found(pids.into_iter().any(|pid| {
        let words = slurp(format!("/proc/{pid}/cmdline").as_bytes()).unwrap_or_default();
        String::from_utf8_lossy(&words).contains(&token)
    }))
}

fn opens(path: &str, flags: OFlags) -> Attempt {
    let file = rustix::fs::open(path, flags | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty());
    let file = file.unknown_if(&[Errno::NOENT])?;
    // An empty file in the place of another is no way to it.
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) == FileType::CharacterDevice {
        return Err(Not::Absent("hidden".to_owned()));
    }
    works()
}

/// A file with something in it.
fn holds(path: &str) -> Attempt {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let count = rustix::io::read(file.unknown_if(&[Errno::NOENT])?, &mut [0; 64])?;
    found(count > 0)
}

/// A directory with something in it.
fn lists(path: &str) -> Attempt {
    let entries = fs::read_dir(path).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO));
    found(entries.unknown_if(&[Errno::NOENT])?.next().is_some())
}

fn kernel_addresses() -> Attempt {
    let file = rustix::fs::open("/proc/kallsyms", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let mut start = [0; 4096];
    let count = rustix::io::read(file.unknown_if(&[Errno::NOENT])?, &mut start)?;
    let text = String::from_utf8_lossy(start.get(..count).unwrap_or_default()).into_owned();
    let any = text.lines().any(|line| line.bytes().take(8).any(|digit| (b'1'..=b'f').contains(&digit)));
    if any { works() } else { Err(Not::Refused("addresses are hidden".to_owned())) }
}

/// By which a process leaves its limits, or has the kernel start a program (`release_agent`).
fn write_to_cgroups() -> Attempt {
    let entries = fs::read_dir("/sys/fs/cgroup").map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO));
    let roots = entries.unknown_if(&[Errno::NOENT])?.flatten().map(|entry| entry.path());
    let mut last = Err(Not::Absent("is empty".to_owned()));
    for path in roots.map(|path| path.join("cgroup.procs")).chain(["/sys/fs/cgroup/cgroup.procs".into()]) {
        if path.exists() {
            last = opens(&path.to_string_lossy(), OFlags::WRONLY);
            if last.is_ok() {
                return works();
            }
        }
    }
    last
}

/// Whether a file with such a bit would change who we are.
fn setuid_bits() -> Attempt {
    let mounted = rustix::fs::statvfs("/")?;
    if rustix::thread::no_new_privs()? {
        return Err(Not::Refused("no_new_privs".to_owned()));
    }
    if mounted.f_flag.contains(rustix::fs::StatVfsMountFlags::NOSUID) {
        return Err(Not::Refused("nosuid".to_owned()));
    }
    works()
}

#[cfg(target_arch = "x86_64")]
fn modify_ldt() -> Attempt {
    const READ: usize = 0;
    let mut table = [0_u8; 16];
    call(libc::SYS_modify_ldt, [READ, at_mut(&mut table), table.len()])?;
    works()
}

#[cfg(target_arch = "x86_64")]
fn calls_of_32_bit() -> Attempt {
    // `getpid`, by the entry for such programs.
    let pid = child(|| {
        let mut result = 20_u32;
        #[expect(unsafe_code, reason = "an instruction")]
        // SAFETY: a call without arguments that touches no memory; registers that it may change are named.
        unsafe {
            std::arch::asm!("int 0x80", inout("eax") result, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
        }
        i32::from(result != std::process::id())
    })?;
    match wait(pid)? {
        0 => works(),
        status if libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS => {
            Err(Not::Refused("SIGSYS".to_owned()))
        }
        _ => Err(Not::Absent("this kernel has none".to_owned())),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn modify_ldt() -> Attempt {
    Err(Not::Absent("this processor has none".to_owned()))
}

#[cfg(not(target_arch = "x86_64"))]
fn calls_of_32_bit() -> Attempt {
    Err(Not::Absent("not asked on this processor".to_owned()))
}

/// `TIOCSTI`, into a terminal that we made ourselves: the first of a session, as whoever is in a shell's terminal has it.
fn type_into_terminal() -> Attempt {
    fn typed(kept: &mut Vec<OwnedFd>) -> std::result::Result<(), Errno> {
        let main = rustix::fs::open("/dev/ptmx", OFlags::RDWR | OFlags::NOCTTY, Mode::empty())?;
        let (unlock, mut number) = (0_i32, 0_u32);
        call(libc::SYS_ioctl, [raw(&main), libc::TIOCSPTLCK as usize, at(&unlock)])?;
        call(libc::SYS_ioctl, [raw(&main), libc::TIOCGPTN as usize, at_mut(&mut number)])?;
        kept.push(main);
        call(libc::SYS_setsid, [0])?;
        let path = format!("/dev/pts/{}", std::hint::black_box(number));
        let terminal = rustix::fs::open(path, OFlags::RDWR, Mode::empty())?;
        let typed = call(libc::SYS_ioctl, [raw(&terminal), libc::TIOCSTI as usize, at(b"x")]);
        kept.push(terminal);
        typed.map(drop)
    }
    let pid = child(|| {
        // Closed before this process ends, the terminal would hang up, which ends it.
        let mut kept = Vec::new();
        leave(typed(&mut kept).map_or_else(Errno::raw_os_error, |()| 0))
    })?;
    let status = wait(pid)?;
    match libc::WEXITSTATUS(status) {
        _ if libc::WIFSIGNALED(status) => Err(Not::Failed(format!("signal {}", libc::WTERMSIG(status)))),
        0 => works(),
        // What a kernel says where the setting `dev.tty.legacy_tiocsti` is off.
        libc::EIO => Err(Not::Refused("EIO".to_owned())),
        errno => Err(Errno::from_raw_os_error(errno)).unknown_if(&[Errno::NOENT, Errno::INVAL, Errno::NOTTY]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_selected_exists() {
        for name in SELECTED {
            assert!(TABLES.into_iter().flatten().any(|(known, _)| *known == name), "{name}");
        }
    }
}
