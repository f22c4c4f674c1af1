//! Files of an [`AgentGuest`]: streams in both directions, bounded lists.

use super::{AgentGuest, DISK, convert};
use crate::{ByteStream, Error, FileEntry, ReadRange, Result, WriteFile};
use futures::{StreamExt, stream};
use stacyvm_guest::{limits, proto};
use std::sync::{Arc, Mutex, PoisonError};

/// Most files in one answer of `list_dir` or `glob`.
pub(super) const MOST_FILES: u32 = 100_000;
/// Most bytes of paths in such an answer.
const MOST_PATH_BYTES: usize = 32 << 20;

impl AgentGuest {
    pub(super) async fn upload(&self, file: &WriteFile, content: ByteStream) -> Result<FileEntry> {
        let start = proto::WriteFileStart {
            path: file.path.clone(),
            mode: file.mode,
            user: file.user.clone().unwrap_or_default(),
        };
        // The protocol's stream cannot carry an error: one in `content` ends it without `finish`, so that the agent
        // keeps the old file, and is handed out here.
        let failed = Arc::new(Mutex::new(None));
        use proto::write_file_part::Part;
        let parts = stream::once(async { Part::Start(start) })
            .chain(data_parts(content, Arc::clone(&failed), Part::Data, Part::Finish))
            .map(|part| proto::WriteFilePart { part: Some(part) });
        let mut bulk = self.bulk.clone();
        // No deadline over the whole: a file may take as long as its sender. A dead agent ends the connection.
        let result = bulk.write_file(parts).await;
        let content_error = failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(error) = content_error {
            return Err(error);
        }
        let entry = result.map_err(|status| convert::error(&self.identity.sandbox_id, &status))?;
        convert::file(entry.into_inner()).map_err(|how| self.broke_protocol(how))
    }

    pub(super) async fn download(&self, path: &str, range: ReadRange) -> Result<(FileEntry, ByteStream)> {
        use proto::read_file_part::Part;
        if range.length == Some(0) {
            let mut bulk = self.bulk.clone();
            let request = proto::PathRequest { path: path.to_owned(), follow: true };
            let entry = convert::file(self.call(DISK, bulk.stat(request)).await?)
                .map_err(|how| self.broke_protocol(how))?;
            return Ok((entry, stream::empty().boxed()));
        }
        let length = range.length.unwrap_or_default();
        let request = proto::ReadFileRequest { path: path.to_owned(), offset: range.offset, length };
        let mut bulk = self.bulk.clone();
        let mut parts = self.call(DISK, bulk.read_file(request)).await?;
        let first = self.call(DISK, async { parts.message().await.map(tonic::Response::new) }).await?;
        let Some(Part::Info(info)) = first.and_then(|part| part.part) else {
            return Err(self.broke_protocol("content without metadata"));
        };
        let entry = convert::file(info).map_err(|how| self.broke_protocol(how))?;
        let expected = entry.size.saturating_sub(range.offset).min(range.length.unwrap_or(u64::MAX));
        let state = Some((parts, self.clone(), expected));
        let content = stream::unfold(state, |state| async move {
            let (mut parts, guest, left) = state?;
            let part = guest.call(DISK, async { parts.message().await.map(tonic::Response::new) }).await;
            match part.map(|part| part.map(|part| part.part)) {
                Ok(Some(Some(Part::Data(data)))) if !data.is_empty() && data.len() as u64 <= left => {
                    let left = left - data.len() as u64;
                    Some((Ok(data), Some((parts, guest, left))))
                }
                Ok(None) if left == 0 => None,
                Ok(None) => Some((Err(Error::internal("the file became shorter while it was read")), None)),
                Ok(Some(_)) => {
                    Some((Err(guest.broke_protocol("content that does not fit its metadata")), None))
                }
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok((entry, content.boxed()))
    }

    pub(super) async fn collect_files(
        &self,
        mut stream: tonic::Streaming<proto::FileInfos>,
    ) -> Result<Vec<FileEntry>> {
        let too_many = || {
            Error::resource_limit(format!("more than {MOST_FILES} files; ask for a smaller part of the tree"))
        };
        let (mut files, mut bytes) = (Vec::new(), 0);
        while let Some(batch) =
            self.call(DISK, async { stream.message().await.map(tonic::Response::new) }).await?
        {
            if batch.files.is_empty() {
                return Err(self.broke_protocol("an empty batch of files"));
            }
            for file in batch.files {
                let file = convert::file(file).map_err(|how| self.broke_protocol(how))?;
                bytes += file.path.len() + file.link_target.as_ref().map_or(0, String::len);
                if files.len() >= MOST_FILES as usize || bytes > MOST_PATH_BYTES {
                    return Err(too_many());
                }
                files.push(file);
            }
        }
        Ok(files)
    }
}

/// `content` in pieces that the protocol takes, with `finish` behind them unless it fails.
pub(super) fn data_parts<P: Send + 'static>(
    content: ByteStream,
    failed: Arc<Mutex<Option<Error>>>,
    data: fn(bytes::Bytes) -> P,
    finish: fn(proto::Empty) -> P,
) -> impl futures::Stream<Item = P> + Send + 'static {
    stream::unfold(Some((content, bytes::Bytes::new(), failed)), move |state| async move {
        let (mut content, mut rest, failed) = state?;
        while rest.is_empty() {
            match content.next().await {
                Some(Ok(piece)) => rest = piece,
                Some(Err(error)) => {
                    *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    return None;
                }
                None => return Some((finish(proto::Empty {}), None)),
            }
        }
        let piece = rest.split_to(rest.len().min(limits::CHUNK_BYTES));
        Some((data(piece), Some((content, rest, failed))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proto::write_file_part::Part;

    async fn parts(content: Vec<Result<Bytes>>) -> (Vec<Part>, Option<Error>) {
        let failed = Arc::new(Mutex::new(None));
        let parts = data_parts(stream::iter(content).boxed(), Arc::clone(&failed), Part::Data, Part::Finish);
        let parts = parts.collect().await;
        let error = failed.lock().unwrap().take();
        (parts, error)
    }

    #[tokio::test]
    async fn large_pieces_are_split_and_finished() {
        let (parts, error) =
            parts(vec![Ok(Bytes::from(vec![7; limits::CHUNK_BYTES + 1])), Ok(Bytes::new())]).await;
        assert!(error.is_none());
        let sizes: Vec<_> =
            parts.iter().filter_map(|p| if let Part::Data(d) = p { Some(d.len()) } else { None }).collect();
        assert_eq!(sizes, [limits::CHUNK_BYTES, 1]);
        assert!(matches!(parts.last(), Some(Part::Finish(_))));
    }

    #[tokio::test]
    async fn a_broken_source_is_never_finished() {
        let (parts, error) =
            parts(vec![Ok(Bytes::from_static(b"x")), Err(Error::unavailable("client gone"))]).await;
        assert!(!parts.iter().any(|p| matches!(p, Part::Finish(_))));
        assert_eq!(error.unwrap().message(), "client gone");
    }
}
