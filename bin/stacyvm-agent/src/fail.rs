//! The one error of the agent: a gRPC code from the small set that the host half understands, and a sentence for the user.

use rustix::io::Errno;
use stacyvm_guest::{LIMIT_METADATA, proto::Limit};
use tonic::{Code, Status};

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fail {
    code: Code,
    message: String,
    /// The sandbox's limit that is the reason, if one is.
    limit: Option<Limit>,
}

/// Result of the agent's work.
pub(crate) type Result<T, E = Fail> = std::result::Result<T, E>;

impl Fail {
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self { code: Code::NotFound, message: message.into(), limit: None }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self { code: Code::InvalidArgument, message: message.into(), limit: None }
    }

    pub(crate) fn exhausted(message: impl Into<String>) -> Self {
        Self { code: Code::ResourceExhausted, message: message.into(), limit: None }
    }

    /// Exhausted is a limit that the sandbox was given.
    pub(crate) fn of_limit(limit: Limit, message: impl Into<String>) -> Self {
        Self { limit: Some(limit), ..Self::exhausted(message) }
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self { code: Code::Unimplemented, message: message.into(), limit: None }
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self { code: Code::Internal, message: message.into(), limit: None }
    }

    pub(crate) fn timeout(message: impl Into<String>) -> Self {
        Self { code: Code::DeadlineExceeded, message: message.into(), limit: None }
    }

    /// What `errno` means for `subject`, a path or another thing that the user named.
    pub(crate) fn errno(subject: &str, errno: Errno) -> Self {
        match errno {
            Errno::NOENT => Self::not_found(format!("{subject} does not exist")),
            Errno::NOTDIR => {
                Self::not_found(format!("{subject} does not exist: a part of the path is not a directory"))
            }
            Errno::NOSPC | Errno::DQUOT => {
                Self::of_limit(Limit::DiskFull, format!("{subject}: the disk of the sandbox is full"))
            }
            Errno::FBIG => Self::exhausted(format!("{subject}: larger than a file can be here")),
            Errno::NOMEM => Self::exhausted(format!("{subject}: out of memory")),
            Errno::MFILE | Errno::NFILE => Self::exhausted(format!("{subject}: too many open files")),
            Errno::AGAIN => Self::exhausted(format!("{subject}: busy, no room for it now")),
            Errno::MLINK => Self::exhausted(format!("{subject}: too many links")),
            Errno::ISDIR => Self::invalid(format!("{subject} is a directory")),
            Errno::EXIST => Self::invalid(format!("{subject} exists already")),
            Errno::NOTEMPTY => Self::invalid(format!("{subject} is a directory that is not empty")),
            Errno::LOOP => Self::invalid(format!("{subject}: too many symbolic links")),
            Errno::NAMETOOLONG => Self::invalid(format!("{subject}: the name is too long")),
            Errno::ACCESS | Errno::PERM => Self::invalid(format!("{subject}: permission denied")),
            Errno::ROFS => Self::invalid(format!("{subject} is on a read-only file system")),
            Errno::BUSY => Self::invalid(format!("{subject} is in use, as a mount point perhaps")),
            Errno::TXTBSY => Self::invalid(format!("{subject} is being executed or written")),
            Errno::XDEV => Self::invalid(format!("{subject} is on another file system")),
            Errno::INVAL => Self::invalid(format!("{subject} is not valid here")),
            other => Self::internal(format!("{subject}: {other}")),
        }
    }

    #[cfg(test)]
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    #[cfg(test)]
    pub(crate) fn code(&self) -> Code {
        self.code
    }
}

/// The kernel's number in an error of the standard library.
pub(crate) fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

impl From<Fail> for Status {
    fn from(fail: Fail) -> Self {
        let mut status = Self::new(fail.code, fail.message);
        if let Some(limit) = fail.limit {
            status.metadata_mut().insert(LIMIT_METADATA, i32::from(limit).into());
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_is_named_when_it_is_full() {
        let fail = Fail::errno("/workspace/x", Errno::NOSPC);
        assert_eq!(fail.code(), Code::ResourceExhausted);
        assert_eq!(fail.message(), "/workspace/x: the disk of the sandbox is full");
        let status = Status::from(fail);
        let limit = status.metadata().get(LIMIT_METADATA).unwrap();
        assert_eq!(limit.to_str().unwrap(), i32::from(Limit::DiskFull).to_string());
        assert!(Status::from(Fail::exhausted("x")).metadata().is_empty());
    }
}
