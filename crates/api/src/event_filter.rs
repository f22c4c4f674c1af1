//! Which events a subscriber wants. Asked of every event, so what takes a look at the store is looked up once.

use crate::error::ApiError;
use jiff::Timestamp;
use stacyvm_engine::{Engine, Event, EventType};
use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

/// Owners that are remembered; more are looked up again.
const OWNERS: usize = 4096;

/// A filter. What is empty is not looked at.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    kinds: BTreeSet<&'static str>,
    sandboxes: BTreeSet<String>,
    since: Option<Timestamp>,
    owner: Option<String>,
    owners: HashMap<String, Option<String>>,
}

impl Filter {
    /// From what the query says: lists are separated by commas.
    pub(crate) fn new(
        kinds: Option<&str>,
        sandboxes: Option<&str>,
        owner: Option<&str>,
        since: Option<&str>,
    ) -> Result<Self, ApiError> {
        let mut known = BTreeSet::new();
        for word in words(kinds) {
            known.extend(of_word(word)?.into_iter().map(EventType::as_str));
        }
        Ok(Self {
            kinds: known,
            sandboxes: words(sandboxes).map(str::to_owned).collect(),
            since: since.map(str::trim).filter(|text| !text.is_empty()).map(moment).transpose()?,
            owner: owner.map(str::trim).filter(|owner| !owner.is_empty()).map(str::to_owned),
            owners: HashMap::new(),
        })
    }

    /// Events of the past are wanted, whether or not an id to start from is named.
    pub(crate) fn looks_back(&self) -> bool {
        self.since.is_some()
    }

    /// Whether this one is wanted.
    pub(crate) async fn passes(&mut self, event: &Event, engine: &Engine) -> Result<bool, ApiError> {
        let sandbox = event.sandbox_id.as_deref();
        let passes = (self.kinds.is_empty() || self.kinds.contains(event.kind.as_str()))
            && (self.sandboxes.is_empty() || sandbox.is_some_and(|id| self.sandboxes.contains(id)))
            && self.since.is_none_or(|since| event.timestamp >= since);
        match (&self.owner, sandbox) {
            (None, _) => Ok(passes),
            (Some(_), None) => Ok(false),
            (Some(_), Some(_)) if !passes => Ok(false),
            (Some(wanted), Some(id)) => {
                if let Some(owner) = self.owners.get(id) {
                    return Ok(owner.as_ref() == Some(wanted));
                }
                let owner = engine.owner_of(id).await?;
                let is_wanted = owner.as_ref() == Some(wanted);
                if self.owners.len() >= OWNERS {
                    self.owners.clear();
                }
                self.owners.insert(id.to_owned(), owner);
                Ok(is_wanted)
            }
        }
    }
}

fn words(text: Option<&str>) -> impl Iterator<Item = &str> {
    text.unwrap_or_default().split(',').map(str::trim).filter(|word| !word.is_empty())
}

/// A type, or every type of a group: `exec`, `exec.` and `exec.*` are the same.
fn of_word(word: &str) -> Result<Vec<EventType>, ApiError> {
    if let Ok(kind) = word.parse() {
        return Ok(vec![kind]);
    }
    let group = word.strip_suffix('*').unwrap_or(word);
    let group = group.strip_suffix('.').unwrap_or(group);
    let kinds: Vec<_> = EventType::ALL.iter().copied().filter(|kind| kind.group() == group).collect();
    if kinds.is_empty() {
        let groups: BTreeSet<_> = EventType::ALL.iter().map(|kind| kind.group()).collect();
        let groups = groups.into_iter().collect::<Vec<_>>().join(", ");
        return Err(ApiError::bad_request(format!(
            "unknown event type {word:?}: use a type as sandbox.created, or one of the groups {groups}"
        )));
    }
    Ok(kinds)
}

/// A time, or a duration before now.
fn moment(text: &str) -> Result<Timestamp, ApiError> {
    let wrong = || {
        ApiError::bad_request(format!(
            "since {text:?} is no time: use one as 2026-01-31T10:00:00Z, or a duration before now, as 10m"
        ))
    };
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    let ago: stacyvm_types::WireDuration = text.parse().map_err(|_| wrong())?;
    let ago: Duration = ago.to_std().ok_or_else(wrong)?;
    // Further back than any calendar goes is as far back as there are events.
    Ok(Timestamp::now().checked_sub(ago).unwrap_or(Timestamp::MIN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn types_are_named_one_by_one_or_by_group() {
        let kinds = |text: &str| Filter::new(Some(text), None, None, None).unwrap().kinds;
        assert_eq!(kinds("sandbox.created, file.read,"), BTreeSet::from(["file.read", "sandbox.created"]));
        let exec = BTreeSet::from(["exec.completed", "exec.failed", "exec.started", "exec.timeout"]);
        for text in ["exec", "exec.", "exec.*", "exec,exec.failed"] {
            assert_eq!(kinds(text), exec, "{text}");
        }
        assert!(kinds("").is_empty());
        for wrong in ["nope", "sandbox.", "*", "exec.start"] {
            let outcome = Filter::new(Some(wrong), None, None, None);
            assert_eq!(outcome.is_ok(), wrong == "sandbox.", "{wrong}");
        }
    }

    #[test]
    fn moments() {
        let filter = |text: &str| Filter::new(None, None, None, Some(text));
        assert_eq!(
            filter("2026-01-31T10:00:00Z").unwrap().since.unwrap().to_string(),
            "2026-01-31T10:00:00Z"
        );
        let ago = filter("1h").unwrap().since.unwrap();
        assert!(ago < Timestamp::now() && ago > Timestamp::UNIX_EPOCH);
        assert_eq!(filter(" ").unwrap().since, None);
        assert!(!filter("").unwrap().looks_back() && filter("1h").unwrap().looks_back());
        for wrong in ["yesterday", "10", "-1h"] {
            assert!(filter(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,30}") {
            let _ = Filter::new(Some(&text), Some(&text), Some(&text), Some(&text));
        }
    }
}
