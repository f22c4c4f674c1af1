//! Values of keys: from a file's node or a variable's text, with the reason when they are not what the key takes.

use crate::{
    key::{Key, Kind},
    problem::{Place, closest, excerpt},
    yaml::{Data, Node},
};
use stacyvm_types::WireDuration;
use std::{collections::BTreeMap, path::PathBuf};

/// The value of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// [`Kind::Text`], [`Kind::Secret`], [`Kind::Choice`].
    Text(String),
    /// [`Kind::Bool`].
    Bool(bool),
    /// [`Kind::Int`].
    Int(i64),
    /// [`Kind::Duration`], zero or more.
    Duration(WireDuration),
    /// [`Kind::List`], [`Kind::SecretList`].
    List(Vec<String>),
    /// [`Kind::Map`], [`Kind::SecretMap`].
    Map(BTreeMap<String, String>),
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The table, or what it says about computing the default.
    Default,
    /// A line of the configuration file.
    File(PathBuf, usize),
    /// A variable.
    Env(String),
    /// A command-line flag.
    Flag(&'static str),
}

impl Origin {
    /// The same place, for a problem with the value.
    pub(crate) fn place(&self) -> Place {
        match self {
            Self::Default => Place::Nowhere,
            Self::File(path, line) => Place::File(path.clone(), *line),
            Self::Env(name) => Place::Variable(name.clone()),
            Self::Flag(name) => Place::Flag(name),
        }
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Env(name) => write!(f, "env {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The key.
    pub key: &'static Key,
    /// Its value.
    pub value: Value,
    /// Where that came from.
    pub origin: Origin,
}

/// Every key with its value, in the order of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings(pub(crate) Vec<Setting>);

impl Settings {
    /// All of them.
    pub fn iter(&self) -> std::slice::Iter<'_, Setting> {
        self.0.iter()
    }

    /// The one of this name.
    pub fn get(&self, name: &str) -> Option<&Setting> {
        self.0.iter().find(|setting| setting.key.name == name)
    }

    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut Setting> {
        self.0.iter_mut().find(|setting| setting.key.name == name)
    }

    /// A text; empty for a key of another kind.
    pub(crate) fn text(&self, name: &str) -> &str {
        match self.get(name).map(|s| &s.value) {
            Some(Value::Text(text)) => text,
            _ => "",
        }
    }

    pub(crate) fn bool(&self, name: &str) -> bool {
        matches!(self.get(name).map(|s| &s.value), Some(Value::Bool(true)))
    }

    pub(crate) fn int(&self, name: &str) -> i64 {
        match self.get(name).map(|s| &s.value) {
            Some(Value::Int(int)) => *int,
            _ => 0,
        }
    }

    pub(crate) fn duration(&self, name: &str) -> std::time::Duration {
        match self.get(name).map(|s| &s.value) {
            Some(Value::Duration(duration)) => duration.to_std().unwrap_or_default(),
            _ => std::time::Duration::ZERO,
        }
    }

    pub(crate) fn list(&self, name: &str) -> Vec<String> {
        match self.get(name).map(|s| &s.value) {
            Some(Value::List(items)) => items.clone(),
            _ => Vec::new(),
        }
    }

    pub(crate) fn map(&self, name: &str) -> BTreeMap<String, String> {
        match self.get(name).map(|s| &s.value) {
            Some(Value::Map(pairs)) => pairs.clone(),
            _ => BTreeMap::new(),
        }
    }
}

/// Why something is not a value of a kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mismatch {
    /// Line, when the mistake is inside a list or map.
    pub(crate) line: Option<usize>,
    pub(crate) what: String,
    pub(crate) fix: String,
}

fn mismatch(what: String, fix: String) -> Mismatch {
    Mismatch { line: None, what, fix }
}

/// A value from the text of a variable, flag or unquoted scalar.
pub(crate) fn from_text(kind: Kind, text: &str) -> Result<Value, Mismatch> {
    let trimmed = text.trim();
    let takes = || format!("use {}", kind.describe());
    match kind {
        Kind::Text | Kind::Secret => Ok(Value::Text(text.to_owned())),
        Kind::Bool => match trimmed.to_ascii_lowercase().as_str() {
            "true" | "t" | "1" => Ok(Value::Bool(true)),
            "false" | "f" | "0" => Ok(Value::Bool(false)),
            _ => Err(mismatch(format!("\"{}\" is neither true nor false", excerpt(text)), takes())),
        },
        Kind::Int { min, max } => {
            let int: i64 = trimmed
                .parse()
                .map_err(|_| mismatch(format!("\"{}\" is not a whole number", excerpt(text)), takes()))?;
            if (min..=max).contains(&int) {
                Ok(Value::Int(int))
            } else {
                Err(mismatch(format!("{int} is out of bounds"), takes()))
            }
        }
        Kind::Duration => duration(trimmed),
        Kind::Choice(words) => choice(trimmed, words),
        Kind::List | Kind::SecretList => {
            let items = trimmed.split(',').map(str::trim).filter(|item| !item.is_empty());
            Ok(Value::List(items.map(str::to_owned).collect()))
        }
        Kind::Map | Kind::SecretMap => pairs(trimmed),
    }
}

fn duration(text: &str) -> Result<Value, Mismatch> {
    let parsed: WireDuration = text.parse().map_err(|_| {
        let bare = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let fix = if bare {
            format!("add a unit, as in {text}s")
        } else {
            format!("use {}", Kind::Duration.describe())
        };
        mismatch(format!("\"{}\" is not a duration", excerpt(text)), fix)
    })?;
    if parsed.to_std().is_none() {
        let what = format!("\"{}\" is negative", excerpt(text));
        return Err(mismatch(what, "use a duration of zero or more".to_owned()));
    }
    Ok(Value::Duration(parsed))
}

fn choice(text: &str, words: &'static [&'static str]) -> Result<Value, Mismatch> {
    let lower = text.to_ascii_lowercase();
    if words.contains(&lower.as_str()) {
        return Ok(Value::Text(lower));
    }
    let mut fix = format!("use {}", Kind::Choice(words).describe());
    if let Some(word) = closest(&lower, words.iter().copied()) {
        fix = format!("did you mean {word}? {fix}");
    }
    Err(mismatch(format!("\"{}\" is not known here", excerpt(text)), fix))
}

/// `name=text;name=text`.
fn pairs(text: &str) -> Result<Value, Mismatch> {
    let mut map = BTreeMap::new();
    for pair in text.split(';').filter(|pair| !pair.trim().is_empty()) {
        let Some((name, value)) = pair.split_once('=') else {
            // The pair may be a secret: it is not quoted.
            let what = "an entry has no \"=\"".to_owned();
            return Err(mismatch(what, "write name=text;name=text".to_owned()));
        };
        map.insert(name.trim().to_owned(), value.trim().to_owned());
    }
    Ok(Value::Map(map))
}

/// A value from a node of a file. `None`: the node is null, the key counts as not set.
pub(crate) fn from_node(kind: Kind, node: &Node) -> Result<Option<Value>, Mismatch> {
    if node.is_null() {
        return Ok(None);
    }
    match (kind, &node.data) {
        // An empty duration or choice is how old files say "as usual".
        (Kind::Duration | Kind::Choice(_), Data::Scalar(text, _)) if text.trim().is_empty() => Ok(None),
        (_, Data::Scalar(text, _)) => from_text(kind, text).map(Some),
        (Kind::List | Kind::SecretList, Data::List(items)) => {
            let texts = items.iter().map(|item| scalar(item, "an item of a list"));
            texts.collect::<Result<_, _>>().map(|items| Some(Value::List(items)))
        }
        (Kind::Map | Kind::SecretMap, Data::Map(entries)) => {
            let pairs =
                entries.iter().map(|(name, value)| Ok((name.text.clone(), scalar(value, "a value")?)));
            pairs.collect::<Result<_, _>>().map(|map| Some(Value::Map(map)))
        }
        (_, Data::List(_)) => {
            Err(mismatch("a list stands here".to_owned(), format!("use {}", kind.describe())))
        }
        (_, Data::Map(_)) => {
            Err(mismatch("a group of keys stands here".to_owned(), format!("use {}", kind.describe())))
        }
    }
}

fn scalar(node: &Node, what: &str) -> Result<String, Mismatch> {
    match &node.data {
        Data::Scalar(text, _) if !node.is_null() => Ok(text.clone()),
        _ => Err(Mismatch {
            line: Some(node.line),
            what: format!("{what} must be a text"),
            fix: "write a word, in quotes if it is empty".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fix(kind: Kind, text: &str) -> String {
        from_text(kind, text).unwrap_err().fix
    }

    #[test]
    fn texts() {
        assert_eq!(from_text(Kind::Bool, "True"), Ok(Value::Bool(true)));
        assert_eq!(
            from_text(Kind::List, " a, b ,,c"),
            Ok(Value::List(vec!["a".into(), "b".into(), "c".into()]))
        );
        assert_eq!(from_text(Kind::Int { min: 0, max: 9 }, "7"), Ok(Value::Int(7)));
        assert_eq!(from_text(Kind::Duration, "0"), Ok(Value::Duration(WireDuration::default())));
        let map = BTreeMap::from([("/tmp".to_owned(), "size=64m,mode=1777".to_owned())]);
        assert_eq!(from_text(Kind::Map, "/tmp=size=64m,mode=1777;"), Ok(Value::Map(map)));
    }

    #[test]
    fn mistakes_come_with_a_fix() {
        assert_eq!(fix(Kind::Duration, "30"), "add a unit, as in 30s");
        assert_eq!(fix(Kind::Duration, "-1s"), "use a duration of zero or more");
        assert_eq!(
            fix(Kind::Choice(&["json", "pretty"]), "jsno"),
            "did you mean json? use one of json, pretty"
        );
        assert_eq!(fix(Kind::Int { min: 0, max: 65_535 }, "70000"), "use a whole number from 0 to 65535");
        assert!(from_text(Kind::Bool, "yes").is_err());
        assert!(from_text(Kind::SecretMap, "secret").unwrap_err().what.find("secret").is_none());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,80}") {
            for key in crate::KEYS {
                let _ = from_text(key.kind, &text);
            }
        }
    }
}
