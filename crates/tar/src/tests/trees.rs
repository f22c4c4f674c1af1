//! A tree that is packed and unpacked is the same tree.

use super::*;
use proptest::prelude::*;
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{MetadataExt, PermissionsExt, symlink},
    },
    path::PathBuf,
};

/// What is compared: mode, time, and content or target; directories of the same inode by their first path.
type Things = BTreeMap<PathBuf, (u32, (i64, i64), Vec<u8>, PathBuf)>;

fn things(top: &Path) -> Things {
    let mut found = Things::new();
    let mut inodes = BTreeMap::new();
    let mut open = vec![PathBuf::new()];
    while let Some(directory) = open.pop() {
        let mut names: Vec<_> =
            fs::read_dir(top.join(&directory)).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        for name in names {
            let path = directory.join(name);
            let full = top.join(&path);
            let metadata = fs::symlink_metadata(&full).unwrap();
            let content = match metadata.file_type() {
                kind if kind.is_file() => fs::read(&full).unwrap(),
                kind if kind.is_symlink() => fs::read_link(&full).unwrap().into_os_string().into_vec(),
                _ => Vec::new(),
            };
            if metadata.is_dir() {
                open.push(path.clone());
            }
            let same = inodes.entry(metadata.ino()).or_insert_with(|| path.clone()).clone();
            let mode = if metadata.is_symlink() { 0 } else { metadata.mode() };
            found.insert(path, (mode, (metadata.mtime(), metadata.mtime_nsec()), content, same));
        }
    }
    found
}

#[derive(Debug, Clone)]
enum Node {
    File(Vec<u8>, u32),
    Link(String),
    Same(usize),
    Directory(u32),
}

fn node() -> impl Strategy<Value = Node> {
    prop_oneof![
        (proptest::collection::vec(any::<u8>(), 0..3000), 0..=0o777_u32)
            .prop_map(|(d, m)| Node::File(d, m | 0o400)),
        "[a-z./]{1,30}".prop_map(Node::Link),
        (0..8_usize).prop_map(Node::Same),
        (0..=0o7777_u32).prop_map(|m| Node::Directory(m | 0o700)),
    ]
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = (1..=255_u8).prop_filter("no slash", |byte| *byte != b'/');
    proptest::collection::vec(byte, 1..30).prop_filter("a name", |name| name != b"." && name != b"..")
}

/// Makes the nodes, each below one of the directories that are there.
fn make(top: &Path, nodes: &[(Vec<u8>, usize, Node)]) {
    let (mut directories, mut files) = (vec![(top.to_owned(), 0o755)], Vec::new());
    for (number, (name, place, node)) in nodes.iter().enumerate() {
        let name = [name.as_slice(), number.to_string().as_bytes()].concat();
        let path = directories[place % directories.len()].0.join(OsStr::from_bytes(&name));
        match node {
            Node::File(data, mode) => {
                fs::write(&path, data).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
                files.push(path);
            }
            Node::Link(target) => symlink(target, path).unwrap(),
            Node::Same(which) if !files.is_empty() => {
                fs::hard_link(&files[which % files.len()], path).unwrap();
            }
            Node::Same(_) => {}
            Node::Directory(mode) => {
                fs::create_dir(&path).unwrap();
                directories.push((path, *mode));
            }
        }
    }
    for (path, mode) in directories.iter().rev() {
        fs::set_permissions(path, fs::Permissions::from_mode(*mode)).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn any_tree_survives(
        nodes in proptest::collection::vec((name(), 0..9_usize, node()), 0..14), size in 1..5000_usize,
    ) {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        make(from.path(), &nodes);
        let archive = packed(from.path());
        unpacked(&archive, to.path(), size, OPTIONS).unwrap();
        let (before, after) = (things(from.path()), things(to.path()));
        prop_assert_eq!(&before, &after);
        // Once more over what is there: nothing is lost and nothing is added.
        unpacked(&archive, to.path(), size, OPTIONS).unwrap();
        let again = things(to.path());
        prop_assert!(before.iter().map(|(path, thing)| (path, &thing.2)).eq(again.iter().map(|(p, t)| (p, &t.2))));
    }
}

#[test]
fn pipes_and_sockets_are_left_out_and_a_new_top_gets_mode_and_time() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let _socket = std::os::unix::net::UnixListener::bind(from.path().join("socket")).unwrap();
    let fifo = from.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
    fs::write(from.path().join("file"), "x").unwrap();
    fs::set_permissions(from.path(), fs::Permissions::from_mode(0o751)).unwrap();
    let archive = packed(from.path());
    let mut unpacker = Unpacker::new(open(to.path()), true, OPTIONS);
    unpacker.push(&archive).unwrap();
    let summary = unpacker.finish().unwrap();
    assert_eq!((summary.files, summary.bytes, summary.directories), (1, 1, 0));
    let metadata = |path: &Path| fs::metadata(path).unwrap();
    let (a, b) = (metadata(from.path()), metadata(to.path()));
    assert_eq!((a.mode(), a.mtime(), a.mtime_nsec()), (b.mode(), b.mtime(), b.mtime_nsec()));
    // One that was there before keeps them.
    fs::set_permissions(to.path(), fs::Permissions::from_mode(0o700)).unwrap();
    unpacked(&archive, to.path(), 1 << 20, OPTIONS).unwrap();
    assert_eq!(metadata(to.path()).mode() & 0o777, 0o700);
}

#[test]
fn a_file_that_shrinks_ends_the_archive_and_one_that_grows_is_cut() {
    for grows in [true, false] {
        let from = tempfile::tempdir().unwrap();
        let file = from.path().join("file");
        fs::write(&file, vec![1; 300_000]).unwrap();
        let mut packer = Packer::directory(open(from.path()), |_| true).unwrap();
        let mut all = packer.piece().unwrap().unwrap();
        fs::write(&file, vec![1; if grows { 400_000 } else { 100 }]).unwrap();
        let end = loop {
            match packer.piece() {
                Ok(Some(piece)) => all.extend_from_slice(&piece),
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        let to = tempfile::tempdir().unwrap();
        let unpacked = unpacked(&all, to.path(), 9999, OPTIONS);
        if grows {
            assert_eq!(end, None);
            unpacked.unwrap();
            assert_eq!(fs::read(to.path().join("file")).unwrap(), vec![1; 300_000]);
        } else {
            assert!(end.unwrap().to_string().contains("became shorter"));
            unpacked.unwrap_err();
            assert!(!to.path().join("file").exists());
        }
    }
}

#[test]
fn no_depth_exhausts_anything() {
    let from = tempfile::tempdir().unwrap();
    let mut directory = open(from.path());
    for _ in 0..300 {
        rustix::fs::mkdirat(&directory, "d", Mode::RWXU).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        directory = rustix::fs::openat(&directory, "d", flags, Mode::empty()).unwrap();
    }
    let mut packer = Packer::directory(open(from.path()), |_| true).unwrap();
    let error = loop {
        match packer.piece() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("too deep a tree was packed"),
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("too many directories"), "{error}");
}

#[test]
fn one_file_is_an_archive_of_one_entry() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = from.path().join("f");
    fs::write(&file, vec![9; 70_000]).unwrap();
    let mut packer = Packer::file(fs::File::open(&file).unwrap().into(), b"other").unwrap();
    let mut all = Vec::new();
    while let Some(piece) = packer.piece().unwrap() {
        all.extend_from_slice(&piece);
    }
    unpacked(&all, to.path(), 7000, OPTIONS).unwrap();
    assert_eq!(fs::read(to.path().join("other")).unwrap(), vec![9; 70_000]);
}
