//! Whom processes and files of a native sandbox belong to: users of its own, nobody outside.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;

use common::{Host, first_process, id, sandbox, sh, spec};
use futures::StreamExt;
use stacyvm_provider::{Guest, Outcome, OutputEvent, ProcessSpec, Provider, SandboxSpec};
use std::{
    collections::HashSet,
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

/// What a shell command run as root of the sandbox printed, if it succeeded.
async fn root(guest: &dyn Guest, process: &str, script: &str) -> Result<String, String> {
    let spec = ProcessSpec {
        id: process.to_owned(),
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        user: Some("root".to_owned()),
        ..ProcessSpec::default()
    };
    guest.start(&spec).await.unwrap();
    let mut output = String::new();
    let mut stream = guest.attach(process, 0, true, true).await.unwrap();
    while let Some(event) = stream.next().await {
        match event.unwrap() {
            OutputEvent::Chunk { data, .. } => output.push_str(&String::from_utf8_lossy(&data)),
            OutputEvent::Exit(info) if info.outcome == Some(Outcome::Exited(0)) => return Ok(output),
            OutputEvent::Exit(_) => return Err(output),
            other => panic!("{other:?}"),
        }
    }
    panic!("no exit");
}

/// The ids of the host that a process has: real, effective, saved and for files.
fn ids_of(pid: i32) -> (Vec<u32>, Vec<u32>) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let of = |key: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(key)).unwrap();
        line.split_whitespace().map(|n| n.parse().unwrap()).collect()
    };
    (of("Uid:"), of("Gid:"))
}

fn range_of(host: &Host, id: &stacyvm_provider::SandboxId) -> u32 {
    let path = host.data_dir.join("sandboxes").join(id.as_str()).join("state.json");
    let state: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    u32::try_from(state["ids"].as_u64().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_sandbox_has_users_of_its_own_who_are_nobody_on_the_host() {
    let host = Host::new();
    let provider = host.provider(1);
    let ids: Vec<_> = (0..3).map(|n| id(&format!("users{n}"))).collect();
    let mut ranges = HashSet::new();
    for id in &ids {
        let guest = sandbox(&provider, id, &spec()).await;
        let base = range_of(&host, id);
        assert!(ranges.insert(base), "two sandboxes have the range {base}");
        assert!(base >= 0x7000_0000 && base.is_multiple_of(0x1_0000), "{base:#x}");
        assert_eq!(ids_of(first_process(&host, id)), (vec![base; 4], vec![base; 4]), "the agent");
        let map =
            sh(guest.as_ref(), "cat /proc/self/uid_map /proc/self/gid_map; cat /proc/self/setgroups").await;
        let words: Vec<_> = map.split_whitespace().map(str::to_owned).collect();
        let expected = format!("0 {base} 65536 0 {base} 65536 allow");
        assert_eq!(words.join(" "), expected);

        let spec = ProcessSpec {
            id: "sleeper".to_owned(),
            argv: vec!["sleep".to_owned(), "600".to_owned()],
            ..ProcessSpec::default()
        };
        guest.start(&spec).await.unwrap();
        let find = || {
            fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
                let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
                let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
                (line == b"sleep\x00600\0" && ids_of(pid).0[0] == base + 1000).then_some(pid)
            })
        };
        // What the host calls it: numbers inside are not those outside. It may not be that program yet.
        let start = Instant::now();
        let sleeper = loop {
            if let Some(pid) = find() {
                break pid;
            }
            assert!(start.elapsed() < Duration::from_secs(10), "it is not there");
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let user = base + 1000;
        assert_eq!(ids_of(sleeper), (vec![user; 4], vec![user; 4]), "a process");

        // Files of the sandbox, from outside and inside.
        sh(guest.as_ref(), "echo mine > /workspace/f").await;
        let upper = host.data_dir.join("sandboxes").join(id.as_str()).join("upper");
        assert_eq!(fs::metadata(upper.join("workspace/f")).unwrap().uid(), user);
        assert_eq!(
            sh(
                guest.as_ref(),
                "stat -c %u:%g / /usr /usr/bin/env /etc /etc/passwd /dev /dev/null /workspace /workspace/f"
            )
            .await
            .split_whitespace()
            .collect::<Vec<_>>(),
            ["0:0", "0:0", "0:0", "0:0", "0:0", "0:0", "0:0", "1000:1000", "1000:1000"]
        );
    }
    let health = provider.health().await;
    assert!(health.healthy && health.warnings.is_empty(), "{health:?}");
    for id in &ids {
        provider.destroy(id).await.unwrap();
    }
    host.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn root_of_a_sandbox_can_do_what_package_managers_do_and_nothing_to_the_host() {
    let host = Host::new();
    let provider = host.provider(1);
    let id = id("root");
    let guest = sandbox(&provider, &id, &SandboxSpec { pids: 100, memory_mb: 128, ..spec() }).await;
    let guest = guest.as_ref();
    let mut count = 0;
    let mut next = || {
        count += 1;
        format!("r-{count}")
    };
    for (works, output) in [
        ("id -u; id -g; echo $HOME; pwd", "0\n0\n/root\n/workspace\n"),
        ("echo x > /etc/new && stat -c %u /etc/new", "0\n"),
        // Copied up from the image, and changed.
        (
            "echo '# more' >> /etc/profile && chown 33:33 /etc/profile && stat -c %u:%g /etc/profile",
            "33:33\n",
        ),
        (
            "touch /opt/f && chown 33:34 /opt/f && chmod 6755 /opt/f && stat -c '%u:%g %a' /opt/f",
            "33:34 6755\n",
        ),
        ("mkdir -p /var/lib/dpkg && ln -s x /var/lib/dpkg/y && rm -r /var/lib/dpkg", ""),
        ("mkfifo /run/fifo && rm /run/fifo", ""),
        // As apt does before it downloads.
        (
            "python3 -c 'import os; os.setgroups([34]); os.setresgid(34, 34, 34); os.setresuid(33, 33, 33); print(os.getresuid(), os.getgroups())'",
            "(33, 33, 33) [34]\n",
        ),
        (
            "cp /usr/bin/true /opt/true && python3 -c 'import os; os.setxattr(\"/opt/true\", \"security.capability\", bytes.fromhex(\"0100000200200000000000000000000000000000\"))'",
            "",
        ),
        ("cat /workspace/absent 2>/dev/null || echo none", "none\n"),
        (
            "python3 -c 'import socket; s = socket.socket(); s.bind((\"127.0.0.1\", 0)); print(\"bound\")'",
            "bound\n",
        ),
    ] {
        assert_eq!(root(guest, &next(), works).await.as_deref(), Ok(output), "{works}");
    }
    let before = fs::metadata("/dev/null").unwrap();
    for refused in [
        "mount -t tmpfs x /mnt",
        "mount --bind /tmp /mnt",
        "umount /proc",
        "unshare -U true",
        "unshare -n true",
        "mknod /tmp/sda b 8 0",
        "mknod /tmp/mem c 1 1",
        "hostname other",
        "echo 1 > /proc/sys/kernel/panic",
        "echo x > /proc/sysrq-trigger",
        "cat /proc/kcore",
        "cat /proc/1/environ",
        "cat /proc/1/mem",
        "chmod 600 /usr/bin/env",
        "rm /usr/bin/env",
        "nice -n -5 true 2>&1 | grep -q 'cannot set' && false",
        "date -s 2001-01-01",
        "dmesg",
        "ip link set lo down",
    ] {
        let said = root(guest, &next(), refused).await;
        assert!(said.is_err(), "{refused}: {said:?}");
    }
    // Its own devices are its own.
    root(guest, &next(), "chmod 600 /dev/null && chmod 666 /dev/null").await.unwrap();
    let after = fs::metadata("/dev/null").unwrap();
    assert_eq!((before.mode(), before.uid(), before.ctime()), (after.mode(), after.uid(), after.ctime()));
    assert!(Path::new("/usr/bin/env").exists());

    // No capability beyond those, no way to get one, and a filter.
    let status =
        root(guest, &next(), "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status").await.unwrap();
    let held = "00000000800000fb";
    for (set, value) in
        [("Prm", held), ("Eff", held), ("Bnd", "0000000000000000"), ("Amb", "0000000000000000")]
    {
        assert!(status.contains(&format!("Cap{set}:\t{value}")), "{status}");
    }
    assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");

    let open_files = sh(guest, "ulimit -n").await;
    // It may end everything in the sandbox, what starts processes included, but not what holds the sandbox together: the
    // next process has what starts it started again.
    let spec = ProcessSpec {
        id: "end".to_owned(),
        argv: ["sh", "-c", "kill -9 1; kill -9 -1"].map(str::to_owned).to_vec(),
        user: Some("root".to_owned()),
        ..ProcessSpec::default()
    };
    // Whichever is told first: that it was started, or that it has ended what started it.
    if guest.start(&spec).await.is_ok() {
        common::collect(guest, "end", 0).await;
    }
    guest.ping().await.unwrap();
    // With the limits that it had.
    for greedy in [
        "bytearray(400 << 20)",
        "import os; [os.fork() or (__import__('time').sleep(1), os._exit(0)) for _ in range(150)]",
    ] {
        let ran = common::run(guest, &["python3", "-c", greedy]).await;
        assert_ne!(ran.info.outcome, Some(Outcome::Exited(0)), "{greedy}");
    }
    // Until those are gone that it could start.
    tokio::time::sleep(Duration::from_secs(2)).await;
    root(guest, &next(), "kill -15 1; kill -2 1; kill -34 1").await.unwrap();
    guest.ping().await.unwrap();
    assert_eq!(sh(guest, "id -u; ulimit -n").await, format!("1000\n{open_files}"));
    assert_eq!(
        root(guest, &next(), "id -u; chown 5 /etc/new; stat -c %u /etc/new").await.as_deref(),
        Ok("0\n5\n")
    );
    assert_eq!(guest.stat("/etc/new", false).await.unwrap().size, 2);
    provider.destroy(&id).await.unwrap();
    host.assert_nothing_left();
}

/// What the kernel counts by user is not the others' to run out of.
#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_takes_all_it_can_leaves_others_and_the_host_theirs() {
    const WATCHERS: &str = "import ctypes; c = ctypes.CDLL(None); n = sum(c.inotify_init1(0) >= 0 for _ in range(400)); print(n)";
    const TERMINALS: &str =
        "import os\nn = 0\ntry:\n  while n < 400: os.openpty(); n += 1\nexcept OSError: pass\nprint(n)";
    let host = Host::new();
    let provider = host.provider(1);
    let (greedy, other) = (id("greedy"), id("modest"));
    let in_greedy = sandbox(&provider, &greedy, &spec()).await;
    let in_other = sandbox(&provider, &other, &spec()).await;
    for (number, (what, most)) in [(WATCHERS, 399), (TERMINALS, 128)].into_iter().enumerate() {
        let held = ProcessSpec {
            id: format!("greedy-{number}"),
            argv: [
                "python3",
                "-c",
                &format!("{what}\nimport sys, time\nsys.stdout.flush()\ntime.sleep(600)"),
            ]
            .map(str::to_owned)
            .to_vec(),
            ..ProcessSpec::default()
        };
        in_greedy.start(&held).await.unwrap();
        let mut stream = in_greedy.attach(&held.id, 0, true, true).await.unwrap();
        let taken = match stream.next().await.unwrap().unwrap() {
            OutputEvent::Chunk { data, .. } => String::from_utf8_lossy(&data).trim().parse::<u32>().unwrap(),
            other => panic!("{other:?}"),
        };
        assert!((10..=most).contains(&taken), "{taken}: {what}");
        assert_eq!(common::run(in_other.as_ref(), &["python3", "-c", what]).await.ok(), format!("{taken}\n"));
    }
    rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC).unwrap();
    for id in [greedy, other] {
        provider.destroy(&id).await.unwrap();
    }
    host.assert_nothing_left();
}

/// A package with a script that makes a user and gives it a file, as many of them do.
#[tokio::test(flavor = "multi_thread")]
async fn dpkg_installs_a_package_as_root_of_a_sandbox() {
    if !Path::new("/usr/bin/dpkg-deb").exists() {
        eprintln!("not run: this host has no dpkg");
        return;
    }
    let host = Host::new();
    let provider = host.provider(1);
    let id = id("dpkg");
    let guest = sandbox(&provider, &id, &spec()).await;
    let script = r#"set -e
        mkdir -p /var/lib/dpkg/info /var/lib/dpkg/updates /var/lib/dpkg/triggers /tmp/p/DEBIAN /tmp/p/opt/demo
        touch /var/lib/dpkg/status /var/lib/dpkg/available
        cd /tmp/p
        echo content > opt/demo/file
        printf 'Package: demo\nVersion: 1.0\nArchitecture: all\nMaintainer: demo\nDescription: demo\n' > DEBIAN/control
        printf '#!/bin/sh\nset -e\necho demo:x:77:77::/opt/demo:/bin/sh >> /etc/passwd\nchown 77:77 /opt/demo/file\nchmod 4755 /opt/demo/file\n' > DEBIAN/postinst
        chmod 755 DEBIAN/postinst
        dpkg-deb -b /tmp/p /tmp/demo.deb > /dev/null
        dpkg -i /tmp/demo.deb > /dev/null
        stat -c '%u:%g %a %U' /opt/demo/file
        dpkg -s demo | grep Status
        dpkg -r demo > /dev/null
        test ! -e /opt/demo/file"#;
    let said = root(guest.as_ref(), "dpkg", script).await;
    assert_eq!(said.as_deref(), Ok("77:77 4755 demo\nStatus: install ok installed\n"));
    provider.destroy(&id).await.unwrap();
    host.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_are_kept_over_a_restart_and_free_when_their_sandbox_is_gone() {
    let host = Host::new();
    let id = id("kept");
    let provider = host.provider(1);
    sandbox(&provider, &id, &spec()).await;
    let base = range_of(&host, &id);
    drop(provider);
    let provider = host.provider(2);
    let guest = provider.connect(&id).await.unwrap();
    assert_eq!(root(guest.as_ref(), "again", "id -u").await.as_deref(), Ok("0\n"));
    assert_eq!(range_of(&host, &id), base);
    let other = common::id("other");
    sandbox(&provider, &other, &spec()).await;
    assert_ne!(range_of(&host, &other), base);
    for id in [&id, &other] {
        provider.destroy(id).await.unwrap();
    }
    host.assert_nothing_left();
}
