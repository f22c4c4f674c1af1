//! The event stream.

use crate::{
    client::{Client, PROMPT, SILENCE},
    error::{Error, Result},
    lines::Lines,
};
use bytes::BytesMut;
use reqwest::Method;
use stacyvm_types::Event;

/// Longest event.
const LONGEST: usize = 1 << 20;

/// Events of one connection, as they come.
#[derive(Debug)]
pub struct EventStream {
    lines: Lines,
}

impl EventStream {
    /// The next event; `None` when the connection ended.
    ///
    /// # Errors
    /// [`Error::Broken`], [`Error::Protocol`].
    pub async fn next(&mut self) -> Result<Option<Event>> {
        let mut data = BytesMut::new();
        while let Some(line) = self.lines.next().await? {
            if let Some(text) = line.strip_prefix(b"data:") {
                if !data.is_empty() {
                    data.extend_from_slice(b"\n");
                }
                data.extend_from_slice(text.strip_prefix(b" ").unwrap_or(text));
                if data.len() > LONGEST {
                    return Err(Error::Protocol("an event without end".to_owned()));
                }
            } else if line.is_empty() && !data.is_empty() {
                let event =
                    serde_json::from_slice(&data).map_err(|e| Error::Protocol(format!("{e} in an event")))?;
                return Ok(Some(event));
            }
        }
        Ok(None)
    }
}

impl Client {
    /// Events from now on; with `after`, first those that followed the event of this id.
    ///
    /// # Errors
    /// As the server says.
    pub async fn events(&self, after: Option<&str>) -> Result<EventStream> {
        let mut request = self.request(Method::GET, &["events"]);
        if let Some(after) = after {
            request = request.header("last-event-id", after);
        }
        let response = tokio::time::timeout(PROMPT, self.send(request)).await;
        let response = response.map_err(|_| Error::Broken("no answer in time".to_owned()))??;
        Ok(EventStream { lines: Lines::new(response, SILENCE) })
    }
}
