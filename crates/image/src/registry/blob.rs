//! Blobs that are large: into a file, hashed as they come, gone on with where they broke off, also in another process.

use super::{Ask, Failure, Registry, settings::Server};
use crate::{Blob, Digest, Hasher, Reference};
use ::http::{HeaderMap, StatusCode, header};
use stacyvm_provider::Result;
use std::{
    io::{self, Read},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};
use tokio::{
    fs::File,
    io::{AsyncWriteExt, BufWriter},
};

/// Bytes by which a download must come on so that attempts that failed are forgotten.
const CAME_ON: u64 = 256 << 10;
/// Bytes that are written at once.
const AT_ONCE: usize = 256 << 10;

/// A file on its way to being a blob.
struct Download<'a> {
    blob: &'a Blob,
    path: PathBuf,
    file: BufWriter<File>,
    hasher: Hasher,
    /// Bytes that are there.
    have: u64,
    /// The most that ever were.
    most: u64,
    /// What that was when failures were forgotten last.
    mark: u64,
    /// Whether all of it came in one answer: then it is its server's word.
    whole: bool,
    /// Whether to go on where it broke off. Not any more when that made a wrong blob.
    resume: bool,
    progress: &'a AtomicU64,
}

impl Registry {
    /// Brings a blob into `partial`, going on with what is there. When it returns the file is the blob: its size and digest
    /// were checked. `progress` has the bytes that are there.
    ///
    /// What came before a failure stays, for the next; what is wrong, and what filled the disk, goes. One caller at a time
    /// for one path.
    ///
    /// # Errors
    /// As [`Failure::explain`] tells them apart.
    pub(crate) async fn blob(
        &self,
        reference: &Reference,
        blob: &Blob,
        partial: &Path,
        progress: &AtomicU64,
    ) -> Result<()> {
        let mut download = Download::open(blob, partial, progress)
            .await
            .map_err(|error| Failure::Disk(error).explain(reference, &self.settings.origin(reference)))?;
        if download.is_complete() {
            return Ok(());
        }
        let outcome = self.download(reference, &mut download).await;
        if outcome.is_err() {
            if download.have == 0 {
                let _ = std::fs::remove_file(partial);
            } else {
                // So that the next one finds all of it.
                let _ = download.file.flush().await;
            }
        }
        outcome
    }

    async fn download(&self, reference: &Reference, download: &mut Download<'_>) -> Result<()> {
        let mut turns = self.turns(reference);
        loop {
            let failure = match self.attempt(&turns.server, download).await {
                Ok(()) => match download.finish().await {
                    Ok(None) => return Ok(()),
                    Ok(Some(_)) if !download.whole => {
                        // Nobody can say which piece is wrong.
                        tracing::info!(blob = %download.blob.digest, "a blob made of pieces is wrong, and fetched whole");
                        download.resume = false;
                        continue;
                    }
                    Ok(Some(digest)) => {
                        Failure::Lies(format!("sends the blob {digest} instead of {}", download.blob.digest))
                    }
                    Err(error) => Failure::Disk(error),
                },
                Err(failure) => failure,
            };
            match &failure {
                // A disk that is full shall not stay so because of this.
                Failure::Disk(_) => {
                    let _ = std::fs::remove_file(&download.path);
                }
                Failure::Lies(_) => {
                    if let Err(error) = download.start_over().await {
                        return Err(Failure::Disk(error).explain(reference, &turns.server));
                    }
                }
                _ => {}
            }
            if download.most >= download.mark.saturating_add(CAME_ON) {
                download.mark = download.most;
                turns.tries.came_on();
            }
            turns.failed(failure).await?;
        }
    }

    async fn attempt(&self, server: &Server, download: &mut Download<'_>) -> Result<(), Failure> {
        if !download.resume && download.have > 0 {
            download.start_over().await.map_err(Failure::Disk)?;
        }
        let (size, short) = (download.blob.size, download.blob.digest.short().to_owned());
        let path = format!("blobs/{}", download.blob.digest);
        let answer = self.get(server, &Ask { path: &path, accept: None, from: download.have }).await;
        let response = match answer {
            Ok(response) => response,
            Err(Failure::NoTag | Failure::NoImage) => return Err(Failure::NoBlob),
            Err(Failure::Status(416, _)) if download.have > 0 => {
                download.resume = false;
                return Err(Failure::Cut { got: download.have, of: size });
            }
            Err(failure) => return Err(failure),
        };
        if response.status() == StatusCode::PARTIAL_CONTENT {
            if starts(response.headers()) != Some((download.have, size)) {
                // It has its own idea of ranges.
                download.resume = false;
                return Err(Failure::Cut { got: download.have, of: size });
            }
        } else {
            download.start_over().await.map_err(Failure::Disk)?;
        }
        download.whole = download.have == 0;
        let announced = response.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        if let Some(announced) = announced.and_then(|text| text.parse::<u64>().ok())
            && announced != size - download.have
        {
            let expected = size - download.have;
            return Err(Failure::Lies(format!(
                "announces {announced} bytes of the blob {short}, not {expected}"
            )));
        }
        let mut body = response.into_body();
        loop {
            match self.http.chunk(&mut body).await {
                Ok(Some(chunk)) => {
                    if download.have + chunk.len() as u64 > size {
                        return Err(Failure::Lies(format!(
                            "sends more than the {size} bytes of the blob {short}"
                        )));
                    }
                    download.take(&chunk).await.map_err(Failure::Disk)?;
                }
                Ok(None) | Err(Failure::Unreachable(_)) => {
                    return Err(Failure::Cut { got: download.have, of: size });
                }
                Err(failure) => return Err(failure),
            }
            // What may follow is not waited for.
            if download.have == size {
                return Ok(());
            }
        }
    }
}

/// The first byte and the whole size, of an answer that is a part.
fn starts(headers: &HeaderMap) -> Option<(u64, u64)> {
    let text = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (range, size) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    Some((first.trim().parse().ok()?, size.trim().parse().ok()?))
}

impl<'a> Download<'a> {
    async fn open(blob: &'a Blob, path: &Path, progress: &'a AtomicU64) -> io::Result<Self> {
        let (owned, size) = (path.to_owned(), blob.size);
        let (file, hasher, have) =
            tokio::task::spawn_blocking(move || rehash(&owned, size)).await.map_err(io::Error::other)??;
        let file = BufWriter::with_capacity(AT_ONCE, File::from_std(file));
        let mut download = Self {
            blob,
            path: path.to_owned(),
            file,
            hasher,
            have,
            most: have,
            mark: have,
            whole: false,
            resume: true,
            progress,
        };
        if have >= blob.size && !download.is_complete() {
            download.start_over().await?;
        }
        progress.store(download.have, Relaxed);
        Ok(download)
    }

    fn is_complete(&self) -> bool {
        self.have == self.blob.size && self.hasher.clone().finish() == self.blob.digest
    }

    async fn take(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.file.write_all(chunk).await?;
        self.hasher.update(chunk);
        self.have += chunk.len() as u64;
        self.most = self.most.max(self.have);
        self.progress.store(self.have, Relaxed);
        Ok(())
    }

    async fn start_over(&mut self) -> io::Result<()> {
        if self.have == 0 {
            return Ok(());
        }
        self.file.flush().await?;
        self.file.get_ref().set_len(0).await?;
        tokio::io::AsyncSeekExt::rewind(&mut self.file).await?;
        self.hasher = Hasher::default();
        self.have = 0;
        self.progress.store(0, Relaxed);
        Ok(())
    }

    /// The digest of what is there, if it is not the blob's.
    async fn finish(&mut self) -> io::Result<Option<Digest>> {
        self.file.flush().await?;
        let digest = self.hasher.clone().finish();
        Ok((digest != self.blob.digest).then_some(digest))
    }
}

/// Opens a partial file and hashes what is in it. One that is longer than the blob is emptied.
fn rehash(path: &Path, size: u64) -> io::Result<(std::fs::File, Hasher, u64)> {
    let mut file =
        std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    let mut hasher = Hasher::default();
    let mut have = 0;
    if file.metadata()?.len() > size {
        file.set_len(0)?;
    }
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        // Not for ever, should somebody else write to it.
        if read == 0 || have > size {
            return Ok((file, hasher, have));
        }
        hasher.update(&buffer[..read]);
        have += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_understood() {
        let read = |text: &'static str| {
            starts(&HeaderMap::from_iter([(header::CONTENT_RANGE, ::http::HeaderValue::from_static(text))]))
        };
        assert_eq!(read("bytes 5-9/10"), Some((5, 10)));
        for text in ["", "bytes */10", "bytes 5-9/*", "bytes -5/10", "items 5-9/10", "bytes 5/10"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[tokio::test]
    async fn what_is_there_is_hashed_and_what_cannot_be_is_thrown_away() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("partial");
        let blob = Blob { digest: Digest::of(b"0123456789"), size: 10 };
        let progress = AtomicU64::new(0);
        for (content, have) in
            [(&b""[..], 0), (b"01234", 5), (b"0123456789", 10), (b"0123456780", 0), (b"01234567890", 0)]
        {
            std::fs::write(&path, content).unwrap();
            let download = Download::open(&blob, &path, &progress).await.unwrap();
            assert_eq!((download.have, progress.load(Relaxed)), (have, have), "{content:?}");
            assert_eq!(download.is_complete(), have == 10);
            assert_eq!(std::fs::metadata(&path).unwrap().len(), have);
        }
        assert!(Download::open(&blob, directory.path(), &progress).await.is_err());
    }
}
