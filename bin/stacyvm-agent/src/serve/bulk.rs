//! The bulk service: everything that moves bytes or touches files.

use super::{Sandbox, trees};
use crate::{
    fail::{Fail, Result},
    files::{
        Cancel, blocking, glob, info, list, path::SandboxPath, read, remove, resolve::Root, tree, usage,
        watch, write::Upload,
    },
    process::attach,
    users::{self, Account},
};
use futures::{Stream, StreamExt, stream};
use stacyvm_guest::proto::{
    ArchivePart, ArchiveRequest, AttachRequest, ChmodRequest, Empty, ExtractPart, ExtractReply, FileInfo,
    FileInfos, GlobRequest, ListDirRequest, MkdirRequest, MoveRequest, OutputEvent, PathRequest,
    ReadFilePart, ReadFileRequest, RemoveRequest, RunRequest, StdinReply, StdinRequest, UsageReply,
    UsageRequest, WatchEvents, WatchRequest, WriteFilePart, WriteFileStart, bulk_server::Bulk,
    output_event::Event, read_file_part, write_file_part::Part,
};
use std::{pin::Pin, sync::Arc};
use tonic::{Request, Response, Status, Streaming};

/// Messages of one answer.
type Answer<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// See the module.
#[derive(Debug)]
pub(super) struct BulkService(pub(super) Sandbox);

impl BulkService {
    /// Does something to a path on a thread that may block.
    async fn on_path<T: Send + 'static>(
        &self,
        path: &str,
        work: impl FnOnce(&Root, &SandboxPath) -> Result<T> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let path = SandboxPath::parse(path)?;
        let root = Arc::clone(&self.0.root);
        Ok(Response::new(blocking(move || work(&root, &path)).await?))
    }

    fn account(&self, user: &str) -> Result<Account> {
        users::find(&self.0.config, &self.0.root, user)
    }

    async fn begin(&self, start: WriteFileStart) -> Result<Upload> {
        let path = SandboxPath::parse(&start.path)?;
        let sandbox = self.0.clone();
        blocking(move || {
            let owner = users::find(&sandbox.config, &sandbox.root, &start.user)?;
            let parents_owner = users::find(&sandbox.config, &sandbox.root, "")?;
            Upload::begin(&sandbox.root, &path, start.mode, &owner, &parents_owner)
        })
        .await
    }

    async fn upload(&self, mut parts: Streaming<WriteFilePart>) -> Result<FileInfo, Status> {
        let Some(Part::Start(start)) = parts.message().await?.and_then(|part| part.part) else {
            return Err(Fail::invalid("an upload begins with its path").into());
        };
        let mut upload = self.begin(start).await?;
        loop {
            match parts.message().await?.map(|part| part.part) {
                Some(Some(Part::Data(data))) => {
                    upload = blocking(move || {
                        upload.write(&data)?;
                        Ok(upload)
                    })
                    .await?;
                }
                Some(Some(Part::Finish(Empty {}))) => return Ok(blocking(move || upload.finish()).await?),
                Some(Some(Part::Start(_)) | None) => {
                    return Err(Fail::invalid("an upload begins once").into());
                }
                None => return Err(Fail::invalid("the upload ended early; the old file stays").into()),
            }
        }
    }
}

/// Batches of files, each made when the one before was taken.
fn batches<S: Send + 'static>(
    state: S,
    next: impl Fn(&mut S) -> Result<Option<FileInfos>> + Send + Copy + 'static,
) -> Response<Answer<FileInfos>> {
    let stream = stream::try_unfold(state, move |mut state| async move {
        let batch = blocking(move || {
            let batch = next(&mut state)?;
            Ok(batch.map(|batch| (batch, state)))
        });
        Ok(batch.await?)
    });
    Response::new(stream.boxed())
}

#[tonic::async_trait]
impl Bulk for BulkService {
    type AttachStream = Answer<OutputEvent>;
    type RunStream = Answer<OutputEvent>;
    type ReadFileStream = Answer<ReadFilePart>;
    type ListDirStream = Answer<FileInfos>;
    type GlobStream = Answer<FileInfos>;
    type ArchiveStream = Answer<ArchivePart>;
    type WatchStream = Answer<WatchEvents>;

    async fn attach(&self, request: Request<AttachRequest>) -> Result<Response<Self::AttachStream>, Status> {
        let request = request.into_inner();
        let process = self.0.table.get(&request.id)?;
        Ok(Response::new(attach::attach(process, &request)?.map(Ok).boxed()))
    }

    async fn run(&self, request: Request<RunRequest>) -> Result<Response<Self::RunStream>, Status> {
        let RunRequest { start, pace } = request.into_inner();
        let process = self.0.table.start(start.unwrap_or_default()).await?;
        let wanted = AttachRequest { offset: 0, follow: true, pace, ..AttachRequest::default() };
        let started = OutputEvent { event: Some(Event::Started(process.describe())) };
        let output = attach::attach(process, &wanted)?;
        Ok(Response::new(stream::iter([started]).chain(output).map(Ok).boxed()))
    }

    async fn write_stdin(&self, request: Request<StdinRequest>) -> Result<Response<StdinReply>, Status> {
        let request = request.into_inner();
        let process = self.0.table.get(&request.id)?;
        Ok(Response::new(process.write_stdin(&request).await?))
    }

    async fn write_file(
        &self,
        request: Request<Streaming<WriteFilePart>>,
    ) -> Result<Response<FileInfo>, Status> {
        Ok(Response::new(self.upload(request.into_inner()).await?))
    }

    async fn read_file(
        &self,
        request: Request<ReadFileRequest>,
    ) -> Result<Response<Self::ReadFileStream>, Status> {
        let ReadFileRequest { path, offset, length } = request.into_inner();
        let opened = self.on_path(&path, move |root, path| read::open(root, path, offset, length)).await?;
        let (info, reader) = opened.into_inner();
        let part = |part| ReadFilePart { part: Some(part) };
        let first = stream::once(async move { Ok(part(read_file_part::Part::Info(info))) });
        let content = stream::try_unfold(reader, move |mut reader| async move {
            let piece = blocking(move || Ok(reader.next()?.map(|piece| (piece, reader)))).await?;
            Ok(piece.map(|(piece, reader)| (part(read_file_part::Part::Data(piece)), reader)))
        });
        Ok(Response::new(first.chain(content).boxed()))
    }

    async fn stat(&self, request: Request<PathRequest>) -> Result<Response<FileInfo>, Status> {
        let PathRequest { path, follow } = request.into_inner();
        self.on_path(&path, move |root, path| info::stat(root, path, follow)).await
    }

    async fn list_dir(
        &self,
        request: Request<ListDirRequest>,
    ) -> Result<Response<Self::ListDirStream>, Status> {
        let listing = self.on_path(&request.into_inner().path, list::open).await?;
        Ok(batches(listing.into_inner(), |listing| listing.next()))
    }

    async fn glob(&self, request: Request<GlobRequest>) -> Result<Response<Self::GlobStream>, Status> {
        let GlobRequest { pattern, limit } = request.into_inner();
        let cancel = Cancel::default();
        let _guard = cancel.guard();
        let root = Arc::clone(&self.0.root);
        let matches = blocking(move || glob::find(&root, &pattern, limit, &cancel)).await?;
        Ok(batches(matches, |matches| matches.next()))
    }

    async fn r#move(&self, request: Request<MoveRequest>) -> Result<Response<Empty>, Status> {
        let MoveRequest { from, to } = request.into_inner();
        let to = SandboxPath::parse(&to)?;
        let owner = self.account("")?;
        let moved = move |root: &Root, from: &SandboxPath| tree::rename(root, from, &to, &owner);
        self.on_path(&from, moved).await.map(|_| Response::new(Empty {}))
    }

    async fn chmod(&self, request: Request<ChmodRequest>) -> Result<Response<Empty>, Status> {
        let ChmodRequest { path, mode } = request.into_inner();
        let changed = self.on_path(&path, move |root, path| tree::chmod(root, path, mode)).await;
        changed.map(|_| Response::new(Empty {}))
    }

    async fn mkdir(&self, request: Request<MkdirRequest>) -> Result<Response<Empty>, Status> {
        let MkdirRequest { path, mode, parents } = request.into_inner();
        let owner = self.account("")?;
        let made =
            self.on_path(&path, move |root, path| tree::mkdir(root, path, mode, parents, &owner)).await;
        made.map(|_| Response::new(Empty {}))
    }

    async fn remove(&self, request: Request<RemoveRequest>) -> Result<Response<Empty>, Status> {
        let RemoveRequest { path, recursive } = request.into_inner();
        let cancel = Cancel::default();
        let _guard = cancel.guard();
        let removed =
            self.on_path(&path, move |root, path| remove::remove(root, path, recursive, &cancel)).await;
        removed.map(|_| Response::new(Empty {}))
    }

    async fn archive(
        &self,
        request: Request<ArchiveRequest>,
    ) -> Result<Response<Self::ArchiveStream>, Status> {
        Ok(Response::new(trees::archive(&self.0, &request.into_inner().path).await?.boxed()))
    }

    async fn extract(
        &self,
        request: Request<Streaming<ExtractPart>>,
    ) -> Result<Response<ExtractReply>, Status> {
        Ok(Response::new(trees::extract(&self.0, request.into_inner()).await?))
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let WatchRequest { path, recursive } = request.into_inner();
        let path = SandboxPath::parse(&path)?;
        let changes = watch::watch(Arc::clone(&self.0.root), path, recursive).await?;
        Ok(Response::new(changes.map(|batch| batch.map_err(Status::from)).boxed()))
    }

    async fn usage(&self, request: Request<UsageRequest>) -> Result<Response<UsageReply>, Status> {
        let cancel = Cancel::default();
        let _guard = cancel.guard();
        self.on_path(&request.into_inner().path, move |root, path| usage::usage(root, path, &cancel)).await
    }
}
