//! Trees of an [`AgentGuest`]: archives both ways, changes, disk usage.

use super::{AgentGuest, DISK, convert, files::data_parts};
use crate::{
    ChangeStream, DiskUsage, Error, ErrorKind, ExtractTarget, Extracted, FileChange, Result,
    guest::ByteStream,
};
use futures::{StreamExt, stream};
use stacyvm_guest::proto::{self, WatchKind};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tonic::Response;

/// Largest piece of an archive.
const PIECE: usize = 128 << 10;
/// Longest path in an event: one of the kernel's, with every byte that is no text made readable.
const PATH: usize = 3 * 4096 + 256;
/// Time to look at a whole tree: bounded all the same, since an agent may never answer.
const WHOLE: Duration = Duration::from_secs(600);

impl AgentGuest {
    pub(super) async fn pack(&self, path: &str) -> Result<ByteStream> {
        let mut bulk = self.bulk.clone();
        let request = proto::ArchiveRequest { path: path.to_owned() };
        let parts = self.call(DISK, bulk.archive(request)).await;
        let parts = parts.map_err(|error| self.too_old(error, "packs no directories"))?;
        let content = stream::unfold(Some((parts, self.clone())), |state| async move {
            let (mut parts, guest) = state?;
            match guest.call(DISK, async { parts.message().await.map(Response::new) }).await {
                Ok(Some(part)) if (1..=PIECE).contains(&part.data.len()) => {
                    Some((Ok(part.data), Some((parts, guest))))
                }
                Ok(Some(_)) => Some((Err(guest.broke_protocol("a piece of an impossible size")), None)),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(content.boxed())
    }

    pub(super) async fn unpack(&self, target: &ExtractTarget, content: ByteStream) -> Result<Extracted> {
        use proto::extract_part::Part;
        let start =
            proto::ExtractStart { path: target.path.clone(), user: target.user.clone().unwrap_or_default() };
        // As with a file: an error in `content` ends it without `finish`, and is handed out here.
        let failed = Arc::new(Mutex::new(None));
        let data = data_parts(content, Arc::clone(&failed), Part::Data, Part::Finish);
        let parts = stream::once(async { Part::Start(start) }).chain(data);
        let parts = parts.map(|part| proto::ExtractPart { part: Some(part) });
        let mut bulk = self.bulk.clone();
        // No deadline over the whole: it takes as long as its sender. A dead agent ends the connection.
        let result = bulk.extract(parts).await;
        if let Some(error) = failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(error);
        }
        let made = result.map_err(|status| {
            self.too_old(convert::error(&self.identity.sandbox_id, &status), "unpacks no archives")
        })?;
        let proto::ExtractReply { files, directories, links, bytes } = made.into_inner();
        Ok(Extracted { files, directories, links, bytes })
    }

    pub(super) async fn watch_tree(&self, path: &str, recursive: bool) -> Result<ChangeStream> {
        let mut bulk = self.bulk.clone();
        let request = proto::WatchRequest { path: path.to_owned(), recursive };
        let batches = self.call(WHOLE, bulk.watch(request)).await;
        let mut batches = batches.map_err(|error| self.too_old(error, "watches nothing"))?;
        let first = self.call(DISK, async { batches.message().await.map(Response::new) }).await?;
        if first.is_none_or(|first| !first.events.is_empty()) {
            return Err(self.broke_protocol("changes before the watch is in place"));
        }
        let changes = stream::unfold(Some((batches, self.clone())), |state| async move {
            let (mut batches, guest) = state?;
            // It may be silent for as long as nothing happens; a dead agent ends the connection.
            let (changes, ended) = match batches.message().await {
                Ok(None) => return None,
                Ok(Some(batch)) if batch.events.is_empty() => (vec![Err("an empty batch of changes")], true),
                Ok(Some(batch)) => {
                    let changes: Vec<_> = batch.events.into_iter().map(change).collect();
                    let ended = changes.iter().any(Result::is_err);
                    (changes, ended)
                }
                Err(status) => {
                    let error = convert::error(&guest.identity.sandbox_id, &status);
                    return Some((stream::iter(vec![Err(error)]), None));
                }
            };
            let told = |change: Result<_, &str>| change.map_err(|how| guest.broke_protocol(how));
            let changes: Vec<Result<FileChange>> = changes.into_iter().map(told).collect();
            Some((stream::iter(changes), (!ended).then_some((batches, guest))))
        });
        // Behind the first error nothing is believed.
        let until_error = changes.flatten().scan(false, |over, change| {
            let ends = std::mem::replace(over, change.is_err());
            std::future::ready((!ends).then_some(change))
        });
        Ok(until_error.boxed())
    }

    pub(super) async fn measure(&self, path: &str) -> Result<DiskUsage> {
        let mut bulk = self.bulk.clone();
        let usage = self.call(WHOLE, bulk.usage(proto::UsageRequest { path: path.to_owned() })).await;
        let usage = usage.map_err(|error| self.too_old(error, "measures no disk usage"))?;
        let proto::UsageReply { bytes, apparent_bytes, files, directories, counted_twice } = usage;
        Ok(DiskUsage { bytes, apparent_bytes, files, directories, counted_twice })
    }

    /// The agent of a sandbox is as old as the sandbox. One that lacks a call says so without a word.
    fn too_old(&self, error: Error, what: &str) -> Error {
        if error.kind() != ErrorKind::Unsupported || !error.message().is_empty() {
            return error;
        }
        let id = &self.identity.sandbox_id;
        Error::unsupported(format!("sandbox {id} is older than this server and {what}: make a new one"))
            .because(error)
    }
}

/// A change, or how the agent broke the protocol.
fn change(event: proto::WatchEvent) -> Result<FileChange, &'static str> {
    let kind = event.kind();
    let proto::WatchEvent { path, from, directory, .. } = event;
    let is_path = |path: &str| path.starts_with('/') && path.len() <= PATH;
    if kind == WatchKind::Overflow {
        return Ok(FileChange::Overflow);
    }
    if !is_path(&path) || (kind == WatchKind::Move && !is_path(&from)) {
        return Err("a change of something that is no path");
    }
    match kind {
        WatchKind::Create => Ok(FileChange::Created { path, directory }),
        WatchKind::Modify => Ok(FileChange::Modified { path }),
        WatchKind::Delete => Ok(FileChange::Deleted { path, directory }),
        WatchKind::Move => Ok(FileChange::Moved { from, path, directory }),
        WatchKind::Attribute => Ok(FileChange::Attributes { path, directory }),
        WatchKind::Unspecified | WatchKind::Overflow => Err("a change of no kind"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_changes_are_refused() {
        let event = |kind: i32, path: &str, from: &str| {
            change(proto::WatchEvent { kind, path: path.into(), from: from.into(), directory: false })
        };
        assert_eq!(event(2, "/a", "").unwrap(), FileChange::Modified { path: "/a".into() });
        assert_eq!(event(6, "", "").unwrap(), FileChange::Overflow);
        for (kind, path, from) in
            [(0, "/a", ""), (99, "/a", ""), (1, "a", ""), (1, "", ""), (4, "/a", ""), (4, "/a", "b")]
        {
            assert!(event(kind, path, from).is_err(), "{kind} {path} {from}");
        }
        assert!(event(1, &"/x".repeat(PATH), "").is_err());
    }
}
