//! The opening exchange of every connection: who is calling (installation, generation), in which role and version.
//!
//! Frames are u32 big-endian length + protobuf message, at most [`MAX_FRAME`] bytes: a peer that speaks something else
//! is recognised at once and cannot make us allocate.

use crate::proto::{Hello, Role, Welcome};
use prost::Message;

/// First field of both messages: "SVM1".
pub const MAGIC: u32 = 0x5356_4d31;
/// Longest frame of the opening exchange, in bytes, without its length prefix.
pub const MAX_FRAME: usize = 4096;
/// First line of a bridge (`stacyvm-agent bridge`) once it has reached the agent; everything behind it is the connection.
pub const BRIDGE_GREETING: &[u8] = b"stacyvm-bridge 1\n";
/// Time that either side gives the other for its frame.
pub const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// Why an opening exchange failed.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    /// The peer does not speak this protocol at all.
    #[error("the peer does not speak the guest protocol ({0})")]
    NotOurs(&'static str),
    /// The agent answered, and said no.
    #[error("the agent refused the connection: {0}")]
    Refused(String),
}

impl Hello {
    /// A hello in this build's versions.
    pub fn new(installation_id: impl Into<String>, generation: u64, role: Role) -> Self {
        Self {
            magic: MAGIC,
            version_min: crate::VERSION_MIN,
            version_max: crate::VERSION_MAX,
            installation_id: installation_id.into(),
            generation,
            role: role.into(),
        }
    }

    /// Newest version that both sides speak, if there is one.
    pub fn common_version(&self) -> Option<u32> {
        let newest = self.version_max.min(crate::VERSION_MAX);
        (newest >= self.version_min.max(crate::VERSION_MIN)).then_some(newest)
    }
}

/// Encodes `message` as one frame.
pub fn encode_frame(message: &impl Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    let mut frame = Vec::with_capacity(4 + body.len());
    // A hello is a few short strings; one beyond 4 KiB is refused by the receiver.
    frame.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend_from_slice(&body);
    frame
}

/// Body length of a frame with this prefix.
///
/// # Errors
/// [`HelloError::NotOurs`] when the length is beyond [`MAX_FRAME`].
pub fn frame_length(prefix: [u8; 4]) -> Result<usize, HelloError> {
    match u32::from_be_bytes(prefix) as usize {
        length if length <= MAX_FRAME => Ok(length),
        _ => Err(HelloError::NotOurs("frame too long")),
    }
}

/// Decodes a [`Hello`] body and checks its magic.
///
/// # Errors
/// [`HelloError::NotOurs`] for anything else.
pub fn decode_hello(body: &[u8]) -> Result<Hello, HelloError> {
    let hello = Hello::decode(body).map_err(|_| HelloError::NotOurs("not a hello"))?;
    if hello.magic == MAGIC { Ok(hello) } else { Err(HelloError::NotOurs("wrong magic")) }
}

/// Decodes a [`Welcome`] body.
///
/// # Errors
/// [`HelloError::NotOurs`] for anything else, [`HelloError::Refused`] when the agent said no.
pub fn decode_welcome(body: &[u8]) -> Result<Welcome, HelloError> {
    let welcome = Welcome::decode(body).map_err(|_| HelloError::NotOurs("not a welcome"))?;
    if welcome.magic != MAGIC {
        return Err(HelloError::NotOurs("wrong magic"));
    }
    if !welcome.refused.is_empty() || welcome.version == 0 {
        return Err(HelloError::Refused(welcome.refused));
    }
    Ok(welcome)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_hello_survives_the_wire() {
        let hello = Hello::new("inst-1", 7, Role::Bulk);
        let frame = encode_frame(&hello);
        assert_eq!(frame_length([frame[0], frame[1], frame[2], frame[3]]).unwrap(), frame.len() - 4);
        assert_eq!(decode_hello(&frame[4..]).unwrap(), hello);
    }

    #[test]
    fn versions_meet_at_the_newest_common_one() {
        let mut hello = Hello::new("i", 1, Role::Control);
        (hello.version_min, hello.version_max) = (1, 9);
        assert_eq!(hello.common_version(), Some(crate::VERSION_MAX));
        (hello.version_min, hello.version_max) = (crate::VERSION_MAX + 1, 9);
        assert_eq!(hello.common_version(), None);
    }

    #[test]
    fn an_http_peer_is_recognised_by_its_first_four_bytes() {
        assert!(frame_length(*b"HTTP").is_err());
        assert!(frame_length(*b"PRI ").is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoders_panic(body in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = decode_hello(&body);
            let _ = decode_welcome(&body);
        }
    }
}
