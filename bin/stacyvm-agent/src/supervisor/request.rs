//! The request to start one process, as it travels in a memory file: a header of fixed size, then C strings. Arguments
//! may take a mebibyte, more than a message between sockets may hold.

use rustix::{
    fs::fstat,
    io::{Errno, pread},
};
use std::{ffi::CStr, os::fd::OwnedFd};

/// What a supervisor and the leader it starts have to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    /// Kill the tree after this many milliseconds; 0: never.
    pub(crate) deadline_ms: u64,
    /// Change to this user, group and groups; else stay.
    pub(crate) user: Option<(u32, u32, Vec<u32>)>,
    /// Path or name of the program.
    pub(crate) program: Vec<u8>,
    /// Directories to look the program up in, joined by colons.
    pub(crate) path: Vec<u8>,
    /// Arguments, the first one included.
    pub(crate) argv: Vec<Vec<u8>>,
    /// The whole environment, each `NAME=value`.
    pub(crate) env: Vec<Vec<u8>>,
    /// Stdin is a terminal, which is to control the session.
    pub(crate) terminal: bool,
}

/// Bytes in front of the groups: deadline, flags, uid, gid, and four counts.
const HEADER: usize = 8 + 7 * 4;
const CHANGE_USER: u32 = 1;
const TERMINAL: u32 = 2;

impl Request {
    /// The bytes for [`Request::decode`]. No string may hold a NUL.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (change, uid, gid, groups) = match &self.user {
            Some((uid, gid, groups)) => (CHANGE_USER, *uid, *gid, groups.as_slice()),
            None => (0, 0, 0, &[][..]),
        };
        let flags = change | if self.terminal { TERMINAL } else { 0 };
        let strings = || [&self.program, &self.path].into_iter().chain(&self.argv).chain(&self.env);
        let size = HEADER + groups.len() * 4 + strings().map(|s| s.len() + 1).sum::<usize>();
        let mut out = Vec::with_capacity(size);
        out.extend_from_slice(&self.deadline_ms.to_le_bytes());
        // Counts of things that fit in memory as at least one byte each, in messages of at most a mebibyte.
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        for number in [flags, uid, gid, count(groups.len()), count(self.argv.len()), count(self.env.len()), 0]
        {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for group in groups {
            out.extend_from_slice(&group.to_le_bytes());
        }
        for string in strings() {
            out.extend_from_slice(string);
            out.push(0);
        }
        out
    }

    /// Borrows everything from `bytes`; `None` if they are no request.
    pub(crate) fn decode(bytes: &[u8]) -> Option<View<'_>> {
        let (deadline_ms, mut rest) = bytes.split_first_chunk::<8>()?;
        let mut number = || {
            let (head, tail) = rest.split_first_chunk::<4>()?;
            rest = tail;
            Some(u32::from_le_bytes(*head))
        };
        let (flags, uid, gid) = (number()?, number()?, number()?);
        let (group_count, argc, envc, _) = (number()?, number()?, number()?, number()?);
        let groups: Option<Vec<u32>> = (0..group_count).map(|_| number()).collect();
        let groups = groups?;
        let mut string = || {
            let string = CStr::from_bytes_until_nul(rest).ok()?;
            rest = rest.get(string.to_bytes_with_nul().len()..)?;
            Some(string)
        };
        let (program, path) = (string()?, string()?);
        let argv: Option<Vec<&CStr>> = (0..argc).map(|_| string()).collect();
        let env: Option<Vec<&CStr>> = (0..envc).map(|_| string()).collect();
        Some(View {
            deadline_ms: u64::from_le_bytes(*deadline_ms),
            user: (flags & CHANGE_USER != 0).then_some((uid, gid, groups)),
            program,
            path,
            argv: argv?,
            env: env?,
            terminal: flags & TERMINAL != 0,
        })
    }
}

/// The bytes of a request.
///
/// # Errors
/// The kernel's.
pub(crate) fn read(file: &OwnedFd) -> Result<Vec<u8>, Errno> {
    let size = usize::try_from(fstat(file)?.st_size).map_err(|_| Errno::BADMSG)?;
    let mut bytes = vec![0; size];
    let mut filled = 0;
    while filled < size {
        match pread(file, &mut bytes[filled..], filled as u64) {
            Ok(0) => return Err(Errno::BADMSG),
            Ok(read) => filled += read,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(bytes)
}

/// A [`Request`] in place.
#[derive(Debug)]
pub(crate) struct View<'a> {
    pub(crate) deadline_ms: u64,
    pub(crate) user: Option<(u32, u32, Vec<u32>)>,
    pub(crate) program: &'a CStr,
    pub(crate) path: &'a CStr,
    pub(crate) argv: Vec<&'a CStr>,
    pub(crate) env: Vec<&'a CStr>,
    pub(crate) terminal: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn string() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(1..=255u8, 0..12)
    }

    prop_compose! {
        fn request()(
            deadline_ms: u64,
            user in proptest::option::of((any::<u32>(), any::<u32>(), proptest::collection::vec(any::<u32>(), 0..4))),
            program in string(),
            path in string(),
            argv in proptest::collection::vec(string(), 0..6),
            env in proptest::collection::vec(string(), 0..6),
            terminal: bool,
        ) -> Request {
            Request { deadline_ms, user, program, path, argv, env, terminal }
        }
    }

    proptest! {
        #[test]
        fn a_request_survives(request in request()) {
            let bytes = request.encode();
            let view = Request::decode(&bytes).unwrap();
            let owned = |list: &[&CStr]| list.iter().map(|s| s.to_bytes().to_vec()).collect::<Vec<_>>();
            let back = Request {
                deadline_ms: view.deadline_ms,
                user: view.user.clone(),
                program: view.program.to_bytes().to_vec(),
                path: view.path.to_bytes().to_vec(),
                argv: owned(&view.argv),
                env: owned(&view.env),
                terminal: view.terminal,
            };
            prop_assert_eq!(back, request);
        }

        #[test]
        fn a_cut_request_is_none(request in request(), cut in 1..64usize) {
            let bytes = request.encode();
            prop_assert!(Request::decode(&bytes[..bytes.len().saturating_sub(cut)]).is_none());
        }
    }
}
