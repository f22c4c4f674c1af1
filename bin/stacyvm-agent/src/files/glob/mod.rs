//! Finding files by pattern: walks from the last directory that the pattern names without a wildcard, and only into
//! directories that a match can be in.

mod pattern;

use super::{
    Cancel, MOST_FILES, MOST_NAMES, info, list::Batch, open::without_links, path::SandboxPath, resolve::Root,
};
use crate::fail::{Fail, Result};
use pattern::{Pattern, Progress};
use rustix::{
    fs::{Dir, FileType, Mode, OFlags},
    io::Errno,
};
use stacyvm_guest::proto::FileInfos;
use std::{ffi::CString, os::fd::OwnedFd, vec};

/// Most entries looked at.
const MOST_ENTRIES: usize = 2_000_000;

/// What a pattern matched, being told.
#[derive(Debug)]
pub(crate) struct Matches {
    base: SandboxPath,
    directory: Option<OwnedFd>,
    /// Relative to the base.
    paths: vec::IntoIter<Vec<u8>>,
}

/// Finds everything that matches `pattern`, sorted. Symbolic links below the pattern's literal beginning are not entered.
///
/// # Errors
/// `InvalidArgument` for a malformed pattern; `ResourceExhausted` for more than `limit` matches.
pub(crate) fn find(root: &Root, pattern: &str, limit: u32, cancel: &Cancel) -> Result<Matches> {
    let pattern = Pattern::parse(pattern)?;
    let base = SandboxPath::parse(&pattern.base)?;
    let limit = match usize::try_from(limit) {
        Ok(limit) if limit > 0 => limit.min(MOST_FILES),
        _ => MOST_FILES,
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let directory = match root.open(&base, flags, Mode::empty()) {
        Ok(directory) => directory,
        // Nothing there: nothing matches.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS | Errno::LOOP) => {
            return Ok(Matches { base, directory: None, paths: Vec::new().into_iter() });
        }
        Err(errno) => return Err(Fail::errno(base.as_str(), errno)),
    };
    let waiting = vec![(Vec::new(), pattern.start())];
    let mut walk = Walk { pattern: &pattern, limit, found: Vec::new(), waiting, entries: 0, memory: 0 };
    while let Some((below, progress)) = walk.waiting.pop() {
        cancel.check()?;
        walk.memory -= cost(&below, &progress);
        let name = if below.is_empty() { b"." } else { &*below };
        let opened = without_links(&directory, name, flags);
        let looked = opened.and_then(Dir::new).map(|entries| walk.look_into(entries, &below, &progress));
        match looked {
            Ok(result) => result?,
            // Removed or replaced meanwhile, closed to us, or deeper than a path can be.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS | Errno::LOOP | Errno::NAMETOOLONG) => {}
            Err(errno) => return Err(Fail::errno(base.as_str(), errno)),
        }
    }
    let mut paths = walk.found;
    paths.sort_unstable();
    Ok(Matches { base, directory: Some(directory), paths: paths.into_iter() })
}

/// Bytes that a directory takes until it is looked into. The walk begins with one that was never counted, and is empty.
fn cost(below: &[u8], progress: &Progress) -> usize {
    if below.is_empty() { 0 } else { below.len() + size_of_val(progress.as_slice()) }
}

struct Walk<'a> {
    pattern: &'a Pattern,
    limit: usize,
    found: Vec<Vec<u8>>,
    /// Directories to look into, with how far the pattern has come there.
    waiting: Vec<(Vec<u8>, Progress)>,
    entries: usize,
    /// Bytes of everything kept.
    memory: usize,
}

impl Walk<'_> {
    fn look_into(&mut self, mut entries: Dir, below: &[u8], progress: &Progress) -> Result<()> {
        let too_many = |what: String| Fail::exhausted(format!("{what}; ask for a smaller part of the tree"));
        while let Some(entry) = entries.read() {
            // Removed under way: what was there is no match any more.
            let Ok(entry) = entry else { break };
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            self.entries += 1;
            if self.entries > MOST_ENTRIES {
                return Err(too_many(format!("the pattern leads through more than {MOST_ENTRIES} files")));
            }
            let (matches, onward) = self.pattern.step(progress, name);
            let may_be_directory = matches!(entry.file_type(), FileType::Directory | FileType::Unknown);
            let enters = may_be_directory && !onward.is_empty();
            if !matches && !enters {
                continue;
            }
            let path = if below.is_empty() { name.to_vec() } else { [below, b"/", name].concat() };
            if matches {
                if self.found.len() == self.limit {
                    return Err(too_many(format!("more than {} files match", self.limit)));
                }
                self.memory += path.len();
                self.found.push(path.clone());
            }
            if enters {
                self.memory += cost(&path, &onward);
                self.waiting.push((path, onward));
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
            let Ok(name) = CString::new(path) else { continue };
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
    use globset::GlobBuilder;
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
        let every_text =
            &["/.hidden/a.txt", "/a.txt", "/d/a.txt", "/d/e/a.txt", "/d/x{y}.txt", "/g/[z].txt"][..];
        for (pattern, expected) in [
            ("/*.txt", &["/a.txt"][..]),
            ("/**/*.txt", every_text),
            ("/**/**/*.txt", every_text),
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
        assert_eq!(paths(&root, "/*.rs").len(), 1);
        assert!(find(&root, "/*.rs", 1, &Cancel::default()).is_ok());
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
        fn the_walk_misses_nothing(parts in proptest::collection::vec(
            prop_oneof![
                Just("*"), Just("**"), Just("?"), Just("d"), Just("e"), Just("{d,e}"), Just("{d/e,g}"), Just("*.txt"),
                Just("[a-g]"),
            ],
            1..5,
        )) {
            thread_local!(static SANDBOX: (tempfile::TempDir, Root) = sandbox(&FILES));
            SANDBOX.with(|(directory, root)| {
                let pattern = format!("/{}", parts.join("/"));
                let glob = GlobBuilder::new(&pattern).literal_separator(true).build().unwrap();
                let matcher = glob.compile_matcher();
                let mut expected = Vec::new();
                everything(directory.path(), "", &mut expected);
                expected.retain(|path| matcher.is_match(path));
                expected.sort();
                assert_eq!(paths(root, &pattern), expected, "{pattern}");
            });
        }
    }
}
