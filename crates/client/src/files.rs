//! Files of a sandbox. Content is streamed both ways, so that its size does not matter.

use crate::{
    client::{Client, PROMPT, SLOW},
    error::{Error, Result},
};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use reqwest::{
    Body, Method, RequestBuilder, Response,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use serde::de::DeserializeOwned;
use stacyvm_types::{ChmodFile, FileInfo, MakeDirectory, MoveFile, StatusReply, WriteFile};
use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// Longest silence within a file.
const SILENCE: Duration = Duration::from_secs(120);

/// Where and how a file is written.
#[derive(Debug, Clone, Default)]
pub struct Upload {
    /// Absolute path.
    pub path: String,
    /// Permission bits; `None`: the server's choice.
    pub mode: Option<u32>,
    /// Size in bytes, when known: an upload that ends short of it leaves the old file.
    pub size: Option<u64>,
}

/// A file on its way here.
#[derive(Debug)]
pub struct Download {
    pub(crate) response: Response,
    pub(crate) left: Option<u64>,
}

impl Download {
    /// Bytes still to come, when the server said how many there are.
    pub fn remaining(&self) -> Option<u64> {
        self.left
    }

    /// The next piece; `None` when the file is complete.
    ///
    /// # Errors
    /// [`Error::Broken`] when the file ended early.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        let piece = tokio::time::timeout(SILENCE, self.response.chunk()).await;
        let piece = piece.map_err(|_| Error::Broken("the server fell silent".to_owned()))?;
        let piece = piece.map_err(|e| Error::Broken(e.to_string()))?;
        if let (Some(left), length) = (&mut self.left, piece.as_ref().map_or(0, |p| p.len() as u64)) {
            if length == 0 && *left > 0 {
                return Err(Error::Broken(format!("the file ended {left} bytes early")));
            }
            *left = left.saturating_sub(length);
        }
        Ok(piece)
    }
}

impl Client {
    /// Writes a file: the old one is replaced in one step when all content has arrived.
    ///
    /// # Errors
    /// As the server says; [`Error::Source`] when `content` fails, and then nothing is replaced.
    pub async fn upload<S>(&self, id: &str, file: &Upload, content: S) -> Result<FileInfo>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        let mut request = self
            .request(Method::PUT, &["sandboxes", id, "files"])
            .query(&[("path", &file.path)])
            .header(CONTENT_TYPE, "application/octet-stream");
        if let Some(mode) = file.mode {
            request = request.query(&[("mode", format!("{mode:o}"))]);
        }
        if let Some(size) = file.size {
            request = request.header(CONTENT_LENGTH, size);
        }
        self.send_content(request, content).await
    }

    /// Sends a request whose body is `content`, for as long as that takes.
    pub(crate) async fn send_content<T, S>(&self, request: RequestBuilder, content: S) -> Result<T>
    where
        T: DeserializeOwned,
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        // What went wrong while reading here must not look like a broken connection.
        let failure = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&failure);
        let content = content.map(move |piece| {
            piece.map_err(|error| {
                let copy = io::Error::new(error.kind(), error.to_string());
                *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                copy
            })
        });
        let answer = self.json(request.body(Body::wrap_stream(content)), None).await;
        match failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(error) => Err(Error::Source(error)),
            None => answer,
        }
    }

    /// Reads a file from `offset` on.
    ///
    /// # Errors
    /// As the server says.
    pub async fn download(&self, id: &str, path: &str, offset: u64) -> Result<Download> {
        let mut request = self.request(Method::GET, &["sandboxes", id, "files"]).query(&[("path", path)]);
        if offset > 0 {
            request = request.header("range", format!("bytes={offset}-"));
        }
        let response = tokio::time::timeout(PROMPT, self.send(request)).await;
        let response = response.map_err(|_| Error::Broken("no answer in time".to_owned()))??;
        if offset > 0 && response.status() != 206 {
            return Err(Error::Protocol("it ignored the range".to_owned()));
        }
        let left = response.content_length();
        Ok(Download { response, left })
    }

    /// Metadata.
    ///
    /// # Errors
    /// As the server says.
    pub async fn stat(&self, id: &str, path: &str) -> Result<FileInfo> {
        self.json(
            self.request(Method::GET, &["sandboxes", id, "files", "stat"]).query(&[("path", path)]),
            PROMPT,
        )
        .await
    }

    /// Entries of a directory.
    ///
    /// # Errors
    /// As the server says.
    pub async fn list_files(&self, id: &str, path: &str) -> Result<Vec<FileInfo>> {
        self.json(
            self.request(Method::GET, &["sandboxes", id, "files", "list"]).query(&[("path", path)]),
            SLOW,
        )
        .await
    }

    /// Paths that match a pattern.
    ///
    /// # Errors
    /// As the server says.
    pub async fn glob(&self, id: &str, pattern: &str) -> Result<Vec<String>> {
        let request = self.request(Method::GET, &["sandboxes", id, "files", "glob"]);
        self.json(request.query(&[("pattern", pattern)]), SLOW).await
    }

    /// Writes a text file.
    ///
    /// # Errors
    /// As the server says.
    pub async fn write_file(&self, id: &str, file: &WriteFile) -> Result<StatusReply> {
        self.json(self.request(Method::POST, &["sandboxes", id, "files"]).json(file), SLOW).await
    }

    /// Removes a file, with `recursive` also a directory with content.
    ///
    /// # Errors
    /// As the server says.
    pub async fn remove_file(&self, id: &str, path: &str, recursive: bool) -> Result<StatusReply> {
        let mut request = self.request(Method::DELETE, &["sandboxes", id, "files"]).query(&[("path", path)]);
        if recursive {
            request = request.query(&[("recursive", "true")]);
        }
        self.json(request, SLOW).await
    }

    /// Renames.
    ///
    /// # Errors
    /// As the server says.
    pub async fn move_file(&self, id: &str, files: &MoveFile) -> Result<StatusReply> {
        self.post(&["sandboxes", id, "files", "move"], files).await
    }

    /// Sets permission bits.
    ///
    /// # Errors
    /// As the server says.
    pub async fn chmod(&self, id: &str, file: &ChmodFile) -> Result<StatusReply> {
        self.post(&["sandboxes", id, "files", "chmod"], file).await
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// As the server says.
    pub async fn make_directory(&self, id: &str, directory: &MakeDirectory) -> Result<StatusReply> {
        self.post(&["sandboxes", id, "files", "mkdir"], directory).await
    }
}
