//! Files of a sandbox of an engine within this program.

use super::{Content, Entry, Files, Kind};
use crate::failure::{Failure, Result};
use futures::StreamExt;
use stacyvm_provider::{Error, ErrorKind, FileEntry, FileKind, Guest, ReadRange, WriteFile};
use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

/// Permission bits of files that have none of their own.
const MODE: u32 = 0o644;

/// Files of one sandbox.
pub(crate) struct EmbeddedFiles(pub(crate) Arc<dyn Guest>);

impl Files for EmbeddedFiles {
    async fn stat(&self, path: &str) -> Result<Option<Entry>> {
        match self.0.stat(path, true).await {
            Ok(found) => Ok(Some(entry(found))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn list(&self, path: &str) -> Result<Vec<Entry>> {
        Ok(self.0.list_dir(path).await?.into_iter().map(entry).collect())
    }

    async fn make_directory(&self, path: &str, mode: u32) -> Result<()> {
        Ok(self.0.mkdir(path, mode, true).await?)
    }

    async fn write(
        &self,
        path: &str,
        mode: Option<u32>,
        _: Option<u64>,
        content: Content<io::Error>,
    ) -> Result<()> {
        let file = WriteFile { path: path.to_owned(), mode: mode.unwrap_or(MODE), user: None };
        // What went wrong while reading here is what there is to say.
        let broken = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&broken);
        let content = content.map(move |piece| {
            piece.map_err(|error| {
                let text = error.to_string();
                *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(text.clone());
                Error::invalid_argument(text)
            })
        });
        let written = self.0.write_file(&file, content.boxed()).await;
        if let Some(text) = broken.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(Failure::new(text, ""));
        }
        written?;
        Ok(())
    }

    async fn read(&self, path: &str) -> Result<Content<Failure>> {
        let (_, content) = self.0.read_file(path, ReadRange::default()).await?;
        Ok(content.map(|piece| piece.map_err(Failure::from)).boxed())
    }
}

fn entry(found: FileEntry) -> Entry {
    let kind = match found.kind {
        FileKind::File => Kind::File,
        FileKind::Directory => Kind::Directory,
        FileKind::Symlink | FileKind::Other => Kind::Other,
    };
    Entry { path: found.path, kind, mode: found.mode }
}
