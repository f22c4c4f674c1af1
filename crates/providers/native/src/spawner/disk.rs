//! A writable layer of limited size, put in place by the first process in its own mount namespace: what is mounted there,
//! and the loop device below it, is gone with the last process, whoever is or is not there to see to it.

use super::protocol::Setup;
use crate::{
    disk::{IMAGE, INODES_PER_MB, Sized, sys},
    failure::{Doing, Failure},
};
use rustix::{
    fd::{AsFd, AsRawFd, OwnedFd},
    fs::{CWD, FileType, Mode, OFlags},
    io::Errno,
    mount::{MountFlags, mount},
};
use std::{io, path::Path};

/// A device file for a host whose `/dev` has none for a loop device that the kernel has just made.
const DEVICE: &str = "loop";

/// Mounts the layer at `work`, relative to the sandbox's directory, if it has one of its own. False: it is on the
/// filesystem of the directory.
pub(super) fn mount_layer(setup: &Setup) -> Result<bool, Failure> {
    match &setup.disk {
        None | Some(Sized::Counted { .. }) => return Ok(false),
        Some(Sized::Image) => mount_image(Path::new(IMAGE), Path::new("work"))?,
        Some(Sized::Memory { .. }) => mount_memory(setup)?,
    }
    make_directories()?;
    Ok(true)
}

/// Mounts memory at `work`, for what cannot be on disk or is not to be.
pub(super) fn mount_memory(setup: &Setup) -> Result<(), Failure> {
    let size = match setup.disk {
        Some(Sized::Memory { mb } | Sized::Counted { mb }) => {
            let mb = if setup.memory_mb == 0 { mb } else { mb.min(setup.memory_mb) };
            format!("size={mb}m,nr_inodes={}", inodes(mb))
        }
        Some(Sized::Image) | None => super::mounts::size(setup),
    };
    let options = super::mounts::c_string(&format!("mode=700,{size}"))?;
    mount("tmpfs", "work", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str())
        .doing(|| "mount a root in memory".to_owned())
}

/// Most files in so many MiB of memory: they take some of the host's beside their content.
fn inodes(mb: u32) -> u64 {
    (u64::from(mb) * INODES_PER_MB).max(1024)
}

/// Makes the two directories of an overlay at `work`.
pub(super) fn make_directories() -> Result<(), Failure> {
    for path in ["work/upper", "work/work"] {
        rustix::fs::mkdir(path, Mode::from_raw_mode(0o755))
            .doing(|| "prepare a root of its own".to_owned())?;
    }
    Ok(())
}

/// Mounts the filesystem in `image` at `target`. The loop device goes with the mount.
pub(crate) fn mount_image(image: &Path, target: &Path) -> Result<(), Failure> {
    let doing = || "mount the disk of the sandbox".to_owned();
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(image, flags, Mode::empty()).doing(doing)?;
    let attached = sys::attach_loop(file.as_fd(), |number| open_loop(image, number)).doing(doing)?;
    // Whatever name it was opened by.
    let device = format!("/proc/self/fd/{}", attached.as_raw_fd());
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    mount(device.as_str(), target, "ext4", flags, None).doing(doing)
}

fn open_loop(image: &Path, number: u32) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(format!("/dev/loop{number}"), flags, Mode::empty()) {
        // In a container, whose `/dev` does not follow the kernel's.
        Err(Errno::NOENT) => {
            let own = image.with_file_name(DEVICE);
            let mode = Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(CWD, &own, FileType::BlockDevice, mode, rustix::fs::makedev(7, number))?;
            let device = rustix::fs::open(&own, flags, Mode::empty());
            let _ = rustix::fs::unlink(&own);
            Ok(device?)
        }
        result => Ok(result?),
    }
}
