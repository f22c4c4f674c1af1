//! Files with holes: which pieces of them an archive holds.

use super::{
    Limits,
    blocks::{BLOCK, Blocks, truncated},
    exceeded, refused,
};
use stacyvm_provider::Result;
use stacyvm_tar::{Header, more_pieces};

/// Bytes of memory that a piece takes.
const PIECE: usize = size_of::<(u64, u64)>();

/// Where the data of a file belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Map {
    /// Length of the file, holes included.
    pub(crate) size: u64,
    /// Offset and length of what is not a hole, in order.
    pub(crate) pieces: Vec<(u64, u64)>,
}

impl Map {
    /// Takes pieces that are in order and within the file, and together as long as the data that is stored.
    fn checked(path: &[u8], size: u64, mut pieces: Vec<(u64, u64)>, stored: u64) -> Result<Self> {
        let mut end = 0;
        let mut sum = 0_u64;
        for (offset, length) in &pieces {
            let after = offset.checked_add(*length).filter(|after| *offset >= end && *after <= size);
            end = after
                .ok_or_else(|| refused(path, "has pieces of a sparse file that overlap or exceed it"))?;
            sum = sum.saturating_add(*length);
        }
        if sum != stored {
            return Err(refused(path, "has pieces of a sparse file of another length than its data"));
        }
        pieces.retain(|(_, length)| *length > 0);
        Ok(Self { size, pieces })
    }
}

fn too_many(path: &[u8]) -> stacyvm_provider::Error {
    exceeded(path, "is a sparse file of too many pieces")
}

/// The map of a sparse file in the old GNU format, of which more blocks may follow the header.
pub(super) fn gnu(
    blocks: &mut impl Blocks,
    header: &Header,
    path: &[u8],
    stored: u64,
    limits: &Limits,
) -> Result<Map> {
    let damaged = || refused(path, "has a damaged map of a sparse file");
    let size = header.gnu_real_size().ok_or_else(damaged)?;
    let (mut pieces, mut more) = header.gnu_pieces().ok_or_else(damaged)?;
    while more {
        if pieces.len() * PIECE > limits.extension_bytes {
            return Err(too_many(path));
        }
        let block = blocks.block()?.ok_or_else(truncated)?;
        let (next, after) = more_pieces(&block).ok_or_else(damaged)?;
        if next.is_empty() {
            return Err(damaged());
        }
        pieces.extend(next);
        more = after;
    }
    Map::checked(path, size, pieces, stored)
}

/// The map in front of a file's data, as GNU tar writes it with extended headers: decimal numbers, one a line, filled up
/// to a block. Returns it with the bytes of data that it took.
pub(super) fn pax(
    blocks: &mut impl Blocks,
    path: &[u8],
    size: u64,
    stored: u64,
    limits: &Limits,
) -> Result<(Map, u64)> {
    let damaged = || refused(path, "has a damaged map of a sparse file");
    let mut taken = 0;
    let mut numbers: Vec<u64> = Vec::new();
    let mut number: Option<u64> = None;
    let mut wanted: Option<u64> = None;
    while wanted.is_none_or(|wanted| (numbers.len() as u64) < wanted) {
        if taken + BLOCK as u64 > stored {
            return Err(damaged());
        }
        if numbers.len() * PIECE / 2 > limits.extension_bytes {
            return Err(too_many(path));
        }
        let block = blocks.block()?.ok_or_else(truncated)?;
        taken += BLOCK as u64;
        for byte in block {
            match byte {
                b'0'..=b'9' => {
                    let digit = u64::from(byte - b'0');
                    let value = number.unwrap_or(0).checked_mul(10).and_then(|n| n.checked_add(digit));
                    number = Some(value.ok_or_else(damaged)?);
                }
                b'\n' => {
                    let value = number.take().ok_or_else(damaged)?;
                    match wanted {
                        None => wanted = Some(value.checked_mul(2).ok_or_else(damaged)?),
                        Some(_) => numbers.push(value),
                    }
                    if wanted == Some(numbers.len() as u64) {
                        break;
                    }
                }
                _ => return Err(damaged()),
            }
        }
    }
    let pieces = numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
    Ok((Map::checked(path, size, pieces, stored - taken)?, taken))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unpack::blocks::FileBlocks;
    use std::io::Write;

    fn read(text: &str, size: u64, stored: u64) -> Result<(Map, u64)> {
        let mut file = tempfile::tempfile().unwrap();
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        file.write_all(&bytes).unwrap();
        pax(&mut FileBlocks::new(&file).unwrap(), b"f", size, stored, &Limits::default())
    }

    #[test]
    fn a_map_in_front_of_the_data() {
        let (map, taken) = read("2\n0\n10\n4096\n6\n", 8192, 512 + 16).unwrap();
        assert_eq!((map.size, map.pieces, taken), (8192, vec![(0, 10), (4096, 6)], 512));
        let (map, _) = read("1\n8192\n0\n", 8192, 512).unwrap();
        assert!(map.pieces.is_empty());
        let (map, _) = read("0\n", 5, 512).unwrap();
        assert_eq!(map.size, 5);
        // More numbers than fit into a block.
        let many: String = (0..200).map(|n| format!("{}\n1\n", n * 2)).collect();
        let text = format!("200\n{many}");
        let blocks = text.len().next_multiple_of(BLOCK) as u64;
        assert_eq!(read(&text, 400, blocks + 200).unwrap().0.pieces.len(), 200);
    }

    #[test]
    fn maps_that_lie_are_refused() {
        for (text, size, stored) in [
            ("2\n0\n10\n5\n6\n", 8192, 512 + 16),
            ("1\n0\n10\n", 5, 512 + 10),
            ("1\n0\n10\n", 50, 512 + 11),
            ("1\n18446744073709551615\n10\n", 50, 512 + 10),
            ("1\n99999999999999999999\n1\n", 50, 512 + 1),
            ("9223372036854775808\n", 50, 512),
            ("1\nx\n", 50, 512),
            ("1\n\n1\n", 50, 512),
            ("1\n0\n10\n", 50, 100),
            ("5\n0\n1\n", 50, 512),
        ] {
            assert!(read(text, size, stored).is_err(), "{text:?}");
        }
    }
}
