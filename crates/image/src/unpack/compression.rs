//! How an archive is compressed is told by its first bytes, not by what its manifest says: tools disagree, bytes do not.

use flate2::bufread::MultiGzDecoder;
use stacyvm_provider::{Error, Result};
use std::io::{self, BufReader, Cursor, Read};

/// Largest window that a zstd frame may ask memory for, as a power of two: 128 MiB, the default of zstd's own tools.
const ZSTD_WINDOW: u32 = 27;
/// Bytes read at a time from below a decoder.
const BUFFER: usize = 256 << 10;

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// Tells it from the first bytes, of which six are enough.
    ///
    /// # Errors
    /// `Unsupported` for what other tools write and we do not read.
    pub(crate) fn of(start: &[u8]) -> Result<Self> {
        let other = |name: &str| {
            Err(Error::unsupported(format!(
                "archives compressed with {name} are not read: use gzip, zstd or none"
            )))
        };
        match start {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            // A frame, or one that is to be skipped, as writers of seekable files put in front.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Self::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => other("xz"),
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, ..] => other("bzip2"),
            _ => Ok(Self::None),
        }
    }
}

/// A reader that counts.
pub(crate) struct Counted<R> {
    inner: R,
    pub(crate) bytes: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.bytes += read as u64;
        Ok(read)
    }
}

/// The bytes that were looked at, then the others.
type Source<R> = io::Chain<Cursor<Vec<u8>>, Counted<R>>;

/// Decompressed bytes of an archive, by what it begins with.
pub(crate) enum Decoder<R: Read> {
    None(Box<Source<R>>),
    Gzip(Box<MultiGzDecoder<BufReader<Source<R>>>>),
    Zstd(Box<zstd::Decoder<'static, BufReader<Source<R>>>>),
}

impl<R: Read> Decoder<R> {
    /// Looks at the first bytes of `archive`.
    ///
    /// # Errors
    /// Those of [`Compression::of`], and of reading.
    pub(crate) fn new(mut archive: R) -> Result<Self> {
        let reading = |e| Error::invalid_argument(format!("the archive cannot be read: {e}")).because(e);
        let mut start = Vec::with_capacity(8);
        archive.by_ref().take(6).read_to_end(&mut start).map_err(reading)?;
        let compression = Compression::of(&start)?;
        let counted = Counted { bytes: start.len() as u64, inner: archive };
        let source = Cursor::new(start).chain(counted);
        Ok(match compression {
            Compression::None => Self::None(Box::new(source)),
            Compression::Gzip => {
                Self::Gzip(Box::new(MultiGzDecoder::new(BufReader::with_capacity(BUFFER, source))))
            }
            Compression::Zstd => {
                let buffered = BufReader::with_capacity(BUFFER, source);
                let mut decoder = zstd::Decoder::with_buffer(buffered).map_err(reading)?;
                decoder.window_log_max(ZSTD_WINDOW).map_err(reading)?;
                Self::Zstd(Box::new(decoder))
            }
        })
    }

    /// Compressed bytes that were read so far.
    pub(crate) fn taken(&self) -> u64 {
        match self {
            Self::None(source) => source.get_ref().1.bytes,
            Self::Gzip(decoder) => decoder.get_ref().get_ref().get_ref().1.bytes,
            Self::Zstd(decoder) => decoder.get_ref().get_ref().get_ref().1.bytes,
        }
    }

    /// What it decompresses.
    pub(crate) fn compression(&self) -> Compression {
        match self {
            Self::None(_) => Compression::None,
            Self::Gzip(_) => Compression::Gzip,
            Self::Zstd(_) => Compression::Zstd,
        }
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::None(source) => source.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unpack::testing::gzip;

    fn read(archive: &[u8]) -> Result<(Compression, Vec<u8>)> {
        let mut decoder = Decoder::new(archive)?;
        let mut bytes = Vec::new();
        decoder.read_to_end(&mut bytes).map_err(|e| Error::internal("read").because(e))?;
        assert_eq!(decoder.taken(), archive.len() as u64);
        Ok((decoder.compression(), bytes))
    }

    #[test]
    fn what_is_compressed_is_found_by_its_first_bytes() {
        assert_eq!(read(b"").unwrap(), (Compression::None, vec![]));
        assert_eq!(read(b"abc").unwrap(), (Compression::None, b"abc".to_vec()));
        assert_eq!(read(&gzip(b"text")).unwrap(), (Compression::Gzip, b"text".to_vec()));
        let zstd = zstd::encode_all(&b"text"[..], 1).unwrap();
        assert_eq!(read(&zstd).unwrap(), (Compression::Zstd, b"text".to_vec()));
        // Files that were put together of several, and one with a frame to skip in front.
        assert_eq!(read(&[gzip(b"a"), gzip(b"b")].concat()).unwrap().1, b"ab");
        let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9][..], &zstd, &zstd].concat();
        assert_eq!(read(&skipped).unwrap(), (Compression::Zstd, b"texttext".to_vec()));
    }

    #[test]
    fn what_others_compress_with_is_named() {
        for (start, name) in [(&b"\xfd7zXZ\0"[..], "xz"), (b"BZh91AY", "bzip2")] {
            let error = read(start).unwrap_err();
            assert!(error.message().contains(name), "{error}");
        }
    }

    #[test]
    fn what_is_cut_or_damaged_is_an_error() {
        let whole = gzip(&[7; 5000]);
        assert!(read(&whole[..whole.len() - 3]).is_err());
        let mut flipped = whole.clone();
        let last = flipped.len() - 5;
        flipped[last] ^= 1;
        assert!(read(&flipped).is_err(), "checksum");
        assert!(read(&[&whole[..], b"garbage behind"].concat()).is_err());
        let zstd = zstd::encode_all(&[7_u8; 5000][..], 1).unwrap();
        assert!(read(&zstd[..zstd.len() - 1]).is_err());
    }
}
