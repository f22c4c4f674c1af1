//! Events on their way to the reader: each change of a path once, in order, in messages of bounded size.

use stacyvm_guest::proto::{WatchEvent, WatchEvents, WatchKind};
use std::collections::HashSet;

/// Events of one message, and bytes of their paths.
const MESSAGE: (usize, usize) = (1_000, 256 << 10);
/// Events after which a batch is handed over: more of them wait in the kernel.
const ENOUGH: usize = 4_000;
/// Bytes of paths after which nothing more is kept.
const MOST_BYTES: usize = 2 << 20;

/// Events of a short time.
#[derive(Debug, Default)]
pub(super) struct Batch {
    events: Vec<WatchEvent>,
    bytes: usize,
    /// What needs no second event: kind and path.
    seen: HashSet<(WatchKind, String)>,
    /// Moves of which only the beginning was seen: cookie, and place in `events`.
    begun: Vec<(u32, usize)>,
    full: bool,
}

impl Batch {
    /// Adds an event, unless the same is there and nothing else has happened to the path since. Says whether it did.
    pub(super) fn push(&mut self, kind: WatchKind, path: String, directory: bool) -> bool {
        if self.full {
            return false;
        }
        if self.bytes > MOST_BYTES || self.events.len() > 4 * ENOUGH {
            self.full = true;
            self.events.push(WatchEvent { kind: WatchKind::Overflow.into(), ..WatchEvent::default() });
            return false;
        }
        let known = |kind| self.seen.contains(&(kind, path.clone()));
        match kind {
            // What was just made is read by whoever sees that it was made.
            WatchKind::Modify | WatchKind::Attribute if known(kind) || known(WatchKind::Create) => {
                return false;
            }
            WatchKind::Create if known(kind) => return false,
            WatchKind::Modify | WatchKind::Attribute | WatchKind::Create => {
                self.seen.insert((kind, path.clone()));
            }
            // What was in it is gone as well.
            _ if directory => self.seen.clear(),
            _ => self.forget(&path),
        }
        self.bytes += path.len();
        self.events.push(WatchEvent { kind: kind.into(), path, from: String::new(), directory });
        true
    }

    /// Events are lost. Once is enough.
    pub(super) fn overflow(&mut self) {
        if self.events.last().is_none_or(|event| event.kind() != WatchKind::Overflow) {
            self.seen.clear();
            self.events.push(WatchEvent { kind: WatchKind::Overflow.into(), ..WatchEvent::default() });
        }
    }

    /// Something was moved away: it is gone, unless its arrival follows.
    pub(super) fn moved_from(&mut self, cookie: u32, path: String, directory: bool) {
        self.push(WatchKind::Delete, path, directory);
        if !self.full {
            self.begun.push((cookie, self.events.len() - 1));
        }
    }

    /// Something arrived. False if nobody knows from where.
    pub(super) fn moved_to(&mut self, cookie: u32, path: &str) -> bool {
        let Some(at) = self.begun.iter().position(|(begun, _)| *begun == cookie) else { return false };
        let (_, place) = self.begun.remove(at);
        self.forget(path);
        let Some(event) = self.events.get_mut(place) else { return false };
        self.bytes += path.len();
        event.kind = WatchKind::Move.into();
        event.from = std::mem::replace(&mut event.path, path.to_owned());
        true
    }

    fn forget(&mut self, path: &str) {
        for kind in [WatchKind::Create, WatchKind::Modify, WatchKind::Attribute] {
            self.seen.remove(&(kind, path.to_owned()));
        }
    }

    /// Whether it is time to hand it over.
    pub(super) fn is_enough(&self) -> bool {
        self.events.len() >= ENOUGH || self.bytes >= MOST_BYTES / 2
    }

    /// The events, in messages.
    pub(super) fn take(&mut self) -> Vec<WatchEvents> {
        let batch = std::mem::take(self);
        let (mut messages, mut events, mut bytes) = (Vec::new(), Vec::new(), 0);
        for event in batch.events {
            bytes += event.path.len() + event.from.len();
            events.push(event);
            if events.len() >= MESSAGE.0 || bytes >= MESSAGE.1 {
                messages.push(WatchEvents { events: std::mem::take(&mut events) });
                bytes = 0;
            }
        }
        if !events.is_empty() {
            messages.push(WatchEvents { events });
        }
        messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use WatchKind::{Attribute, Create, Delete, Modify, Move, Overflow};

    fn kinds(batch: &mut Batch) -> Vec<WatchKind> {
        batch.take().into_iter().flat_map(|message| message.events).map(|event| event.kind()).collect()
    }

    #[test]
    fn what_happens_twice_is_told_once_and_in_order() {
        let mut batch = Batch::default();
        for kind in [Create, Modify, Modify, Attribute, Delete, Create, Modify, Delete] {
            batch.push(kind, "/f".into(), false);
        }
        assert_eq!(kinds(&mut batch), [Create, Delete, Create, Delete]);
        for kind in [Modify, Attribute, Modify, Attribute] {
            batch.push(kind, "/f".into(), false);
        }
        assert_eq!(kinds(&mut batch), [Modify, Attribute], "what was told in another batch is told again");
    }

    #[test]
    fn what_is_made_again_in_a_directory_that_is_made_again_is_told_again() {
        for moved in [false, true] {
            let mut batch = Batch::default();
            for _ in 0..2 {
                batch.push(Create, "/d".into(), true);
                assert!(batch.push(Create, "/d/f".into(), false));
                assert!(!batch.push(Create, "/d/f".into(), false));
                match moved {
                    true => batch.moved_from(1, "/d".into(), true),
                    false => assert!(batch.push(Delete, "/d".into(), true)),
                }
            }
            assert_eq!(kinds(&mut batch), [Create, Create, Delete, Create, Create, Delete]);
        }
    }

    #[test]
    fn both_halves_of_a_move_are_one_event() {
        let mut batch = Batch::default();
        batch.moved_from(1, "/a".into(), false);
        batch.moved_from(2, "/b".into(), true);
        assert!(batch.moved_to(2, "/c") && !batch.moved_to(3, "/d"));
        let events = batch.take().remove(0).events;
        assert_eq!(events.iter().map(WatchEvent::kind).collect::<Vec<_>>(), [Delete, Move]);
        assert_eq!((events[1].from.as_str(), events[1].path.as_str()), ("/b", "/c"));
    }

    #[test]
    fn too_much_is_an_overflow_and_messages_stay_small() {
        let mut batch = Batch::default();
        for number in 0..10_000 {
            batch.push(Create, format!("/{number}{}", "x".repeat(1000)), false);
        }
        assert!(batch.is_enough());
        let messages = batch.take();
        let last = messages.last().unwrap().events.last().unwrap();
        assert_eq!(last.kind(), Overflow);
        for message in messages {
            assert!(prost::Message::encoded_len(&message) < stacyvm_guest::limits::MESSAGE_BYTES / 2);
        }
        batch.overflow();
        batch.overflow();
        assert_eq!(kinds(&mut batch), [Overflow]);
    }
}
