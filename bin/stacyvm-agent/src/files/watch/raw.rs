//! The kernel's queue of events of directories.

use crate::fail::{Fail, Result};
use rustix::{
    fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags},
    io::Errno,
};
use std::{
    mem::MaybeUninit,
    os::fd::{AsRawFd, OwnedFd},
};

/// What is asked about each directory.
const FLAGS: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR)
    .union(WatchFlags::EXCL_UNLINK);

/// Events handled at once: of many nothing is told, and whoever waits may have left meanwhile.
pub(super) const MOST: usize = 8_192;

/// One event as the kernel tells it.
#[derive(Debug)]
pub(super) struct Raw {
    pub(super) watch: i32,
    pub(super) flags: ReadFlags,
    /// Tells which two events are one move.
    pub(super) cookie: u32,
    /// In the directory; `None`: the directory itself.
    pub(super) name: Option<Vec<u8>>,
}

/// An inotify descriptor.
#[derive(Debug)]
pub(super) struct Queue(OwnedFd);

impl Queue {
    pub(super) fn new() -> Result<Self> {
        let made = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC);
        made.map(Self).map_err(|errno| match errno {
            Errno::NOSYS | Errno::OPNOTSUPP => {
                Fail::unsupported("the kernel of this runtime has no inotify, so nothing can be watched")
            }
            Errno::MFILE => {
                Fail::exhausted("no more watches: the host's limit fs.inotify.max_user_instances is reached")
            }
            errno => Fail::errno("a watch", errno),
        })
    }

    pub(super) fn duplicate(&self) -> Result<OwnedFd> {
        self.0.try_clone().map_err(|error| Fail::internal(error.to_string()))
    }

    /// Watches an open directory, and returns the number of the watch: the same for a directory that is watched already.
    pub(super) fn add(&self, directory: &OwnedFd, shown: &str) -> Result<i32> {
        let name = format!("/proc/self/fd/{}", directory.as_raw_fd());
        inotify::add_watch(&self.0, name, FLAGS).map_err(|errno| match errno {
            // Not the disk, which is what this number means elsewhere.
            Errno::NOSPC => Fail::exhausted(format!(
                "{shown} cannot be watched: the host's limit fs.inotify.max_user_watches is reached"
            )),
            Errno::NOSYS | Errno::OPNOTSUPP => {
                Fail::unsupported(format!("{shown} cannot be watched: its file system tells nothing"))
            }
            errno => Fail::errno(shown, errno),
        })
    }

    pub(super) fn remove(&self, watch: i32) {
        // It may have gone by itself.
        let _ = inotify::remove_watch(&self.0, watch);
    }

    /// Hands events to `take` until that has enough, or there were many, or there are no more, and says whether there may
    /// be more.
    pub(super) fn read(&self, mut take: impl FnMut(Raw) -> Result<bool>) -> Result<bool> {
        let mut buffer = [MaybeUninit::uninit(); 4 << 10];
        let mut reader = Reader::new(&self.0, &mut buffer);
        let (mut enough, mut handled) = (false, 0);
        // What was read from the kernel has to be taken all.
        while !enough || !reader.is_buffer_empty() {
            let raw = match reader.next() {
                Ok(event) => Raw {
                    watch: event.wd(),
                    flags: event.events(),
                    cookie: event.cookie(),
                    name: event.file_name().map(|name| name.to_bytes().to_vec()),
                },
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(false),
                Err(errno) => return Err(Fail::errno("a watch", errno)),
            };
            handled += 1;
            enough |= take(raw)? || handled >= MOST;
        }
        Ok(true)
    }
}
