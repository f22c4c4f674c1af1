//! What a check is: an id that never changes, a promise in one line, what it needs, and the function that looks.

use crate::{Options, context::Context};
use futures::future::BoxFuture;
use stacyvm_provider::{Capabilities, Error, ErrorKind};
use std::time::Duration;

/// One promise and how it is checked.
#[derive(Clone, Copy)]
pub struct Check {
    /// Stable name, `area.what`.
    pub id: &'static str,
    /// What a passed check says about the provider.
    pub promise: &'static str,
    /// Without these it is not run.
    pub needs: &'static [Need],
    /// Longest time it may take, before [`Options::patience`].
    pub timeout: Duration,
    pub(crate) run: fn(Context) -> BoxFuture<'static, Verdict>,
}

/// What a check depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// [`Capabilities::memory_limit`].
    MemoryLimit,
    /// [`Capabilities::cpu_limit`].
    CpuLimit,
    /// [`Capabilities::pids_limit`].
    PidsLimit,
    /// [`Capabilities::disk_limit`].
    DiskLimit,
    /// [`Capabilities::root_user`].
    RootUser,
    /// The opposite of [`Capabilities::root_user`].
    NoRootUser,
    /// [`Capabilities::isolated`].
    Isolated,
    /// [`Capabilities::stats`].
    Stats,
    /// [`Capabilities::pause`].
    Pause,
    /// [`Capabilities::pty`].
    Pty,
    /// [`Capabilities::pty_signals`].
    PtySignals,
    /// [`Capabilities::oom_ends_sandbox`].
    OomEndsSandbox,
    /// The opposite of [`Capabilities::oom_ends_sandbox`].
    OomEndsProcess,
    /// [`Options::host_processes`].
    HostProcesses,
    /// [`Options::no_network`].
    NoNetwork,
}

impl Need {
    /// Why a check with this need cannot be run, or `None` when it can.
    pub fn missing(self, capabilities: &Capabilities, options: &Options) -> Option<String> {
        let (met, name) = match self {
            Self::MemoryLimit => (capabilities.memory_limit, "memory_limit"),
            Self::CpuLimit => (capabilities.cpu_limit, "cpu_limit"),
            Self::PidsLimit => (capabilities.pids_limit, "pids_limit"),
            Self::DiskLimit => (capabilities.disk_limit, "disk_limit"),
            Self::RootUser => (capabilities.root_user, "root_user"),
            Self::Isolated => (capabilities.isolated, "isolated"),
            Self::Stats => (capabilities.stats, "stats"),
            Self::Pause => (capabilities.pause, "pause"),
            Self::Pty => (capabilities.pty, "pty"),
            Self::PtySignals => (capabilities.pty_signals, "pty_signals"),
            Self::OomEndsSandbox => (capabilities.oom_ends_sandbox, "oom_ends_sandbox"),
            Self::OomEndsProcess => {
                return capabilities
                    .oom_ends_sandbox
                    .then(|| "capability oom_ends_sandbox is offered".to_owned());
            }
            Self::NoRootUser => {
                return capabilities.root_user.then(|| "capability root_user is offered".to_owned());
            }
            Self::HostProcesses => {
                let why = "processes of sandboxes are not visible on this host";
                return (!options.host_processes).then(|| why.to_owned());
            }
            Self::NoNetwork => return (!options.no_network).then(|| "sandboxes have a network".to_owned()),
        };
        (!met).then(|| format!("capability {name} is not offered"))
    }
}

/// Outcome of a check's function.
pub(crate) type Verdict<T = ()> = Result<T, Failure>;

/// What was seen instead of what was promised.
#[derive(Debug, Clone)]
pub(crate) struct Failure(pub(crate) String);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(format!("unexpected error {error:?}"))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self(format!("the suite itself failed: {error}"))
    }
}

/// Fails the check with a message unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::check::Failure(format!($($message)+)));
        }
    };
}
pub(crate) use ensure;

/// Adds what was being done to an error that was not expected.
pub(crate) trait During<T> {
    /// The value, or a failure that starts with `what`.
    fn during(self, what: &str) -> Verdict<T>;
}

impl<T, E: Into<Failure>> During<T> for Result<T, E> {
    fn during(self, what: &str) -> Verdict<T> {
        self.map_err(|error| Failure(format!("{what}: {}", error.into().0)))
    }
}

/// Demands an error of one of `kinds`.
pub(crate) fn refused<T>(what: &str, result: Result<T, Error>, kinds: &[ErrorKind]) -> Verdict {
    match result {
        Err(error) if kinds.contains(&error.kind()) => {
            ensure!(!error.message().is_empty(), "{what}: refused without a message");
            Ok(())
        }
        Err(error) => Err(Failure(format!("{what}: expected {kinds:?}, got {error:?}"))),
        Ok(_) => Err(Failure(format!("{what}: expected {kinds:?}, but it succeeded"))),
    }
}

/// Lists checks: `"id" "promise" [needs] seconds function;`.
macro_rules! checks {
    ($($id:literal $promise:literal [$($need:ident),*] $seconds:literal $function:ident;)+) => {
        /// The checks of this module.
        pub(super) const CHECKS: &[$crate::check::Check] = &[$(
            $crate::check::Check {
                id: $id,
                promise: $promise,
                needs: &[$($crate::check::Need::$need),*],
                timeout: ::std::time::Duration::from_secs($seconds),
                run: |context| ::std::boxed::Box::pin($function(context)),
            },
        )+];
    };
}
pub(crate) use checks;
