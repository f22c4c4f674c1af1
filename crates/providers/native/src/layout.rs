//! Where things are on disk, and how to reach them whatever the length of `data_dir`.
//!
//! ```text
//! <data_dir>/sandboxes/<id>/   0700  spec.json state.json agent.sock agent.log upper/ work/ root/
//! <data_dir>/images/host-<hash>/     skeleton of the image `host`
//! <data_dir>/trash/<id>-<random>/    renamed there first, deleted afterwards
//! ```

use crate::failure::{Doing, Failure};
use rustix::{
    fd::{AsRawFd, OwnedFd},
    fs::{Mode, OFlags},
};
use stacyvm_provider::SandboxId;
use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// Name of the socket in a sandbox's directory on which its agent listens.
pub(crate) const SOCKET: &str = "agent.sock";

/// Paths of one installation.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    data_dir: PathBuf,
}

impl Layout {
    pub(crate) fn new(data_dir: PathBuf) -> Self {
        Self { data_dir }
    }

    pub(crate) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    pub(crate) fn sandboxes(&self) -> PathBuf {
        self.data_dir.join("sandboxes")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.data_dir.join("images")
    }

    pub(crate) fn trash(&self) -> PathBuf {
        self.data_dir.join("trash")
    }

    pub(crate) fn sandbox(&self, id: &SandboxId) -> PathBuf {
        self.sandboxes().join(id.as_str())
    }

    /// Makes the directories of the installation that are missing.
    pub(crate) fn prepare(&self) -> Result<(), Failure> {
        for directory in [self.data_dir.clone(), self.sandboxes(), self.images(), self.trash()] {
            make_private_dir(&directory, true)?;
        }
        Ok(())
    }

    /// Sandboxes that have a directory. Other names there are none of ours and are left alone.
    pub(crate) fn ids(&self) -> io::Result<Vec<SandboxId>> {
        let entries = match fs::read_dir(self.sandboxes()) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut ids = Vec::new();
        for entry in entries {
            if let Some(id) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
                ids.push(id);
            }
        }
        ids.sort();
        Ok(ids)
    }
}

/// Makes a directory that only its owner may enter; `parents` as in `mkdir -p`.
pub(crate) fn make_private_dir(path: &Path, parents: bool) -> Result<(), Failure> {
    fs::DirBuilder::new()
        .mode(0o700)
        .recursive(parents)
        .create(path)
        .doing(|| format!("make the directory {}", path.display()))
}

/// Opens a directory as a handle for paths beneath it.
pub(crate) fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// A path to the agent's socket that always fits into a socket address (108 bytes), valid while `directory` is open.
pub(crate) fn socket_path(directory: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::{fs::PermissionsExt, net::UnixListener};

    #[test]
    fn directories_are_private_and_made_once_or_twice() {
        let tmp = tempfile::tempdir().unwrap();
        let layout = Layout::new(tmp.path().join("a/b"));
        assert!(layout.ids().unwrap().is_empty());
        layout.prepare().unwrap();
        layout.prepare().unwrap();
        let mode = fs::metadata(layout.sandboxes()).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o700);
    }

    #[test]
    fn only_sandbox_ids_are_listed() {
        let tmp = tempfile::tempdir().unwrap();
        let layout = Layout::new(tmp.path().to_owned());
        layout.prepare().unwrap();
        for name in ["sb-2", "sb-1", "lost+found", "sb-", "sb-UPPER", ".sb-3"] {
            fs::create_dir(layout.sandboxes().join(name)).unwrap();
        }
        let ids: Vec<_> = layout.ids().unwrap().into_iter().map(String::from).collect();
        assert_eq!(ids, ["sb-1", "sb-2"]);
    }

    #[test]
    fn a_socket_can_be_bound_however_long_the_path() {
        let tmp = tempfile::tempdir().unwrap();
        let deep = tmp.path().join("d".repeat(200));
        make_private_dir(&deep, true).unwrap();
        let directory = open_dir(&deep).unwrap();
        let _listener = UnixListener::bind(socket_path(&directory)).unwrap();
        assert!(deep.join(SOCKET).exists());
    }
}
