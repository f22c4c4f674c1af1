//! From the agent's words to the contract's, believing nothing: enumerations may hold anything, messages may be long or
//! carry terminal escapes, times may be absurd.

use crate::{Error, ErrorKind, FileEntry, FileKind, Outcome, ProcessInfo};
use stacyvm_guest::proto;
use stacyvm_types::{Limit, PtySize};
use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tonic::Code;

/// Longest message of an agent that is shown to a user, in characters.
const MESSAGE_CHARS: usize = 400;

/// The contract's error for a failed call.
pub(super) fn error(sandbox: &str, status: &tonic::Status) -> Error {
    // What the runtime's dialler said is more exact than what became of it on the way through HTTP/2.
    let mut cause = std::error::Error::source(status);
    while let Some(inner) = cause {
        if let Some(error) = inner.downcast_ref::<Error>() {
            return error.clone();
        }
        cause = inner.source();
    }
    let kind = match status.code() {
        Code::NotFound => ErrorKind::NotFound,
        Code::InvalidArgument | Code::OutOfRange | Code::AlreadyExists | Code::FailedPrecondition => {
            ErrorKind::InvalidArgument
        }
        Code::ResourceExhausted => ErrorKind::ResourceLimit,
        Code::Unimplemented => ErrorKind::Unsupported,
        Code::DeadlineExceeded => ErrorKind::Timeout,
        Code::Internal | Code::DataLoss if std::error::Error::source(status).is_none() => ErrorKind::Internal,
        _ => {
            return Error::unavailable(format!("the guest of sandbox {sandbox} cannot be reached"))
                .because(status.clone());
        }
    };
    let error = Error::new(kind, clean(status.message())).because(status.clone());
    let named = status.metadata().get(stacyvm_guest::LIMIT_METADATA).and_then(|value| value.to_str().ok());
    match named.and_then(|number| limit(number.parse().ok()?)) {
        Some(limit) if kind == ErrorKind::ResourceLimit => error.of_limit(limit),
        _ => error,
    }
}

/// `text` on one line, without control characters, at most [`MESSAGE_CHARS`] long.
fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MESSAGE_CHARS).collect()
}

fn time(unix_ms: i64) -> SystemTime {
    let distance = Duration::from_millis(unix_ms.unsigned_abs());
    let time = if unix_ms < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    time.unwrap_or(UNIX_EPOCH)
}

/// A limit, unless this version does not know it.
fn limit(number: i32) -> Option<Limit> {
    match proto::Limit::try_from(number).ok()? {
        proto::Limit::Unspecified => None,
        proto::Limit::Oom => Some(Limit::Oom),
        proto::Limit::DiskFull => Some(Limit::DiskFull),
        proto::Limit::Pids => Some(Limit::Pids),
    }
}

/// A size as the protocol has it.
pub(super) fn size(size: PtySize) -> proto::PtySize {
    proto::PtySize { rows: size.rows.into(), cols: size.cols.into() }
}

fn pty(from: proto::PtySize) -> Result<PtySize, &'static str> {
    let side = |side| u16::try_from(side).ok().filter(|side| *side > 0);
    match (side(from.rows), side(from.cols)) {
        (Some(rows), Some(cols)) => Ok(PtySize { rows, cols }),
        _ => Err("a terminal of an impossible size"),
    }
}

/// A process, or how the agent broke the protocol.
pub(super) fn process(from: proto::Process) -> Result<ProcessInfo, &'static str> {
    let outcome = match from.outcome {
        None => None,
        Some(proto::process::Outcome::ExitCode(code)) if (0..=255).contains(&code) => {
            Some(Outcome::Exited(code))
        }
        Some(proto::process::Outcome::Signal(signal)) if (1..=64).contains(&signal) => {
            Some(Outcome::Signaled(signal))
        }
        Some(proto::process::Outcome::Lost(why)) => Some(Outcome::Lost(clean(&why))),
        Some(_) => return Err("an impossible exit status"),
    };
    if from.output_start > from.output_end {
        return Err("an impossible output range");
    }
    Ok(ProcessInfo {
        id: from.id,
        pid: from.pid,
        argv: from.argv,
        cwd: from.cwd,
        user: from.user,
        tag: from.tag,
        started: time(from.started_unix_ms),
        ended: outcome.is_some().then(|| time(from.ended_unix_ms)),
        outcome,
        timed_out: from.timed_out,
        oom_killed: from.oom_killed,
        // A set: an agent may name one as often as it likes.
        limits_hit: from
            .limits_hit
            .into_iter()
            .filter_map(limit)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect(),
        output_start: from.output_start,
        output_end: from.output_end,
        output_open: from.output_open,
        stdin_open: from.stdin_open,
        stdin_offset: from.stdin_offset,
        pty: from.pty.map(pty).transpose()?,
    })
}

/// A file, or how the agent broke the protocol.
pub(super) fn file(from: proto::FileInfo) -> Result<FileEntry, &'static str> {
    let kind = match from.kind() {
        proto::FileKind::File => FileKind::File,
        proto::FileKind::Directory => FileKind::Directory,
        proto::FileKind::Symlink => FileKind::Symlink,
        proto::FileKind::Other => FileKind::Other,
        proto::FileKind::Unspecified => return Err("a file of no kind"),
    };
    Ok(FileEntry {
        path: from.path,
        size: from.size,
        mode: from.mode & 0o7777,
        kind,
        modified: time(from.modified_unix_ms),
        uid: from.uid,
        gid: from.gid,
        link_target: (kind == FileKind::Symlink).then_some(from.link_target),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_an_agent_are_cut_and_cleaned() {
        let long = format!("\u{1b}[31mno\nsuch{}", "x".repeat(10_000));
        let error = error("sb-1", &tonic::Status::not_found(long));
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.message().starts_with("[31mnosuch"), "{}", error.message());
        assert_eq!(error.message().chars().count(), MESSAGE_CHARS);
    }

    #[test]
    fn limits_are_named_once_and_unknown_ones_not_at_all() {
        let from = proto::Process { limits_hit: vec![3, 99, 2, 3, 0, -1, 2], ..proto::Process::default() };
        assert_eq!(process(from).unwrap().limits_hit, [Limit::DiskFull, Limit::Pids]);
        let said = |code, limit: &'static str| {
            let mut status = tonic::Status::new(code, "no room");
            status.metadata_mut().insert(stacyvm_guest::LIMIT_METADATA, limit.parse().unwrap());
            error("sb-1", &status).limit()
        };
        assert_eq!(said(Code::ResourceExhausted, "2"), Some(Limit::DiskFull));
        assert_eq!(said(Code::ResourceExhausted, "7"), None);
        assert_eq!(said(Code::ResourceExhausted, "a lot"), None);
        assert_eq!(said(Code::NotFound, "2"), None, "no limit is the reason of that");
    }

    #[test]
    fn the_diallers_word_wins() {
        let mut status = tonic::Status::unavailable("connect failed");
        status.set_source(std::sync::Arc::new(Error::destroyed("sandbox destroyed: sb-1")));
        assert_eq!(error("sb-1", &status).kind(), ErrorKind::Destroyed);
    }

    #[test]
    fn impossible_answers_are_refused() {
        let ended = |outcome| proto::Process { outcome: Some(outcome), ..proto::Process::default() };
        assert!(process(ended(proto::process::Outcome::ExitCode(256))).is_err());
        assert!(process(ended(proto::process::Outcome::Signal(0))).is_err());
        assert!(
            process(proto::Process { output_start: 2, output_end: 1, ..proto::Process::default() }).is_err()
        );
        assert!(file(proto::FileInfo { kind: 99, ..proto::FileInfo::default() }).is_err());
        assert_eq!(time(i64::MIN), UNIX_EPOCH - Duration::from_millis(i64::MIN.unsigned_abs()));
    }
}
