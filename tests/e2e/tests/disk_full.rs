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
    ensure!(body.contains("RESOURCE_LIMIT") && body.contains("disk full"), "{body}");
    ensure!(sandbox.stdout("ls -A").await?.is_empty(), "a refused upload leaves nothing");

    let filled = sandbox.exec("head -c 90000000 /dev/zero > fill").await?;
    ensure!(
        filled["exit_code"] == 1 && filled["stderr"].as_str().unwrap_or_default().contains("No space"),
        "{filled}"
    );
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
