//! Test helpers: a real server under test, the leak checker.

mod installation;
mod leaks;
mod server;
pub mod surface;

pub use installation::left_in;
pub use leaks::{LeakCheck, holdings};
pub use server::{Server, binary};
