//! Health and providers.

use crate::{
    client::{Client, PROMPT},
    error::{Error, Result},
};
use reqwest::{Method, StatusCode};
use stacyvm_types::{Health, ProviderDetail, ProviderInfo, Ready};

impl Client {
    /// That the server answers.
    ///
    /// # Errors
    /// As the server says.
    pub async fn health(&self) -> Result<Health> {
        self.get(&["health"]).await
    }

    /// Whether sandboxes can be created. A server that is not ready answers too.
    ///
    /// # Errors
    /// As the server says.
    pub async fn ready(&self) -> Result<Ready> {
        let response = self.request(Method::GET, &["ready"]).timeout(PROMPT).send().await;
        let response = response.map_err(|e| self.transport(&e))?;
        if !response.status().is_success() && response.status() != StatusCode::SERVICE_UNAVAILABLE {
            return Err(self.refused(response).await);
        }
        let body = self.body(response, 1 << 20).await?;
        serde_json::from_slice(&body).map_err(|e| Error::Protocol(format!("{e} in its JSON")))
    }

    /// Every provider with its health.
    ///
    /// # Errors
    /// As the server says.
    pub async fn providers(&self) -> Result<Vec<ProviderInfo>> {
        self.get(&["providers"]).await
    }

    /// One provider.
    ///
    /// # Errors
    /// As the server says.
    pub async fn provider(&self, name: &str) -> Result<ProviderDetail> {
        self.get(&["providers", name]).await
    }
}
