//! The real agent as a process of this host, spoken to over its socket: what unit tests of its parts cannot show.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on says where"
)]

mod bridges;
mod connections;
mod files;
mod files_in_bulk;
mod first_process;
mod harness;
mod output;
mod processes;
mod restrict;
mod stdin;
mod trees;
