//! From what a guest says to what the API says.

use jiff::Timestamp;
use stacyvm_provider::{FileEntry, FileKind, Outcome, ProcessInfo};
use stacyvm_types::{ExitRecord, FileInfo, Process, ProcessState, SpecialFile};
use std::time::SystemTime;

/// A process as the API shows it.
pub(crate) fn process(info: ProcessInfo) -> Process {
    let exit = exit(&info, false);
    let state = match &info.outcome {
        None => ProcessState::Running,
        Some(Outcome::Exited(_)) => ProcessState::Exited,
        Some(Outcome::Signaled(_)) => ProcessState::Signaled,
        Some(Outcome::Lost(_)) => ProcessState::Lost,
    };
    Process {
        id: info.id,
        state,
        pid: info.pid,
        argv: info.argv,
        workdir: info.cwd,
        user: info.user,
        tag: info.tag,
        started_at: time(info.started),
        ended_at: info.ended.map(time),
        exit_code: exit.exit_code,
        signal: exit.signal,
        timed_out: exit.timed_out,
        oom_killed: exit.oom_killed,
        limits_hit: exit.limits_hit,
        reason: exit.reason,
        output_start: info.output_start,
        output_end: info.output_end,
        output_open: info.output_open,
        stdin_open: info.stdin_open,
        stdin_offset: info.stdin_offset,
        pty: info.pty,
    }
}

/// How a process ended, as far as it has.
pub(crate) fn exit(info: &ProcessInfo, truncated: bool) -> ExitRecord {
    let (signal, reason) = match &info.outcome {
        Some(Outcome::Signaled(signal)) => (Some(*signal), String::new()),
        Some(Outcome::Lost(reason)) => (None, reason.clone()),
        Some(Outcome::Exited(_)) | None => (None, String::new()),
    };
    ExitRecord {
        exit_code: info.outcome.as_ref().and_then(Outcome::shell_code),
        signal,
        timed_out: info.timed_out,
        oom_killed: info.oom_killed,
        limits_hit: info.limits_hit.clone(),
        truncated,
        reason,
    }
}

/// A file as the API shows it.
pub(crate) fn file(entry: FileEntry) -> FileInfo {
    FileInfo {
        path: entry.path,
        size: entry.size,
        mode: format!("{:o}", entry.mode & 0o7777),
        is_dir: entry.kind == FileKind::Directory,
        mod_time: time(entry.modified),
        kind: match entry.kind {
            FileKind::File | FileKind::Directory => None,
            FileKind::Symlink => Some(SpecialFile::Symlink),
            FileKind::Other => Some(SpecialFile::Other),
        },
        uid: entry.uid,
        gid: entry.gid,
        link_target: entry.link_target,
    }
}

/// A guest's clock may say anything; what no calendar holds becomes the epoch.
pub(crate) fn time(time: SystemTime) -> Timestamp {
    Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn info(outcome: Option<Outcome>) -> ProcessInfo {
        ProcessInfo {
            id: "p-1".into(),
            pid: 2,
            argv: vec!["true".into()],
            cwd: "/workspace".into(),
            user: "sandbox".into(),
            tag: String::new(),
            started: SystemTime::UNIX_EPOCH,
            ended: None,
            outcome,
            timed_out: false,
            oom_killed: false,
            limits_hit: Vec::new(),
            output_start: 0,
            output_end: 0,
            output_open: false,
            stdin_open: false,
            stdin_offset: 0,
            pty: None,
        }
    }

    #[test]
    fn no_exit_code_is_invented() {
        for (outcome, state, code, signal) in [
            (None, ProcessState::Running, None, None),
            (Some(Outcome::Exited(7)), ProcessState::Exited, Some(7), None),
            (Some(Outcome::Signaled(9)), ProcessState::Signaled, Some(137), Some(9)),
            (Some(Outcome::Lost("why".into())), ProcessState::Lost, None, None),
        ] {
            let process = process(info(outcome));
            assert_eq!((process.state, process.exit_code, process.signal), (state, code, signal));
        }
    }

    #[test]
    fn modes_are_permission_digits_only() {
        let mut entry = FileEntry {
            path: "/d".into(),
            size: 0,
            mode: 0o100_644,
            kind: FileKind::File,
            modified: SystemTime::UNIX_EPOCH + Duration::from_secs(1),
            uid: 0,
            gid: 0,
            link_target: None,
        };
        assert_eq!(file(entry.clone()).mode, "644");
        (entry.mode, entry.kind) = (0o41_777, FileKind::Directory);
        let info = file(entry);
        assert_eq!((info.mode.as_str(), info.is_dir, info.kind), ("1777", true, None));
    }

    #[test]
    fn an_impossible_clock_is_survived() {
        assert_eq!(time(SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 60)), Timestamp::UNIX_EPOCH);
    }
}
