//! The event log: appended in batches by the engine's one writer, read for replay, pruned from its old end.

use crate::{
    Result, Store,
    sandboxes::{micros, timestamp},
};
use jiff::Timestamp;
use sqlx::{QueryBuilder, Row};
use stacyvm_types::EventType;

/// One statement instead of many keeps the one writing connection free for sandboxes; its text stays short.
const ROWS_PER_STATEMENT: usize = 64;

/// One event as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRow {
    /// Its number; numbers only grow.
    pub seq: u64,
    /// What happened.
    pub kind: EventType,
    /// Sandbox it happened to.
    pub sandbox_id: Option<String>,
    /// When.
    pub at: Timestamp,
    /// Details: a JSON object.
    pub data: String,
}

impl Store {
    /// Appends events, all or none.
    ///
    /// # Errors
    /// [`crate::StoreError::Duplicate`] for a number that is taken; else any [`crate::StoreError`].
    pub async fn append_events(&self, events: &[EventRow]) -> Result<()> {
        let sort = |error| self.sort(error);
        let mut transaction = self.writer.begin().await.map_err(sort)?;
        for part in events.chunks(ROWS_PER_STATEMENT) {
            let mut insert = QueryBuilder::new("INSERT INTO events (seq, kind, sandbox_id, ts, data) ");
            insert.push_values(part, |mut row, event| {
                row.push_bind(number(event.seq))
                    .push_bind(event.kind.as_str())
                    .push_bind(event.sandbox_id.as_deref())
                    .push_bind(micros(event.at))
                    .push_bind(&event.data);
            });
            insert.build().execute(&mut *transaction).await.map_err(sort)?;
        }
        transaction.commit().await.map_err(sort)
    }

    /// Events with a number greater than `after`, oldest first, at most `limit`. Kinds that this version does not know
    /// are left out.
    ///
    /// # Errors
    /// Any [`crate::StoreError`].
    pub async fn events_after(&self, after: u64, limit: u32) -> Result<Vec<EventRow>> {
        let rows = sqlx::query(
            "SELECT seq, kind, sandbox_id, ts, data FROM events WHERE seq > $1 ORDER BY seq LIMIT $2",
        )
        .bind(number(after))
        .bind(i64::from(limit))
        .fetch_all(&self.reader)
        .await
        .map_err(|error| self.sort(error))?;
        let mut events = Vec::with_capacity(rows.len());
        for row in rows {
            let read = || -> Result<_, sqlx::Error> {
                let seq: i64 = row.try_get("seq")?;
                let kind: String = row.try_get("kind")?;
                Ok((seq, kind, row.try_get("sandbox_id")?, row.try_get("ts")?, row.try_get("data")?))
            };
            let (seq, kind, sandbox_id, ts, data) = read().map_err(|error| self.sort(error))?;
            if let Ok(kind) = kind.parse() {
                events.push(EventRow { seq: seq.unsigned_abs(), kind, sandbox_id, at: timestamp(ts)?, data });
            }
        }
        Ok(events)
    }

    /// Number of the newest event; 0: none yet.
    ///
    /// # Errors
    /// Any [`crate::StoreError`].
    pub async fn last_event(&self) -> Result<u64> {
        let newest: Option<i64> = sqlx::query_scalar("SELECT MAX(seq) FROM events")
            .fetch_one(&self.writer)
            .await
            .map_err(|error| self.sort(error))?;
        Ok(newest.map_or(0, i64::unsigned_abs))
    }

    /// Number of the oldest event that is kept, of whatever kind; 0 if there is none.
    ///
    /// # Errors
    /// Any [`crate::StoreError`].
    pub async fn first_event(&self) -> Result<u64> {
        let oldest: Option<i64> = sqlx::query_scalar("SELECT MIN(seq) FROM events")
            .fetch_one(&self.reader)
            .await
            .map_err(|error| self.sort(error))?;
        Ok(oldest.map_or(0, i64::unsigned_abs))
    }

    /// Deletes all but the newest `keep` events (at least one is kept). Returns how many went.
    ///
    /// # Errors
    /// Any [`crate::StoreError`].
    pub async fn prune_events(&self, keep: u64) -> Result<u64> {
        sqlx::query("DELETE FROM events WHERE seq <= (SELECT MAX(seq) FROM events) - $1")
            .bind(number(keep.max(1)))
            .execute(&self.writer)
            .await
            .map(|done| done.rows_affected())
            .map_err(|error| self.sort(error))
    }
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StoreError;

    fn event(seq: u64) -> EventRow {
        EventRow {
            seq,
            kind: EventType::ExecStarted,
            sandbox_id: Some(format!("sb-{seq}")),
            at: Timestamp::from_microsecond(seq.cast_signed()).unwrap(),
            data: r#"{"a":1}"#.into(),
        }
    }

    #[tokio::test]
    async fn events_come_back_in_order_from_where_one_asks() {
        let store = Store::in_memory().await.unwrap();
        assert_eq!((store.first_event().await.unwrap(), store.last_event().await.unwrap()), (0, 0));
        store.append_events(&[event(1), event(2), event(3)]).await.unwrap();
        assert_eq!(store.events_after(0, 2).await.unwrap(), [event(1), event(2)]);
        assert_eq!(store.events_after(2, 10).await.unwrap(), [event(3)]);
        assert_eq!(store.events_after(u64::MAX, 10).await.unwrap(), []);
        assert_eq!(store.last_event().await.unwrap(), 3);
    }

    #[tokio::test]
    async fn a_batch_with_a_taken_number_changes_nothing() {
        let store = Store::in_memory().await.unwrap();
        store.append_events(&[event(2)]).await.unwrap();
        let error = store.append_events(&[event(3), event(2)]).await.unwrap_err();
        assert!(matches!(error, StoreError::Duplicate), "{error:?}");
        assert_eq!(store.last_event().await.unwrap(), 2);
    }

    #[tokio::test]
    async fn pruning_keeps_the_newest_and_so_the_numbering() {
        let store = Store::in_memory().await.unwrap();
        store.append_events(&(1..=10).map(event).collect::<Vec<_>>()).await.unwrap();
        assert_eq!(store.first_event().await.unwrap(), 1);
        assert_eq!(store.prune_events(3).await.unwrap(), 7);
        assert_eq!(store.first_event().await.unwrap(), 8);
        assert_eq!(store.prune_events(0).await.unwrap(), 2);
        assert_eq!(store.events_after(0, 10).await.unwrap(), [event(10)]);
        assert_eq!(store.last_event().await.unwrap(), 10);
    }
}
