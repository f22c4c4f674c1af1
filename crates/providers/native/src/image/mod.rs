//! What the root filesystem of a sandbox is made from: the image `host`, a directory, or an image of the store.

pub(crate) mod host;
pub(crate) mod layers;
pub(crate) mod profile;

use crate::layout::Layout;
use layers::{Layers, open_lower};
use profile::Profile;
use rustix::fd::{AsFd, OwnedFd};
use serde::{Deserialize, Serialize};
use stacyvm_image::{Digest, Images, Rootfs};
use stacyvm_provider::{Error, ErrorKind, Result};
use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

/// Name of the image that is the host's own programs.
pub(crate) const HOST: &str = "host";

/// A root filesystem, ready to be used as the lower layer of a sandbox.
#[derive(Debug)]
pub(crate) struct Image {
    /// Where it is: its root, or what holds its layers.
    pub(crate) lower: PathBuf,
    /// The same, open: what is mounted is what was checked.
    pub(crate) lower_fd: OwnedFd,
    /// Names of its layers in there, the lowest first; none: it is the only one itself.
    pub(crate) layers: Vec<String>,
    /// Directories of the host to show in it, read-only.
    pub(crate) binds: Vec<Bind>,
    /// What it says of processes.
    pub(crate) profile: Profile,
    /// What has to be held while a sandbox has it.
    pub(crate) stored: Option<Stored>,
}

/// An image in the store.
#[derive(Debug)]
pub(crate) struct Stored {
    images: Images,
    id: Digest,
}

impl Stored {
    /// Keeps it for as long as this directory, which is there, is there.
    ///
    /// # Errors
    /// `Unavailable` if it was removed meanwhile; those of making files.
    pub(crate) fn hold(&self, holder: &Path) -> Result<()> {
        self.images.hold(&self.id, holder).map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                Error::unavailable("the image was removed as the sandbox was made; try again").because(error)
            }
            _ => error,
        })
    }
}

/// Whether an image of this name is in the store, or will be once it is pulled.
pub(crate) fn is_stored(name: &str) -> bool {
    name != HOST && !name.starts_with('/')
}

/// An image of the store. `one_user`: sandboxes have none but the sandbox user.
///
/// # Errors
/// `InvalidArgument` for one that no sandbox can be made of.
pub(crate) fn stored(name: &str, rootfs: &Rootfs, images: &Images, one_user: bool) -> Result<Image> {
    let lower = images.layers();
    let broken =
        |e: io::Error| Error::internal(format!("the layers of the image {name} cannot be read")).because(e);
    let lower_fd = open_lower(&lower).map_err(broken)?;
    let within = |layer: &PathBuf| Some(layer.strip_prefix(&lower).ok()?.to_str()?.to_owned());
    let layers = rootfs.layers.iter().map(within).collect::<Option<Vec<_>>>();
    let layers = layers.ok_or_else(|| broken(io::Error::other("a layer is elsewhere")))?;
    // Without any, what holds all layers would be taken for the only one.
    if layers.is_empty() {
        return Err(Error::invalid_argument(format!(
            "image {name}: there is no file in it; name another one"
        )));
    }
    let opened = Layers::open(lower_fd.as_fd(), &layers).map_err(broken)?;
    let profile = Profile::of(name, &rootfs.config, &opened, one_user)?;
    let stored = Some(Stored { images: images.clone(), id: rootfs.image.clone() });
    Ok(Image { lower, lower_fd, layers, binds: Vec::new(), profile, stored })
}

/// A directory of the host that a sandbox sees at the same path, read-only, without devices and setuid programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bind {
    /// Path on the host and, relative to the root, in the sandbox.
    pub(crate) path: PathBuf,
}

/// Finds the image `name`.
///
/// # Errors
/// `NotFound` and `InvalidArgument` with what to do instead; whatever building the image `host` meets.
pub(crate) fn resolve(
    name: &str,
    layout: &Layout,
    allowed: &[PathBuf],
    host: &host::HostImage,
) -> Result<Image> {
    if name == HOST {
        let skeleton = host.get(layout)?;
        let lower_fd = open_lower(&skeleton.path)
            .map_err(|e| Error::internal("the skeleton of the image host cannot be opened").because(e))?;
        return Ok(plain(skeleton.path.clone(), lower_fd, skeleton.binds.clone()));
    }
    if !name.starts_with('/') {
        return Err(Error::not_found(format!(
            "image {name}: this server has no store of images; use `host` or the absolute path of a directory that holds a root filesystem"
        )));
    }
    directory(name, layout, allowed)
}

fn directory(name: &str, layout: &Layout, allowed: &[PathBuf]) -> Result<Image> {
    let unusable = |why: &str| {
        Error::invalid_argument(format!(
            "image {name}: {why}; give a directory that holds a root filesystem, or `host`"
        ))
    };
    let found = fs::canonicalize(name);
    if !is_allowed(name, found.as_deref().ok(), allowed) {
        return Err(Error::invalid_argument(format!(
            "image {name}: it is not in a directory that providers.native.image_dirs names; add it there, or use `host`"
        )));
    }
    let path = match found {
        Ok(path) => path,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(Error::not_found(format!(
                "image {name}: no such directory on the server's host; unpack a root filesystem there, or use `host`"
            )));
        }
        Err(e) => return Err(unusable("it cannot be opened").because(e)),
    };
    if !path.is_dir() {
        return Err(unusable("it is not a directory"));
    }
    if path == Path::new("/") {
        return Err(unusable("it is the host itself, files of every user included"));
    }
    // Other sandboxes' files, and the state of the control plane.
    let data_dir = fs::canonicalize(layout.data_dir()).unwrap_or_else(|_| layout.data_dir().to_owned());
    if data_dir.starts_with(&path) || path.starts_with(&data_dir) {
        return Err(unusable("it holds, or is part of, the server's data directory"));
    }
    let lower_fd = open_lower(&path).map_err(|e| unusable("it cannot be opened").because(e))?;
    let empty = fs::read_dir(&path).map_err(|e| unusable("it cannot be read").because(e))?.next().is_none();
    if empty {
        return Err(unusable("it is empty"));
    }
    Ok(plain(path, lower_fd, Vec::new()))
}

/// A root filesystem that says nothing of processes.
fn plain(lower: PathBuf, lower_fd: OwnedFd, binds: Vec<Bind>) -> Image {
    Image { lower, lower_fd, layers: Vec::new(), binds, profile: Profile::default(), stored: None }
}

/// Whether an image may be there. Symbolic links are resolved on both sides before they are compared. What is not `found` is
/// judged by its spelling: elsewhere nobody learns what there is on this host.
fn is_allowed(name: &str, found: Option<&Path>, allowed: &[PathBuf]) -> bool {
    let Some(path) = found else {
        let straight = Path::new(name).components().all(|part| part != Component::ParentDir);
        return straight && allowed.iter().any(|dir| Path::new(name).starts_with(dir));
    };
    allowed.iter().filter_map(|dir| fs::canonicalize(dir).ok()).any(|dir| path.starts_with(dir))
}

#[cfg(test)]
mod tests {
    use super::*;
    use stacyvm_provider::ErrorKind;
    use std::{os::unix::fs::symlink, slice};

    fn fixture() -> (tempfile::TempDir, Layout, host::HostImage) {
        let tmp = tempfile::tempdir().unwrap();
        let layout = Layout::new(tmp.path().join("data"));
        layout.prepare().unwrap();
        (tmp, layout, host::HostImage::default())
    }

    #[test]
    fn a_directory_is_an_image() {
        let (tmp, layout, host) = fixture();
        let rootfs = tmp.path().join("rootfs");
        fs::create_dir_all(rootfs.join("bin")).unwrap();
        for allowed in [tmp.path(), &rootfs, Path::new("/")] {
            let image = resolve(rootfs.to_str().unwrap(), &layout, &[allowed.to_owned()], &host).unwrap();
            assert_eq!(image.lower, rootfs);
            assert!(image.binds.is_empty());
        }
    }

    #[test]
    fn only_directories_that_the_configuration_names_are_images() {
        let (tmp, layout, host) = fixture();
        let at = |name: &str| tmp.path().join(name);
        for directory in ["images/a/bin", "images-not/bin", "private/bin"] {
            fs::create_dir_all(at(directory)).unwrap();
        }
        symlink(at("private"), at("images/way-out")).unwrap();
        symlink(at("images"), at("link")).unwrap();
        let image =
            |name: &str, allowed: &[PathBuf]| resolve(at(name).to_str().unwrap(), &layout, allowed, &host);
        for allowed in [at("images"), at("link"), at("images/a/../../link")] {
            for name in ["images/a", "link/a", "images/../images/a", "images"] {
                assert!(image(name, slice::from_ref(&allowed)).is_ok(), "{name} in {}", allowed.display());
            }
        }
        let missing = image("images/b", &[at("images")]).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        let elsewhere =
            ["private", "images/way-out", "images/../private", "images-not", "none", "images/../none", ""];
        let cases = elsewhere.into_iter().map(|name| (name, vec![at("none-either"), at("images")]));
        for (name, allowed) in cases.chain([("images/a", Vec::new())]) {
            let error = image(name, &allowed).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{name}: {error}");
            assert!(error.message().contains("providers.native.image_dirs"), "{name}: {error}");
        }
    }

    #[test]
    fn what_is_no_image_is_refused_with_the_fix() {
        let (tmp, layout, host) = fixture();
        fs::write(tmp.path().join("file"), "x").unwrap();
        fs::create_dir(tmp.path().join("empty")).unwrap();
        let own = layout.sandboxes();
        let cases: Vec<(String, ErrorKind)> = vec![
            ("alpine:latest".into(), ErrorKind::NotFound),
            (String::new(), ErrorKind::NotFound),
            ("../etc".into(), ErrorKind::NotFound),
            ("/no/such/directory".into(), ErrorKind::NotFound),
            (tmp.path().join("file").display().to_string(), ErrorKind::InvalidArgument),
            (tmp.path().join("empty").display().to_string(), ErrorKind::InvalidArgument),
            ("/".into(), ErrorKind::InvalidArgument),
            ("/proc/..".into(), ErrorKind::InvalidArgument),
            (tmp.path().display().to_string(), ErrorKind::InvalidArgument),
            (own.display().to_string(), ErrorKind::InvalidArgument),
        ];
        for (name, kind) in cases {
            let error = resolve(&name, &layout, &["/".into()], &host).unwrap_err();
            assert_eq!(error.kind(), kind, "{name}: {error}");
            assert!(error.message().contains("host"), "{name}: {error}");
        }
    }
}
