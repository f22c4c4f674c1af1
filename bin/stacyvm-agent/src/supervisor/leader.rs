//! From a fresh child of the supervisor to the program that was asked for: nothing of the agent's is left to it.
#![expect(unsafe_code, reason = "execve takes raw pointers")]

use super::{
    Parts,
    request::{Request, View},
    wire::Step,
};
use crate::{confine, fail::errno_of, signals};
use rustix::{
    fs::{self, Access, AtFlags, CWD, Mode, OFlags},
    io::Errno,
    process::{Gid, Resource, Rlimit, Uid, fchdir, setrlimit, setsid},
    thread,
};
use std::{
    convert::Infallible,
    ffi::{CStr, CString},
    os::fd::OwnedFd,
    ptr,
};

/// Out of 1000: this much of all memory is added to what a process uses when the kernel looks for one to end.
const OOM_SCORE: i32 = 300;

/// Reads the request and becomes the program.
///
/// # Errors
/// Where and why it did not.
pub(super) fn become_program(parts: &Parts) -> Result<Infallible, (Step, Errno)> {
    let at = |step| move |errno| (step, errno);
    let request = read_all(&parts.request).map_err(at(Step::Prepare))?;
    let request = Request::decode(&request).ok_or((Step::Prepare, Errno::BADMSG))?;

    setsid().map_err(at(Step::Prepare))?;
    rustix::stdio::dup2_stdin(&parts.stdin).map_err(at(Step::Prepare))?;
    rustix::stdio::dup2_stdout(&parts.stdout).map_err(at(Step::Prepare))?;
    rustix::stdio::dup2_stderr(&parts.stderr).map_err(at(Step::Prepare))?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).map_err(at(Step::Prepare))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    volunteer_for_oom().map_err(at(Step::OomScore))?;

    // The bounding set first: it takes a capability that is gone once the user is changed.
    confine::empty_bounding_set().map_err(at(Step::Privileges))?;
    if let Some((uid, gid, groups)) = &request.user {
        change_user(*uid, *gid, groups).map_err(at(Step::User))?;
    }
    match &request.user {
        // Asked for, and offered by this runtime: a package manager changes owners and users.
        Some((0, ..)) => confine::keep_for_root(),
        _ => confine::drop_all(),
    }
    .map_err(at(Step::Privileges))?;
    thread::set_no_new_privs(true).map_err(at(Step::Privileges))?;

    fchdir(&parts.cwd).map_err(at(Step::Directory))?;
    signals::reset().map_err(at(Step::Prepare))?;
    // What is open from here on closes by itself: all of it was opened with close-on-exec.
    execute(&request)
}

fn read_all(file: &OwnedFd) -> Result<Vec<u8>, Errno> {
    let size = usize::try_from(fs::fstat(file)?.st_size).map_err(|_| Errno::BADMSG)?;
    let mut bytes = vec![0; size];
    let mut filled = 0;
    while filled < size {
        match rustix::io::pread(file, &mut bytes[filled..], filled as u64) {
            Ok(0) => return Err(Errno::BADMSG),
            Ok(read) => filled += read,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(bytes)
}

/// Makes this process go before the agent and before the host's own when memory is short. Raising the score is anybody's
/// right, lowering the agent's is not: a container engine without privileges of its own cannot do it. A score that is
/// higher already stays.
fn volunteer_for_oom() -> Result<(), Errno> {
    let file = match fs::open("/proc/self/oom_score_adj", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => file,
        // A kernel without this setting prefers nobody.
        Err(Errno::NOENT) => return Ok(()),
        // Without privileges the score of this hidden process is not ours to read.
        Err(Errno::ACCESS) if !rustix::process::geteuid().is_root() => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let mut text = [0; 8];
    let length = rustix::io::read(&file, &mut text)?;
    let score: Option<i32> = str::from_utf8(&text[..length]).ok().and_then(|text| text.trim().parse().ok());
    match score {
        Some(score) if score < OOM_SCORE => {
            rustix::io::write(&file, OOM_SCORE.to_string().as_bytes()).map(drop)
        }
        _ => Ok(()),
    }
}

fn change_user(uid: u32, gid: u32, groups: &[u32]) -> Result<(), Errno> {
    let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
    thread::set_thread_groups(&groups)?;
    let gid = Gid::from_raw(gid);
    thread::set_thread_res_gid(gid, gid, gid)?;
    let uid = Uid::from_raw(uid);
    thread::set_thread_res_uid(uid, uid, uid)?;
    // Whatever the kernel took these numbers for: nothing runs as somebody else than was asked for.
    let is = (rustix::process::getuid(), rustix::process::geteuid(), rustix::process::getegid());
    if is == (uid, uid, gid) { Ok(()) } else { Err(Errno::INVAL) }
}

/// Tries each place that the program may be in, as `execvp` does, without that function's shell fallback: a text file that
/// names no interpreter is the caller's mistake.
fn execute(request: &View<'_>) -> Result<Infallible, (Step, Errno)> {
    let pointers = |list: &[&CStr]| -> Vec<*const libc::c_char> {
        list.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
    };
    let (argv, env) = (pointers(&request.argv), pointers(&request.env));
    let mut failure = Errno::NOENT;
    for candidate in candidates(request.program, request.path) {
        // SAFETY: all three are NUL-terminated and live until the call returns, which it does only when it failed.
        unsafe { libc::execve(candidate.as_ptr(), argv.as_ptr(), env.as_ptr()) };
        match errno_of(&std::io::Error::last_os_error()) {
            Errno::NOENT if fs::accessat(CWD, &candidate, Access::EXISTS, AtFlags::empty()).is_ok() => {
                return Err((Step::Interpreter, Errno::NOENT));
            }
            Errno::NOENT | Errno::NOTDIR => {}
            // Perhaps another directory has one that may be executed.
            Errno::ACCESS => failure = Errno::ACCESS,
            errno => return Err((Step::Execute, errno)),
        }
    }
    Err((Step::Execute, failure))
}

/// Paths to try for `program`: itself if it holds a slash, else one in each directory of `path`.
fn candidates(program: &CStr, path: &CStr) -> Vec<CString> {
    if program.to_bytes().contains(&b'/') {
        return vec![program.to_owned()];
    }
    let directories = path.to_bytes().split(|byte| *byte == b':');
    let joined = directories.map(|directory| match directory {
        // An empty entry is the working directory.
        [] => program.to_bytes().to_vec(),
        _ => [directory, b"/", program.to_bytes()].concat(),
    });
    joined.filter_map(|path| CString::new(path).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_up_and_a_path_is_not() {
        assert_eq!(candidates(c"./a", c"/bin"), [c"./a".to_owned()]);
        assert_eq!(
            candidates(c"a", c"/usr/bin::/bin"),
            [c"/usr/bin/a".to_owned(), c"a".to_owned(), c"/bin/a".to_owned()]
        );
    }
}
