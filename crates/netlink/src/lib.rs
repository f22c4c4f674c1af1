//! What the agent and the native provider both need of the kernel's network: netlink messages, the expressions of the packet
//! filter, prefixes of addresses, and which of them are not the internet.
//!
//! Written by hand, as the few bytes that they are: a library for it would be felt in the size of every sandbox.

mod batch;
mod expression;
mod internet;
mod message;
mod onlink;
mod prefix;
mod socket;

pub use batch::Batch;
pub use expression::{Rule, Side, Verdict, attribute, userdata};
pub use internet::{PUBLIC_RESOLVERS, add, blocked};
pub use message::{Attributes, attributes};
pub use onlink::{has_v6, v4, v6};
pub use prefix::Prefix;
pub use socket::{Answer, Socket};
