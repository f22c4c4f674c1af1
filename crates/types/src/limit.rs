//! The limits of a sandbox that can be hit, and what is told of it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};
use utoipa::ToSchema;

/// A limit of a sandbox, as an exec result, a sandbox and an event name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Memory: the kernel killed something of the sandbox for want of it, or refused to start something.
    Oom,
    /// Disk: no space or no inodes were left on a filesystem that the sandbox can write to.
    DiskFull,
    /// Processes: one more was refused.
    Pids,
}

impl Limit {
    /// Every limit.
    pub const ALL: [Self; 3] = [Self::Oom, Self::DiskFull, Self::Pids];

    /// The limit as stored and sent.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Oom => "oom",
            Self::DiskFull => "disk_full",
            Self::Pids => "pids",
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How often a limit of a sandbox was hit, as far as that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LimitHits {
    /// Processes that hit it, or ran when it was hit, and file operations that it made fail.
    pub count: u64,
    /// When the last of them became known.
    #[schema(value_type = String, format = DateTime)]
    pub last_at: Timestamp,
}

/// The limits of a sandbox that were hit. Others are not in it.
pub type LimitsHit = BTreeMap<Limit, LimitHits>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_spelt_alike_as_values_and_as_keys() {
        for limit in Limit::ALL {
            assert_eq!(serde_json::to_value(limit).unwrap(), limit.as_str());
            let hits = LimitHits { count: 2, last_at: Timestamp::UNIX_EPOCH };
            let text = serde_json::to_string(&LimitsHit::from([(limit, hits)])).unwrap();
            assert_eq!(text, format!(r#"{{"{limit}":{{"count":2,"last_at":"1970-01-01T00:00:00Z"}}}}"#));
            assert_eq!(serde_json::from_str::<LimitsHit>(&text).unwrap()[&limit], hits);
        }
    }
}
