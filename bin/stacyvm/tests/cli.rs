//! The program as a shell sees it: output, exit codes, what happens when a reader or a server goes away.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use axum::{Json, Router, extract::Path, http::StatusCode, response::IntoResponse, routing::get};
use serde_json::{Value, json};
use std::{
    fs,
    net::SocketAddr,
    process::{Command, Output, Stdio},
};

/// The program with an environment of its own, in a directory of its own.
fn stacyvm(directory: &tempfile::TempDir, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stacyvm"));
    command
        .args(args)
        .env_clear()
        .env("HOME", directory.path())
        .current_dir(directory.path())
        .stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    stacyvm(&directory, args).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A server with two sandboxes that knows nothing else.
fn server() -> SocketAddr {
    let sandbox = |id: &str| {
        json!({"id": id, "state": "running", "provider": "native", "image": "host", "memory_mb": 1, "vcpus": 1,
            "created_at": "2026-01-01T00:00:00Z", "expires_at": "2026-01-01T01:00:00Z"})
    };
    let all = Json(vec![sandbox("sb-1"), sandbox("sb-2")]);
    let one = |Path(id): Path<String>| async move {
        if id.starts_with("sb-") {
            Json(json!({"status": "destroyed"})).into_response()
        } else {
            missing().into_response()
        }
    };
    let look = move |Path(id): Path<String>| async move {
        if id.starts_with("sb-") { Json(sandbox(&id)).into_response() } else { missing().into_response() }
    };
    let router = Router::new()
        .route("/api/v1/sandboxes", get(|| async { all }))
        .route("/api/v1/sandboxes/{id}", get(look).delete(one))
        .route("/api/v1/sandboxes/{id}/processes", axum::routing::post(|| async { missing() }))
        .route("/api/v1/sandboxes/{id}/logs", get(|| async { Json(vec!["a", "b"]) }));
    support::serve(router)
}

fn missing() -> impl IntoResponse {
    (StatusCode::NOT_FOUND, Json(json!({"code": "NOT_FOUND", "message": "sandbox not found"})))
}

fn against(args: &[&str]) -> Output {
    let server = server().to_string();
    run(&[&["--server", &server], args].concat())
}

#[test]
fn version_and_help() {
    let version = run(&["version"]);
    assert_eq!(text(&version.stdout), format!("stacyvm {} (linux/amd64)\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(text(&run(&["--version"]).stdout), text(&version.stdout));
    let json: Value = serde_json::from_slice(&run(&["version", "--json"]).stdout).unwrap();
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    let help = run(&["run", "--help"]);
    assert!(help.status.success() && text(&help.stdout).contains("stacyvm run -- python3"));
}

#[test]
fn mistakes_go_to_standard_error_with_2() {
    for args in [&["nope"][..], &["run"], &["list", "--nope"], &["cp", "a", "b"]] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn a_server_that_is_not_there() {
    let output = run(&["list", "--server", "http://127.0.0.1:9"]);
    assert_eq!(output.status.code(), Some(1));
    let text = text(&output.stderr);
    assert!(
        text.starts_with("error: cannot reach http://127.0.0.1:9: ") && text.contains("\n  fix: "),
        "{text}"
    );
    assert_eq!(text.lines().count(), 2, "{text}");

    let output = run(&["exec", "sb-1", "--json", "--server", "127.0.0.1:9", "--", "true"]);
    assert_eq!(output.status.code(), Some(125), "our failure, not the command's");
    let error: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert!(error["error"].as_str().unwrap().starts_with("cannot reach"), "{error}");
}

#[test]
fn the_server_can_be_named_by_a_variable() {
    let directory = tempfile::tempdir().unwrap();
    let output = stacyvm(&directory, &["list"]).env("STACYVM_SERVER", server().to_string()).output().unwrap();
    let lines: Vec<_> = text(&output.stdout).lines().collect();
    assert_eq!(lines.len(), 3, "{output:?}");
    assert!(lines[0].starts_with("ID    STATE    PROVIDER  IMAGE  CREATED"), "{lines:?}");
    assert!(lines[1].starts_with("sb-1  running  native    host   "), "{lines:?}");
}

#[test]
fn json_is_what_the_api_says() {
    let output = against(&["list", "--json"]);
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(list[1]["id"], "sb-2");
    let output = against(&["logs", "sb-1", "--json"]);
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), json!(["a", "b"]));
}

#[test]
fn a_list_can_be_narrowed() {
    let count = |args: &[&str]| {
        let output = against(&[&["list", "--json"], args].concat());
        serde_json::from_slice::<Value>(&output.stdout).unwrap().as_array().unwrap().len()
    };
    assert_eq!((count(&["--state", "running"]), count(&["--provider", "native"])), (2, 2));
    assert_eq!((count(&["--state", "paused"]), count(&["--owner", "x"])), (0, 0));
    assert_eq!(text(&against(&["list", "--state", "paused"]).stdout), "No such sandboxes\n");
    assert_eq!(against(&["list", "--state", "tired"]).status.code(), Some(2));
}

#[test]
fn programs_get_mistakes_as_json_too() {
    let output = run(&["list", "--json", "--nope"]);
    let error: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(
        (&error["error"], output.status.code()),
        (&json!("unexpected argument '--nope' found"), Some(2))
    );
    // Behind the dashes it is a word of the command.
    let output = run(&["run", "--nope", "--", "x", "--json"]);
    assert!(text(&output.stderr).starts_with("error: "), "{output:?}");
    let reference: Value = serde_json::from_slice(&run(&["config", "reference", "--json"]).stdout).unwrap();
    assert_eq!(reference[0]["variable"], "STACYVM_DATA_DIR");
}

#[test]
fn pages_of_the_manual_for_every_command() {
    let directory = tempfile::tempdir().unwrap();
    let output = stacyvm(&directory, &["man", "--dir", "pages/man1", "--json"]).output().unwrap();
    let pages: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        pages["pages"].as_array().unwrap().contains(&json!("pages/man1/stacyvm-image-pull.1")),
        "{pages}"
    );
    for entry in fs::read_dir(directory.path().join("pages/man1")).unwrap() {
        let page = fs::read_to_string(entry.unwrap().path()).unwrap();
        assert!(page.contains(".TH stacyvm") && page.contains(".SH NAME"), "{page}");
    }
    let one = stacyvm(&directory, &["man", "image", "pull"]).output().unwrap();
    assert!(text(&one.stdout).contains("stacyvm\\-image\\-pull \\- Pull images"), "{}", text(&one.stdout));
    assert_eq!(stacyvm(&directory, &["man", "nope"]).output().unwrap().status.code(), Some(2));
}

#[test]
fn completion_without_a_server_is_silent_and_makes_nothing() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let directory = tempfile::tempdir().unwrap();
        let script = stacyvm(&directory, &["completion", shell]).output().unwrap();
        assert!(script.status.success() && text(&script.stdout).contains("_STACYVM_COMPLETE"), "{shell}");
        for words in
            [&["kill", "sb-"][..], &["attach", "sb-1", "p-"], &["run", "--image", "x"], &["nope", ""]]
        {
            let index = words.len().to_string();
            let mut ask = stacyvm(&directory, &[&["--", "stacyvm"], words].concat());
            ask.env("_STACYVM_COMPLETE", shell).env("_CLAP_COMPLETE_INDEX", index).env("_CLAP_IFS", "\n");
            let output = ask.env("STACYVM_SERVER", "http://127.0.0.1:9").output().unwrap();
            assert!(output.status.success() && output.stderr.is_empty(), "{shell} {words:?}: {output:?}");
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "{shell}");
    }
}

#[test]
fn kill_tells_unknown_from_destroyed() {
    let output = against(&["kill", "sb-1"]);
    assert_eq!((text(&output.stdout), output.status.code()), ("Sandbox sb-1 destroyed\n", Some(0)));
    let output = against(&["kill", "other", "sb-2"]);
    assert_eq!((text(&output.stdout), output.status.code()), ("Sandbox sb-2 destroyed\n", Some(1)));
    assert!(text(&output.stderr).starts_with("error: sandbox not found\n  fix: "), "{output:?}");
    let output = against(&["kill", "--json", "other", "sb-2"]);
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        result,
        json!({"destroyed": ["sb-2"], "failed": [{"id": "other", "error": "sandbox not found"}]})
    );
}

#[test]
fn exec_in_an_unknown_sandbox_is_our_failure_not_a_missing_command() {
    let output = against(&["exec", "other", "--", "true"]);
    assert_eq!(output.status.code(), Some(125));
    let output = against(&["exec", "sb-1", "--", "true"]);
    assert_eq!(
        output.status.code(),
        Some(127),
        "the sandbox is there, so it is the command that is not: {output:?}"
    );
}

#[test]
fn a_reader_that_goes_away_ends_us_without_a_word() {
    let directory = tempfile::tempdir().unwrap();
    for args in [&["config", "reference"][..], &["config", "show"], &["completion", "bash"], &["help", "run"]]
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = stacyvm(&directory, args).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(text(&output.stderr), "", "{args:?}");
    }
}

#[test]
fn config_show_says_where_values_come_from() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(
        directory.path().join("stacyvm.yaml"),
        "server:\n  port: 8000\n  prot: 1\nauth:\n  api_key: hunter2\n",
    )
    .unwrap();
    let output = stacyvm(&directory, &["config", "show", "--set", "--data-dir", "/d"])
        .env("STACYVM_DEFAULTS_VCPUS", "2")
        .output()
        .unwrap();
    let shown = text(&output.stdout);
    let lines: Vec<_> =
        shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let file = directory.path().join("stacyvm.yaml");
    let file = file.display();
    assert_eq!(
        lines,
        [
            "data_dir: /d # flag --data-dir".to_owned(),
            "server:".to_owned(),
            format!("port: 8000 # {file}:2"),
            "defaults:".to_owned(),
            "vcpus: 2 # env STACYVM_DEFAULTS_VCPUS".to_owned(),
            "auth:".to_owned(),
            format!("# api_key: (set) # {file}:5"),
        ]
    );
    let warning = text(&output.stderr);
    assert!(
        warning.contains("stacyvm.yaml:3: unknown key server.prot\n  fix: did you mean server.port?"),
        "{warning}"
    );
}

#[test]
fn bad_configuration_is_named_with_lines() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.yaml");
    fs::write(&path, "server:\n  port: x\ndefaults: {ttl: 5}\n").unwrap();
    for command in ["serve", "run"] {
        let mut args = vec![command, "--config", "c.yaml", "--data-dir", "data"];
        args.extend((command == "run").then_some(["--", "true"]).into_iter().flatten());
        let output = stacyvm(&directory, &args).output().unwrap();
        assert_eq!(output.status.code(), Some(if command == "run" { 125 } else { 1 }));
        let text = text(&output.stderr);
        assert!(text.contains("c.yaml:2: server.port") && text.contains("c.yaml:3: defaults.ttl"), "{text}");
    }
    assert!(!directory.path().join("data").exists(), "nothing was touched");
}

#[test]
fn an_open_listener_is_refused_with_the_fix() {
    let directory = tempfile::tempdir().unwrap();
    let output = stacyvm(&directory, &["serve", "--host", "0.0.0.0", "--data-dir", "data"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = text(&output.stderr);
    assert!(
        text.contains("--host: listening on 0.0.0.0 without a key") && text.contains("--insecure-no-auth"),
        "{text}"
    );
    assert!(!directory.path().join("data").exists(), "nothing was touched");
}
