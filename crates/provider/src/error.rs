//! The closed set of errors that cross the provider contract.
//!
//! Each carries a message that a user can act on and a cause for the log. A backend's response body is a cause, never a
//! message: what a client sees was written here.

use stacyvm_types::Limit;
use std::{fmt, sync::Arc};

/// Result of every call of the contract.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as far as a caller can act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The sandbox, process, file or image named does not exist.
    NotFound,
    /// The sandbox existed and is gone, or went away during the call.
    Destroyed,
    /// The runtime or the guest cannot be reached now; the same call may succeed later.
    Unavailable,
    /// The time allowed ran out; whether the effect took place is unknown unless the method says otherwise.
    Timeout,
    /// A limit of the sandbox, the host or the configuration was hit; the message names which.
    ResourceLimit,
    /// The caller's input is wrong; repeating it cannot succeed.
    InvalidArgument,
    /// This runtime cannot do that (see [`crate::Capabilities`]).
    Unsupported,
    /// A defect, ours or the runtime's.
    Internal,
}

impl ErrorKind {
    /// Every kind, for tests that must treat all of them.
    pub const ALL: [Self; 8] = [
        Self::NotFound,
        Self::Destroyed,
        Self::Unavailable,
        Self::Timeout,
        Self::ResourceLimit,
        Self::InvalidArgument,
        Self::Unsupported,
        Self::Internal,
    ];
}

/// An error of the contract.
#[derive(Clone)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    limit: Option<Limit>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

macro_rules! constructors {
    ($($name:ident => $kind:ident),+ $(,)?) => {$(
        #[doc = concat!("An [`ErrorKind::", stringify!($kind), "`] error with a message for the user.")]
        pub fn $name(message: impl Into<String>) -> Self {
            Self { kind: ErrorKind::$kind, message: message.into(), limit: None, source: None }
        }
    )+};
}

impl Error {
    constructors! {
        not_found => NotFound, destroyed => Destroyed, unavailable => Unavailable, timeout => Timeout,
        resource_limit => ResourceLimit, invalid_argument => InvalidArgument, unsupported => Unsupported,
        internal => Internal,
    }

    /// An error of this kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), limit: None, source: None }
    }

    /// The same error with the cause that goes to the log, and only there.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    /// The same error, which the sandbox's `limit` is the reason of.
    #[must_use]
    pub fn of_limit(mut self, limit: Limit) -> Self {
        self.limit = Some(limit);
        self
    }

    /// The limit of the sandbox that is the reason, where it is one and known.
    pub fn limit(&self) -> Option<Limit> {
        self.limit
    }

    /// What a caller can act on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What a user may see.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The message with its chain of causes, for the log.
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({})", self.kind, self.chain())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}
