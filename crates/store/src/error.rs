//! Store failures, told apart as far as an operator would act differently.

use std::path::PathBuf;

/// Result of every call of the store.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// What went wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No space for another byte. Nothing was changed.
    #[error("the store cannot be written: no space left on its disk")]
    Full,
    /// A row with this id, or this owner and idempotency key, exists.
    #[error("the store has an entry with this id or key already")]
    Duplicate,
    /// The file is damaged or is no database.
    #[error("the store {} is damaged or is no StacyVM database; restore it from a backup, or move it away to start empty", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A newer version wrote it.
    #[error("the store was written by a newer version of StacyVM (migration {migration}); use that version")]
    Newer {
        /// The first migration that this version does not know.
        migration: i64,
    },
    /// It cannot be opened, read or written now: permissions, an I/O error, a lock that is not released.
    #[error("the store {} cannot be used now: {source}", path.display())]
    Unavailable {
        /// The file.
        path: PathBuf,
        /// What SQLite or the system said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A defect of ours.
    #[error("the store failed in an unforeseen way")]
    Defect {
        /// What SQLite said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    /// Sorts what sqlx reports; `path` is named to the operator.
    pub(crate) fn sort(path: &std::path::Path, error: sqlx::Error) -> Self {
        let path = path.to_path_buf();
        match &error {
            sqlx::Error::Database(database) if database.is_unique_violation() => Self::Duplicate,
            sqlx::Error::Database(database) => {
                // The low byte of SQLite's extended result code is the primary one.
                let primary =
                    database.code().and_then(|code| code.parse::<i32>().ok()).map(|code| code & 0xff);
                match primary {
                    Some(FULL) => Self::Full,
                    Some(CORRUPT | NOT_A_DATABASE) => Self::Corrupt { path, source: error.into() },
                    Some(PERMISSION | BUSY | LOCKED | READ_ONLY | IO | CANNOT_OPEN) => {
                        Self::Unavailable { path, source: error.into() }
                    }
                    _ => Self::Defect { source: error.into() },
                }
            }
            sqlx::Error::Io(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => Self::Unavailable { path, source: error.into() },
            _ => Self::Defect { source: error.into() },
        }
    }
}

const PERMISSION: i32 = 3;
const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const READ_ONLY: i32 = 8;
const IO: i32 = 10;
const CORRUPT: i32 = 11;
const FULL: i32 = 13;
const CANNOT_OPEN: i32 = 14;
const NOT_A_DATABASE: i32 = 26;
