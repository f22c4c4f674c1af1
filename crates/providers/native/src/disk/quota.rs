//! Quotas of projects: the filesystem of the data directory itself counts what a sandbox writes.
//!
//! Each sandbox with a limit has a project id of its own. The number is written into its directory before it gets a limit,
//! so whoever removes the sandbox, also behind a server that was killed in between, frees it. Two installations on one
//! filesystem start in different places of the range; a number that has any use or limit is left alone all the same.
//!
//! Nobody in a user namespace may move a file to another project, nor end that what is made in a directory counts for the
//! directory's (`FS_IOC_FSSETXATTR`), whatever they own.

use super::{Recorded, sys};
use crate::failure::{Doing, Failure};
use rustix::{
    fd::{AsFd, BorrowedFd},
    thread::{CapabilitySet, capabilities, set_capabilities},
};
use sha2::{Digest, Sha256};
use std::{
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{Mutex, PoisonError},
};

/// The numbers that are ours to use: far from those that people give by hand.
const FIRST: u32 = 0x5356_0000;
const COUNT: u32 = 1 << 24;
/// Numbers that are looked at before there is said to be none.
const TRIES: u32 = 4096;

/// Hands out project ids.
#[derive(Debug)]
pub(super) struct Projects(Mutex<u32>);

impl Projects {
    pub(super) fn new(installation_id: &str) -> Self {
        let digest = Sha256::digest(installation_id.as_bytes());
        let start = u32::from_le_bytes([digest[0], digest[1], digest[2], 0]);
        Self(Mutex::new(start % COUNT))
    }

    /// Limits what will be in `upper` and `work` of the sandbox in `directory`, all together.
    pub(super) fn limit(&self, directory: &Path, mb: u32, inodes: u64) -> Result<(), Failure> {
        let doing = || "limit the disk of a sandbox (project quota)".to_owned();
        let handle = sys::open_for_ioctl(directory).doing(doing)?;
        // One at a time: between the look at a number and its first use, it looks free to everybody.
        let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..TRIES {
            let project = FIRST + *next;
            *next = (*next + 1) % COUNT;
            if sys::project(handle.as_fd(), project).doing(doing)? != sys::Project::default() {
                continue;
            }
            // First, so that the number is in use for as long as anything of the sandbox is left: what is recorded of
            // one that a killed server left can not lift the limit of another.
            for name in ["upper", "work"] {
                let part = sys::open_for_ioctl(&directory.join(name)).doing(doing)?;
                sys::join_project(part.as_fd(), project).doing(doing)?;
            }
            super::record(directory, &Recorded { project: Some(project) })?;
            return sys::limit_project(handle.as_fd(), project, u64::from(mb) << 10, inodes).doing(doing);
        }
        Err(Failure::plain(format!("limit the disk of a sandbox: {TRIES} project ids in a row are in use")))
    }
}

/// Takes the limit of a project away, so that its number can be used again once nothing is counted for it.
pub(super) fn free(directory: BorrowedFd<'_>, project: u32) {
    // A filesystem that keeps no quotas any more has no limit to take away.
    if (FIRST..FIRST + COUNT).contains(&project)
        && let Err(error) = sys::limit_project(directory, project, 0, 0)
    {
        tracing::debug!(project, %error, "the limit of a project could not be taken away");
    }
}

/// Whether limits are kept in `directory`, found out by going beyond one. To be called on a thread of its own.
pub(super) fn holds(directory: &Path) -> bool {
    let Ok(scratch) = tempfile::Builder::new().prefix(".quota-").tempdir_in(directory) else { return false };
    let Ok(handle) = sys::open_for_ioctl(scratch.path()) else { return false };
    let handle = handle.as_fd();
    // The last numbers of the range, which no installation comes to in its life.
    let mut last = (FIRST + COUNT - 64..FIRST + COUNT).rev();
    // A limit without use is one of a trial that was killed.
    let free = last.find(|project| sys::project(handle, *project).is_ok_and(|p| p.used == (0, 0)));
    let Some(project) = free else { return false };
    if sys::limit_project(handle, project, 64, 64).is_err() {
        return false;
    }
    let too_much = || {
        sys::join_project(handle, project)?;
        heed_quotas()?;
        let path = scratch.path().join("file");
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        (0..64).try_for_each(|_| file.write_all(&[7; 4 << 10]))?;
        file.sync_all()
    };
    let refused =
        too_much().is_err_and(|error| matches!(error.raw_os_error(), Some(libc::EDQUOT | libc::ENOSPC)));
    let _ = sys::limit_project(handle, project, 0, 0);
    refused
}

/// From here on the calling thread is not excepted from quotas, as ext4 excepts whoever has `CAP_SYS_RESOURCE`. An overlay
/// never writes with that.
fn heed_quotas() -> io::Result<()> {
    let mut sets = capabilities(None)?;
    sets.effective.remove(CapabilitySet::SYS_RESOURCE);
    Ok(set_capabilities(None, sets)?)
}
