//! System calls about disks that no library here offers: project quotas, loop devices. All of this crate's `unsafe` that is
//! about them.
#![expect(unsafe_code, reason = "ioctls and quotactl; each block says why it is sound")]

use rustix::{
    fd::{AsRawFd, BorrowedFd, OwnedFd},
    fs::{Mode, OFlags},
};
use std::io;

/// Use and limits of one project.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Project {
    /// Bytes and inodes now.
    pub(super) used: (u64, u64),
    /// KiB and inodes at most; 0: no limit.
    pub(super) limit: (u64, u64),
}

const PRJQUOTA: libc::c_int = 2;
const Q_GETQUOTA: libc::c_int = 0x80_0007;
const Q_SETQUOTA: libc::c_int = 0x80_0008;
/// The limits of blocks and of inodes are to be set.
const QIF_LIMITS: u32 = 1 | 4;

fn quotactl(
    directory: BorrowedFd<'_>,
    command: libc::c_int,
    project: u32,
    quota: &mut libc::dqblk,
) -> io::Result<()> {
    const SYS_QUOTACTL_FD: libc::c_long = 443;
    // SAFETY: both commands take a `struct if_dqblk`, which this is; the kernel reads or writes no more than that.
    let result = unsafe {
        libc::syscall(
            SYS_QUOTACTL_FD,
            directory.as_raw_fd(),
            (command << 8) | PRJQUOTA,
            project,
            std::ptr::from_mut(quota),
        )
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn empty_quota() -> libc::dqblk {
    // SAFETY: a structure of integers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

/// Use and limits of `project` on the filesystem of `directory`. An error: it keeps no quotas of projects, or this kernel
/// cannot be asked (before 5.14).
pub(super) fn project(directory: BorrowedFd<'_>, project: u32) -> io::Result<Project> {
    let mut quota = empty_quota();
    match quotactl(directory, Q_GETQUOTA, project, &mut quota) {
        // What XFS says about a project that nobody has used yet.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Project::default()),
        result => result?,
    }
    Ok(Project {
        used: (quota.dqb_curspace, quota.dqb_curinodes),
        limit: (quota.dqb_bhardlimit, quota.dqb_ihardlimit),
    })
}

/// Limits `project` to so many KiB and inodes; 0: no limit.
pub(super) fn limit_project(
    directory: BorrowedFd<'_>,
    project: u32,
    kib: u64,
    inodes: u64,
) -> io::Result<()> {
    let mut quota = empty_quota();
    quota.dqb_bhardlimit = kib;
    quota.dqb_ihardlimit = inodes;
    quota.dqb_valid = QIF_LIMITS;
    quotactl(directory, Q_SETQUOTA, project, &mut quota)
}

/// Counts `directory`, and whatever will be made in it, for `project`.
pub(super) fn join_project(directory: BorrowedFd<'_>, project: u32) -> io::Result<()> {
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        flags: u32,
        extent_size: u32,
        extents: u32,
        project: u32,
        cow_extent_size: u32,
        rest: [u8; 8],
    }
    const GET: u32 = 0x801c_581f;
    const SET: u32 = 0x401c_5820;
    const INHERIT: u32 = 0x200;
    let mut attributes = Attributes::default();
    // SAFETY: the request numbers carry the size of `attributes`, which has the layout of `struct fsxattr`.
    if unsafe { libc::ioctl(directory.as_raw_fd(), GET as _, &raw mut attributes) } == -1 {
        return Err(io::Error::last_os_error());
    }
    attributes.flags |= INHERIT;
    attributes.project = project;
    // SAFETY: as above; this reads only.
    match unsafe { libc::ioctl(directory.as_raw_fd(), SET as _, &raw const attributes) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Puts `image` behind a free loop device, which is let go when the last who has it open or mounted is gone, however that
/// comes. `open` opens the device of a number.
pub(crate) fn attach_loop(
    image: BorrowedFd<'_>,
    open: impl Fn(u32) -> io::Result<OwnedFd>,
) -> io::Result<OwnedFd> {
    /// `struct loop_config` with its `struct loop_info64`.
    #[repr(C)]
    struct Config {
        fd: u32,
        block_size: u32,
        info: [u64; 5],
        number: u32,
        encryption: [u32; 2],
        flags: u32,
        names: [u8; 160],
        init: [u64; 2],
        reserved: [u64; 8],
    }
    const _: () = assert!(size_of::<Config>() == 304, "what the kernel copies");
    const GET_FREE: u32 = 0x4c82;
    const CONFIGURE: u32 = 0x4c0a;
    const AUTOCLEAR: u32 = 4;
    /// How often another user of loop devices may be faster.
    const TRIES: usize = 64;
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let control = rustix::fs::open("/dev/loop-control", flags, Mode::empty())?;
    let config = Config {
        fd: u32::try_from(image.as_raw_fd()).unwrap_or(u32::MAX),
        block_size: 4096,
        info: [0; 5],
        number: 0,
        encryption: [0; 2],
        flags: AUTOCLEAR,
        names: [0; 160],
        init: [0; 2],
        reserved: [0; 8],
    };
    for _ in 0..TRIES {
        // SAFETY: this request takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), GET_FREE as _) };
        let Ok(number) = u32::try_from(number) else { return Err(io::Error::last_os_error()) };
        let device = open(number)?;
        // SAFETY: `config` has the layout of `struct loop_config`, which the kernel copies; it outlives the call.
        match unsafe { libc::ioctl(device.as_raw_fd(), CONFIGURE as _, &raw const config) } {
            -1 => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::EBUSY) => {}
                error => return Err(error),
            },
            _ => return Ok(device),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

/// Gives the calling thread, and it alone, a mount namespace of its own in which nothing that it mounts is seen elsewhere.
pub(super) fn leave_mounts() -> io::Result<()> {
    // SAFETY: touches no memory; the flags make both the working directory and the mounts this thread's own.
    if unsafe { libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS) } == -1 {
        return Err(io::Error::last_os_error());
    }
    use rustix::mount::{MountPropagationFlags, mount_change};
    Ok(mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?)
}

/// A directory, to be asked about its filesystem.
pub(super) fn open_for_ioctl(path: &std::path::Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}
