//! The output of a process, every byte once and in order, whatever happens to connections and to the server.
//!
//! Offsets are absolute, so after a cut the next connection goes on where the last one stopped; bytes that come twice are
//! dropped, bytes that are not kept any more are reported as a gap, and anything else is an error rather than a guess.

use crate::{
    client::Client,
    error::{Error, Result},
    processes::RecordStream,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{Buf, Bytes};
use stacyvm_types::{ExitRecord, OutputChunk, StreamName, StreamRecord};
use std::time::Duration;
use tokio::time::Instant;

/// What a process wrote, or how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Bytes that it wrote.
    Data {
        /// Where to.
        stream: StreamName,
        /// The bytes.
        data: Bytes,
    },
    /// Bytes that it wrote and that are not kept any more.
    Gap {
        /// How many.
        length: u64,
    },
    /// The connection was lost a moment ago and is being made again; for whoever waits. No output is missing.
    Reconnecting {
        /// Why it was lost.
        reason: String,
    },
    /// It ended and its output is complete. Nothing follows.
    Exit(ExitRecord),
}

/// An attachment to one process.
#[derive(Debug)]
pub struct Attachment {
    client: Client,
    sandbox: String,
    process: String,
    offset: u64,
    patience: Duration,
    stream: Option<RecordStream>,
    /// When the connection was lost that is not replaced yet.
    lost: Option<Instant>,
    /// That it was lost has been told.
    told: bool,
}

/// Losses shorter than this are nobody's business.
const MOMENT: Duration = Duration::from_secs(1);

impl Client {
    /// Attaches to a process from `offset` on. A lost connection is made again for up to `patience`; each byte that
    /// arrives starts that time anew.
    pub fn attach(&self, sandbox: &str, process: &str, offset: u64, patience: Duration) -> Attachment {
        Attachment {
            client: self.clone(),
            sandbox: sandbox.to_owned(),
            process: process.to_owned(),
            offset,
            patience,
            stream: None,
            lost: None,
            told: false,
        }
    }
}

impl Attachment {
    /// Offset behind the last byte that was handed out.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next piece. After [`Output::Exit`] or an error there is none. Dropping the future loses nothing.
    ///
    /// # Errors
    /// As the server says; [`Error::Broken`] or [`Error::Connect`] when patience is over.
    pub async fn next(&mut self) -> Result<Output> {
        loop {
            match self.step().await {
                Ok(Some(output)) => return Ok(output),
                Ok(None) => {}
                Err(error) if error.is_transient() => {
                    self.stream = None;
                    let lost = *self.lost.get_or_insert_with(Instant::now);
                    if lost.elapsed() >= self.patience {
                        return Err(error);
                    }
                    if lost.elapsed() >= MOMENT && !self.told {
                        self.told = true;
                        return Ok(Output::Reconnecting { reason: error.to_string() });
                    }
                    // Short at first, as most losses are; then calm.
                    let pause = lost.elapsed() / 4;
                    tokio::time::sleep(pause.clamp(Duration::from_millis(50), Duration::from_secs(2))).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn step(&mut self) -> Result<Option<Output>> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let stream = self.client.output(&self.sandbox, &self.process, self.offset).await?;
                self.stream.insert(stream)
            }
        };
        let record = stream
            .next()
            .await?
            .ok_or_else(|| Error::Broken("it ended before the process did".to_owned()))?;
        let output = accept(record, &mut self.offset)?;
        self.lost = None;
        self.told = false;
        Ok(output)
    }
}

/// What a record adds to the output up to `offset`, which moves on.
fn accept(record: StreamRecord, offset: &mut u64) -> Result<Option<Output>> {
    match record {
        StreamRecord::Stdout(chunk) => data(StreamName::Stdout, &chunk, offset),
        StreamRecord::Stderr(chunk) => data(StreamName::Stderr, &chunk, offset),
        StreamRecord::Gap { offset: start, length } => {
            let end =
                start.checked_add(length).ok_or_else(|| Error::Protocol("a gap without end".to_owned()))?;
            if start > *offset {
                return Err(Error::Protocol(format!("output is missing from {offset} to {start}")));
            }
            let missing = end.saturating_sub(*offset);
            *offset = end.max(*offset);
            Ok((missing > 0).then_some(Output::Gap { length: missing }))
        }
        StreamRecord::Exit(exit) => Ok(Some(Output::Exit(exit))),
        StreamRecord::Error(body) => {
            Err(Error::Api { status: body.code.status(), code: Some(body.code), message: body.message })
        }
        StreamRecord::Start { .. } | StreamRecord::Heartbeat => Ok(None),
    }
}

fn data(stream: StreamName, chunk: &OutputChunk, offset: &mut u64) -> Result<Option<Output>> {
    let bytes = STANDARD.decode(&chunk.data).map_err(|e| Error::Protocol(format!("{e} in output")))?;
    let mut data = Bytes::from(bytes);
    if chunk.offset > *offset {
        return Err(Error::Protocol(format!("output is missing from {offset} to {}", chunk.offset)));
    }
    let known = usize::try_from(*offset - chunk.offset).unwrap_or(usize::MAX);
    if known >= data.len() {
        return Ok(None);
    }
    data.advance(known);
    *offset += data.len() as u64;
    Ok(Some(Output::Data { stream, data }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(offset: u64, text: &str) -> StreamRecord {
        StreamRecord::Stdout(OutputChunk { offset, data: STANDARD.encode(text) })
    }

    fn text(output: Result<Option<Output>>) -> String {
        match output.unwrap() {
            Some(Output::Data { data, .. }) => String::from_utf8(data.to_vec()).unwrap(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn what_comes_twice_is_dropped() {
        let mut offset = 0;
        assert_eq!(text(accept(chunk(0, "abc"), &mut offset)), "abc");
        assert_eq!(text(accept(chunk(1, "bcde"), &mut offset)), "de");
        assert_eq!(text(accept(chunk(2, "cde"), &mut offset)), "None");
        assert_eq!(offset, 5);
    }

    #[test]
    fn what_is_missing_is_a_gap_or_an_error() {
        let mut offset = 2;
        let gap = accept(StreamRecord::Gap { offset: 0, length: 10 }, &mut offset).unwrap();
        assert_eq!((gap, offset), (Some(Output::Gap { length: 8 }), 10));
        assert!(matches!(accept(chunk(11, "x"), &mut offset), Err(Error::Protocol(_))));
        assert!(accept(StreamRecord::Gap { offset: 5, length: u64::MAX }, &mut offset).is_err());
        assert!(accept(StreamRecord::Gap { offset: 11, length: 1 }, &mut offset).is_err());
    }
}
