//! Settings for people and programs: YAML that could be a configuration file, JSON, and the reference of keys.

use crate::{
    key::{Effect, Kind},
    table::KEYS,
    value::{Origin, Setting, Settings, Value},
};
use serde_json::{Map, Value as Json, json};
use std::fmt::Write;

/// Column where origins start.
const COLUMN: usize = 44;

/// A configuration file with these values, each with its origin behind it. Secrets that are set stand in comments
/// without their value. With `only_set`, values that are defaults are left out.
pub fn to_yaml(settings: &Settings, only_set: bool) -> String {
    let mut out = String::new();
    let mut open: Vec<&str> = Vec::new();
    for setting in settings.iter() {
        if only_set && setting.origin == Origin::Default {
            continue;
        }
        let parts: Vec<&str> = setting.key.name.split('.').collect();
        let Some((last, groups)) = parts.split_last() else { continue };
        let common = open.iter().zip(groups).take_while(|(a, b)| a == b).count();
        open.truncate(common);
        for group in &groups[common..] {
            let _ = writeln!(out, "{}{group}:", "  ".repeat(open.len()));
            open.push(group);
        }
        let hidden = setting.key.secret() && !is_empty(&setting.value);
        let line = if hidden {
            format!("{}# {last}: (set)", "  ".repeat(open.len()))
        } else {
            format!("{}{last}: {}", "  ".repeat(open.len()), yaml(&setting.value))
        };
        let origin: String =
            setting.origin.to_string().chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        let _ = writeln!(out, "{line:<COLUMN$}  # {origin}");
    }
    out
}

/// One object for each key: `key`, `value` (null for a secret), `set` (false for an empty one), `origin`, `variable`,
/// `secret`, `effect`.
pub fn to_json(settings: &Settings, only_set: bool) -> Json {
    let shown = settings.iter().filter(|s| !only_set || s.origin != Origin::Default);
    shown.map(object).collect()
}

fn object(setting: &Setting) -> Json {
    let secret = setting.key.secret();
    json!({
        "key": setting.key.name,
        "value": if secret { Json::Null } else { to_json_value(&setting.value) },
        "set": !is_empty(&setting.value),
        "origin": setting.origin.to_string(),
        "variable": setting.key.variable(),
        "secret": secret,
        "effect": setting.key.effect == Effect::Live,
    })
}

fn to_json_value(value: &Value) -> Json {
    match value {
        Value::Text(text) => json!(text),
        Value::Bool(on) => json!(on),
        Value::Int(int) => json!(int),
        Value::Duration(duration) => json!(duration.to_string()),
        Value::List(items) => json!(items),
        Value::Map(map) => {
            Json::Object(map.iter().map(|(k, v)| (k.clone(), json!(v))).collect::<Map<_, _>>())
        }
    }
}

/// One object for each key there is: `key`, `variable`, `takes`, `default`, `meaning`, `effect`.
pub fn reference_json() -> Json {
    let object = |key: &crate::Key| {
        json!({
            "key": key.name,
            "variable": key.variable(),
            "takes": key.kind.describe(),
            "default": key.default,
            "meaning": key.doc,
            "effect": key.effect == Effect::Live,
        })
    };
    KEYS.iter().map(object).collect()
}

/// Every key as a table in Markdown.
pub fn reference() -> String {
    let mut out = "| Key | Variable | Takes | Default | Meaning |\n|---|---|---|---|---|\n".to_owned();
    for key in KEYS {
        let default = match (key.default, key.kind) {
            ("", Kind::List | Kind::SecretList) => "`[]`".to_owned(),
            ("", Kind::Map | Kind::SecretMap) => "`{}`".to_owned(),
            ("", _) => String::new(),
            (default, _) => format!("`{default}`"),
        };
        let note = if key.effect == Effect::None { " No effect in this version." } else { "" };
        let _ = writeln!(
            out,
            "| `{}` | `{}` | {} | {default} | {}{note} |",
            key.name,
            key.variable(),
            key.kind.describe(),
            key.doc
        );
    }
    out
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Text(text) => text.is_empty(),
        Value::List(items) => items.is_empty(),
        Value::Map(map) => map.is_empty(),
        Value::Bool(_) | Value::Int(_) | Value::Duration(_) => false,
    }
}

fn yaml(value: &Value) -> String {
    match value {
        Value::Text(text) => scalar(text),
        Value::Bool(on) => on.to_string(),
        Value::Int(int) => int.to_string(),
        Value::Duration(duration) => scalar(&duration.to_string()),
        Value::List(items) => {
            format!("[{}]", items.iter().map(|item| quoted(item)).collect::<Vec<_>>().join(", "))
        }
        Value::Map(map) => {
            let pairs = map.iter().map(|(name, text)| format!("{}: {}", quoted(name), quoted(text)));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
        }
    }
}

/// Without quotes where no reader can take it for anything but this text.
fn scalar(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'/' | b'-'))
        && !matches!(
            text.to_ascii_lowercase().as_str(),
            "null" | "true" | "false" | "yes" | "no" | "on" | "off"
        );
    if plain { text.to_owned() } else { quoted(text) }
}

/// In double quotes, with everything escaped that is not a printable ASCII character.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            c if (c as u32) < 0x100 => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c if (c as u32) < 0x1_0000 => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => {
                let _ = write!(out, "\\U{:08x}", c as u32);
            }
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{file, load::defaults};
    use proptest::prelude::*;
    use std::path::{Path, PathBuf};

    /// Any value of any kind; kinds with bounds stay within.
    fn values() -> impl Strategy<Value = Settings> {
        let text = prop_oneof![
            "\\PC{0,20}",
            "(?s).{0,20}",
            "[a-z0-9./_-]{0,12}",
            Just("null".to_owned()),
            Just("~".to_owned())
        ];
        let texts = proptest::collection::vec(text.clone(), 0..4);
        (text, texts, any::<u16>(), any::<bool>()).prop_map(|(text, texts, int, on)| {
            let mut settings = defaults();
            for setting in &mut settings.0 {
                setting.origin = Origin::File(PathBuf::from(&text), 1);
                setting.value = match (&setting.value, setting.key.kind) {
                    (_, Kind::Choice(words)) => Value::Text(words[usize::from(int) % words.len()].to_owned()),
                    (Value::Text(_), _) => Value::Text(text.clone()),
                    (Value::Bool(_), _) => Value::Bool(on),
                    (Value::Int(_), _) => Value::Int(int.into()),
                    (Value::Duration(_), _) => {
                        Value::Duration(stacyvm_types::WireDuration::from_nanos(i64::from(int) * 1_234_567))
                    }
                    (Value::List(_), _) => Value::List(texts.clone()),
                    (Value::Map(_), _) => Value::Map(texts.iter().map(|t| (t.clone(), t.clone())).collect()),
                };
            }
            settings
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_shown_reads_back_as_it_was(settings in values()) {
            let shown = to_yaml(&settings, true);
            let content = file::parse(Path::new("shown"), &shown);
            prop_assert!(content.problems.is_empty() && content.warnings.is_empty(), "{content:?}\n{shown}");
            let mut read = content.values.into_iter();
            for setting in settings.iter().filter(|s| !s.key.secret() || is_empty(&s.value)) {
                let (key, value, _) = read.next().unwrap();
                prop_assert_eq!(key.name, setting.key.name);
                prop_assert_eq!(value, setting.value.clone());
            }
        }
    }

    #[test]
    fn origins_stand_behind_values() {
        let mut settings = defaults();
        let port = settings.get_mut("server.port").unwrap();
        port.value = Value::Int(1);
        port.origin = Origin::Env("STACYVM_SERVER_PORT".to_owned());
        assert_eq!(
            to_yaml(&settings, true),
            format!("server:\n{:<44}  # env STACYVM_SERVER_PORT\n", "  port: 1")
        );
        assert!(to_yaml(&settings, false).contains("  host: \"\""));
    }

    #[test]
    fn secrets_are_never_shown() {
        let mut settings = defaults();
        for setting in settings.0.iter_mut().filter(|s| s.key.secret()) {
            setting.value = match setting.value {
                Value::List(_) => Value::List(vec!["hunter2".to_owned()]),
                Value::Map(_) => Value::Map([("id".to_owned(), "hunter2".to_owned())].into()),
                _ => Value::Text("hunter2".to_owned()),
            };
        }
        let shown = to_yaml(&settings, false) + &to_json(&settings, false).to_string();
        assert!(!shown.contains("hunter2") && shown.contains("# api_key: (set)"));
    }

    #[test]
    fn the_reference_names_every_key() {
        let reference = reference();
        assert!(KEYS.iter().all(|key| reference.contains(&format!(
            "| `{}` | `{}` |",
            key.name,
            key.variable()
        ))));
    }
}
