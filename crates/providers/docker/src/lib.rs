//! Sandboxes as containers of a Docker Engine, whichever runtime isolates them: runc, gVisor, Kata, any registered one.
//!
//! The engine makes and removes containers; everything inside is done by our agent, PID 1 of each, which comes from one
//! read-only volume. The guest protocol travels over *bridges*: long-lived execs whose standard streams are a connection.
//! An image needs no shell and no tool, a daemon may be on another machine, and what runs outlives this server.

mod auth;
mod bridge;
mod config;
mod container;
mod create;
mod daemon;
mod direct;
mod failure;
mod health;
mod image;
mod network;
mod pause;
mod provider;
mod pull;
mod reference;
mod runtime;
mod state;
mod stats;
mod volume;
mod watch;

pub use config::{DockerConfig, Network, Seccomp, Ulimit};
pub use provider::DockerProvider;
