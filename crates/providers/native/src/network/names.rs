//! What is called after an installation: its table, and the host's ends of its sandboxes' interfaces.

use sha2::{Digest, Sha256};

/// How the names of all host ends begin, whichever installation's they are.
pub(crate) const INTERFACES: &str = "sv-";

/// Names of one installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Names {
    /// The table of the packet filter, and the comment on rules in tables of others.
    pub(crate) table: String,
    /// How the names of its host ends begin.
    pub(crate) interfaces: String,
    /// Bytes that are its own, to choose numbers with.
    pub(crate) seed: [u8; 32],
}

impl Names {
    pub(crate) fn of(installation_id: &str) -> Self {
        let seed: [u8; 32] = Sha256::digest(installation_id).into();
        let hex: String = seed[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        Self { table: format!("stacyvm-{hex}"), interfaces: format!("{INTERFACES}{}-", &hex[..6]), seed }
    }

    /// The host end of the sandbox with the address of this index: at most 15 characters, as the kernel takes them.
    pub(crate) fn interface(&self, index: u32) -> String {
        format!("{}{index:x}", self.interfaces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::addresses::LAST;

    #[test]
    fn names_fit_and_differ() {
        let (one, other) = (Names::of("one"), Names::of("other"));
        assert_eq!(one.interface(LAST).len(), 15);
        assert!(one.table != other.table && one.interfaces != other.interfaces);
        assert_eq!(one, Names::of("one"));
        assert!(one.interface(7).starts_with(&one.interfaces) && one.interfaces.starts_with(INTERFACES));
    }
}
