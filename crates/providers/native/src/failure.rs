//! Errors inside this crate: what was being done when the system said no, and their translation into the contract's.

use serde::{Deserialize, Serialize};
use stacyvm_provider::Error;
use std::{fmt, io};

/// A system call or file operation that failed. Small and plain, because it also travels from the sandbox's first
/// process to the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// What was being done, as in "failed to ...".
    pub(crate) doing: String,
    /// Error number of the system, 0 if it was none.
    pub(crate) errno: i32,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.errno {
            0 => write!(f, "failed to {}", self.doing),
            errno => write!(f, "failed to {}: {}", self.doing, io::Error::from_raw_os_error(errno)),
        }
    }
}

impl std::error::Error for Failure {}

impl Failure {
    /// A failure that no system call reported.
    pub(crate) fn plain(doing: impl Into<String>) -> Self {
        Self { doing: doing.into(), errno: 0 }
    }
}

/// Says what was being done.
pub(crate) trait Doing<T> {
    /// Attaches what was being done, as in "failed to ...".
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|e| Failure { doing: what(), errno: e.raw_os_error().unwrap_or(libc::EIO) })
    }
}

impl<T> Doing<T> for Result<T, rustix::io::Errno> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|e| Failure { doing: what(), errno: e.raw_os_error() })
    }
}

/// What a host with too few rights has to change.
pub(crate) const NEEDS_ROOT: &str = "native needs root, or user namespaces for everybody: run with sudo, or point --server at a running server";

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let error = match failure.errno {
            libc::ENOSPC if failure.doing.starts_with("make the namespaces") => Self::resource_limit(
                "the host allows no more namespaces: raise the sysctls user.max_*_namespaces",
            ),
            libc::ENOSPC | libc::EDQUOT => {
                Self::resource_limit(format!("failed to {}: disk full", failure.doing))
            }
            libc::EMFILE | libc::ENFILE => {
                Self::resource_limit(format!("failed to {}: too many open files", failure.doing))
            }
            libc::EAGAIN | libc::ENOMEM => {
                Self::resource_limit(format!("failed to {}: the host has no room for it", failure.doing))
            }
            libc::EPERM | libc::EACCES => {
                Self::unavailable(format!("failed to {}: not permitted. {NEEDS_ROOT}", failure.doing))
            }
            _ => Self::internal(format!("failed to {}", failure.doing)),
        };
        error.because(failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stacyvm_provider::ErrorKind;

    #[test]
    fn a_failure_says_what_and_why() {
        let failure = Err::<(), _>(io::Error::from_raw_os_error(libc::ENOSPC))
            .doing(|| "write the state".to_owned())
            .unwrap_err();
        assert_eq!(failure.to_string(), "failed to write the state: No space left on device (os error 28)");
        assert_eq!(Error::from(failure).kind(), ErrorKind::ResourceLimit);
    }

    #[test]
    fn missing_rights_name_the_fix() {
        let error = Error::from(Failure { doing: "x".to_owned(), errno: libc::EPERM });
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.message().contains("sudo"), "{}", error.message());
    }
}
