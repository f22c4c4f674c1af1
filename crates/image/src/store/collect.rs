//! What nobody needs any more goes.

use super::{
    Store, Work,
    files::{self, digest_of},
    image::not_found,
    lock::Lock,
    records::{ImageRecord, LayerRecord},
};
use crate::{Digest, Reference, unpack::failed};
use stacyvm_provider::{Error, Result};
use std::{
    collections::HashSet,
    fs,
    time::{Duration, SystemTime},
};

/// What garbage collection takes, beside layers that nothing needs and what killed processes left.
#[derive(Debug, Clone)]
pub struct Collect {
    /// Images that nobody holds and that have no name.
    pub unnamed: bool,
    /// Images that nobody holds and that were not used for this long, with their names.
    pub unused_for: Option<Duration>,
    /// Downloads that nothing was added to for this long.
    pub partial_after: Duration,
}

impl Default for Collect {
    fn default() -> Self {
        Self { unnamed: true, unused_for: None, partial_after: Duration::from_secs(7 * 24 * 3600) }
    }
}

/// What garbage collection took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Images.
    pub images: usize,
    /// Layers.
    pub layers: usize,
    /// Bytes of disk of those layers and of downloads.
    pub bytes: u64,
    /// Downloads.
    pub partial: usize,
}

/// What was removed by name or id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that lead nowhere any more.
    pub names: Vec<Reference>,
    /// The image, if that was its last name.
    pub image: Option<Digest>,
    /// Layers that nothing else needed.
    pub layers: usize,
    /// Bytes of disk of those.
    pub bytes: u64,
}

impl Store {
    /// Takes what nobody needs.
    ///
    /// # Errors
    /// Those of file operations; what was taken until then is gone.
    pub fn collect(&self, what: &Collect) -> Result<Collected> {
        let work = self.work()?;
        self.sweep(&work)?;
        let mut collected = Collected::default();
        let _trash = Trash(&work);
        {
            let _lock = self.lock()?;
            self.forget_gone()?;
            let (names, holders) = (self.names()?, self.holders()?);
            for id in self.ids()? {
                let Some(image) = self.image(&id)? else {
                    // Broken by something else: it cannot be used.
                    files::remove(&self.record(&id))?;
                    continue;
                };
                let idle = image.used.elapsed().unwrap_or_default();
                let unused = what.unused_for.is_some_and(|allowed| idle > allowed);
                let unnamed = what.unnamed && !names.contains_key(&id);
                if (unused || unnamed) && !holders.iter().any(|h| h.image == id) {
                    self.drop_image(&id, &image.names)?;
                    collected.images += 1;
                }
            }
            for (image, names) in names {
                if !self.record(&image).exists() {
                    names.iter().try_for_each(|name| files::remove(&self.name(name)))?;
                }
            }
            (collected.layers, collected.bytes) = self.drop_layers(&work)?;
        }
        self.drop_partial(what.partial_after, &mut collected)?;
        Ok(collected)
    }

    /// Takes a name from an image, and with the last name the image; with an id, the image with all its names. Layers that
    /// nothing else needs go at once.
    ///
    /// # Errors
    /// `NotFound` if there is none; `Unavailable` if somebody holds it and would have no image any more: with `force` it goes,
    /// and its layers when they are released.
    pub fn remove(&self, text: &str, force: bool) -> Result<Removed> {
        let work = self.work()?;
        let _trash = Trash(&work);
        let _lock = self.lock()?;
        self.forget_gone()?;
        let (id, name) = self.resolve(text)?.ok_or_else(|| not_found(text))?;
        let all = self.names()?.remove(&id).unwrap_or_default();
        let names = name.map_or(all.clone(), |name| vec![name]);
        if names.len() < all.len() {
            names.iter().try_for_each(|name| files::remove(&self.name(name)))?;
            return Ok(Removed { names, ..Removed::default() });
        }
        let holders = self.holders()?;
        let held = holders.iter().filter(|h| h.image == id).count();
        if held > 0 && !force {
            return Err(Error::unavailable(format!(
                "the image {text} is used by {held}: destroy the sandboxes made from it, or remove it with force"
            )));
        }
        self.drop_image(&id, &names)?;
        let (layers, bytes) = self.drop_layers(&work)?;
        Ok(Removed { names, image: Some(id), layers, bytes })
    }

    /// Removes an image's names, then its record. With `lock` held.
    pub(super) fn drop_image(&self, id: &Digest, names: &[Reference]) -> Result<()> {
        names.iter().try_for_each(|name| files::remove(&self.name(name)))?;
        files::remove(&self.record(id))?;
        files::sync_parent(&self.record(id)).map_err(|e| failed("sync the images", e))
    }

    /// Moves layers that nothing needs away, to be removed with `work`; how many, and how many bytes. With `lock` held.
    pub(super) fn drop_layers(&self, work: &Work) -> Result<(usize, u64)> {
        let needed = self.needed()?;
        let (mut layers, mut bytes) = (0, 0);
        for name in files::names(&self.root().join("layers"))? {
            let Some(diff_id) = digest_of(&name).filter(|d| !needed.contains(d)) else { continue };
            let place = self.layer(&diff_id);
            let record = files::read::<LayerRecord>(&place.join("layer.json"))?;
            fs::rename(&place, work.directory().join(format!("{GONE}{}", files::next())))
                .map_err(|e| failed(format_args!("remove {}", place.display()), e))?;
            layers += 1;
            bytes += record.map_or(0, |r| r.disk_bytes);
        }
        Ok((layers, bytes))
    }

    /// Layers that an image, a holder or somebody's work needs. With `lock` held.
    pub(super) fn needed(&self) -> Result<HashSet<Digest>> {
        let mut needed = HashSet::new();
        for id in self.ids()? {
            let record = files::read::<ImageRecord>(&self.record(&id))?;
            needed.extend(
                record.and_then(|record| record.parsed(&id)).into_iter().flat_map(|config| config.diff_ids),
            );
        }
        needed.extend(self.holders()?.into_iter().flat_map(|h| h.layers));
        for work in files::names(&self.staging())? {
            let needs = files::names(&self.staging().join(work).join("needs"))?;
            needed.extend(needs.iter().filter_map(|name| digest_of(name)));
        }
        Ok(needed)
    }

    /// Removes what processes left that are dead.
    pub(super) fn sweep(&self, work: &Work) -> Result<()> {
        {
            // Who begins to work has this lock until it has its own.
            let _lock = self.lock()?;
            for name in files::names(&self.staging())? {
                let directory = self.staging().join(&name);
                if directory == work.directory()
                    || !matches!(Lock::attempt(&directory.join("lock")), Ok(Some(_)))
                {
                    continue;
                }
                // Nobody finds it here any more, so nobody else removes it. It may be gone: somebody ended just now.
                let _ = fs::rename(&directory, work.directory().join(format!("{GONE}{}", files::next())));
            }
            // Locks of layers that nobody has: whoever wants one makes it again.
            let locks = self.root().join("locks");
            for name in files::names(&locks)? {
                drop(Lock::attempt(&locks.join(name)).ok().flatten().map(Lock::temporary));
            }
        }
        work.empty();
        Ok(())
    }

    fn drop_partial(&self, after: Duration, collected: &mut Collected) -> Result<()> {
        for name in files::names(&self.partials())? {
            let path = self.partials().join(&name);
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            if !metadata.is_file() || !is_older(&metadata, after) {
                continue;
            }
            // Not what somebody goes on with just now.
            if let Ok(Some(lock)) = Lock::attempt(&self.blob_lock(&name)) {
                let _lock = lock.temporary();
                files::remove(&path)?;
                collected.partial += 1;
                collected.bytes += metadata.len();
            }
        }
        Ok(())
    }
}

fn is_older(metadata: &fs::Metadata, than: Duration) -> bool {
    let age = metadata.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
    age.is_some_and(|age| age > than)
}

/// Beginning of the names of what was moved to a work's directory to be removed.
const GONE: &str = "gone-";

/// Removes what was moved away, after the lock over all is given back: it is made before that lock, and dropped after it.
struct Trash<'a>(&'a Work);

impl Drop for Trash<'_> {
    fn drop(&mut self) {
        self.0.empty();
    }
}

impl Work {
    /// Removes what was moved here. What cannot be removed now goes with the work.
    pub(super) fn empty(&self) {
        for name in files::names(self.directory()).unwrap_or_default() {
            if name.starts_with(GONE) {
                let _ = fs::remove_dir_all(self.directory().join(name));
            }
        }
    }
}
