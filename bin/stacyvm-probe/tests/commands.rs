//! The probe does what the checks believe it does: a check that asks a wrong witness proves nothing.
#![expect(clippy::unwrap_used, reason = "tests, and what only they call")]

use std::{
    io::Write,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

fn probe(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stacyvm-probe"));
    command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(words: &[&str]) -> Output {
    probe(words).output().unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn with_input(words: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = probe(words).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    output.stdout
}

#[test]
fn statuses_and_signals() {
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(run(&["exit", "77"]).status.code(), Some(77));
    assert_eq!(run(&["self-signal", "11"]).status.signal(), Some(11));
    assert_eq!(run(&["no-such-command"]).status.code(), Some(125));
    assert_eq!(run(&["exit"]).status.code(), Some(125));
    assert_eq!(run(&["read", "/no/such/file"]).status.code(), Some(126));
}

#[test]
fn bytes_go_through_exactly() {
    let all: Vec<u8> = (0..=255).collect();
    assert_eq!(run(&["bytes", "1"]).stdout, all);
    assert_eq!(run(&["bytes", "1"]).stderr, all.iter().rev().copied().collect::<Vec<u8>>());
    assert_eq!(with_input(&["cat"], &all.repeat(2000)), all.repeat(2000));
    assert_eq!(with_input(&["stdin-hash"], b"foobar"), b"6 85944171f73967e8\n");
    assert_eq!(run(&["args", "a b", "", "c"]).stdout, b"a b\0\0c\0");
    let flood = run(&["flood", "100000"]).stdout;
    assert_eq!((flood.len(), &flood[..4]), (100_000, &[0, 0x9e, 0x3c, 0xda][..]));
}

#[test]
fn it_says_who_it_is() {
    let id = text(&run(&["id"]));
    for key in ["uid=", "groups=", "CapEff=", "NoNewPrivs=", "SigBlk="] {
        assert!(id.contains(key), "{key} in {id}");
    }
    let env = probe(&["env"]).env_clear().env("A", "b=c").output().unwrap();
    assert_eq!(env.stdout, b"A=b=c\0");
    assert!(text(&run(&["net"])).lines().any(|name| name == "lo"));
    assert!(text(&run(&["ps"])).contains("stacyvm-probe ps"));
    // Whoever runs this test may have left more descriptors open; the probe's own must not be among them.
    let fds = text(&run(&["fds"]));
    assert!(["0 ", "1 ", "2 "].iter().all(|fd| fds.lines().any(|line| line.starts_with(fd))), "{fds}");
    assert!(!fds.contains("/proc/"), "{fds}");
    assert_eq!(text(&run(&["try", "read", "/proc/self/no-such-file"])), "errno 2\n");
    assert_eq!(text(&run(&["try", "read", "/proc/self/stat"])), "ok\n");
}

#[test]
fn a_spawned_child_beats_until_its_directory_is_gone() {
    for how in ["child", "session", "daemon", "stubborn"] {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("beat");
        // stdout and stderr away: a child that holds them would hold up whoever waits for their end.
        let mut command = probe(&["spawn", how, "exit", file.to_str().unwrap()]);
        assert!(command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
        let size = || std::fs::metadata(&file).map_or(0, |m| m.len());
        let until = Instant::now() + Duration::from_secs(5);
        while size() < 3 {
            assert!(Instant::now() < until, "{how} does not beat");
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(directory);
        let named = || {
            std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
                let line = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
                line.contains(file.to_str().unwrap())
            })
        };
        while named() {
            assert!(Instant::now() < until, "{how} lives on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn forks_are_counted_and_memory_is_reported() {
    assert_eq!(text(&run(&["fork-many", "5", "10"])), "forked 5\n");
    assert_eq!(text(&run(&["alloc", "12", "0"])), "8\n12\n");
    let used: u64 = text(&run(&["spin", "50"])).trim().parse().unwrap();
    assert!(used <= 60, "{used} ms in 50 ms");
}

#[test]
fn a_file_is_filled_as_far_as_that_goes() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("file");
    let path = path.to_str().unwrap();
    assert_eq!(text(&run(&["fill", path, "2"])), "2\n");
    assert_eq!(std::fs::metadata(path).unwrap().len(), 2 << 20);
    let full = run(&["fill", "/dev/full", "2"]);
    assert_eq!((full.stdout.as_slice(), full.status.code()), (&b"0\n"[..], Some(126)));
    assert!(String::from_utf8_lossy(&full.stderr).contains("errno 28"), "{full:?}");
}

#[test]
fn kill_all_refuses_on_a_real_machine() {
    // As root, or among many processes, it must not even try. Signal 0 would harm nobody if it did.
    let refused = run(&["kill-all", "0"]);
    let crowd = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|e| e.file_name().to_str().is_some_and(|n| n.parse::<u32>().is_ok()));
    if rustix::process::getuid().is_root() || crowd.count() > 70 {
        assert_eq!(refused.status.code(), Some(125), "{refused:?}");
    }
}

#[test]
fn it_tells_what_this_kernel_can() {
    let directory = tempfile::tempdir().unwrap();
    let report = text(&run(&["syscalls", directory.path().to_str().unwrap()]));
    let lines: Vec<Vec<&str>> = report.lines().map(|line| line.split('\t').collect()).collect();
    let header = |key: &str| lines.iter().find(|line| line[0] == key).unwrap()[1];
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(header("#release"), release.trim());
    assert!(["yes", "no"].contains(&header("#gvisor")));

    let entries: Vec<_> = lines.iter().filter(|line| !line[0].starts_with('#')).collect();
    assert!(entries.len() > 100 && entries.iter().all(|line| line.len() == 3), "{report}");
    for name in ["eventfd2", "statx", "O_TMPFILE", "flock", "SCM_RIGHTS", "close_range"] {
        let entry = entries.iter().find(|line| line[0] == name).unwrap();
        assert!(matches!(entry[1], "works" | "refused" | "absent"), "{entry:?}");
    }
    assert!(entries.iter().all(|line| !line[2].contains("hangs")), "{report}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn it_needs_a_place_for_files() {
    let output = run(&["syscalls", "/proc"]);
    assert_eq!(output.status.code(), Some(126));
}

/// On the bare host, which is what a sandbox shall not look like.
#[test]
fn it_tells_what_stands_open() {
    use std::os::{linux::net::SocketAddrExt, unix::net};
    let name = format!("probe-surface-{}", std::process::id());
    let _abstract =
        net::UnixListener::bind_addr(&net::SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = tcp.local_addr().unwrap().port().to_string();
    let token = format!("process-of-the-host-{}", std::process::id());
    let mut process = probe(&["sleep", "60000", &token]).spawn().unwrap();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let outcomes = |port: &str, name: &str, token: &str, host: &str| {
        let backwards: String = token.chars().rev().collect();
        let report = text(&run(&["surface", port, name, &backwards, host]));
        let count = report.lines().count() - 1;
        assert!(report.ends_with(&format!("#end\t{count}\n")) && count > 60, "{report}");
        let outcome = |line: &str| line.split('\t').map(str::to_owned).collect::<Vec<_>>();
        let outcomes: Vec<_> =
            report.lines().map(outcome).filter(|line| line[0].contains("the host")).collect();
        outcomes.into_iter().map(|line| line[1].clone()).collect::<Vec<_>>()
    };
    assert_eq!(outcomes(&port, &name, &token, host.trim()), ["works"; 4]);
    process.kill().unwrap();
    process.wait().unwrap();
    drop(tcp);
    // Where nothing of it is there, nothing is found.
    assert_eq!(outcomes(&port, "no-such-name", &token, "no-such-host"), ["absent"; 4]);
}
