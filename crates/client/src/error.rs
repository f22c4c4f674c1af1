//! What can go wrong between here and the server, told apart by what can be done about it.

use stacyvm_types::ErrorCode;

/// Result of every call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server answered with an error.
    #[error("{message}")]
    Api {
        /// HTTP status.
        status: u16,
        /// Kind of error; `None` when the answer was not the server's own (a proxy's, say).
        code: Option<ErrorCode>,
        /// What happened, in the server's words.
        message: String,
    },
    /// The server cannot be reached.
    #[error("cannot reach {server}: {reason}")]
    Connect {
        /// Address of the server.
        server: String,
        /// Why, as far as the system says.
        reason: String,
    },
    /// The connection broke, or the server fell silent; whether the request had an effect is unknown.
    #[error("the connection to the server broke: {0}")]
    Broken(String),
    /// What answers is not this API, or not a version of it that this client understands.
    #[error("the server gave an answer that this client does not understand: {0}")]
    Protocol(String),
    /// The address or key given to this client cannot be used.
    #[error("{0}")]
    Options(String),
    /// Reading what was to be sent failed.
    #[error("cannot read what is to be sent: {0}")]
    Source(std::io::Error),
}

impl Error {
    /// The kind that the server gave.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Api { code, .. } => *code,
            _ => None,
        }
    }

    /// There is no such thing as was asked for.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Api { status: 404, .. })
    }

    /// The same call may work in a moment: the server is away, starting, or cannot reach the guest now.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Broken(_) => true,
            Self::Api { status, code, .. } => {
                *code == Some(ErrorCode::Unavailable) || (code.is_none() && matches!(status, 502..=504))
            }
            Self::Protocol(_) | Self::Options(_) | Self::Source(_) => false,
        }
    }

    pub(crate) fn from_transport(server: &str, error: &reqwest::Error) -> Self {
        if error.is_connect() {
            Self::Connect { server: server.to_owned(), reason: root_cause(error) }
        } else if error.is_timeout() {
            Self::Broken("no answer in time".to_owned())
        } else {
            Self::Broken(root_cause(error))
        }
    }
}

/// The innermost cause: the outer ones say that a request failed, which is known.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
