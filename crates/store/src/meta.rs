//! Facts about the installation itself.

use crate::{Result, Store};

impl Store {
    /// Id of the installation that this database belongs to: `proposal` if it has none yet.
    ///
    /// # Errors
    /// Any [`crate::StoreError`].
    pub async fn installation_id(&self, proposal: &str) -> Result<String> {
        sqlx::query("INSERT INTO meta (key, value) VALUES ('installation', $1) ON CONFLICT (key) DO NOTHING")
            .bind(proposal)
            .execute(&self.writer)
            .await
            .map_err(|error| self.sort(error))?;
        sqlx::query_scalar("SELECT value FROM meta WHERE key = 'installation'")
            .fetch_one(&self.writer)
            .await
            .map_err(|error| self.sort(error))
    }

    /// Number of this start of the control plane: 1 at first, then one more at each call.
    ///
    /// # Errors
    /// Any [`crate::StoreError`].
    pub async fn next_generation(&self) -> Result<u64> {
        let value: String = sqlx::query_scalar(
            "INSERT INTO meta (key, value) VALUES ('generation', '1') \
             ON CONFLICT (key) DO UPDATE SET value = CAST(CAST(meta.value AS BIGINT) + 1 AS TEXT) RETURNING value",
        )
        .fetch_one(&self.writer)
        .await
        .map_err(|error| self.sort(error))?;
        value.parse().map_err(|_| crate::StoreError::Defect { source: "the generation is no number".into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn generations_grow_across_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.db");
        for expected in 1..=3 {
            let store = Store::open(&path).await.unwrap();
            assert_eq!(store.next_generation().await.unwrap(), expected);
            store.close().await;
        }
    }

    #[tokio::test]
    async fn the_first_installation_id_stays() {
        let store = Store::in_memory().await.unwrap();
        assert_eq!(store.installation_id("first").await.unwrap(), "first");
        assert_eq!(store.installation_id("second").await.unwrap(), "first");
    }
}
