//! Directories in bulk against the real native runtime: copied both ways, watched, measured, cut in the middle.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::{StreamExt, stream};
use serde_json::Value;
use stacyvm_e2e::Host;
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Mode, time in nanoseconds and content or target of everything below a directory.
type Things = BTreeMap<PathBuf, (u32, i64, Vec<u8>)>;

fn things(top: &Path) -> Result<Things> {
    let mut found = Things::new();
    let mut open = vec![PathBuf::new()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(top.join(&directory))? {
            let path = directory.join(entry?.file_name());
            let full = top.join(&path);
            let metadata = fs::symlink_metadata(&full)?;
            let time = metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec();
            let (mode, content) = if metadata.is_symlink() {
                (0, fs::read_link(&full)?.to_string_lossy().into_owned().into_bytes())
            } else if metadata.is_dir() {
                open.push(path.clone());
                (metadata.mode(), Vec::new())
            } else {
                (metadata.mode(), fs::read(&full)?)
            };
            found.insert(path, (mode, time, content));
        }
    }
    Ok(found)
}

fn make_tree(top: &Path) -> Result<()> {
    for number in 0..1200 {
        let directory = top.join(format!("d{}/e{}", number % 13, number % 7));
        fs::create_dir_all(&directory)?;
        let path = directory.join(format!("file {number} é"));
        fs::write(&path, vec![number as u8; number * 7])?;
        fs::set_permissions(&path, fs::Permissions::from_mode([0o644, 0o755, 0o600, 0o440][number % 4]))?;
    }
    symlink("d1/e1", top.join("link"))?;
    symlink("../d2", top.join("d1/up"))?;
    fs::hard_link(top.join("d1/e1/file 1 é"), top.join("same"))?;
    fs::set_permissions(top.join("d3"), fs::Permissions::from_mode(0o750))?;
    Ok(())
}

#[tokio::test]
async fn a_tree_of_a_thousand_files_goes_in_and_comes_back_the_same() -> Result<()> {
    let host = Host::start().await?;
    let sandbox = host.spawn().await?;
    let home = tempfile::tempdir()?;
    let source = home.path().join("tree");
    fs::create_dir(&source)?;
    make_tree(&source)?;
    let before = things(&source)?;
    let text = |path: &Path| path.display().to_string();
    let inside = format!("{}:/workspace", sandbox.id);

    let output = host.cli(&["cp", "-r", "--json", &text(&source), &inside])?;
    ensure!(output.status.success(), "{output:?}");
    let made: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(
        made["target"] == format!("{inside}/tree") && made["files"] == 1201 && made["links"] == 2,
        "{made}"
    );
    let count = sandbox.stdout("find tree -type f | wc -l").await?;
    ensure!(count.trim() == "1201", "{count}");
    ensure!(
        sandbox.stdout("stat -c '%U %a' tree/d3 'tree/d1/e1/file 1 é'").await?
            == "sandbox 750\nsandbox 755\n"
    );
    // What the sandbox user owns, it can change.
    sandbox.stdout("echo more >> tree/d0/e0/'file 0 é'; rm tree/d0/e0/'file 0 é'").await?;
    let usage = host.cli(&["du", &sandbox.id, "tree", "--json"])?;
    let usage: Value = serde_json::from_slice(&usage.stdout)?;
    ensure!(usage["files"] == 1202 && usage["directories"] == 13 + 13 * 7 + 1, "{usage}");

    // Into a directory that is there, as its content, and as a new name.
    let into = home.path().join("into");
    fs::create_dir(&into)?;
    let gone = PathBuf::from("d0/e0/file 0 é");
    let expected: Things =
        before.iter().filter(|(path, _)| **path != gone).map(|(p, t)| (p.clone(), t.clone())).collect();
    let changed = PathBuf::from("d0/e0");
    for (from, to, at) in [
        (format!("{inside}/tree"), text(&into), into.join("tree")),
        (format!("{inside}/tree/."), text(&home.path().join("content")), home.path().join("content")),
        (format!("{inside}/tree"), text(&home.path().join("renamed")), home.path().join("renamed")),
    ] {
        let output = host.cli(&["cp", "-r", &from, &to])?;
        ensure!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let mut after = things(&at)?;
        // Its time is that of the removal.
        after.insert(changed.clone(), expected[&changed].clone());
        for (path, thing) in &expected {
            let other = after.get(path).with_context(|| path.display().to_string())?;
            ensure!(thing == other, "{} became another", path.display());
        }
        ensure!(after.len() == expected.len(), "{} things became {}", expected.len(), after.len());
    }
    let refused = host.cli(&["cp", &format!("{inside}/tree"), &text(&home.path().join("file"))])?;
    ensure!(
        !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("-r"),
        "{refused:?}"
    );
    host.finish().await
}

#[tokio::test]
async fn archives_pass_through_pipes_compressed_or_not() -> Result<()> {
    let host = Host::start().await?;
    let sandbox = host.spawn().await?;
    let home = tempfile::tempdir()?;
    fs::create_dir(home.path().join("src"))?;
    fs::write(home.path().join("src/a"), "content")?;
    let inside = format!("{}:/workspace/in", sandbox.id);
    for compress in ["--gzip", "--no-auto-compress"] {
        let mut tar = Command::new("tar");
        tar.arg("-c").arg("-C").arg(home.path());
        if compress == "--gzip" {
            tar.arg(compress);
        }
        let mut tar = tar.arg("src").stdout(Stdio::piped()).spawn()?;
        let piped = tar.stdout.take().context("stdout")?;
        let copied = host.cli_command(&["cp", "-r", "-", &inside])?.stdin(piped).output()?;
        ensure!(copied.status.success() && tar.wait()?.success(), "{copied:?}");
        ensure!(sandbox.stdout("cat in/src/a; rm -r in").await? == "content");
    }
    sandbox.stdout("mkdir -p out/d; echo there > out/d/f; ln -s /etc/passwd out/l").await?;
    let packed = host.cli(&["cp", "-r", &format!("{}:/workspace/out", sandbox.id), "-"])?;
    let mut untar = Command::new("tar").args(["-x", "-C"]).arg(home.path()).stdin(Stdio::piped()).spawn()?;
    untar.stdin.take().context("stdin")?.write_all(&packed.stdout)?;
    ensure!(untar.wait()?.success() && fs::read(home.path().join("d/f"))? == b"there\n");
    // Onto this machine, a link that leads out is left out and named.
    let target = home.path().join("copy").display().to_string();
    let copied = host.cli(&["cp", "-r", &format!("{}:out", sandbox.id), &target])?;
    let said = String::from_utf8_lossy(&copied.stderr).into_owned();
    ensure!(copied.status.success() && said.contains("\"l\" leads out"), "{copied:?}");
    ensure!(fs::symlink_metadata(home.path().join("copy/l")).is_err());
    let all = host.cli(&["cp", "-r", "--all-links", &format!("{}:out/.", sandbox.id), &target])?;
    ensure!(
        all.status.success() && fs::read_link(home.path().join("copy/l"))? == Path::new("/etc/passwd"),
        "{all:?}"
    );
    let get = |header: &'static str, value: &'static str| {
        let url = host.server.url(&sandbox.path("/files/archive?path=out"));
        host.server.http().get(url).header(header, value).send()
    };
    let answer = get("accept", "application/zstd").await?.error_for_status()?;
    ensure!(answer.headers()["content-type"] == "application/zstd");
    let compressed = answer.bytes().await?;
    ensure!(compressed.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]), "{compressed:?}");
    let back =
        host.server.http().put(host.server.url(&sandbox.path("/files/archive?path=back"))).body(compressed);
    ensure!(back.send().await?.error_for_status()?.text().await?.contains("\"files\":1"));
    ensure!(sandbox.stdout("cat back/d/f; readlink back/l").await? == "there\n/etc/passwd\n");
    host.finish().await
}

#[tokio::test]
async fn a_watch_sees_everything() -> Result<()> {
    let host = Host::start().await?;
    let sandbox = host.spawn().await?;
    let mut child = host.cli_command(&["watch", &sandbox.id, "--json"])?.stdout(Stdio::piped()).spawn()?;
    let lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
    let (sender, events) = std::sync::mpsc::channel::<Value>();
    let reader = std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let Ok(event) = serde_json::from_str(&line) else { break };
            if sender.send(event).is_err() {
                break;
            }
        }
    });
    let next = || events.recv_timeout(Duration::from_secs(20)).context("waited in vain for an event");
    ensure!(next()?["type"] == "ready");
    sandbox
        .stdout(
            "mkdir -p a/b/c; for i in $(seq 200); do echo $i > a/b/c/$i; done; mv a/b/c/1 a/one; rm a/b/c/2",
        )
        .await?;
    let path = |name: &str| format!("/workspace/a/b/c/{name}");
    let mut missing: std::collections::BTreeSet<String> = (3..=200).map(|i| path(&i.to_string())).collect();
    let (mut moved, mut deleted) = (false, false);
    while !(missing.is_empty() && moved && deleted) {
        let event =
            next().with_context(|| format!("{} missing, moved {moved}, deleted {deleted}", missing.len()))?;
        let at = event["path"].as_str().unwrap_or_default();
        ensure!(event["type"] != "overflow" && event["type"] != "error", "{event}");
        if event["type"] == "create" {
            missing.remove(at);
        }
        // What is found in a new directory may have moved before it was seen.
        moved |= at == "/workspace/a/one";
        // Of a file that was made and removed in one moment only the name is certain not to be there.
        deleted |= at == path("2") || missing.is_empty();
    }
    // What the API writes is seen as well, without the name that it has on the way.
    let url = host.server.url(&sandbox.path("/files?path=a/uploaded"));
    host.server.http().put(url).body("x").send().await?.error_for_status()?;
    loop {
        let event = next()?;
        ensure!(!event["path"].as_str().unwrap_or_default().contains("stacyvm-upload"), "{event}");
        if event["path"] == "/workspace/a/uploaded" {
            ensure!(event["type"] == "create", "{event}");
            break;
        }
    }
    child.kill()?;
    child.wait()?;
    ensure!(reader.join().is_ok());
    // A watch ends with its directory, and not with an error.
    sandbox.stdout("mkdir short").await?;
    let mut child = host.cli_command(&["watch", &sandbox.id, "short"])?.stdout(Stdio::piped()).spawn()?;
    let deadline = Instant::now() + Duration::from_secs(20);
    let status = loop {
        sandbox.stdout("touch short/x; sleep 0.1; rm -rf short").await.ok();
        if let Some(status) = child.try_wait()? {
            break status;
        }
        ensure!(Instant::now() < deadline, "the watch goes on without its directory");
    };
    ensure!(status.success(), "{status}");
    host.finish().await
}

#[tokio::test]
async fn streams_end_when_the_server_stops() -> Result<()> {
    let mut host = Host::start().await?;
    let sandbox = host.spawn().await?;
    let id = sandbox.id.clone();
    let url = host.server.url(&sandbox.path("/files/watch?path=/workspace"));
    let watched = host.server.http().get(url).send().await?.error_for_status()?;
    ensure!(watched.headers()["content-type"] == "text/event-stream");
    let reader = tokio::spawn(watched.text());
    host.server.stop_gracefully().await?;
    let text = tokio::time::timeout(Duration::from_secs(10), reader).await???;
    ensure!(text.contains(r#""type":"ready""#), "{text}");
    host.server.restart().await?;
    ensure!(host.sandbox(&id)?.stdout("echo alive").await? == "alive\n");
    host.finish().await
}

#[tokio::test]
async fn an_abandoned_archive_leaves_whole_files_only() -> Result<()> {
    let host = Host::start().await?;
    let sandbox = host.spawn().await?;
    let home = tempfile::tempdir()?;
    for name in ["a", "b"] {
        fs::write(home.path().join(name), vec![7; 400_000])?;
    }
    sandbox.stdout("mkdir in; echo old > in/b").await?;
    let packed = Command::new("tar").args(["-c", "-C"]).arg(home.path()).args(["a", "b"]).output()?.stdout;
    let part = Bytes::from(packed).slice(..600_000);
    let part = stream::iter([std::io::Result::Ok(part)]).chain(stream::pending());
    let url = host.server.url(&sandbox.path("/files/archive?path=in"));
    let upload = tokio::spawn(host.server.http().put(url).body(reqwest::Body::wrap_stream(part)).send());
    let deadline = Instant::now() + Duration::from_secs(20);
    // A and the beginning of b, under another name.
    while sandbox.stdout("ls -A in | wc -l").await?.trim() != "3" {
        ensure!(Instant::now() < deadline, "the archive does not arrive");
    }
    upload.abort();
    let _ = upload.await;
    while sandbox.stdout("ls -A in | wc -l").await?.trim() != "2" {
        ensure!(Instant::now() < deadline, "half a file is left");
    }
    ensure!(sandbox.stdout("cat in/b; wc -c < in/a").await? == "old\n400000\n");
    host.finish().await
}

#[tokio::test]
async fn a_gibibyte_of_directory_goes_both_ways_in_bounded_memory() -> Result<()> {
    const FILES: usize = 64;
    const SIZE: usize = 16 << 20;
    let host = Host::start().await?;
    let sandbox = host.spawn().await?;
    let home = tempfile::tempdir()?;
    let (source, back) = (home.path().join("source"), home.path().join("back"));
    fs::create_dir(&source)?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for number in 0..FILES {
        let mut content = Vec::with_capacity(SIZE);
        for _ in 0..SIZE / 8 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            content.extend_from_slice(&state.to_le_bytes());
        }
        fs::write(source.join(number.to_string()), content)?;
    }
    let before = host.server.resident_bytes()?;
    let mut most = before;
    for (from, to) in [
        (source.display().to_string(), format!("{}:/workspace/big", sandbox.id)),
        (format!("{}:/workspace/big", sandbox.id), back.display().to_string()),
    ] {
        let started = Instant::now();
        let mut child = host.cli_command(&["cp", "-r", &from, &to])?.spawn()?;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            ensure!(started.elapsed() < Duration::from_secs(180), "cp -r takes too long");
            most = most.max(host.server.resident_bytes()?);
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        ensure!(status.success(), "cp -r {from} {to}: {status}");
        eprintln!("1 GiB in {FILES} files: {:?}", started.elapsed());
    }
    let same = Command::new("diff").arg("-r").arg(&source).arg(&back).status()?;
    ensure!(same.success(), "the tree changed on the way");
    eprintln!("the server grew by {} MiB", (most - before) >> 20);
    ensure!(most - before < 64 << 20, "the server grew by {} MiB", (most - before) >> 20);
    host.finish().await
}
