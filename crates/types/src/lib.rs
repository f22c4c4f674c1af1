//! Wire types of `/api/v1`, shared by server, client and tests. Shapes that published clients read are pinned by tests
//! here; what each field means is documented on it and ends up in `openapi/v1.json`.

pub mod duration;
mod error;
mod event;
mod exec;
mod file;
mod image;
mod limit;
mod optional;
mod process;
mod provider;
mod sandbox;
mod socket;
mod system;
mod tree;

pub use duration::WireDuration;
pub use error::{ErrorBody, ErrorCode};
pub use event::{Event, EventType, MissedEvents};
pub use exec::*;
pub use file::*;
pub use image::*;
pub use limit::*;
pub use process::*;
pub use provider::*;
pub use sandbox::*;
pub use socket::*;
pub use system::*;
pub use tree::*;
