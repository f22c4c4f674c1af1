//! Archives for tests: as little of the format as they need.

use futures::StreamExt;
use stacyvm_provider::{ByteStream, Error, Result};
use stacyvm_tar::{Entry, Event, Kind, Reader, append};

/// Adds a file to an archive.
pub(crate) fn add(archive: &mut Vec<u8>, path: &str, content: &[u8]) {
    let entry = Entry {
        kind: Kind::File,
        path: path.into(),
        link: Vec::new(),
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: (1_700_000_000, 0),
        size: content.len() as u64,
    };
    append(&entry, content, archive);
}

/// The files of an archive.
pub(crate) async fn read(mut content: ByteStream) -> Result<Vec<(String, Vec<u8>)>> {
    let bad = |error: stacyvm_tar::Error| Error::invalid_argument(error.to_string());
    let (mut reader, mut files) = (Reader::new(), Vec::new());
    while let Some(piece) = content.next().await {
        let piece = piece?;
        let mut piece = &*piece;
        while let Some(event) = reader.next(&mut piece).map_err(bad)? {
            match event {
                Event::Entry(entry) => {
                    files.push((String::from_utf8_lossy(&entry.path).into_owned(), Vec::new()));
                }
                Event::Data(data) => files.last_mut().unwrap().1.extend_from_slice(data),
                Event::FileEnd | Event::End => {}
            }
        }
    }
    reader.finish().map_err(bad)?;
    Ok(files)
}
