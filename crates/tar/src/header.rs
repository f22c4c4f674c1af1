//! One header block: fixed fields in ASCII or, for what does not fit, in binary.

use crate::BLOCK;
use std::ops::Range;

const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const KIND: usize = 156;
const LINK: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..263;
const PREFIX: Range<usize> = 345..500;
/// Of the old GNU format for sparse files: four pieces, whether a block with more follows, and the real size.
const GNU_PIECES: Range<usize> = 386..482;
const GNU_MORE: usize = 482;
const GNU_REAL_SIZE: Range<usize> = 483..495;
/// The same in a block that continues one: 21 pieces.
const MORE_PIECES: Range<usize> = 0..504;
const MORE_MORE: usize = 504;

/// A header whose checksum is right.
#[derive(Debug)]
pub struct Header([u8; BLOCK]);

/// Why a block is no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoHeader(pub &'static str);

impl Header {
    /// Reads a block.
    ///
    /// # Errors
    /// [`NoHeader`] says what is wrong with it.
    pub fn new(block: [u8; BLOCK]) -> Result<Self, NoHeader> {
        let stored = number(&block[CHECKSUM]).ok_or(NoHeader("its checksum is no number"))?;
        let (mut unsigned, mut signed) = (0_i64, 0_i64);
        for (at, byte) in block.iter().enumerate() {
            let byte = if CHECKSUM.contains(&at) { b' ' } else { *byte };
            unsigned += i64::from(byte);
            // Some old programs added them as signed numbers.
            signed += i64::from(byte.cast_signed());
        }
        if stored == unsigned || stored == signed {
            Ok(Self(block))
        } else {
            Err(NoHeader("its checksum is wrong"))
        }
    }

    /// What kind of entry, as a letter.
    pub fn kind(&self) -> u8 {
        self.0[KIND]
    }

    /// The path, in both halves that POSIX gave it.
    pub fn path(&self) -> Vec<u8> {
        let name = text(&self.0[NAME]);
        // GNU's own magic has a blank here, and keeps times where the prefix would be.
        let prefix = if &self.0[MAGIC] == b"ustar\0" { text(&self.0[PREFIX]) } else { b"" };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    /// What a link refers to.
    pub fn link(&self) -> Vec<u8> {
        text(&self.0[LINK]).to_vec()
    }

    /// Permission bits.
    pub fn mode(&self) -> Option<i64> {
        number(&self.0[MODE])
    }

    /// Owner.
    pub fn uid(&self) -> Option<i64> {
        number(&self.0[UID])
    }

    /// Group.
    pub fn gid(&self) -> Option<i64> {
        number(&self.0[GID])
    }

    /// Bytes of data behind the header.
    pub fn size(&self) -> Option<u64> {
        number(&self.0[SIZE]).and_then(|n| u64::try_from(n).ok())
    }

    /// Seconds since 1970.
    pub fn mtime(&self) -> Option<i64> {
        number(&self.0[MTIME])
    }

    /// Of a sparse file in the old GNU format: its real size.
    pub fn gnu_real_size(&self) -> Option<u64> {
        number(&self.0[GNU_REAL_SIZE]).and_then(|n| u64::try_from(n).ok())
    }

    /// Its pieces, and whether there are more in the block behind.
    pub fn gnu_pieces(&self) -> Option<(Vec<(u64, u64)>, bool)> {
        Some((pieces(&self.0[GNU_PIECES])?, self.0[GNU_MORE] != 0))
    }
}

/// Pieces in a block behind a header, and whether yet another follows.
pub fn more_pieces(block: &[u8; BLOCK]) -> Option<(Vec<(u64, u64)>, bool)> {
    Some((pieces(&block[MORE_PIECES])?, block[MORE_MORE] != 0))
}

/// Pairs of offset and length; one that begins with a zero byte ends them.
fn pieces(bytes: &[u8]) -> Option<Vec<(u64, u64)>> {
    let unsigned = |field| number(field).and_then(|n| u64::try_from(n).ok());
    bytes
        .chunks_exact(24)
        .take_while(|piece| piece[0] != 0)
        .map(|piece| Some((unsigned(&piece[..12])?, unsigned(&piece[12..])?)))
        .collect()
}

/// A text that ends at the first zero byte or fills its field.
fn text(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

/// A number: octal digits between blanks, or binary where the first bit is set. Nothing at all is zero.
fn number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let start = i128::from(first & 0x3f) - if negative { 0x40 } else { 0 };
        let value = rest
            .iter()
            .try_fold(start, |value, byte| value.checked_mul(256).map(|value| value + i128::from(*byte)))?;
        return i64::try_from(value).ok();
    }
    let digits = text(field).trim_ascii();
    digits.iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_every_form() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"77777777"), Some(0o77_777_777));
        assert_eq!(number(&[0; 8]), Some(0));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 0]), Some(256));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]), Some(-256));
        for wrong in [&b"9999\0"[..], b"-1\0", b"0x10", b"1 1\0"] {
            assert_eq!(number(wrong), None, "{wrong:?}");
        }
        let mut huge = [0xff; 12];
        huge[0] = 0xbf;
        assert_eq!(number(&huge), None);
    }

    #[test]
    fn a_header_is_believed_with_its_checksum_only() {
        let mut header = tar::Header::new_ustar();
        header.set_path("directory/file").unwrap();
        header.set_size(7);
        header.set_mode(0o4755);
        header.set_uid(1000);
        header.set_mtime(1 << 30);
        header.set_cksum();
        let block = *header.as_bytes();
        let read = Header::new(block).unwrap();
        assert_eq!((read.path(), read.size()), (b"directory/file".to_vec(), Some(7)));
        assert_eq!((read.mode(), read.uid(), read.mtime()), (Some(0o4755), Some(1000), Some(1 << 30)));
        let mut damaged = block;
        damaged[3] ^= 1;
        assert!(Header::new(damaged).is_err());
        assert!(Header::new([b'x'; BLOCK]).is_err());
    }

    #[test]
    fn a_long_path_is_in_two_halves() {
        let path = format!("{}/{}", "d".repeat(120), "f".repeat(90));
        let mut header = tar::Header::new_ustar();
        header.set_path(&path).unwrap();
        header.set_cksum();
        assert_eq!(Header::new(*header.as_bytes()).unwrap().path(), path.as_bytes());
    }
}
