//! Reading a file in pieces, as long as it is the file that was announced.

use super::{
    info,
    path::SandboxPath,
    resolve::{Root, is_kernel_view},
};
use crate::fail::{Fail, Result};
use bytes::{Bytes, BytesMut};
use rustix::{
    fs::{FileType, Mode, OFlags, fstat},
    io::{Errno, pread},
};
use stacyvm_guest::{limits, proto::FileInfo};
use std::os::fd::OwnedFd;

/// A regular file that is being read.
#[derive(Debug)]
pub(crate) struct Reader {
    file: OwnedFd,
    path: String,
    position: u64,
    left: u64,
}

/// Opens `path` for `length` bytes from `offset` on; a length of 0 means to the end.
///
/// # Errors
/// `NotFound`; `InvalidArgument` for anything but a regular file.
pub(crate) fn open(root: &Root, path: &SandboxPath, offset: u64, length: u64) -> Result<(FileInfo, Reader)> {
    let fail = |errno| Fail::errno(path.as_str(), errno);
    // Looked at before it is opened: opening a device can have effects.
    regular(&root.open(path, OFlags::PATH, Mode::empty()).map_err(fail)?, path)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = root.open(path, flags, Mode::empty()).map_err(fail)?;
    // And again, as it may be another one now.
    let stat = regular(&file, path)?;
    if is_kernel_view(&file).map_err(fail)? {
        let message =
            format!("{} is a file of the kernel, without a size; read it with a command", path.as_str());
        return Err(Fail::invalid(message));
    }
    let info = info::from_stat(path.as_str().to_owned(), &stat, String::new());
    let available = info.size.saturating_sub(offset);
    let left = if length == 0 { available } else { available.min(length) };
    Ok((info, Reader { file, path: path.as_str().to_owned(), position: offset, left }))
}

fn regular(file: &OwnedFd, path: &SandboxPath) -> Result<rustix::fs::Stat> {
    let stat = fstat(file).map_err(|errno| Fail::errno(path.as_str(), errno))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(stat),
        FileType::Directory => Err(Fail::errno(path.as_str(), Errno::ISDIR)),
        _ => Err(Fail::invalid(format!("{} is not a regular file", path.as_str()))),
    }
}

impl Reader {
    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// `Internal` when the file has become shorter, and the kernel's.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(limits::CHUNK_BYTES);
        if wanted == 0 {
            return Ok(None);
        }
        let mut piece = BytesMut::zeroed(wanted);
        let read = loop {
            match pread(&self.file, &mut piece[..], self.position) {
                Err(Errno::INTR) => {}
                result => break result.map_err(|errno| Fail::errno(&self.path, errno))?,
            }
        };
        if read == 0 {
            return Err(Fail::internal(format!("{} became shorter while it was read", self.path)));
        }
        piece.truncate(read);
        self.position += read as u64;
        self.left -= read as u64;
        Ok(Some(piece.freeze()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, mknodat};
    use std::fs;
    use tonic::Code;

    fn content(root: &Root, offset: u64, length: u64) -> Result<Vec<u8>> {
        let (_, mut reader) = open(root, &SandboxPath::parse("/file").unwrap(), offset, length)?;
        let mut all = Vec::new();
        while let Some(piece) = reader.next()? {
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }

    #[test]
    fn ranges_are_exact() {
        let directory = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..=255u8).cycle().take(3 * limits::CHUNK_BYTES + 7).collect();
        fs::write(directory.path().join("file"), &bytes).unwrap();
        let root = Root::new(Some(directory.path())).unwrap();
        assert_eq!(content(&root, 0, 0).unwrap(), bytes);
        assert_eq!(content(&root, 5, 10).unwrap(), bytes[5..15]);
        assert_eq!(content(&root, bytes.len() as u64 - 3, 100).unwrap(), bytes[bytes.len() - 3..]);
        assert!(content(&root, u64::MAX, 100).unwrap().is_empty());
    }

    #[test]
    fn a_file_that_shrinks_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("file"), vec![1; 2 * limits::CHUNK_BYTES]).unwrap();
        let root = Root::new(Some(directory.path())).unwrap();
        let (_, mut reader) = open(&root, &SandboxPath::parse("/file").unwrap(), 0, 0).unwrap();
        reader.next().unwrap();
        fs::write(directory.path().join("file"), "short").unwrap();
        assert_eq!(reader.next().unwrap_err().code(), Code::Internal);
    }

    #[test]
    fn only_regular_files_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(Some(directory.path())).unwrap();
        let code = |path: &str| open(&root, &SandboxPath::parse(path).unwrap(), 0, 0).unwrap_err().code();
        assert_eq!(code("/"), Code::InvalidArgument);
        assert_eq!(code("/none"), Code::NotFound);
        fs::write(directory.path().join("file"), "").unwrap();
        assert_eq!(code("/file/below"), Code::NotFound);
        mknodat(CWD, directory.path().join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        assert_eq!(code("/fifo"), Code::InvalidArgument);
        let proc = Root::new(Some(std::path::Path::new("/proc"))).unwrap();
        let fail = open(&proc, &SandboxPath::parse("/self/status").unwrap(), 0, 0).unwrap_err();
        assert!(fail.message().contains("command"), "{fail:?}");
    }
}
