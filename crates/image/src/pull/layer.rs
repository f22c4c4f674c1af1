//! Layers on their way: fetched and unpacked once, whoever waits for them.

use super::{
    blocking,
    progress::{Amount, Handle},
};
use crate::{Claim, Digest, Layer, Reference, Registry, Sink};
use futures::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};
use stacyvm_provider::{Error, Result};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::sync::{Mutex as Gate, Semaphore};
use tokio_util::task::AbortOnDropHandle;

/// Layers of a pull that are fetched at the same time.
pub(super) const FETCHED: usize = 3;
/// Layers that are unpacked at the same time, at most.
const UNPACKED: usize = 4;
/// Time between two looks at whether another process has brought a blob.
const LOOK: Duration = Duration::from_millis(100);
/// Failures of other images' pulls that are taken for theirs.
const OTHERS: usize = 2;

/// A layer that an image needs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Wanted {
    pub(super) diff_id: Digest,
    pub(super) layer: Layer,
}

/// The way of one layer. It ends when nobody waits for it any more; its partial file stays.
type Job = Shared<BoxFuture<'static, Result<()>>>;
type WeakJob = WeakShared<BoxFuture<'static, Result<()>>>;

/// The layers under way.
#[derive(Clone)]
pub(super) struct Layers(Arc<Inner>);

struct Inner {
    registry: Arc<Registry>,
    sink: Arc<dyn Sink>,
    running: Mutex<HashMap<Wanted, (WeakJob, Arc<Amount>)>>,
    /// By blob, so that no two write the same partial file, whatever their images call the layer.
    gates: Mutex<HashMap<Digest, Weak<Gate<()>>>>,
    unpack: Semaphore,
}

/// Who asks for a layer.
#[derive(Clone)]
pub(super) struct Asker {
    pub(super) reference: Reference,
    /// What bounds the layers that it fetches at the same time.
    pub(super) fetch: Arc<Semaphore>,
}

impl Layers {
    pub(super) fn new(registry: Arc<Registry>, sink: Arc<dyn Sink>) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let unpack = Semaphore::new(processors.min(UNPACKED));
        Self(Arc::new(Inner { registry, sink, running: Mutex::default(), gates: Mutex::default(), unpack }))
    }

    /// Sees that a layer is there. Where another image's pull of it fails, it is tried from this image's registry.
    pub(super) async fn bring(&self, asker: Asker, wanted: Wanted, handle: Handle) -> Result<()> {
        let mut failed = Vec::new();
        loop {
            let (job, amount, ours) = self.join(&asker, &wanted, &failed);
            handle.is(&amount);
            match job.clone().await {
                Err(_) if !ours && failed.len() < OTHERS => failed.push(job),
                outcome => return outcome,
            }
        }
    }

    /// The job of a layer that is under way and not among those that failed, or else a new one, and whether it is.
    fn join(&self, asker: &Asker, wanted: &Wanted, failed: &[Job]) -> (Job, Arc<Amount>, bool) {
        let mut running = self.0.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((job, amount)) = running.get(wanted)
            && let Some(job) = job.upgrade()
            && !failed.iter().any(|other| other.ptr_eq(&job))
        {
            return (job, Arc::clone(amount), false);
        }
        let amount = Arc::new(Amount::default());
        let work = run(Arc::clone(&self.0), asker.clone(), wanted.clone(), Arc::clone(&amount));
        let task = AbortOnDropHandle::new(tokio::spawn(work));
        let ended = async move {
            task.await.unwrap_or_else(|error| {
                Err(Error::unavailable("the pull was given up: try again").because(error))
            })
        };
        let job = ended.boxed().shared();
        running.retain(|_, (job, _)| job.upgrade().is_some());
        if let Some(weak) = job.downgrade() {
            running.insert(wanted.clone(), (weak, Arc::clone(&amount)));
        }
        (job, amount, true)
    }
}

async fn run(inner: Arc<Inner>, asker: Asker, wanted: Wanted, amount: Arc<Amount>) -> Result<()> {
    let gate = inner.gate(&wanted.layer.blob.digest).lock_owned().await;
    let Some(claim) = inner.claim(&wanted).await? else {
        amount.done.store(true, Relaxed);
        return Ok(());
    };
    let partial = inner.sink.partial(&wanted.layer.blob.digest);
    {
        // Never closed.
        let _permit = asker.fetch.acquire().await.ok();
        inner.registry.blob(&asker.reference, &wanted.layer.blob, &partial, &amount.fetched).await?;
    }
    let _permit = inner.unpack.acquire().await.ok();
    let sink = Arc::clone(&inner.sink);
    blocking(move || {
        let outcome = sink.add_layer(&wanted.diff_id, wanted.layer.media, &partial);
        // What could be unpacked is there now; what could not would not the next time, and takes room.
        if let Err(error) = std::fs::remove_file(&partial) {
            tracing::warn!(path = %partial.display(), %error, "the blob of a layer stays behind");
        }
        // Held to here, also where nobody waits any more.
        drop((claim, gate));
        outcome
    })
    .await?;
    amount.done.store(true, Relaxed);
    Ok(())
}

impl Inner {
    /// What only one job of a blob passes at a time.
    fn gate(&self, blob: &Digest) -> Arc<Gate<()>> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gate) = gates.get(blob).and_then(Weak::upgrade) {
            return gate;
        }
        gates.retain(|_, gate| gate.strong_count() > 0);
        let gate = Arc::new(Gate::new(()));
        gates.insert(blob.clone(), Arc::downgrade(&gate));
        gate
    }

    /// Keeps other processes from the layer's blob; `None` if the layer is there, by now or since another process brought it.
    async fn claim(&self, wanted: &Wanted) -> Result<Option<Claim>> {
        loop {
            let (sink, diff_id) = (Arc::clone(&self.sink), wanted.diff_id.clone());
            let blob = wanted.layer.blob.digest.clone();
            let claimed = blocking(move || {
                let claim = sink.claim(&blob)?;
                // After the claim: who had it before may have brought the layer.
                Ok((sink.has_layer(&diff_id)?, claim))
            });
            match claimed.await? {
                (true, _) => return Ok(None),
                (false, Some(claim)) => return Ok(Some(claim)),
                (false, None) => tokio::time::sleep(LOOK).await,
            }
        }
    }
}
