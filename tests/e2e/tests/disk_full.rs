//! A sandbox fills the disk that everything of the installation is on. Nothing hangs, nothing is lost, destroying frees it.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::{StreamExt, stream};
use serde_json::json;
use stacyvm_e2e::Host;
use std::{path::Path, process::Command};

/// A small file system of its own, unmounted on drop.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("stacyvm-smalldisk-").tempdir()?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=48m", "tmpfs"])
            .arg(directory.path())
            .status()?;
        ensure!(mounted.success(), "cannot mount a tmpfs: {mounted}");
        Ok(Self(directory))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

/// The header of one file in an archive.
fn tar_header(name: &str, size: u64) -> Vec<u8> {
    let mut archive = Vec::new();
    let entry = stacyvm_tar::Entry {
        kind: stacyvm_tar::Kind::File,
        path: name.into(),
        link: Vec::new(),
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: (0, 0),
        size,
    };
    stacyvm_tar::encode(&entry, &mut archive);
    archive
}

#[tokio::test]
async fn a_full_disk_is_reported_survived_and_freed() -> Result<()> {
    let disk = SmallDisk::mount()?;
    let data = disk.path().join("data");
    let host = Host::start_with(&[("STACYVM_DATA_DIR", data.to_str().context("a temporary path")?)]).await?;
    let sandbox = host.spawn().await?;

    let too_much = stream::repeat(Bytes::from_static(&[7; 64 << 10])).take(1600).map(std::io::Result::Ok);
    let address = host.server.url(&sandbox.path("/files?path=/workspace/upload"));
    let refused = host.server.http().put(&address).body(reqwest::Body::wrap_stream(too_much)).send().await?;
    ensure!(refused.status() == 429, "{}", refused.status());
    let body = refused.text().await?;
    ensure!(body.contains("RESOURCE_LIMIT") && body.contains("the disk of the sandbox is full"), "{body}");
    ensure!(sandbox.stdout("ls -A").await?.is_empty(), "a refused upload leaves nothing");

    let mut archive = tar_header("too-much", 90_000_000);
    archive.resize(90_000_512, 7);
    let address = host.server.url(&sandbox.path("/files/archive?path=/workspace/tree"));
    let refused = host.server.http().put(&address).body(archive).send().await?;
    ensure!(refused.status() == 429, "{}", refused.status());
    let body = refused.text().await?;
    ensure!(body.contains("/workspace/tree/too-much: the disk of the sandbox is full"), "{body}");
    ensure!(sandbox.stdout("ls -A tree; rmdir tree").await?.is_empty(), "half a file of an archive is left");

    let filled = sandbox.exec("head -c 90000000 /dev/zero > fill").await?;
    ensure!(
        filled["exit_code"] == 1 && filled["stderr"].as_str().unwrap_or_default().contains("No space"),
        "{filled}"
    );
    ensure!(filled["limits_hit"] == json!(["disk_full"]), "{filled}");
    let streamed =
        json!({"command": "head -c 90000000 /dev/zero > again", "stream": true, "records": "full"});
    let lines =
        host.server.http().post(host.server.url(&sandbox.path("/exec"))).json(&streamed).send().await?;
    let lines = lines.text().await?;
    ensure!(
        lines.lines().last().is_some_and(|exit| exit.contains(r#""limits_hit":["disk_full"]"#)),
        "{lines}"
    );
    // The upload, the archive and two commands.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let seen = host.server.get(&sandbox.path("")).await?;
        if seen["limits_hit"]["disk_full"]["count"] == 4 {
            break;
        }
        ensure!(std::time::Instant::now() < deadline, "{seen}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    // Whether there is still room for another row depends on pages of the store: both answers are fine, a hang is not.
    let second = host.server.post("/sandboxes", &json!({"image": "host", "ttl": "5m"})).await;
    if let Err(error) = &second {
        let text = error.to_string();
        ensure!(text.contains("UNAVAILABLE") || text.contains("RESOURCE_LIMIT"), "{text}");
    }
    ensure!(host.server.get("/health").await?["status"] == "ok");
    ensure!(sandbox.stdout("echo alive").await? == "alive\n");

    sandbox.destroy().await?;
    let after = host.spawn().await?;
    ensure!(after.stdout("head -c 1000000 /dev/zero | wc -c").await?.trim() == "1000000");
    host.finish().await
}
