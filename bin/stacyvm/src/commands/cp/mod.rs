//! `stacyvm cp`: a file or a directory, into a sandbox, out of one, or from one to another.

pub(crate) mod local;
mod place;
mod progress;
mod tree;

use crate::{
    cli::Global,
    failure::{Failure, Result},
    output,
    remote::about_sandbox,
    signals::Signals,
};
use bytes::Bytes;
use clap::Args;
use futures::{Stream, StreamExt, stream};
use local::Target;
use place::Place;
use progress::Progress;
use stacyvm_client::{Client, Download, Error, Upload};
use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Copy files into or out of a sandbox
///
/// One side is ID:/path (a relative path starts at /workspace), the other one a local path or - for standard input or
/// output. A file of any size is streamed; permission bits are kept. The target is replaced in one step when all has
/// arrived, and stays as it is if the copy fails. A target that is a directory, or ends in /, takes the file's name. A
/// local name with a colon is written as ./name.
///
/// With -r a directory is copied, with modes, times and links: into the target if that is a directory already, else as the
/// target; SRC/. means what is in it. What is there stays unless it is replaced. The other side may be -: a tar archive on
/// standard input or output. What comes out of a sandbox is not trusted: nothing is written outside the target, set-user-ID
/// bits are dropped, and symbolic links that lead out of the directory are left out and named.
///
/// With --json: {"source", "target", "bytes"}, with -r also {"files", "directories", "links", "links_left_out"}.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  stacyvm cp data.csv sb-0123456789abcdef:/workspace/
  stacyvm cp sb-0123456789abcdef:/workspace/out.png .
  stacyvm cp sb-0123456789abcdef:log.txt - | grep error
  stacyvm cp -r src sb-0123456789abcdef:/workspace
  stacyvm cp -r sb-0123456789abcdef:/workspace/. results
  tar cz src | stacyvm cp -r - sb-0123456789abcdef:src")]
pub(crate) struct Cp {
    /// Copy a directory with everything in it
    #[arg(short, long)]
    recursive: bool,
    /// With -r: keep symbolic links that lead out of the directory
    #[arg(long, requires = "recursive")]
    all_links: bool,
    /// What to copy
    #[arg(value_name = "SRC")]
    source: String,
    /// Where to
    #[arg(value_name = "DST")]
    target: String,
}

impl Cp {
    pub(crate) async fn execute(&self, global: &Global) -> Result<()> {
        let mut signals = Signals::listen()?;
        tokio::select! {
            outcome = self.copy(global) => outcome,
            // Dropping the copy removes what was written so far.
            signal = signals.next() => Err(Failure::silent(u8::try_from(128 + signal).unwrap_or(1))),
        }
    }

    async fn copy(&self, global: &Global) -> Result<()> {
        let (source, target) = (Place::parse(&self.source)?, Place::parse(&self.target)?);
        if self.recursive {
            return tree::copy(self, &source, &target, global).await;
        }
        let progress =
            |size| if global.quiet || global.json { Progress::hidden() } else { Progress::new(size) };
        let (bytes, target) = match (&source, &target) {
            (Place::Sandbox { id, path }, Place::Local(local)) => {
                let client = global.client()?;
                let target = local::download_target(local, path)?;
                let bytes = download(&client, id, path, &target, progress).await?;
                (bytes, target.to_string())
            }
            (Place::Local(local), Place::Sandbox { id, path }) => {
                let client = global.client()?;
                let source = local::Source::open(local).await?;
                let path = remote_target(&client, id, path, source.name()).await?;
                let file = Upload { path: path.clone(), mode: source.mode(), size: source.size() };
                let bytes = upload(&client, id, &file, source.stream(), progress(file.size)).await?;
                (bytes, format!("{id}:{path}"))
            }
            (Place::Sandbox { id: from, path: source }, Place::Sandbox { id, path }) => {
                let client = global.client()?;
                let path = remote_target(&client, id, path, file_name(source)).await?;
                let (mode, stream) = open(&client, from, source).await?;
                let file = Upload { path: path.clone(), mode: Some(mode), size: stream.remaining() };
                let bytes = upload(&client, id, &file, pieces(stream), progress(file.size)).await?;
                (bytes, format!("{id}:{path}"))
            }
            (Place::Local(_), Place::Local(_)) => {
                return Err(Failure::usage("neither side is in a sandbox", "write ID:/path for one of them"));
            }
        };
        if global.json {
            let result = serde_json::json!({"source": self.source, "target": target, "bytes": bytes});
            // With the file on standard output there is no room for anything else.
            return if target == "-" { Ok(()) } else { output::json(&result) };
        }
        Ok(())
    }
}

/// Opens a file for reading, with its permission bits.
async fn open(client: &Client, id: &str, path: &str) -> Result<(u32, Download)> {
    let stat = match client.stat(id, path).await {
        Ok(stat) => stat,
        Err(error) => return Err(about_file(client, error, id).await),
    };
    if stat.is_dir {
        return Err(directory(&format!("{id}:{path}")));
    }
    let mode = u32::from_str_radix(&stat.mode, 8).unwrap_or(0o644) & 0o777;
    match client.download(id, path, 0).await {
        Ok(stream) => Ok((mode, stream)),
        Err(error) => Err(about_file(client, error, id).await),
    }
}

async fn download(
    client: &Client,
    id: &str,
    path: &str,
    target: &Target,
    progress: impl Fn(Option<u64>) -> Progress,
) -> Result<u64> {
    let (mode, mut stream) = open(client, id, path).await?;
    let progress = progress(stream.remaining());
    let mut writer = target.create().await?;
    let mut bytes = 0;
    while let Some(piece) = stream.next().await? {
        bytes += piece.len() as u64;
        progress.advance(piece.len() as u64);
        writer.write(piece).await?;
    }
    writer.finish(mode).await?;
    progress.finish();
    Ok(bytes)
}

async fn upload(
    client: &Client,
    id: &str,
    file: &Upload,
    content: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    progress: Progress,
) -> Result<u64> {
    let sent = Arc::new(AtomicU64::new(0));
    let (count, bar) = (Arc::clone(&sent), progress.clone());
    let content = content.inspect(move |piece| {
        if let Ok(piece) = piece {
            count.fetch_add(piece.len() as u64, Ordering::Relaxed);
            bar.advance(piece.len() as u64);
        }
    });
    let stored = match client.upload(id, file, content).await {
        Ok(stored) => stored,
        Err(error) => return Err(about_file(client, error, id).await),
    };
    let sent = sent.load(Ordering::Relaxed);
    if stored.size != sent {
        let what = format!("{} bytes were sent and {} arrived", sent, stored.size);
        return Err(Failure::new(what, "copy again; something else writes to the target"));
    }
    progress.finish();
    Ok(sent)
}

fn pieces(download: Download) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::try_unfold(download, |mut download| async move {
        let piece = download.next().await.map_err(io::Error::other)?;
        Ok(piece.map(|piece| (piece, download)))
    })
}

/// Where in a sandbox a file of this name goes: `path`, or below it when it is a directory.
async fn remote_target(client: &Client, id: &str, path: &str, name: Option<&str>) -> Result<String> {
    let below = |name: &str| format!("{}/{name}", path.trim_end_matches('/'));
    let directory = path.ends_with('/')
        || match client.stat(id, path).await {
            Ok(stat) => stat.is_dir,
            Err(error) if error.is_not_found() => false,
            Err(error) => return Err(about_file(client, error, id).await),
        };
    match (directory, name) {
        (false, _) => Ok(path.to_owned()),
        (true, Some(name)) => Ok(below(name)),
        (true, None) => {
            let what = format!("{id}:{path} is a directory, and what is copied has no name");
            Err(Failure::usage(what, "name the file to write"))
        }
    }
}

fn file_name(path: &str) -> Option<&str> {
    Path::new(path).file_name().and_then(|name| name.to_str())
}

fn directory(place: &str) -> Failure {
    Failure::new(format!("{place} is a directory"), "add -r to copy it with everything in it")
}

/// A failure about a file. Not found is the file or the sandbox: a look tells.
async fn about_file(client: &Client, error: Error, id: &str) -> Failure {
    match error {
        Error::Source(error) => Failure::new(format!("cannot read what is copied: {error}"), ""),
        error if error.is_not_found() && client.sandbox(id).await.is_err() => about_sandbox(error),
        error => error.into(),
    }
}
