//! The last lines that any process of the sandbox wrote, in order of arrival: what `logs` shows.

use super::log::Source;
use std::{
    borrow::Cow,
    collections::{HashMap, VecDeque},
};

/// Memory for complete lines, in bytes.
const TOTAL: usize = 256 << 10;
/// Longest line; what follows up to the line's end is left out.
const LINE: usize = 8 << 10;
/// What a line costs besides its text, in bytes.
const OVERHEAD: usize = size_of::<u32>();
/// Most bytes of text in one answer: with its framing it fits a protocol message.
const ANSWER: usize = 900 << 10;
/// Most output streams with a line begun and not ended.
const BEGUN: usize = 256;

/// An output stream: number of the process, and which of its two.
type Stream = (u64, bool);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    /// Text of all lines in a row: a flood of short ones must not cost an allocation each.
    text: VecDeque<u8>,
    /// Length of each.
    lengths: VecDeque<u32>,
    begun: HashMap<Stream, Vec<u8>>,
}

impl Recent {
    /// Takes what a process wrote.
    pub(crate) fn append(&mut self, process: u64, source: Source, mut data: &[u8]) {
        let stream = (process, source == Source::Stderr);
        while let Some(end) = data.iter().position(|byte| *byte == b'\n') {
            match self.begun.remove(&stream) {
                Some(mut line) => {
                    extend(&mut line, &data[..end]);
                    self.push(&line);
                }
                None => self.push(&data[..end]),
            }
            data = &data[end + 1..];
        }
        if data.is_empty() {
            return;
        }
        if self.begun.len() >= BEGUN && !self.begun.contains_key(&stream) {
            // Rather a line in two than a line lost.
            if let Some(any) = self.begun.keys().next().copied() {
                self.end(any);
            }
        }
        extend(self.begun.entry(stream).or_default(), data);
    }

    /// Completes what a process has begun: it writes no more.
    pub(crate) fn finish(&mut self, process: u64) {
        self.end((process, false));
        self.end((process, true));
    }

    fn end(&mut self, stream: Stream) {
        if let Some(line) = self.begun.remove(&stream) {
            self.push(&line);
        }
    }

    fn size(&self) -> usize {
        self.text.len() + self.lengths.len() * OVERHEAD
    }

    fn push(&mut self, line: &[u8]) {
        let line = &line[..line.len().min(LINE)];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        while self.size() + line.len() + OVERHEAD > TOTAL {
            let Some(oldest) = self.lengths.pop_front() else { break };
            self.text.drain(..oldest as usize);
        }
        self.text.extend(line);
        // At most [`LINE`].
        self.lengths.push_back(u32::try_from(line.len()).unwrap_or(0));
    }

    /// The last `count` lines, oldest first, those not ended yet behind all others.
    pub(crate) fn last(&self, count: usize) -> Vec<String> {
        let mut begun: Vec<_> = self.begun.iter().collect();
        begun.sort_by_key(|(stream, _)| **stream);
        let begun = begun.into_iter().rev().map(|(_, line)| Cow::from(line));
        let mut end = self.text.len();
        let complete = self.lengths.iter().rev().map(|length| {
            let behind = end;
            end -= *length as usize;
            Cow::from(self.text.range(end..behind).copied().collect::<Vec<u8>>())
        });
        let mut answer = Vec::new();
        let mut size = 0;
        for line in begun.chain(complete).take(count) {
            let line = String::from_utf8_lossy(&line).into_owned();
            size += line.len() + 8;
            if size > ANSWER {
                break;
            }
            answer.push(line);
        }
        answer.reverse();
        answer
    }
}

fn extend(line: &mut Vec<u8>, data: &[u8]) {
    line.extend_from_slice(&data[..data.len().min(LINE - line.len().min(LINE))]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_of_two_streams_do_not_mix() {
        let mut recent = Recent::default();
        recent.append(1, Source::Stdout, b"he");
        recent.append(1, Source::Stderr, b"oops\r\n");
        recent.append(2, Source::Stdout, b"other\nrest");
        recent.append(1, Source::Stdout, b"llo\n");
        assert_eq!(recent.last(10), ["oops", "other", "hello", "rest"]);
        assert_eq!(recent.last(2), ["hello", "rest"]);
        recent.finish(2);
        recent.append(2, Source::Stdout, b"more\n");
        assert_eq!(recent.last(2), ["rest", "more"]);
    }

    #[test]
    fn long_lines_are_cut_and_bad_bytes_replaced() {
        let mut recent = Recent::default();
        recent.append(1, Source::Stdout, &[b'x'; 3 * LINE]);
        recent.append(1, Source::Stdout, b"yyy\n\xff\n");
        let lines = recent.last(10);
        assert_eq!(lines[0], "x".repeat(LINE));
        assert_eq!(lines[1], "\u{fffd}");
    }

    #[test]
    fn streams_with_a_line_begun_are_bounded() {
        let mut recent = Recent::default();
        for process in 0..10 * BEGUN as u64 {
            recent.append(process, Source::Stdout, b"p");
        }
        assert_eq!(recent.begun.len(), BEGUN);
    }

    proptest! {
        #[test]
        fn any_cutting_gives_the_same_lines(text in "[a-z\n]{0,200}", cuts in proptest::collection::vec(1usize..20, 0..40)) {
            let mut recent = Recent::default();
            let mut rest = text.as_bytes();
            for cut in cuts {
                let (head, tail) = rest.split_at(cut.min(rest.len()));
                recent.append(1, Source::Stdout, head);
                rest = tail;
            }
            recent.append(1, Source::Stdout, rest);
            let expected: Vec<String> = text.lines().map(str::to_owned).collect();
            prop_assert_eq!(recent.last(usize::MAX), expected);
        }

        #[test]
        fn memory_is_bounded(writes in proptest::collection::vec((0..4u64, 1usize..20_000), 0..60)) {
            let mut recent = Recent::default();
            for (process, length) in writes {
                let mut line = vec![b'x'; length];
                line.push(b'\n');
                recent.append(process, Source::Stdout, &line);
                prop_assert!(recent.size() <= TOTAL);
            }
        }
    }
}
