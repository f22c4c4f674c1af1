//! `stacyvm cp -r`: directories as tar archives on their way.
//!
//! What a sandbox sends is taken for hostile: the same code unpacks it here as unpacks what we send there, and here without
//! any bits that change the user and, unless asked for, without links that lead out of the directory.

use super::{Cp, Target, about_file, local, pieces, place::Place, progress::Progress};
use crate::{
    cli::Global,
    failure::{Failure, Result},
    output,
};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use rustix::{
    fs::{FileType, Mode, OFlags},
    io::Errno,
};
use stacyvm_client::Client;
use stacyvm_tar::{Links, Options, Packer, Summary, Unpacker, Walk, open_directory, shown};
use stacyvm_types::ExtractedArchive;
use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

/// Bytes that an entry takes in an archive beside its data, mostly.
const HEADERS: u64 = 3 * 512;
/// Links that are named when they are left out.
const NAMED: usize = 10;

/// What was copied.
struct Copied {
    target: String,
    files: u64,
    directories: u64,
    links: u64,
    bytes: u64,
    left_out: u64,
}

pub(super) async fn copy(cp: &Cp, source: &Place, target: &Place, global: &Global) -> Result<()> {
    let client = global.client()?;
    let quiet = global.quiet || global.json;
    let copied = match (source, target) {
        (Place::Local(from), Place::Sandbox { id, path }) => {
            let (content, size): (BoxContent, _) = if from == "-" {
                (local::Source::open(from).await?.stream().boxed(), None)
            } else {
                let top = open(Path::new(from))?;
                let size = if quiet { None } else { Some(size(open(Path::new(from))?).await?) };
                (packed(top).boxed(), size)
            };
            let name = if from == "-" { None } else { name_of(from) };
            let path = remote_target(&client, id, path, name.as_deref()).await?;
            send(&client, id, path, content, bar(quiet, size)).await?
        }
        (Place::Sandbox { id, path }, Place::Local(to)) => {
            let name = remote_name(&client, id, path).await?;
            let size = if quiet {
                None
            } else {
                client
                    .disk_usage(id, path)
                    .await
                    .ok()
                    .map(|u| u.apparent_bytes + HEADERS * (u.files + u.directories))
            };
            let progress = bar(quiet, size);
            if to == "-" {
                return print(&client, id, path).await;
            }
            let (to, top, new) = local_target(to, name.as_deref())?;
            let links = if cp.all_links { Links::AsTheyAre } else { Links::WithinOnly };
            let made = fetch(&client, id, path, top, new, links, &progress).await?;
            progress.finish();
            tell_left_out(&made, global);
            Copied {
                target: to.display().to_string(),
                files: made.files,
                directories: made.directories,
                links: made.links,
                bytes: made.bytes,
                left_out: made.left_out,
            }
        }
        (Place::Sandbox { id: from, path: source }, Place::Sandbox { id, path }) => {
            let name = remote_name(&client, from, source).await?;
            let content = match client.archive(from, source).await {
                Ok(content) => pieces(content).boxed(),
                Err(error) => return Err(about_file(&client, error, from).await),
            };
            let path = remote_target(&client, id, path, name.as_deref()).await?;
            send(&client, id, path, content, bar(quiet, None)).await?
        }
        (Place::Local(_), Place::Local(_)) => {
            return Err(Failure::usage("neither side is in a sandbox", "write ID:/path for one of them"));
        }
    };
    if !global.json {
        return Ok(());
    }
    output::json(&serde_json::json!({
        "source": cp.source, "target": copied.target, "bytes": copied.bytes, "files": copied.files,
        "directories": copied.directories, "links": copied.links, "links_left_out": copied.left_out,
    }))
}

type BoxContent = stream::BoxStream<'static, io::Result<Bytes>>;

fn bar(quiet: bool, size: Option<u64>) -> Progress {
    if quiet { Progress::hidden() } else { Progress::new(size) }
}

/// The name that a directory takes along; `None` where its content is meant.
fn name_of(path: &str) -> Option<String> {
    let content = path == "." || path.ends_with("/.") || path.ends_with("/..") || path == "..";
    let name = Path::new(path).file_name().filter(|_| !content)?;
    Some(name.to_string_lossy().into_owned())
}

/// The same of a directory in a sandbox, which must be one.
async fn remote_name(client: &Client, id: &str, path: &str) -> Result<Option<String>> {
    match client.stat(id, path).await {
        Ok(stat) if stat.is_dir => Ok(name_of(path)),
        // A link may lead to a directory, and what it leads to decides.
        Ok(stat) if stat.kind.is_some() => Ok(name_of(path)),
        Ok(_) => Err(Failure::new(format!("{id}:{path} is a file"), "copy it without -r")),
        Err(error) => Err(about_file(client, error, id).await),
    }
}

/// Where in a sandbox a directory of this name goes: as `path`, or into it when it is there.
async fn remote_target(client: &Client, id: &str, path: &str, name: Option<&str>) -> Result<String> {
    let there = match client.stat(id, path).await {
        Ok(stat) if !stat.is_dir && stat.kind.is_none() => {
            return Err(Failure::new(format!("{id}:{path} is a file"), "name a directory"));
        }
        Ok(_) => true,
        Err(error) if error.is_not_found() => path.ends_with('/'),
        Err(error) => return Err(about_file(client, error, id).await),
    };
    Ok(match name.filter(|_| there) {
        Some(name) => format!("{}/{name}", path.trim_end_matches('/')),
        None => path.to_owned(),
    })
}

/// The same on this machine. The directory is made if it is missing, and then it is new. A link that was named is followed;
/// one in the place of a name that we add is not: whoever made it may have been the sandbox, or somebody else.
fn local_target(to: &str, name: Option<&str>) -> Result<(PathBuf, OwnedFd, bool)> {
    let mut path = PathBuf::from(to);
    let Some(name) = name.filter(|_| path.is_dir()) else {
        return match fs::create_dir(&path) {
            Ok(()) => Ok((path.clone(), open(&path)?, true)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {
                Ok((path.clone(), open(&path)?, false))
            }
            Err(error) => Err(Failure::new(format!("cannot make {}: {error}", path.display()), "")),
        };
    };
    let top = open(&path)?;
    path.push(name);
    let new = match rustix::fs::mkdirat(&top, name, Mode::from_raw_mode(0o777)) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(errno) => return Err(Failure::new(format!("cannot make {}: {errno}", path.display()), "")),
    };
    match open_directory(&top, name) {
        Ok(directory) => Ok((path, directory, new)),
        Err(Errno::LOOP) => Err(Failure::new(
            format!("{} is a symbolic link, which is not followed", path.display()),
            "remove it, or name the directory that it leads to",
        )),
        Err(errno) => Err(Failure::new(format!("cannot write to {}: {errno}", path.display()), "")),
    }
}

fn open(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| {
        let fix = if errno == rustix::io::Errno::NOTDIR { "copy a file without -r" } else { "" };
        Failure::new(format!("cannot read {}: {errno}", path.display()), fix)
    })
}

/// About how many bytes the archive of a directory has.
async fn size(top: OwnedFd) -> Result<u64> {
    let sum = move || {
        let (mut walk, mut sum) = (Walk::new(top)?, HEADERS);
        while let Some(found) = walk.step()? {
            sum += HEADERS;
            if FileType::from_raw_mode(found.stat.st_mode) == FileType::RegularFile {
                sum += u64::try_from(found.stat.st_size).unwrap_or(0).next_multiple_of(512);
            }
            if let Some(directory) = found.directory {
                walk.enter(directory)?;
            }
        }
        Ok(sum)
    };
    local::blocking(move || {
        sum().map_err(|error: stacyvm_tar::Error| Failure::new(format!("cannot read {error}"), ""))
    })
    .await
}

/// The archive of a directory.
fn packed(top: OwnedFd) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let packer = Packer::directory(top, |_| true).map_err(io::Error::other);
    let pieces = |packer| {
        stream::try_unfold(packer, |mut packer: Packer| async move {
            let work = move || packer.piece().map(|piece| piece.map(|piece| (Bytes::from(piece), packer)));
            tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?.map_err(io::Error::other)
        })
    };
    stream::once(async move { packer })
        .map(move |packer| match packer {
            Ok(packer) => pieces(packer).boxed(),
            Err(error) => stream::iter([Err(error)]).boxed(),
        })
        .flatten()
}

async fn send(
    client: &Client,
    id: &str,
    path: String,
    content: BoxContent,
    progress: Progress,
) -> Result<Copied> {
    let bar = progress.clone();
    let content = content.inspect(move |piece| {
        if let Ok(piece) = piece {
            bar.advance(piece.len() as u64);
        }
    });
    let made: ExtractedArchive = match client.upload_archive(id, &path, content).await {
        Ok(made) => made,
        Err(error) => return Err(about_file(client, error, id).await),
    };
    progress.finish();
    Ok(Copied {
        target: format!("{id}:{path}"),
        files: made.files,
        directories: made.directories,
        links: made.links,
        bytes: made.bytes,
        left_out: 0,
    })
}

/// Unpacks what a sandbox sends below `top`.
async fn fetch(
    client: &Client,
    id: &str,
    path: &str,
    top: OwnedFd,
    new: bool,
    links: Links,
    progress: &Progress,
) -> Result<Summary> {
    let mut content = match client.archive(id, path).await {
        Ok(content) => content,
        Err(error) => return Err(about_file(client, error, id).await),
    };
    let options = Options { owner: None, mode_mask: 0o777, links, takes: |_| true };
    let mut unpacker = Unpacker::new(top, new, options);
    let failed = |error: stacyvm_tar::Error| {
        Failure::new(
            format!("cannot unpack what the sandbox sent: {error}"),
            "what was unpacked before stays",
        )
    };
    while let Some(piece) = content.next().await? {
        progress.advance(piece.len() as u64);
        unpacker.push(&piece).map_err(failed)?;
    }
    unpacker.finish().map_err(failed)
}

/// Writes the archive to standard output, as it comes.
async fn print(client: &Client, id: &str, path: &str) -> Result<()> {
    let mut content = match client.archive(id, path).await {
        Ok(content) => content,
        Err(error) => return Err(about_file(client, error, id).await),
    };
    let mut writer = Target::Stdout.create().await?;
    while let Some(piece) = content.next().await? {
        writer.write(piece).await?;
    }
    Ok(())
}

fn tell_left_out(made: &Summary, global: &Global) {
    if global.quiet || made.left_out == 0 {
        return;
    }
    for path in made.left_out_paths.iter().take(NAMED) {
        output::note(format_args!("left out: the link {} leads out of the directory", shown(path)));
    }
    if made.left_out > NAMED as u64 {
        output::note(format_args!("left out: {} more such links", made.left_out - NAMED as u64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_taken_along() {
        for (path, name) in [
            ("src", Some("src")),
            ("a/src/", Some("src")),
            ("/workspace/src", Some("src")),
            (".", None),
            ("src/.", None),
            ("..", None),
            ("a/..", None),
            ("/", None),
        ] {
            assert_eq!(name_of(path).as_deref(), name, "{path}");
        }
    }

    #[test]
    fn a_directory_goes_into_one_that_is_there() {
        let home = tempfile::tempdir().unwrap();
        let text = home.path().to_str().unwrap();
        let target = |to: &str, name| local_target(to, name).map(|(path, _, new)| (path, new));
        assert_eq!(target(text, Some("src")).unwrap(), (home.path().join("src"), true));
        assert_eq!(target(text, Some("src")).unwrap(), (home.path().join("src"), false));
        assert_eq!(target(text, None).unwrap(), (home.path().to_owned(), false));
        let other = format!("{text}/other");
        assert_eq!(target(&other, Some("src")).unwrap(), (home.path().join("other"), true));
        std::os::unix::fs::symlink("/etc", home.path().join("link")).unwrap();
        let refused = local_target(text, Some("link")).unwrap_err();
        assert!(refused.what.contains("symbolic link"), "{refused:?}");
        // One that was named is meant.
        let named = format!("{text}/here");
        std::os::unix::fs::symlink("other", &named).unwrap();
        assert_eq!(target(&named, None).unwrap(), (home.path().join("here"), false));
        fs::write(home.path().join("file"), "").unwrap();
        assert!(local_target(&format!("{text}/file"), Some("src")).is_err());
        assert!(local_target(&format!("{text}/none/below"), Some("src")).is_err());
    }
}
