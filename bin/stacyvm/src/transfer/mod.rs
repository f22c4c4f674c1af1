//! Files that go into a sandbox before a command and come out of it afterwards (`run --copy-in`, `--copy-out`), whether the
//! engine is in this program or behind the API.
//!
//! What comes out was made by code that nobody has read: names are single components, links are not followed and not made,
//! and what a sandbox can make this host hold is bounded in number.

mod embedded;
mod remote;
mod tree;

pub(crate) use embedded::EmbeddedFiles;
pub(crate) use remote::RemoteFiles;

use crate::failure::{Failure, Result};
use bytes::Bytes;
use futures::stream::BoxStream;
use std::{fs, io, path::Path};

/// Content of a file.
pub(crate) type Content<E> = BoxStream<'static, Result<Bytes, E>>;

/// What a path in a sandbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    /// A link, device, socket or pipe.
    Other,
}

/// An entry of a directory in a sandbox, or what a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Path, as the sandbox says: not to be believed.
    pub(crate) path: String,
    pub(crate) kind: Kind,
    /// Permission bits.
    pub(crate) mode: u32,
}

/// The files of one sandbox. Paths are absolute.
pub(crate) trait Files {
    /// What a path leads to, links followed; `None` if there is nothing.
    async fn stat(&self, path: &str) -> Result<Option<Entry>>;

    /// Entries of a directory.
    async fn list(&self, path: &str) -> Result<Vec<Entry>>;

    /// Makes a directory and those above; one that is there is fine.
    async fn make_directory(&self, path: &str, mode: u32) -> Result<()>;

    /// Writes a file of this size, if that is known; parents are made.
    async fn write(
        &self,
        path: &str,
        mode: Option<u32>,
        size: Option<u64>,
        content: Content<io::Error>,
    ) -> Result<()>;

    /// Content of a file.
    async fn read(&self, path: &str) -> Result<Content<Failure>>;
}

/// One `SRC:DEST`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Copy {
    source: String,
    target: String,
}

/// A local path and one in the sandbox; the local one may have colons.
pub(crate) fn inward(text: &str) -> Result<Copy, String> {
    parse(text.rsplit_once(':'))
}

/// A path in the sandbox and a local one, which may have colons.
pub(crate) fn outward(text: &str) -> Result<Copy, String> {
    parse(text.split_once(':'))
}

fn parse(sides: Option<(&str, &str)>) -> Result<Copy, String> {
    match sides {
        Some((source, target)) if !source.is_empty() && !target.is_empty() => {
            Ok(Copy { source: source.to_owned(), target: target.to_owned() })
        }
        _ => Err("write SRC:DEST".to_owned()),
    }
}

/// An absolute path in the sandbox: a relative one starts where commands do.
fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/workspace/{path}") }
}

/// The last component, if it is a name.
fn name(path: &str) -> Option<&str> {
    Path::new(path).file_name().and_then(|name| name.to_str()).filter(|_| !path.ends_with("/."))
}

fn join(directory: &str, name: &str) -> String {
    format!("{}/{name}", directory.trim_end_matches('/'))
}

/// Copies a file or directory into the sandbox.
pub(crate) async fn copy_in(files: &impl Files, copy: &Copy) -> Result<()> {
    let failed = |failure: Failure| Failure {
        what: format!("cannot copy {} into the sandbox: {}", copy.source, failure.what),
        ..failure
    };
    put(files, copy).await.map_err(failed)
}

async fn put(files: &impl Files, copy: &Copy) -> Result<()> {
    let metadata = fs::metadata(&copy.source)
        .map_err(|error| Failure::new(error.to_string(), "name a file or directory that is there"))?;
    let wanted = absolute(&copy.target);
    let inside = wanted.ends_with('/')
        || files.stat(&wanted).await?.is_some_and(|entry| entry.kind == Kind::Directory);
    let target = match name(&copy.source) {
        Some(name) if inside => join(&wanted, name),
        // The content of a directory, as of `src/.`, goes into the target itself.
        _ => wanted.trim_end_matches('/').to_owned(),
    };
    if metadata.is_dir() {
        return tree::put(files, Path::new(&copy.source), &target).await;
    }
    tree::put_file(files, Path::new(&copy.source), &target).await
}

/// Copies a file or directory out of the sandbox.
pub(crate) async fn copy_out(files: &impl Files, copy: &Copy) -> Result<()> {
    let failed = |failure: Failure| Failure {
        what: format!("cannot copy {} out of the sandbox: {}", copy.source, failure.what),
        ..failure
    };
    get(files, copy).await.map_err(failed)
}

async fn get(files: &impl Files, copy: &Copy) -> Result<()> {
    let source = absolute(&copy.source);
    let entry = files.stat(&source).await?.ok_or_else(|| {
        Failure::new("it is not there", "a relative path starts in /workspace; see what the command writes")
    })?;
    let wanted = Path::new(&copy.target);
    let target = match name(&source) {
        Some(name) if copy.target.ends_with('/') || wanted.is_dir() => wanted.join(name),
        // A link that the user named is written through, as cp does.
        _ => wanted.canonicalize().unwrap_or_else(|_| wanted.to_owned()),
    };
    if let Some(parent) = target.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(|error| tree::local(parent, &error))?;
    }
    match entry.kind {
        Kind::File => tree::get_file(files, &source, entry.mode, &target).await,
        Kind::Directory => tree::get(files, source.trim_end_matches("/."), &target).await,
        Kind::Other => Err(Failure::new("it is neither a file nor a directory", "")),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
