//! Work in a guest that is counted per operation and provider.

use crate::{ApiState, error::ApiError};
use stacyvm_engine::{Engine, Operation};
use stacyvm_provider::Guest;
use std::{sync::Arc, time::Instant};

/// A call into the guest of a running sandbox, from its start to its end. One that nobody waits for to its end is not
/// counted.
pub(crate) struct Call {
    /// Where to call.
    pub(crate) guest: Arc<dyn Guest>,
    engine: Engine,
    sandbox: String,
    provider: String,
    operation: Operation,
    started: Instant,
}

impl Call {
    pub(crate) async fn start(
        state: &ApiState,
        sandbox: &str,
        operation: Operation,
    ) -> Result<Self, ApiError> {
        let engine = state.engine().clone();
        let guest = engine.guest(sandbox).await?;
        let provider = engine.get(sandbox).await?.provider;
        Ok(Self { guest, engine, sandbox: sandbox.to_owned(), provider, operation, started: Instant::now() })
    }

    /// Counts how it went, and a limit of the sandbox that it hit.
    pub(crate) fn end<T>(self, result: stacyvm_provider::Result<T>) -> Result<T, ApiError> {
        let outcome = result.as_ref().map(|_| ()).map_err(|error| error.message());
        tell_limit(&self.engine, &self.sandbox, &result);
        self.engine.record(self.operation, &self.provider, outcome, self.started.elapsed());
        Ok(result?)
    }
}

/// Says that `result` is a limit of the sandbox, if it is.
pub(crate) fn tell_limit<T>(engine: &Engine, sandbox: &str, result: &stacyvm_provider::Result<T>) {
    if let Some(limit) = result.as_ref().err().and_then(stacyvm_provider::Error::limit) {
        engine.limit_hit(sandbox, limit);
    }
}
