//! Limits on the disk of sandboxes: the best way that this host offers, found once, by trying it.
//!
//! | method | how | needs |
//! |---|---|---|
//! | [`Method::Quota`] | the filesystem of the data directory counts each sandbox's writable layer as a project | XFS with `pquota`, ext4 with the features `project` and `quota` and `prjquota`; Linux 5.14 |
//! | [`Method::Image`] | the writable layer is on a filesystem of just that size in a file, behind a loop device | loop devices, `mkfs.ext4` |
//! | [`Method::Memory`] | the writable layer is in memory, which counts for the memory limit, too | cgroups that limit memory |
//! | [`Method::None`] | not at all: who asks for a limit is refused | |

mod image;
mod quota;
pub(crate) mod sys;

use crate::{
    failure::{Doing, Failure},
    layout::Layout,
    rights,
};
pub(crate) use image::IMAGE;
use quota::Projects;
use rustix::fd::AsFd;
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// Smallest limit, in MiB: a filesystem needs some of it for itself.
const LEAST_MB: u32 = 16;
/// Inodes for each MiB: files of 16 KiB on average.
pub(crate) const INODES_PER_MB: u64 = 64;
/// Size of the filesystem that is made to try whether one can be used, in MiB.
const TRIAL_MB: u32 = 16;

/// How this host limits disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Method {
    Quota,
    Image { mkfs: PathBuf },
    Memory,
    None,
}

/// What the first process has to do for the limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Sized {
    /// Nothing: its directories count for a project with so many MiB. Where they cannot carry an overlay, as
    /// [`Sized::Memory`].
    Counted { mb: u32 },
    /// Mount the image in the sandbox's directory and put the upper layer there.
    Image,
    /// Put the upper layer into so many MiB of memory.
    Memory { mb: u32 },
}

/// What limiting disks depends on beside the disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// The memory of sandboxes is limited, so that files in memory harm nobody else.
    pub(crate) limits_memory: bool,
    /// Sandboxes have user namespaces: whoever is in the host's own may move files out of a project.
    pub(crate) user_namespaces: bool,
}

/// Limits disks of one installation.
#[derive(Debug)]
pub(crate) struct Disks {
    data_dir: PathBuf,
    terms: Terms,
    projects: Projects,
    method: OnceLock<Method>,
}

/// `disk.json` in a sandbox's directory: what has to be given back that does not go with its files.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Recorded {
    #[serde(default)]
    project: Option<u32>,
}

const RECORD: &str = "disk.json";

impl Disks {
    pub(crate) fn new(layout: &Layout, installation_id: &str, terms: Terms) -> Self {
        Self {
            data_dir: layout.data_dir().to_owned(),
            terms,
            projects: Projects::new(installation_id),
            method: OnceLock::new(),
        }
    }

    /// Removes what an earlier server that was killed left of its trials. Nobody else uses the data directory.
    pub(crate) fn tidy(&self) {
        for entry in fs::read_dir(self.templates()).into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    /// The method. The first call tries them out, which takes up to a few hundred milliseconds.
    pub(crate) fn method(&self) -> &Method {
        self.method.get_or_init(|| {
            let method = self.find();
            tracing::info!(?method, "disks of native sandboxes");
            method
        })
    }

    fn find(&self) -> Method {
        let memory = || if self.terms.limits_memory { Method::Memory } else { Method::None };
        if rights::rootless() || crate::layout::make_private_dir(&self.templates(), true).is_err() {
            return memory();
        }
        let templates = self.templates();
        if self.terms.user_namespaces && on_a_thread(move || quota::holds(&templates)) {
            return Method::Quota;
        }
        if let Some(mkfs) = image::mkfs() {
            let (templates, program) = (self.templates(), mkfs.clone());
            let tried = on_a_thread(move || match try_image(&templates, &program) {
                Ok(()) => true,
                Err(failure) => {
                    tracing::debug!(%failure, "disk images cannot be used");
                    false
                }
            });
            if tried {
                return Method::Image { mkfs };
            }
        }
        memory()
    }

    fn templates(&self) -> PathBuf {
        self.data_dir.join("disks")
    }

    /// Prepares the limit of a sandbox in `directory`, whose `upper` and `work` are there and empty. 0: no limit.
    ///
    /// # Errors
    /// Without a method, what to do. What was begun is undone by [`release`] and the removal of the directory.
    pub(crate) fn limit(&self, directory: &Path, mb: u32) -> Result<Option<Sized>, Failure> {
        if mb == 0 {
            return Ok(None);
        }
        Ok(Some(match self.method() {
            Method::Quota => {
                self.projects.limit(directory, mb, u64::from(mb) * INODES_PER_MB)?;
                Sized::Counted { mb }
            }
            Method::Image { mkfs } => {
                image::make(&self.templates(), mkfs, directory, mb)?;
                Sized::Image
            }
            Method::Memory => Sized::Memory { mb },
            Method::None => return Err(Failure::plain("limit the disk of a sandbox: this host cannot")),
        }))
    }

    /// # Errors
    /// `Unsupported` for a limit on a host that has none to offer, `InvalidArgument` for one that is too small.
    pub(crate) fn check(&self, mb: u32) -> stacyvm_provider::Result<()> {
        match mb {
            0 => Ok(()),
            1..LEAST_MB => Err(stacyvm_provider::Error::invalid_argument(format!(
                "disk_size_mb must be 0 for no limit, or at least {LEAST_MB}"
            ))),
            _ if *self.method() == Method::None => Err(stacyvm_provider::Error::unsupported(format!(
                "this host cannot limit the disk of native sandboxes: {HOW}, or leave disk_size_mb and \
                 defaults.disk_size_mb out"
            ))),
            _ => Ok(()),
        }
    }

    /// What an operator has to know of it.
    pub(crate) fn warning(&self) -> Option<String> {
        match self.method() {
            Method::Quota | Method::Image { .. } => None,
            Method::Memory => Some(format!(
                "files of sandboxes with a disk limit are kept in memory and count for their memory limit: {HOW}"
            )),
            Method::None => {
                Some(format!("the disk of sandboxes cannot be limited (disk_size_mb is refused): {HOW}"))
            }
        }
    }

    /// The method, for people.
    pub(crate) fn describe(&self) -> &'static str {
        match self.method() {
            Method::Quota => "project quota",
            Method::Image { .. } => "image",
            Method::Memory => "memory",
            Method::None => "none",
        }
    }
}

const HOW: &str = "run as root with mkfs.ext4 (e2fsprogs) and loop devices, or as root with data_dir on XFS mounted with pquota";

fn record(directory: &Path, recorded: &Recorded) -> Result<(), Failure> {
    let doing = || format!("write {}", directory.join(RECORD).display());
    let text = serde_json::to_vec(recorded).map_err(io::Error::from).doing(doing)?;
    fs::write(directory.join(RECORD), text).doing(doing)
}

/// Gives back what the sandbox in `directory` holds beside its files. Nothing of it runs any more.
pub(crate) fn release(directory: &Path) {
    let Ok(text) = fs::read(directory.join(RECORD)) else { return };
    let Ok(Recorded { project: Some(project) }) = serde_json::from_slice(&text) else { return };
    if let Ok(handle) = sys::open_for_ioctl(directory) {
        quota::free(handle.as_fd(), project);
    }
}

/// Runs `work` on a thread of its own: what it changes about itself goes with it.
fn on_a_thread(work: impl FnOnce() -> bool + Send + 'static) -> bool {
    let started = std::thread::Builder::new().name("native-disk".to_owned()).spawn(work);
    started.is_ok_and(|thread| thread.join().unwrap_or(false))
}

/// Makes an image, mounts it where nobody else sees it, writes to it.
fn try_image(templates: &Path, mkfs: &Path) -> Result<(), Failure> {
    let doing = || "try a disk image".to_owned();
    let scratch = tempfile::Builder::new().prefix(".try-").tempdir_in(templates).doing(doing)?;
    image::make(templates, mkfs, scratch.path(), TRIAL_MB)?;
    let target = scratch.path().join("mounted");
    fs::create_dir(&target).doing(doing)?;
    sys::leave_mounts().doing(doing)?;
    crate::spawner::mount_image(&scratch.path().join(IMAGE), &target)?;
    let written = fs::write(target.join("file"), b"it holds").doing(doing);
    rustix::mount::unmount(&target, rustix::mount::UnmountFlags::empty()).doing(doing)?;
    written
}
