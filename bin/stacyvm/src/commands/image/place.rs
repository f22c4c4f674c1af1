//! Where the images are that a command is about: on a server, or in the data directory of this host.

use crate::{
    cli::Global,
    commands::config,
    failure::{Failure, Result},
    images, pulling,
};
use stacyvm_client::Client;
use stacyvm_image::{Image as Found, Images, archive};
use stacyvm_types::{Image, PrunedImages, RemovedImage};
use std::{path::Path, time::Duration};
use tokio_util::io::ReaderStream;

/// Size of the pieces that a file is sent in.
const PIECE: usize = 256 << 10;

pub(super) enum Place {
    Server(Client),
    Here(Images),
}

impl Place {
    pub(super) fn of(global: &Global) -> Result<Self> {
        if global.named_server().is_some() {
            return Ok(Self::Server(global.client()?));
        }
        let loaded = config::load(global, Vec::new(), false)?;
        if global.verbose > 0 {
            config::warn(global, &loaded.warnings);
        }
        Ok(Self::Here(images::open(&loaded.config)?))
    }

    pub(super) async fn list(&self) -> Result<Vec<Image>> {
        match self {
            Self::Server(client) => Ok(client.images().await?),
            Self::Here(images) => Ok(described(images.list().await?)),
        }
    }

    pub(super) async fn pull(&self, name: &str) -> Result<Image> {
        match self {
            Self::Server(client) => Ok(pulling::shown(client, Some(name), client.pull_image(name)).await?),
            Self::Here(images) => {
                let image = pulling::shown_here(images, images.pull(name)).await?;
                Ok(image.into())
            }
        }
    }

    pub(super) async fn import(&self, file: &Path, name: Option<&str>) -> Result<Vec<Image>> {
        let stdin = file.as_os_str() == "-";
        match self {
            Self::Here(images) => {
                let names = name.map(str::parse).transpose()?.into_iter().collect();
                let wanted = archive::Import { names, ..archive::Import::default() };
                let imported = if stdin {
                    images.import(std::io::stdin(), wanted).await
                } else {
                    images.import_path(file, wanted).await
                };
                Ok(described(imported?))
            }
            Self::Server(client) if stdin => {
                Ok(client.import_images(name, ReaderStream::new(tokio::io::stdin())).await?)
            }
            Self::Server(client) => {
                let unreadable = |e: std::io::Error| {
                    Failure::new(
                        format!("{}: {e}", file.display()),
                        "name an archive that can be read, or - for standard input",
                    )
                };
                let opened = tokio::fs::File::open(file).await.map_err(unreadable)?;
                if opened.metadata().await.map_err(unreadable)?.is_dir() {
                    return Err(Failure::new(
                        format!("{} is a directory, which cannot be sent", file.display()),
                        format!("send an archive: tar -C {} -c . | stacyvm image import -", file.display()),
                    ));
                }
                Ok(client.import_images(name, ReaderStream::with_capacity(opened, PIECE)).await?)
            }
        }
    }

    pub(super) async fn find(&self, name: &str) -> Result<Image> {
        match self {
            Self::Server(client) => Ok(client.image(name).await?),
            Self::Here(images) => {
                let found = images.find(name).await?;
                let absent = || {
                    Failure::new(
                        format!("there is no image {name} here"),
                        format!("get it with `stacyvm image pull {name}`"),
                    )
                };
                Ok(found.ok_or_else(absent)?.into())
            }
        }
    }

    pub(super) async fn remove(&self, name: &str, force: bool) -> Result<RemovedImage> {
        match self {
            Self::Server(client) => Ok(client.remove_image(name, force).await?),
            Self::Here(images) => Ok(images.remove(name, force).await?.into()),
        }
    }

    pub(super) async fn prune(&self, all: bool) -> Result<PrunedImages> {
        match self {
            Self::Server(client) => Ok(client.prune_images(all).await?),
            Self::Here(images) => {
                let unused_for = all.then_some(Duration::ZERO);
                let what = stacyvm_image::store::Collect { unused_for, ..Default::default() };
                Ok(images.collect(what).await?.into())
            }
        }
    }
}

fn described(images: Vec<Found>) -> Vec<Image> {
    images.into_iter().map(Image::from).collect()
}
