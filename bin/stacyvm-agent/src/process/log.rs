//! Output of one process: the newest bytes of a stream with absolute offsets, stdout and stderr in one count.
//!
//! Bytes and the runs that say where they came from are kept apart, so that a process that alternates between its
//! outputs byte by byte costs nine bytes for one and not a hundred. Both count against the capacity.

use bytes::{BufMut, Bytes, BytesMut};
use std::collections::VecDeque;

/// Where output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Stdout,
    Stderr,
}

/// Bytes in a row from one source.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// Offset behind its last byte.
    end: u64,
    source: Source,
}

/// Bytes that the bookkeeping of one run takes.
const RUN: usize = size_of::<Run>();

/// What is at an offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Bytes that are kept.
    Chunk(Source, Bytes),
    /// So many bytes are not kept any more.
    Gap(u64),
    /// Nothing yet.
    End,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Log {
    start: u64,
    bytes: VecDeque<u8>,
    runs: VecDeque<Run>,
}

impl Log {
    pub(crate) const fn new() -> Self {
        Self { start: 0, bytes: VecDeque::new(), runs: VecDeque::new() }
    }

    /// Offset of the oldest byte kept.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// Offset behind the newest byte.
    pub(crate) fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// Bytes of memory that count against the capacity.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len() + self.runs.len() * RUN
    }

    /// How many bytes of one source may be appended within `capacity` without dropping any from `keep` on.
    pub(crate) fn room(&self, capacity: usize, keep: u64) -> usize {
        let keep = keep.clamp(self.start, self.end());
        let bytes = usize::try_from(self.end() - keep).unwrap_or(usize::MAX);
        let runs = self.runs.len() - self.runs.partition_point(|run| run.end <= keep);
        capacity.saturating_sub(bytes).saturating_sub((runs + 1) * RUN)
    }

    /// Adds `data` and drops the oldest bytes until all fits in `capacity`.
    pub(crate) fn append(&mut self, source: Source, data: &[u8], capacity: usize) {
        if data.is_empty() {
            return;
        }
        let most = capacity.saturating_sub(RUN).max(1);
        if data.len() > most {
            // Nothing older can stay, and of this only the tail.
            let (lost, kept) = data.split_at(data.len() - most);
            self.start = self.end() + lost.len() as u64;
            self.bytes.clear();
            self.runs.clear();
            return self.append(source, kept, capacity);
        }
        // Room first, so that the buffer never grows beyond the capacity.
        self.trim(capacity.saturating_sub(data.len() + RUN));
        self.bytes.extend(data);
        let end = self.end();
        match self.runs.back_mut() {
            Some(last) if last.source == source => last.end = end,
            _ => self.runs.push_back(Run { end, source }),
        }
    }

    /// Drops the oldest bytes until at most `size` bytes of memory are used.
    pub(crate) fn trim(&mut self, size: usize) {
        while self.size() > size {
            let Some(oldest) = self.runs.front() else { return };
            let length = usize::try_from(oldest.end - self.start).unwrap_or(usize::MAX);
            let excess = self.size() - size;
            let dropped = if excess >= length { length } else { excess };
            self.bytes.drain(..dropped.min(self.bytes.len()));
            self.start += dropped as u64;
            if dropped == length {
                self.runs.pop_front();
            }
        }
        if self.bytes.is_empty() {
            self.bytes = VecDeque::new();
            self.runs = VecDeque::new();
        }
    }

    /// Gives back memory that was reserved for growth.
    pub(crate) fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
        self.runs.shrink_to_fit();
    }

    /// What is at `offset`, at most `most` bytes of it.
    pub(crate) fn read(&self, offset: u64, most: usize) -> Piece {
        if offset >= self.end() {
            return Piece::End;
        }
        if offset < self.start {
            return Piece::Gap(self.start - offset);
        }
        let Some(run) = self.runs.get(self.runs.partition_point(|run| run.end <= offset)) else {
            return Piece::End;
        };
        let first = usize::try_from(offset - self.start).unwrap_or(usize::MAX);
        let length = usize::try_from(run.end - offset).unwrap_or(usize::MAX).min(most);
        let mut out = BytesMut::with_capacity(length);
        let (front, back) = self.bytes.as_slices();
        if let Some(front) = front.get(first..) {
            out.put_slice(&front[..front.len().min(length)]);
        }
        let from = first.saturating_sub(front.len());
        let left = length - out.len();
        out.put_slice(&back[from..from + left]);
        Piece::Chunk(run.source, out.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn source() -> impl Strategy<Value = Source> {
        prop_oneof![Just(Source::Stdout), Just(Source::Stderr)]
    }

    /// All that was ever written, byte by byte.
    type Model = Vec<(Source, u8)>;

    /// Reads from `offset` on and compares with the model; returns the offset of the first byte that was there.
    fn check(log: &Log, model: &Model, mut offset: u64, most: usize) -> u64 {
        let mut first = None;
        loop {
            match log.read(offset, most) {
                Piece::End => break,
                Piece::Gap(length) => {
                    assert!(first.is_none() && length > 0, "a gap in the middle");
                    offset += length;
                    assert_eq!(offset, log.start());
                }
                Piece::Chunk(source, data) => {
                    assert!(!data.is_empty() && data.len() <= most);
                    first.get_or_insert(offset);
                    for byte in data {
                        assert_eq!(model[usize::try_from(offset).unwrap()], (source, byte));
                        offset += 1;
                    }
                }
            }
        }
        assert!(offset >= log.end());
        first.unwrap_or(offset)
    }

    proptest! {
        #[test]
        fn it_holds_the_newest_bytes_of_the_model(
            writes in proptest::collection::vec((source(), proptest::collection::vec(any::<u8>(), 0..40)), 0..60),
            capacity in 32usize..200,
            from in 0u64..3000,
            most in 1usize..50,
        ) {
            let mut log = Log::new();
            let mut model = Model::new();
            for (source, data) in writes {
                log.append(source, &data, capacity);
                model.extend(data.iter().map(|byte| (source, *byte)));
                prop_assert!(log.size() <= capacity);
                prop_assert_eq!(log.end(), model.len() as u64);
                // Full use: another byte of a third source would not fit where something was dropped.
                if log.start() > 0 {
                    prop_assert!(log.size() + 40 + 2 * RUN >= capacity, "{} of {capacity}", log.size());
                }
            }
            check(&log, &model, from.min(log.end()), most);
            prop_assert_eq!(check(&log, &model, 0, most), log.start());
        }

        #[test]
        fn room_is_a_promise(
            writes in proptest::collection::vec((source(), proptest::collection::vec(any::<u8>(), 1..40)), 0..60),
            capacity in 64usize..200,
            keep in 0u64..2000,
            next in source(),
        ) {
            let mut log = Log::new();
            for (source, data) in writes {
                log.append(source, &data, capacity);
            }
            let keep = keep.clamp(log.start(), log.end());
            let room = log.room(capacity, keep);
            log.append(next, &vec![7; room], capacity);
            prop_assert!(log.start() <= keep, "dropped {} wanted {keep}", log.start());
        }

        #[test]
        fn trimming_keeps_the_newest(
            writes in proptest::collection::vec((source(), proptest::collection::vec(any::<u8>(), 1..40)), 0..60),
            size in 0usize..200,
        ) {
            let (mut log, mut model) = (Log::new(), Model::new());
            for (source, data) in writes {
                log.append(source, &data, 4096);
                model.extend(data.iter().map(|byte| (source, *byte)));
            }
            log.trim(size);
            prop_assert!(log.size() <= size);
            prop_assert_eq!(log.end(), model.len() as u64);
            prop_assert_eq!(check(&log, &model, 0, 16), log.start());
        }
    }

    #[test]
    fn more_than_the_capacity_leaves_its_tail() {
        let mut log = Log::new();
        log.append(Source::Stdout, b"old", 64);
        log.append(Source::Stderr, &[9; 1000], 64);
        assert_eq!(log.end(), 1003);
        assert_eq!(log.read(log.start(), 1000), Piece::Chunk(Source::Stderr, Bytes::from(vec![9; 64 - RUN])));
    }
}
