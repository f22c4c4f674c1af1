//! The upper layer of a sandbox's root, filled before it is mounted: mount points, a home, a place to work, a user.
//!
//! Nothing here follows a path of the image: the image may be anybody's, and its links may point anywhere. What is made
//! in the upper layer hides whatever the image has in the same place, unless both are directories.

use crate::failure::{Doing, Failure};
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, fstat, openat, openat2},
    io::Errno,
};
use std::{
    fs::File,
    io::{self, Read, Write},
};

/// The sandbox user and group.
pub(crate) const USER: u32 = 1000;
/// Directories of every sandbox: name, mode, owner.
const DIRECTORIES: &[(&str, u32, u32)] = &[
    ("dev", 0o755, 0),
    ("etc", 0o755, 0),
    ("home", 0o755, 0),
    ("home/sandbox", 0o755, USER),
    ("proc", 0o755, 0),
    ("sys", 0o755, 0),
    ("tmp", 0o1777, 0),
    ("workspace", 0o755, USER),
];
/// Longest user database that is completed; a longer one is used as it is.
const MAX_DATABASE: u64 = 1 << 20;

/// Fills `upper`, an empty directory, for a sandbox called `name` with an image in `lower`. `base` is its root's id on
/// the host; without, everything belongs to whoever does this.
pub(super) fn fill(
    upper: BorrowedFd<'_>,
    lower: BorrowedFd<'_>,
    name: &str,
    base: Option<u32>,
    resolv_conf: Option<&str>,
) -> Result<(), Failure> {
    let upper = Upper { directory: upper, base };
    let prepare = || -> rustix::io::Result<()> {
        rustix::fs::fchown(upper.directory, upper.uid(0), upper.gid(0))?;
        rustix::fs::fchmod(upper.directory, mode(0o755))
    };
    prepare().doing(|| "prepare the root directory".to_owned())?;
    for (path, bits, owner) in DIRECTORIES {
        let make = || -> rustix::io::Result<()> {
            let directory = upper.directory;
            rustix::fs::mkdirat(directory, *path, mode(*bits))?;
            let ids = (upper.uid(*owner), upper.gid(*owner));
            rustix::fs::chownat(directory, *path, ids.0, ids.1, AtFlags::SYMLINK_NOFOLLOW)?;
            // Again: the mask took bits away, and a change of owner may.
            rustix::fs::chmodat(directory, *path, mode(*bits), AtFlags::empty())
        };
        make().doing(|| format!("make /{path}"))?;
    }
    upper.write("etc/hostname", format!("{name}\n").as_bytes())?;
    let hosts =
        format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{name}\n");
    upper.write("etc/hosts", hosts.as_bytes())?;
    if let Some(text) = resolv_conf {
        upper.write("etc/resolv.conf", text.as_bytes())?;
    }
    upper.add_user(lower)
}

/// The directory that is filled, and what id 0 is in it.
struct Upper<'fd> {
    directory: BorrowedFd<'fd>,
    base: Option<u32>,
}

/// Whether a line of a user or group database carries this number.
fn has_number(database: &[u8], number: u32) -> bool {
    let number = number.to_string();
    database.split(|b| *b == b'\n').any(|line| line.split(|b| *b == b':').nth(2) == Some(number.as_bytes()))
}

/// Reads a small regular file of the image, links resolved inside it. `None` if it has none.
fn read(lower: BorrowedFd<'_>, path: &str) -> io::Result<Option<Vec<u8>>> {
    // Not to wait for a pipe that calls itself /etc/passwd.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let file = match openat2(lower, path, flags, Mode::empty(), resolve) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let stat = fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile
        || u64::try_from(stat.st_size).unwrap_or(u64::MAX) > MAX_DATABASE
    {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    let mut text = Vec::new();
    File::from(file).take(MAX_DATABASE).read_to_end(&mut text)?;
    Ok(Some(text))
}

impl Upper<'_> {
    fn uid(&self, id: u32) -> Option<Uid> {
        self.base.map(|base| Uid::from_raw(base + id))
    }

    fn gid(&self, id: u32) -> Option<Gid> {
        self.base.map(|base| Gid::from_raw(base + id))
    }

    /// Adds the sandbox user to an image that has nobody of that number.
    fn add_user(&self, lower: BorrowedFd<'_>) -> Result<(), Failure> {
        let databases = [
            (
                "etc/passwd",
                "root:x:0:0:root:/root:/bin/sh\n",
                "sandbox:x:1000:1000:sandbox:/home/sandbox:/bin/sh\n",
            ),
            ("etc/group", "root:x:0:\n", "sandbox:x:1000:\n"),
        ];
        for (path, fresh, line) in databases {
            let text = match read(lower, path) {
                Ok(Some(text)) => text,
                Ok(None) => fresh.as_bytes().to_vec(),
                // Too long, or nothing that we can read: the image has its reasons, and numbers work without names.
                Err(_) => continue,
            };
            if !has_number(&text, USER) {
                let separator: &[u8] = if text.is_empty() || text.ends_with(b"\n") { b"" } else { b"\n" };
                self.write(path, &[&text, separator, line.as_bytes()].concat())?;
            }
        }
        Ok(())
    }

    fn write(&self, path: &str, bytes: &[u8]) -> Result<(), Failure> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let write = || -> io::Result<()> {
            let file: OwnedFd = openat(self.directory, path, flags, mode(0o644))?;
            rustix::fs::fchown(&file, self.uid(0), self.gid(0))?;
            rustix::fs::fchmod(&file, mode(0o644))?;
            File::from(file).write_all(bytes)
        };
        write().doing(|| format!("write /{path}"))
    }
}

/// Opens a directory that was made by us.
pub(super) fn open_dir(at: impl AsFd, path: &str) -> rustix::io::Result<OwnedFd> {
    openat(at, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn mode(bits: u32) -> Mode {
    Mode::from_raw_mode(bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs,
        os::unix::fs::{MetadataExt, symlink},
        path::Path,
    };

    const BASE: u32 = 0x7000_0000;

    fn filled(prepare: impl FnOnce(&Path)) -> tempfile::TempDir {
        let tmp = tempfile::tempdir().unwrap();
        for directory in ["lower", "upper"] {
            fs::create_dir(tmp.path().join(directory)).unwrap();
        }
        prepare(&tmp.path().join("lower"));
        let open = |name: &str| open_dir(rustix::fs::CWD, tmp.path().join(name).to_str().unwrap());
        let (upper, lower) = (
            rustix::fs::open(tmp.path().join("upper"), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
                .unwrap(),
            open("lower").unwrap(),
        );
        fill(upper.as_fd(), lower.as_fd(), "sb-1", Some(BASE), Some("nameserver 1.1.1.1\n")).unwrap();
        tmp
    }

    fn text(tmp: &tempfile::TempDir, path: &str) -> String {
        fs::read_to_string(tmp.path().join("upper").join(path)).unwrap()
    }

    #[test]
    fn an_empty_image_gets_a_user_a_home_and_mount_points() {
        let tmp = filled(|_| {});
        assert!(text(&tmp, "etc/passwd").contains("\nsandbox:x:1000:1000:"));
        assert!(text(&tmp, "etc/group").contains("\nsandbox:x:1000:"));
        assert!(text(&tmp, "etc/hosts").contains("\tsb-1\n"));
        let workspace = fs::metadata(tmp.path().join("upper/workspace")).unwrap();
        let user = BASE + 1000;
        assert_eq!((workspace.uid(), workspace.gid(), workspace.mode() & 0o7777), (user, user, 0o755));
        for owned_by_root in ["upper", "upper/etc", "upper/etc/passwd", "upper/tmp"] {
            let metadata = fs::metadata(tmp.path().join(owned_by_root)).unwrap();
            assert_eq!((metadata.uid(), metadata.gid()), (BASE, BASE), "{owned_by_root}");
        }
        assert_eq!(fs::metadata(tmp.path().join("upper/tmp")).unwrap().mode() & 0o7777, 0o1777);
        assert!(tmp.path().join("upper/proc").is_dir() && tmp.path().join("upper/dev").is_dir());
    }

    #[test]
    fn the_images_own_users_stay() {
        let tmp = filled(|lower| {
            fs::create_dir(lower.join("etc")).unwrap();
            fs::write(lower.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nbob:x:1001:1001::/:/bin/sh")
                .unwrap();
            fs::write(lower.join("etc/group"), "node:x:1000:\n").unwrap();
        });
        let passwd = text(&tmp, "etc/passwd");
        assert_eq!(passwd.lines().count(), 3);
        assert_eq!(text(&tmp, "etc/resolv.conf"), "nameserver 1.1.1.1\n");
        assert!(passwd.contains("\nbob:x:1001:1001::/:/bin/sh\nsandbox:x:1000:"), "{passwd}");
        assert!(!tmp.path().join("upper/etc/group").exists(), "the image has this number already");
    }

    #[test]
    fn links_of_the_image_lead_nowhere_outside_it() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("passwd"), "secret:x:1:1::/:/bin/sh\n").unwrap();
        let target = outside.path().to_owned();
        let tmp = filled(|lower| {
            symlink(&target, lower.join("etc")).unwrap();
            symlink(&target, lower.join("tmp")).unwrap();
            symlink(&target, lower.join("workspace")).unwrap();
        });
        assert!(!text(&tmp, "etc/passwd").contains("secret"));
        assert!(!fs::symlink_metadata(tmp.path().join("upper/tmp")).unwrap().is_symlink());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_pipe_that_calls_itself_passwd_is_left_alone() {
        let tmp = filled(|lower| {
            fs::create_dir(lower.join("etc")).unwrap();
            let name = lower.join("etc/passwd");
            rustix::fs::mknodat(rustix::fs::CWD, name, FileType::Fifo, mode(0o644), 0).unwrap();
        });
        assert!(!tmp.path().join("upper/etc/passwd").exists());
    }

    #[test]
    fn numbers_are_compared_as_a_whole() {
        assert!(has_number(b"a:x:1000:1:", 1000));
        assert!(!has_number(b"a:x:10000:1000:1000", 1000));
        assert!(!has_number(b"1000:1000\n\n:::", 1000));
    }
}
