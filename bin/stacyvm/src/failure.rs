//! How a command fails: one line that says what, one line that says what to do, and an exit code.

use stacyvm_types::ErrorCode;
use std::{fmt, io, process::ExitCode};

/// Result of every command.
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// Exit codes of `run` and `exec` that are not the command's own, as `env`, `timeout` and `docker` use them.
pub(crate) mod code {
    /// The command ended, and what it made could not be copied out.
    pub(crate) const NOT_COPIED: u8 = 123;
    /// The deadline killed the command.
    pub(crate) const TIMED_OUT: u8 = 124;
    /// We failed, not the command.
    pub(crate) const OURS: u8 = 125;
    /// The command is there and cannot be executed.
    pub(crate) const NOT_EXECUTABLE: u8 = 126;
    /// There is no such command.
    pub(crate) const NOT_FOUND: u8 = 127;
    /// 128 + SIGPIPE: whoever read our output went away.
    pub(crate) const BROKEN_PIPE: u8 = 141;
}

/// Why a command ended without success.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What happened; empty: nothing is said.
    pub(crate) what: String,
    /// What to do about it; empty: nothing is known.
    pub(crate) fix: String,
    /// The server's kind of error.
    pub(crate) kind: Option<ErrorCode>,
    /// Exit code of this program.
    pub(crate) code: u8,
}

impl Failure {
    /// A failure with a fix, exit code 1.
    pub(crate) fn new(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what: what.into(), fix: fix.into(), kind: None, code: 1 }
    }

    /// The input is wrong, exit code 2.
    pub(crate) fn usage(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { code: 2, ..Self::new(what, fix) }
    }

    /// Nothing is said, only the exit code counts.
    pub(crate) fn silent(code: u8) -> Self {
        Self { code, ..Self::new("", "") }
    }

    /// The same failure with another exit code, unless it is about a reader that went away.
    #[must_use]
    pub(crate) fn exit(mut self, code: u8) -> Self {
        if self.code != code::BROKEN_PIPE {
            self.code = code;
        }
        self
    }

    /// Says it on standard error, as JSON for programs.
    pub(crate) fn report(&self, json: bool) -> ExitCode {
        use io::Write;
        if !self.what.is_empty() {
            let mut stderr = io::stderr().lock();
            // A standard error that is gone is nobody we could tell.
            let _ = if json { writeln!(stderr, "{}", self.json()) } else { writeln!(stderr, "{self}") };
        }
        ExitCode::from(self.code)
    }

    fn json(&self) -> serde_json::Value {
        let mut object = serde_json::json!({ "error": self.what });
        if !self.fix.is_empty() {
            object["fix"] = self.fix.clone().into();
        }
        if let Some(kind) = self.kind {
            object["code"] = serde_json::json!(kind);
        }
        object
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.what)?;
        if self.fix.is_empty() { Ok(()) } else { write!(f, "\n  fix: {}", self.fix) }
    }
}

impl From<io::Error> for Failure {
    /// Of writing to our own output.
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::silent(code::BROKEN_PIPE)
        } else {
            Self::new(format!("cannot write output: {error}"), "")
        }
    }
}

impl From<stacyvm_client::Error> for Failure {
    fn from(error: stacyvm_client::Error) -> Self {
        use stacyvm_client::Error;
        let fix = match &error {
            Error::Connect { .. } => "start a server with `stacyvm serve`, or name another with --server",
            Error::Api { status: 401, .. } => "pass --api-key, or set STACYVM_API_KEY",
            Error::Protocol(_) => "check --server, and that server and client have the same version",
            _ => "",
        };
        Self { kind: error.code(), ..Self::new(error.to_string(), fix) }
    }
}

impl From<stacyvm_engine::Error> for Failure {
    fn from(error: stacyvm_engine::Error) -> Self {
        tracing::debug!(error = %error.chain(), "the engine failed");
        Self { kind: Some(error.code()), ..Self::new(error.message(), "") }
    }
}

impl From<stacyvm_provider::Error> for Failure {
    fn from(error: stacyvm_provider::Error) -> Self {
        stacyvm_engine::Error::from(error).into()
    }
}

impl From<stacyvm_config::Invalid> for Failure {
    fn from(invalid: stacyvm_config::Invalid) -> Self {
        Self::new(format!("the configuration cannot be used\n{invalid}"), "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_what_one_line_fix() {
        let failure = Failure::new("no such thing", "make one");
        assert_eq!(failure.to_string(), "error: no such thing\n  fix: make one");
        assert_eq!(failure.json().to_string(), r#"{"error":"no such thing","fix":"make one"}"#);
    }

    #[test]
    fn a_reader_that_went_away_is_not_talked_about() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe)).exit(code::OURS);
        assert_eq!((failure.what.as_str(), failure.code), ("", code::BROKEN_PIPE));
    }
}
