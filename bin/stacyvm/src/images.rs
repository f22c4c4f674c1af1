//! The store of images of a data directory, as the configuration has it. Several programs may have it open at once.

use crate::failure::{Failure, Result};
use stacyvm_config::Config;
use stacyvm_image::{Credentials, Images, ImagesConfig, PullPolicy, Secret, Settings, store::StoreLimits};
use std::time::Duration;

/// Time between two looks for what nothing needs any more.
const COLLECT: Duration = Duration::from_secs(3600);

/// Opens the store below the configured data directory.
pub(crate) fn open(config: &Config) -> Result<Images> {
    let root = config.data_dir.join("images");
    let wanted = &config.images;
    let limits =
        StoreLimits { bytes: (wanted.max_bytes > 0).then_some(wanted.max_bytes), ..StoreLimits::default() };
    let credentials = wanted.credentials.iter().map(|(registry, (user, password))| {
        (registry.clone(), Credentials::of(registry.clone(), user, Secret::new(password.clone())))
    });
    let registries = Settings {
        mirrors: wanted.mirrors.clone(),
        insecure: wanted.insecure_registries.clone(),
        credentials: credentials.collect(),
        auth_file: wanted.auth_file.clone(),
        ca_file: wanted.ca_file.clone(),
        ..Settings::default()
    };
    let policy = PullPolicy::from(&*wanted.pull_policy);
    Images::open(ImagesConfig { root, limits, registries, policy })
        .map_err(|error| Failure::new(error.to_string(), "see the keys images.* in `stacyvm config show`"))
}

/// Pulls what is to be there before it is asked for, and takes away what nothing needs, as long as the server runs.
pub(crate) async fn tend(images: Images, prefetch: Vec<String>) {
    for name in prefetch {
        match images.obtain(&name).await {
            Ok(rootfs) => tracing::info!(image = name, id = %rootfs.image, "an image is ready"),
            Err(error) => {
                tracing::warn!(image = name, error = error.chain(), "an image cannot be prefetched");
            }
        }
    }
    loop {
        match images.collect(Default::default()).await {
            Ok(collected) if collected.bytes > 0 => {
                tracing::info!(
                    layers = collected.layers,
                    bytes = collected.bytes,
                    "unused images were removed"
                );
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(error = error.chain(), "unused images cannot be removed"),
        }
        tokio::time::sleep(COLLECT).await;
    }
}
