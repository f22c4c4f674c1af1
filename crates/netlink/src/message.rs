//! The bytes of netlink messages and their attributes.

use libc::c_int;

/// Bytes before a message's body: length, type, flags, sequence, port.
pub(crate) const HEADER: usize = 16;

/// Adds a message with this body's `header` and attributes behind what is there.
pub(crate) fn append(
    bytes: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    header: &[u8],
    fill: impl FnOnce(&mut Attributes<'_>),
) {
    let start = bytes.len();
    bytes.extend([0; 4]);
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(header);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    fill(&mut Attributes(bytes));
    let length = (bytes.len() - start) as u32;
    bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

/// Attributes at the end of a message: length, type, value, padded to four bytes.
pub struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    /// Adds one with these bytes.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.attribute(kind, |inner| inner.0.extend(value));
    }

    /// Adds one with a text.
    pub fn text(&mut self, kind: u16, value: &str) {
        self.attribute(kind, |inner| {
            inner.0.extend(value.bytes());
            inner.0.push(0);
        });
    }

    /// Adds one with a number, as the packet filter takes them.
    pub fn number(&mut self, kind: u16, value: c_int) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Adds one that holds others.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        self.attribute(kind | libc::NLA_F_NESTED as u16, fill);
    }

    /// Adds one that holds `header` and others behind it.
    pub fn nest_behind(&mut self, kind: u16, header: &[u8], fill: impl FnOnce(&mut Self)) {
        self.nest(kind, |inner| {
            inner.0.extend(header);
            fill(inner);
        });
    }

    fn attribute(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        fill(self);
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// Type, without its flags, and value of each attribute; ends at what is none.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let half = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let (length, kind) = (usize::from(half(0)?), half(2)?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & !(libc::NLA_F_NESTED as u16 | libc::NLA_F_NET_BYTEORDER as u16), value))
    })
}

/// One message of an answer.
pub(crate) struct Received<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) body: &'a [u8],
}

/// The messages of an answer; ends at what is none.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let half = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let length = word(0)? as usize;
        let (kind, flags, sequence) = (half(4)?, half(6)?, word(8)?);
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Received { kind, flags, sequence, body })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn attributes_are_read_as_they_were_written(
            values in proptest::collection::vec((0u16..0x4000, any::<Vec<u8>>()), 0..20),
            outer in 0u16..0x4000,
        ) {
            let mut bytes = Vec::new();
            Attributes(&mut bytes).nest(outer, |inner| {
                for (kind, value) in &values {
                    inner.bytes(*kind, value);
                }
            });
            let found: Vec<_> = attributes(&bytes).collect();
            prop_assert_eq!(found.len(), 1);
            prop_assert_eq!(found[0].0, outer);
            let inner: Vec<_> = attributes(found[0].1).map(|(kind, value)| (kind, value.to_vec())).collect();
            prop_assert_eq!(inner, values);
        }

        #[test]
        fn messages_are_read_as_they_were_written(bodies in proptest::collection::vec((0u16.., any::<Vec<u8>>()), 0..20)) {
            let mut bytes = Vec::new();
            for (sequence, (kind, value)) in bodies.iter().enumerate() {
                append(&mut bytes, *kind, 7, sequence as u32, &[1, 2, 3, 4], |body| body.bytes(5, value));
            }
            let found: Vec<_> = messages(&bytes).collect();
            prop_assert_eq!(found.len(), bodies.len());
            for (number, (message, (kind, value))) in found.iter().zip(&bodies).enumerate() {
                prop_assert_eq!((message.kind, message.flags, message.sequence), (*kind, 7, number as u32));
                prop_assert_eq!(&message.body[..4], &[1, 2, 3, 4]);
                prop_assert_eq!(attributes(&message.body[4..]).next(), Some((5, &value[..])));
            }
        }

        #[test]
        fn no_bytes_are_too_strange(mut bytes: Vec<u8>, length: u8) {
            let count = |bytes: &[u8]| (attributes(bytes).count(), messages(bytes).count());
            count(&bytes);
            if let Some(first) = bytes.first_mut() {
                *first = length;
            }
            count(&bytes);
        }
    }
}
