//! What must survive a crash: sandboxes, idempotency keys, events.
//!
//! SQLite in write-ahead mode. A call that returned `Ok` survives the death of the process; the last moments before a
//! power loss may be lost (`synchronous=NORMAL`), never the database, and the sandboxes of this host die with its power
//! anyway. Queries are written in the common subset of SQLite and PostgreSQL, migrations live in one directory per
//! dialect. That only one process opens a database file is the caller's business (the lock in the data directory).

mod error;
mod events;
mod meta;
mod open;
mod row;
mod sandboxes;

pub use error::{Result, StoreError};
pub use events::EventRow;
pub use open::Store;
pub use row::{SandboxChange, SandboxRow};
