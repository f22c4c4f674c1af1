//! Processes as objects of their own: they belong to no connection and can be attached to, fed, signalled, awaited.

use crate::{
    ExecMode, Limit, WireDuration,
    optional::{duration, is_false, null_is_default},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Body of `POST /sandboxes/{id}/processes`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StartProcess {
    /// Id chosen by the caller (1 to 64 letters, digits, `-`, `_`, `.`): a repeated request with it starts nothing twice.
    /// Default: a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
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
    /// User to run as: a name, `uid` or `uid:gid`; default: the sandbox user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The process and everything it started is killed after this time, at most `max_exec_timeout`. Default and `0s`: never.
    #[serde(default, with = "duration", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "30s")]
    pub timeout: Option<WireDuration>,
    /// Give it a stdin that can be written to; else it reads end of file.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_false")]
    pub stdin: bool,
    /// The caller's words, shown in lists; at most 256 bytes.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub tag: String,
    /// Give it a terminal of this size instead of pipes. All output is stdout then, and stdin can always be written to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pty: Option<PtySize>,
}

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PtySize {
    /// Lines, at least 1.
    #[schema(minimum = 1)]
    pub rows: u16,
    /// Characters in a line, at least 1.
    #[schema(minimum = 1)]
    pub cols: u16,
}

impl PtySize {
    /// What a terminal has of which nobody knows better.
    pub const USUAL: Self = Self { rows: 24, cols: 80 };

    /// Whether a terminal can have it.
    pub fn is_possible(self) -> bool {
        self.rows > 0 && self.cols > 0
    }
}

/// Whether and how a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProcessState {
    /// It runs.
    Running,
    /// It ended by itself, with `exit_code`.
    Exited,
    /// `signal` ended it.
    Signaled,
    /// It ended and nobody knows how; `reason` says why not.
    Lost,
}

/// A process in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Process {
    /// Name of the process, unique in its sandbox.
    pub id: String,
    /// Whether and how it ended.
    pub state: ProcessState,
    /// Number inside the sandbox.
    pub pid: u32,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Working directory.
    pub workdir: String,
    /// User it runs as.
    pub user: String,
    /// The caller's words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tag: String,
    /// Start, by the sandbox's clock.
    #[schema(value_type = String, format = DateTime)]
    pub started_at: Timestamp,
    /// End, by the sandbox's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended_at: Option<Timestamp>,
    /// Exit code, 128 + signal if a signal ended it; absent while it runs or if it is not known.
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
    /// Why the exit status is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Offset of the oldest output byte that is kept.
    pub output_start: u64,
    /// Offset behind the newest output byte.
    pub output_end: u64,
    /// Something still holds its output open.
    pub output_open: bool,
    /// Stdin can be written.
    pub stdin_open: bool,
    /// Stdin bytes accepted so far.
    pub stdin_offset: u64,
    /// Size of its terminal; absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pty: Option<PtySize>,
}

/// Answer to a stdin write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StdinAck {
    /// Offset behind the last byte taken. Less than what was sent when the process does not read: send the rest again
    /// from here.
    pub accepted: u64,
    /// No more can be written.
    pub closed: bool,
}

/// Body of `POST …/processes/{process}/signal`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SignalRequest {
    /// Name or number: `SIGTERM`, `TERM`, `15`, 15.
    pub signal: SignalName,
    /// Also to everything the process started.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_false")]
    pub tree: bool,
}

/// A signal as clients write it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum SignalName {
    /// Its number.
    Number(i32),
    /// Its name, with or without `SIG`, in any case; or its number as text.
    Name(String),
}

/// Linux's signal names with their numbers (the same on x86_64 and aarch64).
const SIGNALS: [(&str, i32); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];

impl SignalName {
    /// Every name, without `SIG`.
    pub fn names() -> impl Iterator<Item = &'static str> {
        SIGNALS.into_iter().map(|(name, _)| name)
    }

    /// The number, 1 to 64, or `None` for what is no signal.
    pub fn number(&self) -> Option<i32> {
        let number = match self {
            Self::Number(number) => *number,
            Self::Name(name) => {
                let upper = name.trim().to_ascii_uppercase();
                let short = upper.strip_prefix("SIG").unwrap_or(&upper);
                match SIGNALS.iter().find(|(known, _)| *known == short) {
                    Some((_, number)) => *number,
                    None => short.parse().ok()?,
                }
            }
        };
        (1..=64).contains(&number).then_some(number)
    }
}

/// Answer to a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SignalReply {
    /// False if the process had ended already.
    pub delivered: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(json: &str) -> Option<i32> {
        serde_json::from_str::<SignalRequest>(json).unwrap().signal.number()
    }

    #[test]
    fn signals_are_read_by_name_and_number() {
        for json in [
            r#"{"signal":"SIGTERM"}"#,
            r#"{"signal":"term","tree":true}"#,
            r#"{"signal":"15"}"#,
            r#"{"signal":15,"tree":null}"#,
        ] {
            assert_eq!(number(json), Some(15), "{json}");
        }
    }

    #[test]
    fn what_is_no_signal_has_no_number() {
        for json in [r#"{"signal":"SIGNOPE"}"#, r#"{"signal":0}"#, r#"{"signal":65}"#, r#"{"signal":""}"#] {
            assert_eq!(number(json), None, "{json}");
        }
    }
}
