//! What every handler shares.

use crate::{
    auth::{AccessTable, Keys},
    config::ApiConfig,
    host::HostSampler,
    origin::Guard,
};
use bytes::Bytes;
use stacyvm_engine::Engine;
use stacyvm_image::Images;
use std::{sync::Arc, time::Instant};
use tokio::sync::Semaphore;

/// Large JSON bodies in memory at once; with 64 MiB each, what the server may need for them.
const LARGE_BODIES: usize = 4;

/// The engine, the settings and what follows from them. Cheap to clone.
#[derive(Clone)]
pub struct ApiState(Arc<Inner>);

struct Inner {
    engine: Engine,
    images: Option<Images>,
    config: ApiConfig,
    keys: Keys,
    guard: Option<Guard>,
    access: AccessTable,
    openapi: Bytes,
    host: HostSampler,
    started: Instant,
    large_bodies: Arc<Semaphore>,
}

impl ApiState {
    /// The state of an API in front of `engine` and, where a provider has one, of the store of images.
    pub fn new(engine: Engine, images: Option<Images>, config: ApiConfig) -> Self {
        let (access, openapi) = crate::routes::description();
        Self(Arc::new(Inner {
            engine,
            images,
            keys: Keys::new(&config),
            guard: Guard::new(&config),
            access,
            openapi: Bytes::from(crate::openapi::text(&openapi)),
            host: HostSampler::new(config.data_dir.clone()),
            started: Instant::now(),
            large_bodies: Arc::new(Semaphore::new(LARGE_BODIES)),
            config,
        }))
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.0.engine
    }

    pub(crate) fn images(&self) -> Option<&Images> {
        self.0.images.as_ref()
    }

    pub(crate) fn config(&self) -> &ApiConfig {
        &self.0.config
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.0.keys
    }

    pub(crate) fn guard(&self) -> Option<&Guard> {
        self.0.guard.as_ref()
    }

    pub(crate) fn access(&self) -> &AccessTable {
        &self.0.access
    }

    pub(crate) fn openapi(&self) -> Bytes {
        self.0.openapi.clone()
    }

    pub(crate) fn host(&self) -> &HostSampler {
        &self.0.host
    }

    /// Room for large bodies that are held in memory.
    pub(crate) fn large_bodies(&self) -> Arc<Semaphore> {
        Arc::clone(&self.0.large_bodies)
    }

    pub(crate) fn started(&self) -> Instant {
        self.0.started
    }
}
