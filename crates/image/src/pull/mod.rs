//! Pulling images: one pull for all who wait for the same image, one download for all images that have the same layer.
//!
//! A pull goes on when whoever asked for it goes away: what it brings is wanted again soon, and half of it is worth nothing. It
//! ends with the process, and the next process goes on with its partial files.

mod layer;
mod progress;

use crate::{Document, Fetched, ImageConfig, Manifest, Pulled, Reference, Registry, Search, Settings, Sink};
use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, Shared},
    stream::FuturesUnordered,
};
use layer::{Asker, FETCHED, Layers, Wanted};
use progress::Progress;
use serde::{Deserialize, Serialize};
use stacyvm_provider::{Error, Notice, Result};
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::{Semaphore, broadcast};

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PullPolicy {
    /// Each time: the registry is asked what the name leads to now. Layers that are there are not fetched again.
    Always,
    /// If it is not there.
    #[default]
    Missing,
    /// Not at all: what is not there is an error.
    Never,
}

impl From<&str> for PullPolicy {
    /// `always`, `never`, and anything else for what is missing.
    fn from(word: &str) -> Self {
        match word {
            "always" => Self::Always,
            "never" => Self::Never,
            _ => Self::Missing,
        }
    }
}

type Running = Shared<BoxFuture<'static, Result<Arc<Pulled>>>>;

/// Pulls images into a [`Sink`].
#[derive(Clone)]
pub struct Puller(Arc<Inner>);

struct Inner {
    registry: Arc<Registry>,
    sink: Arc<dyn Sink>,
    notices: broadcast::Sender<Notice>,
    running: Mutex<HashMap<Reference, Running>>,
    layers: Layers,
}

impl std::fmt::Debug for Puller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Puller").field("registry", &self.0.registry).finish_non_exhaustive()
    }
}

impl Puller {
    /// Pulls with these settings. Progress is told as [`NoticeKind::ImagePull`](stacyvm_provider::NoticeKind), twice in a
    /// second at most and at the end.
    ///
    /// # Errors
    /// `InvalidArgument` for settings that cannot work.
    pub fn new(settings: Settings, sink: Arc<dyn Sink>, notices: broadcast::Sender<Notice>) -> Result<Self> {
        let registry = Arc::new(Registry::new(settings)?);
        let layers = Layers::new(Arc::clone(&registry), Arc::clone(&sink));
        Ok(Self(Arc::new(Inner { registry, sink, notices, running: Mutex::default(), layers })))
    }

    /// Sees that the image is there, as the policy says.
    ///
    /// # Errors
    /// Those of [`Self::pull`]; `NotFound` for an image that is not there and shall not be pulled.
    pub async fn ensure(&self, reference: &Reference, policy: PullPolicy) -> Result<()> {
        if policy != PullPolicy::Always {
            let (sink, asked) = (Arc::clone(&self.0.sink), reference.clone());
            if blocking(move || sink.has_image(&asked)).await? {
                return Ok(());
            }
            if policy == PullPolicy::Never {
                return Err(Error::not_found(format!(
                    "the image {reference} is not on this host, and the policy is never to pull: pull or import it first"
                )));
            }
        }
        self.pull(reference).await.map(|_| ())
    }

    /// Pulls the image, or waits for the pull that somebody else began. It goes on when the caller goes away.
    ///
    /// # Errors
    /// `NotFound` for an image or a tag that does not exist; `InvalidArgument` for refused or missing credentials, a platform
    /// that the image has not, a broken manifest or archive; `Unsupported` for what is no image; `Unavailable` for a registry
    /// that cannot be reached, fails, takes no more requests or is not to be trusted; `ResourceLimit` for an image that is too
    /// large or a full disk.
    pub async fn pull(&self, reference: &Reference) -> Result<Arc<Pulled>> {
        let running = {
            let mut pulls = self.0.running.lock().unwrap_or_else(PoisonError::into_inner);
            pulls
                .entry(reference.clone())
                .or_insert_with(|| begin(Arc::clone(&self.0), reference.clone()))
                .clone()
        };
        running.await
    }
}

fn begin(inner: Arc<Inner>, reference: Reference) -> Running {
    let task = tokio::spawn(async move {
        // Also when the task panics or is dropped with its runtime: nobody shall wait for it.
        let leave = Leave { inner: Arc::clone(&inner), reference: reference.clone() };
        let progress = Progress::new(&reference, inner.notices.clone());
        let outcome = progress.while_it_runs(inner.pull(&reference, &progress)).await;
        drop(leave);
        progress.end(&outcome);
        outcome
    });
    let ended = async move {
        task.await.unwrap_or_else(|error| {
            Err(Error::unavailable("the pull was given up: try again").because(error))
        })
    };
    ended.boxed().shared()
}

/// Forgets a pull when it ends.
struct Leave {
    inner: Arc<Inner>,
    reference: Reference,
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.inner.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.reference);
    }
}

impl Inner {
    async fn pull(&self, reference: &Reference, progress: &Progress) -> Result<Arc<Pulled>> {
        let sink = Arc::clone(&self.sink);
        let held = blocking(move || sink.begin()).await?;
        let name = reference.to_string();
        let (pulled, manifest) = self.resolve(reference, &name).await?;
        manifest.bounded(self.registry.settings().largest, &name)?;

        let asker = Asker { reference: reference.clone(), fetch: Arc::new(Semaphore::new(FETCHED)) };
        let mut seen = HashSet::new();
        let mut layers: FuturesUnordered<_> = manifest
            .with(&pulled.config, &name)?
            .into_iter()
            .filter(|(diff_id, _)| seen.insert(*diff_id))
            .map(|(diff_id, layer)| {
                let wanted = Wanted { diff_id: diff_id.clone(), layer: layer.clone() };
                self.layers.bring(asker.clone(), wanted, progress.layer(layer.blob.size))
            })
            .collect();
        while let Some(outcome) = layers.next().await {
            outcome?;
        }
        let pulled = Arc::new(pulled);
        let (sink, recorded) = (Arc::clone(&self.sink), Arc::clone(&pulled));
        blocking(move || sink.add_image(&recorded)).await?;
        drop(held);
        Ok(pulled)
    }

    /// Finds the manifest for the platform, and its configuration.
    async fn resolve(&self, reference: &Reference, name: &str) -> Result<(Pulled, Manifest)> {
        let platform = &self.registry.settings().platform;
        let mut fetched = self.registry.manifest(reference, None).await?;
        let digest = fetched.digest.clone();
        let mut search = Search::new(platform.clone(), name);
        let mut chosen = false;
        loop {
            let Fetched { digest: at, media_type, bytes } = &fetched;
            let manifest = match Document::parse(bytes, media_type.as_deref(), name)? {
                Document::Index(index) => {
                    search.take(at, &index)?;
                    chosen = true;
                    fetched = self.next(reference, &mut search).await?;
                    continue;
                }
                Document::Manifest(manifest) => manifest,
            };
            let raw_config = self.registry.small(reference, &manifest.config).await?;
            let config = ImageConfig::parse(&raw_config, name)?;
            match config.runs_on(platform, name) {
                Ok(()) => {
                    let (reference, manifest_digest) = (reference.clone(), at.clone());
                    let pulled = Pulled { reference, digest, manifest: manifest_digest, raw_config, config };
                    return Ok((pulled, manifest));
                }
                // The index did not say what it is for.
                Err(_) if chosen => fetched = self.next(reference, &mut search).await?,
                Err(error) => return Err(error),
            }
        }
    }

    async fn next(&self, reference: &Reference, search: &mut Search) -> Result<Fetched> {
        let found = search.next()?;
        let fetched = self.registry.manifest(reference, Some(&found.digest)).await?;
        if fetched.bytes.len() as u64 != found.size {
            return Err(Error::invalid_argument(format!(
                "the index of the image {reference} gives the manifest {} {} bytes, it has {}: build and push it anew",
                found.digest.short(),
                found.size,
                fetched.bytes.len()
            )));
        }
        Ok(Fetched { media_type: Some(found.media_type), ..fetched })
    }
}

/// Runs what may block, where it may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Error::unavailable("the pull was given up: try again").because(error)))
}
