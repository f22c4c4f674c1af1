//! Messages of the WebSockets of a process: what a client says to it, and what is heard of it. All of them are JSON objects
//! with a `type`.

use crate::{
    Encoding, ErrorBody, ExecRequest, ExitRecord, PtySize, SignalRequest, StdinAck,
    optional::{is_false, null_is_default},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a client says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum SocketRequest {
    /// First, and only where a process is to be started.
    Start(Box<SocketStart>),
    /// Bytes for its stdin; a binary message is the same.
    Stdin(SocketStdin),
    /// Another size for its terminal.
    Resize(PtySize),
    /// A signal for it.
    Signal(SignalRequest),
}

/// What to start: an exec, with what only a conversation has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SocketStart {
    /// The command. `encoding` is that of its output; `stream`, `partial` and `records` mean nothing here. Without `detach`,
    /// it is killed when the connection ends.
    #[serde(flatten)]
    pub exec: ExecRequest,
    /// Give it a stdin that can be written to; else it reads end of file.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_false")]
    pub stdin: bool,
    /// Give it a terminal of this size instead of pipes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pty: Option<PtySize>,
}

/// Bytes for stdin.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SocketStdin {
    /// The bytes.
    #[serde(default, deserialize_with = "null_is_default")]
    pub data: String,
    /// How they are spelt.
    #[serde(default, deserialize_with = "null_is_default")]
    pub encoding: Encoding,
    /// Nothing follows: the process reads end of file.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_false")]
    pub eof: bool,
    /// Absolute position of the first byte: bytes that were accepted already are skipped, so that what a lost connection
    /// may have swallowed can be said again. Default: behind what was said before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
}

/// What a client hears.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum SocketRecord {
    /// First: the process.
    Started(SocketStarted),
    /// Standard output, or that of its terminal.
    Stdout(SocketOutput),
    /// Standard error.
    Stderr(SocketOutput),
    /// Output that is not kept any more.
    Gap {
        /// Offset of the first missing byte.
        offset: u64,
        /// How many bytes are missing.
        length: u64,
    },
    /// How much of its stdin was taken, after each message with some: from `stdin_offset` on, as far as this connection
    /// knows. Where more than 4 MiB wait for the process to read, further ones are refused with an `error`.
    Stdin(StdinAck),
    /// It ended and its output is drained. The connection is closed behind it.
    Exit(ExitRecord),
    /// A message could not be obeyed; or the conversation cannot go on, and the connection is closed.
    Error(ErrorBody),
}

/// A process that is talked to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SocketStarted {
    /// Its id: with it, another connection can go on where this one ended.
    pub process_id: String,
    /// Number inside the sandbox.
    pub pid: u32,
    /// Stdin bytes accepted so far.
    pub stdin_offset: u64,
}

/// Output with its place in the log that stdout and stderr share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SocketOutput {
    /// Offset of the first byte that arrived with this. A character whose bytes arrived in two pieces is in the later one;
    /// who wants to attach again at an exact byte asks for base64.
    pub offset: u64,
    /// The bytes, spelt as asked for.
    pub data: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_say_is_read() {
        let read = |text: &str| serde_json::from_str::<SocketRequest>(text).unwrap();
        let start = read(r#"{"type":"start","command":"sh","pty":{"rows":24,"cols":80},"env":null}"#);
        let SocketRequest::Start(start) = start else { panic!("{start:?}") };
        assert_eq!((start.exec.command.as_str(), start.pty), ("sh", Some(PtySize::USUAL)));
        let stdin = SocketStdin { data: "ls\n".into(), ..SocketStdin::default() };
        assert_eq!(read(r#"{"type":"stdin","data":"ls\n"}"#), SocketRequest::Stdin(stdin));
        assert_eq!(read(r#"{"type":"resize","rows":24,"cols":80}"#), SocketRequest::Resize(PtySize::USUAL));
        assert!(matches!(read(r#"{"type":"signal","signal":"SIGINT"}"#), SocketRequest::Signal(_)));
        for bad in [r#"{"type":"resize","rows":-1,"cols":80}"#, r#"{"type":"dance"}"#, r#"{"command":"ls"}"#]
        {
            assert!(serde_json::from_str::<SocketRequest>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_they_hear_has_a_type() {
        let text = |record: &SocketRecord| serde_json::to_string(record).unwrap();
        let output = SocketOutput { offset: 7, data: "hi".into() };
        assert_eq!(text(&SocketRecord::Stdout(output)), r#"{"type":"stdout","offset":7,"data":"hi"}"#);
        let exit = ExitRecord { exit_code: Some(3), ..ExitRecord::default() };
        assert_eq!(text(&SocketRecord::Exit(exit)), r#"{"type":"exit","exit_code":3}"#);
    }
}
