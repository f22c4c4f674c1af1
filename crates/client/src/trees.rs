//! Trees of a sandbox: archives, changes, disk usage.

use crate::{
    client::{Client, PROMPT, SILENCE},
    error::{Error, Result},
    files::Download,
    lines::Lines,
};
use bytes::Bytes;
use futures::Stream;
use reqwest::{
    Method, RequestBuilder, Response,
    header::{ACCEPT_ENCODING, CONTENT_TYPE},
};
use stacyvm_types::{DiskUsage, ExtractedArchive, FileEvent};
use std::{io, time::Duration};

/// Time for a look at a whole tree.
const WHOLE: Duration = Duration::from_secs(660);

/// Changes of a directory, as they come.
#[derive(Debug)]
pub struct FileEventStream {
    lines: Lines,
}

impl FileEventStream {
    /// The next change; `None` when the connection ended.
    ///
    /// # Errors
    /// [`Error::Broken`], [`Error::Protocol`].
    pub async fn next(&mut self) -> Result<Option<FileEvent>> {
        // The server writes each on one line; numbers and signs of life stand on others.
        while let Some(line) = self.lines.next().await? {
            if let Some(text) = line.strip_prefix(b"data:") {
                let event = serde_json::from_slice(text);
                return event.map(Some).map_err(|e| Error::Protocol(format!("{e} in an event")));
            }
        }
        Ok(None)
    }
}

impl Client {
    /// A directory, or one file, as a tar archive that is not compressed. It is whole when it has its end mark.
    ///
    /// # Errors
    /// As the server says.
    pub async fn archive(&self, id: &str, path: &str) -> Result<Download> {
        let request = self.request(Method::GET, &["sandboxes", id, "files", "archive"]);
        let request = request.query(&[("path", path)]).header(ACCEPT_ENCODING, "identity");
        Ok(Download { response: self.opened(request, PROMPT).await?, left: None })
    }

    /// Unpacks a tar archive in a directory. What was unpacked before a failure stays.
    ///
    /// # Errors
    /// As the server says; [`Error::Source`] when `content` fails.
    pub async fn upload_archive<S>(&self, id: &str, path: &str, content: S) -> Result<ExtractedArchive>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        let request = self.request(Method::PUT, &["sandboxes", id, "files", "archive"]);
        let request = request.query(&[("path", path)]).header(CONTENT_TYPE, "application/x-tar");
        self.send_content(request, content).await
    }

    /// Changes in a directory, with `recursive` also below it. What happens once this has returned is told.
    ///
    /// # Errors
    /// As the server says.
    pub async fn watch_files(&self, id: &str, path: &str, recursive: bool) -> Result<FileEventStream> {
        let request = self.request(Method::GET, &["sandboxes", id, "files", "watch"]);
        let query = [("path", path), ("recursive", if recursive { "true" } else { "false" })];
        let response = self.opened(request.query(&query), WHOLE).await?;
        Ok(FileEventStream { lines: Lines::new(response, SILENCE) })
    }

    /// How much disk a file or directory takes.
    ///
    /// # Errors
    /// As the server says.
    pub async fn disk_usage(&self, id: &str, path: &str) -> Result<DiskUsage> {
        let request = self.request(Method::GET, &["sandboxes", id, "files", "usage"]);
        self.json(request.query(&[("path", path)]), WHOLE).await
    }

    /// The answer to a request, whose body may come for as long as it likes.
    async fn opened(&self, request: RequestBuilder, deadline: Duration) -> Result<Response> {
        let response = tokio::time::timeout(deadline, self.send(request)).await;
        response.map_err(|_| Error::Broken("no answer in time".to_owned()))?
    }
}
