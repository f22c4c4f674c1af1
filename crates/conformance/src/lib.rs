//! One suite of checks that every provider must pass, as data: it takes a provider and nothing else.
//!
//! [`run`] makes sandboxes, works in them through the contract alone, and reports each promise as passed, failed or not
//! run. Commands are those of `stacyvm-probe`, which the suite uploads, so an image needs no shell and no tool. What a
//! provider does not offer is reported as not run and never as passed.

mod check;
mod checks;
mod context;
mod observe;
mod outside;
mod report;
mod runner;

pub use check::{Check, Need};
pub use report::{CheckReport, Outcome, Report};
pub use runner::run;

use std::collections::BTreeSet;

/// How to run the suite.
#[derive(Debug, Clone)]
pub struct Options {
    /// Image of the sandboxes that are made.
    pub image: String,
    /// An image that the provider does not have and cannot get.
    pub missing_image: String,
    /// Processes in sandboxes show up in this host's `/proc`, and this process may signal them.
    pub host_processes: bool,
    /// Sandboxes have no network but their own loopback.
    pub no_network: bool,
    /// Checks at once.
    pub concurrency: usize,
    /// Factor on every time limit, for slow runtimes.
    pub patience: u32,
    /// Run only checks whose id starts with one of these; empty: all.
    pub only: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            image: "host".to_owned(),
            missing_image: stacyvm_provider::mock::MISSING_IMAGE.to_owned(),
            host_processes: true,
            no_network: true,
            concurrency: 8,
            patience: 1,
            only: Vec::new(),
        }
    }
}

/// Every check there is, in the order of reports.
pub fn checks() -> Vec<Check> {
    checks::all()
}

/// Areas of checks that are attacks from inside by nature.
const ATTACKS: &[&str] = &["attack.", "isolation.", "links.", "limits.", "control."];
/// Attacks among the checks of other areas: floods, slow readers, processes that will not end, files that are not what they
/// seem.
const MORE_ATTACKS: &[&str] = &[
    "background.outlives_exec",
    "background.daemon",
    "deadline.background",
    "deadline.descendants",
    "destroy.busy",
    "destroy.processes",
    "exec.descriptors",
    "exec.environment",
    "exec.orphans",
    "exec.user",
    "files.fifo",
    "files.shrunk",
    "lifecycle.agent_killed",
    "output.abandoned_reader",
    "output.first_reader",
    "output.gap",
    "output.paced",
    "signal.ignored",
    "signal.kill_background",
    "signal.kill_tree",
    "stdin.not_read",
    "trees.hostile",
    "trees.links_before",
    "trees.shrinking",
    "watch.overflow",
];

/// The checks that are attacks of a sandbox's processes on what is outside them.
pub fn attacks() -> Vec<Check> {
    let is_attack = |id: &str| ATTACKS.iter().any(|area| id.starts_with(area)) || MORE_ATTACKS.contains(&id);
    checks().into_iter().filter(|check| is_attack(check.id)).collect()
}

/// Ids of all checks, to be compared with what others name.
pub fn ids() -> BTreeSet<&'static str> {
    checks().iter().map(|check| check.id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_well_formed() {
        let all = checks();
        assert_eq!(ids().len(), all.len());
        for check in all {
            let (area, name) = check.id.split_once('.').unwrap();
            let legal = |part: &str| {
                !part.is_empty()
                    && part.bytes().all(|b| b.is_ascii_lowercase() || b"_0123456789".contains(&b))
            };
            assert!(legal(area) && legal(name), "{}", check.id);
            assert!(!check.promise.is_empty() && !check.promise.ends_with('.'), "{}", check.id);
        }
    }
}
