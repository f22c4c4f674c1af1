//! Commands, one file each: its flags, what it does, what it prints.

pub(crate) mod attach;
pub(crate) mod bench;
pub(crate) mod completion;
pub(crate) mod config;
pub(crate) mod cp;
pub(crate) mod du;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod image;
pub(crate) mod kill;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod man;
pub(crate) mod pause;
pub(crate) mod probe;
pub(crate) mod ps;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod signal;
pub(crate) mod spawn;
pub(crate) mod stats;
pub(crate) mod version;
pub(crate) mod watch;
