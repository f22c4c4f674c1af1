//! The layers of an image, and single files in them as the mounted root would show them.
//!
//! Needed before the root is mounted, by whoever has nothing but the layers: who the image's user is, and which users there
//! are. Nothing follows a link out of a layer.

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{
        AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, fgetxattr, fstat, open, openat, openat2, statat,
    },
    io::Errno,
};
use std::{
    fs::File,
    io::{self, Read},
    os::fd::AsRawFd,
    path::Path,
};

/// What overlayfs says of a directory that shows nothing of the layers below it: with privileges, and without.
const OPAQUE: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];

/// The layers of an image, open, the uppermost first.
#[derive(Debug)]
pub(crate) struct Layers(Vec<OwnedFd>);

/// What one layer has to say about a path.
enum Found {
    /// It is this.
    There(OwnedFd),
    /// There is nothing, whatever lower layers have.
    Hidden,
    /// Lower layers decide.
    Below,
}

impl Layers {
    /// Opens the directories `names` in `parent`, the lowest first and each once; without names, `parent` is the only layer.
    ///
    /// # Errors
    /// A layer cannot be opened.
    pub(crate) fn open(parent: BorrowedFd<'_>, names: &[String]) -> io::Result<Self> {
        if names.is_empty() {
            return Ok(Self(vec![parent.try_clone_to_owned()?]));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = |name| Ok(openat(parent, name, flags, Mode::empty())?);
        names.iter().rev().map(open).collect::<io::Result<_>>().map(Self)
    }

    /// The value of the overlay's option `lowerdir`, valid for as long as this is.
    pub(crate) fn option(&self) -> String {
        let paths: Vec<_> =
            self.0.iter().map(|layer| format!("/proc/self/fd/{}", layer.as_raw_fd())).collect();
        paths.join(":")
    }

    /// Reads a regular file. `None` if the image has none there.
    ///
    /// # Errors
    /// It is something else, longer than `longest` bytes, or cannot be read.
    pub(crate) fn read(&self, path: &str, longest: u64) -> io::Result<Option<Vec<u8>>> {
        let Some(found) = self.find(path)? else { return Ok(None) };
        let stat = fstat(&found)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile
            || u64::try_from(stat.st_size).unwrap_or(u64::MAX) > longest
        {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        let again = format!("/proc/self/fd/{}", found.as_raw_fd());
        let file = open(again, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut text = Vec::new();
        File::from(file).take(longest).read_to_end(&mut text)?;
        Ok(Some(text))
    }

    /// Whether the image has a directory there.
    ///
    /// # Errors
    /// That cannot be told.
    pub(crate) fn has_directory(&self, path: &str) -> io::Result<bool> {
        let Some(found) = self.find(path)? else { return Ok(false) };
        Ok(FileType::from_raw_mode(fstat(&found)?.st_mode) == FileType::Directory)
    }

    fn find(&self, path: &str) -> io::Result<Option<OwnedFd>> {
        let path = path.trim_start_matches('/');
        for layer in &self.0 {
            match look(layer.as_fd(), path)? {
                Found::There(found) => return Ok(Some(found)),
                Found::Hidden => return Ok(None),
                Found::Below => {}
            }
        }
        Ok(None)
    }
}

fn look(layer: BorrowedFd<'_>, path: &str) -> io::Result<Found> {
    let mut opaque = false;
    for parent in Path::new(path).ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()) {
        match statat(layer, parent, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if is_whiteout(&stat) => return Ok(Found::Hidden),
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                opaque |= is_opaque(layer, parent)?;
            }
            // A link: what it leads to is looked for in this layer. Anything else covers what lower layers have.
            Ok(stat) => opaque |= FileType::from_raw_mode(stat.st_mode) != FileType::Symlink,
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    match openat2(
        layer,
        if path.is_empty() { "." } else { path },
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        resolve,
    ) {
        Ok(found) if is_whiteout(&fstat(&found)?) => Ok(Found::Hidden),
        Ok(found) => Ok(Found::There(found)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
            Ok(if opaque { Found::Hidden } else { Found::Below })
        }
        Err(e) => Err(e.into()),
    }
}

fn is_whiteout(stat: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn is_opaque(layer: BorrowedFd<'_>, path: &Path) -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(layer, path, flags, Mode::empty())?;
    let mut value = [0; 1];
    Ok(OPAQUE
        .iter()
        .any(|name| fgetxattr(&directory, *name, &mut value).is_ok_and(|n| n == 1) && value == *b"y"))
}

/// Opens a directory that is, or holds, layers.
pub(crate) fn open_lower(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(CWD, path, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink};

    /// Layers `0`, `1`, … in a directory, opened with the highest number on top.
    fn layers(count: usize, prepare: impl FnOnce(&Path)) -> (tempfile::TempDir, Layers) {
        let tmp = tempfile::tempdir().unwrap();
        let names: Vec<_> = (0..count).map(|n| n.to_string()).collect();
        for name in &names {
            fs::create_dir_all(tmp.path().join(name).join("etc")).unwrap();
        }
        prepare(tmp.path());
        let layers = Layers::open(open_lower(tmp.path()).unwrap().as_fd(), &names).unwrap();
        (tmp, layers)
    }

    fn whiteout(path: &Path) {
        rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    }

    #[test]
    fn the_uppermost_layer_speaks() {
        let (_tmp, layers) = layers(3, |at| {
            fs::write(at.join("0/etc/passwd"), "old").unwrap();
            fs::write(at.join("1/etc/passwd"), "new").unwrap();
            fs::write(at.join("0/etc/group"), "x").unwrap();
            whiteout(&at.join("2/etc/group"));
        });
        assert_eq!(layers.read("etc/passwd", 99).unwrap().unwrap(), b"new");
        assert_eq!(layers.read("/etc/group", 99).unwrap(), None);
        assert_eq!(layers.read("etc/shadow", 99).unwrap(), None);
        assert!(layers.read("etc/passwd", 2).is_err() && layers.read("etc", 99).is_err());
        assert!(layers.has_directory("/etc").unwrap() && layers.has_directory("/").unwrap());
        assert!(!layers.has_directory("etc/passwd").unwrap() && !layers.has_directory("/srv").unwrap());
    }

    #[test]
    fn what_a_layer_hides_stays_hidden() {
        let (_tmp, layers) = layers(2, |at| {
            for name in ["opaque", "gone", "file"] {
                fs::create_dir(at.join("0").join(name)).unwrap();
                fs::write(at.join("0").join(name).join("x"), "x").unwrap();
            }
            fs::create_dir(at.join("1/opaque")).unwrap();
            let directory = File::open(at.join("1/opaque")).unwrap();
            rustix::fs::fsetxattr(&directory, OPAQUE[1], b"y", rustix::fs::XattrFlags::empty()).unwrap();
            whiteout(&at.join("1/gone"));
            fs::write(at.join("1/file"), "").unwrap();
        });
        for path in ["opaque/x", "gone/x", "file/x"] {
            assert_eq!(layers.read(path, 9).unwrap(), None, "{path}");
        }
    }

    #[test]
    fn links_lead_nowhere_outside() {
        let (_tmp, layers) = layers(1, |at| {
            fs::write(at.join("outside"), "secret").unwrap();
            symlink("../../outside", at.join("0/etc/passwd")).unwrap();
            symlink("/etc/real", at.join("0/etc/group")).unwrap();
            fs::write(at.join("0/etc/real"), "inside").unwrap();
            symlink("loop", at.join("0/loop")).unwrap();
        });
        assert_eq!(layers.read("etc/passwd", 99).unwrap(), None);
        assert_eq!(layers.read("etc/group", 99).unwrap().unwrap(), b"inside");
        assert_eq!(layers.read("loop", 99).unwrap(), None);
    }
}
