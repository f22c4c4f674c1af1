//! Attacks from inside, beyond what other checks do in passing: on the kernel, on the agent, on the host's network, and races
//! against the files API. `docs/security.md` lists them all, with those of other areas ([`crate::ATTACKS`]).

use super::signals::ready;
use crate::{
    check::{During, Verdict, checks, ensure},
    context::{Context, Sandbox},
    observe::eventually,
    outside::Outside,
};
use stacyvm_provider::{ReadRange, Signal};
use std::{net::TcpListener, time::Duration};
use tokio::time::Instant;

checks! {
    "attack.mount" "no filesystem can be mounted" [Isolated] 30 mount;
    "attack.mount_new" "no filesystem can be made for mounting later" [Isolated] 30 mount_new;
    "attack.mount_in_user_namespace" "no filesystem can be mounted in a user namespace of one's own" [Isolated] 30 mount_in_user_namespace;
    "attack.mount_tree" "no mount can be copied" [Isolated] 30 mount_tree;
    "attack.pivot_root" "the root cannot be changed" [Isolated] 30 pivot_root;
    "attack.chroot" "the root cannot be moved for a process" [Isolated] 30 chroot;
    "attack.setns" "no namespace can be entered" [Isolated] 30 setns;
    "attack.unshare_mount" "no mount namespace can be made" [Isolated] 30 unshare_mount;
    "attack.unshare_pid" "no process namespace can be made" [Isolated] 30 unshare_pid;
    "attack.unshare_net" "no network namespace can be made" [Isolated] 30 unshare_net;
    "attack.unshare_ipc" "no IPC namespace can be made" [Isolated] 30 unshare_ipc;
    "attack.unshare_uts" "no namespace of names can be made" [Isolated] 30 unshare_uts;
    "attack.user_namespace" "nobody becomes root of a user namespace" [Isolated] 30 user_namespace;
    "attack.setuid" "nobody becomes root by asking" [Isolated] 30 setuid;
    "attack.bpf" "no program of one's own runs in the kernel" [Isolated] 30 bpf;
    "attack.perf_events" "no performance counter can be opened" [Isolated] 30 perf_events;
    "attack.userfaultfd" "page faults of the kernel cannot be held up" [Isolated] 30 userfaultfd;
    "attack.fanotify" "no filesystem can be watched as a whole" [Isolated] 30 fanotify;
    "attack.keys" "no key can be put into a keyring" [Isolated] 30 keys;
    "attack.keyctl" "no keyring can be looked at" [Isolated] 30 keyctl;
    "attack.file_handles" "no file can be opened by its number, past all directories" [Isolated] 30 file_handles;
    "attack.kexec" "no other kernel can be loaded" [Isolated] 30 kexec;
    "attack.modules" "no module can be loaded into the kernel" [Isolated] 30 modules;
    "attack.module_removal" "no module can be removed from the kernel" [Isolated] 30 module_removal;
    "attack.reboot" "the machine cannot be restarted" [Isolated] 30 reboot;
    "attack.clock" "the clock cannot be set" [Isolated] 30 clock;
    "attack.time_of_day" "the clock cannot be set by the older call" [Isolated] 30 time_of_day;
    "attack.hostname" "the host name cannot be set" [Isolated] 30 hostname;
    "attack.swap" "no swap space can be added" [Isolated] 30 swap;
    "attack.sysctl" "no setting of the kernel can be changed" [Isolated] 30 sysctl;
    "attack.raw_socket" "no raw packets can be sent" [Isolated] 30 raw_socket;
    "attack.packet_socket" "no packets of others can be seen" [Isolated] 30 packet_socket;
    "attack.kernel_files" "no file by which the kernel is told what to do can be opened for writing" [Isolated] 30 kernel_files;
    "attack.disks" "no disk and no memory of the machine can be opened" [Isolated] 30 disks;
    "attack.agent_program" "the agent's program and memory cannot be written, nor its memory read" [Isolated] 30 agent_program;
    "attack.core_dump" "a crash leaves no core file, and runs nothing on the host" [] 30 core_dump;
    "attack.fork_bomb" "a process that forks without end harms nobody else and can be ended" [PidsLimit] 60 fork_bomb;
    "attack.host_loopback" "servers on the host's loopback interface cannot be reached, however the address is spelled" [Isolated] 30 host_loopback;
    "attack.private_addresses" "private, link-local and metadata addresses lead nowhere" [Isolated, NoNetwork] 60 private_addresses;
    "attack.abstract_sockets" "abstract socket names of the host and of other sandboxes lead nowhere" [Isolated] 30 abstract_sockets;
    "attack.swapped_on_read" "a directory that becomes a link during a read shows nothing of the host" [] 30 swapped_on_read;
    "attack.swapped_on_write" "a directory that becomes a link during a write lets nothing be written to the host" [] 30 swapped_on_write;
    "attack.swapped_on_remove" "a directory that becomes a link during a removal lets nothing be removed on the host" [] 30 swapped_on_remove;
}

/// Attempts of the probe's, each of which must be refused, or not known to the kernel that the sandbox has.
macro_rules! closed {
    ($($function:ident: $name:literal,)+) => {
        $(async fn $function(cx: Context) -> Verdict {
            closed(&cx, $name).await
        })+
    };
}

closed! {
    mount: "mount",
    mount_new: "fsopen",
    mount_in_user_namespace: "mount in a user namespace",
    mount_tree: "open_tree OPEN_TREE_CLONE",
    pivot_root: "pivot_root",
    chroot: "chroot",
    setns: "setns",
    unshare_mount: "unshare mount",
    unshare_pid: "unshare pid",
    unshare_net: "unshare net",
    unshare_ipc: "unshare ipc",
    unshare_uts: "unshare uts",
    user_namespace: "user namespace with a map",
    setuid: "setuid",
    bpf: "bpf",
    perf_events: "perf_event_open",
    userfaultfd: "userfaultfd",
    fanotify: "fanotify_init",
    keys: "add_key",
    keyctl: "keyctl",
    file_handles: "open_by_handle_at",
    kexec: "kexec_load",
    modules: "init_module",
    module_removal: "delete_module",
    reboot: "reboot",
    clock: "clock_settime",
    time_of_day: "settimeofday",
    hostname: "sethostname",
    swap: "swapon",
    sysctl: "sysctl write",
    raw_socket: "socket SOCK_RAW",
    packet_socket: "socket AF_PACKET",
}

async fn closed(cx: &Context, name: &str) -> Verdict {
    let sandbox = cx.shared().await?;
    let said = sandbox.probe_ok(&["attempt", name]).await?.text();
    let outcome = said.split('\t').next().unwrap_or_default();
    ensure!(["refused", "absent"].contains(&outcome), "{name}: {}", said.trim());
    Ok(())
}

async fn none_opens(sandbox: &Sandbox, how: &str, paths: &[&str]) -> Verdict {
    for path in paths {
        let said = sandbox.probe_ok(&["try", how, path]).await?.text();
        ensure!(said.starts_with("errno"), "{path} can be opened to {how}");
    }
    Ok(())
}

async fn kernel_files(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let paths = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/kernel/hotplug",
        "/proc/sys/fs/binfmt_misc/register",
        "/proc/sys/vm/overcommit_memory",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sysrq-trigger",
        "/proc/irq/default_smp_affinity",
        "/proc/1/oom_score_adj",
        "/sys/kernel/uevent_helper",
        "/sys/power/state",
        "/sys/fs/cgroup/cgroup.procs",
        "/sys/fs/cgroup/release_agent",
        "/sys/fs/cgroup/memory/cgroup.procs",
        "/sys/fs/cgroup/pids/cgroup.procs",
        "/sys/fs/cgroup/memory/release_agent",
    ];
    none_opens(&sandbox, "write", &paths).await
}

async fn disks(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let paths = [
        "/dev/mem",
        "/dev/kmem",
        "/dev/port",
        "/dev/kmsg",
        "/dev/sda",
        "/dev/vda",
        "/dev/nvme0n1",
        "/dev/dm-0",
        "/dev/mapper/control",
        "/dev/loop-control",
        "/dev/loop0",
        "/proc/kcore",
        "/proc/kmsg",
    ];
    none_opens(&sandbox, "read", &paths).await
}

async fn agent_program(cx: Context) -> Verdict {
    let sandbox = cx.sandbox().await?;
    let paths = ["/proc/1/exe", "/proc/1/mem", "/.stacyvm/stacyvm-agent"];
    none_opens(&sandbox, "write", &paths).await?;
    none_opens(&sandbox, "read", &["/proc/1/mem", "/proc/1/stack"]).await?;
    ensure!(sandbox.probe_ok(&["echo", "alive"]).await?.text() == "alive\n", "it does not work on");
    Ok(())
}

async fn core_dump(cx: Context) -> Verdict {
    let sandbox = cx.sandbox().await?;
    for signal in ["11", "6", "4"] {
        sandbox.probe(&["crash", signal]).await?;
    }
    for directory in ["/workspace", "/tmp"] {
        let entries = sandbox.guest.list_dir(directory).await.during("list")?;
        let core =
            entries.iter().find(|entry| entry.path.rsplit('/').next().is_some_and(|n| n.starts_with("core")));
        ensure!(core.is_none(), "a crash left {core:?}");
    }
    Ok(())
}

async fn fork_bomb(cx: Context) -> Verdict {
    let (sandbox, neighbour) = (cx.sandbox().await?, cx.shared().await?);
    let bomb = sandbox.start(&["bomb", "5000"]).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    cx.prompt("ping of its sandbox", sandbox.guest.ping()).await?.during("ping")?;
    let said = cx.prompt("a neighbour", neighbour.probe_ok(&["echo", "calm"])).await??;
    ensure!(said.text() == "calm\n", "a neighbour says {:?}", said.text());
    cx.prompt("kill", sandbox.guest.signal(&bomb.id, Signal::KILL, true)).await?.during("kill")?;
    sandbox.wait(&bomb.id).await?;
    eventually(&cx, "a sandbox without the bomb that works", || async {
        match sandbox.probe(&["ps"]).await {
            Ok(done) => Ok(done.text().lines().filter(|line| line.contains("bomb")).count() == 0),
            // No room for a process yet.
            Err(_) => Ok(false),
        }
    })
    .await
}

async fn host_loopback(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let listeners = [TcpListener::bind("127.0.0.1:0"), TcpListener::bind("[::1]:0")];
    for listener in listeners.into_iter().flatten() {
        let port = listener.local_addr()?.port();
        for host in ["127.0.0.1", "127.1.2.3", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]"] {
            let said = sandbox.probe_ok(&["connect", &format!("{host}:{port}")]).await?.text();
            ensure!(said.starts_with("errno"), "a server of the host answers at {host}");
        }
        listener.set_nonblocking(true)?;
        ensure!(listener.accept().is_err(), "somebody reached a server of the host");
    }
    Ok(())
}

async fn private_addresses(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    for address in [
        "10.0.0.1:80",
        "172.16.0.1:80",
        "172.17.0.1:22",
        "192.168.0.1:80",
        "169.254.169.254:80",
        "169.254.170.2:80",
        "100.100.100.200:80",
        "192.0.2.1:80",
        "[fd00:ec2::254]:80",
        "[fe80::1]:80",
        "[::ffff:169.254.169.254]:80",
        "[64:ff9b::a9fe:a9fe]:80",
        "8.8.8.8:53",
    ] {
        let said = sandbox.probe_ok(&["connect", address]).await?.text();
        ensure!(said.starts_with("errno"), "{address} answers");
    }
    Ok(())
}

async fn abstract_sockets(cx: Context) -> Verdict {
    use std::os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    };
    let (one, two, name) = (cx.sandbox().await?, cx.shared().await?, cx.unique("abstract"));
    let host = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    let said = two.probe_ok(&["connect-abstract", &name]).await?.text();
    ensure!(said.starts_with("errno"), "an abstract socket of the host can be connected to");
    drop(host);
    let listening = ready(&one, &["listen-abstract", &name]).await?;
    let own = one.probe_ok(&["connect-abstract", &name]).await?.text();
    ensure!(own == "ok\n", "within its own sandbox it gives {own:?}");
    let said = two.probe_ok(&["connect-abstract", &name]).await?.text();
    ensure!(said.starts_with("errno"), "an abstract socket of another sandbox can be connected to");
    one.kill(&listening.id).await?;
    Ok(())
}

/// A race against the directory that is a link now and then: a moment, and on a host that is busy with other things until
/// the directory was seen to change often enough.
struct Race {
    start: Instant,
    there: bool,
    changes: u32,
}

impl Race {
    fn new() -> Self {
        Self { start: Instant::now(), there: false, changes: 0 }
    }

    fn goes_on(&self) -> bool {
        let run = self.start.elapsed();
        run < Duration::from_millis(1500) || self.changes < 300 && run < Duration::from_secs(15)
    }

    /// An attempt found the directory; or the link, which leads nowhere.
    fn saw(&mut self, there: bool) {
        self.changes += u32::from(there != self.there);
        self.there = there;
    }
}

/// A directory `swapped` that is, over and over, a directory with a file `secret` in it, and a link to where the host keeps
/// one of that name.
async fn swapping(cx: &Context, sandbox: &Sandbox, outside: &Outside) -> Verdict<String> {
    sandbox.write(&cx.path("swapped/secret"), b"inside").await?;
    sandbox.probe_ok(&["symlink", &outside.text(""), &cx.relative("link")]).await?;
    ready(sandbox, &["swap", &cx.relative("swapped"), &cx.relative("link"), "20000"]).await?;
    Ok(cx.path("swapped/secret"))
}

async fn swapped_on_read(cx: Context) -> Verdict {
    let (sandbox, outside) = (cx.sandbox().await?, Outside::new(&cx)?);
    let path = swapping(&cx, &sandbox, &outside).await?;
    let mut race = Race::new();
    while race.goes_on() {
        let read = sandbox.read_range(&path, ReadRange::default()).await;
        race.saw(read.is_ok());
        if let Ok(content) = read {
            ensure!(content == b"inside", "it reads {:?}", String::from_utf8_lossy(&content));
        }
    }
    ensure!(race.changes > 0, "the file was never there");
    Ok(())
}

async fn swapped_on_write(cx: Context) -> Verdict {
    let (sandbox, outside) = (cx.sandbox().await?, Outside::new(&cx)?);
    let path = swapping(&cx, &sandbox, &outside).await?;
    let mut race = Race::new();
    while race.goes_on() {
        race.saw(sandbox.write_mode(&path, b"inside", 0o600).await.is_ok());
        outside.untouched()?;
    }
    ensure!(race.changes > 0, "nothing could be written");
    Ok(())
}

async fn swapped_on_remove(cx: Context) -> Verdict {
    let (sandbox, outside) = (cx.sandbox().await?, Outside::new(&cx)?);
    let path = swapping(&cx, &sandbox, &outside).await?;
    let mut race = Race::new();
    while race.goes_on() {
        race.saw(sandbox.guest.remove(&path, true).await.is_ok());
        let _ = sandbox.guest.chmod(&path, 0o777).await;
        let _ = sandbox.guest.move_file(&path, &cx.path("moved")).await;
        outside.untouched()?;
        let _ = sandbox.write_mode(&path, b"inside", 0o600).await;
    }
    ensure!(race.changes > 0, "nothing could be removed");
    Ok(())
}
