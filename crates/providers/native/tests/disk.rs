//! Limits of disks hold, by each way there is to limit them; a sandbox that fills its disk harms nobody else; nothing is left.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Host, first_process, id, kill, run, sandbox, sh, spec};
use stacyvm_provider::{ErrorKind, Guest, Limit, Outcome, ProcessSpec, Provider, SandboxId, SandboxSpec};
use stacyvm_provider_native::NativeProvider;
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// Size of most disks here, in MiB.
const MB: u32 = 32;
/// Makes files without content until it may not, and prints how many.
const MANY: &str = "import os\nn = 0\nos.mkdir('/workspace/many')\ntry:\n  while n < 100000:\n    os.close(os.open(f'/workspace/many/{n}', os.O_CREAT)); n += 1\nexcept OSError: pass\nprint(n, flush=True)\nos._exit(n < 100000)";
/// Says that it runs in a mount namespace in which something was hidden from it.
const INNER: &str = "STACYVM_TEST_DISK_INNER";

fn limited() -> SandboxSpec {
    SandboxSpec { disk_mb: MB, ..spec() }
}

fn method(provider: &NativeProvider) -> String {
    provider.settings()["disk_limit"].clone()
}

/// What the files in `directory` take of the disk, in bytes.
fn taken(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| {
            let metadata = entry.metadata().unwrap();
            metadata.blocks() * 512 + if metadata.is_dir() { taken(&entry.path()) } else { 0 }
        })
        .sum()
}

/// Writes to a file of its until it may not; it is told that the disk was full.
async fn fill(guest: &dyn Guest, file: &str) -> u64 {
    let script = format!("dd if=/dev/zero of={file} bs=64k count=4096 2>/dev/null");
    let ran = run(guest, &["sh", "-c", &script]).await;
    assert_eq!(ran.info.outcome, Some(Outcome::Exited(1)), "{ran:?}");
    assert_eq!(ran.info.limits_hit, [Limit::DiskFull], "{ran:?}");
    sh(guest, &format!("stat -c %s {file}")).await.trim().parse().unwrap()
}

/// The same as root of the sandbox, for whom no filesystem may keep a reserve.
async fn root_writes_no_more(guest: &dyn Guest) {
    let script = "dd if=/dev/zero of=/opt/more bs=64k count=4096 2>/dev/null";
    let spec = ProcessSpec {
        id: "root".to_owned(),
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        user: Some("root".to_owned()),
        ..ProcessSpec::default()
    };
    guest.start(&spec).await.unwrap();
    let ran = common::collect(guest, "root", 0).await;
    assert_eq!(ran.info.outcome, Some(Outcome::Exited(1)), "{ran:?}");
    let more: u64 = sh(guest, "stat -c %s /opt/more 2>/dev/null || echo 0").await.trim().parse().unwrap();
    assert!(more < 1 << 20, "root wrote {more} bytes more");
}

/// Two sandboxes, of which one takes all it can.
async fn one_fills_its_disk(host: &Host, provider: &NativeProvider, spec: &SandboxSpec) {
    assert!(provider.capabilities().disk_limit);
    let (greedy, other) = (id("greedy"), id("other"));
    let in_greedy = sandbox(provider, &greedy, spec).await;
    let in_other = sandbox(provider, &other, spec).await;
    let (in_greedy, in_other) = (in_greedy.as_ref(), in_other.as_ref());
    let limit = u64::from(spec.disk_mb) << 20;

    let size: u64 =
        sh(in_greedy, "df -Pk / | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2").await.trim().parse().unwrap();
    assert!((limit / 2..=limit).contains(&(size << 10)), "df says that it has {size} KiB");
    assert!(run(in_greedy, &["sh", "-c", "exit 3"]).await.info.limits_hit.is_empty());
    let written = fill(in_greedy, "/workspace/all").await;
    assert!((limit / 2..=limit).contains(&written), "{written} bytes were written");
    if provider.capabilities().root_user {
        root_writes_no_more(in_greedy).await;
    }
    let on_host = taken(&host.data_dir.join("sandboxes").join(greedy.as_str()));
    assert!(on_host <= limit + (1 << 20), "it takes {on_host} bytes of the host");

    // It goes on, and so do others.
    in_greedy.ping().await.unwrap();
    assert_eq!(sh(in_greedy, "echo works").await, "works\n");
    sh(in_other, "dd if=/dev/zero of=/workspace/mine bs=1M count=8 2>/dev/null && test $(stat -c %s /workspace/mine) = 8388608").await;
    sh(in_greedy, "rm /workspace/all && dd if=/dev/zero of=/workspace/again bs=1M count=8 2>/dev/null && rm /workspace/again").await;

    // Files without content take of the disk too.
    let many = run(in_greedy, &["python3", "-c", MANY]).await;
    assert_eq!(many.info.limits_hit, [Limit::DiskFull], "{many:?}");
    let many: u64 = many.stdout.trim().parse().unwrap();
    assert!((500..=4096).contains(&many), "{many} files");
    // The last file that it may make takes the rest.
    sh(in_greedy, "rm /workspace/many/0").await;
    fill(in_greedy, "/tmp/all").await;

    let started = Instant::now();
    provider.destroy(&greedy).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    assert_eq!(sh(in_other, "echo still here").await, "still here\n");
    provider.destroy(&other).await.unwrap();
    host.assert_nothing_left();
}

/// Runs the test of this name again where `hide`, a script, has hidden something in a mount namespace of its own. False: this
/// is that run.
fn again_without(name: &str, hide: &str) -> bool {
    if std::env::var_os(INNER).is_some() {
        return false;
    }
    let script = format!("set -e; {hide}; exec \"$0\" --exact {name} --nocapture");
    let done = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", &script])
        .arg(std::env::current_exe().unwrap())
        .env(INNER, "1")
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success() && said.contains("1 passed"), "{said}");
    print!("{said}");
    true
}

const NO_MKFS: &str = "mount --bind /dev/null /usr/sbin/mkfs.ext4";

fn has_mkfs() -> bool {
    let there = Path::new("/usr/sbin/mkfs.ext4").exists();
    if !there {
        println!("not run: this host has no mkfs.ext4");
    }
    there
}

#[tokio::test(flavor = "multi_thread")]
async fn images_limit_disks() {
    let host = Host::new();
    let provider = host.provider(1);
    if method(&provider) != "image" {
        println!("not run: the method of this host is {}", method(&provider));
        return;
    }
    let health = provider.health().await;
    assert!(health.healthy && !health.warnings.iter().any(|w| w.contains("disk")), "{health:?}");
    one_fills_its_disk(&host, &provider, &limited()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_sandboxes_leave_no_loop_device_and_one_template_for_each_size() {
    let host = Host::new();
    let provider = host.provider(1);
    if method(&provider) != "image" {
        println!("not run: the method of this host is {}", method(&provider));
        return;
    }
    for round in 0..50_u32 {
        let id = id(&format!("round{round}"));
        let spec = SandboxSpec { disk_mb: 16 + round % 20, ..spec() };
        let guest = sandbox(&provider, &id, &spec).await;
        if round % 10 == 0 {
            assert_eq!(host.loop_devices().len(), 1);
            // The device is nowhere to be found inside.
            assert_eq!(sh(guest.as_ref(), "ls /dev | grep -c loop || true").await.trim(), "0");
            fill(guest.as_ref(), "/tmp/all").await;
        }
        provider.destroy(&id).await.unwrap();
    }
    host.assert_nothing_left();
    let templates = fs::read_dir(host.data_dir.join("disks")).unwrap().count();
    assert!((1..=16).contains(&templates), "{templates} templates");
    assert!(taken(&host.data_dir.join("disks")) < 16 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_each_get_a_disk_of_their_own() {
    let host = Host::new();
    let provider = host.provider(1);
    if method(&provider) != "image" {
        println!("not run: the method of this host is {}", method(&provider));
        return;
    }
    let ids: Vec<SandboxId> = (0..12).map(|n| id(&format!("once{n}"))).collect();
    let (guests, provider) = (ids.iter(), &provider);
    let made = futures::future::join_all(guests.map(|id| async move {
        let guest = sandbox(provider, id, &limited()).await;
        sh(guest.as_ref(), &format!("echo {id} > /workspace/f; sync /workspace/f; cat /workspace/f")).await
    }))
    .await;
    for (id, said) in ids.iter().zip(made) {
        assert_eq!(said.trim(), id.as_str());
    }
    assert_eq!(host.loop_devices().len(), ids.len());
    futures::future::join_all(ids.iter().map(|id| provider.destroy(id)))
        .await
        .into_iter()
        .for_each(Result::unwrap);
    host.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_outlives_the_server_and_ends_with_the_last_process() {
    let host = Host::new();
    let provider = host.provider(1);
    if method(&provider) != "image" {
        println!("not run: the method of this host is {}", method(&provider));
        return;
    }
    let id = id("kept");
    let guest = sandbox(&provider, &id, &limited()).await;
    sh(guest.as_ref(), "echo mine > /workspace/f").await;
    drop((guest, provider));
    let provider = host.provider(2);
    let guest = provider.connect(&id).await.unwrap();
    assert_eq!(sh(guest.as_ref(), "cat /workspace/f").await, "mine\n");
    fill(guest.as_ref(), "/workspace/all").await;
    // Whoever ends it, and with nobody there to tidy up.
    kill(first_process(&host, &id));
    let deadline = Instant::now() + Duration::from_secs(15);
    while !host.loop_devices().is_empty() {
        assert!(Instant::now() < deadline, "{:?}", host.loop_devices());
        std::thread::sleep(Duration::from_millis(10));
    }
    provider.destroy(&id).await.unwrap();
    host.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_that_are_too_small_are_refused() {
    let host = Host::new();
    let provider = host.provider(1);
    let spec = SandboxSpec { disk_mb: 15, ..spec() };
    let error = provider.create(&id("small"), &spec).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.message().contains("16"), "{error:?}");
    host.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_limits_disks_where_nothing_else_does() {
    if !has_mkfs() || again_without("memory_limits_disks_where_nothing_else_does", NO_MKFS) {
        return;
    }
    let host = Host::new();
    let provider = host.provider(1);
    if !provider.capabilities().memory_limit {
        println!("not run: this host limits no memory");
        return;
    }
    assert_eq!(method(&provider), "memory");
    let health = provider.health().await;
    let named = |w: &String| w.contains("kept in memory") && w.contains("mkfs.ext4");
    assert!(health.healthy && health.warnings.iter().any(named), "{health:?}");
    one_fills_its_disk(&host, &provider, &limited()).await;
    // No more than the memory it has.
    let id = id("less");
    let guest = sandbox(&provider, &id, &SandboxSpec { memory_mb: 64, disk_mb: 1 << 20, ..spec() }).await;
    let size = sh(guest.as_ref(), "df -Pm / | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2").await;
    assert_eq!(size.trim(), "64");
    provider.destroy(&id).await.unwrap();
    host.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_limits_no_disk_refuses_whoever_wants_a_limit_and_nobody_else() {
    let name = "a_host_that_limits_no_disk_refuses_whoever_wants_a_limit_and_nobody_else";
    // Neither memory nor anything else is limited there.
    if !has_mkfs() || again_without(name, &format!("{NO_MKFS}; mount -t tmpfs none /sys/fs/cgroup")) {
        return;
    }
    let host = Host::new();
    let provider = host.provider(1);
    assert_eq!(method(&provider), "none");
    assert!(!provider.capabilities().disk_limit);
    let error = provider.create(&id("limited"), &limited()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    for word in ["mkfs.ext4", "disk_size_mb"] {
        assert!(error.message().contains(word), "{error:?}");
    }
    let health = provider.health().await;
    assert!(health.healthy && health.warnings.iter().any(|w| w.contains("disk_size_mb")), "{health:?}");
    let id = id("unlimited");
    assert_eq!(sh(sandbox(&provider, &id, &spec()).await.as_ref(), "echo works").await, "works\n");
    provider.destroy(&id).await.unwrap();
    host.assert_nothing_left();
}

/// A filesystem that keeps project quotas, for as long as this exists.
struct Quotas(PathBuf);

impl Quotas {
    fn mount() -> Result<Self, String> {
        let run = |program: &str, args: &[&str]| match Command::new(program).args(args).output() {
            Ok(done) if done.status.success() => Ok(()),
            Ok(done) => Err(format!("{program}: {}", String::from_utf8_lossy(&done.stderr).trim())),
            Err(error) => Err(format!("{program}: {error}")),
        };
        let tmp = tempfile::Builder::new().prefix("native-quota-").tempdir_in("/var/tmp").unwrap();
        let (image, mounted) = (tmp.path().join("image"), tmp.path().join("mounted"));
        fs::File::create(&image).unwrap().set_len(512 << 20).unwrap();
        fs::create_dir(&mounted).unwrap();
        let (file, target) = (image.to_str().unwrap(), mounted.to_str().unwrap());
        let ext4 = ["-q", "-F", "-O", "quota,project", "-E", "quotatype=prjquota", file];
        let with_ext4 =
            run("mkfs.ext4", &ext4).and_then(|()| run("mount", &["-o", "loop,prjquota", file, target]));
        with_ext4.or_else(|why| {
            run("mkfs.xfs", &["-q", "-f", file])
                .and_then(|()| run("mount", &["-o", "loop,pquota", file, target]))
                .map_err(|other| format!("{why}; {other}"))
        })?;
        Ok(Self(tmp.keep()))
    }
}

impl Drop for Quotas {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.join("mounted")).status();
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn project_quotas_limit_disks() {
    // Nobody in a sandbox may move its files to a project without a limit, nor have new ones counted for none.
    const ESCAPE: &str = "import fcntl, os, struct\nfd = os.open('/workspace', os.O_RDONLY)\nattributes = bytearray(28)\nfcntl.ioctl(fd, 0x801c581f, attributes)\nfor flags, project in [(0, 0), (0x200, 0), (0, struct.unpack('5I8x', attributes)[3])]:\n  try:\n    fcntl.ioctl(fd, 0x401c5820, struct.pack('5I8x', flags, 0, 0, project, 0)); print('moved')\n  except OSError: pass";
    let quotas = match Quotas::mount() {
        Ok(quotas) => quotas,
        Err(why) => {
            println!("not run: this host mounts nothing with project quotas: {why}");
            return;
        }
    };
    let host = Host::at(&quotas.0.join("mounted/data"), &format!("test-quota-{}", std::process::id()));
    let provider = host.provider(1);
    assert_eq!(method(&provider), "project quota");
    one_fills_its_disk(&host, &provider, &limited()).await;
    let id = id("escape");
    let guest = sandbox(&provider, &id, &limited()).await;
    assert_eq!(run(guest.as_ref(), &["python3", "-c", ESCAPE]).await.stdout, "");
    fill(guest.as_ref(), "/workspace/all").await;
    provider.destroy(&id).await.unwrap();
    // Nobody's limit is left for the next.
    for round in 0..20 {
        let id = common::id(&format!("round{round}"));
        let spec = SandboxSpec { disk_mb: if round % 2 == 0 { 16 } else { 64 }, ..spec() };
        let guest = sandbox(&provider, &id, &spec).await;
        let fits =
            run(guest.as_ref(), &["sh", "-c", "dd if=/dev/zero of=/tmp/f bs=1M count=32 2>/dev/null"]).await;
        assert_eq!(fits.info.outcome == Some(Outcome::Exited(0)), spec.disk_mb == 64, "{fits:?}");
        provider.destroy(&id).await.unwrap();
    }
    host.assert_nothing_left();
}

/// What a disk adds to create, printed for the documentation: `--ignored --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures"]
async fn what_a_limit_adds_to_create() {
    let host = Host::new();
    let provider = host.provider(1);
    let mut count = 0;
    for disk_mb in [0, 32, 1024, 10240, 102_400] {
        let mut times = Vec::new();
        for _ in 0..21 {
            count += 1;
            let id = id(&format!("m{count}"));
            let started = Instant::now();
            provider.create(&id, &SandboxSpec { memory_mb: 256, disk_mb, ..spec() }).await.unwrap();
            times.push(started.elapsed());
            provider.destroy(&id).await.unwrap();
        }
        let first = times.remove(0);
        times.sort();
        println!("{} {disk_mb} MiB: median of 20 {:?}, first {first:?}", method(&provider), times[10]);
    }
    host.assert_nothing_left();
}
