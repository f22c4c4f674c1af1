//! Sandbox rows: inserted once, changed by their one owner, kept for a while when destroyed.

use crate::{Result, SandboxChange, SandboxRow, Store, StoreError};
use jiff::Timestamp;
use sqlx::{Row, sqlite::SqliteRow};
use stacyvm_types::SandboxState;

const LIVE: &str = "SELECT * FROM sandboxes WHERE destroyed_at IS NULL ORDER BY created_at, id";

impl Store {
    /// Stores a new sandbox.
    ///
    /// # Errors
    /// [`StoreError::Duplicate`] if the id, or the owner's idempotency key, is taken; else any [`StoreError`].
    pub async fn insert_sandbox(&self, row: &SandboxRow) -> Result<()> {
        sqlx::query(
            "INSERT INTO sandboxes (id, state, reason, provider, runtime_id, image, spec, owner, metadata, created_at, \
             running_at, updated_at, expires_at, destroyed_at, idempotency_key, fingerprint, limits_hit) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)",
        )
        .bind(&row.id)
        .bind(row.state.as_str())
        .bind(&row.reason)
        .bind(&row.provider)
        .bind(row.runtime_id.as_deref())
        .bind(&row.image)
        .bind(&row.spec)
        .bind(&row.owner)
        .bind(&row.metadata)
        .bind(micros(row.created_at))
        .bind(row.running_at.map(micros))
        .bind(micros(row.updated_at))
        .bind(micros(row.expires_at))
        .bind(row.destroyed_at.map(micros))
        .bind(row.idempotency_key.as_deref())
        .bind(row.fingerprint.as_deref())
        .bind(&row.limits_hit)
        .execute(&self.writer)
        .await
        .map(drop)
        .map_err(|error| self.sort(error))
    }

    /// Changes a sandbox; `at` becomes its `updated_at`. False if there is no such row.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn change_sandbox(&self, id: &str, at: Timestamp, change: &SandboxChange) -> Result<bool> {
        sqlx::query(
            "UPDATE sandboxes SET state = COALESCE($2, state), reason = COALESCE($3, reason), \
             runtime_id = COALESCE($4, runtime_id), running_at = COALESCE($5, running_at), \
             expires_at = COALESCE($6, expires_at), destroyed_at = COALESCE($7, destroyed_at), \
             limits_hit = COALESCE($8, limits_hit), \
             idempotency_key = CASE WHEN $9 THEN NULL ELSE idempotency_key END, updated_at = $10 WHERE id = $1",
        )
        .bind(id)
        .bind(change.state.map(SandboxState::as_str))
        .bind(change.reason.as_deref())
        .bind(change.runtime_id.as_deref())
        .bind(change.running_at.map(micros))
        .bind(change.expires_at.map(micros))
        .bind(change.destroyed_at.map(micros))
        .bind(change.limits_hit.as_deref())
        .bind(change.release_key)
        .bind(micros(at))
        .execute(&self.writer)
        .await
        .map(|done| done.rows_affected() > 0)
        .map_err(|error| self.sort(error))
    }

    /// One sandbox, also a destroyed one that is still kept.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn sandbox(&self, id: &str) -> Result<Option<SandboxRow>> {
        let row = sqlx::query("SELECT * FROM sandboxes WHERE id = $1")
            .bind(id)
            .fetch_optional(&self.reader)
            .await
            .map_err(|error| self.sort(error))?;
        row.map(|row| self.read(&row)).transpose()
    }

    /// All sandboxes that are not destroyed, oldest first. Sees every change that was made before the call.
    ///
    /// # Errors
    /// Any [`StoreError`], also for a row that cannot be read: to leave it out would make its sandbox an orphan.
    pub async fn live_sandboxes(&self) -> Result<Vec<SandboxRow>> {
        let rows = sqlx::query(LIVE).fetch_all(&self.writer).await.map_err(|error| self.sort(error))?;
        rows.iter().map(|row| self.read(row)).collect()
    }

    /// Deletes rows of sandboxes destroyed before `before`, and the oldest beyond the newest `keep`. Returns how many.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn prune_destroyed(&self, before: Timestamp, keep: u64) -> Result<u64> {
        sqlx::query(
            "DELETE FROM sandboxes WHERE destroyed_at IS NOT NULL AND (destroyed_at < $1 OR destroyed_at <= \
             (SELECT destroyed_at FROM sandboxes WHERE destroyed_at IS NOT NULL ORDER BY destroyed_at DESC LIMIT 1 OFFSET $2))",
        )
        .bind(micros(before))
        .bind(i64::try_from(keep).unwrap_or(i64::MAX))
        .execute(&self.writer)
        .await
        .map(|done| done.rows_affected())
        .map_err(|error| self.sort(error))
    }

    fn read(&self, row: &SqliteRow) -> Result<SandboxRow> {
        let sort = |error| self.sort(error);
        let time = |column: &str| row.try_get::<i64, _>(column).map_err(sort).and_then(timestamp);
        let maybe = |column: &str| {
            row.try_get::<Option<i64>, _>(column)
                .map_err(sort)
                .and_then(|value| value.map(timestamp).transpose())
        };
        let text = |column: &str| row.try_get::<String, _>(column).map_err(sort);
        let maybe_text = |column: &str| row.try_get::<Option<String>, _>(column).map_err(sort);
        Ok(SandboxRow {
            id: text("id")?,
            state: text("state")?
                .parse()
                .map_err(|error: String| StoreError::Defect { source: error.into() })?,
            reason: text("reason")?,
            provider: text("provider")?,
            runtime_id: maybe_text("runtime_id")?,
            image: text("image")?,
            spec: text("spec")?,
            owner: text("owner")?,
            metadata: text("metadata")?,
            created_at: time("created_at")?,
            running_at: maybe("running_at")?,
            updated_at: time("updated_at")?,
            expires_at: time("expires_at")?,
            destroyed_at: maybe("destroyed_at")?,
            idempotency_key: maybe_text("idempotency_key")?,
            fingerprint: maybe_text("fingerprint")?,
            limits_hit: text("limits_hit")?,
        })
    }
}

/// A time as stored.
pub(crate) fn micros(at: Timestamp) -> i64 {
    at.as_microsecond()
}

/// A stored time.
pub(crate) fn timestamp(micros: i64) -> Result<Timestamp> {
    Timestamp::from_microsecond(micros).map_err(|error| StoreError::Defect { source: error.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn row(id: &str) -> SandboxRow {
        SandboxRow {
            id: id.into(),
            state: SandboxState::Creating,
            reason: String::new(),
            provider: "mock".into(),
            runtime_id: None,
            image: "host".into(),
            spec: "{}".into(),
            owner: "o".into(),
            metadata: "{}".into(),
            created_at: at(10),
            running_at: None,
            updated_at: at(10),
            expires_at: at(20),
            destroyed_at: None,
            idempotency_key: None,
            fingerprint: None,
            limits_hit: "{}".into(),
        }
    }

    fn destroyed(id: &str, when: i64) -> SandboxRow {
        SandboxRow { state: SandboxState::Destroyed, destroyed_at: Some(at(when)), ..row(id) }
    }

    #[tokio::test]
    async fn a_row_comes_back_as_it_went_in() {
        let store = Store::in_memory().await.unwrap();
        let full = SandboxRow {
            reason: "r".into(),
            runtime_id: Some("rt".into()),
            running_at: Some(at(11)),
            idempotency_key: Some("k".into()),
            fingerprint: Some("f".into()),
            limits_hit: r#"{"oom":1}"#.into(),
            ..row("sb-1")
        };
        store.insert_sandbox(&full).await.unwrap();
        assert_eq!(store.sandbox("sb-1").await.unwrap(), Some(full));
        assert_eq!(store.sandbox("sb-2").await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_change_touches_only_what_it_names() {
        let store = Store::in_memory().await.unwrap();
        store.insert_sandbox(&row("sb-1")).await.unwrap();
        let change = SandboxChange {
            state: Some(SandboxState::Running),
            running_at: Some(at(12)),
            limits_hit: Some("l".into()),
            ..Default::default()
        };
        assert!(store.change_sandbox("sb-1", at(12), &change).await.unwrap());
        let expected = SandboxRow {
            state: SandboxState::Running,
            running_at: Some(at(12)),
            updated_at: at(12),
            limits_hit: "l".into(),
            ..row("sb-1")
        };
        assert_eq!(store.sandbox("sb-1").await.unwrap(), Some(expected));
        assert!(!store.change_sandbox("sb-2", at(12), &change).await.unwrap());
    }

    #[tokio::test]
    async fn a_key_is_unique_per_owner_until_it_is_released() {
        let store = Store::in_memory().await.unwrap();
        let keyed = |id: &str, owner: &str| SandboxRow {
            owner: owner.into(),
            idempotency_key: Some("k".into()),
            ..row(id)
        };
        store.insert_sandbox(&keyed("sb-1", "a")).await.unwrap();
        store.insert_sandbox(&keyed("sb-2", "b")).await.unwrap();
        let error = store.insert_sandbox(&keyed("sb-3", "a")).await.unwrap_err();
        assert!(matches!(error, StoreError::Duplicate), "{error:?}");
        let release = SandboxChange { release_key: true, ..Default::default() };
        store.change_sandbox("sb-1", at(12), &release).await.unwrap();
        store.insert_sandbox(&keyed("sb-3", "a")).await.unwrap();
    }

    #[tokio::test]
    async fn live_rows_are_those_not_destroyed() {
        let store = Store::in_memory().await.unwrap();
        store.insert_sandbox(&row("sb-b")).await.unwrap();
        store.insert_sandbox(&destroyed("sb-a", 30)).await.unwrap();
        let ids: Vec<_> = store.live_sandboxes().await.unwrap().into_iter().map(|row| row.id).collect();
        assert_eq!(ids, ["sb-b"]);
    }

    #[tokio::test]
    async fn destroyed_rows_go_by_age_and_by_number() {
        let store = Store::in_memory().await.unwrap();
        store.insert_sandbox(&row("sb-live")).await.unwrap();
        for n in 0..6 {
            store.insert_sandbox(&destroyed(&format!("sb-{n}"), 100 + n)).await.unwrap();
        }
        assert_eq!(store.prune_destroyed(at(102), 100).await.unwrap(), 2, "the two before 102");
        assert_eq!(store.prune_destroyed(at(0), 3).await.unwrap(), 1, "the oldest of four");
        assert_eq!(store.prune_destroyed(at(0), 0).await.unwrap(), 3);
        assert_eq!(store.live_sandboxes().await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn what_was_acknowledged_is_there_for_another_reader_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.db");
        let store = Store::open(&path).await.unwrap();
        store.insert_sandbox(&row("sb-1")).await.unwrap();
        // No close: as after a kill, the write-ahead log is all there is.
        let other = Store::open(&path).await.unwrap();
        assert_eq!(other.sandbox("sb-1").await.unwrap(), Some(row("sb-1")));
        other.close().await;
        store.close().await;
    }
}
