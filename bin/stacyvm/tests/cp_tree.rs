//! `stacyvm cp -r` against a server whose sandbox sends archives that want to be somewhere else on this machine.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use axum::{Json, Router, body::Body, extract::State, routing::get};
use bytes::Bytes;
use futures::{StreamExt, stream};
use serde_json::json;
use stacyvm_tar::{END, Entry, Kind, append};
use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::PathBuf,
    process::{Command, Output, Stdio},
};

/// A server with one directory in one sandbox, of which it sends this archive; `cut` breaks the connection behind it.
fn server(archive: Vec<u8>, cut: bool) -> SocketAddr {
    let stat = || async {
        Json(json!({"path": "/workspace/t", "size": 0, "mode": "755", "is_dir": true,
            "mod_time": "2026-01-01T00:00:00Z"}))
    };
    let send = move |State(archive): State<Bytes>| async move {
        let end = cut.then(|| Err(std::io::Error::other("gone")));
        Body::from_stream(stream::iter([Ok(archive)]).chain(stream::iter(end)))
    };
    let router = Router::new()
        .route("/api/v1/sandboxes/{id}/files/stat", get(stat))
        .route("/api/v1/sandboxes/{id}/files/archive", get(send))
        .with_state(Bytes::from(archive));
    support::serve(router)
}

#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn entry(mut self, kind: Kind, path: &str, link: &str, mode: u32, data: &[u8]) -> Self {
        let (path, link, size) = (path.into(), link.into(), data.len() as u64);
        let entry = Entry { kind, path, link, mode, uid: 0, gid: 0, mtime: (1_600_000_000, 0), size };
        append(&entry, data, &mut self.0);
        self
    }

    fn file(self, path: &str) -> Self {
        self.entry(Kind::File, path, "", 0o644, b"bad")
    }
}

/// A place to copy to, beside something that must not change.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::create_dir(place.at("outside")).unwrap();
        fs::write(place.at("outside/secret"), "secret").unwrap();
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn copy(&self, archive: Archive, flags: &[&str]) -> Output {
        let Archive(mut bytes) = archive;
        bytes.extend_from_slice(&END);
        self.copy_from(server(bytes, false), flags)
    }

    /// Copies the sandbox's directory to `copy`, and looks whether anything else changed.
    fn copy_from(&self, server: SocketAddr, flags: &[&str]) -> Output {
        let output = Command::new(env!("CARGO_BIN_EXE_stacyvm"))
            .env_clear()
            .env("HOME", self.0.path())
            .current_dir(self.0.path())
            .args(["--server", &server.to_string(), "cp", "-r", "sb-1:t", "copy"])
            .args(flags)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(fs::read(self.at("outside/secret")).unwrap(), b"secret");
        assert_eq!(fs::read_dir(self.at("outside")).unwrap().count(), 1);
        assert_eq!(fs::read_dir(self.0.path()).unwrap().count(), 2, "only outside and copy");
        output
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn nothing_is_written_outside_the_target() {
    let outside = Place::new();
    let absolute = outside.at("outside").display().to_string();
    let link = |target: &str| Archive::default().file("before").entry(Kind::Symlink, "l", target, 0o777, b"");
    for (archive, named) in [
        (Archive::default().file("before").file("../outside/secret"), "../outside/secret"),
        (Archive::default().file("before").file(&format!("{absolute}/secret")), "secret"),
        (
            Archive::default().file("before").entry(Kind::HardLink, "h", "../outside/secret", 0o644, b""),
            "\"h\"",
        ),
        (Archive::default().file("before").entry(Kind::Other(b'3'), "dev", "", 0o666, b""), "dev"),
        (link("../outside").file("l/secret"), "l/secret"),
        (link(&absolute).file("l/new"), "l/new"),
        (link("../outside").entry(Kind::HardLink, "h", "l/secret", 0o644, b""), "\"h\""),
    ] {
        // With the links that lead out: they are made, and still nobody follows them.
        let place = Place::new();
        let output = place.copy(archive, &["--all-links"]);
        assert_eq!(output.status.code(), Some(1), "{named}: {output:?}");
        assert!(said(&output).contains(named), "{named}: {}", said(&output));
        assert!(said(&output).contains("what was unpacked before stays"), "{}", said(&output));
        assert_eq!(fs::read(place.at("copy/before")).unwrap(), b"bad");
    }
}

#[test]
fn links_that_were_there_before_are_not_followed() {
    let place = Place::new();
    fs::create_dir(place.at("copy")).unwrap();
    // The directory goes into the one that is there, under its own name.
    fs::create_dir(place.at("copy/t")).unwrap();
    symlink("../../outside", place.at("copy/t/l")).unwrap();
    symlink("../../outside/secret", place.at("copy/t/f")).unwrap();
    assert!(!place.copy(Archive::default().file("l/secret"), &[]).status.success());
    let output = place.copy(Archive::default().file("f"), &[]);
    assert!(output.status.success(), "{output:?}");
    assert!(fs::symlink_metadata(place.at("copy/t/f")).unwrap().is_file());
}

#[test]
fn links_that_lead_out_are_left_out_and_bits_that_change_the_user_are_dropped() {
    let place = Place::new();
    let archive = Archive::default()
        .entry(Kind::Directory, "./", "", 0o2755, b"")
        .entry(Kind::Symlink, "out", "../outside/secret", 0o777, b"")
        .entry(Kind::Symlink, "\x1b[2J", "/etc/passwd", 0o777, b"")
        .entry(Kind::Symlink, "in", "run", 0o777, b"")
        .entry(Kind::File, "run", "", 0o6755, b"#!");
    let output = place.copy(archive, &["--json"]);
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&result["links"], &result["links_left_out"], &result["files"]),
        (&json!(1), &json!(2), &json!(1))
    );
    let mode = |name: &str| fs::metadata(place.at(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("copy"), mode("copy/run")), (0o755, 0o755));
    assert_eq!(fs::metadata(place.at("copy")).unwrap().mtime(), 1_600_000_000);
    let names = fs::read_dir(place.at("copy")).unwrap().count();
    assert_eq!(names, 2);
    let place = Place::new();
    let output = place.copy(Archive::default().entry(Kind::Symlink, "\x1b[2J", "/x", 0o777, b""), &[]);
    assert!(output.status.success() && said(&output).contains("\\u{1b}[2J"), "{}", said(&output));
    assert!(!said(&output).contains('\x1b'));
}

#[test]
fn an_archive_that_is_cut_is_an_error() {
    let whole = Archive::default().file("a").entry(Kind::File, "b", "", 0o644, &[7; 5000]).0;
    for (bytes, cut) in
        [(whole.clone(), false), (whole[..3000].to_vec(), false), (whole[..3000].to_vec(), true)]
    {
        let place = Place::new();
        let output = place.copy_from(server(bytes.clone(), cut), &[]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        // A connection that breaks may take what it carried with it.
        assert!(cut || fs::read(place.at("copy/a")).unwrap() == b"bad");
        assert_eq!(place.at("copy/b").exists(), bytes.len() == whole.len());
        assert!(fs::read_dir(place.at("copy")).unwrap().count() <= 2);
    }
}
