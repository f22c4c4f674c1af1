//! The upper layer of a sandbox's root, filled before it is mounted: mount points, a home, a place to work, a user.
//!
//! Nothing here follows a path of the image: the image may be anybody's, and its links may point anywhere. What is made
//! in the upper layer hides whatever the image has in the same place, unless both are directories.

use super::protocol::Setup;
use crate::{
    failure::{Doing, Failure},
    image::{
        layers::Layers,
        profile::{HOME, MAX_DATABASE, SandboxUser},
    },
};
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{AtFlags, Gid, Mode, OFlags, Uid, openat},
};
use std::{
    fs::File,
    io::{self, Write},
};

/// Directories of every sandbox: name, mode, whether the sandbox user owns it.
const DIRECTORIES: &[(&str, u32, bool)] = &[
    ("dev", 0o755, false),
    ("etc", 0o755, false),
    ("home", 0o755, false),
    ("proc", 0o755, false),
    ("sys", 0o755, false),
    ("tmp", 0o1777, false),
    ("workspace", 0o755, true),
];

/// Fills `upper`, an empty directory, for the sandbox that `setup` describes, whose image has these layers. `base` is its
/// root's id on the host; without, everything belongs to whoever does this.
pub(super) fn fill(
    upper: BorrowedFd<'_>,
    image: &Layers,
    setup: &Setup,
    base: Option<u32>,
) -> Result<(), Failure> {
    let (name, user) = (setup.id.as_str(), &setup.user);
    let upper = Upper { directory: upper, base };
    let prepare = || -> rustix::io::Result<()> {
        rustix::fs::fchown(upper.directory, upper.uid(0), upper.gid(0))?;
        rustix::fs::fchmod(upper.directory, mode(0o755))
    };
    prepare().doing(|| "prepare the root directory".to_owned())?;
    // An image's own home is left as it is.
    let home = (user.home == HOME).then_some(("home/sandbox", 0o755, true));
    for (path, bits, owned) in DIRECTORIES.iter().copied().chain(home) {
        let make = || -> rustix::io::Result<()> {
            let directory = upper.directory;
            rustix::fs::mkdirat(directory, path, mode(bits))?;
            let (uid, gid) = if owned { (user.uid, user.gid) } else { (0, 0) };
            let ids = (upper.uid(uid), upper.gid(gid));
            rustix::fs::chownat(directory, path, ids.0, ids.1, AtFlags::SYMLINK_NOFOLLOW)?;
            // Again: the mask took bits away, and a change of owner may.
            rustix::fs::chmodat(directory, path, mode(bits), AtFlags::empty())
        };
        make().doing(|| format!("make /{path}"))?;
    }
    upper.write("etc/hostname", format!("{name}\n").as_bytes())?;
    let hosts =
        format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{name}\n");
    upper.write("etc/hosts", hosts.as_bytes())?;
    if let Some(text) = &setup.resolv_conf {
        upper.write("etc/resolv.conf", text.as_bytes())?;
    }
    upper.add_user(image, user)
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

impl Upper<'_> {
    fn uid(&self, id: u32) -> Option<Uid> {
        self.base.map(|base| Uid::from_raw(base + id))
    }

    fn gid(&self, id: u32) -> Option<Gid> {
        self.base.map(|base| Gid::from_raw(base + id))
    }

    /// Adds the sandbox user to an image that has nobody of that number.
    fn add_user(&self, image: &Layers, user: &SandboxUser) -> Result<(), Failure> {
        let SandboxUser { uid, gid, name, home } = user;
        let databases = [
            (
                "etc/passwd",
                "root:x:0:0:root:/root:/bin/sh\n",
                *uid,
                format!("{name}:x:{uid}:{gid}:{name}:{home}:/bin/sh\n"),
            ),
            ("etc/group", "root:x:0:\n", *gid, format!("{name}:x:{gid}:\n")),
        ];
        for (path, fresh, number, line) in databases {
            let text = match image.read(path, MAX_DATABASE) {
                Ok(Some(text)) => text,
                Ok(None) => fresh.as_bytes().to_vec(),
                // Too long, or nothing that we can read: the image has its reasons, and numbers work without names.
                Err(_) => continue,
            };
            if !has_number(&text, number) {
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
        let open = |name: &str| open_dir(rustix::fs::CWD, tmp.path().join(name).to_str().unwrap()).unwrap();
        let image = Layers::open(open("lower").as_fd(), &[]).unwrap();
        let resolv_conf = Some("nameserver 1.1.1.1\n".to_owned());
        let setup = Setup { resolv_conf, ..Setup::example(false, false) };
        fill(open("upper").as_fd(), &image, &setup, Some(BASE)).unwrap();
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
            rustix::fs::mknodat(rustix::fs::CWD, name, rustix::fs::FileType::Fifo, mode(0o644), 0).unwrap();
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
