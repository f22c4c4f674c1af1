//! A directory that takes what was pulled, as long as its layers are not compressed.

use stacyvm_image::{Claim, Digest, LayerMedia, Pulled, Reference, Sink};
use stacyvm_provider::{Error, Result};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::AtomicUsize, atomic::Ordering::SeqCst},
};

type Before = Box<dyn Fn(&Digest) + Send>;

pub(crate) struct Folder {
    root: PathBuf,
    _temporary: Option<tempfile::TempDir>,
    images: Mutex<Vec<Pulled>>,
    /// Called before a layer is added.
    pub(crate) before: Mutex<Option<Before>>,
    /// Layers that were added.
    pub(crate) added: AtomicUsize,
    /// Pulls under way.
    pub(crate) held: Arc<AtomicUsize>,
}

struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl Folder {
    pub(crate) fn new() -> Arc<Self> {
        let temporary = tempfile::tempdir().unwrap();
        let mut folder = Self::at(temporary.path());
        Arc::get_mut(&mut folder).unwrap()._temporary = Some(temporary);
        folder
    }

    /// What another process would see.
    pub(crate) fn at(root: &Path) -> Arc<Self> {
        for directory in ["layers", "partial", "claims"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        Arc::new(Self {
            root: root.to_owned(),
            _temporary: None,
            images: Mutex::default(),
            before: Mutex::default(),
            added: AtomicUsize::new(0),
            held: Arc::default(),
        })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn images(&self) -> usize {
        self.images.lock().unwrap().len()
    }

    pub(crate) fn image(&self, reference: &Reference) -> Option<Pulled> {
        self.images.lock().unwrap().iter().rfind(|pulled| pulled.reference == *reference).cloned()
    }

    /// Sizes of the partial files.
    pub(crate) fn partials(&self) -> Vec<u64> {
        fs::read_dir(self.root.join("partial"))
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .collect()
    }

    pub(crate) fn layer(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(diff_id.hex())
    }

    /// Whether the layers of an image are here, and nothing else is.
    #[track_caller]
    pub(crate) fn has(&self, layers: &[Vec<u8>]) {
        for layer in layers {
            assert!(fs::read(self.layer(&Digest::of(layer))).unwrap() == *layer, "another layer");
        }
        assert_eq!(self.partials(), Vec::<u64>::new(), "partial files stayed");
        assert_eq!(self.held.load(SeqCst), 0);
    }
}

impl Sink for Folder {
    fn begin(&self) -> Result<Claim> {
        self.held.fetch_add(1, SeqCst);
        Ok(Box::new(Held(Arc::clone(&self.held))))
    }

    fn has_image(&self, reference: &Reference) -> Result<bool> {
        Ok(self.image(reference).is_some())
    }

    fn has_layer(&self, diff_id: &Digest) -> Result<bool> {
        assert!(self.held.load(SeqCst) > 0, "nothing keeps the layers");
        Ok(self.layer(diff_id).exists())
    }

    fn claim(&self, blob: &Digest) -> Result<Option<Claim>> {
        let file = File::create(self.root.join("claims").join(blob.hex())).unwrap();
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => panic!("{error}"),
        }
    }

    fn partial(&self, blob: &Digest) -> PathBuf {
        self.root.join("partial").join(blob.hex())
    }

    fn add_layer(&self, diff_id: &Digest, media: LayerMedia, blob: &Path) -> Result<()> {
        assert_eq!(media, LayerMedia::Tar);
        if let Some(before) = &*self.before.lock().unwrap() {
            before(diff_id);
        }
        let bytes = fs::read(blob).unwrap();
        if Digest::of(&bytes) != *diff_id {
            return Err(Error::invalid_argument("the layer's digest is another"));
        }
        self.added.fetch_add(1, SeqCst);
        let aside = self.root.join("layers").join(format!("new-{}", self.added.load(SeqCst)));
        fs::write(&aside, bytes).unwrap();
        fs::rename(aside, self.layer(diff_id)).unwrap();
        Ok(())
    }

    fn add_image(&self, pulled: &Pulled) -> Result<()> {
        assert_eq!(stacyvm_image::ImageConfig::parse(&pulled.raw_config, "x").unwrap(), pulled.config);
        assert!(pulled.config.diff_ids.iter().all(|layer| self.layer(layer).exists()), "a layer is missing");
        self.images.lock().unwrap().push(pulled.clone());
        Ok(())
    }
}
