//! Lines of a body that arrives in pieces. Only whole lines count: what stands behind the last line feed when the body
//! ends was cut.

use crate::error::{Error, Result};
use bytes::{Bytes, BytesMut};
use reqwest::Response;
use std::time::Duration;

/// Longest line. A record carries at most 64 KiB of output, which base64 makes longer by a third.
const LONGEST: usize = 1 << 20;

/// Splits pieces into lines.
#[derive(Debug, Default)]
pub(crate) struct Splitter {
    buffer: BytesMut,
    /// Bytes at the start of the buffer that hold no line feed.
    searched: usize,
}

impl Splitter {
    pub(crate) fn push(&mut self, piece: &[u8]) {
        self.buffer.extend_from_slice(piece);
    }

    /// The next whole line, without its line feed and a carriage return before it.
    pub(crate) fn line(&mut self) -> Result<Option<Bytes>> {
        let found = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n');
        let Some(at) = found.map(|at| at + self.searched) else {
            self.searched = self.buffer.len();
            if self.searched > LONGEST {
                return Err(Error::Protocol("a line without end".to_owned()));
            }
            return Ok(None);
        };
        let mut line = self.buffer.split_to(at + 1);
        line.truncate(at);
        if line.last() == Some(&b'\r') {
            line.truncate(at - 1);
        }
        self.searched = 0;
        Ok(Some(line.freeze()))
    }
}

/// Lines of a response.
#[derive(Debug)]
pub(crate) struct Lines {
    response: Response,
    splitter: Splitter,
    silence: Duration,
}

impl Lines {
    /// Lines of `response`, which counts as broken after `silence` without a byte.
    pub(crate) fn new(response: Response, silence: Duration) -> Self {
        Self { response, splitter: Splitter::default(), silence }
    }

    /// The next line; `None` at the end of the body.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(line) = self.splitter.line()? {
                return Ok(Some(line));
            }
            let piece = tokio::time::timeout(self.silence, self.response.chunk()).await;
            let piece = piece.map_err(|_| Error::Broken("the server fell silent".to_owned()))?;
            match piece.map_err(|e| Error::Broken(e.to_string()))? {
                Some(piece) => self.splitter.push(&piece),
                None => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_whole_lines() {
        let mut splitter = Splitter::default();
        splitter.push(b"a\r\n\nb");
        assert_eq!(splitter.line().unwrap().unwrap(), "a");
        assert_eq!(splitter.line().unwrap().unwrap(), "");
        assert!(splitter.line().unwrap().is_none());
        splitter.push(b"c\n");
        assert_eq!(splitter.line().unwrap().unwrap(), "bc");
    }

    #[test]
    fn a_line_without_end_is_an_error() {
        let mut splitter = Splitter::default();
        splitter.push(&vec![b'x'; LONGEST + 1]);
        assert!(splitter.line().is_err());
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(text in "[ab\n]{0,60}", cuts in proptest::collection::vec(1usize..10, 1..20)) {
            let mut splitter = Splitter::default();
            let mut lines = Vec::new();
            let mut rest = text.as_bytes();
            for cut in cuts.iter().cycle() {
                let (piece, tail) = rest.split_at((*cut).min(rest.len()));
                splitter.push(piece);
                while let Some(line) = splitter.line().unwrap() {
                    lines.push(String::from_utf8(line.to_vec()).unwrap());
                }
                rest = tail;
                if rest.is_empty() {
                    break;
                }
            }
            let mut expected: Vec<_> = text.split('\n').map(str::to_owned).collect();
            expected.pop();
            prop_assert_eq!(lines, expected);
        }
    }
}
