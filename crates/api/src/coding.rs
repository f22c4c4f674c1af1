//! Compression of archives on their way, in bounded memory both ways: whatever a client sends, one piece of its content
//! exists decompressed at a time.

use bytes::Bytes;
use flate2::{Compression, Decompress, FlushDecompress, Status, write::GzEncoder};
use futures::{StreamExt, stream};
use stacyvm_provider::{ByteStream, Error, Result};
use std::io::Write;
use tokio::sync::{Semaphore, SemaphorePermit};
use zstd::stream::raw::{DParameter, Decoder as ZstdDecoder, Operation as _};

/// Largest decompressed piece.
const PIECE: usize = 128 << 10;
/// Largest window that a zstd frame may ask memory for, as a power of two: 8 MiB, which every level up to 19 keeps to.
const ZSTD_WINDOW: u32 = 23;
/// Such windows at once, so that together they take half a gibibyte at most.
static WINDOWS: Semaphore = Semaphore::const_new(64);
/// A trade of time for size that suits a network.
const ZSTD_LEVEL: i32 = 3;

/// A way to compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    Gzip,
    Zstd,
}

impl Coding {
    /// By its name in `Content-Encoding` and `Accept-Encoding`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "gzip" | "x-gzip" => Some(Self::Gzip),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// By the type of a file.
    pub(crate) fn of_type(essence: &str) -> Option<Self> {
        match essence {
            "application/gzip" | "application/x-gzip" => Some(Self::Gzip),
            "application/zstd" | "application/x-zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// By its first bytes.
    pub(crate) fn of_bytes(start: &[u8]) -> Option<Self> {
        match start {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            _ => None,
        }
    }

    /// Its name in `Content-Encoding`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// The type of a file that is compressed so.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Gzip => "application/gzip",
            Self::Zstd => "application/zstd",
        }
    }
}

enum Encoder {
    Gzip(GzEncoder<Vec<u8>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

impl Encoder {
    fn new(coding: Coding) -> std::io::Result<Self> {
        Ok(match coding {
            Coding::Gzip => Self::Gzip(GzEncoder::new(Vec::new(), Compression::fast())),
            Coding::Zstd => Self::Zstd(zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?),
        })
    }

    /// What comes out when `piece` goes in.
    fn push(&mut self, piece: &[u8]) -> std::io::Result<Vec<u8>> {
        let out = match self {
            Self::Gzip(encoder) => {
                encoder.write_all(piece)?;
                encoder.get_mut()
            }
            Self::Zstd(encoder) => {
                encoder.write_all(piece)?;
                encoder.get_mut()
            }
        };
        Ok(std::mem::take(out))
    }

    fn finish(self) -> std::io::Result<Vec<u8>> {
        match self {
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

/// `content` compressed. An error in it ends it.
pub(crate) fn compressed(content: ByteStream, coding: Coding) -> Result<ByteStream> {
    let failed = |error: std::io::Error| Error::internal("the content cannot be compressed").because(error);
    let encoder = Encoder::new(coding).map_err(failed)?;
    let pieces = stream::unfold(Some((content, encoder)), move |state| async move {
        let (mut content, mut encoder) = state?;
        loop {
            let (out, state) = match content.next().await {
                Some(Err(error)) => return Some((Err(error), None)),
                Some(Ok(piece)) => {
                    let pushed = off_the_loop(move || {
                        let out = encoder.push(&piece);
                        (out, encoder)
                    });
                    let (out, back) = match pushed.await {
                        Ok(pushed) => pushed,
                        Err(error) => return Some((Err(error), None)),
                    };
                    encoder = back;
                    match out.map_err(failed) {
                        Ok(out) if out.is_empty() => continue,
                        Ok(out) => (out, Some((content, encoder))),
                        Err(error) => return Some((Err(error), None)),
                    }
                }
                None => match encoder.finish().map_err(failed) {
                    Ok(out) => (out, None),
                    Err(error) => return Some((Err(error), None)),
                },
            };
            return Some((Ok(Bytes::from(out)), state));
        }
    });
    Ok(pieces.boxed())
}

/// Runs what takes processor time where it holds up no other connection.
async fn off_the_loop<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::internal("a piece of work was cut off").because(error))
}

enum Engine {
    Gzip(Box<Decompress>),
    Zstd { engine: Box<ZstdDecoder<'static>>, _turn: SemaphorePermit<'static> },
}

struct Decoder {
    engine: Engine,
    coding: Coding,
    /// Nothing is begun that has no end yet.
    whole: bool,
    /// The last piece was full: there may be another without more input.
    more: bool,
}

impl Decoder {
    fn new(coding: Coding) -> Result<Self> {
        let failed = |error| Error::internal("the content cannot be decompressed").because(error);
        let engine = match coding {
            Coding::Gzip => Engine::Gzip(Box::new(Decompress::new_gzip(15))),
            Coding::Zstd => {
                let busy = "too many zstd uploads at once: try again, or use gzip";
                let turn = WINDOWS.try_acquire().map_err(|_| Error::unavailable(busy))?;
                let mut decoder = ZstdDecoder::new().map_err(failed)?;
                decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW)).map_err(failed)?;
                Engine::Zstd { engine: Box::new(decoder), _turn: turn }
            }
        };
        Ok(Self { engine, coding, whole: true, more: false })
    }

    /// One piece of what `input` decompresses to, and how many bytes of it were used.
    fn step(&mut self, input: &[u8]) -> std::result::Result<(Vec<u8>, usize), String> {
        let mut out = vec![0; PIECE];
        let (read, written) = match &mut self.engine {
            Engine::Gzip(engine) => {
                if self.whole && input.iter().all(|byte| *byte == 0) {
                    // Tapes are filled up with zeros, and their files still are.
                    return Ok((Vec::new(), input.len()));
                }
                if self.whole {
                    **engine = Decompress::new_gzip(15);
                }
                let before = (engine.total_in(), engine.total_out());
                let status = engine.decompress(input, &mut out, FlushDecompress::None);
                let status = status.map_err(|error| error.to_string())?;
                self.whole = status == Status::StreamEnd;
                ((engine.total_in() - before.0) as usize, (engine.total_out() - before.1) as usize)
            }
            Engine::Zstd { engine, .. } => {
                let status = engine.run_on_buffers(input, &mut out).map_err(|error| error.to_string())?;
                self.whole = status.remaining == 0;
                (status.bytes_read, status.bytes_written)
            }
        };
        out.truncate(written);
        self.more = written == PIECE && !self.whole;
        Ok((out, read))
    }
}

/// `content` decompressed. What is damaged or cut ends with an error.
pub(crate) fn decompressed(content: ByteStream, coding: Coding) -> Result<ByteStream> {
    let decoder = Decoder::new(coding)?;
    let start = Some((content, decoder, Bytes::new()));
    let pieces = stream::unfold(start, |state| async move {
        let (mut content, mut decoder, mut input) = state?;
        let name = decoder.coding.name();
        let damaged =
            |why: &str| Error::invalid_argument(format!("the content cannot be read as {name}: {why}"));
        loop {
            if input.is_empty() && !decoder.more {
                input = match content.next().await {
                    Some(Ok(piece)) => piece,
                    Some(Err(error)) => return Some((Err(error), None)),
                    None if decoder.whole => return None,
                    None => return Some((Err(damaged("it was cut")), None)),
                };
                if input.is_empty() {
                    continue;
                }
            }
            let stepped = off_the_loop(move || {
                let out = decoder.step(&input);
                (out, decoder, input)
            });
            let (out, back, rest) = match stepped.await {
                Ok(stepped) => stepped,
                Err(error) => return Some((Err(error), None)),
            };
            (decoder, input) = (back, rest);
            let (out, used) = match out {
                Ok(stepped) => stepped,
                Err(why) => return Some((Err(damaged(&why)), None)),
            };
            if used == 0 && out.is_empty() && !input.is_empty() {
                return Some((Err(damaged("it makes no sense")), None));
            }
            let _ = input.split_to(used);
            if !out.is_empty() {
                return Some((Ok(Bytes::from(out)), Some((content, decoder, input))));
            }
        }
    });
    Ok(pieces.boxed())
}

/// How `content` is compressed as far as its first bytes tell, and all of it.
pub(crate) async fn sniffed(content: ByteStream) -> (Option<Coding>, ByteStream) {
    let mut content = content.fuse();
    let mut seen = Vec::new();
    let mut start = Vec::new();
    while start.len() < 4 {
        let Some(piece) = content.next().await else { break };
        let Ok(bytes) = &piece else {
            seen.push(piece);
            break;
        };
        start.extend_from_slice(&bytes[..bytes.len().min(4)]);
        seen.push(piece);
    }
    (Coding::of_bytes(&start), stream::iter(seen).chain(content).boxed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::TryStreamExt;
    use proptest::prelude::*;

    fn stream_of(bytes: &[u8], size: usize) -> ByteStream {
        let pieces: Vec<_> = bytes.chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        stream::iter(pieces).boxed()
    }

    async fn all(content: ByteStream) -> Result<Vec<u8>> {
        let pieces: Vec<Bytes> = content.try_collect().await?;
        assert!(pieces.iter().all(|piece| piece.len() <= 2 * PIECE));
        Ok(pieces.concat())
    }

    async fn packed(bytes: &[u8], size: usize, coding: Coding) -> Vec<u8> {
        all(compressed(stream_of(bytes, size), coding).unwrap()).await.unwrap()
    }

    async fn unpacked(bytes: &[u8], size: usize, coding: Coding) -> Result<Vec<u8>> {
        all(decompressed(stream_of(bytes, size), coding).unwrap()).await
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
        #[test]
        fn what_goes_in_comes_out(
            part in proptest::collection::vec(any::<u8>(), 0..400), times in 0..2000_usize,
            sizes in (1..70_000_usize, 1..70_000_usize), cut in 1..30_usize,
        ) {
            let bytes = part.repeat(times);
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                for coding in [Coding::Gzip, Coding::Zstd] {
                    let small = packed(&bytes, sizes.0, coding).await;
                    assert!(unpacked(&small, sizes.1.max(small.len() / 50), coding).await.unwrap() == bytes);
                    assert_eq!(sniffed(stream_of(&small, 1)).await.0, Some(coding));
                    // Two behind one another are one.
                    let twice = [&*small, &*small].concat();
                    let size = sizes.1.max(small.len() / 50);
                    assert!(unpacked(&twice, size, coding).await.unwrap() == [&*bytes, &*bytes].concat());
                    let cut = &small[..small.len() - cut.min(small.len() - 1)];
                    assert!(unpacked(cut, size, coding).await.is_err());
                }
            });
        }

        #[test]
        fn no_bytes_do_harm(bytes in proptest::collection::vec(any::<u8>(), 1..500)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            for (coding, magic) in [(Coding::Gzip, &b"\x1f\x8b\x08\0"[..]), (Coding::Zstd, b"\x28\xb5\x2f\xfd")] {
                let _ = runtime.block_on(unpacked(&[magic, &bytes].concat(), 100, coding));
                let _ = runtime.block_on(unpacked(&bytes, 100, coding));
            }
        }
    }

    #[tokio::test]
    async fn a_bomb_is_handed_out_in_small_pieces() {
        let zeros = vec![0; 64 << 20];
        for coding in [Coding::Gzip, Coding::Zstd] {
            let bomb = packed(&zeros, 1 << 20, coding).await;
            assert!(bomb.len() < 1_000_000, "{}", bomb.len());
            // In one piece, and looked at one by one.
            let mut content = decompressed(stream_of(&bomb, bomb.len()), coding).unwrap();
            let mut total = 0;
            while let Some(piece) = content.next().await {
                let piece = piece.unwrap();
                assert!(piece.len() <= PIECE);
                total += piece.len();
            }
            assert_eq!(total, zeros.len());
        }
    }

    #[tokio::test]
    async fn a_window_that_takes_too_much_memory_is_refused() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(27).unwrap();
        for _ in 0..20 {
            encoder.write_all(&vec![7; 1 << 20]).unwrap();
        }
        let error = unpacked(&encoder.finish().unwrap(), 1 << 20, Coding::Zstd).await.unwrap_err();
        assert_eq!(error.kind(), stacyvm_provider::ErrorKind::InvalidArgument);
    }

    #[tokio::test]
    async fn garbage_behind_the_end_is_an_error_and_zeros_are_none() {
        let small = packed(b"content", 100, Coding::Gzip).await;
        let filled = [&*small, &[0; 900][..]].concat();
        assert_eq!(unpacked(&filled, 100, Coding::Gzip).await.unwrap(), b"content");
        let spoilt = [&*small, b"garbage"].concat();
        assert!(unpacked(&spoilt, 1000, Coding::Gzip).await.is_err());
    }
}
