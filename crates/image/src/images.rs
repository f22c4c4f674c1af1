//! Images as a server uses them: found by the names that people type, pulled when they are missing, kept while they are used.

use crate::{
    Digest, Image, PullPolicy, Puller, Reference, Rootfs, Settings, Store,
    archive::{Import, Source},
    store::{Collect, Collected, Removed, StoreLimits},
};
use stacyvm_provider::{Error, Notice, Result};
use std::{
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::broadcast;

/// Notices that may wait for whoever listens.
const NOTICES: usize = 1024;

/// Where images are, and how they come.
#[derive(Debug, Clone)]
pub struct ImagesConfig {
    /// Directory of the store, absolute.
    pub root: PathBuf,
    /// What the store may take.
    pub limits: StoreLimits,
    /// How registries are spoken to.
    pub registries: Settings,
    /// When an image is pulled that something is to run from.
    pub policy: PullPolicy,
}

/// The images of this host. Clones are the same.
#[derive(Debug, Clone)]
pub struct Images(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    puller: Puller,
    policy: PullPolicy,
    notices: broadcast::Sender<Notice>,
}

impl Images {
    /// Opens the store. Blocks for a moment.
    ///
    /// # Errors
    /// `InvalidArgument` for settings that cannot work, or a store that another kind of user made; those of making files.
    pub fn open(config: ImagesConfig) -> Result<Self> {
        let store = Store::open(&config.root, config.limits)?;
        let (notices, _) = broadcast::channel(NOTICES);
        let puller = Puller::new(config.registries, Arc::new(store.clone()), notices.clone())?;
        Ok(Self(Arc::new(Inner { store, puller, policy: config.policy, notices })))
    }

    /// Checks that a text can be the name or the id of an image. Asks nobody.
    ///
    /// # Errors
    /// `InvalidArgument` with an example.
    pub fn check(name: &str) -> Result<()> {
        name.parse::<Reference>().map(drop)
    }

    /// What to run something of this image from: what is there, or pulled, as the policy says.
    ///
    /// # Errors
    /// Those of [`Puller::ensure`].
    pub async fn obtain(&self, name: &str) -> Result<Rootfs> {
        if self.0.policy != PullPolicy::Always
            && let Some(rootfs) = self.rootfs(name).await?
        {
            return Ok(rootfs);
        }
        let reference: Reference = name.parse()?;
        self.0.puller.ensure(&reference, self.0.policy).await?;
        self.rootfs(&reference.canonical()).await?.ok_or_else(|| removed(&reference))
    }

    /// Asks the registry what the name leads to, and fetches what is not here of it. It goes on when the caller goes away.
    ///
    /// # Errors
    /// Those of [`Puller::pull`].
    pub async fn pull(&self, name: &str) -> Result<Image> {
        let reference: Reference = name.parse()?;
        self.0.puller.pull(&reference).await?;
        self.find(&reference.canonical()).await?.ok_or_else(|| removed(&reference))
    }

    /// Takes in what an archive holds. A caller that goes away leaves what was complete.
    ///
    /// # Errors
    /// Those of [`Store::import`].
    pub async fn import(&self, archive: impl Read + Send + 'static, wanted: Import) -> Result<Vec<Image>> {
        self.blocking(move |store| store.import(Source::Stream(Box::new(archive)), &wanted)).await
    }

    /// Takes in what a file or a directory of this host holds.
    ///
    /// # Errors
    /// Those of [`Store::import`].
    pub async fn import_path(&self, path: &Path, wanted: Import) -> Result<Vec<Image>> {
        let path = path.to_owned();
        self.blocking(move |store| store.import(Source::Path(&path), &wanted)).await
    }

    /// All images that are here, those used last first.
    ///
    /// # Errors
    /// Those of reading.
    pub async fn list(&self) -> Result<Vec<Image>> {
        self.blocking(|store| {
            let mut images = store.list()?;
            images.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.id.cmp(&b.id)));
            Ok(images)
        })
        .await
    }

    /// The image of this name, or of an id or the beginning of one.
    ///
    /// # Errors
    /// `InvalidArgument` if the digits fit several; those of reading.
    pub async fn find(&self, name: &str) -> Result<Option<Image>> {
        let name = name.to_owned();
        self.blocking(move |store| store.find(&name)).await
    }

    /// Takes the name away, and the image with its last name. See [`Store::remove`].
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for an image that is in use, without `force`.
    pub async fn remove(&self, name: &str, force: bool) -> Result<Removed> {
        let name = name.to_owned();
        self.blocking(move |store| store.remove(&name, force)).await
    }

    /// Takes what nobody needs.
    ///
    /// # Errors
    /// Those of file operations.
    pub async fn collect(&self, what: Collect) -> Result<Collected> {
        self.blocking(move |store| store.collect(&what)).await
    }

    /// Keeps the image for as long as `holder`, a directory, is there. Blocks for a moment.
    ///
    /// # Errors
    /// `NotFound` if the image was removed meanwhile.
    pub fn hold(&self, id: &Digest, holder: &Path) -> Result<()> {
        self.0.store.hold(id, holder)
    }

    /// What the layers of all images are in.
    pub fn layers(&self) -> PathBuf {
        self.0.store.root().join("layers")
    }

    /// Progress of pulls from now on.
    pub fn notices(&self) -> broadcast::Receiver<Notice> {
        self.0.notices.subscribe()
    }

    async fn rootfs(&self, name: &str) -> Result<Option<Rootfs>> {
        let name = name.to_owned();
        self.blocking(move |store| store.rootfs(&name)).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let store = self.0.store.clone();
        match tokio::task::spawn_blocking(move || work(&store)).await {
            Ok(result) => result,
            Err(e) => Err(Error::unavailable("the server is shutting down").because(e)),
        }
    }
}

fn removed(reference: &Reference) -> Error {
    Error::unavailable(format!("the image {reference} was removed as soon as it was here; try again"))
}
