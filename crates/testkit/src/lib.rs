//! Test helpers: a real server under test, the leak checker.

mod server;

pub use server::{Server, binary};
