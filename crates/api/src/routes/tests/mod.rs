//! The routes as clients see them, through the whole router.

mod access;
mod connections;
mod events;
mod exec;
mod files;
mod processes;
mod sandboxes;
mod system;
mod trees;
