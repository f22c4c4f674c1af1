//! From the daemon's answers to the contract's errors. What the daemon said is a cause, for the log; what a user reads was
//! written here.

use bollard::errors::Error as Docker;
use stacyvm_provider::Error;

/// HTTP status of an answer of the daemon, if it was one.
pub(crate) fn status(error: &Docker) -> Option<u16> {
    match error {
        Docker::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// Whether what was asked for does not exist.
pub(crate) fn is_missing(error: &Docker) -> bool {
    status(error) == Some(404)
}

/// Whether something is in the way: a name that is taken, a removal under way.
pub(crate) fn is_conflict(error: &Docker) -> bool {
    status(error) == Some(409)
}

/// Whether the daemon itself failed.
pub(crate) fn is_internal(error: &Docker) -> bool {
    status(error) == Some(500)
}

/// What the daemon said, in lower case, to look for words in.
pub(crate) fn words(error: &Docker) -> String {
    match error {
        Docker::DockerResponseServerError { message, .. } => message.to_lowercase(),
        Docker::DockerStreamError { error } => error.to_lowercase(),
        other => other.to_string().to_lowercase(),
    }
}

/// The contract's error for a call that should have worked. `doing` completes "the docker daemon could not …".
pub(crate) fn failed(doing: &str, error: Docker) -> Error {
    match &error {
        Docker::DockerResponseServerError { status_code: 503, .. } => {
            Error::unavailable(format!("the docker daemon could not {doing} now: it is busy or stopping"))
        }
        Docker::DockerResponseServerError { .. } | Docker::DockerStreamError { .. } => {
            let said = words(&error);
            if said.contains("no space left on device") {
                Error::resource_limit(format!(
                    "the docker daemon could not {doing}: its disk is full; free some with `docker system prune`, or move its data-root"
                ))
            } else if said.contains("cannot allocate memory") || said.contains("resource temporarily unavailable")
            {
                Error::resource_limit(format!("the docker daemon could not {doing}: its host is out of memory or processes"))
            } else {
                Error::internal(format!("the docker daemon could not {doing}; the server's log has its words"))
            }
        }
        Docker::JsonDataError { .. } | Docker::JsonSerdeError { .. } | Docker::StrParseError { .. } => {
            Error::internal(format!("the docker daemon's answer is not understood ({doing}); is it really one?"))
        }
        _ => unreachable(),
    }
    .because(error)
}

/// The daemon does not answer.
pub(crate) fn unreachable() -> Error {
    Error::unavailable(
        "the docker daemon cannot be reached: see that it runs, and that providers.docker.socket or DOCKER_HOST names it and this server may use it",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use stacyvm_provider::ErrorKind;

    fn answer(status_code: u16, message: &str) -> Docker {
        Docker::DockerResponseServerError { status_code, message: message.to_owned() }
    }

    #[test]
    fn what_the_daemon_says_is_for_the_log() {
        let secret = "open /srv/secret: no such file";
        let error = failed("make a container", answer(500, secret));
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert!(!error.message().contains("secret") && error.chain().contains(secret));
    }

    #[test]
    fn what_can_be_mended_is_told_apart() {
        let kind = |error| failed("x", error).kind();
        assert_eq!(kind(answer(500, "write: No space left on device")), ErrorKind::ResourceLimit);
        assert_eq!(kind(answer(503, "")), ErrorKind::Unavailable);
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        assert_eq!(kind(Docker::IOError { err: refused }), ErrorKind::Unavailable);
        assert_eq!(kind(Docker::RequestTimeoutError), ErrorKind::Unavailable);
    }
}
