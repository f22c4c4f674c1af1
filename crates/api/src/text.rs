//! Output bytes as JSON text: a character whose bytes arrive in two pieces is never torn, and what is not UTF-8 becomes
//! U+FFFD. Answers that have room for it say so; lines of two keys have none, and whoever needs every byte asks for base64.

use std::str;

/// Decodes one output stream piece by piece.
#[derive(Debug, Default)]
pub(crate) struct Utf8Decoder {
    /// The beginning of a character whose end has not arrived; at most three bytes.
    tail: Vec<u8>,
}

impl Utf8Decoder {
    /// The text of everything that is complete with `bytes`.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        let joined;
        let mut rest = if self.tail.is_empty() {
            bytes
        } else {
            self.tail.extend_from_slice(bytes);
            joined = std::mem::take(&mut self.tail);
            &joined[..]
        };
        let mut text = String::with_capacity(rest.len());
        loop {
            let error = match str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    return text;
                }
                Err(error) => error,
            };
            let (valid, broken) = rest.split_at(error.valid_up_to());
            text.push_str(str::from_utf8(valid).unwrap_or_default());
            match error.error_len() {
                Some(length) => {
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &broken[length..];
                }
                None => {
                    self.tail = broken.to_vec();
                    return text;
                }
            }
        }
    }

    /// The text of what was held back, at the end of the stream.
    pub(crate) fn finish(&mut self) -> String {
        if std::mem::take(&mut self.tail).is_empty() {
            return String::new();
        }
        char::REPLACEMENT_CHARACTER.to_string()
    }
}

/// The whole of `bytes` as text, and whether any of it was replaced.
pub(crate) fn decode(bytes: Vec<u8>) -> (String, bool) {
    match String::from_utf8(bytes) {
        Ok(text) => (text, false),
        Err(error) => (String::from_utf8_lossy(error.as_bytes()).into_owned(), true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_torn_character_is_put_together() {
        let mut decoder = Utf8Decoder::default();
        let texts: Vec<String> = "a€😀".as_bytes().iter().map(|b| decoder.push(&[*b])).collect();
        assert_eq!(texts, ["a", "", "", "€", "", "", "", "😀"]);
        assert_eq!(decoder.finish(), "");
    }

    #[test]
    fn what_never_completes_is_replaced_at_the_end() {
        let mut decoder = Utf8Decoder::default();
        assert_eq!(decoder.push(b"x\xe2\x82"), "x");
        assert_eq!(decoder.finish(), "\u{fffd}");
    }

    #[test]
    fn a_byte_that_cannot_be_is_replaced_at_once() {
        let mut decoder = Utf8Decoder::default();
        assert_eq!(decoder.push(b"\xffok"), "\u{fffd}ok");
        assert_eq!(decode(b"\xffok".to_vec()), ("\u{fffd}ok".into(), true));
    }

    /// Bytes rich in the beginnings and ends of characters.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            any::<char>().prop_map(|c| c.to_string().into_bytes()),
            any::<u8>().prop_map(|b| vec![b]),
            any::<char>().prop_map(|c| c.to_string().into_bytes()[1..].to_vec()),
        ];
        prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn pieces_decode_to_what_the_whole_decodes_to(bytes in bytes(), cuts in prop::collection::vec(0..200usize, 0..8)) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut decoder = Utf8Decoder::default();
            let mut text = String::new();
            for pair in cuts.windows(2) {
                text += &decoder.push(&bytes[pair[0]..pair[1]]);
            }
            text += &decoder.finish();
            prop_assert_eq!(&text, &String::from_utf8_lossy(&bytes));
        }
    }
}
