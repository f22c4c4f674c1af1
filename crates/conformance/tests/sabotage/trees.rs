//! What the broken guest does to trees.

use crate::{Defect, Defects, guest::whole};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, future::ready};
use stacyvm_provider::{
    ByteStream, ChangeStream, ExtractTarget, Extracted, FileChange, Guest, Result, WriteFile,
};
use stacyvm_tar::{Event, Reader};

pub(crate) fn archive(defects: Defects, content: ByteStream) -> ByteStream {
    if !defects.has(Defect::SpoilsArchives) {
        return content;
    }
    // One byte in the middle of the data of a large file.
    let mut left = 500_000;
    let spoil = move |piece: Result<Bytes>| {
        let mut bytes = BytesMut::from(&*piece?);
        if let Some(byte) = bytes.get_mut(left) {
            *byte ^= 1;
        }
        left = left.checked_sub(bytes.len()).unwrap_or(usize::MAX);
        Ok(bytes.freeze())
    };
    content.map(spoil).boxed()
}

pub(crate) async fn extract(
    defects: Defects,
    inner: &dyn Guest,
    target: &ExtractTarget,
    content: ByteStream,
) -> Result<Extracted> {
    if defects.has(Defect::UnpacksThroughLinks) && target.path.contains("links_before") {
        return write_each(inner, target, content).await;
    }
    let result = inner.extract(target, content).await;
    if defects.has(Defect::ForgivesHostileArchives) && target.path.contains("hostile") {
        return Ok(result.unwrap_or_default());
    }
    result
}

/// Unpacks by writing each file to its path, as if nobody could have put a link there.
async fn write_each(inner: &dyn Guest, target: &ExtractTarget, mut content: ByteStream) -> Result<Extracted> {
    let mut archive = Vec::new();
    while let Some(piece) = content.next().await {
        archive.extend_from_slice(&piece?);
    }
    let (mut reader, mut input) = (Reader::new(), &*archive);
    let mut file = None;
    let mut made = Extracted::default();
    while let Ok(Some(event)) = reader.next(&mut input) {
        match event {
            Event::Entry(entry) => file = Some((entry.path, Vec::new())),
            Event::Data(data) => file.as_mut().unwrap().1.extend_from_slice(data),
            Event::FileEnd => {
                let (path, content) = file.take().unwrap();
                let path = format!("{}/{}", target.path, String::from_utf8(path).unwrap());
                let file = WriteFile { path, mode: 0o644, user: None };
                inner.write_file(&file, whole(&content)).await?;
                made.files += 1;
            }
            Event::End => {}
        }
    }
    Ok(made)
}

pub(crate) fn watch(defects: Defects, changes: ChangeStream) -> ChangeStream {
    let told = move |change: &Result<FileChange>| {
        let hidden = match change {
            Ok(FileChange::Overflow) => defects.has(Defect::HidesOverflow),
            Ok(FileChange::Created { path, .. }) => {
                defects.has(Defect::MissesNewDirectories) && path.ends_with("/d7/e/f")
            }
            _ => false,
        };
        ready(!hidden)
    };
    changes.filter(told).boxed()
}
