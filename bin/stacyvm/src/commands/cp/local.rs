//! The local side of a copy: files, directories as targets, standard input and output.

use super::directory;
use crate::failure::{Failure, Result};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use std::{
    fmt, fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};
use tempfile::NamedTempFile;
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;

/// Bytes read at once.
const PIECE: usize = 256 << 10;

/// What is read.
pub(crate) struct Source {
    reader: Box<dyn AsyncRead + Send + Unpin>,
    name: Option<String>,
    mode: Option<u32>,
    size: Option<u64>,
}

impl Source {
    /// Opens a file, or standard input for `-`.
    pub(crate) async fn open(path: &str) -> Result<Self> {
        if path == "-" {
            return Ok(Self { reader: Box::new(tokio::io::stdin()), name: None, mode: None, size: None });
        }
        let failed = |error: &io::Error| Failure::new(format!("cannot read {path}: {error}"), "");
        let file = tokio::fs::File::open(path).await.map_err(|e| failed(&e))?;
        let metadata = file.metadata().await.map_err(|e| failed(&e))?;
        if metadata.is_dir() {
            return Err(directory(path));
        }
        // A pipe or device has no size that means anything.
        let size = metadata.is_file().then_some(metadata.len());
        let name = Path::new(path).file_name().and_then(|name| name.to_str()).map(str::to_owned);
        Ok(Self { reader: Box::new(file), name, mode: Some(metadata.permissions().mode() & 0o777), size })
    }

    /// Its name, when it has one.
    pub(crate) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Its permission bits.
    pub(crate) fn mode(&self) -> Option<u32> {
        self.mode
    }

    /// How many bytes it has, for a regular file.
    pub(crate) fn size(&self) -> Option<u64> {
        self.size
    }

    /// Its content. A file that shrinks meanwhile is an error; what is added to it meanwhile is left out.
    pub(crate) fn stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let pieces = ReaderStream::with_capacity(self.reader, PIECE);
        stream::unfold((pieces, self.size, false), |(mut pieces, left, over)| async move {
            if over || left == Some(0) {
                return None;
            }
            let piece = match pieces.next().await {
                None if left.is_some_and(|left| left > 0) => {
                    Err(io::Error::other("it became shorter meanwhile"))
                }
                None => return None,
                Some(piece) => piece,
            };
            let piece = piece.map(|mut piece| {
                piece.truncate(left.map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX)));
                piece
            });
            let left = left.map(|left| left - piece.as_ref().map_or(0, |piece| piece.len() as u64));
            let over = piece.is_err();
            Some((piece, (pieces, left, over)))
        })
    }
}

/// Where a download goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// Standard output.
    Stdout,
    /// A file that is made or replaced.
    File(PathBuf),
    /// Something that is written to as it is: a device, a pipe.
    Special(PathBuf),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("-"),
            Self::File(path) | Self::Special(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Where a file named `remote` goes when `local` was asked for.
pub(crate) fn download_target(local: &str, remote: &str) -> Result<Target> {
    if local == "-" {
        return Ok(Target::Stdout);
    }
    let mut path = PathBuf::from(local);
    if local.ends_with('/') || path.is_dir() {
        if !path.is_dir() {
            return Err(Failure::new(format!("there is no directory {local}"), "make it first"));
        }
        // The name comes from our own command line, yet a path that ends in `..` must not lead out of the directory.
        let name = Path::new(remote).file_name();
        path.push(
            name.ok_or_else(|| Failure::usage(format!("{remote} has no file name"), "name the local file"))?,
        );
    }
    // A link is written through, as cp does: what it leads to is replaced.
    let path = fs::canonicalize(&path).unwrap_or(path);
    match fs::metadata(&path) {
        Ok(metadata) if metadata.is_dir() => {
            Err(Failure::new(format!("{} is a directory", path.display()), "name a file in it"))
        }
        Ok(metadata) if !metadata.is_file() => Ok(Target::Special(path)),
        _ => Ok(Target::File(path)),
    }
}

/// A download being written.
pub(crate) enum Writer {
    /// Standard output.
    Stdout,
    /// A temporary file next to the target.
    File(NamedTempFile, PathBuf),
    /// The target itself.
    Special(fs::File, PathBuf),
}

impl Target {
    /// Starts to write.
    pub(crate) async fn create(&self) -> Result<Writer> {
        let target = self.clone();
        blocking(move || match target {
            Self::Stdout => Ok(Writer::Stdout),
            Self::File(path) => {
                let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
                match NamedTempFile::with_prefix_in(".stacyvm-", parent) {
                    Ok(file) => Ok(Writer::File(file, path)),
                    Err(error) => Err(failed(&path, &error)),
                }
            }
            Self::Special(path) => match fs::OpenOptions::new().write(true).open(&path) {
                Ok(file) => Ok(Writer::Special(file, path)),
                Err(error) => Err(failed(&path, &error)),
            },
        })
        .await
    }
}

impl Writer {
    /// Adds a piece.
    pub(crate) async fn write(&mut self, piece: Bytes) -> Result<()> {
        use io::Write;
        // The page cache takes a piece at once; a device, a pipe or a full disk queue is what standard output is for.
        match self {
            Self::Stdout => {
                Ok(crate::stdio::Sink::Streams.write(stacyvm_types::StreamName::Stdout, piece).await?)
            }
            Self::File(file, path) => file.write_all(&piece).map_err(|e| failed(path, &e)),
            Self::Special(file, path) => file.write_all(&piece).map_err(|e| failed(path, &e)),
        }
    }

    /// All has arrived: the file takes its place.
    pub(crate) async fn finish(self, mode: u32) -> Result<()> {
        blocking(move || match self {
            Self::File(file, path) => {
                let mode = fs::Permissions::from_mode(mode);
                file.as_file().set_permissions(mode).map_err(|e| failed(&path, &e))?;
                file.persist(&path).map_err(|e| failed(&path, &e.error))?;
                Ok(())
            }
            Self::Stdout | Self::Special(..) => Ok(()),
        })
        .await
    }
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("cannot write {}: {error}", path.display()), "")
}

/// Runs what may take its time on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(Failure::new(format!("a helper thread failed: {e}"), "")))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn content(path: &Path) -> io::Result<Vec<u8>> {
        let source = Source::open(path.to_str().unwrap()).await.unwrap();
        let mut stream = Box::pin(source.stream());
        let mut all = Vec::new();
        while let Some(piece) = stream.next().await {
            all.extend_from_slice(&piece?);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn files_are_read_as_long_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, vec![7; PIECE + 1]).unwrap();
        assert_eq!(content(&path).await.unwrap().len(), PIECE + 1);

        let source = Source::open(path.to_str().unwrap()).await.unwrap();
        fs::write(&path, vec![8; PIECE + 100]).unwrap();
        let pieces: Vec<_> = source.stream().collect().await;
        assert_eq!(pieces.iter().map(|p| p.as_ref().unwrap().len()).sum::<usize>(), PIECE + 1);

        let source = Source::open(path.to_str().unwrap()).await.unwrap();
        fs::write(&path, b"short").unwrap();
        let pieces: Vec<_> = source.stream().collect().await;
        assert!(pieces.last().unwrap().is_err());
    }

    #[tokio::test]
    async fn an_unfinished_download_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, b"old").unwrap();
        let target = download_target(path.to_str().unwrap(), "/x").unwrap();
        let mut writer = target.create().await.unwrap();
        writer.write(Bytes::from_static(b"new")).await.unwrap();
        drop(writer);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

        let mut writer = target.create().await.unwrap();
        writer.write(Bytes::from_static(b"new")).await.unwrap();
        writer.finish(0o741).await.unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o741);
    }

    #[test]
    fn targets() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let text = root.to_str().unwrap();
        assert_eq!(download_target(text, "/w/a.txt").unwrap(), Target::File(root.join("a.txt")));
        assert_eq!(download_target(&format!("{text}/new"), "/w/a").unwrap(), Target::File(root.join("new")));
        assert_eq!(download_target("/dev/null", "/w/a").unwrap(), Target::Special("/dev/null".into()));
        assert_eq!(download_target("-", "/w/a").unwrap(), Target::Stdout);
        assert!(download_target(&format!("{text}/none/"), "/w/a").is_err());
        assert!(download_target(text, "/w/..").is_err());
        fs::create_dir(root.join("a.txt")).unwrap();
        assert!(download_target(text, "/w/a.txt").is_err());
        std::os::unix::fs::symlink(root.join("real"), root.join("link")).unwrap();
        fs::write(root.join("real"), b"x").unwrap();
        assert_eq!(
            download_target(&format!("{text}/link"), "/w/a").unwrap(),
            Target::File(root.join("real"))
        );
    }
}
