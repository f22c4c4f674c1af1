//! What one configuration key is: name, kind, default, meaning.

/// A configuration key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Dotted lower-case path: `providers.default`.
    pub name: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// Default, spelled as in a variable; empty where it is empty or computed (the meaning says how).
    pub default: &'static str,
    /// Whether this version acts on it.
    pub effect: Effect,
    /// Meaning, in a sentence.
    pub doc: &'static str,
}

/// What values a key takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// Text that is never shown. A key of the same name with `_file` names a file that holds it.
    Secret,
    /// `true` or `false`.
    Bool,
    /// A whole number within bounds.
    Int {
        /// Least.
        min: i64,
        /// Most.
        max: i64,
    },
    /// A duration of zero or more, as `30s` or `1h30m`.
    Duration,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Texts; comma separated in a variable.
    List,
    /// Texts that are never shown.
    SecretList,
    /// Names and texts; `name=text;name=text` in a variable.
    Map,
    /// Names and texts, the texts never shown.
    SecretMap,
}

/// Whether this version acts on a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It does what its meaning says.
    Live,
    /// It is read and checked, so that existing files load, and changes nothing in this version.
    None,
}

impl Key {
    /// The variable that sets it: `STACYVM_` and the path in capitals with `_` for `.`.
    pub fn variable(&self) -> String {
        format!("STACYVM_{}", self.name.to_ascii_uppercase().replace('.', "_"))
    }

    /// Its value must not be shown.
    pub fn secret(&self) -> bool {
        matches!(self.kind, Kind::Secret | Kind::SecretList | Kind::SecretMap)
    }
}

impl Kind {
    /// What it takes, for people.
    pub fn describe(&self) -> String {
        match self {
            Self::Text => "text".to_owned(),
            Self::Secret => "secret text".to_owned(),
            Self::Bool => "true or false".to_owned(),
            Self::Int { min: i64::MIN, max: i64::MAX } => "a whole number".to_owned(),
            Self::Int { min, max: i64::MAX } => format!("a whole number of at least {min}"),
            Self::Int { min, max } => format!("a whole number from {min} to {max}"),
            Self::Duration => "a duration, as in 30s, 5m or 1h30m".to_owned(),
            Self::Choice(words) => format!("one of {}", words.join(", ")),
            Self::List => "a list of texts".to_owned(),
            Self::SecretList => "a list of secret texts".to_owned(),
            Self::Map => "names and texts".to_owned(),
            Self::SecretMap => "names and secret texts".to_owned(),
        }
    }
}
