//! Running commands: the one-shot exec with its two stream formats.

use crate::{
    ErrorBody, Limit, WireDuration,
    optional::{duration, is_false, null_is_default},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// How `command` and `args` become a program with arguments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExecMode {
    /// `sh -c "<command> 'arg1' 'arg2'…"`, the arguments quoted.
    #[default]
    #[serde(alias = "")]
    Shell,
    /// `command` is the program, `args` are its arguments, nothing is interpreted.
    Argv,
}

/// How bytes are spelt in JSON.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Text. Bytes that are not UTF-8 become U+FFFD, and the answer says so.
    #[default]
    #[serde(alias = "", alias = "utf-8")]
    Utf8,
    /// Standard base64 with padding: every byte arrives.
    Base64,
}

/// Which records a stream carries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Records {
    /// `{"stream","data"}` lines and nothing else, as clients have always read them.
    #[default]
    #[serde(alias = "")]
    Simple,
    /// [`StreamRecord`]s: offsets, gaps, the exit, data in base64.
    Full,
}

/// Body of `POST /sandboxes/{id}/exec`. Unknown fields are ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecRequest {
    /// Shell command line, or the program with `mode: argv`.
    #[serde(default, deserialize_with = "null_is_default")]
    pub command: String,
    /// Arguments.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// `shell` (default) or `argv`.
    #[serde(default, deserialize_with = "null_is_default")]
    pub mode: ExecMode,
    /// Added to the environment.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Working directory; default `/workspace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// The process and everything it started is killed after this time. Default: the server's; `0s`: the longest that
    /// the server allows.
    #[serde(default, with = "duration", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "30s")]
    pub timeout: Option<WireDuration>,
    /// Answer with NDJSON while the command runs.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_false")]
    pub stream: bool,
    /// User to run as: a name, `uid` or `uid:gid`; default: the sandbox user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// How output is spelt; `full` records always use base64.
    #[serde(default, deserialize_with = "null_is_default")]
    pub encoding: Encoding,
    /// Without `stream`: a command that is killed at its deadline answers 200 with `timed_out` and what it wrote until
    /// then, instead of 408.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_false")]
    pub partial: bool,
    /// With `stream`: which records.
    #[serde(default, deserialize_with = "null_is_default")]
    pub records: Records,
    /// With `stream`: the command goes on when this client goes away. Without, it is killed then.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_false")]
    pub detach: bool,
}

/// Answer of a command that was waited for. A command that fails is still a success of the request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecResult {
    /// Exit code; 128 + signal if a signal ended it.
    pub exit_code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// How long it ran.
    #[serde(default)]
    #[schema(value_type = String, example = "127.4ms")]
    pub duration: WireDuration,
    /// Signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Its deadline killed it (only with `partial`, else that is an error).
    #[serde(default, skip_serializing_if = "is_false")]
    pub timed_out: bool,
    /// The kernel killed it for memory.
    #[serde(default, skip_serializing_if = "is_false")]
    pub oom_killed: bool,
    /// Limits of the sandbox that were hit while it ran.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits_hit: Vec<Limit>,
    /// It wrote more than is kept: the end of `stdout` is missing.
    #[serde(default, skip_serializing_if = "is_false")]
    pub stdout_truncated: bool,
    /// It wrote more than is kept: the end of `stderr` is missing.
    #[serde(default, skip_serializing_if = "is_false")]
    pub stderr_truncated: bool,
    /// Bytes of `stdout` were not UTF-8 and became U+FFFD.
    #[serde(default, skip_serializing_if = "is_false")]
    pub stdout_replaced: bool,
    /// Bytes of `stderr` were not UTF-8 and became U+FFFD.
    #[serde(default, skip_serializing_if = "is_false")]
    pub stderr_replaced: bool,
    /// How `stdout` and `stderr` are spelt, when not text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
}

/// One line of a `simple` stream: exactly these two keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StreamChunk {
    /// Where the data came from.
    pub stream: StreamName,
    /// The data.
    pub data: String,
}

/// An output stream of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum StreamName {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line of a `full` stream. A stream that ends without `exit` or `error` was cut: attach again at the offset behind
/// the last byte received.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "stream", rename_all = "lowercase")]
pub enum StreamRecord {
    /// First line: the process that is attached to.
    Start {
        /// Its id.
        process_id: String,
    },
    /// Standard output.
    Stdout(OutputChunk),
    /// Standard error.
    Stderr(OutputChunk),
    /// Output that is not kept any more.
    Gap {
        /// Offset of the first missing byte.
        offset: u64,
        /// How many bytes are missing.
        length: u64,
    },
    /// Nothing to say; the connection is alive.
    Heartbeat,
    /// Last line when the process ended and its output is drained.
    Exit(ExitRecord),
    /// Last line when the stream cannot go on.
    Error(ErrorBody),
}

/// Output bytes with their place in the log that stdout and stderr share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OutputChunk {
    /// Offset of the first byte.
    pub offset: u64,
    /// The bytes in base64.
    pub data: String,
}

/// How a process ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExitRecord {
    /// Exit code, 128 + signal if a signal ended it; absent if it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Its deadline killed it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub timed_out: bool,
    /// The kernel killed it for memory.
    #[serde(default, skip_serializing_if = "is_false")]
    pub oom_killed: bool,
    /// Limits of the sandbox that were hit while it ran.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits_hit: Vec<Limit>,
    /// This stream had at least one `gap`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub truncated: bool,
    /// Why the exit code is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_body_is_a_shell_command() {
        let request: ExecRequest = serde_json::from_str(r#"{"command":"ls"}"#).unwrap();
        assert_eq!((request.mode, request.stream, request.timeout), (ExecMode::Shell, false, None));
    }

    #[test]
    fn null_and_empty_mean_absent() {
        let body = r#"{"command":null,"args":null,"mode":"","env":null,"workdir":null,"timeout":"","stream":null,"zz":1}"#;
        assert_eq!(serde_json::from_str::<ExecRequest>(body).unwrap(), ExecRequest::default());
    }

    #[test]
    fn an_unknown_mode_is_an_error() {
        assert!(serde_json::from_str::<ExecRequest>(r#"{"command":"ls","mode":"telnet"}"#).is_err());
    }

    #[test]
    fn a_plain_result_has_the_four_keys_of_old() {
        let result = ExecResult { stdout: "4\n".into(), ..ExecResult::default() };
        let text = serde_json::to_string(&result).unwrap();
        assert_eq!(text, r#"{"exit_code":0,"stdout":"4\n","stderr":"","duration":"0s"}"#);
    }

    #[test]
    fn a_chunk_has_two_keys() {
        let chunk = StreamChunk { stream: StreamName::Stderr, data: "x".into() };
        assert_eq!(serde_json::to_string(&chunk).unwrap(), r#"{"stream":"stderr","data":"x"}"#);
    }

    #[test]
    fn records_are_told_apart_by_stream() {
        let exit = StreamRecord::Exit(ExitRecord { exit_code: Some(7), ..ExitRecord::default() });
        assert_eq!(serde_json::to_string(&exit).unwrap(), r#"{"stream":"exit","exit_code":7}"#);
        for record in [
            exit,
            StreamRecord::Start { process_id: "p-1".into() },
            StreamRecord::Stdout(OutputChunk { offset: 3, data: "aGk=".into() }),
            StreamRecord::Gap { offset: 1, length: 2 },
            StreamRecord::Heartbeat,
        ] {
            let text = serde_json::to_string(&record).unwrap();
            assert_eq!(serde_json::from_str::<StreamRecord>(&text).unwrap(), record, "{text}");
        }
    }
}
