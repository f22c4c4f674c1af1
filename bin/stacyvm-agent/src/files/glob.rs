//! Finding files by pattern: walks from the last directory that the pattern names without a wildcard, and only into
//! directories that a match could be in.

use super::{Cancel, MOST_FILES, MOST_NAMES, info, list::Batch, path::SandboxPath, resolve::Root};
use crate::fail::{Fail, Result};
use globset::{Glob, GlobBuilder, GlobMatcher};
use rustix::{
    fs::{Dir, FileType, Mode, OFlags, ResolveFlags, openat2},
    io::Errno,
};
use stacyvm_guest::proto::FileInfos;
use std::{ffi::OsStr, os::unix::ffi::OsStrExt, vec};

/// Longest pattern, in bytes.
const LONGEST: usize = 4096;
/// Most entries looked at.
const MOST_ENTRIES: usize = 2_000_000;

/// A pattern, taken apart.
#[derive(Debug)]
struct Pattern {
    /// Directory to start from.
    base: SandboxPath,
    whole: GlobMatcher,
    /// One for each component below `base` that a directory must match to be entered; `None` where any may.
    directories: Vec<GlobMatcher>,
    /// Components below `base` that a match can have at most; `None`: any number.
    deepest: Option<usize>,
}

fn compile(pattern: &str) -> Result<Glob> {
    let built = GlobBuilder::new(pattern).literal_separator(true).backslash_escape(true).build();
    built.map_err(|error| Fail::invalid(format!("the pattern is malformed: {}", error.kind())))
}

fn has_wildcard(component: &str) -> bool {
    component.contains(['*', '?', '[', ']', '{', '}', '\\'])
}

impl Pattern {
    fn parse(text: &str) -> Result<Self> {
        if text.len() > LONGEST {
            return Err(Fail::invalid(format!("the pattern is longer than {LONGEST} bytes")));
        }
        // Tidied as a path, so that it matches the paths that the walk makes. A slash within brackets is no separator,
        // but `//` and `/./` there mean nothing sensible either.
        let tidy = SandboxPath::parse(text)?;
        let components: Vec<&str> = tidy.as_str().split('/').skip(1).collect();
        if components.contains(&"..") {
            return Err(Fail::invalid("a pattern cannot contain .."));
        }
        let whole = compile(tidy.as_str())?.compile_matcher();
        let literal = components.iter().take_while(|component| !has_wildcard(component)).count();
        // The last component names what is looked for, even without a wildcard.
        let literal = literal.min(components.len().saturating_sub(1));
        let base = SandboxPath::parse(&format!("/{}", components[..literal].join("/")))?;
        let rest = &components[literal..];
        // Brackets may reach across a slash, and then components mean nothing.
        let alone = |component: &str| component == "**" || !component.contains("**");
        let separable = rest.iter().all(|component| compile(component).is_ok() && alone(component));
        let any_depth = rest.iter().position(|component| *component == "**");
        let fixed = if separable { any_depth.unwrap_or(rest.len() - 1) } else { 0 };
        let directories: Result<Vec<_>> =
            rest[..fixed].iter().map(|component| Ok(compile(component)?.compile_matcher())).collect();
        let deepest = (separable && any_depth.is_none()).then_some(rest.len());
        Ok(Self { base, whole, directories: directories?, deepest })
    }

    /// Whether a match may be in the directory called `name`, `depth` levels below the base.
    fn enters(&self, name: &[u8], depth: usize) -> bool {
        self.deepest.is_none_or(|deepest| depth < deepest)
            && self.directories.get(depth - 1).is_none_or(|matcher| matcher.is_match(OsStr::from_bytes(name)))
    }

    fn matches(&self, path: &[u8]) -> bool {
        self.whole.is_match(OsStr::from_bytes(path))
    }
}

/// What a pattern matched, being told.
#[derive(Debug)]
pub(crate) struct Matches {
    base: SandboxPath,
    directory: Option<rustix::fd::OwnedFd>,
    /// Relative to the base.
    paths: vec::IntoIter<Vec<u8>>,
}

/// Finds everything that matches `pattern`, sorted. Symbolic links below the pattern's literal beginning are not entered.
///
/// # Errors
/// `InvalidArgument` for a malformed pattern; `ResourceExhausted` for more than `limit` matches.
pub(crate) fn find(root: &Root, pattern: &str, limit: u32, cancel: &Cancel) -> Result<Matches> {
    let pattern = Pattern::parse(pattern)?;
    let limit = match usize::try_from(limit) {
        Ok(limit) if limit > 0 => limit.min(MOST_FILES),
        _ => MOST_FILES,
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let directory = match root.open(&pattern.base, flags, Mode::empty()) {
        Ok(directory) => directory,
        // Nothing there: nothing matches.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS | Errno::LOOP) => {
            return Ok(Matches { base: pattern.base, directory: None, paths: Vec::new().into_iter() });
        }
        Err(errno) => return Err(Fail::errno(pattern.base.as_str(), errno)),
    };
    let mut walk =
        Walk { pattern: &pattern, found: Vec::new(), waiting: vec![Vec::new()], entries: 0, memory: 0 };
    while let Some(below) = walk.waiting.pop() {
        cancel.check()?;
        walk.memory -= below.len();
        let name = if below.is_empty() { b"." } else { &*below };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        match openat2(&directory, name, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Ok(opened) => walk.look_into(&opened, &below, limit)?,
            // Removed or replaced meanwhile, closed to us, or deeper than a path can be.
            Err(
                Errno::NOENT | Errno::NOTDIR | Errno::ACCESS | Errno::LOOP | Errno::NAMETOOLONG | Errno::XDEV,
            ) => {}
            Err(errno) => return Err(Fail::errno(pattern.base.as_str(), errno)),
        }
    }
    let mut paths = walk.found;
    paths.sort_unstable();
    Ok(Matches { base: pattern.base, directory: Some(directory), paths: paths.into_iter() })
}

struct Walk<'a> {
    pattern: &'a Pattern,
    found: Vec<Vec<u8>>,
    waiting: Vec<Vec<u8>>,
    entries: usize,
    /// Bytes of all paths kept.
    memory: usize,
}

impl Walk<'_> {
    fn look_into(&mut self, directory: &rustix::fd::OwnedFd, below: &[u8], limit: usize) -> Result<()> {
        let fail = |errno| Fail::errno(self.pattern.base.as_str(), errno);
        let depth = if below.is_empty() { 1 } else { 2 + below.iter().filter(|byte| **byte == b'/').count() };
        let too_many = |what: String| Fail::exhausted(format!("{what}; ask for a smaller part of the tree"));
        let mut entries = Dir::read_from(directory).map_err(fail)?;
        while let Some(entry) = entries.read() {
            let Ok(entry) = entry else { break };
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            self.entries += 1;
            if self.entries > MOST_ENTRIES {
                return Err(too_many(format!("the pattern leads through more than {MOST_ENTRIES} files")));
            }
            let path = if below.is_empty() { name.to_vec() } else { [below, b"/", name].concat() };
            let base = self.pattern.base.as_str().trim_end_matches('/');
            if self.pattern.matches(&[base.as_bytes(), b"/", &path].concat()) {
                if self.found.len() == limit {
                    return Err(too_many(format!("more than {limit} files match")));
                }
                self.memory += path.len();
                self.found.push(path.clone());
            }
            let may_be_directory = matches!(entry.file_type(), FileType::Directory | FileType::Unknown);
            if may_be_directory && self.pattern.enters(name, depth) {
                self.memory += path.len();
                self.waiting.push(path);
            }
            if self.memory > MOST_NAMES {
                return Err(too_many("the pattern leads through too many files".to_owned()));
            }
        }
        Ok(())
    }
}

impl Matches {
    /// The next matches; `None` behind the last one.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn next(&mut self) -> Result<Option<FileInfos>> {
        let Some(directory) = &self.directory else { return Ok(None) };
        let mut batch = Batch::default();
        for path in self.paths.by_ref() {
            let shown = self.base.entry(&path);
            let Ok(name) = std::ffi::CString::new(path) else { continue };
            // What was removed meanwhile is left out.
            if let Some(file) = info::below(directory, &name, shown)?
                && batch.push(file)
            {
                break;
            }
        }
        Ok(batch.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{fs, os::unix::fs::symlink, path::Path};
    use tonic::Code;

    fn sandbox(files: &[&str]) -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        for file in files {
            let path = directory.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let root = Root::new(Some(directory.path())).unwrap();
        (directory, root)
    }

    fn paths(root: &Root, pattern: &str) -> Vec<String> {
        let mut matches = find(root, pattern, 0, &Cancel::default()).unwrap();
        let mut paths = Vec::new();
        while let Some(batch) = matches.next().unwrap() {
            paths.extend(batch.files.into_iter().map(|file| file.path));
        }
        paths
    }

    const FILES: [&str; 8] =
        ["a.txt", "b.rs", "d/a.txt", "d/e/a.txt", "d/e/f/b.rs", "d/x{y}.txt", "g/[z].txt", ".hidden/a.txt"];

    #[test]
    fn patterns_mean_what_the_protocol_says() {
        let (_directory, root) = sandbox(&FILES);
        for (pattern, expected) in [
            ("/*.txt", &["/a.txt"][..]),
            (
                "/**/*.txt",
                &["/.hidden/a.txt", "/a.txt", "/d/a.txt", "/d/e/a.txt", "/d/x{y}.txt", "/g/[z].txt"],
            ),
            ("/d/*/a.txt", &["/d/e/a.txt"]),
            ("/d/**/a.txt", &["/d/a.txt", "/d/e/a.txt"]),
            ("/{d,g}/*", &["/d/a.txt", "/d/e", "/d/x{y}.txt", "/g/[z].txt"]),
            ("/d/{a.txt,e/a.txt}", &["/d/a.txt", "/d/e/a.txt"]),
            ("/?.rs", &["/b.rs"]),
            ("/[ab].*", &["/a.txt", "/b.rs"]),
            ("/[!a].*", &["/b.rs"]),
            ("/d/x\\{y\\}.txt", &["/d/x{y}.txt"]),
            ("/d/e", &["/d/e"]),
            ("//d/./a.txt", &["/d/a.txt"]),
            ("/d/e/**", &["/d/e/a.txt", "/d/e/f", "/d/e/f/b.rs"]),
            ("/none/**", &[]),
            ("/a.txt/*", &[]),
        ] {
            assert_eq!(paths(&root, pattern), expected, "{pattern}");
        }
    }

    #[test]
    fn links_are_found_and_not_entered() {
        let (directory, root) = sandbox(&["d/a"]);
        symlink("d", directory.path().join("link")).unwrap();
        symlink("..", directory.path().join("d/up")).unwrap();
        assert_eq!(paths(&root, "/**"), ["/d", "/d/a", "/d/up", "/link"]);
        // The literal beginning is followed like any path.
        assert_eq!(paths(&root, "/link/*"), ["/link/a", "/link/up"]);
    }

    #[test]
    fn limits_and_mistakes_are_named() {
        let (_directory, root) = sandbox(&FILES);
        let code = |pattern: &str, limit| find(&root, pattern, limit, &Cancel::default()).unwrap_err().code();
        assert_eq!(code("/**", 3), Code::ResourceExhausted);
        assert_eq!(code("relative", 0), Code::InvalidArgument);
        assert_eq!(code("/[", 0), Code::InvalidArgument);
        assert_eq!(code("/{a", 0), Code::InvalidArgument);
        assert_eq!(code("/../*", 0), Code::InvalidArgument);
        let cancel = Cancel::default();
        drop(cancel.guard());
        assert!(find(&root, "/**", 0, &cancel).is_err());
    }

    fn everything(directory: &Path, below: &str, out: &mut Vec<String>) {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{below}/{}", entry.file_name().to_str().unwrap());
            if entry.file_type().unwrap().is_dir() {
                everything(&entry.path(), &path, out);
            }
            out.push(path);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn pruning_loses_nothing(parts in proptest::collection::vec(
            prop_oneof![Just("*"), Just("**"), Just("?"), Just("d"), Just("e"), Just("{d,e}"), Just("{d/e,g}"), Just("*.txt"), Just("[a-g]")],
            1..5,
        )) {
            thread_local!(static SANDBOX: (tempfile::TempDir, Root) = sandbox(&FILES));
            SANDBOX.with(|(directory, root)| {
                let pattern = format!("/{}", parts.join("/"));
                let matcher = compile(&pattern).unwrap().compile_matcher();
                let mut expected = Vec::new();
                everything(directory.path(), "", &mut expected);
                expected.retain(|path| matcher.is_match(path));
                expected.sort();
                assert_eq!(paths(root, &pattern), expected, "{pattern}");
            });
        }

        #[test]
        fn no_pattern_makes_it_panic(pattern in ".{0,30}") {
            let _ = Pattern::parse(&pattern);
            let _ = Pattern::parse(&format!("/{pattern}"));
        }
    }
}
