//! A server killed at every fault point of this crate, and what the next one finds. The victim is this program itself,
//! started again, so it has a `main` of its own.

#![expect(clippy::unwrap_used, reason = "a test, which clippy does not see without a harness")]

mod common;

use common::{Host, id, sandbox, sh, spec};
use stacyvm_fault::{Phase, Point, VARIABLE};
use stacyvm_provider::{Provider, RuntimeState, SandboxSpec};
use std::{
    os::unix::process::ExitStatusExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

/// Points outside of this crate.
fn is_ours(point: &Point) -> bool {
    point.name().starts_with("native.")
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    if let [_, role, data_dir, installation] = arguments.as_slice()
        && role == "victim"
    {
        return runtime.block_on(victim(Path::new(data_dir), installation));
    }
    // A filter that names none of these, as `cargo test <name>` passes to every program.
    let filters: Vec<_> = arguments.iter().skip(1).filter(|a| !a.starts_with('-')).collect();
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|f| name.contains(f.as_str()));
    for point in Point::ALL.iter().filter(|p| is_ours(p)) {
        for ephemeral in [false, true] {
            let name = format!("killed at {} (ephemeral: {ephemeral})", point.name());
            if wanted(&name) {
                runtime.block_on(killed_at(*point, ephemeral));
                println!("{name} ... ok");
            }
        }
    }
    if wanted("ephemeral sandboxes end with their server") {
        runtime.block_on(ephemeral_sandboxes_end_with_their_server());
        println!("ephemeral sandboxes end with their server ... ok");
    }
}

/// With a limit of whatever kind this host offers, so that all of it has to go.
fn specs(ephemeral: bool) -> SandboxSpec {
    let disk_mb = if Path::new("/usr/sbin/mkfs.ext4").exists() { 32 } else { 0 };
    SandboxSpec { memory_mb: 128, pids: 64, disk_mb, ephemeral, ..spec() }
}

/// Creates two sandboxes, pauses one and destroys it; dies somewhere on the way, or stays if nothing is armed. The name of the data
/// directory says whether the one is ephemeral.
async fn victim(data_dir: &Path, installation: &str) {
    let provider = Host::at(data_dir, installation).exclusive_provider(1);
    let ephemeral = data_dir.ends_with("ephemeral");
    sandbox(&provider, &id("victim"), &specs(ephemeral)).await;
    sandbox(&provider, &id("kept"), &specs(false)).await;
    if std::env::var_os(VARIABLE).is_none() {
        tokio::time::sleep(Duration::from_secs(600)).await;
    }
    let _ = provider.pause(&id("victim")).await;
    let _ = provider.destroy(&id("victim")).await;
}

fn start_victim(host: &Host, fault: Option<Point>) -> std::process::Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("victim").arg(&host.data_dir).arg(&host.installation);
    match fault {
        Some(point) => command.env(VARIABLE, format!("{}=kill", point.name())),
        None => command.env_remove(VARIABLE),
    };
    command.spawn().unwrap()
}

fn host(ephemeral: bool) -> Host {
    Host::beneath(if ephemeral { "ephemeral" } else { "lasting" })
}

async fn killed_at(point: Point, ephemeral: bool) {
    let host = host(ephemeral);
    let status = start_victim(&host, Some(point)).wait().unwrap();
    assert_eq!(status.signal(), Some(9), "{} was never reached", point.name());
    // Has to wait for the lock until the spawner of the dead server has cleaned up.
    let provider = host.exclusive_provider(2);
    let (kept, victim) = (id("kept"), id("victim"));
    let listed: Vec<_> = provider.list().await.unwrap().into_iter().map(|s| s.id).collect();
    let (create, pause) = (point.phase() == Phase::Create, point.phase() == Phase::Pause);
    assert_eq!(listed.contains(&kept), !create, "{listed:?}");
    if ephemeral {
        assert!(!listed.contains(&victim), "{listed:?}");
    } else if create || pause {
        assert!(listed.contains(&victim), "{listed:?}");
    }
    if pause && !ephemeral {
        let frozen = point == Point::NativePauseFrozen;
        assert_eq!(provider.status(&victim).await.unwrap() == RuntimeState::Paused, frozen);
        provider.resume(&victim).await.unwrap();
    }
    // Whatever there is can be made again and destroyed.
    for id in [&kept, &victim] {
        let guest = sandbox(&provider, id, &specs(ephemeral && *id == victim)).await;
        assert_eq!(sh(guest.as_ref(), "hostname").await.trim(), id.as_str());
    }
    for id in [&kept, &victim] {
        provider.destroy(id).await.unwrap();
    }
    host.assert_nothing_left();
}

async fn ephemeral_sandboxes_end_with_their_server() {
    let host = host(true);
    let mut server = start_victim(&host, None);
    let deadline = Instant::now() + Duration::from_secs(30);
    let agents = || host.processes().iter().filter(|p| **p != server.id() as i32).count();
    let running = |name: &str| {
        let log = host.data_dir.join("sandboxes").join(format!("sb-{name}")).join("state.json");
        log.exists()
    };
    while !(running("kept") && running("victim") && agents() >= 2) {
        assert!(Instant::now() < deadline, "the server did not come up");
        std::thread::sleep(Duration::from_millis(10));
    }
    server.kill().unwrap();
    server.wait().unwrap();
    while running("victim") {
        assert!(Instant::now() < deadline, "the ephemeral sandbox is left");
        std::thread::sleep(Duration::from_millis(10));
    }
    let provider = host.exclusive_provider(2);
    let listed = provider.list().await.unwrap();
    assert_eq!(listed.iter().map(|s| s.id.as_str()).collect::<Vec<_>>(), ["sb-kept"]);
    assert_eq!(sh(provider.connect(&id("kept")).await.unwrap().as_ref(), "echo alive").await, "alive\n");
    provider.destroy(&id("kept")).await.unwrap();
    host.assert_nothing_left();
}
