//! Opening beneath a directory: by `openat2` where the kernel has it, else component by component.
//!
//! gVisor has no `openat2`, and some seccomp profiles refuse it. The walk gives the same answers: every component is opened
//! through the descriptor of the one before and never through a symbolic link; links are read and walked as text, and `..`
//! goes back along the descriptors that were passed, so that nothing which is renamed meanwhile leads out.

use super::resolve::is_proc;
use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2, readlinkat},
    io::Errno,
};
use std::{os::fd::OwnedFd, sync::OnceLock};

/// Symbolic links that are followed in one path, as in the kernel.
const LINKS: usize = 40;
/// Tries when a link takes a file's place between two looks.
const RACES: usize = 32;

/// How a component in the middle of a path is opened. Without `DIRECTORY`: with it, gVisor follows a link in spite of
/// `NOFOLLOW`.
const WAY: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What symbolic links mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Links {
    /// They are followed as if the directory were the root of everything; magic ones are refused.
    InRoot,
    /// Each is refused, and so is what leads above the directory.
    Refused,
}

/// Opens `path` as if `root` were `/`: neither links nor `..` lead out of it, and magic links lead nowhere.
///
/// # Errors
/// The kernel's; `LOOP` for a magic link.
pub(crate) fn in_root(root: &OwnedFd, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    if !has_openat2() {
        return walk(root, path, flags, mode, Links::InRoot);
    }
    openat2(root, path, flags | OFlags::CLOEXEC, mode, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// Opens `path` beneath `directory` where no part of it is a symbolic link.
///
/// # Errors
/// The kernel's; `LOOP` for a symbolic link, `XDEV` for what leads above `directory`.
pub(crate) fn without_links(directory: &OwnedFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    if !has_openat2() {
        return walk(directory, path, flags, Mode::empty(), Links::Refused);
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    openat2(directory, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn has_openat2() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat2(rustix::fs::CWD, "/", flags, Mode::empty(), resolve).is_ok()
    })
}

fn walk(root: &OwnedFd, path: &[u8], flags: OFlags, mode: Mode, links: Links) -> Result<OwnedFd, Errno> {
    let components = |path: &[u8]| -> Vec<Vec<u8>> {
        path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).rev().map(<[u8]>::to_vec).collect()
    };
    let mut passed: Vec<OwnedFd> = Vec::new();
    let mut left = components(path);
    let (mut followed, mut races) = (0, 0);
    while let Some(name) = left.pop() {
        match &*name {
            b"." => continue,
            b".." if passed.pop().is_none() && links == Links::Refused => return Err(Errno::XDEV),
            b".." => continue,
            _ => {}
        }
        let here = passed.last().unwrap_or(root);
        let last = left.is_empty();
        let way = || openat(here, &*name, WAY, Mode::empty()).and_then(directory);
        let opened = if last && flags.contains(OFlags::DIRECTORY | OFlags::NOFOLLOW) {
            way().and_then(|way| openat(way, c".", flags | OFlags::CLOEXEC, mode))
        } else if last {
            openat(here, &*name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, mode)
        } else {
            way()
        };
        // A descriptor of a link itself is what was asked for only with `NOFOLLOW`.
        let itself = last && flags.contains(OFlags::NOFOLLOW);
        let may_be_link = match &opened {
            Ok(_) => last && flags.contains(OFlags::PATH) && !itself,
            Err(Errno::LOOP | Errno::NOTDIR) => !itself,
            Err(_) => false,
        };
        let target = match may_be_link.then(|| readlinkat(here, &*name, Vec::new())) {
            Some(Ok(target)) => target.into_bytes(),
            Some(Err(Errno::INVAL)) if matches!(opened, Err(Errno::LOOP)) && races < RACES => {
                // It was a link when it was opened and is none now.
                races += 1;
                left.push(name);
                continue;
            }
            _ if last => return opened,
            _ => {
                passed.push(opened?);
                continue;
            }
        };
        followed += 1;
        // A magic link reads as a path or as a name like `pipe:[1]`; the links of /proc that are none are relative names.
        let magic = target.first() == Some(&b'/') && is_proc(here)?;
        if links == Links::Refused || followed > LINKS || magic {
            return Err(Errno::LOOP);
        }
        if target.first() == Some(&b'/') {
            passed.clear();
        }
        left.extend(components(&target));
    }
    openat(passed.last().unwrap_or(root), c".", flags | OFlags::CLOEXEC, mode)
}

/// The same if it is a directory, else what the kernel says when one is asked for.
fn directory(opened: OwnedFd) -> Result<OwnedFd, Errno> {
    match FileType::from_raw_mode(fstat(&opened)?.st_mode) {
        FileType::Directory => Ok(opened),
        _ => Err(Errno::NOTDIR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::fs::{fstat, open};
    use std::{fs, os::unix::fs::symlink};

    /// A small tree with every kind of link, and a directory beside it that none may reach.
    fn tree() -> (tempfile::TempDir, OwnedFd) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir(directory.path().join("outside")).unwrap();
        fs::write(directory.path().join("outside/f"), "secret").unwrap();
        fs::write(root.join("a/f"), "f").unwrap();
        for (target, name) in [
            ("a/b", "l"),
            ("/a", "m"),
            ("../../outside", "a/o"),
            ("loop", "loop"),
            ("nowhere", "d"),
            ("..", "a/b/u"),
            ("f", "a/g"),
            ("/", "r"),
        ] {
            symlink(target, root.join(name)).unwrap();
        }
        let handle = open(&root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        (directory, handle)
    }

    fn seen(result: Result<OwnedFd, Errno>) -> Result<(u64, u64), Errno> {
        result.map(|file| fstat(&file).map(|stat| (stat.st_dev, stat.st_ino)).unwrap())
    }

    fn agree(root: &OwnedFd, path: &str, flags: OFlags) {
        for (links, resolve) in [
            (Links::InRoot, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS),
            (Links::Refused, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS),
        ] {
            let kernel = seen(openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve));
            let ours = seen(walk(root, path.as_bytes(), flags, Mode::empty(), links));
            assert_eq!(ours, kernel, "{path:?} {flags:?} {links:?}");
        }
    }

    #[test]
    fn a_magic_link_is_refused() {
        let proc = open("/proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        for path in ["self/root", "self/cwd/x", "self/exe"] {
            let result = walk(&proc, path.as_bytes(), OFlags::PATH, Mode::empty(), Links::InRoot);
            assert_eq!(result.unwrap_err(), Errno::LOOP, "{path}");
        }
        assert!(walk(&proc, b"self/status", OFlags::PATH, Mode::empty(), Links::InRoot).is_ok());
    }

    #[test]
    fn a_file_is_made_where_the_last_link_leads() {
        let (directory, root) = tree();
        let flags = OFlags::WRONLY | OFlags::CREATE;
        walk(&root, b"d", flags, Mode::from_raw_mode(0o600), Links::InRoot).unwrap();
        assert!(directory.path().join("root/nowhere").exists());
        let exclusive = flags | OFlags::EXCL | OFlags::NOFOLLOW;
        let again = walk(&root, b"d", exclusive, Mode::empty(), Links::InRoot);
        assert_eq!(again.unwrap_err(), Errno::EXIST);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
        #[test]
        fn both_ways_agree(
            parts in proptest::collection::vec(
                prop_oneof![Just("a"), Just("b"), Just("f"), Just("l"), Just("m"), Just("o"), Just("loop"), Just("d"),
                    Just("u"), Just("g"), Just("r"), Just(".."), Just("."), Just("none"), Just("outside")], 1..7),
            flags in prop_oneof![
                Just(OFlags::PATH), Just(OFlags::RDONLY), Just(OFlags::PATH | OFlags::NOFOLLOW),
                Just(OFlags::PATH | OFlags::DIRECTORY), Just(OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW)],
        ) {
            thread_local! { static TREE: (tempfile::TempDir, OwnedFd) = tree(); }
            TREE.with(|(_, root)| agree(root, &parts.join("/"), flags));
        }
    }
}
