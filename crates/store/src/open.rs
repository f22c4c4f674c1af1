//! Opening a database: pragmas, migrations, and a look whether it is sound.

use crate::{Result, StoreError};
use sqlx::{
    ConnectOptions, SqlitePool,
    migrate::{MigrateError, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use std::{
    fs::OpenOptions,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// How long a statement waits for a lock of another process (a backup, an operator's shell).
const BUSY: Duration = Duration::from_secs(5);
/// How long a call waits for its turn.
const TURN: Duration = Duration::from_secs(10);
/// Connections for reading, next to the one for writing.
const READERS: u32 = 2;

/// A handle to the database; clones share it.
///
/// There is one connection for writing, because SQLite has one writer anyway and a queue in front of it is fair where its
/// lock is not; and a few for reading, which never wait for it.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) writer: SqlitePool,
    pub(crate) reader: SqlitePool,
    path: Arc<PathBuf>,
}

impl Store {
    /// Opens the database at `path`, makes it (mode 0600) if it is not there, and brings its tables up to date.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`], [`StoreError::Newer`], [`StoreError::Full`] or [`StoreError::Unavailable`].
    pub async fn open(path: &Path) -> Result<Self> {
        // SQLite would create it with the umask's mode; its companions (-wal, -shm) take over the mode that they find.
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| StoreError::Unavailable { path: path.to_path_buf(), source: error.into() })?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(BUSY)
            .foreign_keys(true)
            .disable_statement_logging();
        let sort = |error| StoreError::sort(path, error);
        let writer = pool(1).connect_with(options.clone()).await.map_err(sort)?;
        let reader = pool(READERS).connect_lazy_with(options.read_only(true));
        let store = Self { writer, reader, path: Arc::new(path.to_path_buf()) };
        store.check().await?;
        store.migrate().await?;
        Ok(store)
    }

    /// A database that lives as long as this value: for an engine that leaves nothing behind, and for tests.
    ///
    /// # Errors
    /// [`StoreError::Defect`]; there is nothing that could be missing.
    pub async fn in_memory() -> Result<Self> {
        let path = PathBuf::from(":memory:");
        let options =
            SqliteConnectOptions::new().in_memory(true).foreign_keys(true).disable_statement_logging();
        // The connection is the database, so there is exactly one and it is never replaced.
        let writer = pool(1).connect_with(options).await.map_err(|error| StoreError::sort(&path, error))?;
        let store = Self { reader: writer.clone(), writer, path: Arc::new(path) };
        store.migrate().await?;
        Ok(store)
    }

    /// Writes everything back into the one file and closes it. Later calls fail with [`StoreError::Unavailable`].
    pub async fn close(&self) {
        self.reader.close().await;
        self.writer.close().await;
    }

    pub(crate) fn sort(&self, error: sqlx::Error) -> StoreError {
        StoreError::sort(&self.path, error)
    }

    /// The database is small (retention bounds it), so a look at all of it is affordable at each start, and a damaged one
    /// is better found now than half way through a create.
    async fn check(&self) -> Result<()> {
        let found: String = sqlx::query_scalar("PRAGMA quick_check(1)")
            .fetch_one(&self.writer)
            .await
            .map_err(|error| self.sort(error))?;
        if found == "ok" {
            return Ok(());
        }
        Err(StoreError::Corrupt { path: self.path.to_path_buf(), source: found.into() })
    }

    async fn migrate(&self) -> Result<()> {
        MIGRATIONS.run(&self.writer).await.map_err(|error| match error {
            MigrateError::VersionMissing(migration) => StoreError::Newer { migration },
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => self.sort(error),
            other => StoreError::Defect { source: other.into() },
        })
    }
}

fn pool(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .min_connections(0)
        .acquire_timeout(TURN)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[tokio::test]
    async fn the_pragmas_are_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s.db")).await.unwrap();
        let mode: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&store.writer).await.unwrap();
        let sync: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(&store.writer).await.unwrap();
        let keys: i64 = sqlx::query_scalar("PRAGMA foreign_keys").fetch_one(&store.writer).await.unwrap();
        let busy: i64 = sqlx::query_scalar("PRAGMA busy_timeout").fetch_one(&store.writer).await.unwrap();
        assert_eq!((mode.as_str(), sync, keys, busy), ("wal", 1, 1, 5000));
        store.close().await;
    }

    #[tokio::test]
    async fn nobody_else_can_read_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s.db")).await.unwrap();
        store.next_generation().await.unwrap();
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().mode() & 0o777, 0o600, "{:?}", entry.file_name());
        }
        store.close().await;
    }

    #[tokio::test]
    async fn what_is_no_database_is_said_to_be_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.db");
        std::fs::write(&path, vec![b'x'; 8192]).unwrap();
        let error = Store::open(&path).await.unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
        assert!(error.to_string().contains("s.db"), "{error}");
    }

    #[tokio::test]
    async fn a_damaged_database_is_refused_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.db");
        let store = Store::open(&path).await.unwrap();
        store.next_generation().await.unwrap();
        store.close().await;
        let mut bytes = std::fs::read(&path).unwrap();
        let length = bytes.len();
        bytes[4096..length].fill(0xa5);
        std::fs::write(&path, bytes).unwrap();
        let error = Store::open(&path).await.unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn a_newer_database_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.db");
        let store = Store::open(&path).await.unwrap();
        sqlx::query(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
             VALUES (9999, 'later', TRUE, x'00', 0)",
        )
        .execute(&store.writer)
        .await
        .unwrap();
        store.close().await;
        let error = Store::open(&path).await.unwrap_err();
        assert!(matches!(error, StoreError::Newer { migration: 9999 }), "{error:?}");
    }

    #[tokio::test]
    async fn a_missing_directory_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let error = Store::open(&dir.path().join("none/s.db")).await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
        assert!(error.to_string().contains("none/s.db"), "{error}");
    }

    #[tokio::test]
    async fn a_full_disk_is_said_to_be_full_and_the_store_works_again_once_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s.db")).await.unwrap();
        let pages: i64 = sqlx::query_scalar("PRAGMA page_count").fetch_one(&store.writer).await.unwrap();
        sqlx::query("PRAGMA max_page_count = 1").execute(&store.writer).await.unwrap();
        let limit: i64 = sqlx::query_scalar("PRAGMA max_page_count").fetch_one(&store.writer).await.unwrap();
        assert_eq!(limit, pages, "SQLite never goes below what is used");
        let proposal = "x".repeat(100_000);
        let error = store.installation_id(&proposal).await.unwrap_err();
        assert!(matches!(error, StoreError::Full), "{error:?}");
        sqlx::query("PRAGMA max_page_count = 100000").execute(&store.writer).await.unwrap();
        assert_eq!(store.installation_id("i").await.unwrap(), "i");
        store.close().await;
    }
}
