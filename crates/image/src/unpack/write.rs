//! Data of files, with holes where they are nothing but zeros.

use super::{
    blocks::{Blocks, truncated},
    entries::{Entries, Entry},
    failed, path,
    space::Space,
};
use stacyvm_provider::Result;
use std::{fs::File, os::unix::fs::FileExt};

/// Aligned pieces of zeros of this length become holes. Logs of logins by number are gigabytes of them in real images.
const HOLE: u64 = 64 << 10;

/// Writes the data of the current entry, whose headers are `entry`, to `file`, which is empty.
pub(super) fn data(
    entries: &mut Entries<'_, impl Blocks>,
    entry: &Entry,
    file: &File,
    space: &mut Space<'_>,
) -> Result<()> {
    let mut writer = Writer { file, entry, space, written: 0 };
    let whole = [(0, entry.stored)];
    let pieces = entry.sparse.as_ref().map_or(&whole[..], |map| &map.pieces);
    for (offset, length) in pieces {
        let (mut at, mut left) = (*offset, *length);
        while left > 0 {
            let data = entries.data()?;
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(data.len());
            if most == 0 {
                return Err(truncated());
            }
            writer.put(&data[..most], at)?;
            entries.taken(most);
            at += most as u64;
            left -= most as u64;
        }
    }
    let size = entry.size();
    if writer.written < size {
        file.set_len(size).map_err(|e| writer.failed(e))?;
    }
    Ok(())
}

struct Writer<'a, 's> {
    file: &'a File,
    entry: &'a Entry,
    space: &'a mut Space<'s>,
    /// End of what was written.
    written: u64,
}

impl Writer<'_, '_> {
    /// Puts `data` at `at`, without what can be a hole.
    fn put(&mut self, data: &[u8], at: u64) -> Result<()> {
        // Where a run of bytes that have to be written begins.
        let mut run = 0;
        let mut next = 0;
        while next < data.len() {
            let aligned = HOLE - (at + next as u64) % HOLE;
            let end = (next + aligned as usize).min(data.len());
            if aligned == HOLE && end - next == HOLE as usize && zeros(&data[next..end]) {
                self.write(&data[run..next], at + run as u64)?;
                run = end;
            }
            next = end;
        }
        self.write(&data[run..], at + run as u64)
    }

    fn write(&mut self, data: &[u8], at: u64) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        self.space.bytes(&self.entry.path, data.len() as u64)?;
        self.file.write_all_at(data, at).map_err(|e| self.failed(e))?;
        self.written = at + data.len() as u64;
        Ok(())
    }

    fn failed(&self, error: std::io::Error) -> stacyvm_provider::Error {
        failed(format_args!("write {}", path::shown(&self.entry.path)), error)
    }
}

/// Whether all bytes are zero; most data ends this at its first bytes.
fn zeros(data: &[u8]) -> bool {
    data.chunks(64).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}
