//! What layers mean, in the simplest words: trees in memory.

use crate::unpack::testing::Archive;
use std::collections::BTreeMap;

/// A step of making a layer.
#[derive(Debug, Clone)]
pub(super) enum Step {
    File(Vec<String>, u8),
    Directory(Vec<String>, bool),
    Link(Vec<String>, String),
    HardLink(Vec<String>, Vec<String>),
    Whiteout(Vec<String>),
    Opaque(Vec<String>),
}

/// Something in a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    Directory(Directory),
    /// Content, and a number that is the same for all names of one file.
    File(u8, usize),
    Link(String, usize),
    Whiteout,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Directory {
    /// Whether others may write; false for those that no entry is for.
    pub(super) open: bool,
    pub(super) opaque: bool,
    pub(super) children: BTreeMap<String, Node>,
}

/// A step that no archive may contain.
#[derive(Debug)]
pub(super) struct Refused;

/// A layer under construction.
#[derive(Debug, Clone, Default)]
pub(super) struct Layer {
    pub(super) top: Directory,
    files: usize,
}

impl Layer {
    /// Starts at a number, so that files of several layers are told apart.
    pub(super) fn new(files: usize) -> Self {
        Self { top: Directory::default(), files }
    }

    pub(super) fn files(&self) -> usize {
        self.files
    }

    fn at(&mut self, path: &[String]) -> &mut Directory {
        path.iter().fold(&mut self.top, |directory, name| match directory.children.get_mut(name) {
            Some(Node::Directory(child)) => child,
            other => panic!("{name} is {other:?}"),
        })
    }

    /// Where a directory really is, once links are resolved and what is missing is made.
    fn enter(&mut self, path: &[String], make: bool) -> Result<Vec<String>, Refused> {
        let mut at: Vec<String> = Vec::new();
        let mut rest: Vec<String> = path.iter().rev().cloned().collect();
        let mut links = 0;
        while let Some(name) = rest.pop() {
            match name.as_str() {
                "" | "." => continue,
                ".." => {
                    at.pop();
                    continue;
                }
                _ => {}
            }
            let here = self.at(&at);
            let new = |opaque| Node::Directory(Directory { opaque, ..Directory::default() });
            match here.children.get(&name) {
                None | Some(Node::Whiteout) if !make => return Err(Refused),
                None => drop(here.children.insert(name.clone(), new(false))),
                Some(Node::Whiteout) => drop(here.children.insert(name.clone(), new(true))),
                Some(Node::Directory(_)) => {}
                Some(Node::File(..)) => return Err(Refused),
                Some(Node::Link(target, _)) => {
                    links += 1;
                    if links > 40 {
                        return Err(Refused);
                    }
                    if target.starts_with('/') {
                        at.clear();
                    }
                    rest.extend(target.split('/').rev().map(str::to_owned));
                    continue;
                }
            }
            at.push(name);
        }
        Ok(at)
    }

    /// Does what an entry of an archive says.
    pub(super) fn step(&mut self, step: &Step) -> Result<(), Refused> {
        let split = |path: &Vec<String>| {
            let (name, directory) = path.split_last().unwrap();
            (directory.to_vec(), name.clone())
        };
        match step {
            Step::File(path, content) => {
                let (directory, name) = split(path);
                let at = self.enter(&directory, true)?;
                self.files += 1;
                let file = Node::File(*content, self.files);
                self.at(&at).children.insert(name, file);
            }
            Step::Link(path, target) => {
                let (directory, name) = split(path);
                let at = self.enter(&directory, true)?;
                self.files += 1;
                let link = Node::Link(target.clone(), self.files);
                self.at(&at).children.insert(name, link);
            }
            Step::Directory(path, open) => {
                let (directory, name) = split(path);
                let at = self.enter(&directory, true)?;
                let here = self.at(&at);
                if let Some(Node::Directory(there)) = here.children.get_mut(&name) {
                    there.open = *open;
                    return Ok(());
                }
                // What hid something keeps it hidden.
                let opaque = here.children.contains_key(&name);
                let new = Directory { open: *open, opaque, ..Directory::default() };
                here.children.insert(name, Node::Directory(new));
            }
            Step::HardLink(path, target) => {
                let (from, of) = split(target);
                let from = self.enter(&from, false)?;
                let source = match self.at(&from).children.get(&of) {
                    None | Some(Node::Directory(_) | Node::Whiteout) => return Err(Refused),
                    Some(file) => file.clone(),
                };
                let (directory, name) = split(path);
                let at = self.enter(&directory, true)?;
                // It would remove what it links to.
                if from.starts_with(&[at.as_slice(), std::slice::from_ref(&name)].concat()) {
                    return Err(Refused);
                }
                self.at(&at).children.insert(name, source);
            }
            Step::Whiteout(path) => {
                let (directory, name) = split(path);
                let at = self.enter(&directory, true)?;
                if let Node::Directory(there) = self.at(&at).children.entry(name).or_insert(Node::Whiteout) {
                    there.opaque = true;
                }
            }
            Step::Opaque(path) => {
                let at = self.enter(path, true)?;
                self.at(&at).opaque = true;
            }
        }
        Ok(())
    }
}

/// What is seen of `upper` on top of `lower`.
pub(super) fn merged(lower: &Directory, upper: &Directory) -> Directory {
    let mut children = if upper.opaque { BTreeMap::new() } else { lower.children.clone() };
    for (name, node) in &upper.children {
        match node {
            Node::Whiteout => drop(children.remove(name)),
            Node::Directory(above) => {
                let empty = Directory::default();
                let below = match children.get(name) {
                    Some(Node::Directory(below)) => below,
                    _ => &empty,
                };
                let both = merged(below, above);
                children.insert(name.clone(), Node::Directory(both));
            }
            other => drop(children.insert(name.clone(), other.clone())),
        }
    }
    Directory { open: upper.open, opaque: false, children }
}

/// The entry that says a step.
pub(super) fn written(archive: Archive, step: &Step) -> Archive {
    let whiteout = |path: &[String]| {
        let (name, directory) = path.split_last().unwrap();
        [directory, &[format!(".wh.{name}")]].concat().join("/")
    };
    match step {
        Step::File(path, content) => archive.file(&path.join("/"), &[*content]),
        Step::Link(path, target) => archive.symlink(&path.join("/"), target),
        Step::HardLink(path, target) => archive.hard_link(&path.join("/"), &target.join("/")),
        Step::Whiteout(path) => archive.file(&whiteout(path), b""),
        Step::Opaque(path) => {
            archive.file(&[path.as_slice(), &[".wh..wh..opq".to_owned()]].concat().join("/"), b"")
        }
        Step::Directory(path, open) => {
            let mut header = crate::unpack::testing::header(b'5', path.join("/").as_bytes(), b"", 0);
            header.set_mode(if *open { 0o777 } else { 0o755 });
            header.set_cksum();
            archive.put(&header, b"")
        }
    }
}
