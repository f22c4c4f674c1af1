//! A place to make layers and images in, and what whoever makes them needs meanwhile.

use super::{
    Image, Store, files,
    files::Durable,
    lock::{Lock, Temporary},
    records::{ImageRecord, LayerRecord, NameRecord},
};
use crate::{
    Digest, ImageConfig, Reference,
    unpack::{self, Unpacked, failed},
};
use stacyvm_provider::{Error, Result};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

/// Somebody's work on images: a pull, an import. While it lives, the layers that it needs stay; what it had not finished
/// goes with it.
#[derive(Debug)]
pub struct Work {
    store: Store,
    directory: PathBuf,
    _lock: Lock,
}

/// Where an image came from.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// Digest of the manifest.
    pub manifest: Option<Digest>,
    /// For people: a registry's name, a kind of archive.
    pub source: String,
}

impl Store {
    /// Begins to work on images.
    ///
    /// # Errors
    /// Those of making a directory, and `Unavailable` if another process keeps the store.
    pub fn work(&self) -> Result<Work> {
        let _lock = self.lock()?;
        let number = files::next();
        let nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let directory = self.staging().join(format!("{}-{nanoseconds:x}-{number}", std::process::id()));
        let doing = || format!("make {}", directory.display());
        files::make_private(&directory).map_err(|e| failed(doing(), e))?;
        let lock = Lock::attempt(&directory.join("lock")).map_err(|e| failed(doing(), e))?;
        let lock = lock
            .ok_or_else(|| Error::internal(format!("{} was locked when it was new", directory.display())))?;
        let work = Work { store: self.clone(), directory, _lock: lock };
        files::make_private(&work.needs())
            .map_err(|e| failed(format_args!("make {}", work.needs().display()), e))?;
        Ok(work)
    }
}

impl Work {
    /// A directory of its own, on the filesystem of the store. It goes with the work.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The store that it works on.
    pub fn store(&self) -> &Store {
        &self.store
    }

    fn needs(&self) -> PathBuf {
        self.directory.join("needs")
    }

    /// From here on the layer stays if it is there, which is the answer.
    ///
    /// # Errors
    /// Those of writing a file.
    pub fn need(&self, diff_id: &Digest) -> Result<bool> {
        let _lock = self.store.lock()?;
        let path = self.needs().join(diff_id.hex());
        File::create(&path).map_err(|e| failed(format_args!("write {}", path.display()), e))?;
        Ok(self.store.is_there(diff_id))
    }

    /// Makes the layer `diff_id` from its archive, compressed or not, unless it is there. Whoever makes the same one, in this
    /// process or another, is waited for. True if it was made here.
    ///
    /// # Errors
    /// Those of [`unpack::unpack`]; `InvalidArgument` if the archive is another one; `ResourceLimit` if the store is full of
    /// images that are in use; `Unavailable` if others work on it for too long.
    pub fn layer(&self, diff_id: &Digest, archive: impl Read + Send) -> Result<bool> {
        if self.need(diff_id)? {
            return Ok(false);
        }
        let _lock = self.layer_lock(diff_id)?;
        // Who was waited for has it there now.
        let missing = !self.store.is_there(diff_id);
        if missing {
            let (staged, unpacked) = self.unpack(archive)?;
            if unpacked.diff_id != *diff_id {
                staged.discard();
                return Err(Error::invalid_argument(format!(
                    "a layer is not the one that its image names: its digest is {}, not {diff_id}: transfer or build the image again",
                    unpacked.diff_id
                )));
            }
            self.keep(staged, &unpacked)?;
        }
        Ok(missing)
    }

    /// Makes a layer from an archive that nothing is known of, and returns its digest.
    ///
    /// # Errors
    /// Those of [`Work::layer`], and `InvalidArgument` if the archive was cut off.
    pub fn unknown_layer(&self, archive: impl Read + Send) -> Result<Digest> {
        let (staged, unpacked) = self.unpack(archive)?;
        if !unpacked.ended {
            staged.discard();
            return Err(Error::invalid_argument(
                "the archive has no end mark: it was cut, transfer or make it again",
            ));
        }
        let diff_id = unpacked.diff_id.clone();
        let _lock = self.layer_lock(&diff_id)?;
        if self.need(&diff_id)? {
            staged.discard();
        } else {
            self.keep(staged, &unpacked)?;
        }
        Ok(diff_id)
    }

    fn layer_lock(&self, diff_id: &Digest) -> Result<Temporary> {
        let path = self.store.root().join("locks").join(diff_id.hex());
        let what = format!("the layer {}", diff_id.short());
        Lock::wait(&path, self.store.limits().patience, &what).map(Lock::temporary)
    }

    fn unpack(&self, archive: impl Read + Send) -> Result<(Staged, Unpacked)> {
        let staged = Staged(self.directory.join(format!("layer-{}", files::next())));
        files::make_private(&staged.0).map_err(|e| failed(format_args!("make {}", staged.0.display()), e))?;
        let mut limits = self.store.limits().layer.clone();
        limits.disk_bytes = limits.disk_bytes.min(self.store.limits().bytes.unwrap_or(u64::MAX));
        match unpack::unpack(archive, &staged.0, &limits) {
            Ok(unpacked) => Ok((staged, unpacked)),
            Err(e) => {
                staged.discard();
                Err(e)
            }
        }
    }

    /// Gives a layer its place.
    fn keep(&self, staged: Staged, unpacked: &Unpacked) -> Result<()> {
        let record = LayerRecord {
            disk_bytes: unpacked.disk_bytes,
            stream_bytes: unpacked.stream_bytes,
            opaque: unpacked.opaque,
        };
        let place = self.store.layer(&unpacked.diff_id);
        let keep = || {
            files::write(&record, &staged.0.join("layer.json"), &self.directory, Durable::No)?;
            // All files of the layer at once.
            File::open(&staged.0)
                .and_then(|directory| Ok(rustix::fs::syncfs(directory)?))
                .map_err(|e| failed("sync a layer", e))?;
            let _lock = self.store.lock()?;
            self.store.make_room(unpacked.disk_bytes, self)?;
            fs::rename(&staged.0, &place)
                .and_then(|()| files::sync_parent(&place))
                .map_err(|e| failed(format_args!("keep the layer {}", place.display()), e))
        };
        let kept = keep();
        self.empty();
        if kept.is_err() {
            staged.discard();
        }
        kept
    }

    /// Makes the image whose configuration is `config` known, by these names; what had a name before loses it. Its layers
    /// are there already.
    ///
    /// # Errors
    /// `InvalidArgument` for a configuration that is none; `Unavailable` if a layer is missing.
    pub fn image(&self, config: &[u8], origin: &Origin, names: &[Reference]) -> Result<Image> {
        let id = Digest::of(config);
        let parsed = ImageConfig::parse(config, id.short())?;
        if parsed.diff_ids.is_empty() {
            return Err(Error::invalid_argument(format!(
                "the image {} has no layers: there is nothing in it",
                id.short()
            )));
        }
        let text = String::from_utf8(config.to_vec())
            .map_err(|e| Error::invalid_argument("the configuration of the image is no text").because(e))?;
        let added = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let record = ImageRecord {
            config: text,
            manifest: origin.manifest.clone(),
            source: origin.source.clone(),
            added,
        };
        let _lock = self.store.lock()?;
        let layers: BTreeSet<_> = parsed.diff_ids.iter().collect();
        if let Some(missing) = layers.iter().find(|diff_id| !self.store.is_there(diff_id)) {
            return Err(Error::unavailable(format!(
                "the layer {} of the image {} is not there any more: try again",
                missing.short(),
                id.short()
            )));
        }
        files::write(&record, &self.store.record(&id), &self.directory, Durable::Yes)?;
        for name in names {
            let record = NameRecord { name: name.clone(), image: id.clone() };
            files::write(&record, &self.store.name(name), &self.directory, Durable::Yes)?;
        }
        self.store.image(&id)?.ok_or_else(|| Error::internal("an image is not there that was just added"))
    }
}

/// A layer on its way.
struct Staged(PathBuf);

impl Staged {
    /// Removes it; the work's end would, too, but a disk may be full now.
    fn discard(self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // With the lock's file in it.
        let _ = fs::remove_dir_all(&self.directory);
    }
}
