//! The contract that every runtime meets, and nothing about any one runtime: [`Provider`] makes and unmakes sandboxes,
//! [`Guest`] works inside one. `AgentGuest` is the [`Guest`] of every runtime that runs our own agent.

mod agent_guest;
mod console;
mod error;
mod guest;
mod locks;
pub mod mock;
mod provider;
mod spec;
mod trees;

pub use agent_guest::{AgentEndpoint, AgentGuest, Duplex, Identity};
pub use console::console_lines;
pub use error::{Error, ErrorKind, Result};
pub use guest::{
    ByteStream, FileEntry, FileKind, Guest, Outcome, OutputEvent, OutputStream, ProcessInfo, ProcessSpec,
    ReadRange, Signal, StdStream, StdinAck, WriteFile,
};
pub use locks::Locks;
pub use provider::{
    CONSOLE_BYTES, CONSOLE_LINES, Created, Health, Notice, NoticeKind, Provider, RuntimeSandbox,
    RuntimeState, RuntimeStats,
};
pub use spec::{Capabilities, SandboxId, SandboxSpec, SpecError};
pub use stacyvm_types::{Limit, PtySize};
pub use trees::{ChangeStream, DiskUsage, ExtractTarget, Extracted, FileChange};
