//! Namespaces and roots: what containers within a sandbox, builders and browsers ask for.

use super::{
    Entry,
    attempt::{Attempt, HERE, Judge, Not, as_linux, at, call, child, raw, wait, works},
};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

pub(super) const TABLE: &[Entry] = &[
    ("unshare user", || unshare(libc::CLONE_NEWUSER, "user")),
    ("unshare mount", || unshare(libc::CLONE_NEWNS, "mnt")),
    ("unshare pid", unshare_pid),
    ("unshare net", || unshare(libc::CLONE_NEWNET, "net")),
    ("unshare ipc", || unshare(libc::CLONE_NEWIPC, "ipc")),
    ("unshare uts", || unshare(libc::CLONE_NEWUTS, "uts")),
    ("unshare cgroup", || unshare(libc::CLONE_NEWCGROUP, "cgroup")),
    ("unshare time", || unshare(0x80, "time_for_children")),
    ("user namespace with a map", user_map),
    ("mount in a user namespace", mount_in_user_namespace),
    ("setns", setns),
    ("chroot", chroot),
    ("pivot_root", pivot_root),
    ("mount", mount),
    ("fsopen", fsopen),
    ("open_tree OPEN_TREE_CLONE", open_tree),
];

/// Leaves a namespace, and looks whether that is another one then.
fn unshare(flag: i32, name: &str) -> Attempt {
    let namespace = || rustix::fs::readlink(format!("/proc/self/ns/{name}"), Vec::new());
    let before = namespace();
    call(libc::SYS_unshare, [flag as usize]).unknown_if(&[Errno::INVAL])?;
    match (before, namespace()) {
        (Ok(before), Ok(after)) => as_linux(before != after, format!("/proc/self/ns/{name} stays the same")),
        _ => Err(Not::Differs(format!("succeeds, but there is no /proc/self/ns/{name}"))),
    }
}

/// The namespace is that of children, and there to be seen only with the first of them.
fn unshare_pid() -> Attempt {
    call(libc::SYS_unshare, [libc::CLONE_NEWPID as usize])?;
    let pid = child(|| i32::from(std::process::id() != 1))?;
    as_linux(wait(pid)? == 0, "the first process in it is not number 1")
}

fn user_map() -> Attempt {
    enter_user_namespace(0)
}

/// A user namespace, and others with it, in which we are root.
fn enter_user_namespace(more: i32) -> Attempt {
    let (user, group) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    call(libc::SYS_unshare, [(libc::CLONE_NEWUSER | more) as usize]).unknown_if(&[Errno::INVAL])?;
    let write = |path, text: String| {
        std::fs::write(path, text).map_err(|e| Not::from(Errno::from_io_error(&e).unwrap_or(Errno::IO)))
    };
    write("/proc/self/setgroups", "deny".to_owned())?;
    write("/proc/self/uid_map", format!("0 {user} 1"))?;
    write("/proc/self/gid_map", format!("0 {group} 1"))?;
    works()
}

fn mount_in_user_namespace() -> Attempt {
    enter_user_namespace(libc::CLONE_NEWNS)?;
    mount_here()
}

fn setns() -> Attempt {
    let own =
        rustix::fs::open("/proc/self/ns/uts", OFlags::RDONLY, Mode::empty()).unknown_if(&[Errno::NOENT])?;
    call(libc::SYS_setns, [raw(&own), libc::CLONE_NEWUTS as usize]).unknown_if(&[Errno::INVAL])?;
    works()
}

fn chroot() -> Attempt {
    call(libc::SYS_chroot, [at(c"/")])?;
    works()
}

fn pivot_root() -> Attempt {
    away();
    // The root cannot be put below itself, which is found out last.
    call(libc::SYS_pivot_root, [at(c"/"), at(c"/")]).permitted_if(&[Errno::BUSY, Errno::INVAL])
}

/// Leaves the mounts of the sandbox, where that is possible, so that what is mounted goes with the process.
fn away() {
    if call(libc::SYS_unshare, [libc::CLONE_NEWNS as usize]).is_ok() {
        let private = libc::MS_REC | libc::MS_PRIVATE;
        let _ = call(libc::SYS_mount, [0, at(c"/"), 0, private as usize, 0]);
    }
}

fn mount() -> Attempt {
    away();
    mount_here()
}

fn mount_here() -> Attempt {
    call(libc::SYS_mkdirat, [HERE, at(c"mounted"), 0o755])
        .or_else(|errno| if errno == Errno::EXIST { Ok(0) } else { Err(errno) })?;
    call(libc::SYS_mount, [at(c"none"), at(c"mounted"), at(c"tmpfs"), 0, 0])?;
    call(libc::SYS_umount2, [at(c"mounted"), libc::MNT_DETACH as usize])?;
    works()
}

fn fsopen() -> Attempt {
    call(libc::SYS_fsopen, [at(c"tmpfs"), 0])?;
    works()
}

fn open_tree() -> Attempt {
    const CLONE: usize = 1;
    call(libc::SYS_open_tree, [HERE, at(c"."), CLONE])?;
    works()
}
