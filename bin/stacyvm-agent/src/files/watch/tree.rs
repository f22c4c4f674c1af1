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
use std::{collections::HashMap, os::fd::OwnedFd, sync::Arc};

/// Most directories in one tree: memory of the agent's, and of the kernel's.
const MOST: usize = 16_384;

#[derive(Debug)]
struct Node {
    /// Watch of the directory above; of the top, its own.
    parent: i32,
    name: Vec<u8>,
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
    /// Directories that were moved away and may have arrived elsewhere: where they were.
    moved: Vec<(i32, Vec<u8>)>,
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
        let (batch, moved) = Default::default();
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
            more: false,
            ended: false,
        };
        tree.look_below(first, false)?;
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
        self.forget_moved();
        Ok(self.batch.take())
    }

    fn happened(&mut self, raw: Raw) -> Result<()> {
        let has = |flags| raw.flags.intersects(flags);
        if has(ReadFlags::QUEUE_OVERFLOW) {
            self.batch.overflow();
            return self.look_below(self.first, false);
        }
        if has(ReadFlags::IGNORED) {
            self.nodes.remove(&raw.watch);
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
                self.moved.push((raw.watch, name));
            }
        } else if has(ReadFlags::MOVED_TO) {
            if !self.batch.moved_to(raw.cookie, &path) {
                self.batch.push(WatchKind::Create, path, directory);
            }
            if directory {
                return self.appeared(raw.watch, &name);
            }
        } else if has(ReadFlags::CREATE) {
            self.batch.push(WatchKind::Create, path, directory);
            if directory {
                return self.appeared(raw.watch, &name);
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

    /// A directory is there that was not. It is watched, and what is in it already is told.
    fn appeared(&mut self, parent: i32, name: &[u8]) -> Result<()> {
        if !self.recursive {
            return Ok(());
        }
        let Some(opened) = self.open(parent, name)? else { return Ok(()) };
        // Its number says whether it is one that moved within the tree.
        match self.watch(&opened, parent, name)? {
            Some(watch) => self.look_below(watch, true),
            None => Ok(()),
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

    /// Watches a directory; its watch if it was not watched before, `None` if it was and has only moved.
    fn watch(&mut self, directory: &OwnedFd, parent: i32, name: &[u8]) -> Result<Option<i32>> {
        if self.nodes.len() >= MOST {
            return Err(Fail::exhausted(format!(
                "{} has more than {MOST} directories in it, which are too many to watch: watch a part of it",
                self.path.as_str()
            )));
        }
        let watch = self.queue.add(directory, &self.shown(parent, name))?;
        let node = Node { parent, name: name.to_vec() };
        Ok(match self.nodes.insert(watch, node) {
            Some(_) => None,
            None => Some(watch),
        })
    }

    /// Watches what is below a directory, and with `tell` says that it is there.
    fn look_below(&mut self, top: i32, tell: bool) -> Result<()> {
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
        // Watches of the directories that the walk is in.
        let mut way = vec![top];
        while let Some(found) = walk.step().map_err(told)? {
            let depth = walk.path().iter().filter(|byte| **byte == b'/').count();
            way.truncate(depth + 1);
            let Some(parent) = way.last().copied() else { break };
            let name = found.name.to_bytes();
            if tell && !is_draft(name) {
                let path = self.shown(parent, name);
                self.batch.push(WatchKind::Create, path, found.directory.is_some());
            }
            let Some(directory) = found.directory.filter(|d| !found.mounted || takes(d)) else { continue };
            let number = match self.watch(&directory, parent, name)? {
                Some(number) => number,
                // Watched already. A look at everything goes on below it, one at something new need not.
                None if tell => continue,
                None => match self.nodes.iter().find(|(_, n)| n.parent == parent && n.name == name) {
                    Some((number, _)) => *number,
                    None => continue,
                },
            };
            way.push(number);
            walk.enter(directory).map_err(told)?;
        }
        Ok(())
    }

    /// Forgets directories that were moved away and did not arrive anywhere in the tree.
    fn forget_moved(&mut self) {
        for (parent, name) in std::mem::take(&mut self.moved) {
            let gone = self.nodes.iter().find(|(_, node)| node.parent == parent && node.name == name);
            let Some(gone) = gone.map(|(watch, _)| *watch) else { continue };
            let below: Vec<i32> =
                self.nodes.keys().copied().filter(|watch| self.is_below(*watch, gone)).collect();
            for watch in below {
                self.queue.remove(watch);
                self.nodes.remove(&watch);
            }
        }
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

    fn is_below(&self, watch: i32, top: i32) -> bool {
        self.above(watch).any(|(watch, _)| watch == top)
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
