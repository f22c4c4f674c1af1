//! The guest protocol: its definition (`proto/guest.proto`), the opening exchange, and (feature `host`) the half that
//! the control plane runs. The other half is `bin/stacyvm-agent`.

pub mod hello;
#[cfg(feature = "host")]
pub mod host;

/// Generated from `proto/guest.proto`; the field documentation lives there.
#[expect(
    missing_docs,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod proto {
    tonic::include_proto!("stacyvm.guest.v1");
}

/// Newest protocol version that this build speaks.
pub const VERSION_MAX: u32 = 1;
/// Oldest protocol version that this build speaks.
pub const VERSION_MIN: u32 = 1;

/// Metadata of a failed call's status with the number of the [`proto::Limit`] that is the reason.
pub const LIMIT_METADATA: &str = "stacyvm-limit";

/// What a runtime and the agent that it starts agree on beside connections.
pub mod start {
    /// Variable with the addresses and prefixes, separated by spaces, that `--restrict-network` blocks beside the usual.
    /// Every process in a sandbox may read the agent's command line; its environment is hidden.
    pub const BLOCKED_VARIABLE: &str = "STACYVM_BLOCKED_ADDRESSES";
    /// Exit code of an agent that was to restrict its network and cannot.
    pub const UNRESTRICTED: u8 = 77;
}

/// Limits that both halves keep, so that neither can be made to grow by the other.
pub mod limits {
    /// Largest protobuf message on any connection, in bytes.
    pub const MESSAGE_BYTES: usize = 1 << 20;
    /// Largest piece of file content or output in one message, in bytes.
    pub const CHUNK_BYTES: usize = 64 << 10;
    /// Largest piece of stdin in one call, in bytes.
    pub const STDIN_BYTES: usize = 64 << 10;
    /// HTTP/2 window of one stream, in bytes: what one stalled reader can pin.
    pub const STREAM_WINDOW: u32 = 256 << 10;
    /// Streams at once on one connection.
    pub const STREAMS: u32 = 128;
    /// HTTP/2 window of a connection: every stream may be stalled at once without stalling the next one.
    pub const CONNECTION_WINDOW: u32 = STREAM_WINDOW * STREAMS;
    /// Output that a process keeps for late attachers unless it asks otherwise, in bytes.
    pub const LOG_BYTES: u64 = 2 << 20;
    /// Ended processes that an agent remembers.
    pub const ENDED_PROCESSES: usize = 256;
    /// Longest server-side wait in one `Wait` call, in milliseconds.
    pub const WAIT_MS: u64 = 60_000;
    /// Files in one `FileInfos` message.
    pub const FILES_PER_MESSAGE: usize = 256;
}
