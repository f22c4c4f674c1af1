//! The store as where pulls go.
//!
//! All pulls of a process share one [`Work`], so that what one of them was told is there stays for all of them. It ends with
//! the last of them.

use super::{Origin, Store, Work, lock::Lock};
use crate::{Claim, Digest, LayerMedia, Pulled, Reference, Sink, unpack::failed};
use stacyvm_provider::Result;
use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
};

impl Store {
    /// The work of all pulls of this process.
    fn pulls(&self) -> Result<Arc<Work>> {
        // Replaced as a whole: a panic elsewhere left nothing half done.
        let mut current = self.0.pulls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(work) = current.upgrade() {
            return Ok(work);
        }
        let work = Arc::new(self.work()?);
        *current = Arc::downgrade(&work);
        Ok(work)
    }

    /// Lock of a blob that is brought, by the name of its file.
    pub(super) fn blob_lock(&self, name: &str) -> PathBuf {
        self.root().join("locks").join(format!("blob-{name}"))
    }
}

impl Sink for Store {
    fn begin(&self) -> Result<Claim> {
        self.pulls().map(|work| Box::new(work) as Claim)
    }

    fn has_image(&self, reference: &Reference) -> Result<bool> {
        self.find(&reference.canonical()).map(|image| image.is_some())
    }

    fn has_layer(&self, diff_id: &Digest) -> Result<bool> {
        self.pulls()?.need(diff_id)
    }

    fn claim(&self, blob: &Digest) -> Result<Option<Claim>> {
        let lock = Lock::attempt(&self.blob_lock(blob.hex())).map_err(|e| failed("lock a blob", e))?;
        Ok(lock.map(|lock| Box::new(lock.temporary()) as Claim))
    }

    fn partial(&self, blob: &Digest) -> PathBuf {
        self.partials().join(blob.hex())
    }

    /// How it is packed is told by its first bytes.
    fn add_layer(&self, diff_id: &Digest, _: LayerMedia, blob: &Path) -> Result<()> {
        let archive = File::open(blob).map_err(|e| failed(format_args!("open {}", blob.display()), e))?;
        self.pulls()?.layer(diff_id, archive).map(|_| ())
    }

    fn add_image(&self, pulled: &Pulled) -> Result<()> {
        let origin = Origin {
            manifest: Some(pulled.manifest.clone()),
            source: pulled.reference.registry().to_owned(),
        };
        let names = std::slice::from_ref(&pulled.reference);
        self.pulls()?.image(&pulled.raw_config, &origin, names).map(|_| ())
    }
}
