//! WebSockets of a process: its output one way, its stdin, signals and sizes of its terminal the other. Output that the
//! client does not read is not read from the process either; stdin that the process does not read is not read from the
//! client.

mod conversation;
mod stdin;
#[cfg(test)]
mod tests;

pub(crate) use conversation::{Conversation, Voice, refuse};

use axum::extract::ws::{CloseCode, CloseFrame, Message, Utf8Bytes, close_code};
use serde::Serialize;

/// Largest message of a client, in bytes: a command line and an environment fit.
pub(crate) const MESSAGE: usize = 1 << 20;

/// A message of ours.
fn message(record: &impl Serialize) -> Message {
    // These records are ours: there is nothing in them that JSON does not have.
    Message::Text(serde_json::to_string(record).unwrap_or_default().into())
}

/// The last one.
fn close(code: CloseCode, reason: &'static str) -> Message {
    Message::Close(Some(CloseFrame { code, reason: Utf8Bytes::from_static(reason) }))
}

/// It said all that there was to say.
const DONE: CloseCode = close_code::NORMAL;
/// A message that is none.
const INVALID: CloseCode = close_code::INVALID;
/// Something went wrong on this side.
const FAILED: CloseCode = close_code::ERROR;
/// The server is stopping: come back.
const RESTART: CloseCode = close_code::RESTART;
