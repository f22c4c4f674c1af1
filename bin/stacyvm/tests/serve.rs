//! The server as an operator sees it: start, second start, stop, restart after being killed, and the client commands
//! against it. With the mock provider, so that it runs anywhere.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

const WAIT: Duration = Duration::from_secs(60);

fn stacyvm(directory: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stacyvm"));
    command
        .args(args)
        .env_clear()
        .env("HOME", directory)
        .env("PATH", "/usr/bin:/bin")
        .env("STACYVM_DATA_DIR", directory.join("data"))
        .env("STACYVM_PROVIDERS_NATIVE_ENABLED", "false")
        .env("STACYVM_PROVIDERS_MOCK_ENABLED", "true")
        .env("STACYVM_PROVIDERS_DEFAULT", "auto")
        .current_dir(directory)
        .stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A server that is killed when the test ends.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start(directory: &Path, environment: &[(&str, &str)]) -> Self {
        let mut command = stacyvm(directory, &["serve", "--port", "0"]);
        let mut child = command.envs(environment.iter().copied()).stdout(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stdout.take().unwrap());
        let url = loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "the server ended");
            let entry: Value = serde_json::from_str(&line).unwrap();
            if entry["message"] == "serving" {
                break format!("http://{}", entry["address"].as_str().unwrap());
            }
        };
        // Whatever it logs from now on, a full pipe must not stop it.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { child, url }
    }

    fn client(&self, directory: &Path, args: &[&str]) -> Output {
        stacyvm(directory, &[&["--server", &self.url], args].concat()).output().unwrap()
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    fn exit_code(&mut self) -> Option<i32> {
        let started = Instant::now();
        while started.elapsed() < WAIT {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the server does not end");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A sandbox of the mock provider, destroyed when the test ends so that no agent of it is left.
fn spawn(server: &Server, directory: &Path) -> String {
    let output = server.client(directory, &["spawn", "--image", "any", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let sandbox: Value = serde_json::from_slice(&output.stdout).unwrap();
    sandbox["id"].as_str().unwrap().to_owned()
}

#[test]
fn the_life_of_a_server() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let notified = UnixDatagram::bind(dir.join("notify")).unwrap();
    notified.set_read_timeout(Some(WAIT)).unwrap();
    let notify = dir.join("notify");
    let mut server = Server::start(dir, &[("NOTIFY_SOCKET", notify.to_str().unwrap())]);
    let state = || {
        let mut buffer = [0; 64];
        let length = notified.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    assert_eq!(state(), "READY=1");
    assert!(server.url.starts_with("http://127.0.0.1:"), "without a key, loopback only: {}", server.url);
    let mode = fs::metadata(dir.join("data")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    assert_eq!(text(&server.client(dir, &["list"]).stdout), "No active sandboxes\n");

    let second = stacyvm(dir, &["serve", "--port", "0"]).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let expected = format!("is in use by process {}\n  fix: ", server.child.id());
    assert!(text(&second.stderr).contains(&expected), "{second:?}");

    let id = spawn(&server, dir);
    server.signal("-TERM");
    assert_eq!((server.exit_code(), state().as_str()), (Some(0), "STOPPING=1"));
    let mut server = Server::start(dir, &[]);
    assert!(text(&server.client(dir, &["list"]).stdout).contains(&id), "sandboxes go on");

    // Killed, and started again at once.
    server.signal("-KILL");
    server.exit_code();
    let server = Server::start(dir, &[]);
    let output = server.client(dir, &["exec", &id, "--", "echo", "still here"]);
    assert_eq!(text(&output.stdout), "still here\n", "{output:?}");
    assert_eq!(text(&server.client(dir, &["kill", &id]).stdout), format!("Sandbox {id} destroyed\n"));
}

#[test]
fn commands_in_a_sandbox() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let server = Server::start(dir, &[]);
    let id = spawn(&server, dir);
    let exec = |args: &[&str]| server.client(dir, &[&["exec", &id], args].concat());

    let output = exec(&["--env", "A=b c", "--workdir", "/", "--", "sh", "-c", "echo $A; echo e >&2; exit 7"]);
    assert_eq!((text(&output.stdout), text(&output.stderr), output.status.code()), ("b c\n", "e\n", Some(7)));
    assert_eq!(text(&exec(&["--shell", "--", "echo 1;", "echo 2"]).stdout), "1\n2\n");
    assert_eq!(exec(&["--", "sh", "-c", "kill -9 $$"]).status.code(), Some(137));
    assert_eq!(exec(&["--", "no-such-command"]).status.code(), Some(127));
    assert_eq!(exec(&["--", "/etc/passwd"]).status.code(), Some(126));
    let output = exec(&["--timeout", "200ms", "--", "sh", "-c", "echo before; sleep 60"]);
    assert_eq!((text(&output.stdout), output.status.code()), ("before\n", Some(124)));

    let result: Value = serde_json::from_slice(&exec(&["--json", "--", "printf", "\\377"]).stdout).unwrap();
    assert_eq!(
        (&result["stdout"], &result["encoding"], &result["exit_code"]),
        (&"/w==".into(), &"base64".into(), &0.into())
    );

    let bytes: Vec<u8> = (0..300_000_u32).map(|i| (i % 256) as u8).collect();
    let mut child = stacyvm(dir, &["--server", &server.url, "exec", &id, "-i", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success() && output.stdout == bytes, "{} bytes", output.stdout.len());

    let logs = server.client(dir, &["logs", &id, "--lines", "2"]);
    assert_eq!(text(&logs.stdout).lines().count(), 2, "{logs:?}");
    server.client(dir, &["kill", &id]);
}

#[test]
fn files_in_and_out() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let server = Server::start(dir, &[]);
    let id = spawn(&server, dir);
    let cp = |from: &str, to: &str| server.client(dir, &["cp", from, to]);
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 256) as u8).collect();
    fs::write(dir.join("in.bin"), &bytes).unwrap();
    fs::set_permissions(dir.join("in.bin"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::create_dir(dir.join("out")).unwrap();

    assert!(cp("in.bin", &format!("{id}:/workspace/")).status.success());
    assert!(cp(&format!("{id}:in.bin"), &format!("{id}:sub/copy.bin")).status.success());
    let output = cp(&format!("{id}:sub/copy.bin"), "out");
    assert!(output.status.success(), "{output:?}");
    assert!(fs::read(dir.join("out/copy.bin")).unwrap() == bytes);
    assert_eq!(fs::metadata(dir.join("out/copy.bin")).unwrap().permissions().mode() & 0o7777, 0o640);
    assert!(cp(&format!("{id}:in.bin"), "-").stdout == bytes);

    for (from, to, what) in [
        (format!("{id}:none"), "x".to_owned(), "none"),
        (format!("{id}:sub"), "x".to_owned(), "is a directory"),
        ("out".to_owned(), format!("{id}:x"), "is a directory"),
        ("none".to_owned(), format!("{id}:x"), "cannot read none"),
        ("sb-none:x".to_owned(), "x".to_owned(), "sandbox not found"),
    ] {
        let output = cp(&from, &to);
        assert_eq!(output.status.code(), Some(1), "{from} {to}");
        assert!(text(&output.stderr).contains(what), "{from} {to}: {output:?}");
        assert!(!dir.join("x").exists());
    }
    server.client(dir, &["kill", &id]);
}

#[test]
fn run_on_a_server() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let server = Server::start(dir, &[]);
    let output = server.client(dir, &["run", "--", "sh", "-c", "echo out; exit 9"]);
    assert_eq!((text(&output.stdout), output.status.code()), ("out\n", Some(9)), "{output:?}");
    assert_eq!(text(&server.client(dir, &["list"]).stdout), "No active sandboxes\n");
}

#[test]
fn a_key_is_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    fs::write(dir.join("key"), "s3cret\n").unwrap();
    let server =
        Server::start(dir, &[("STACYVM_AUTH_API_KEY_FILE", "key"), ("STACYVM_SERVER_HOST", "127.0.0.1")]);
    let output = server.client(dir, &["list"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("--api-key"), "{output:?}");
    assert!(server.client(dir, &["list", "--api-key", "s3cret"]).status.success());
    let mut command = stacyvm(dir, &["list", "--server", &server.url]);
    assert!(command.env("STACYVM_API_KEY", "s3cret").output().unwrap().status.success());
}

#[test]
fn keys_without_effect_are_named_once() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    fs::write(
        dir.join("stacyvm.yaml"),
        "pool: {enabled: true}\nrate_limit:\n  burst: 7\nserver:\n  prot: 1\n",
    )
    .unwrap();
    let mut command = stacyvm(dir, &["serve", "--port", "0"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let entries: Vec<Value> = lines
        .map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap())
        .take_while(|entry| entry["message"] != "serving")
        .collect();
    child.kill().unwrap();
    child.wait().unwrap();
    let warned: Vec<_> = entries.iter().filter_map(|entry| entry["keys"].as_str()).collect();
    assert_eq!(warned, ["rate_limit.burst, pool.enabled"]);
    assert!(entries.iter().any(|entry| entry["fix"] == "did you mean server.port?"), "{entries:?}");
}

#[test]
fn a_port_that_is_taken() {
    let directory = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let output = stacyvm(directory.path(), &["serve", "--port", &port]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains(&format!("cannot listen on 127.0.0.1 port {port}")), "{output:?}");
}
