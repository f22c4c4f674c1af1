//! What a process reads and writes, both ends of it: three pipes, or a terminal.

use super::{
    pty::{Pty, Size},
    stdin::Stdin,
};
use crate::fail::{Result, errno_of};
use rustix::{
    fs::{Gid, Mode, OFlags, Uid, fchown},
    io::{Errno, fcntl_dupfd_cloexec},
    pipe::{PipeFlags, pipe_with},
};
use stacyvm_guest::proto::StartRequest;
use std::{io, os::fd::OwnedFd};
use tokio::net::unix::pipe;

/// What kind of ends a process gets.
#[derive(Debug)]
pub(super) enum Ends {
    /// Three pipes, or two and `/dev/null`.
    Pipes { stdin: bool },
    /// A terminal of this size.
    Terminal(Size),
}

/// The process's.
#[derive(Debug)]
pub(super) struct Theirs {
    pub(super) stdin: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

/// Ours.
#[derive(Debug)]
pub(super) struct Ours {
    pub(super) stdin: Stdin,
    pub(super) stdout: pipe::Receiver,
    /// A terminal has one output.
    pub(super) stderr: Option<pipe::Receiver>,
    pub(super) pty: Option<Pty>,
}

impl Ends {
    /// What `request` asks for.
    ///
    /// # Errors
    /// `InvalidArgument` for a terminal without room.
    pub(super) fn of(request: &StartRequest) -> Result<Self> {
        match request.pty {
            Some(size) => Size::new(size).map(Self::Terminal),
            None => Ok(Self::Pipes { stdin: request.stdin }),
        }
    }

    /// Makes them. `owner`: user and group that the process is to have.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn make(&self, owner: Option<(u32, u32)>) -> Result<(Theirs, Ours), Errno> {
        match self {
            Self::Pipes { stdin } => pipes(*stdin, owner),
            Self::Terminal(size) => terminal(*size, owner),
        }
    }
}

fn pipes(with_stdin: bool, owner: Option<(u32, u32)>) -> Result<(Theirs, Ours), Errno> {
    let (stdin, stdin_writer) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stdout_reader, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stderr_reader, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    // Owned by the user, so that the process may open them again as /dev/stdout and /dev/stderr.
    if let Some((uid, gid)) = owner {
        for pipe in [&stdin, &stdout, &stderr] {
            fchown(pipe, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
    }
    let (stdin, stdin_writer) = if with_stdin {
        (stdin, Some(stdin_writer))
    } else {
        match rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(null) => (null, None),
            // A pipe whose other end is closed reads as empty too.
            Err(_) => (stdin, None),
        }
    };
    let ours = Ours {
        stdin: Stdin::new(stdin_writer.map(pipe::Sender::from_owned_fd).transpose().map_err(errno)?),
        stdout: pipe::Receiver::from_owned_fd(stdout_reader).map_err(errno)?,
        stderr: Some(pipe::Receiver::from_owned_fd(stderr_reader).map_err(errno)?),
        pty: None,
    };
    Ok((Theirs { stdin, stdout, stderr }, ours))
}

fn terminal(size: Size, owner: Option<(u32, u32)>) -> Result<(Theirs, Ours), Errno> {
    let (pty, [writer, reader], theirs) = Pty::open(size)?;
    // The group stays: where there is one for terminals, the kernel has set it.
    if let Some((uid, _)) = owner {
        fchown(&theirs, Some(Uid::from_raw(uid)), None)?;
    }
    let ours = Ours {
        stdin: Stdin::of_terminal(pipe::Sender::from_owned_fd_unchecked(writer).map_err(errno)?),
        stdout: pipe::Receiver::from_owned_fd_unchecked(reader).map_err(errno)?,
        stderr: None,
        pty: Some(pty),
    };
    let again = || fcntl_dupfd_cloexec(&theirs, 0);
    Ok((Theirs { stdin: again()?, stdout: again()?, stderr: theirs }, ours))
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn errno(error: io::Error) -> Errno {
    errno_of(&error)
}
