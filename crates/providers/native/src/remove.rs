//! Removing directory trees that somebody hostile made: nested as deep as they liked, with any names, any permissions.
//!
//! No recursion and two open directories at most: whatever is a directory inside a subdirectory is moved up to the top
//! first, so that nothing is ever deeper than two levels below the handle that we hold.

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, renameat, unlinkat},
    io::Errno,
};
use std::{
    ffi::{CStr, CString},
    io,
    path::Path,
};

const OPEN: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOCTTY);

/// Names held in memory at a time.
const AT_ONCE: usize = 4096;

/// Removes `path`, a directory, and everything beneath it. Symbolic links are removed, never followed. Two callers at
/// once do no harm: what the other one removed is simply gone.
///
/// # Errors
/// Those of the file operations; `Ok` if it is not there.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    let top = match rustix::fs::open(path, OPEN, Mode::empty()) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        // A file or a link where a directory was expected.
        Err(Errno::NOTDIR | Errno::LOOP) => return ignore_gone(rustix::fs::unlink(path)),
        Err(e) => return Err(e.into()),
    };
    let mut moved = 0_u64;
    // Each round empties what it finds; what it finds next are directories that it moved up itself.
    loop {
        let entries = list(top.as_fd())?;
        if entries.is_empty() {
            break;
        }
        for (name, kind) in entries {
            remove_entry(top.as_fd(), &name, kind, &mut moved)?;
        }
    }
    drop(top);
    ignore_gone(rustix::fs::rmdir(path))
}

/// Removes one entry of `top`, moving the directories in it up.
fn remove_entry(top: BorrowedFd<'_>, name: &CStr, kind: FileType, moved: &mut u64) -> io::Result<()> {
    if unlink(top, name, kind)? {
        return Ok(());
    }
    let Some(directory) = open_child(top, name)? else { return Ok(()) };
    loop {
        let entries = list(directory.as_fd())?;
        if entries.is_empty() {
            break;
        }
        for (child, kind) in entries {
            if unlink(directory.as_fd(), &child, kind)? {
                continue;
            }
            // A name that is free: a tree that was left half removed may have some of these already.
            loop {
                let fresh = format!(".{moved}");
                *moved += 1;
                match rustix::fs::renameat_with(
                    directory.as_fd(),
                    child.as_c_str(),
                    top,
                    fresh.as_str(),
                    rustix::fs::RenameFlags::NOREPLACE,
                ) {
                    Err(Errno::EXIST) => {}
                    // Not every filesystem knows the flag; an empty directory of that name may be replaced.
                    Err(Errno::INVAL) => {
                        match renameat(directory.as_fd(), child.as_c_str(), top, fresh.as_str()) {
                            Err(Errno::EXIST | Errno::NOTEMPTY) => {}
                            result => break ignore_gone(result)?,
                        }
                    }
                    result => break ignore_gone(result)?,
                }
            }
        }
    }
    drop(directory);
    match unlinkat(top, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()), // filled again meanwhile: the next round comes by
        result => ignore_gone(result),
    }
}

/// Unlinks what is not a directory with content; false if it is one.
fn unlink(directory: BorrowedFd<'_>, name: &CStr, kind: FileType) -> io::Result<bool> {
    if kind != FileType::Directory {
        match unlinkat(directory, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {} // the file type is not reported by every filesystem
            result => return ignore_gone(result).map(|()| true),
        }
    }
    match unlinkat(directory, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        result => ignore_gone(result).map(|()| true),
    }
}

fn open_child(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<Option<OwnedFd>> {
    if !rustix::process::geteuid().is_root() {
        // Root is not held up by permission bits; whoever else owns the tree has to give himself access first.
        let _ = rustix::fs::chmodat(directory, name, Mode::RWXU, AtFlags::empty());
    }
    match openat(directory, name, OPEN, Mode::empty()) {
        Ok(child) => Ok(Some(child)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Entries of a directory, at most [`AT_ONCE`] of them: callers come back until there are none.
fn list(directory: BorrowedFd<'_>) -> io::Result<Vec<(CString, FileType)>> {
    let mut entries = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            entries.push((entry.file_name().to_owned(), entry.file_type()));
        }
        if entries.len() == AT_ONCE {
            break;
        }
    }
    Ok(entries)
}

fn ignore_gone(result: Result<(), Errno>) -> io::Result<()> {
    match result {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

    #[test]
    fn absent_files_and_links_are_fine() {
        let tmp = tempfile::tempdir().unwrap();
        remove_tree(&tmp.path().join("absent")).unwrap();
        fs::write(tmp.path().join("file"), "x").unwrap();
        remove_tree(&tmp.path().join("file")).unwrap();
        fs::create_dir(tmp.path().join("kept")).unwrap();
        fs::write(tmp.path().join("kept/file"), "x").unwrap();
        std::os::unix::fs::symlink(tmp.path().join("kept"), tmp.path().join("link")).unwrap();
        remove_tree(&tmp.path().join("link")).unwrap();
        assert!(tmp.path().join("kept/file").exists());
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_tree_deeper_than_any_path_or_stack_goes() {
        let tmp = tempfile::tempdir().unwrap();
        let tree = tmp.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let mut at = rustix::fs::open(&tree, OPEN, Mode::empty()).unwrap();
        for _ in 0..1_500 {
            rustix::fs::mkdirat(&at, "deeper", Mode::from_raw_mode(0o700)).unwrap();
            at = openat(&at, "deeper", OPEN, Mode::empty()).unwrap();
        }
        drop(at);
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }

    #[test]
    fn links_inside_are_removed_and_not_followed() {
        let tmp = tempfile::tempdir().unwrap();
        fs::create_dir_all(tmp.path().join("outside/dir")).unwrap();
        fs::create_dir_all(tmp.path().join("tree/a/b")).unwrap();
        for place in ["tree/link", "tree/a/link", "tree/a/b/link"] {
            std::os::unix::fs::symlink(tmp.path().join("outside"), tmp.path().join(place)).unwrap();
        }
        remove_tree(&tmp.path().join("tree")).unwrap();
        assert!(tmp.path().join("outside/dir").is_dir());
        assert!(!tmp.path().join("tree").exists());
    }

    #[test]
    fn more_entries_than_are_listed_at_once_go() {
        let tmp = tempfile::tempdir().unwrap();
        let tree = tmp.path().join("tree");
        fs::create_dir_all(tree.join("wide")).unwrap();
        for n in 0..AT_ONCE + 100 {
            fs::write(tree.join(format!("wide/{n}")), "").unwrap();
        }
        for n in 0..100 {
            fs::create_dir_all(tree.join(format!("wide/d{n}/e"))).unwrap();
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }

    #[test]
    fn names_that_we_use_ourselves_are_no_obstacle() {
        let tmp = tempfile::tempdir().unwrap();
        let tree = tmp.path().join("tree");
        for name in [".0/.1/.2/.0", ".1/x/y", "a/.0/b/c", "a/.3/.0/d"] {
            fs::create_dir_all(tree.join(name)).unwrap();
            fs::write(tree.join(name).join("file"), "x").unwrap();
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]
        #[test]
        fn any_tree_goes(paths in proptest::collection::vec(
            (proptest::collection::vec("[a-c.\u{1}-\u{9}*\\-\n]{1,5}", 1..6), 0_u32..0o1000), 0..20,
        )) {
            let tmp = tempfile::tempdir().unwrap();
            let tree = tmp.path().join("tree");
            fs::create_dir(&tree).unwrap();
            for (parts, mode) in paths {
                let parts = parts.iter().filter(|p| !matches!(p.as_str(), "." | ".."));
                let path = parts.fold(tree.clone(), |path: PathBuf, part| path.join(part));
                let _ = fs::create_dir_all(&path);
                let _ = fs::write(path.join("file"), "x");
                let _ = fs::set_permissions(&path, fs::Permissions::from_mode(mode));
            }
            remove_tree(&tree).unwrap();
            prop_assert!(!tree.exists());
        }
    }
}
