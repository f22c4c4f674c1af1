//! What callers ask for, before anything is checked, and what a synchronous exec answers.

use stacyvm_provider::ProcessInfo;
use stacyvm_types::{PtySize, SandboxState};
use std::{collections::BTreeMap, time::Duration};

/// A sandbox as asked for. `None` (and for old clients an empty text or a zero) means the default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CreateRequest {
    /// Image; at most 1024 bytes.
    pub image: Option<String>,
    /// Name of the provider.
    pub provider: Option<String>,
    /// What isolates it, where the provider offers a choice; empty: the provider's default.
    pub runtime: Option<String>,
    /// Its network, where the provider offers a choice; empty: the provider's default.
    pub network: Option<String>,
    /// Memory limit in MiB; 0: the default. Negative values and more than 16 TiB are refused.
    pub memory_mb: Option<i64>,
    /// Processor limit; 0: the default. Negative values and more than 1024 are refused.
    pub vcpus: Option<i64>,
    /// Disk limit in MiB; 0: the default. Negative values and more than 16 TiB are refused.
    pub disk_mb: Option<i64>,
    /// Time to live, counted from when it runs. Zero is refused.
    pub ttl: Option<Duration>,
    /// Who it belongs to: at most 128 characters, no white space, control characters, `/` or `\`.
    pub owner: Option<String>,
    /// The caller's labels: at most 64 with 16 KiB in all.
    pub metadata: BTreeMap<String, String>,
    /// It must not outlive this engine: a graceful stop destroys it, and so does the next start after a crash.
    pub ephemeral: bool,
    /// A repeated request of the same owner with the same key answers with the same sandbox: at most 255 bytes.
    pub idempotency_key: Option<String>,
}

/// Which sandboxes to list. The default lists all that are not destroyed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListFilter {
    /// Only of this owner.
    pub owner: Option<String>,
    /// Only in this state.
    pub state: Option<SandboxState>,
    /// Only on this provider.
    pub provider: Option<String>,
    /// At most this many, the newest.
    pub limit: Option<usize>,
}

/// A command as asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// Name of the process, 1 to 64 letters, digits, `-`, `_`, `.`; `None`: a new one. A known one starts nothing twice.
    pub process_id: Option<String>,
    /// Program and arguments (shell mode is resolved by the caller: `["sh", "-c", …]`).
    pub argv: Vec<String>,
    /// Added to the environment.
    pub env: BTreeMap<String, String>,
    /// Working directory; `None`: `/workspace`.
    pub cwd: Option<String>,
    /// User; `None`: the sandbox user.
    pub user: Option<String>,
    /// Open a pipe to stdin.
    pub stdin: bool,
    /// Kill the process and its descendants after this time, at most `max_exec_timeout`. Without one a process has no
    /// deadline and an exec the configured default. Zero: no deadline; for an exec, as far as `max_exec_timeout` allows.
    pub timeout: Option<Duration>,
    /// The caller's words, at most 256 bytes.
    pub tag: String,
    /// A terminal of this size instead of pipes.
    pub pty: Option<PtySize>,
}

/// Result of a synchronous exec. A deadline that ran out is not an error here: `process.timed_out` says so, and what was
/// written until then is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutcome {
    /// The process as it ended: exited or ended by a signal, never lost.
    pub process: ProcessInfo,
    /// Standard output, at most `max_output_bytes`.
    pub stdout: Vec<u8>,
    /// Standard error, at most `max_output_bytes`.
    pub stderr: Vec<u8>,
    /// The end of `stdout` was dropped, or bytes of it were lost on the way.
    pub stdout_truncated: bool,
    /// The end of `stderr` was dropped, or bytes of it were lost on the way.
    pub stderr_truncated: bool,
    /// From the start to the end of its output, by this host's clock.
    pub duration: Duration,
}
