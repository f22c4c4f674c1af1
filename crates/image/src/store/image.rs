//! Looking images up. Nothing here waits: what goes meanwhile is not there.

use super::{
    Store,
    files::{self, Durable, digest_of},
    records::{ImageRecord, LayerRecord, NameRecord},
};
use crate::{Digest, ImageConfig, Platform, Reference, unpack::TREE};
use stacyvm_provider::{Error, Result};
use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Digits of an id that are enough to be one.
const PREFIX: usize = 7;

/// An image that is complete.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of its configuration.
    pub id: Digest,
    /// Names that lead to it, sorted.
    pub names: Vec<Reference>,
    /// Its configuration.
    pub config: ImageConfig,
    /// What it is built for.
    pub platform: Platform,
    /// Directories to stack as an overlay, lowest first: each once, and none that one above hides as a whole.
    pub layers: Vec<PathBuf>,
    /// Bytes of disk that its layers take; other images may share them.
    pub disk_bytes: u64,
    /// Digest of the manifest that it came with.
    pub manifest: Option<Digest>,
    /// Where it came from, for people.
    pub source: String,
    /// When it came.
    pub added: SystemTime,
    /// When it was last held, or when it came.
    pub used: SystemTime,
    /// Directories of those who hold it.
    pub held_by: Vec<PathBuf>,
}

/// What something runs from: what costs the same to find however many images and holders there are.
#[derive(Debug, Clone)]
pub struct Rootfs {
    /// The image that it is of.
    pub image: Digest,
    /// Its configuration.
    pub config: ImageConfig,
    /// Directories to stack as an overlay, lowest first, as in [`Image`].
    pub layers: Vec<PathBuf>,
}

impl Store {
    /// The root filesystem of this name, or of an id, as in [`Store::find`].
    ///
    /// # Errors
    /// Those of [`Store::find`].
    pub fn rootfs(&self, text: &str) -> Result<Option<Rootfs>> {
        let Some((image, _)) = self.resolve(text)? else { return Ok(None) };
        let Some(config) = self.config(&image)? else { return Ok(None) };
        let stacked = self.stacked(&config.diff_ids)?;
        Ok(stacked.map(|(layers, _)| Rootfs { image, config, layers }))
    }

    /// The configuration of an image, if it is here.
    pub(super) fn config(&self, id: &Digest) -> Result<Option<ImageConfig>> {
        Ok(files::read::<ImageRecord>(&self.record(id))?.and_then(|record| record.parsed(id)))
    }

    /// The image of this name, or of an id or the first seven or more digits of one.
    ///
    /// # Errors
    /// `InvalidArgument` if the digits fit several images; those of reading.
    pub fn find(&self, text: &str) -> Result<Option<Image>> {
        match self.resolve(text)? {
            Some((id, _)) => self.image(&id),
            None => Ok(None),
        }
    }

    /// The id that a text stands for, and the name if it is one.
    pub(super) fn resolve(&self, text: &str) -> Result<Option<(Digest, Option<Reference>)>> {
        if let Ok(name) = text.parse::<Reference>()
            && let Some(found) = files::read::<NameRecord>(&self.name(&name))?.filter(|r| r.name == name)
        {
            return Ok(Some((found.image, Some(name))));
        }
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        if digits.len() < PREFIX || !digits.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
        {
            return Ok(None);
        }
        let mut fitting = self.ids()?.into_iter().filter(|id| id.hex().starts_with(digits));
        match (fitting.next(), fitting.next()) {
            (Some(_), Some(_)) => Err(Error::invalid_argument(format!(
                "{digits} is the beginning of several images' ids: give more digits, or a name"
            ))),
            (found, _) => Ok(found.map(|id| (id, None))),
        }
    }

    /// All images, by their ids.
    ///
    /// # Errors
    /// Those of reading.
    pub fn list(&self) -> Result<Vec<Image>> {
        let names = self.names()?;
        let holders = self.holders()?;
        let mut images = Vec::new();
        for id in self.ids()? {
            images.extend(self.described(&id, &names, &holders)?);
        }
        images.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(images)
    }

    /// Gives an image one more name; what had it before loses it.
    ///
    /// # Errors
    /// `NotFound` if the image is not there.
    pub fn tag(&self, id: &Digest, name: &Reference) -> Result<()> {
        let work = self.work()?;
        let _lock = self.lock()?;
        if files::read::<ImageRecord>(&self.record(id))?.is_none() {
            return Err(not_found(id));
        }
        let record = NameRecord { name: name.clone(), image: id.clone() };
        files::write(&record, &self.name(name), work.directory(), Durable::Yes)
    }

    /// The image of this id, if it is complete.
    pub(super) fn image(&self, id: &Digest) -> Result<Option<Image>> {
        self.described(id, &self.names()?, &self.holders()?)
    }

    fn described(
        &self,
        id: &Digest,
        names: &BTreeMap<Digest, Vec<Reference>>,
        holders: &[super::records::HolderRecord],
    ) -> Result<Option<Image>> {
        let path = self.record(id);
        let Some(record) = files::read::<ImageRecord>(&path)? else { return Ok(None) };
        let Some(config) = record.parsed(id) else { return Ok(None) };
        let Some((layers, disk_bytes)) = self.stacked(&config.diff_ids)? else { return Ok(None) };
        let added = UNIX_EPOCH + Duration::from_secs(record.added);
        let used = std::fs::metadata(&path).and_then(|m| m.modified()).unwrap_or(added);
        let held_by = holders.iter().filter(|h| h.image == *id).map(|h| h.holder.clone()).collect();
        Ok(Some(Image {
            id: id.clone(),
            names: names.get(id).cloned().unwrap_or_default(),
            platform: config.platform(),
            config,
            layers,
            disk_bytes,
            manifest: record.manifest,
            source: record.source,
            added,
            used,
            held_by,
        }))
    }

    /// The directories for an overlay of these layers, with the bytes that all of them take.
    ///
    /// The kernel refuses a directory that is there twice. The lower one adds nothing: all that is in it is in the upper one.
    /// And it does not ask the top of a layer whether it is opaque.
    fn stacked(&self, diff_ids: &[Digest]) -> Result<Option<(Vec<PathBuf>, u64)>> {
        let mut seen = HashSet::new();
        let (mut layers, mut bytes, mut hidden) = (Vec::new(), 0, false);
        for diff_id in diff_ids.iter().rev().filter(|d| seen.insert(*d)) {
            let directory = self.layer(diff_id);
            let Some(record) = files::read::<LayerRecord>(&directory.join("layer.json"))? else {
                return Ok(None);
            };
            bytes += record.disk_bytes;
            if !hidden {
                layers.push(directory.join(TREE));
            }
            hidden |= record.opaque;
        }
        layers.reverse();
        Ok(Some((layers, bytes)))
    }

    /// Ids of all images.
    pub(super) fn ids(&self) -> Result<Vec<Digest>> {
        Ok(files::names(&self.root().join("images"))?.iter().filter_map(|name| digest_of(name)).collect())
    }

    /// All names, by image.
    pub(super) fn names(&self) -> Result<BTreeMap<Digest, Vec<Reference>>> {
        let directory = self.root().join("names");
        let mut all: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for file in files::names(&directory)? {
            if let Some(record) = files::read::<NameRecord>(&directory.join(file))? {
                all.entry(record.image).or_default().push(record.name);
            }
        }
        all.values_mut().for_each(|names| names.sort());
        Ok(all)
    }

    /// Where a name is kept: names have characters and lengths that files cannot have.
    pub(super) fn name(&self, name: &Reference) -> PathBuf {
        let file = format!("{}.json", Digest::of(name.canonical().as_bytes()).hex());
        self.root().join("names").join(file)
    }
}

/// The error for an image that is not there.
pub(super) fn not_found(text: impl std::fmt::Display) -> Error {
    Error::not_found(format!("there is no image {text}: pull or import it first"))
}
