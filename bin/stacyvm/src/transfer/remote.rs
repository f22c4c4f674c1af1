//! Files of a sandbox of a server.

use super::{Content, Entry, Files, Kind};
use crate::failure::{Failure, Result};
use futures::{StreamExt, stream};
use stacyvm_client::{Client, Upload};
use stacyvm_types::{FileInfo, MakeDirectory};
use std::io;

/// Files of one sandbox.
pub(crate) struct RemoteFiles<'a> {
    pub(crate) client: &'a Client,
    pub(crate) sandbox: &'a str,
}

impl Files for RemoteFiles<'_> {
    async fn stat(&self, path: &str) -> Result<Option<Entry>> {
        match self.client.stat(self.sandbox, path).await {
            Ok(info) => Ok(Some(entry(info))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn list(&self, path: &str) -> Result<Vec<Entry>> {
        Ok(self.client.list_files(self.sandbox, path).await?.into_iter().map(entry).collect())
    }

    async fn make_directory(&self, path: &str, mode: u32) -> Result<()> {
        let directory =
            MakeDirectory { path: path.to_owned(), mode: Some(format!("{mode:o}")), parents: true };
        self.client.make_directory(self.sandbox, &directory).await?;
        Ok(())
    }

    async fn write(
        &self,
        path: &str,
        mode: Option<u32>,
        size: Option<u64>,
        content: Content<io::Error>,
    ) -> Result<()> {
        let file = Upload { path: path.to_owned(), mode, size };
        self.client.upload(self.sandbox, &file, content).await?;
        Ok(())
    }

    async fn read(&self, path: &str) -> Result<Content<Failure>> {
        let download = self.client.download(self.sandbox, path, 0).await?;
        let pieces = stream::try_unfold(download, |mut download| async move {
            let piece = download.next().await?;
            Ok(piece.map(|piece| (piece, download)))
        });
        Ok(pieces.boxed())
    }
}

fn entry(info: FileInfo) -> Entry {
    let kind = match info.kind {
        Some(_) => Kind::Other,
        None if info.is_dir => Kind::Directory,
        None => Kind::File,
    };
    Entry { path: info.path, kind, mode: u32::from_str_radix(&info.mode, 8).unwrap_or(0o644) }
}
