//! Trees as archives, on the wire. No thread is held while a peer is slow: each piece is worked on when it is there.

use super::Sandbox;
use crate::{
    fail::Fail,
    files::{archive, blocking, path::SandboxPath},
    users,
};
use futures::{Stream, stream};
use stacyvm_guest::proto::{ArchivePart, Empty, ExtractPart, ExtractReply, ExtractStart, extract_part::Part};
use std::sync::Arc;
use tonic::{Status, Streaming};

/// A tree as an archive, each piece made when the one before was taken.
pub(super) async fn archive(
    sandbox: &Sandbox,
    path: &str,
) -> Result<impl Stream<Item = Result<ArchivePart, Status>> + Send + 'static, Status> {
    let path = SandboxPath::parse(path)?;
    let (root, top) = (Arc::clone(&sandbox.root), path.clone());
    let packer = blocking(move || archive::pack(&root, &top)).await?;
    Ok(stream::try_unfold((packer, path), |(mut packer, path)| async move {
        let piece = blocking(move || match packer.piece() {
            Ok(piece) => Ok(piece.map(|piece| (piece, (packer, path)))),
            Err(error) => Err(archive::failed(&path, &error)),
        });
        Ok(piece.await?.map(|(piece, state)| (ArchivePart { data: piece.into() }, state)))
    }))
}

/// Makes a tree of an archive that comes in parts. After an error, what was made before stays.
pub(super) async fn extract(
    sandbox: &Sandbox,
    mut parts: Streaming<ExtractPart>,
) -> Result<ExtractReply, Status> {
    let Some(Part::Start(ExtractStart { path, user })) = parts.message().await?.and_then(|part| part.part)
    else {
        return Err(Fail::invalid("an archive begins with the path that it goes to").into());
    };
    let path = SandboxPath::parse(&path)?;
    let (sandbox, top) = (sandbox.clone(), path.clone());
    let mut unpacker = blocking(move || {
        let owner = users::find(&sandbox.config, &sandbox.root, &user)?;
        archive::unpack(&sandbox.root, &top, &owner)
    })
    .await?;
    loop {
        let top = path.clone();
        match parts.message().await?.map(|part| part.part) {
            Some(Some(Part::Data(data))) => {
                unpacker = blocking(move || match unpacker.push(&data) {
                    Ok(()) => Ok(unpacker),
                    Err(error) => Err(archive::failed(&top, &error)),
                })
                .await?;
            }
            Some(Some(Part::Finish(Empty {}))) => {
                let made = blocking(move || unpacker.finish().map_err(|error| archive::failed(&top, &error)));
                let made = made.await?;
                return Ok(ExtractReply {
                    files: made.files,
                    directories: made.directories,
                    links: made.links,
                    bytes: made.bytes,
                });
            }
            Some(Some(Part::Start(_)) | None) => {
                return Err(Fail::invalid("an archive begins once").into());
            }
            None => {
                return Err(Fail::invalid("the archive ended early; what was unpacked before stays").into());
            }
        }
    }
}
