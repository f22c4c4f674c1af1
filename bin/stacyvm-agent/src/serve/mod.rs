//! The agent's side of every connection.

pub(crate) mod accept;
mod bulk;
mod control;
mod gate;
mod trees;

use crate::{args::Config, files::resolve::Root, process::table::Table};
use std::sync::Arc;

/// What the services work on.
#[derive(Debug, Clone)]
pub(crate) struct Sandbox {
    pub(crate) config: Arc<Config>,
    pub(crate) root: Arc<Root>,
    pub(crate) table: Arc<Table>,
}
