//! Networks of sandboxes: `none`, which is a namespace with nothing but its own loopback, and `internet`.
//!
//! ```text
//!   sandbox                    host
//!   eth0  10.219.0.7/32 ────── sv-3f2a9c-7   no bridge, a route to 10.219.0.7 and no other
//!         default via 169.254.0.1            prerouting: a source that is not that one's is dropped
//!                                            input:      nothing for the host itself
//!                                            forward:    nothing private, to neighbours, to other sandboxes; no way in
//!                                            postrouting: masquerade
//! ```
//!
//! One table of the packet filter serves an installation, and knows interfaces by how their names begin. It depends on no
//! sandbox, so it stays as it is while they come and go, and in force while the server is down. Whether it is still there
//! is looked at before each sandbox; without it none is made.
//!
//! Namespaces belong to the host's user namespace: no process of a sandbox ever has a right over its network. Those that
//! are ready for sandboxes to come are open descriptors of the server, and go with it, and one that is in use goes with the
//! last process in it. With a namespace goes its end of the pair, with that the host's end, its route and its address: there
//! is nothing to clean up, and what the kernel has is what is taken.

mod addresses;
mod coexist;
mod forwarding;
mod link;
mod manager;
mod names;
mod probe;
mod resolvers;
mod routes;
mod rules;
mod settings;
mod table;

pub(crate) use link::{Attachment, free};
pub(crate) use manager::{Network, remove_if_unused};
pub use settings::NetworkConfig;
