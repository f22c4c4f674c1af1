//! The checks, by area. Each file lists its own at the top.

mod attacks;
mod control;
mod deadlines;
mod directories;
mod exec;
mod files;
mod identity;
mod isolation;
mod lifecycle;
mod limits;
mod links;
mod output;
mod pause;
mod removal;
mod signals;
mod stdin;
mod terminal;
mod trees;
mod watch;

use crate::check::Check;

pub(super) fn all() -> Vec<Check> {
    [
        lifecycle::CHECKS,
        removal::CHECKS,
        exec::CHECKS,
        identity::CHECKS,
        output::CHECKS,
        stdin::CHECKS,
        terminal::CHECKS,
        signals::CHECKS,
        deadlines::CHECKS,
        control::CHECKS,
        files::CHECKS,
        directories::CHECKS,
        links::CHECKS,
        limits::CHECKS,
        pause::CHECKS,
        isolation::CHECKS,
        attacks::CHECKS,
        trees::CHECKS,
        watch::CHECKS,
    ]
    .concat()
}
