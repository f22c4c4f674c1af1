//! User ids of sandboxes. Each has a range of the host's ids that no user of the host and no other sandbox of this
//! installation has: what gets out of a sandbox is nobody outside.

use crate::{layout::Layout, record::Record};
use serde::{Deserialize, Serialize};
use stacyvm_provider::SandboxId;
use std::{
    collections::HashMap,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Above what distributions give to users (`/etc/subuid`), to services and to containers of systemd, below the last ids.
const FIRST: u32 = 0x7000_0000;
const END: u32 = 0xf000_0000;
/// In between, systemd has one range for files of images that belong to nobody in particular.
const FOREIGN: u32 = 0x7ffe_0000;

/// A range of user and group ids of the host, those of one sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct IdRange {
    base: u32,
}

impl IdRange {
    /// Ids in a range: as many as programs expect to exist.
    pub(crate) const LENGTH: u32 = 0x1_0000;
    /// Behind the last id of all ranges.
    pub(crate) const HIGHEST: u32 = END;
    const COUNT: u32 = (END - FIRST) / Self::LENGTH;

    pub(crate) fn nth(n: u32) -> Self {
        Self { base: FIRST + n % Self::COUNT * Self::LENGTH }
    }

    /// What id 0 of the sandbox is on the host.
    pub(crate) fn base(self) -> u32 {
        self.base
    }
}

/// The ranges that are in use. Other installations choose at random from the same ones: a range that two of them share
/// by chance, once in some thousand pairs of sandboxes, weakens nothing but what would hold after an escape.
#[derive(Debug, Default)]
pub(crate) struct Ids(Mutex<Used>);

#[derive(Debug, Default)]
struct Used {
    /// Whether what was recorded by an earlier server is in here.
    loaded: bool,
    by_range: HashMap<IdRange, Option<SandboxId>>,
}

impl Ids {
    /// Reserves a range for a sandbox to come.
    ///
    /// # Errors
    /// The records of the sandboxes that exist cannot be read; all ranges are taken.
    pub(crate) fn reserve(&self, layout: &Layout) -> io::Result<IdRange> {
        let mut used = self.loaded(layout)?;
        let mut bytes = [0; 4];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        let start = u32::from_le_bytes(bytes) % IdRange::COUNT;
        let free = (0..IdRange::COUNT)
            .map(|n| IdRange::nth(start + n))
            .find(|r| r.base != FOREIGN && !used.by_range.contains_key(r));
        let range = free.ok_or_else(|| io::Error::from_raw_os_error(libc::EUSERS))?;
        used.by_range.insert(range, None);
        Ok(range)
    }

    /// The range is now this sandbox's.
    pub(crate) fn give(&self, range: IdRange, id: &SandboxId) {
        self.lock().by_range.insert(range, Some(id.clone()));
    }

    /// A reserved range that nobody got.
    pub(crate) fn give_back(&self, range: IdRange) {
        self.lock().by_range.remove(&range);
    }

    /// The sandbox is gone.
    pub(crate) fn release(&self, id: &SandboxId) {
        self.lock().by_range.retain(|_, user| user.as_ref() != Some(id));
    }

    /// Whether somebody has this range.
    #[cfg(test)]
    pub(crate) fn is_taken(&self, range: IdRange) -> bool {
        self.lock().by_range.contains_key(&range)
    }

    fn loaded(&self, layout: &Layout) -> io::Result<MutexGuard<'_, Used>> {
        let mut used = self.lock();
        if !used.loaded {
            for id in layout.ids()? {
                if let Some(range) = Record::read(&layout.sandbox(&id))?.state.and_then(|s| s.ids) {
                    used.by_range.insert(range, Some(id));
                }
            }
            used.loaded = true;
        }
        Ok(used)
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        // No critical section leaves half a change behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        process::Identity,
        record::{State, write_state},
    };
    use std::collections::HashSet;

    fn layout() -> (tempfile::TempDir, Layout) {
        let tmp = tempfile::tempdir().unwrap();
        let layout = Layout::new(tmp.path().to_owned());
        layout.prepare().unwrap();
        (tmp, layout)
    }

    #[test]
    fn ranges_do_not_overlap_and_leave_out_the_hosts_own_ids() {
        let bases: HashSet<u32> = (0..IdRange::COUNT).map(|n| IdRange::nth(n).base()).collect();
        assert_eq!(bases.len(), IdRange::COUNT as usize);
        for base in bases {
            assert_eq!(base % IdRange::LENGTH, 0);
            assert!((FIRST..END).contains(&base) && base.checked_add(IdRange::LENGTH).is_some());
        }
    }

    #[test]
    fn a_range_is_one_sandboxes_until_it_is_gone() {
        let (_tmp, layout) = layout();
        let ids = Ids::default();
        let all: HashSet<IdRange> = (1..IdRange::COUNT).map(|_| ids.reserve(&layout).unwrap()).collect();
        assert_eq!(all.len(), IdRange::COUNT as usize - 1);
        assert!(all.iter().all(|range| range.base() != FOREIGN));
        assert_eq!(ids.reserve(&layout).unwrap_err().raw_os_error(), Some(libc::EUSERS));
        let (one, other) = (IdRange::nth(7), IdRange::nth(8));
        let id: SandboxId = "sb-1".parse().unwrap();
        ids.give(one, &id);
        ids.give_back(other);
        assert_eq!(ids.reserve(&layout).unwrap(), other);
        ids.release(&"sb-2".parse().unwrap());
        assert!(ids.reserve(&layout).is_err());
        ids.release(&id);
        assert_eq!(ids.reserve(&layout).unwrap(), one);
    }

    #[test]
    fn what_an_earlier_server_gave_is_taken() {
        let (_tmp, layout) = layout();
        for n in 1..64 {
            let id: SandboxId = format!("sb-{n}").parse().unwrap();
            std::fs::create_dir(layout.sandbox(&id)).unwrap();
            let process = Identity { pid: 1, start_time: 1, boot_id: String::new() };
            let state = State {
                process,
                cgroups: Default::default(),
                lower: "/".into(),
                network: None,
                ids: Some(IdRange::nth(n)),
            };
            write_state(&layout.sandbox(&id), &state).unwrap();
        }
        let ids = Ids::default();
        drop(ids.loaded(&layout).unwrap());
        assert!((1..64).all(|n| ids.is_taken(IdRange::nth(n))));
        assert!(!ids.is_taken(IdRange::nth(0)));
    }
}
