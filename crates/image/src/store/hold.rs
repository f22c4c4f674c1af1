//! Who uses an image.

use super::{
    Store,
    files::{self, Durable},
    image::not_found,
    records::HolderRecord,
};
use crate::{Digest, unpack::failed};
use stacyvm_provider::{Error, Result};
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

impl Store {
    /// Holds an image for the one whose directory `holder` is. The directory exists already, or the hold would end at once;
    /// it ends when the directory is gone or with [`Store::release`]. Doing it again changes nothing. Costs the same however many
    /// there are.
    ///
    /// # Errors
    /// `NotFound` if the image is not there (any more); `InvalidArgument` if `holder` is not absolute.
    pub fn hold(&self, id: &Digest, holder: &Path) -> Result<()> {
        if !holder.is_absolute() {
            return Err(Error::invalid_argument("who holds an image is named by an absolute path"));
        }
        let work = self.work()?;
        let _lock = self.lock()?;
        let layers = self.config(id)?.ok_or_else(|| not_found(id))?.diff_ids;
        let record = HolderRecord { holder: holder.to_owned(), image: id.clone(), layers };
        files::write(&record, &self.held(id, holder), work.directory(), Durable::No)?;
        // The time of its record is that of its last use.
        let touched =
            File::options().write(true).open(self.record(id)).and_then(|f| f.set_modified(SystemTime::now()));
        touched.map_err(|e| failed("note the use of an image", e))
    }

    /// Ends all holds of the one whose directory `holder` is. `Ok` if there are none.
    ///
    /// # Errors
    /// Those of removing files.
    pub fn release(&self, holder: &Path) -> Result<()> {
        let _lock = self.lock()?;
        self.forget(|record| record.holder == holder)
    }

    /// Where a holder is written down.
    fn held(&self, id: &Digest, holder: &Path) -> PathBuf {
        let both = [id.hex().as_bytes(), holder.as_os_str().as_encoded_bytes()].concat();
        self.root().join("held").join(format!("{}.json", Digest::of(&both).hex()))
    }

    /// Those who hold images and are still there.
    pub(super) fn holders(&self) -> Result<Vec<HolderRecord>> {
        let directory = self.root().join("held");
        let mut holders = Vec::new();
        for file in files::names(&directory)? {
            let record = files::read::<HolderRecord>(&directory.join(file))?;
            holders.extend(record.filter(|record| !is_gone(&record.holder)));
        }
        holders.sort_by(|a, b| a.holder.cmp(&b.holder));
        Ok(holders)
    }

    /// Removes what says that somebody holds an image, where it is gone or broken. With `lock` held.
    pub(super) fn forget_gone(&self) -> Result<()> {
        self.forget(|record| is_gone(&record.holder))
    }

    fn forget(&self, whom: impl Fn(&HolderRecord) -> bool) -> Result<()> {
        let directory = self.root().join("held");
        for file in files::names(&directory)? {
            let path = directory.join(file);
            if files::read::<HolderRecord>(&path)?.is_none_or(|record| whom(&record)) {
                files::remove(&path)?;
            }
        }
        Ok(())
    }
}

/// Whether a directory is certainly gone; one that cannot be looked at may be there.
fn is_gone(holder: &Path) -> bool {
    matches!(std::fs::symlink_metadata(holder), Err(e) if e.kind() == io::ErrorKind::NotFound)
}
