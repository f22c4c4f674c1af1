//! `stacyvm.yaml` and `STACYVM_*` variables: which keys there are, what they mean, and where each value came from.
//!
//! One [table](table::KEYS) names every key with its kind, default and meaning; reading files and variables, checking,
//! `config show` and the reference text all follow from it. [`load`] reads every source, reports *all* problems at once,
//! each with its place and a fix, and returns the typed [`Config`] with the [`Settings`] it was made from.
//!
//! Precedence: command-line flag, environment, file, default. The file is the one named, or the first of
//! `./stacyvm.yaml` and `$HOME/.stacyvm/config.yaml` that exists; files are not merged. Unknown keys and variables are
//! warnings, since files written for earlier releases carry keys that are gone; a bad value is an error.

mod docker;
mod environment;
mod file;
mod images;
mod key;
mod load;
mod problem;
mod show;
mod table;
mod typed;
mod validate;
mod value;
mod yaml;

pub use docker::Docker;
pub use images::Images;
pub use key::{Effect, Key, Kind};
pub use load::{Loaded, Override, Sources, load};
pub use problem::{Invalid, Place, Problem};
pub use show::{reference, reference_json, to_json, to_yaml};
pub use table::{KEYS, find};
pub use typed::{
    Auth, Config, Database, Defaults, LogFormat, LogLevel, Logging, NativeNetwork, Providers, Server,
};
pub use value::{Origin, Setting, Settings, Value};
