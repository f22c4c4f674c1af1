//! HTTP client of `/api/v1`, for the command line and for tests.
//!
//! Every call has a deadline that suits it, except those that last as long as what they wait for (creating a sandbox,
//! a command, a file, events): these end when the server says so, or when it falls silent for longer than it may.
//! [`Attachment`] reads the output of a process across lost connections and server restarts, every byte once.

mod attachment;
mod client;
mod error;
mod events;
mod files;
mod images;
mod lines;
mod processes;
mod sandboxes;
#[cfg(test)]
mod server_tests;
mod system;
mod trees;

pub use attachment::{Attachment, Output};
pub use client::{Client, Options};
pub use error::{Error, Result};
pub use events::{EventQuery, EventStream, EventWatch, Heard};
pub use files::{Download, Upload};
pub use processes::RecordStream;
pub use sandboxes::CreateOptions;
pub use trees::FileEventStream;
