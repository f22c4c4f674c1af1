//! Directories and names: list, move, make, remove, glob.

use crate::{
    check::{During, Verdict, checks, ensure, refused},
    context::Context,
    observe::same,
};
use stacyvm_provider::{ErrorKind, FileEntry, FileKind};

checks! {
    "files.list" "a directory is listed completely, sorted, with what each entry is" [] 30 list;
    "files.list_long" "a directory with thousands of entries is listed completely" [] 30 list_long;
    "files.move" "move renames, makes parents and replaces a file" [] 30 move_file;
    "files.mkdir" "mkdir makes one directory, or with parents the whole path" [] 30 mkdir;
    "files.remove" "remove takes a file or empty directory, and a tree only when told to" [] 30 remove;
    "files.glob" "glob understands * ? [] {} and **, and sorts" [] 30 glob;
    "files.glob_malformed" "a malformed pattern is InvalidArgument" [] 30 glob_malformed;
    "files.names" "names with spaces, newlines, wide characters, dashes and stars are just names" [] 30 names;
    "files.foreign_names" "a name that is not UTF-8 spoils neither a listing nor a removal" [] 30 foreign_names;
}

fn paths(entries: &[FileEntry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.path.as_str()).collect()
}

async fn list(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    for (name, content) in [("b", "22"), ("a", "1"), ("c/inside", "x"), (".hidden", "333"), ("B", "4444")] {
        sandbox.write(&cx.path(name), content.as_bytes()).await?;
    }
    sandbox.probe_ok(&["symlink", "a", &cx.relative("link")]).await?;
    let listed = sandbox.guest.list_dir(&cx.dir()).await.during("list_dir")?;
    let expected = [".hidden", "B", "a", "b", "c", "link"].map(|name| cx.path(name));
    ensure!(paths(&listed) == expected, "listed {:?}", paths(&listed));
    let kinds: Vec<FileKind> = listed.iter().map(|entry| entry.kind).collect();
    let (file, directory, link) = (FileKind::File, FileKind::Directory, FileKind::Symlink);
    ensure!(kinds == [file, file, file, file, directory, link], "kinds: {kinds:?}");
    let sizes: Vec<u64> = listed[..4].iter().map(|entry| entry.size).collect();
    ensure!(sizes == [3, 4, 1, 2], "sizes: {sizes:?}");
    ensure!(listed[5].link_target.as_deref() == Some("a"), "the link points to {:?}", listed[5].link_target);
    sandbox.guest.mkdir(&cx.path("empty"), 0o755, false).await.during("mkdir")?;
    let empty = sandbox.guest.list_dir(&cx.path("empty")).await.during("list_dir")?;
    ensure!(empty.is_empty(), "an empty directory lists {:?}", paths(&empty));
    Ok(())
}

async fn list_long(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    sandbox.guest.mkdir(&cx.path("long"), 0o777, false).await.during("mkdir")?;
    sandbox.guest.chmod(&cx.path("long"), 0o777).await.during("chmod")?;
    sandbox.probe_ok(&["touch-many", &cx.relative("long"), "3000"]).await?;
    let expected: Vec<String> = (0..3000).map(|number| cx.path(&format!("long/f{number:04}"))).collect();
    let listed = sandbox.guest.list_dir(&cx.path("long")).await.during("list_dir")?;
    ensure!(paths(&listed) == expected, "{} of 3000 entries are listed, or out of order", listed.len());
    let found = sandbox.guest.glob(&cx.path("long/f*")).await.during("glob")?;
    ensure!(paths(&found) == expected, "{} of 3000 entries are found, or out of order", found.len());
    sandbox.guest.remove(&cx.path("long"), true).await.during("remove")
}

async fn move_file(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let guest = &sandbox.guest;
    sandbox.write(&cx.path("from"), b"content").await?;
    guest.chmod(&cx.path("from"), 0o750).await.during("chmod")?;
    guest.move_file(&cx.path("from"), &cx.path("new/parents/to")).await.during("move")?;
    same("the moved file", &sandbox.read(&cx.path("new/parents/to")).await?, b"content")?;
    let mode = guest.stat(&cx.path("new/parents/to"), true).await.during("stat")?.mode;
    ensure!(mode & 0o7777 == 0o750, "its mode became {mode:o}");
    refused("stat of where it was", guest.stat(&cx.path("from"), false).await, &[ErrorKind::NotFound])?;
    sandbox.write(&cx.path("old"), b"old").await?;
    guest.move_file(&cx.path("new/parents/to"), &cx.path("old")).await.during("move over a file")?;
    same("the replaced file", &sandbox.read(&cx.path("old")).await?, b"content")?;
    guest.move_file(&cx.path("new"), &cx.path("renamed")).await.during("move of a directory")?;
    guest.stat(&cx.path("renamed/parents"), true).await.during("stat below a moved directory")?;
    let inside = guest.move_file(&cx.path("renamed"), &cx.path("renamed/parents/below")).await;
    refused("move of a directory into itself", inside, &[ErrorKind::InvalidArgument])
}

async fn mkdir(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let guest = &sandbox.guest;
    guest.mkdir(&cx.path("one"), 0o750, false).await.during("mkdir")?;
    let made = guest.stat(&cx.path("one"), true).await.during("stat")?;
    ensure!(made.kind == FileKind::Directory && made.mode & 0o777 == 0o750, "made {made:?}");
    let wrong = &[ErrorKind::InvalidArgument];
    refused("mkdir of what exists", guest.mkdir(&cx.path("one"), 0o755, false).await, wrong)?;
    guest.mkdir(&cx.path("one"), 0o755, true).await.during("mkdir with parents of what exists")?;
    guest.mkdir(&cx.path("x/y/z"), 0o755, true).await.during("mkdir with parents")?;
    guest.mkdir(&cx.path("x/y/z"), 0o755, true).await.during("mkdir with parents again")?;
    sandbox.probe_ok(&["write", &cx.relative("x/y/z/file"), "x"]).await?;
    let without = guest.mkdir(&cx.path("none/below"), 0o755, false).await;
    refused("mkdir without its parent", without, &[ErrorKind::NotFound, ErrorKind::InvalidArgument])
}

async fn remove(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let guest = &sandbox.guest;
    sandbox.write(&cx.path("file"), b"x").await?;
    guest.remove(&cx.path("file"), false).await.during("remove of a file")?;
    guest.mkdir(&cx.path("empty"), 0o755, false).await.during("mkdir")?;
    guest.remove(&cx.path("empty"), false).await.during("remove of an empty directory")?;
    sandbox.write(&cx.path("tree/a/b/c"), b"x").await?;
    sandbox.write(&cx.path("tree/d"), b"x").await?;
    let plain = guest.remove(&cx.path("tree"), false).await;
    refused("remove of a directory with content", plain, &[ErrorKind::InvalidArgument])?;
    same("what was not removed", &sandbox.read(&cx.path("tree/a/b/c")).await?, b"x")?;
    guest.remove(&cx.path("tree"), true).await.during("recursive remove")?;
    sandbox.write(&cx.path("file"), b"x").await?;
    guest.remove(&cx.path("file"), true).await.during("recursive remove of a file")?;
    let left = guest.list_dir(&cx.dir()).await.during("list_dir")?;
    ensure!(left.is_empty(), "left: {:?}", paths(&left));
    refused("remove of the root", guest.remove("/", true).await, &[ErrorKind::InvalidArgument])
}

async fn glob(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    for name in ["a.rs", "b.rs", "c.txt", "src/d.rs", "src/deep/er/e.rs", ".dot", "[x]"] {
        sandbox.write(&cx.path(name), b"").await?;
    }
    sandbox.probe_ok(&["symlink", "src", &cx.relative("link")]).await?;
    sandbox.probe_ok(&["symlink", ".", &cx.relative("loop")]).await?;
    let cases: [(&str, &[&str]); 9] = [
        ("*.rs", &["a.rs", "b.rs"]),
        ("?.txt", &["c.txt"]),
        ("[ab].rs", &["a.rs", "b.rs"]),
        ("[!a].rs", &["b.rs"]),
        ("{a,c}.{rs,txt}", &["a.rs", "c.txt"]),
        ("**/*.rs", &["a.rs", "b.rs", "src/d.rs", "src/deep/er/e.rs"]),
        ("src/**/e.rs", &["src/deep/er/e.rs"]),
        ("*/deep", &["src/deep"]),
        ("none*", &[]),
    ];
    for (pattern, names) in cases {
        let found = sandbox.guest.glob(&cx.path(pattern)).await.during(&format!("glob {pattern:?}"))?;
        let expected: Vec<String> = names.iter().map(|name| cx.path(name)).collect();
        ensure!(paths(&found) == expected, "{pattern:?} finds {:?}, expected {expected:?}", paths(&found));
    }
    let literal = sandbox.guest.glob(&cx.path("a.rs")).await.during("glob")?;
    ensure!(paths(&literal) == [cx.path("a.rs")], "a plain path finds {:?}", paths(&literal));
    Ok(())
}

async fn glob_malformed(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    for pattern in ["[", "{a", "[a", "x/{b,c"] {
        let found = sandbox.guest.glob(&cx.path(pattern)).await;
        refused(pattern, found, &[ErrorKind::InvalidArgument])?;
    }
    Ok(())
}

async fn names(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let guest = &sandbox.guest;
    let long = "n".repeat(255);
    let names = [
        "with space",
        " ",
        "line\nbreak",
        "tab\t",
        "-rf",
        "--help",
        "*",
        "?",
        "[a]",
        "{a,b}",
        "'",
        "\"",
        "\\",
        "$HOME",
        "`id`",
        "漢字🦀",
        "e\u{301}",
        "%2e%2e",
        "...",
        "~",
        "#",
        "a:b",
        &long,
    ];
    for name in names {
        let path = cx.path(name);
        sandbox.write(&path, name.as_bytes()).await?;
        same(name, &sandbox.read(&path).await?, name.as_bytes())?;
        let seen = sandbox.probe_ok(&["read", &cx.relative(name)]).await?;
        same(&format!("{name:?} as a process sees it"), &seen.stdout, name.as_bytes())?;
        guest.stat(&path, false).await.during(name)?;
    }
    let mut expected: Vec<String> = names.iter().map(|name| cx.path(name)).collect();
    expected.sort();
    let listed = guest.list_dir(&cx.dir()).await.during("list_dir")?;
    ensure!(paths(&listed) == expected, "listed {:?}", paths(&listed));
    for name in names {
        guest.move_file(&cx.path(name), &cx.path("moved")).await.during(name)?;
        guest.remove(&cx.path("moved"), false).await.during(name)?;
    }
    let too_long = sandbox.write_mode(&cx.path(&"n".repeat(256)), b"", 0o644).await;
    refused("a name of 256 bytes", too_long, &[ErrorKind::InvalidArgument])
}

async fn foreign_names(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    sandbox.guest.mkdir(&cx.path("foreign"), 0o777, false).await.during("mkdir")?;
    sandbox.write(&cx.path("foreign/plain"), b"x").await?;
    sandbox.probe_ok(&["raw-name", &cx.relative("foreign")]).await?;
    let listed = sandbox.guest.list_dir(&cx.path("foreign")).await.during("list_dir")?;
    ensure!(paths(&listed).contains(&cx.path("foreign/plain").as_str()), "listed {:?}", paths(&listed));
    sandbox.guest.glob(&cx.path("foreign/**")).await.during("glob")?;
    sandbox.guest.remove(&cx.path("foreign"), true).await.during("recursive remove")?;
    refused("stat", sandbox.guest.stat(&cx.path("foreign"), false).await, &[ErrorKind::NotFound])
}
