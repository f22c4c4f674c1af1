//! The console of a sandbox: what its agent wrote to its log, the one file that it can write to outside.

use rustix::fs::{Mode, OFlags};
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

/// The last `most` bytes of a log, and whether there are more before them.
pub(crate) fn tail(path: &Path, most: usize) -> io::Result<(Vec<u8>, bool)> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let start = file.metadata()?.len().saturating_sub(most as u64);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    // It may grow meanwhile.
    file.take(most as u64).read_to_end(&mut bytes)?;
    Ok((bytes, start > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_read_and_no_more() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("agent.log");
        assert!(tail(&path, 9).is_err());
        std::fs::write(&path, "0123456789").unwrap();
        assert_eq!(tail(&path, 4).unwrap(), (b"6789".to_vec(), true));
        assert_eq!(tail(&path, 10).unwrap(), (b"0123456789".to_vec(), false));
    }
}
