//! From a fresh child of the supervisor to the program that was asked for: nothing of the agent's is left to it.
#![expect(unsafe_code, reason = "execve takes raw pointers")]

use super::{Parts, request::View, wire::Step};
use crate::{confine, fail::errno_of, oom, signals};
use rustix::{
    fs::{self, Access, AtFlags, CWD, Mode},
    io::Errno,
    process::{Gid, Resource, Rlimit, Uid, fchdir, setrlimit, setsid},
    thread,
};
use std::{
    ffi::{CStr, CString},
    ptr,
};

/// All that it takes to become the program, made beforehand: the leader may not own memory.
#[derive(Debug)]
pub(super) struct Leader<'a> {
    parts: &'a Parts,
    request: &'a View<'a>,
    groups: Vec<Gid>,
    argv: Vec<*const libc::c_char>,
    env: Vec<*const libc::c_char>,
    candidates: Vec<CString>,
}

impl<'a> Leader<'a> {
    pub(super) fn new(parts: &'a Parts, request: &'a View<'a>) -> Self {
        let pointers = |list: &[&CStr]| list.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect();
        let groups = request.user.iter().flat_map(|(_, _, groups)| groups).copied().map(Gid::from_raw);
        Self {
            parts,
            request,
            groups: groups.collect(),
            argv: pointers(&request.argv),
            env: pointers(&request.env),
            candidates: candidates(request.program, request.path),
        }
    }

    /// Becomes the program. Returns where and why it did not.
    pub(super) fn become_program(&self) -> (Step, Errno) {
        match self.prepare() {
            Ok(()) => self.execute(),
            Err(failure) => failure,
        }
    }

    fn prepare(&self) -> Result<(), (Step, Errno)> {
        let at = |step| move |errno| (step, errno);
        let Parts { stdin, stdout, stderr, cwd, .. } = self.parts;
        setsid().map_err(at(Step::Prepare))?;
        rustix::stdio::dup2_stdin(stdin).map_err(at(Step::Prepare))?;
        rustix::stdio::dup2_stdout(stdout).map_err(at(Step::Prepare))?;
        rustix::stdio::dup2_stderr(stderr).map_err(at(Step::Prepare))?;
        if self.request.terminal {
            rustix::process::ioctl_tiocsctty(stdin).map_err(at(Step::Prepare))?;
        }
        setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
            .map_err(at(Step::Prepare))?;
        rustix::process::umask(Mode::from_raw_mode(0o022));
        oom::volunteer().map_err(at(Step::OomScore))?;

        // The bounding set first: it takes a capability that is gone once the user is changed.
        confine::empty_bounding_set().map_err(at(Step::Privileges))?;
        if let Some((uid, gid, _)) = &self.request.user {
            change_user(*uid, *gid, &self.groups).map_err(at(Step::User))?;
        }
        match &self.request.user {
            // Asked for, and offered by this runtime: a package manager changes owners and users.
            Some((0, ..)) => confine::keep_for_root(),
            _ => confine::drop_all(),
        }
        .map_err(at(Step::Privileges))?;
        thread::set_no_new_privs(true).map_err(at(Step::Privileges))?;

        fchdir(cwd).map_err(at(Step::Directory))?;
        // What is open from here on closes by itself: all of it was opened with close-on-exec.
        signals::reset().map_err(at(Step::Prepare))
    }

    /// Tries each place that the program may be in, as `execvp` does, without that function's shell fallback: a text file
    /// that names no interpreter is the caller's mistake.
    fn execute(&self) -> (Step, Errno) {
        let mut failure = Errno::NOENT;
        for candidate in &self.candidates {
            // SAFETY: all three are NUL-terminated, and live until the call returns, which it does only when it failed.
            unsafe { libc::execve(candidate.as_ptr(), self.argv.as_ptr(), self.env.as_ptr()) };
            match errno_of(&std::io::Error::last_os_error()) {
                Errno::NOENT if fs::accessat(CWD, candidate, Access::EXISTS, AtFlags::empty()).is_ok() => {
                    return (Step::Interpreter, Errno::NOENT);
                }
                Errno::NOENT | Errno::NOTDIR => {}
                // Perhaps another directory has one that may be executed.
                Errno::ACCESS => failure = Errno::ACCESS,
                errno => return (Step::Execute, errno),
            }
        }
        (Step::Execute, failure)
    }
}

fn change_user(uid: u32, gid: u32, groups: &[Gid]) -> Result<(), Errno> {
    thread::set_thread_groups(groups)?;
    let gid = Gid::from_raw(gid);
    thread::set_thread_res_gid(gid, gid, gid)?;
    let uid = Uid::from_raw(uid);
    thread::set_thread_res_uid(uid, uid, uid)?;
    // Whatever the kernel took these numbers for: nothing runs as somebody else than was asked for.
    let is = (rustix::process::getuid(), rustix::process::geteuid(), rustix::process::getegid());
    if is == (uid, uid, gid) { Ok(()) } else { Err(Errno::INVAL) }
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
