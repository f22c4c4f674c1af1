//! Trees as archives, both ways, and disk usage.

use crate::{
    check::{During, Failure, Verdict, checks, ensure, refused},
    context::{Context, Sandbox, pieces},
    observe::{noise, same},
    outside::Outside,
};
use bytes::Bytes;
use futures::{StreamExt, stream};
use stacyvm_provider::{Error, ErrorKind, ExtractTarget, Extracted, FileKind};
use stacyvm_tar::{END, Entry, Event, Kind, Reader, append};

checks! {
    "trees.archive" "an archive has every file, directory and link below a directory, with its bytes, and ends with its end mark" [] 60 archive;
    "trees.archive_file" "an archive of one file has it by its name" [] 30 archive_file;
    "trees.shrinking" "a file that shrinks while it is packed ends the archive with an error, and never with zeros" [] 30 shrinking;
    "trees.round_trip" "what is packed and unpacked is the same: bytes, modes, times, links" [] 60 round_trip;
    "trees.merge" "unpacking leaves what the archive does not have, replaces files, and keeps the modes of directories" [] 30 merge;
    "trees.owner" "what is unpacked belongs to the sandbox user" [] 30 owner;
    "trees.hostile" "an entry that leads out of the directory, or is no file, is refused by name; what came before stays" [] 60 hostile;
    "trees.links_before" "no symbolic link that was there before is followed by what is unpacked" [] 30 links_before;
    "trees.cut" "of an archive that breaks off, whole files are left and old ones stay" [] 30 cut;
    "trees.kinds" "what cannot be packed, unpacked or measured is refused with the right kind of error" [] 30 kinds;
    "trees.usage" "disk usage counts bytes and files, and each file with several names once" [] 30 usage;
}

/// An archive under construction.
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn entry(mut self, kind: Kind, path: &str, link: &str, mode: u32, data: &[u8]) -> Self {
        let (path, link, size) = (path.into(), link.into(), data.len() as u64);
        let entry = Entry { kind, path, link, mode, uid: 0, gid: 0, mtime: (1_600_000_000, 0), size };
        append(&entry, data, &mut self.0);
        self
    }

    fn file(self, path: &str, data: &[u8]) -> Self {
        self.entry(Kind::File, path, "", 0o640, data)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&END);
        self.0
    }
}

async fn extract(sandbox: &Sandbox, path: &str, archive: &[u8]) -> Result<Extracted, Error> {
    let target = ExtractTarget { path: path.to_owned(), user: None };
    sandbox.guest.extract(&target, pieces(archive, 10_000)).await
}

async fn packed(sandbox: &Sandbox, path: &str) -> Verdict<Vec<u8>> {
    let mut content = sandbox.guest.archive(path).await.during("archive")?;
    let mut all = Vec::new();
    while let Some(piece) = content.next().await {
        let piece = piece.during("the archive's content")?;
        ensure!(!piece.is_empty() && piece.len() <= 128 << 10, "a piece of {} bytes", piece.len());
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

/// The entries of a whole archive, sorted by path, with the data of files.
fn entries(archive: &[u8]) -> Verdict<Vec<(Entry, Vec<u8>)>> {
    let (mut reader, mut input) = (Reader::new(), archive);
    let mut all: Vec<(Entry, Vec<u8>)> = Vec::new();
    let bad = |error: stacyvm_tar::Error| Failure(format!("the archive cannot be read: {error}"));
    while let Some(event) = reader.next(&mut input).map_err(bad)? {
        match event {
            Event::Entry(entry) => all.push((entry, Vec::new())),
            Event::Data(data) => {
                if let Some((_, content)) = all.last_mut() {
                    content.extend_from_slice(data);
                }
            }
            Event::FileEnd | Event::End => {}
        }
    }
    reader.finish().map_err(bad)?;
    all.sort_by(|(a, _), (b, _)| a.path.cmp(&b.path));
    Ok(all)
}

async fn archive(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    let big = noise(7, 3_000_001);
    sandbox.write(&cx.path("t/big"), &big).await?;
    sandbox.write(&cx.path("t/empty"), b"").await?;
    sandbox.write(&cx.path(&format!("t/{long}")), b"long").await?;
    sandbox.guest.mkdir(&cx.path("t/none"), 0o750, false).await.during("mkdir")?;
    sandbox.guest.mkdir(&cx.path("t/open"), 0o777, false).await.during("mkdir")?;
    sandbox.guest.chmod(&cx.path("t/open"), 0o777).await.during("chmod")?;
    sandbox.probe_ok(&["symlink", "/etc/../nowhere", &cx.relative("t/open/link")]).await?;
    sandbox.probe_ok(&["mkfifo", &cx.relative("t/open/pipe")]).await?;
    sandbox.probe_ok(&["raw-name", &cx.relative("t/open")]).await?;
    let archive = cx.prompt("archive", packed(&sandbox, &cx.path("t"))).await??;
    let entries = entries(&archive)?;
    let names: Vec<_> = entries.iter().map(|(entry, _)| (entry.kind, &*entry.path)).collect();
    let directory = format!("{}/", "d".repeat(120));
    let expected: Vec<(Kind, &[u8])> = vec![
        (Kind::Directory, b"./"),
        (Kind::File, b"big"),
        (Kind::Directory, directory.as_bytes()),
        (Kind::File, long.as_bytes()),
        (Kind::File, b"empty"),
        (Kind::Directory, b"none/"),
        (Kind::Directory, b"open/"),
        (Kind::File, b"open/bad\xff\xfename"),
        (Kind::Symlink, b"open/link"),
    ];
    ensure!(names == expected, "the archive has {names:?}");
    same("a file of 3 MB in the archive", &entries[1].1, &big)?;
    same("a file with a long name", &entries[3].1, b"long")?;
    ensure!(entries[8].0.link == b"/etc/../nowhere", "the link reads {:?}", entries[8].0.link);
    ensure!(entries[5].0.mode == 0o750, "a directory has the mode {:o}", entries[5].0.mode);
    Ok(())
}

async fn archive_file(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    sandbox.write(&cx.path("file"), b"content").await?;
    let entries = entries(&packed(&sandbox, &cx.path("file")).await?)?;
    ensure!(entries.len() == 1 && entries[0].0.path == b"file", "the archive has {entries:?}");
    same("the file", &entries[0].1, b"content")
}

async fn shrinking(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    // More than is under way between us and the guest while nobody reads.
    sandbox.write(&cx.path("t/file"), &noise(3, 16 << 20)).await?;
    let mut content = sandbox.guest.archive(&cx.path("t")).await.during("archive")?;
    let first = content.next().await;
    ensure!(matches!(first, Some(Ok(_))), "the archive begins with {first:?}");
    sandbox.probe_ok(&["truncate", &cx.relative("t/file"), "1000"]).await?;
    let mut total = 0;
    loop {
        match cx.prompt("the archive", content.next()).await? {
            Some(Ok(piece)) => total += piece.len(),
            Some(Err(_)) => break,
            None => {
                return Err(Failure(format!("{total} bytes of a file that was cut passed for all of it")));
            }
        }
    }
    ensure!(content.next().await.is_none(), "the archive goes on behind its error");
    Ok(())
}

async fn round_trip(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let big = noise(11, 1_000_003);
    let tree = Archive::default()
        .entry(Kind::Directory, "./", "", 0o751, b"")
        .entry(Kind::Directory, "d", "", 0o700, b"")
        .entry(Kind::File, "d/run", "", 0o755, b"#!")
        .file("d/big", &big)
        .entry(Kind::HardLink, "same", "d/big", 0, b"")
        .entry(Kind::Symlink, "link", "d/run", 0o777, b"")
        .end();
    let made = extract(&sandbox, &cx.path("one"), &tree).await.during("extract")?;
    let expected = Extracted { files: 3, directories: 1, links: 1, bytes: 2 + big.len() as u64 };
    ensure!(made == expected, "it says that it made {made:?}");
    let again = packed(&sandbox, &cx.path("one")).await?;
    extract(&sandbox, &cx.path("two"), &again).await.during("extract of what was packed")?;
    for tree in ["one", "two"] {
        for (name, mode) in
            [("", 0o751), ("/d", 0o700), ("/d/run", 0o755), ("/d/big", 0o640), ("/same", 0o640)]
        {
            let path = cx.path(&format!("{tree}{name}"));
            let entry = sandbox.guest.stat(&path, false).await.during("stat")?;
            ensure!(entry.mode == mode, "{path} has the mode {:o}", entry.mode);
            let time = entry.modified.duration_since(std::time::UNIX_EPOCH).map(|time| time.as_secs());
            ensure!(time.ok() == Some(1_600_000_000), "{path} is of {:?}", entry.modified);
        }
        same("the large file", &sandbox.read(&cx.path(&format!("{tree}/d/big"))).await?, &big)?;
        same("a file through a link", &sandbox.read(&cx.path(&format!("{tree}/link"))).await?, b"#!")?;
        // One file with two names: what is done to one is done to the other.
        sandbox.probe_ok(&["append", &cx.relative(&format!("{tree}/d/big")), "!"]).await?;
        let longer = sandbox.size(&cx.path(&format!("{tree}/same"))).await?;
        ensure!(longer == big.len() as u64 + 1, "the hard link of {tree} is a file of its own");
    }
    Ok(())
}

async fn merge(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    sandbox.write(&cx.path("t/d/kept"), b"kept").await?;
    sandbox.write(&cx.path("t/d/old"), b"an older and longer text").await?;
    sandbox.guest.chmod(&cx.path("t/d"), 0o711).await.during("chmod")?;
    let archive = Archive::default()
        .entry(Kind::Directory, "d", "", 0o755, b"")
        .file("d/old", b"new")
        .file("d/made/on/the/way", b"x")
        .end();
    extract(&sandbox, &cx.path("t"), &archive).await.during("extract")?;
    same("what the archive does not have", &sandbox.read(&cx.path("t/d/kept")).await?, b"kept")?;
    same("what it has", &sandbox.read(&cx.path("t/d/old")).await?, b"new")?;
    same(
        "a file in directories it does not list",
        &sandbox.read(&cx.path("t/d/made/on/the/way")).await?,
        b"x",
    )?;
    let mode = sandbox.guest.stat(&cx.path("t/d"), false).await.during("stat")?.mode;
    ensure!(mode == 0o711, "a directory that was there has the mode {mode:o} now");
    for archive in [Archive::default().file("d", b"x"), Archive::default().file("d/old/below", b"x")] {
        let refusal = extract(&sandbox, &cx.path("t"), &archive.end()).await;
        refused("an archive with something else in the way", refusal, &[ErrorKind::InvalidArgument])?;
    }
    Ok(())
}

async fn owner(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let archive = Archive::default()
        .entry(Kind::Directory, "d", "", 0o700, b"")
        .entry(Kind::File, "d/f", "", 0o600, b"a")
        .entry(Kind::File, "made/f", "", 0o600, b"a")
        .end();
    extract(&sandbox, &cx.path("new"), &archive).await.during("extract")?;
    for name in ["new/d/f", "new/made/f"] {
        sandbox.probe_ok(&["append", &cx.relative(name), "b"]).await?;
        same(name, &sandbox.read(&cx.path(name)).await?, b"ab")?;
    }
    for name in ["new/beside", "new/d/beside", "new/made/beside"] {
        sandbox.probe_ok(&["write", &cx.relative(name), "x"]).await?;
    }
    Ok(())
}

async fn hostile(cx: Context) -> Verdict {
    let (sandbox, outside) = (cx.shared().await?, Outside::new(&cx)?);
    let (secret, up) = (outside.text("secret"), "../".repeat(20));
    let upward = format!("{up}{}", secret.trim_start_matches('/'));
    let cases = [
        (Kind::File, upward.as_str(), ""),
        (Kind::File, secret.as_str(), ""),
        (Kind::File, "a/../../b", ""),
        (Kind::Directory, "..", ""),
        (Kind::Symlink, "/link", "x"),
        (Kind::File, "out/new", ""),
        (Kind::Directory, "out/new", ""),
        (Kind::File, "out", ""),
        (Kind::HardLink, "hard", upward.as_str()),
        (Kind::HardLink, "hard", secret.as_str()),
        (Kind::HardLink, "hard", "out/secret"),
        (Kind::HardLink, "hard", "missing"),
        (Kind::Other(b'3'), "character", ""),
        (Kind::Other(b'4'), "block", ""),
        (Kind::Other(b'6'), "pipe", ""),
    ];
    for (number, (kind, path, link)) in cases.into_iter().enumerate() {
        let place = cx.path(&number.to_string());
        let archive = Archive::default()
            .file("before", b"1")
            .entry(Kind::Symlink, "out", outside.text("").trim_end_matches('/'), 0o777, b"")
            .entry(kind, path, link, 0o644, b"")
            .file("behind", b"2")
            .end();
        let result = extract(&sandbox, &place, &archive).await;
        if (kind, path) == (Kind::File, "out") {
            // A file takes the link's place, and is no way out.
            result.during("a file in the place of a link")?;
            let made = sandbox.guest.stat(&format!("{place}/out"), false).await.during("stat")?;
            ensure!(made.kind == FileKind::File, "a file in the place of a link is {:?}", made.kind);
        } else {
            let message = result.as_ref().err().map(|error| error.message().to_owned()).unwrap_or_default();
            let what = format!("{kind:?} {path} {link}");
            refused(&what, result, &[ErrorKind::InvalidArgument])?;
            let named = path.chars().take(100).collect::<String>();
            ensure!(message.contains(&named), "{what} is refused without its name: {message}");
            same("what came before it", &sandbox.read(&format!("{place}/before")).await?, b"1")?;
            let behind = sandbox.guest.stat(&format!("{place}/behind"), false).await;
            refused("what stood behind it", behind, &[ErrorKind::NotFound])?;
        }
        outside.untouched().during(path)?;
    }
    Ok(())
}

async fn links_before(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    sandbox.write(&cx.path("elsewhere/file"), b"untouched").await?;
    sandbox.guest.mkdir(&cx.path("t"), 0o777, false).await.during("mkdir")?;
    sandbox.guest.chmod(&cx.path("t"), 0o777).await.during("chmod")?;
    sandbox.probe_ok(&["symlink", "../elsewhere", &cx.relative("t/out")]).await?;
    sandbox.probe_ok(&["symlink", "../elsewhere/file", &cx.relative("t/file")]).await?;
    for archive in [
        Archive::default().file("out/file", b"bad"),
        Archive::default().file("out/new", b"bad"),
        Archive::default().entry(Kind::Directory, "out", "", 0o700, b""),
        Archive::default().entry(Kind::HardLink, "hard", "out/file", 0o644, b""),
    ] {
        let result = extract(&sandbox, &cx.path("t"), &archive.end()).await;
        refused("an entry behind a link", result, &[ErrorKind::InvalidArgument])?;
    }
    extract(&sandbox, &cx.path("t"), &Archive::default().file("file", b"mine").end())
        .await
        .during("extract")?;
    same("a file in the place of a link", &sandbox.read(&cx.path("t/file")).await?, b"mine")?;
    same("what the links lead to", &sandbox.read(&cx.path("elsewhere/file")).await?, b"untouched")?;
    let there = sandbox.guest.list_dir(&cx.path("elsewhere")).await.during("list_dir")?;
    ensure!(there.len() == 1, "where the link leads, there is {there:?}");
    Ok(())
}

async fn cut(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let whole = Archive::default().file("a", &noise(1, 50_000)).file("b", &noise(2, 50_000)).end();
    let part = &whole[..80_000];
    let failing =
        stream::iter([Ok(Bytes::copy_from_slice(part)), Err(Error::unavailable("the client is gone"))]);
    let mut messages = Vec::new();
    for (place, content) in [
        ("ends", pieces(part, 9_000)),
        ("fails", failing.boxed()),
        ("unmarked", pieces(&whole[..whole.len() - 1024], 9_000)),
    ] {
        sandbox.write(&cx.path(&format!("{place}/b")), b"old").await?;
        let target = ExtractTarget { path: cx.path(place), user: None };
        let result = sandbox.guest.extract(&target, content).await;
        ensure!(result.is_err(), "an archive that {place} passed for a whole one");
        messages.extend(result.err().map(|error| error.message().to_owned()));
        same("the file before", &sandbox.read(&cx.path(&format!("{place}/a"))).await?, &noise(1, 50_000))?;
        let left = sandbox.guest.list_dir(&cx.path(place)).await.during("list_dir")?;
        ensure!(left.len() == 2, "what is left of an archive that {place}: {left:?}");
        if place != "unmarked" {
            same("the old file", &sandbox.read(&cx.path(&format!("{place}/b"))).await?, b"old")?;
        }
    }
    ensure!(messages[1] == "the client is gone", "the content's own error became {:?}", messages[1]);
    Ok(())
}

async fn kinds(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let guest = &sandbox.guest;
    sandbox.probe_ok(&["mkfifo", &cx.relative("pipe")]).await?;
    sandbox.write(&cx.path("file"), b"x").await?;
    let missing = &[ErrorKind::NotFound];
    refused("archive", guest.archive(&cx.path("none")).await.map(drop), missing)?;
    refused("usage", guest.usage(&cx.path("none")).await, missing)?;
    let wrong = &[ErrorKind::InvalidArgument];
    refused(
        "archive of a pipe",
        cx.prompt("archive", guest.archive(&cx.path("pipe"))).await?.map(drop),
        wrong,
    )?;
    refused("archive of a path that is not absolute", guest.archive("file").await.map(drop), wrong)?;
    refused("usage of a path that is not absolute", guest.usage("file").await, wrong)?;
    let empty = Archive::default().end();
    refused("extract into a file", extract(&sandbox, &cx.path("file"), &empty).await, wrong)?;
    refused("what is no archive", extract(&sandbox, &cx.path("t"), &noise(5, 5000)).await, wrong)?;
    refused("nothing", extract(&sandbox, &cx.path("t"), b"").await, wrong)?;
    extract(&sandbox, &cx.path("t/deep"), &empty).await.during("extract of an empty archive")?;
    guest.stat(&cx.path("t/deep"), true).await.during("stat of the directory it went to").map(drop)
}

async fn usage(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let archive = Archive::default()
        .file("a", &noise(1, 100_000))
        .entry(Kind::HardLink, "d/b", "a", 0o644, b"")
        .entry(Kind::Symlink, "d/up", "..", 0o777, b"")
        .end();
    extract(&sandbox, &cx.path("t"), &archive).await.during("extract")?;
    let usage = sandbox.guest.usage(&cx.path("t")).await.during("usage")?;
    let counts = (usage.apparent_bytes, usage.files, usage.directories, usage.counted_twice);
    ensure!(counts == (100_000, 3, 2, false), "a tree of three names of one file's 100,000 bytes: {usage:?}");
    ensure!((100_000..300_000).contains(&usage.bytes), "it takes {} bytes of disk", usage.bytes);
    let file = sandbox.guest.usage(&cx.path("t/a")).await.during("usage of a file")?;
    ensure!(file.apparent_bytes == 100_000 && file.files == 1, "one file: {file:?}");
    Ok(())
}
