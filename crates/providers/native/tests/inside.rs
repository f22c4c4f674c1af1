//! What a process sees and may do inside a native sandbox.

mod common;

use common::{Host, id, run, sandbox, sh, spec};
use stacyvm_provider::{ErrorKind, Outcome, Provider, SandboxSpec};
use std::{fs, os::unix::fs::PermissionsExt, path::Path};

#[tokio::test(flavor = "multi_thread")]
async fn a_program_of_the_host_runs_as_nobody_special() {
    let host = Host::new();
    let provider = host.provider(1);
    let id = id("inside");
    let guest = sandbox(&provider, &id, &spec()).await;
    let guest = guest.as_ref();

    assert_eq!(run(guest, &["python3", "-c", "print(40+2)"]).await.ok(), "42\n");
    assert_eq!(
        sh(guest, "id -u; id -g; id -un; pwd; echo $HOME").await,
        "1000\n1000\nsandbox\n/workspace\n/home/sandbox\n"
    );
    let status = sh(guest, "grep -E '^(Cap|NoNewPrivs)' /proc/self/status").await;
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(status.contains(&format!("{set}:\t0000000000000000")), "{status}");
    }
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");

    assert_eq!(
        sh(guest, "hostname; cat /etc/hostname; getent hosts $(hostname) | cut -d' ' -f1").await,
        format!("{id}\n{id}\n127.0.1.1\n")
    );
    let interfaces = sh(guest, "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '").await;
    assert_eq!(interfaces, "lo\n");
    let python = "import socket; s = socket.create_server(('127.0.0.1', 0)); \
                  socket.create_connection(s.getsockname()); print('lo is up')";
    assert_eq!(run(guest, &["python3", "-c", python]).await.ok(), "lo is up\n");

    // Processes: its own and the agent's, a handful.
    let processes = sh(guest, "ls -d /proc/[0-9]* | wc -l").await;
    assert!(processes.trim().parse::<u32>().unwrap() < 10, "{processes}");
    // The limits of a process are not those that the server was started with.
    assert_eq!(sh(guest, "ulimit -c").await.trim(), "0");

    provider.destroy(&id).await.unwrap();
    host.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hosts_secrets_are_not_there_and_its_programs_cannot_be_changed() {
    let host = Host::new();
    let provider = host.provider(1);
    let id = id("secrets");
    let guest = sandbox(&provider, &id, &spec()).await;
    let guest = guest.as_ref();
    // Asked through the agent, which no permission bits keep out.
    for absent in ["/etc/shadow", "/etc/machine-id", "/etc/ssl/private", "/root/.bashrc", "/var/lib/dpkg"] {
        assert_eq!(guest.stat(absent, false).await.unwrap_err().kind(), ErrorKind::NotFound, "{absent}");
    }
    let data_dir = host.data_dir.display();
    assert!(sh(guest, &format!("ls -d {data_dir} 2>&1 || true")).await.contains("No such file"));
    assert!(!sh(guest, "cat /proc/self/mountinfo /proc/mounts").await.contains(&data_dir.to_string()));
    let mounts = sh(guest, "grep ' /usr ' /proc/self/mountinfo").await;
    assert!(mounts.contains(" ro,nosuid,nodev,"), "{mounts}");

    // Not even through the agent, which is root of the sandbox: devices and programs are not the host's to change.
    let before = fs::metadata("/dev/null").unwrap().permissions().mode();
    let _ = guest.chmod("/dev/null", 0o600).await;
    assert_eq!(fs::metadata("/dev/null").unwrap().permissions().mode(), before);
    guest.chmod("/usr/bin/env", 0o700).await.unwrap_err();
    guest.remove("/usr/bin/env", false).await.unwrap_err();
    assert!(Path::new("/usr/bin/env").exists());

    for path in ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/kmsg"] {
        let read = run(guest, &["cat", path]).await;
        assert_eq!((read.info.outcome, read.stdout.as_str()), (Some(Outcome::Exited(1)), ""), "{path}");
    }
    let write = run(guest, &["sh", "-c", "echo x > /proc/sys/kernel/hostname"]).await;
    assert_ne!(write.info.outcome, Some(Outcome::Exited(0)));
    for escape in
        ["mount -t tmpfs x /mnt", "unshare -p true", "mknod /tmp/sda b 8 0", "chown root /tmp", "kill -9 1"]
    {
        let ran = run(guest, &["sh", "-c", escape]).await;
        assert_ne!(ran.info.outcome, Some(Outcome::Exited(0)), "{escape}: {ran:?}");
    }
    guest.ping().await.unwrap();
    provider.destroy(&id).await.unwrap();
    host.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_live_as_long_as_their_sandbox_and_belong_to_it_alone() {
    let host = Host::new();
    let provider = host.provider(1);
    let (a, b) = (id("a"), id("b"));
    let in_a = sandbox(&provider, &a, &spec()).await;
    let in_b = sandbox(&provider, &b, &spec()).await;
    sh(in_a.as_ref(), "echo one > /workspace/f; echo two > ~/f; echo three > /tmp/f; echo four > /dev/shm/f")
        .await;
    assert_eq!(sh(in_a.as_ref(), "cat /workspace/f ~/f /tmp/f /dev/shm/f").await, "one\ntwo\nthree\nfour\n");
    assert_eq!(sh(in_b.as_ref(), "cat /workspace/f ~/f /tmp/f /dev/shm/f 2>/dev/null || true").await, "");
    provider.destroy(&a).await.unwrap();
    let in_a = sandbox(&provider, &a, &spec()).await;
    assert_eq!(sh(in_a.as_ref(), "ls /workspace /tmp | grep -v :").await.trim(), "");
    for id in [a, b] {
        provider.destroy(&id).await.unwrap();
    }
    host.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_terminals_and_time_zones_work() {
    let host = Host::new();
    let provider = host.provider(1);
    let id = id("devices");
    let guest = sandbox(&provider, &id, &spec()).await;
    let guest = guest.as_ref();
    assert_eq!(
        sh(guest, "echo x > /dev/null; head -c3 /dev/zero | od -An -tx1; head -c8 /dev/urandom | wc -c")
            .await,
        " 00 00 00\n8\n"
    );
    assert!(sh(guest, "echo x > /dev/full 2>&1 || echo full").await.contains("full"));
    let python = "import pty, os; m, s = pty.openpty(); os.write(s, b'hi'); print(os.read(m, 9).decode(), os.ttyname(s))";
    assert_eq!(run(guest, &["python3", "-c", python]).await.ok(), "hi /dev/pts/0\n");
    assert_eq!(
        sh(guest, "echo hello | cat /dev/stdin; ls /dev/fd/ | wc -l").await.lines().next(),
        Some("hello")
    );
    sh(guest, "date; test -e /etc/ssl/certs").await;
    provider.destroy(&id).await.unwrap();
    host.assert_nothing_left();
}

/// The agent itself is the static program: it needs no library, no shell, no `/etc`.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_with_one_static_program_is_enough() {
    let host = Host::new();
    let provider = host.provider(1);
    let rootfs = tempfile::tempdir_in("/var/tmp").unwrap();
    let program = rootfs.path().join("program");
    fs::write(&program, stacyvm_guest_binaries::AGENT).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(rootfs.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let id = id("distroless");
    let spec = SandboxSpec { image: rootfs.path().display().to_string(), ..spec() };
    let guest = sandbox(&provider, &id, &spec).await;
    // Whatever it says to these arguments: it ran, and exited by itself.
    let ran = run(guest.as_ref(), &["/program", "--no-such-argument"]).await;
    assert!(matches!(ran.info.outcome, Some(Outcome::Exited(_))), "{ran:?}");
    let passwd = guest.stat("/etc/passwd", false).await.unwrap();
    assert!(passwd.size > 0);
    provider.destroy(&id).await.unwrap();
    host.assert_nothing_left();
    let names: Vec<_> = fs::read_dir(rootfs.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["program"], "the image was changed");
}

/// Everything that set-up touches is a link to somewhere on the host, or something else than it should be.
#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_directory_harms_nobody_but_itself() {
    let host = Host::new();
    let provider = host.provider(1);
    let outside = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(outside.path(), fs::Permissions::from_mode(0o711)).unwrap();
    fs::write(outside.path().join("passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
    let rootfs = tempfile::tempdir_in("/var/tmp").unwrap();
    for name in ["dev", "etc", "home", "proc", "tmp", "workspace", "usr"] {
        std::os::unix::fs::symlink(outside.path(), rootfs.path().join(name)).unwrap();
    }
    fs::write(rootfs.path().join("sys"), "a file").unwrap();
    let program = rootfs.path().join("program");
    fs::write(&program, stacyvm_guest_binaries::PROBE).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();

    let id = id("hostile");
    let spec = SandboxSpec { image: rootfs.path().display().to_string(), ..spec() };
    let guest = sandbox(&provider, &id, &spec).await;
    assert_eq!(run(guest.as_ref(), &["/program", "echo", "hi"]).await.ok(), "hi\n");
    assert_eq!(guest.stat("/tmp", false).await.unwrap().mode & 0o7777, 0o1777);
    provider.destroy(&id).await.unwrap();
    host.assert_nothing_left();
    let mode = fs::metadata(outside.path()).unwrap().permissions().mode() & 0o7777;
    let names: Vec<_> = fs::read_dir(outside.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!((mode, names), (0o711, vec!["passwd".into()]));
}

/// As in a container, whose own root is an overlay.
#[tokio::test(flavor = "multi_thread")]
async fn where_no_overlay_can_be_kept_on_disk_files_are_in_memory_and_that_is_said() {
    struct Mounted(std::path::PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
        }
    }
    let host = Host::beneath("overlay/data");
    let tmp = host.data_dir.ancestors().nth(2).unwrap();
    let path = |name: &str| {
        let path = tmp.join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    let (lower, upper, work, overlay) = (path("lower"), path("upper"), path("work"), path("overlay"));
    let (lower, upper, work) = (lower.display(), upper.display(), work.display());
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let options = std::ffi::CString::new(options).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("overlay", &overlay, "overlay", flags, options.as_c_str()).unwrap();
    let mounted = Mounted(overlay);

    let provider = host.provider(1);
    let health = provider.health().await;
    assert!(health.healthy && health.warnings.iter().any(|w| w.contains("memory")), "{health:?}");
    let id = id("memory");
    let guest = sandbox(&provider, &id, &SandboxSpec { memory_mb: 64, ..spec() }).await;
    sh(guest.as_ref(), "echo kept > /workspace/f; mkdir ~/d; mv /workspace/f ~/d/g").await;
    assert_eq!(sh(guest.as_ref(), "cat ~/d/g").await, "kept\n");
    assert!(sh(guest.as_ref(), "df -m / | tail -1").await.contains(" 64 "), "not bounded");
    provider.destroy(&id).await.unwrap();
    drop(provider);
    drop(mounted);
    host.assert_nothing_left();
}
