//! The engine's one error: a code of the API and a message for the user, with its cause for the log.

use stacyvm_provider::ErrorKind;
use stacyvm_store::StoreError;
use stacyvm_types::ErrorCode;
use std::{fmt, sync::Arc};

/// Result of every call of the engine.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as a caller of the API sees it.
#[derive(Clone)]
pub struct Error {
    code: ErrorCode,
    message: String,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

macro_rules! constructors {
    ($($name:ident => $code:ident),+ $(,)?) => {$(
        #[doc = concat!("An error with code [`ErrorCode::", stringify!($code), "`] and a message for the user.")]
        pub fn $name(message: impl Into<String>) -> Self {
            Self { code: ErrorCode::$code, message: message.into(), source: None }
        }
    )+};
}

impl Error {
    constructors! {
        bad_request => BadRequest, not_found => NotFound, conflict => Conflict, resource_limit => ResourceLimit,
        timeout => Timeout, unavailable => Unavailable, unsupported => Unsupported, internal => InternalError,
    }

    /// The same error with the cause that goes to the log, and only there.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    /// What kind of error, for programs.
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// What happened and what to do, for people.
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
        write!(f, "{:?}({})", self.code, self.chain())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

impl From<stacyvm_provider::Error> for Error {
    fn from(error: stacyvm_provider::Error) -> Self {
        let code = match error.kind() {
            // A sandbox that went away during the call is not there any more, like one that is destroyed.
            ErrorKind::NotFound | ErrorKind::Destroyed => ErrorCode::NotFound,
            ErrorKind::Unavailable => ErrorCode::Unavailable,
            ErrorKind::Timeout => ErrorCode::Timeout,
            ErrorKind::ResourceLimit => ErrorCode::ResourceLimit,
            ErrorKind::InvalidArgument => ErrorCode::BadRequest,
            ErrorKind::Unsupported => ErrorCode::Unsupported,
            ErrorKind::Internal => ErrorCode::InternalError,
        };
        Self { code, message: error.message().to_owned(), source: Some(Arc::new(error)) }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::Full | StoreError::Unavailable { .. } => ErrorCode::Unavailable,
            StoreError::Duplicate => ErrorCode::Conflict,
            StoreError::Corrupt { .. } | StoreError::Newer { .. } | StoreError::Defect { .. } => {
                ErrorCode::InternalError
            }
        };
        Self { code, message: error.to_string(), source: Some(Arc::new(error)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_the_contract_has_a_code_and_keeps_its_message() {
        for kind in ErrorKind::ALL {
            let error = Error::from(stacyvm_provider::Error::new(kind, "what happened"));
            assert_eq!(error.message(), "what happened");
            assert!(error.code().status() >= 400, "{kind:?}");
        }
    }

    #[test]
    fn a_cause_is_for_the_log_only() {
        let error = Error::internal("it failed").because("secret backend body");
        assert_eq!(error.to_string(), "it failed");
        assert_eq!(error.chain(), "it failed: secret backend body");
    }
}
