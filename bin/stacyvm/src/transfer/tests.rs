//! Copies against a sandbox that is a map of paths.

use super::*;
use futures::{StreamExt, TryStreamExt, stream};
use std::{cell::RefCell, collections::BTreeMap, os::unix::fs::PermissionsExt};

/// Content and permission bits of a file; nothing for a directory.
type Node = Option<(Vec<u8>, u32)>;

/// Files by path: content and permission bits; directories have none.
#[derive(Default)]
struct Fake {
    files: RefCell<BTreeMap<String, Node>>,
    /// Listed by every directory, beside what is there.
    lies: Vec<Entry>,
}

impl Fake {
    fn with(paths: &[(&str, Option<&str>)]) -> Self {
        let files = paths.iter().map(|(path, content)| {
            ((*path).to_owned(), content.map(|content| (content.as_bytes().to_vec(), 0o640)))
        });
        Self { files: RefCell::new(files.collect()), lies: Vec::new() }
    }

    /// Paths with their content.
    fn shown(&self) -> Vec<String> {
        let files = self.files.borrow();
        let line = |(path, content): (&String, &Node)| match content {
            Some((content, mode)) => format!("{path} {} {mode:o}", String::from_utf8_lossy(content)),
            None => format!("{path}/"),
        };
        files.iter().map(line).collect()
    }
}

impl Files for Fake {
    async fn stat(&self, path: &str) -> Result<Option<Entry>> {
        Ok(self.files.borrow().get(path.trim_end_matches("/.")).map(|content| Entry {
            path: path.to_owned(),
            kind: if content.is_some() { Kind::File } else { Kind::Directory },
            mode: content.as_ref().map_or(0o755, |(_, mode)| *mode),
        }))
    }

    async fn list(&self, path: &str) -> Result<Vec<Entry>> {
        let start = format!("{}/", path.trim_end_matches("/."));
        let names: Vec<String> = self
            .files
            .borrow()
            .keys()
            .filter(|name| name.strip_prefix(&start).is_some_and(|rest| !rest.contains('/')))
            .cloned()
            .collect();
        let mut entries = self.lies.clone();
        for name in names {
            entries.extend(self.stat(&name).await?);
        }
        Ok(entries)
    }

    async fn make_directory(&self, path: &str, _: u32) -> Result<()> {
        self.files.borrow_mut().insert(path.to_owned(), None);
        Ok(())
    }

    async fn write(
        &self,
        path: &str,
        mode: Option<u32>,
        _: Option<u64>,
        content: Content<io::Error>,
    ) -> Result<()> {
        let content: Vec<_> = content.try_collect().await?;
        self.files.borrow_mut().insert(path.to_owned(), Some((content.concat(), mode.unwrap_or(0))));
        Ok(())
    }

    async fn read(&self, path: &str) -> Result<Content<Failure>> {
        let content = self.files.borrow().get(path).cloned().flatten();
        let (content, _) = content.ok_or_else(|| Failure::new("not found", ""))?;
        Ok(stream::iter([Ok(Bytes::from(content))]).boxed())
    }
}

fn tree() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir_all(home.path().join("src/sub/empty")).unwrap();
    fs::write(home.path().join("src/a"), "A").unwrap();
    fs::write(home.path().join("src/sub/b"), "B").unwrap();
    fs::set_permissions(home.path().join("src/a"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::set_permissions(home.path().join("src/sub/b"), fs::Permissions::from_mode(0o750)).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", home.path().join("src/link")).unwrap();
    home
}

async fn bring(files: &Fake, home: &tempfile::TempDir, source: &str, target: &str) {
    let copy = inward(&format!("{}/{source}:{target}", home.path().display())).unwrap();
    copy_in(files, &copy).await.unwrap();
}

#[tokio::test]
async fn directories_go_in_as_cp_does_it() {
    let home = tree();
    let all = |root: &str| {
        vec![
            format!("{root}/"),
            format!("{root}/a A 640"),
            format!("{root}/sub/"),
            format!("{root}/sub/b B 750"),
            format!("{root}/sub/empty/"),
        ]
    };
    let files = Fake::default();
    bring(&files, &home, "src", "/new").await;
    assert_eq!(files.shown(), all("/new"));
    for target in ["/workspace", "/workspace/"] {
        let files = Fake::with(&[("/workspace", None)]);
        bring(&files, &home, "src", target).await;
        assert_eq!(files.shown()[1..], all("/workspace/src"), "{target}");
        let files = Fake::with(&[("/workspace", None)]);
        bring(&files, &home, "src/.", target).await;
        assert_eq!(files.shown(), all("/workspace"), "{target}");
    }
    let files = Fake::default();
    bring(&files, &home, "src/a", "b/c").await;
    assert_eq!(files.shown(), ["/workspace/b/c A 640"]);
}

#[tokio::test]
async fn directories_come_out_as_cp_does_it() {
    let home = tempfile::tempdir().unwrap();
    let files = Fake::with(&[
        ("/workspace/d", None),
        ("/workspace/d/x", Some("X")),
        ("/workspace/d/e", None),
        ("/workspace/d/e/y", Some("Y")),
    ]);
    let at = |path: &str| home.path().join(path);
    let take = async |source: &str, target: &str| {
        let copy = outward(&format!("{source}:{}/{target}", home.path().display())).unwrap();
        copy_out(&files, &copy).await
    };
    take("d", "").await.unwrap();
    assert_eq!(fs::read(at("d/e/y")).unwrap(), b"Y");
    take("d", "made/for/it").await.unwrap();
    assert_eq!(fs::read(at("made/for/it/x")).unwrap(), b"X");
    take("d/.", "made").await.unwrap();
    assert_eq!(fs::read(at("made/e/y")).unwrap(), b"Y");
    take("/workspace/d/x", "file:with:colons").await.unwrap();
    assert_eq!(fs::metadata(at("file:with:colons")).unwrap().permissions().mode() & 0o777, 0o640);
    let failure = take("none", "x").await.unwrap_err();
    assert_eq!(failure.what, "cannot copy none out of the sandbox: it is not there");
}

#[tokio::test]
async fn a_sandbox_that_lies_writes_nowhere_else() {
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("out");
    let copy = outward(&format!("/d:{}", out.display())).unwrap();
    for path in ["/d/..", "..", "/d/", "/d/.", "/d/a\0b"] {
        for kind in [Kind::File, Kind::Directory] {
            let lies = vec![Entry { path: path.into(), kind, mode: 0o644 }];
            let files = Fake { lies, ..Fake::with(&[("/d", None)]) };
            assert!(copy_out(&files, &copy).await.is_err(), "{path:?}");
        }
    }
    // A name of another place is only a name, and a directory in itself ends.
    let lies = vec![Entry { path: "/etc/cron.d/job".into(), kind: Kind::Directory, mode: 0o644 }];
    let files = Fake { lies, ..Fake::with(&[("/d", None)]) };
    let failure = copy_out(&files, &copy).await.unwrap_err();
    assert!(failure.what.contains("in one another") || failure.what.contains("too long"), "{}", failure.what);
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);

    // Through a link that is here, nothing is written.
    let trap = home.path().join("trap");
    fs::create_dir_all(trap.join("d")).unwrap();
    std::os::unix::fs::symlink(&out, trap.join("d/e")).unwrap();
    let files = Fake::with(&[("/d", None), ("/d/e", None), ("/d/e/y", Some("Y"))]);
    let copy = outward(&format!("/d:{}", trap.display())).unwrap();
    assert!(copy_out(&files, &copy).await.is_err());
    assert!(!out.join("y").exists());
}

#[test]
fn sides() {
    let sides = |copy: Copy| (copy.source, copy.target);
    assert_eq!(sides(inward("a:b:c").unwrap()), ("a:b".into(), "c".into()));
    assert_eq!(sides(outward("a:b:c").unwrap()), ("a".into(), "b:c".into()));
    for text in ["a", ":a", "a:", ""] {
        assert!(inward(text).is_err() && outward(text).is_err(), "{text}");
    }
}
