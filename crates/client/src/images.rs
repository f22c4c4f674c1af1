//! Images of the server's host.

use crate::{
    client::{Client, SLOW},
    error::Result,
};
use bytes::Bytes;
use futures::Stream;
use reqwest::{Body, Method, header::CONTENT_TYPE};
use stacyvm_types::{Image, PruneImages, PrunedImages, PullImage, RemovedImage};
use std::io;

impl Client {
    /// All images, those used last first.
    ///
    /// # Errors
    /// As the server says.
    pub async fn images(&self) -> Result<Vec<Image>> {
        self.get(&["images"]).await
    }

    /// The image of a name or an id.
    ///
    /// # Errors
    /// As the server says.
    pub async fn image(&self, name: &str) -> Result<Image> {
        let request = self.request(Method::GET, &["images", "inspect"]).query(&[("image", name)]);
        self.json(request, SLOW).await
    }

    /// Pulls an image, however long that takes.
    ///
    /// # Errors
    /// As the server says.
    pub async fn pull_image(&self, name: &str) -> Result<Image> {
        let body = PullImage { image: name.to_owned() };
        self.json(self.request(Method::POST, &["images", "pull"]).json(&body), None).await
    }

    /// Imports the images of an archive, under this name if there is one.
    ///
    /// # Errors
    /// As the server says.
    pub async fn import_images<S>(&self, name: Option<&str>, archive: S) -> Result<Vec<Image>>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        let mut request = self
            .request(Method::POST, &["images", "import"])
            .header(CONTENT_TYPE, "application/octet-stream");
        if let Some(name) = name {
            request = request.query(&[("name", name)]);
        }
        self.json(request.body(Body::wrap_stream(archive)), None).await
    }

    /// Removes a name, and the image with its last name.
    ///
    /// # Errors
    /// As the server says.
    pub async fn remove_image(&self, name: &str, force: bool) -> Result<RemovedImage> {
        let force = if force { "true" } else { "false" };
        let request = self.request(Method::DELETE, &["images"]).query(&[("image", name), ("force", force)]);
        self.json(request, SLOW).await
    }

    /// Removes what nothing needs.
    ///
    /// # Errors
    /// As the server says.
    pub async fn prune_images(&self, all: bool) -> Result<PrunedImages> {
        let request = self.request(Method::POST, &["images", "prune"]).json(&PruneImages { all });
        self.json(request, SLOW).await
    }
}
