//! Bundles for `runc` with the root filesystem that `native` has with the image `host`: the host's `/usr`, read-only.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
};

/// Where bundles and the state of `runc` are kept.
pub(crate) struct Bundles {
    home: tempfile::TempDir,
    next: AtomicUsize,
}

impl Bundles {
    /// Makes the root filesystem that all of them share.
    pub(crate) fn new() -> Result<Self> {
        let home = crate::server::scratch()?;
        let root = home.path().join("rootfs");
        for place in ["usr", "proc", "dev", "tmp"] {
            std::fs::create_dir_all(root.join(place))?;
        }
        for name in ["bin", "sbin", "lib", "lib64"] {
            std::os::unix::fs::symlink(Path::new("usr").join(name), root.join(name))?;
        }
        Ok(Self { home, next: AtomicUsize::new(0) })
    }

    /// `runc` with its state kept here.
    pub(crate) fn runc(&self, arguments: &[&str]) -> Command {
        let mut runc = crate::rivals::command("runc");
        runc.arg("--root").arg(self.home.path().join("state")).args(arguments);
        runc
    }

    /// A bundle for this command, and a name for its container.
    pub(crate) fn make(&self, command: &[&str], limits: bool) -> Result<(PathBuf, String)> {
        let id =
            format!("stacyvm-bench-{}-{}", std::process::id(), self.next.fetch_add(1, Ordering::Relaxed));
        let bundle = self.home.path().join(&id);
        std::fs::create_dir(&bundle)?;
        let root = self.home.path().join("rootfs");
        let text = serde_json::to_vec(&config(&root, command, limits))?;
        std::fs::write(bundle.join("config.json"), text).context("config.json")?;
        Ok((bundle, id))
    }
}

/// Namespaces of its own, no capabilities, no network.
fn config(root: &Path, command: &[&str], limits: bool) -> Value {
    let namespaces = ["pid", "mount", "ipc", "uts", "network"].map(|kind| json!({"type": kind}));
    let resources = if limits {
        json!({
            "memory": {"limit": 1_u64 << 30},
            "cpu": {"quota": 100_000, "period": 100_000},
            "pids": {"limit": 512},
        })
    } else {
        json!({})
    };
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 1000, "gid": 1000},
            "args": command,
            "env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
            "cwd": "/",
            "noNewPrivileges": true,
        },
        "root": {"path": root, "readonly": true},
        "mounts": [
            {"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]},
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=1777"]},
        ],
        "linux": {"namespaces": namespaces, "resources": resources},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_container_has_a_bundle_and_a_name_of_its_own() {
        let bundles = Bundles::new().unwrap();
        let (first, second) = (bundles.make(&["true"], false).unwrap(), bundles.make(&["id"], true).unwrap());
        assert!(first.0 != second.0 && first.1 != second.1);
        let read = |bundle: &Path| -> Value {
            serde_json::from_slice(&std::fs::read(bundle.join("config.json")).unwrap()).unwrap()
        };
        let (bare, limited) = (read(&first.0), read(&second.0));
        assert_eq!(bare["process"]["args"], json!(["true"]));
        assert_eq!(bare["linux"]["resources"], json!({}));
        assert_eq!(limited["linux"]["resources"]["memory"]["limit"], 1_u64 << 30);
        assert_eq!(bare["root"]["path"], limited["root"]["path"]);
    }
}
