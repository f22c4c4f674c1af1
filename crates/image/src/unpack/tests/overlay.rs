//! Layers stacked by the kernel show what the model says.

use super::{
    super::testing::{Archive, Thing, things},
    super::unpack,
    Limits,
    model::*,
};
use proptest::prelude::*;
use rustix::{
    fs::FileType,
    mount::{MountFlags, UnmountFlags},
};
use std::{
    collections::{BTreeMap, HashMap},
    ffi::CString,
    fs,
    path::{Path, PathBuf},
};

/// Something mounted for as long as this lives.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    /// A filesystem of this kind at `mnt` in `directory`.
    pub(crate) fn new(directory: &Path, kind: &str, options: &str) -> Self {
        let at = directory.join("mnt");
        fs::create_dir(&at).unwrap();
        let options = CString::new(options).unwrap();
        rustix::mount::mount(kind, &at, kind, MountFlags::empty(), options.as_c_str()).unwrap();
        Self(at)
    }

    /// An overlay of these layers, lowest first, as runtimes mount it.
    pub(crate) fn overlay(directory: &Path, layers: &[PathBuf]) -> Self {
        for name in ["upper", "work"] {
            fs::create_dir(directory.join(name)).unwrap();
        }
        let lower: Vec<_> = layers.iter().rev().map(|l| l.to_str().unwrap()).collect();
        let (lower, at) = (lower.join(":"), directory.display());
        Self::new(
            directory,
            "overlay",
            &format!("lowerdir={lower},upperdir={at}/upper,workdir={at}/work,index=off,metacopy=off"),
        )
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

fn name() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "c"]).prop_map(str::to_owned)
}

fn path() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(name(), 1..4)
}

fn step() -> impl Strategy<Value = Step> {
    let targets = vec!["a", "b/c", "../b", "/c", "/a/b", "..", "nowhere/else"];
    prop_oneof![
        6 => (path(), any::<u8>()).prop_map(|(path, content)| Step::File(path, content)),
        4 => (path(), any::<bool>()).prop_map(|(path, open)| Step::Directory(path, open)),
        2 => (path(), prop::sample::select(targets)).prop_map(|(path, to)| Step::Link(path, to.to_owned())),
        3 => (path(), path()).prop_map(|(path, to)| Step::HardLink(path, to)),
        4 => path().prop_map(Step::Whiteout),
        2 => prop::collection::vec(name(), 0..3).prop_map(Step::Opaque),
    ]
}

/// What the model says is there, by path.
fn flat(directory: &Directory, at: &Path, all: &mut BTreeMap<PathBuf, Node>) {
    for (name, node) in &directory.children {
        let path = at.join(name);
        if let Node::Directory(child) = node {
            flat(child, &path, all);
        }
        all.insert(path, node.clone());
    }
}

fn compare(expected: &BTreeMap<PathBuf, Node>, found: &BTreeMap<PathBuf, Thing>) {
    assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
    let mut files: HashMap<usize, &Path> = HashMap::new();
    for (path, node) in expected {
        let thing = &found[path];
        let is = (FileType::from_raw_mode(thing.mode), thing.content.as_slice());
        match node {
            Node::Directory(directory) => {
                assert_eq!(is.0, FileType::Directory, "{}", path.display());
                let mode = if directory.open { 0o777 } else { 0o755 };
                assert_eq!(thing.mode & 0o7777, mode, "{}", path.display());
            }
            Node::File(content, _) => {
                assert_eq!(is, (FileType::RegularFile, &[*content][..]), "{}", path.display());
            }
            Node::Link(target, _) => {
                assert_eq!(is, (FileType::Symlink, target.as_bytes()), "{}", path.display());
            }
            Node::Whiteout => panic!("a whiteout at {}", path.display()),
        }
        if let Node::File(_, number) | Node::Link(_, number) = node {
            let first = *files.entry(*number).or_insert(path);
            assert_eq!(thing.same_as, first, "{}", path.display());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn stacked_layers_are_what_the_model_says(layers in prop::collection::vec(prop::collection::vec(step(), 0..12), 1..5)) {
        let tmp = tempfile::tempdir().unwrap();
        let mut expected = Directory::default();
        let (mut directories, mut files) = (Vec::new(), 0);
        for (number, steps) in layers.iter().enumerate() {
            let mut layer = Layer::new(files);
            let mut archive = Archive::default();
            for step in steps {
                // What the model refuses has to be refused here as well, and is left out then.
                let mut tried = layer.clone();
                let entry = written(archive.clone(), step);
                if tried.step(step).is_ok() {
                    (layer, archive) = (tried, entry);
                } else {
                    let into = tempfile::tempdir().unwrap();
                    prop_assert!(unpack(entry.end().as_slice(), into.path(), &Limits::default()).is_err(), "{step:?}");
                }
            }
            files = layer.files();
            let into = tmp.path().join(number.to_string());
            fs::create_dir(&into).unwrap();
            let unpacked = unpack(archive.end().as_slice(), &into, &Limits::default()).unwrap();
            if unpacked.opaque {
                directories.clear();
            }
            prop_assert_eq!(unpacked.opaque, layer.top.opaque);
            directories.push(into.join("fs"));
            expected = merged(&expected, &layer.top);
        }
        let mounted = Mounted::overlay(tmp.path(), &directories);
        let mut all = BTreeMap::new();
        flat(&expected, Path::new(""), &mut all);
        compare(&all, &things(mounted.path()));
    }
}

/// What the kernel would show if whiteouts had no origin: names of nothing.
#[test]
fn whiteouts_of_nothing_are_not_seen() {
    let tmp = tempfile::tempdir().unwrap();
    let archives = [
        Archive::default().file("other", b""),
        Archive::default()
            .directory("new")
            .file("new/.wh.x", b"")
            .directory("opaque")
            .file("opaque/.wh.y", b""),
        Archive::default()
            .file("opaque/.wh..wh..opq", b"")
            .file("opaque/.wh.z", b"")
            .file("opaque/kept", b""),
    ];
    let layers = archives.into_iter().enumerate().map(|(number, archive)| {
        let into = tmp.path().join(number.to_string());
        fs::create_dir(&into).unwrap();
        unpack(archive.end().as_slice(), &into, &Limits::default()).unwrap();
        into.join("fs")
    });
    let layers: Vec<_> = layers.collect();
    let mounted = Mounted::overlay(tmp.path(), &layers);
    let found: Vec<_> = things(mounted.path()).into_keys().collect();
    assert_eq!(found, ["new", "opaque", "opaque/kept", "other"].map(PathBuf::from));
    fs::remove_dir(mounted.path().join("new")).unwrap();
}
