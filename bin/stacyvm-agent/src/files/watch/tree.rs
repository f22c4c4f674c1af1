//! Which directories of a tree are watched, and what the kernel's events mean in it.
//!
//! A directory is known by its watch and remembers its name and the watch of the directory above: when one moves, the paths
//! of all below it are right at once.

use super::{
    batch::Batch,
    raw::{Queue, Raw},
};
use crate::{
    fail::{Fail, Result},
    files::{
        archive::{failed, takes},
        open::without_links,
        path::SandboxPath,
        resolve::{Root, refuse_kernel_view},
    },
};
use rustix::{
    fs::{Mode, OFlags, fstat, inotify::ReadFlags},
    io::Errno,
};
use stacyvm_guest::proto::{WatchEvents, WatchKind};
use stacyvm_tar::{Walk, is_draft};
use std::{
    collections::{HashMap, HashSet},
    os::fd::OwnedFd,
    sync::Arc,
};

/// Most directories in one tree: memory of the agent's, and of the kernel's.
const MOST: usize = 16_384;

#[derive(Debug)]
struct Node {
    /// Watch of the directory above; of the top, its own.
    parent: i32,
    name: Vec<u8>,
}

/// Why a directory is looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// To watch what is below; nothing is told.
    Watch,
    /// It is new, and so is what is in it. Known directories in it were moved there, which is told by itself.
    New,
    /// It is new, but was watched before that was known: everything in it is told.
    Again,
    /// It moved while something appeared in it: new directories and what is in them are told.
    Moved,
}

/// A tree that is watched.
#[derive(Debug)]
pub(crate) struct Tree {
    queue: Arc<Queue>,
    path: SandboxPath,
    root: Arc<Root>,
    /// Device and inode of the top. No descriptor of it is kept: the kernel tells of its end when nobody has it open.
    identity: (u64, u64),
    /// Watch of the top.
    first: i32,
    nodes: HashMap<i32, Node>,
    recursive: bool,
    batch: Batch,
    /// Watches of directories that were moved away and have not arrived anywhere yet. Not their names, which may be given
    /// to others meanwhile.
    moved: HashSet<i32>,
    /// Directories in which something appeared that was not found there, and the path at which they were looked for: the
    /// kernel's events are older than what is on the disk.
    missed: HashMap<i32, Vec<u8>>,
    more: bool,
    ended: bool,
}

impl Tree {
    /// Watches `path`; everything that happens from now on is told.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for what is no directory; `Unsupported`; `ResourceExhausted` for too large a tree.
    pub(crate) fn new(root: Arc<Root>, path: SandboxPath, recursive: bool) -> Result<Self> {
        let open = root.open(&path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty());
        let top = open.map_err(|errno| match errno {
            Errno::NOTDIR if root.open(&path, OFlags::PATH, Mode::empty()).is_ok() => {
                Fail::invalid(format!("{} is not a directory", path.as_str()))
            }
            errno => Fail::errno(path.as_str(), errno),
        })?;
        refuse_kernel_view(&top, path.as_str())?;
        let queue = Arc::new(Queue::new()?);
        let first = queue.add(&top, path.as_str())?;
        let identity = identity(&top).map_err(|errno| Fail::errno(path.as_str(), errno))?;
        drop(top);
        let nodes = HashMap::from([(first, Node { parent: first, name: Vec::new() })]);
        let (batch, moved, missed) = Default::default();
        let mut tree = Self {
            queue,
            path,
            root,
            identity,
            first,
            nodes,
            recursive,
            batch,
            moved,
            missed,
            more: false,
            ended: false,
        };
        tree.look_below(first, Look::Watch)?;
        Ok(tree)
    }

    /// A descriptor that is readable when something happened.
    pub(crate) fn descriptor(&self) -> Result<OwnedFd> {
        self.queue.duplicate()
    }

    /// Whether there may be more to tell at once.
    pub(crate) fn has_more(&self) -> bool {
        self.more
    }

    /// Whether the top itself is gone: nothing more will be told.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// What happened since the last call, as far as it fits.
    pub(crate) fn changes(&mut self) -> Result<Vec<WatchEvents>> {
        let queue = Arc::clone(&self.queue);
        self.more = queue.read(|raw| {
            if !self.ended {
                self.happened(raw)?;
            }
            Ok(self.batch.is_enough())
        })?;
        self.look_for_missed()?;
        self.forget_moved();
        Ok(self.batch.take())
    }

    fn happened(&mut self, raw: Raw) -> Result<()> {
        let has = |flags| raw.flags.intersects(flags);
        if has(ReadFlags::QUEUE_OVERFLOW) {
            self.batch.overflow();
            return self.look_below(self.first, Look::Watch);
        }
        if has(ReadFlags::IGNORED) {
            self.nodes.remove(&raw.watch);
            self.moved.remove(&raw.watch);
            if raw.watch == self.first {
                self.end();
            }
            return Ok(());
        }
        if !self.nodes.contains_key(&raw.watch) {
            // A directory that was moved out, or that is gone: the last of its events.
            return Ok(());
        }
        let directory = has(ReadFlags::ISDIR);
        let Some(name) = raw.name else {
            // Of the directory itself: told by the one above, unless it is the top.
            if raw.watch == self.first {
                let top = self.path.as_str().to_owned();
                if has(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT) {
                    self.end();
                } else if has(ReadFlags::ATTRIB) {
                    self.batch.push(WatchKind::Attribute, top, true);
                }
            }
            return Ok(());
        };
        if is_draft(&name) {
            // A file that is told when it takes its place.
            return Ok(());
        }
        let path = self.shown(raw.watch, &name);
        if has(ReadFlags::MOVED_FROM) {
            self.batch.moved_from(raw.cookie, path, directory);
            if directory {
                let here = self.nodes.iter().filter(|(_, n)| n.parent == raw.watch && n.name == name);
                self.moved.extend(here.map(|(watch, _)| *watch));
            }
        } else if has(ReadFlags::MOVED_TO) {
            let is_news = !self.batch.moved_to(raw.cookie, &path)
                && self.batch.push(WatchKind::Create, path, directory);
            if directory {
                return self.appeared(raw.watch, &name, is_news);
            }
        } else if has(ReadFlags::CREATE) {
            let is_news = self.batch.push(WatchKind::Create, path, directory);
            if directory {
                return self.appeared(raw.watch, &name, is_news);
            }
        } else if has(ReadFlags::DELETE) {
            self.batch.push(WatchKind::Delete, path, directory);
        } else if has(ReadFlags::MODIFY) {
            self.batch.push(WatchKind::Modify, path, directory);
        } else if has(ReadFlags::ATTRIB) {
            self.batch.push(WatchKind::Attribute, path, directory);
        }
        Ok(())
    }

    /// What is watched is not where it was.
    fn end(&mut self) {
        if !self.ended {
            self.batch.push(WatchKind::Delete, self.path.as_str().to_owned(), true);
            self.ended = true;
        }
    }

    /// Opens the top; `None` if its path leads elsewhere by now, which is the end.
    fn top(&mut self) -> Result<Option<OwnedFd>> {
        let opened = match self.root.open(&self.path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()) {
            Ok(top) => Some(top),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => None,
            Err(errno) => return Err(Fail::errno(self.path.as_str(), errno)),
        };
        let same = opened.filter(|top| identity(top) == Ok(self.identity));
        if same.is_none() {
            self.end();
        }
        Ok(same)
    }

    /// A directory is there that was not. It is watched, and what is in it already is told: also of one that is watched
    /// already, if its creation `is_news`, since a deletion came in between.
    fn appeared(&mut self, parent: i32, name: &[u8], is_news: bool) -> Result<()> {
        if !self.recursive {
            return Ok(());
        }
        let Some(opened) = self.open(parent, name)? else {
            let way = self.way(parent);
            self.missed.entry(parent).or_insert(way);
            return Ok(());
        };
        // Its number says whether it is one that moved within the tree.
        match self.watch(&opened, parent, name)? {
            (watch, true) => self.look_below(watch, Look::New),
            (watch, false) if is_news => self.look_below(watch, Look::Again),
            (_, false) => Ok(()),
        }
    }

    /// Opens a directory of the tree; `None` if it is gone or something else by now.
    fn open(&mut self, parent: i32, name: &[u8]) -> Result<Option<OwnedFd>> {
        let Some(top) = self.top()? else { return Ok(None) };
        let mut way = self.way(parent);
        way.extend_from_slice(name);
        match without_links(&top, &way, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW) {
            Ok(directory) if takes(&directory) => Ok(Some(directory)),
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(Fail::errno(&self.shown(parent, name), errno)),
        }
    }

    /// Watches a directory; its watch, and whether it is new: if not, the directory may have moved.
    fn watch(&mut self, directory: &OwnedFd, parent: i32, name: &[u8]) -> Result<(i32, bool)> {
        if self.nodes.len() >= MOST {
            return Err(Fail::exhausted(format!(
                "{} has more than {MOST} directories in it, which are too many to watch: watch a part of it",
                self.path.as_str()
            )));
        }
        let watch = self.queue.add(directory, &self.shown(parent, name))?;
        let node = Node { parent, name: name.to_vec() };
        self.moved.remove(&watch);
        Ok((watch, self.nodes.insert(watch, node).is_none()))
    }

    /// Watches what is below a directory, and tells what `look` says.
    fn look_below(&mut self, top: i32, look: Look) -> Result<()> {
        let below = match (self.recursive, top == self.first) {
            (false, _) => None,
            (true, true) => self.top()?,
            (true, false) => {
                let Some(node) = self.nodes.get(&top) else { return Ok(()) };
                let (parent, name) = (node.parent, node.name.clone());
                self.open(parent, &name)?
            }
        };
        let Some(below) = below else { return Ok(()) };
        let path = self.path.clone();
        let told = |error| failed(&path, &error);
        let mut walk = Walk::new(below).map_err(told)?;
        // Watches of the directories that the walk is in, and whether what is in them is told.
        let mut way = vec![(top, matches!(look, Look::New | Look::Again))];
        while let Some(found) = walk.step().map_err(told)? {
            let depth = walk.path().iter().filter(|byte| **byte == b'/').count();
            way.truncate(depth + 1);
            let Some((parent, tell)) = way.last().copied() else { break };
            let name = found.name.to_bytes();
            let is_shown = !is_draft(name);
            if tell && is_shown {
                let path = self.shown(parent, name);
                self.batch.push(WatchKind::Create, path, found.directory.is_some());
            }
            let Some(directory) = found.directory.filter(|d| !found.mounted || takes(d)) else { continue };
            let (number, is_new) = self.watch(&directory, parent, name)?;
            if !is_new && matches!(look, Look::New | Look::Moved) {
                continue;
            }
            if !tell && look == Look::Moved && is_shown {
                let path = self.shown(parent, name);
                self.batch.push(WatchKind::Create, path, true);
            }
            way.push((number, tell || look == Look::Moved));
            walk.enter(directory).map_err(told)?;
        }
        Ok(())
    }

    /// Looks again for what appeared in directories that have moved since.
    fn look_for_missed(&mut self) -> Result<()> {
        let mut left = std::mem::take(&mut self.missed);
        let mut before = usize::MAX;
        // One that is found may be above others.
        while left.len() < before && !self.ended {
            before = left.len();
            for (parent, way) in std::mem::take(&mut left) {
                if self.has_moved(parent) || self.way(parent) == way {
                    left.insert(parent, way);
                } else {
                    self.look_below(parent, Look::Moved)?;
                }
            }
        }
        Ok(())
    }

    /// Forgets directories that were moved away and did not arrive anywhere in the tree.
    fn forget_moved(&mut self) {
        if self.moved.is_empty() {
            return;
        }
        let below: Vec<i32> = self.nodes.keys().copied().filter(|watch| self.has_moved(*watch)).collect();
        for watch in below {
            self.queue.remove(watch);
            self.nodes.remove(&watch);
        }
        self.moved.clear();
    }

    /// The directories above one, itself first.
    fn above(&self, watch: i32) -> impl Iterator<Item = (i32, &Node)> {
        let mut next = Some(watch);
        let steps = std::iter::from_fn(move || {
            let watch = next?;
            let node = self.nodes.get(&watch)?;
            next = (node.parent != watch).then_some(node.parent);
            Some((watch, node))
        });
        // However they are entangled, this ends.
        steps.take(2 * stacyvm_tar::DEPTH)
    }

    /// It, or one above it, was moved away.
    fn has_moved(&self, watch: i32) -> bool {
        self.above(watch).any(|(watch, _)| self.moved.contains(&watch))
    }

    /// Path of a directory below the top, with a slash at its end; empty for the top.
    fn way(&self, watch: i32) -> Vec<u8> {
        let mut names: Vec<&[u8]> = self.above(watch).map(|(_, node)| &*node.name).collect();
        names.reverse();
        names.iter().filter(|name| !name.is_empty()).flat_map(|name| [name, &b"/"[..]].concat()).collect()
    }

    /// Path of something in a directory, as the reader knows it.
    fn shown(&self, watch: i32, name: &[u8]) -> String {
        self.path.entry(&[&*self.way(watch), name].concat())
    }
}

fn identity(directory: &OwnedFd) -> Result<(u64, u64), Errno> {
    let stat = fstat(directory)?;
    Ok((stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::{super::raw::MOST as MOST_AT_ONCE, *};
    use std::{
        fs,
        path::{Path, PathBuf},
    };

    /// A tree at `/w` and a directory beside it.
    fn watched(directories: &[&str]) -> (tempfile::TempDir, Tree) {
        let directory = tempfile::tempdir().unwrap();
        for name in ["w", "outside"].iter().chain(directories) {
            fs::create_dir_all(directory.path().join(name)).unwrap();
        }
        let root = Arc::new(Root::new(Some(directory.path())).unwrap());
        let tree = Tree::new(root, SandboxPath::parse("/w").unwrap(), true).unwrap();
        (directory, tree)
    }

    fn told(tree: &mut Tree) -> Vec<(WatchKind, String)> {
        let messages = tree.changes().unwrap();
        messages.into_iter().flat_map(|m| m.events).map(|e| (e.kind(), e.path)).collect()
    }

    /// Every directory of the tree is watched under its name, and nothing else is.
    fn assert_all_watched(root: &Path, tree: &mut Tree) {
        tree.changes().unwrap();
        let (mut left, mut all) = (vec![PathBuf::from("w")], Vec::new());
        while let Some(directory) = left.pop() {
            let mark = directory.join("mark");
            fs::write(root.join(&mark), "").unwrap();
            assert_eq!(told(tree), [(WatchKind::Create, format!("/{}", mark.display()))]);
            let entries = fs::read_dir(root.join(&directory)).unwrap().map(|entry| entry.unwrap());
            left.extend(entries.filter(|e| e.path().is_dir()).map(|e| directory.join(e.file_name())));
            all.push(directory);
        }
        assert_eq!(tree.nodes.len(), all.len(), "{all:?} {:?}", tree.nodes);
    }

    #[test]
    fn names_of_moved_directories_are_used_again() {
        type Steps = &'static [(&'static str, &'static str)];
        // Moves; without a target, a directory is made.
        let cases: [Steps; 8] = [
            &[("w/a", "w/c"), ("w/a", "")],
            &[("w/a", "w/c"), ("w/b", "w/a")],
            &[("w/a", "w/c"), ("w/c", "w/a")],
            &[("w/a", "outside/a"), ("w/a", "")],
            &[("w/a", "w/t"), ("w/b", "w/a"), ("w/t", "w/b")],
            &[("w/a", "w/c"), ("w/a", ""), ("w/a", "w/d"), ("w/c", "w/a")],
            &[("w/a", "outside/a"), ("w/b", "w/a"), ("w/a", "outside/b"), ("w/a", "")],
            &[("w/a", "outside/a"), ("w/b", "w/a"), ("w/a", "outside/b")],
        ];
        for steps in cases {
            let (directory, mut tree) = watched(&["w/a/deep", "w/b"]);
            let at = |name: &str| directory.path().join(name);
            for (from, to) in steps {
                match *to {
                    "" => fs::create_dir(at(from)).unwrap(),
                    to => fs::rename(at(from), at(to)).unwrap(),
                }
            }
            assert_all_watched(directory.path(), &mut tree);
        }
    }

    #[test]
    fn what_changes_in_a_directory_before_it_moves_is_found() {
        let (directory, mut tree) = watched(&["w/a/b"]);
        let at = |name: &str| directory.path().join(name);
        fs::create_dir_all(at("w/a/b/new/deep")).unwrap();
        fs::write(at("w/a/b/new/deep/f"), "").unwrap();
        fs::rename(at("w/a/b"), at("w/a/c")).unwrap();
        fs::rename(at("w/a"), at("w/z")).unwrap();
        let told = told(&mut tree);
        assert!(told.contains(&(WatchKind::Create, "/w/z/c/new/deep/f".into())), "{told:?}");
        assert_all_watched(directory.path(), &mut tree);
    }

    #[test]
    fn a_directory_that_is_made_twice_is_told_with_what_is_in_it() {
        let (directory, mut tree) = watched(&[]);
        let at = |name: &str| directory.path().join(name);
        for _ in 0..2 {
            fs::create_dir(at("w/d")).unwrap();
            fs::remove_dir(at("w/d")).unwrap();
        }
        fs::create_dir_all(at("w/d/e")).unwrap();
        fs::write(at("w/d/e/f"), "").unwrap();
        let told = told(&mut tree);
        let last = told.iter().rposition(|(kind, _)| *kind == WatchKind::Delete).unwrap();
        let paths: Vec<_> = told[last + 1..].iter().map(|(_, path)| path.as_str()).collect();
        assert_eq!(paths, ["/w/d", "/w/d/e", "/w/d/e/f"], "{told:?}");
    }

    #[test]
    fn a_directory_that_comes_from_outside_twice_is_told_with_what_is_in_it() {
        let (directory, mut tree) = watched(&["outside/a", "outside/b"]);
        let at = |name: &str| directory.path().join(name);
        fs::write(at("outside/b/f"), "").unwrap();
        fs::rename(at("outside/a"), at("w/d")).unwrap();
        fs::rename(at("w/d"), at("outside/a")).unwrap();
        fs::rename(at("outside/b"), at("w/d")).unwrap();
        let told = told(&mut tree);
        let expected = [(WatchKind::Create, "/w/d".to_owned()), (WatchKind::Create, "/w/d/f".to_owned())];
        assert_eq!(told[told.len() - 2..], expected, "{told:?}");
    }

    #[test]
    fn one_call_handles_a_bounded_number_of_events() {
        let (directory, mut tree) = watched(&[]);
        let queued = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        if queued.trim().parse::<usize>().unwrap() < 2 * MOST_AT_ONCE {
            // The kernel keeps fewer than are handled at once: an endless flow would be needed.
            return;
        }
        let at = |name: &str| directory.path().join(name);
        fs::write(at("w/a"), "").unwrap();
        fs::write(at("w/b"), "").unwrap();
        for turn in 0..MOST_AT_ONCE + 1_000 {
            fs::write(at(if turn % 2 == 0 { "w/a" } else { "w/b" }), "x").unwrap();
        }
        assert_eq!(told(&mut tree).len(), 2);
        assert!(tree.has_more());
    }
}
