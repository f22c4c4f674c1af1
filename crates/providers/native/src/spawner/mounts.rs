//! What a sandbox sees as its filesystem. Runs in the first process, in a mount namespace of its own, so that all of it
//! is gone when the last process is.

use super::{
    disk,
    lower::open_layers,
    protocol::{Report, Setup},
    upper::{self, open_dir},
};
use crate::{
    failure::{Doing, Failure},
    ids::IdRange,
    image::layers::Layers,
    sys,
};
use rustix::{
    fd::{AsFd, BorrowedFd},
    fs::{AtFlags, CWD, FileType, Gid, Mode, Uid},
    io::Errno,
    mount::{
        MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_bind,
        mount_change, mount_remount, move_mount, open_tree, unmount,
    },
};
use std::ffi::{CStr, CString};

/// `MOUNT_ATTR_RDONLY`, `_NOSUID`, `_NODEV`
pub(super) const READ_ONLY_TREE: u64 = 1 | 2 | 4;
/// `MOUNT_ATTR_RDONLY`, `_NOSUID`, `_NOEXEC`
const READ_ONLY_DEVICE: u64 = 1 | 2 | 8;
const PLAIN: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
/// Parts of `/proc` through which root could change the host. The agent has no right to most of it; this holds for
/// the rest, and for whoever gets to be root later.
const READ_ONLY: &[&CStr] = &[c"/proc/sys", c"/proc/sysrq-trigger", c"/proc/irq", c"/proc/bus", c"/proc/fs"];
/// Parts of `/proc` that tell about the host. Not every kernel has all of them.
const MASKED: &[&CStr] = &[
    c"/proc/acpi",
    c"/proc/asound",
    c"/proc/buddyinfo",
    c"/proc/cmdline",
    c"/proc/config.gz",
    c"/proc/interrupts",
    c"/proc/iomem",
    c"/proc/ioports",
    c"/proc/kallsyms",
    c"/proc/kcore",
    c"/proc/keys",
    c"/proc/key-users",
    c"/proc/kmsg",
    c"/proc/latency_stats",
    c"/proc/modules",
    c"/proc/pagetypeinfo",
    c"/proc/pressure",
    c"/proc/sched_debug",
    c"/proc/scsi",
    c"/proc/slabinfo",
    c"/proc/timer_list",
    c"/proc/timer_stats",
    c"/proc/vmallocinfo",
    c"/proc/zoneinfo",
];
/// Devices that hold nothing of the host: name, major, minor.
const DEVICES: &[(&str, u32, u32)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
/// Terminals at once in one sandbox; a host has some 3,000 for all.
const TERMINALS: u32 = 128;
/// Group of terminals, everywhere.
const TTY_GROUP: u32 = 5;
const DEVICE_LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Where the files of the sandbox ended up.
#[derive(Debug, PartialEq, Eq)]
enum Upper {
    OnDisk,
    InMemory,
}

/// Builds the root and moves into it. `checked` is the image's directory as the server saw it, `map` the sandbox's user
/// namespace. What is not as it should be is told to `report`.
pub(super) fn enter_root(
    setup: &Setup,
    checked: BorrowedFd<'_>,
    map: Option<BorrowedFd<'_>>,
    report: &mut dyn FnMut(Report),
) -> Result<(), Failure> {
    // First, or every mount from here on would appear on the host too.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .doing(|| "separate the mounts".to_owned())?;
    rustix::process::chdir(&setup.directory).doing(|| "enter the sandbox's directory".to_owned())?;
    let image = open_layers(setup, checked, map, report)?;
    if mount_root(setup, &image)? == Upper::InMemory {
        report(Report::UpperInMemory);
    }
    for bind in &setup.binds {
        if !bind_read_only(&bind.path, map)? {
            report(Report::NotMapped(bind.path.clone()));
        }
    }
    mount_dev(setup)?;
    mount("proc", "root/proc", "proc", PLAIN, None).doing(|| "mount /proc".to_owned())?;

    rustix::process::chdir("root").doing(|| "enter the root".to_owned())?;
    rustix::process::pivot_root(".", ".").doing(|| "change the root".to_owned())?;
    // The old root is now stacked on the new one; it takes every mount of the host with it.
    unmount(".", UnmountFlags::DETACH).doing(|| "leave the host's root".to_owned())?;
    rustix::process::chdir("/").doing(|| "enter the new root".to_owned())?;

    for path in READ_ONLY {
        make_read_only(path)?;
    }
    mask_all()
}

/// Mounts the overlay at `root`, relative to the sandbox's directory, whose `upper` and `work` are on disk if the
/// filesystem there can carry that, else in memory.
fn mount_root(setup: &Setup, image: &Layers) -> Result<Upper, Failure> {
    let fill = |path: &str| -> Result<(), Failure> {
        let upper = open_dir(CWD, path).doing(|| "open the upper layer".to_owned())?;
        upper::fill(upper.as_fd(), image, setup, base(setup))
    };
    if disk::mount_layer(setup)? {
        fill("work/upper")?;
        overlay(image, "work/upper", "work/work").doing(|| "mount the root".to_owned())?;
        return Ok(Upper::OnDisk);
    }
    fill("upper")?;
    match overlay(image, "upper", "work") {
        Ok(()) => return Ok(Upper::OnDisk),
        // What overlayfs says about an upper layer on another overlay, or on a filesystem of the network.
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::STALE | Errno::XDEV) => {}
        Err(e) => return Err(e).doing(|| "mount the root".to_owned()),
    }
    disk::mount_memory(setup)?;
    disk::make_directories()?;
    fill("work/upper")?;
    overlay(image, "work/upper", "work/work").doing(|| "mount the root".to_owned())?;
    Ok(Upper::InMemory)
}

/// No path of the host is in the options: none can be misread there, and none can be read from inside.
fn overlay(image: &Layers, upper: &str, work: &str) -> Result<(), Errno> {
    // Without privileges: attributes that such a user may set, too, and none of the marks of a volatile layer, which he could not
    // remove.
    let (attributes, volatile) =
        if rustix::process::geteuid().is_root() { ("", ",volatile") } else { (",userxattr", "") };
    let mount = |more: &str| {
        let options = format!(
            "lowerdir={},upperdir={upper},workdir={work},index=off,metacopy=off{attributes}{more}",
            image.option()
        );
        let options = c_string(&options).map_err(|_| Errno::INVAL)?;
        mount("overlay", "root", "overlay", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str())
    };
    // Nothing reads these files again once the sandbox is gone, so nobody is to wait for the disk, at the end least of all.
    match mount(volatile) {
        // Before Linux 5.10.
        Err(Errno::INVAL) => mount(""),
        result => result,
    }
}

/// Shows a directory of the host, submounts included, at the same path. False if its files belong to nobody inside, because
/// one of the filesystems there knows no mapping.
fn bind_read_only(path: &std::path::Path, map: Option<BorrowedFd<'_>>) -> Result<bool, Failure> {
    let doing = || format!("show {} of the host", path.display());
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    let tree = open_tree(CWD, path, flags).doing(doing)?;
    let mapped = sys::set_mount_attributes(tree.as_fd(), READ_ONLY_TREE, map).is_ok();
    if !mapped {
        sys::set_mount_attributes(tree.as_fd(), READ_ONLY_TREE, None).doing(doing)?;
    }
    let target = std::path::Path::new("root").join(path.strip_prefix("/").unwrap_or(path));
    move_mount(tree.as_fd(), "", CWD, &target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).doing(doing)?;
    Ok(mapped)
}

fn mount_dev(setup: &Setup) -> Result<(), Failure> {
    let quiet = MountFlags::NOSUID | MountFlags::NOEXEC;
    let owner = owner(setup);
    let options = c_string(&format!("mode=755,size=1m,nr_inodes=1k{owner}"))?;
    mount("tmpfs", "root/dev", "tmpfs", quiet, options.as_c_str()).doing(|| "mount /dev".to_owned())?;
    let dev = open_dir(CWD, "root/dev").doing(|| "open /dev".to_owned())?;
    for (name, major, minor) in DEVICES {
        make_device(dev.as_fd(), name, *major, *minor, base(setup))?;
    }
    for (name, target) in DEVICE_LINKS {
        rustix::fs::symlinkat(*target, &dev, *name).doing(|| format!("make /dev/{name}"))?;
    }
    for name in ["pts", "shm", "mqueue"] {
        rustix::fs::mkdirat(&dev, name, Mode::from_raw_mode(0o755)).doing(|| format!("make /dev/{name}"))?;
    }
    let group = base(setup).map_or_else(String::new, |base| format!(",gid={}", base + TTY_GROUP));
    let options = c_string(&format!("newinstance,ptmxmode=0666,mode=0620,max={TERMINALS}{group}"))?;
    mount("devpts", "root/dev/pts", "devpts", quiet, options.as_c_str())
        .doing(|| "mount /dev/pts".to_owned())?;
    let options = c_string(&format!("mode=1777{owner},{}", size(setup)))?;
    mount("tmpfs", "root/dev/shm", "tmpfs", PLAIN, options.as_c_str())
        .doing(|| "mount /dev/shm".to_owned())?;
    // Not every kernel has message queues.
    let _ = mount("mqueue", "root/dev/mqueue", "mqueue", PLAIN, None);
    Ok(())
}

/// Makes a device of the sandbox's own, whose owner and mode are its own too. Where that is forbidden (in a container),
/// shows the host's, read-only: writing to the device works, changing it for the host does not.
fn make_device(
    dev: BorrowedFd<'_>,
    name: &str,
    major: u32,
    minor: u32,
    root: Option<u32>,
) -> Result<(), Failure> {
    let doing = || format!("make /dev/{name}");
    let mode = Mode::from_raw_mode(0o666);
    match rustix::fs::mknodat(dev, name, FileType::CharacterDevice, mode, rustix::fs::makedev(major, minor)) {
        Ok(()) => {
            rustix::fs::chmodat(dev, name, mode, AtFlags::empty()).doing(doing)?;
            let (uid, gid) = (root.map(Uid::from_raw), root.map(Gid::from_raw));
            rustix::fs::chownat(dev, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).doing(doing)
        }
        Err(Errno::PERM | Errno::ACCESS) => {
            rustix::fs::mknodat(dev, name, FileType::RegularFile, mode, 0).doing(doing)?;
            let path = format!("/dev/{name}");
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let tree = open_tree(CWD, path.as_str(), flags).doing(doing)?;
            sys::set_mount_attributes(tree.as_fd(), READ_ONLY_DEVICE, None).doing(doing)?;
            move_mount(tree.as_fd(), "", dev, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).doing(doing)
        }
        Err(e) => Err(e).doing(doing),
    }
}

fn make_read_only(path: &CStr) -> Result<(), Failure> {
    let doing = || format!("protect {}", path.to_string_lossy());
    match mount_bind(path, path) {
        Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e).doing(doing),
        Ok(()) => mount_remount(path, MountFlags::BIND | MountFlags::RDONLY | PLAIN, c"").doing(doing),
    }
}

/// Hides what is behind [`MASKED`] behind a file and a directory that are empty, that nobody may open, and that are in no
/// directory any more.
fn mask_all() -> Result<(), Failure> {
    const FILE: &CStr = c"/dev/.nothing";
    const DIRECTORY: &CStr = c"/dev/.nothing.d";
    let doing = || "make what others are hidden with".to_owned();
    rustix::fs::mknodat(CWD, FILE, FileType::RegularFile, Mode::empty(), 0).doing(doing)?;
    rustix::fs::mkdir(DIRECTORY, Mode::empty()).doing(doing)?;
    for path in MASKED {
        let doing = || format!("hide {}", path.to_string_lossy());
        // Looked at first: a bind of one kind onto the other is refused only after a wait for all processors.
        let nothing = match rustix::fs::lstat(*path) {
            Err(Errno::NOENT) => continue,
            stat if FileType::from_raw_mode(stat.doing(doing)?.st_mode) == FileType::Directory => DIRECTORY,
            _ => FILE,
        };
        mount_bind(nothing, *path).doing(doing)?;
    }
    // The mounts keep them; there is nothing to be seen of them in /dev.
    rustix::fs::unlink(FILE)
        .and_then(|()| rustix::fs::rmdir(DIRECTORY))
        .doing(|| "remove what is ours".to_owned())
}

/// What root of the sandbox is on the host; `None` where there is one user only.
fn base(setup: &Setup) -> Option<u32> {
    rustix::process::geteuid().is_root().then(|| setup.ids.map_or(0, IdRange::base))
}

/// Options of a filesystem in memory that belongs to root of the sandbox.
fn owner(setup: &Setup) -> String {
    base(setup).map_or_else(String::new, |root| format!(",uid={root},gid={root}"))
}

/// Size of what is in memory: the memory limit, or the kernel's own choice.
pub(super) fn size(setup: &Setup) -> String {
    match setup.memory_mb {
        0 => "size=50%".to_owned(),
        memory => format!("size={memory}m"),
    }
}

pub(super) fn c_string(text: &str) -> Result<CString, Failure> {
    CString::new(text).map_err(|_| Failure::plain("use a text with a zero byte"))
}
