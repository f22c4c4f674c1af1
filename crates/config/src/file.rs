//! The configuration file: which one, and what it sets.

use crate::{
    key::Key,
    problem::{Place, Problem, closest, excerpt},
    table::{KEYS, find},
    value::{self, Value},
    yaml::{self, Data, Node},
};
use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// Largest file read.
const BYTES: u64 = 1024 * 1024;

/// What a file sets, and what is wrong with it.
#[derive(Debug, Default)]
pub(crate) struct FileContent {
    pub(crate) values: Vec<(&'static Key, Value, usize)>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) warnings: Vec<Problem>,
}

/// The text of a file, at most `limit` bytes.
pub(crate) fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("larger than {limit} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8 text"))
}

/// The file to read: the one named, or the first usual one that exists.
pub(crate) fn choose(named: Option<&Path>, cwd: &Path, home: Option<&Path>) -> Option<PathBuf> {
    if let Some(path) = named {
        return Some(cwd.join(path));
    }
    let here = cwd.join("stacyvm.yaml");
    let there = home.map(|home| home.join(".stacyvm/config.yaml"));
    // A name that exists and cannot be looked at is the one that was meant: reading it says why not.
    [Some(here), there].into_iter().flatten().find(|path| path.symlink_metadata().is_ok())
}

/// Reads `path`.
pub(crate) fn read(path: &Path) -> FileContent {
    match read_text(path, BYTES) {
        Ok(text) => parse(path, &text),
        Err(error) => {
            let fix = match error.kind() {
                io::ErrorKind::NotFound => "name a file that exists",
                io::ErrorKind::PermissionDenied => "let this user read it",
                _ => "",
            };
            let problem =
                Problem::new(Place::File(path.to_owned(), 0), format!("cannot be read: {error}"), fix);
            FileContent { problems: vec![problem], ..FileContent::default() }
        }
    }
}

/// What `text`, found at `path`, sets.
pub(crate) fn parse(path: &Path, text: &str) -> FileContent {
    let mut walk = Walk { path, out: FileContent::default(), seen: HashMap::new() };
    match yaml::parse(text) {
        Err(malformed) => {
            let fix = "check indentation, quotes and brackets at and above this line";
            walk.problem(malformed.line, format!("not YAML: {}", malformed.what), fix);
        }
        Ok(document) => {
            if let Some(line) = document.another {
                walk.warning(line, "a second document starts here and is not read".to_owned(), "");
            }
            match document.root {
                Some(Node { data: Data::Map(entries), .. }) => walk.group("", &entries),
                Some(root) if !root.is_null() => {
                    walk.problem(root.line, "not a group of keys".to_owned(), "write keys, as in server:");
                }
                _ => {}
            }
        }
    }
    walk.out
}

struct Walk<'a> {
    path: &'a Path,
    out: FileContent,
    seen: HashMap<&'static str, usize>,
}

impl Walk<'_> {
    fn place(&self, line: usize) -> Place {
        Place::File(self.path.to_owned(), line)
    }

    fn problem(&mut self, line: usize, what: String, fix: impl Into<String>) {
        let place = self.place(line);
        self.out.problems.push(Problem::new(place, what, fix));
    }

    fn warning(&mut self, line: usize, what: String, fix: impl Into<String>) {
        let place = self.place(line);
        self.out.warnings.push(Problem::new(place, what, fix));
    }

    /// Keys are compared in lower case, and `server.port: 1` means the same as nesting it.
    fn group(&mut self, prefix: &str, entries: &[(yaml::Name, Node)]) {
        for (name, node) in entries {
            let lower = name.text.to_lowercase();
            let path = if prefix.is_empty() { lower } else { format!("{prefix}.{lower}") };
            if let Some(key) = find(&path) {
                self.key(key, name.line, node);
            } else if is_group(&path) {
                match &node.data {
                    Data::Map(entries) => self.group(&path, entries),
                    _ if node.is_null() => {}
                    _ => {
                        let example = KEYS.iter().find(|key| key.name.starts_with(&format!("{path}.")));
                        let fix = example.map(|key| format!("nest its keys below it, as in {}", key.name));
                        self.problem(
                            name.line,
                            format!("{path} is a group of keys"),
                            fix.unwrap_or_default(),
                        );
                    }
                }
            } else {
                let fix = suggestion(&path).map_or_else(
                    || "remove it; `stacyvm config reference` lists every key".to_owned(),
                    |name| format!("did you mean {name}?"),
                );
                self.warning(name.line, format!("unknown key {}", excerpt(&path)), fix);
            }
        }
    }

    fn key(&mut self, key: &'static Key, line: usize, node: &Node) {
        if let Some(first) = self.seen.insert(key.name, line) {
            self.problem(
                line,
                format!("{} is set twice, first in line {first}", key.name),
                "keep one of the two",
            );
            return;
        }
        match value::from_node(key.kind, node) {
            Ok(Some(value)) => self.out.values.push((key, value, line)),
            Ok(None) => {}
            Err(mismatch) => {
                let what = if key.secret() { "not a value that it takes".to_owned() } else { mismatch.what };
                self.problem(mismatch.line.unwrap_or(line), format!("{}: {what}", key.name), mismatch.fix);
            }
        }
    }
}

fn is_group(path: &str) -> bool {
    KEYS.iter().any(|key| key.name.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

/// The key or group most likely meant: close as a whole, or the same last part in another group.
fn suggestion(path: &str) -> Option<&'static str> {
    let groups = KEYS.iter().flat_map(|key| key.name.match_indices('.').map(|(at, _)| &key.name[..at]));
    if let Some(name) = closest(path, KEYS.iter().map(|key| key.name).chain(groups)) {
        return Some(name);
    }
    let last = path.rsplit('.').next()?;
    let mut same = KEYS.iter().filter(|key| key.name.rsplit('.').next() == Some(last));
    match (same.next(), same.next()) {
        (Some(only), None) => Some(only.name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn content(text: &str) -> FileContent {
        parse(Path::new("f.yaml"), text)
    }

    fn texts(problems: &[Problem]) -> Vec<String> {
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn values_with_lines() {
        let content =
            content("server:\n  Port: 8080\n  cors_allowed_origins: [https://a.b, 'c']\ndefaults.ttl: 1h\n");
        let got: Vec<_> = content.values.iter().map(|(key, _, line)| (key.name, *line)).collect();
        assert_eq!(got, [("server.port", 2), ("server.cors_allowed_origins", 3), ("defaults.ttl", 4)]);
        assert!(content.problems.is_empty() && content.warnings.is_empty());
    }

    #[test]
    fn all_mistakes_at_once() {
        let content =
            content("server:\n  port: many\n  hots: a\ndefaults:\n  ttl: 30\nprovider: 1\nauth: x\n");
        assert_eq!(
            texts(&content.problems),
            [
                "f.yaml:2: server.port: \"many\" is not a whole number\n  fix: use a whole number from 0 to 65535",
                "f.yaml:5: defaults.ttl: \"30\" is not a duration\n  fix: add a unit, as in 30s",
                "f.yaml:7: auth is a group of keys\n  fix: nest its keys below it, as in auth.enabled",
            ]
        );
        assert_eq!(
            texts(&content.warnings),
            [
                "f.yaml:3: unknown key server.hots\n  fix: did you mean server.host?",
                "f.yaml:6: unknown key provider\n  fix: did you mean providers?",
            ]
        );
    }

    #[test]
    fn a_key_in_the_wrong_group_is_found() {
        assert_eq!(suggestion("allowed_runtimes"), Some("providers.docker.allowed_runtimes"));
        assert_eq!(suggestion("network_mode"), None, "of which provider?");
        assert_eq!(suggestion("something.else"), None);
    }

    #[test]
    fn twice_is_a_mistake() {
        let content = content("server:\n  port: 1\nSERVER:\n  port: 2\n");
        assert_eq!(content.problems[0].what, "server.port is set twice, first in line 2");
    }

    #[test]
    fn secrets_are_not_quoted_back() {
        let content = content("auth:\n  api_key: [hunter2]\n  worker_signing_keys: {a: hunter2}\n");
        assert_eq!(content.problems.len(), 2);
        assert!(texts(&content.problems).iter().all(|text| !text.contains("hunter2")));
    }

    #[test]
    fn empty_files_and_empty_keys_set_nothing() {
        for text in [
            "",
            "# only words\n",
            "---\n",
            "server:\n",
            "server:\n  port:\n  host: ~\n",
            "defaults: {ttl: ''}",
        ] {
            let content = content(text);
            assert!(content.values.is_empty() && content.problems.is_empty(), "{text:?}: {content:?}");
        }
    }

    proptest! {
        #[test]
        fn no_file_panics(parts in proptest::collection::vec(prop_oneof![
            Just("server:\n".to_owned()), Just("  port: ".to_owned()), Just("auth: ".to_owned()), Just("[".to_owned()),
            Just("]".to_owned()), Just("\n".to_owned()), Just("worker_tokens: {a: b}".to_owned()), "\\PC{0,20}"], 0..20)) {
            let _ = content(&parts.concat());
        }
    }
}
