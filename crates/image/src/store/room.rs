//! Room for one more layer.

use super::{Store, Work, files, files::digest_of, records::LayerRecord};
use stacyvm_provider::{Error, Result};

impl Store {
    /// Bytes of disk that all layers take.
    ///
    /// # Errors
    /// Those of reading.
    pub fn bytes(&self) -> Result<u64> {
        let mut bytes = 0_u64;
        for name in files::names(&self.root().join("layers"))? {
            if let Some(diff_id) = digest_of(&name) {
                let record = files::read::<LayerRecord>(&self.layer(&diff_id).join("layer.json"))?;
                bytes = bytes.saturating_add(record.map_or(0, |r| r.disk_bytes));
            }
        }
        Ok(bytes)
    }

    /// Makes room for `wanted` bytes: layers that nothing needs go first, then images that nobody holds, those without a name
    /// first and then the longest unused. With `lock` held.
    pub(super) fn make_room(&self, wanted: u64, work: &Work) -> Result<()> {
        let Some(limit) = self.limits().bytes else { return Ok(()) };
        let mut bytes = self.bytes()?.saturating_add(wanted);
        if bytes <= limit {
            return Ok(());
        }
        bytes = bytes.saturating_sub(self.drop_layers(work)?.1);
        let mut idle = self.list()?;
        idle.retain(|image| image.held_by.is_empty());
        idle.sort_by_key(|image| (!image.names.is_empty(), image.used));
        for image in idle {
            if bytes <= limit {
                return Ok(());
            }
            self.drop_image(&image.id, &image.names)?;
            bytes = bytes.saturating_sub(self.drop_layers(work)?.1);
        }
        if bytes <= limit {
            return Ok(());
        }
        Err(Error::resource_limit(format!(
            "the image store may take {} MiB and what is in use takes so many that {} MiB more do not fit: destroy sandboxes of images that are not needed, or raise its limit",
            limit >> 20,
            wanted.div_ceil(1 << 20)
        )))
    }
}
