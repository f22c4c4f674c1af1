//! What `run --json` and `exec --json` print: the result of a command as the API shapes it, with the sandbox.

use crate::stdio::{Captured, Kept};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Serialize;
use stacyvm_types::{Encoding, ExecResult, ExitRecord};
use std::time::Duration;

/// One command's result.
#[derive(Debug, Serialize)]
pub(crate) struct RunResult {
    id: String,
    #[serde(flatten)]
    result: ExecResult,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    timed_out: bool,
}

impl RunResult {
    /// `exit_code` is the one that this program ends with.
    pub(crate) fn new(
        id: &str,
        exit_code: u8,
        exit: &ExitRecord,
        captured: Captured,
        duration: Duration,
    ) -> Self {
        let truncated =
            (captured.stdout.truncated || exit.truncated, captured.stderr.truncated || exit.truncated);
        let (stdout, stderr, encoding) = match (text(captured.stdout), text(captured.stderr)) {
            (Ok(stdout), Ok(stderr)) => (stdout, stderr, None),
            (stdout, stderr) => (base64(stdout), base64(stderr), Some(Encoding::Base64)),
        };
        let result = ExecResult {
            exit_code: i32::from(exit_code),
            stdout,
            stderr,
            duration: duration.into(),
            signal: exit.signal,
            oom_killed: exit.oom_killed,
            limits_hit: exit.limits_hit.clone(),
            stdout_truncated: truncated.0,
            stderr_truncated: truncated.1,
            encoding,
            ..ExecResult::default()
        };
        Self { id: id.to_owned(), result, timed_out: exit.timed_out }
    }
}

/// Text, or the bytes that are none. A character that the limit cut in two is left out, not a reason for base64.
fn text(kept: Kept) -> Result<String, Vec<u8>> {
    String::from_utf8(kept.bytes).or_else(|error| {
        let valid = error.utf8_error();
        let mut bytes = error.into_bytes();
        if kept.truncated && valid.error_len().is_none() {
            bytes.truncate(valid.valid_up_to());
            return String::from_utf8(bytes).map_err(|e| e.into_bytes());
        }
        Err(bytes)
    })
}

fn base64(output: Result<String, Vec<u8>>) -> String {
    STANDARD.encode(output.map_or_else(|bytes| bytes, String::into_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(stdout: &[u8], truncated: bool) -> serde_json::Value {
        let captured = Captured {
            stdout: Kept { bytes: stdout.to_vec(), truncated },
            stderr: Kept { bytes: b"err".to_vec(), truncated: false },
        };
        let exit = ExitRecord { exit_code: Some(7), ..ExitRecord::default() };
        serde_json::to_value(RunResult::new("sb-1", 7, &exit, captured, Duration::from_millis(1))).unwrap()
    }

    #[test]
    fn an_ordinary_result() {
        assert_eq!(
            json(b"42\n", false),
            serde_json::json!({"id": "sb-1", "exit_code": 7, "stdout": "42\n", "stderr": "err", "duration": "1ms"})
        );
    }

    #[test]
    fn bytes_are_base64_and_both_streams_alike() {
        let result = json(b"\xff", false);
        assert_eq!((&result["stdout"], &result["stderr"]), (&"/w==".into(), &"ZXJy".into()));
        assert_eq!(result["encoding"], "base64");
    }

    #[test]
    fn a_character_cut_by_the_limit_is_left_out() {
        let result = json("aé".as_bytes().split_last().unwrap().1, true);
        assert_eq!((&result["stdout"], &result["stdout_truncated"]), (&"a".into(), &true.into()));
    }
}
