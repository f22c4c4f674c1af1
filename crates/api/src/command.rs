//! What a client calls a command, turned into what the engine runs: shell quoting, and the checks that make a bad request
//! fail here with a sentence instead of somewhere in the sandbox with an error number.

use crate::error::ApiError;
use stacyvm_engine::ExecRequest as EngineExec;
use stacyvm_types::{ExecMode, ExecRequest, SocketStart, StartProcess, WireDuration};
use std::{collections::BTreeMap, time::Duration};

/// Longest `tag`, in bytes.
const TAG_BYTES: usize = 256;

/// An exec as the engine takes it.
pub(crate) fn from_exec(request: ExecRequest) -> Result<EngineExec, ApiError> {
    Ok(EngineExec {
        process_id: None,
        argv: argv(request.mode, &request.command, &request.args)?,
        env: environment(request.env)?,
        cwd: directory(request.workdir)?,
        user: user(request.user)?,
        stdin: false,
        timeout: timeout(request.timeout)?,
        tag: String::new(),
        pty: None,
    })
}

/// An exec over a WebSocket as the engine takes it.
pub(crate) fn from_socket(start: SocketStart) -> Result<EngineExec, ApiError> {
    let SocketStart { exec, stdin, pty } = start;
    Ok(EngineExec { stdin, pty, ..from_exec(exec)? })
}

/// A process start as the engine takes it.
pub(crate) fn from_start(request: StartProcess) -> Result<EngineExec, ApiError> {
    if request.tag.len() > TAG_BYTES {
        return Err(ApiError::bad_request(format!("tag is longer than {TAG_BYTES} bytes")));
    }
    Ok(EngineExec {
        process_id: request.id.filter(|id| !id.is_empty()).map(process_id).transpose()?,
        argv: argv(request.mode, &request.command, &request.args)?,
        env: environment(request.env)?,
        cwd: directory(request.workdir)?,
        user: user(request.user)?,
        stdin: request.stdin,
        timeout: timeout(request.timeout)?,
        tag: request.tag,
        pty: request.pty,
    })
}

/// Program and arguments.
fn argv(mode: ExecMode, command: &str, args: &[String]) -> Result<Vec<String>, ApiError> {
    if command.contains('\0') || args.iter().any(|arg| arg.contains('\0')) {
        return Err(ApiError::bad_request("command and args must not contain NUL bytes"));
    }
    match mode {
        ExecMode::Shell => Ok(vec!["sh".into(), "-c".into(), shell_line(command, args)]),
        ExecMode::Argv if command.trim().is_empty() => {
            Err(ApiError::bad_request("command is required in argv mode"))
        }
        ExecMode::Argv => Ok(std::iter::once(command.to_owned()).chain(args.iter().cloned()).collect()),
    }
}

/// `command`, then every argument in single quotes.
fn shell_line(command: &str, args: &[String]) -> String {
    let mut line = command.to_owned();
    for arg in args {
        line.push_str(" '");
        line.push_str(&arg.replace('\'', r"'\''"));
        line.push('\'');
    }
    line
}

fn environment(env: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, ApiError> {
    for (name, value) in &env {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(ApiError::bad_request(format!(
                "invalid environment variable name {name:?}: it must not be empty or contain '=' or NUL"
            )));
        }
        if value.contains('\0') {
            return Err(ApiError::bad_request(format!("environment variable {name} contains a NUL byte")));
        }
    }
    Ok(env)
}

fn directory(workdir: Option<String>) -> Result<Option<String>, ApiError> {
    let Some(workdir) = workdir.filter(|dir| !dir.trim().is_empty()) else { return Ok(None) };
    crate::paths::absolute(&workdir).map(Some)
}

fn user(user: Option<String>) -> Result<Option<String>, ApiError> {
    let Some(user) = user.filter(|user| !user.is_empty()) else { return Ok(None) };
    let legal = user.len() <= 64 && user.bytes().all(|b| b.is_ascii_graphic());
    if legal {
        Ok(Some(user))
    } else {
        Err(ApiError::bad_request("invalid user: use a name, uid or uid:gid"))
    }
}

/// Negative times are what the contract answers with 429: they are outside what the limits allow.
fn timeout(timeout: Option<WireDuration>) -> Result<Option<Duration>, ApiError> {
    let Some(timeout) = timeout else { return Ok(None) };
    timeout.to_std().map(Some).ok_or_else(|| ApiError::resource_limit("exec timeout must not be negative"))
}

fn process_id(id: String) -> Result<String, ApiError> {
    let legal = id.len() <= 64 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if legal {
        return Ok(id);
    }
    Err(ApiError::bad_request("invalid process id: use 1 to 64 letters, digits, '-', '_' or '.'"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use stacyvm_types::ErrorCode;

    fn code(result: Result<EngineExec, ApiError>) -> ErrorCode {
        result.unwrap_err().code()
    }

    fn request(command: &str) -> ExecRequest {
        ExecRequest { command: command.into(), ..ExecRequest::default() }
    }

    #[test]
    fn a_shell_command_gets_its_arguments_quoted() {
        let mut exec = request("echo hi");
        exec.args = vec!["a b".into(), "it's".into(), String::new()];
        let expected = r"echo hi 'a b' 'it'\''s' ''";
        assert_eq!(from_exec(exec).unwrap().argv, ["sh", "-c", expected]);
    }

    #[test]
    fn argv_is_taken_literally() {
        let mut exec = request("printf");
        exec.mode = ExecMode::Argv;
        exec.args = vec!["$HOME; 'x'".into()];
        assert_eq!(from_exec(exec).unwrap().argv, ["printf", "$HOME; 'x'"]);
    }

    #[test]
    fn an_empty_command_is_fine_in_a_shell_only() {
        assert_eq!(from_exec(request("")).unwrap().argv, ["sh", "-c", ""]);
        let exec = ExecRequest { mode: ExecMode::Argv, ..request("  ") };
        assert_eq!(code(from_exec(exec)), ErrorCode::BadRequest);
    }

    #[test]
    fn bad_input_is_named() {
        let env = |name: &str, value: &str| ExecRequest {
            env: BTreeMap::from([(name.into(), value.into())]),
            ..request("env")
        };
        for exec in [env("", "x"), env("A=B", "x"), env("A\0", "x"), env("A", "\0"), request("a\0b")] {
            assert_eq!(code(from_exec(exec)), ErrorCode::BadRequest);
        }
        let exec = ExecRequest { timeout: Some(WireDuration::from_nanos(-1)), ..request("ls") };
        assert_eq!(code(from_exec(exec)), ErrorCode::ResourceLimit);
    }

    #[test]
    fn a_zero_timeout_means_none_and_an_absent_one_the_default() {
        assert_eq!(from_exec(request("ls")).unwrap().timeout, None);
        let exec = ExecRequest { timeout: Some(WireDuration::default()), ..request("ls") };
        assert_eq!(from_exec(exec).unwrap().timeout, Some(Duration::ZERO));
    }

    #[test]
    fn process_ids_are_checked() {
        let start = |id: &str| from_start(StartProcess { id: Some(id.into()), ..StartProcess::default() });
        assert_eq!(start("web-1.a_b").unwrap().process_id.as_deref(), Some("web-1.a_b"));
        assert_eq!(start("").unwrap().process_id, None);
        for id in ["a/b", "ä", "a b", &"x".repeat(65)] {
            assert_eq!(code(start(id)), ErrorCode::BadRequest, "{id}");
        }
    }

    /// A reader of POSIX single-quoted words, for what `shell_line` writes.
    fn words(line: &str) -> Vec<String> {
        let (mut words, mut quoted, mut open, mut chars) = (vec![], false, false, line.chars());
        let mut word = String::new();
        while let Some(c) = chars.next() {
            match c {
                '\'' => (quoted, open) = (!quoted, true),
                '\\' if !quoted => word.extend(chars.next()),
                ' ' if !quoted => {
                    if std::mem::take(&mut open) {
                        words.push(std::mem::take(&mut word));
                    }
                }
                c => {
                    open = true;
                    word.push(c);
                }
            }
        }
        if open {
            words.push(word);
        }
        words
    }

    proptest! {
        #[test]
        fn a_shell_reads_back_every_argument(args in prop::collection::vec("[^\0]{0,12}", 0..6)) {
            let mut expected = vec!["cmd".to_owned()];
            expected.extend(args.iter().cloned());
            prop_assert_eq!(words(&shell_line("cmd", &args)), expected);
        }
    }
}
