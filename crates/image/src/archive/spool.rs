//! Bytes that can be read once only are kept in a file first, for as long as the import takes.

use crate::{
    store::Work,
    unpack::{Compression, Decoder, failed, space::room},
};
use stacyvm_provider::{Error, Result};
use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
};

/// Bytes between two looks at the disk.
const LOOK: u64 = 64 << 20;

/// A file with all bytes of `stream`, of which there are `limit` at most.
pub(super) fn spool(mut stream: impl Read, work: &Work, limit: u64) -> Result<File> {
    let mut file = temporary(work)?;
    let mut buffer = vec![0; 1 << 20];
    let (mut bytes, mut looked_at) = (0_u64, 0);
    loop {
        let read = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => {
                let text = format!("the archive ended before it was complete: {e}: send it again");
                return Err(Error::invalid_argument(text).because(e));
            }
        };
        bytes += read as u64;
        if bytes > limit {
            return Err(Error::resource_limit(format!(
                "the archive has more than the {limit} bytes allowed for one import"
            )));
        }
        if bytes - looked_at >= LOOK {
            looked_at = bytes;
            room(&file, work.store().limits().layer.reserve_bytes)?;
        }
        file.write_all(&buffer[..read]).map_err(|e| failed("keep the archive", e))?;
    }
    file.rewind().map_err(|e| failed("keep the archive", e))?;
    Ok(file)
}

/// The archive without compression: itself, or a file of its own.
pub(super) fn plain(file: File, compression: Compression, work: &Work, limit: u64) -> Result<File> {
    if compression == Compression::None { Ok(file) } else { spool(Decoder::new(file)?, work, limit) }
}

/// A file without a name, which is gone when it is closed, whoever closes it.
fn temporary(work: &Work) -> Result<File> {
    let path = work.directory().join("archive");
    let open = || -> io::Result<File> {
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(file)
    };
    open().map_err(|e| failed("keep the archive", e))
}
