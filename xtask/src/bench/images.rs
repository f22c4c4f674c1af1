//! Images: unpacking beside `tar`, pulling beside `docker pull` from the same registry.

use super::{
    engine::Engine,
    samples::{Comparison, Samples},
    scenarios::{compare, settle},
};
use anyhow::{Context, Result, ensure};
use std::{
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

/// Trees of this host whose files an archive is made of, as many as fit: many small ones, and some that are not small.
const TREES: [&str; 2] = ["/usr/share", "/usr/lib"];
/// Most bytes of files from each tree.
const FROM_EACH: u64 = 192 << 20;
/// What is pulled: three layers of 12 MiB that do not compress, on a small one.
const PULLED: &str = "stacyvm-test/big:1";
/// Address of a registry that has it.
const REGISTRY: &str = "STACYVM_TEST_REGISTRY";

/// `stacyvm image` in a data directory of its own.
struct Store {
    binary: PathBuf,
    data_dir: tempfile::TempDir,
}

impl Store {
    fn new(binary: &Path) -> Result<Self> {
        let data_dir = tempfile::Builder::new().prefix("stacyvm-bench-").tempdir()?;
        Ok(Self { binary: binary.to_owned(), data_dir })
    }

    fn run(&self, arguments: &[&str]) -> Result<()> {
        let registry = std::env::var(REGISTRY).unwrap_or_default();
        let mut command = Command::new(&self.binary);
        command.args(["image"]).args(arguments).env("STACYVM_DATA_DIR", self.data_dir.path());
        command.env("STACYVM_IMAGES_INSECURE_REGISTRIES", registry).env_remove("STACYVM_SERVER");
        succeed(&mut command)
    }
}

fn succeed(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Paths below `/` of directories, links and files, up to [`FROM_EACH`], in the order of their names.
fn files() -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for tree in TREES {
        let (mut left, mut open) = (FROM_EACH, vec![PathBuf::from(tree)]);
        while let Some(directory) = open.pop() {
            let entries = std::fs::read_dir(&directory).into_iter().flatten().flatten();
            let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
            paths.sort();
            for path in paths {
                let Ok(about) = path.symlink_metadata() else { continue };
                if about.is_dir() {
                    open.push(path.clone());
                } else if about.is_file() && about.len() <= left {
                    left -= about.len();
                } else if !about.is_symlink() {
                    continue;
                }
                found.extend(path.strip_prefix("/").map(|path| path.as_os_str().as_bytes().to_vec()));
            }
        }
    }
    found
}

/// MiB of files in a second. Both sides end with their files on disk.
pub(super) async fn unpack(binary: PathBuf, samples: usize) -> Result<Vec<Comparison>> {
    let scratch = tempfile::Builder::new().prefix("stacyvm-bench-").tempdir()?;
    let mut report = Vec::new();
    // Removed at the end: ext4 makes files many times more slowly when many have just gone.
    let mut made: Vec<tempfile::TempDir> = Vec::new();
    let list = scratch.path().join("files");
    std::fs::write(&list, files().join(&b'\n'))?;
    for (what, flag, name) in [("plain", "-c", "plain.tar"), ("gzip", "-cz", "packed.tar.gz")] {
        let archive = scratch.path().join(name);
        let mut tar = Command::new("tar");
        tar.args(["-C", "/", "--no-recursion", flag, "-f"]).arg(&archive).arg("-T").arg(&list);
        succeed(&mut tar)?;
        let plain = std::fs::metadata(scratch.path().join("plain.tar"))?.len();
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = |start: Instant| (plain >> 20) as f64 / start.elapsed().as_secs_f64();
        let (mut ours, mut theirs) = (Samples::new("stacyvm image import"), Samples::new("tar -x, sync"));
        for _ in 0..samples.div_ceil(8) {
            let store = Store::new(&binary)?;
            settle().await;
            let start = Instant::now();
            store.run(&["import", &archive.to_string_lossy(), "--name", "bench/unpack"])?;
            ours.values.push(rate(start));
            made.push(store.data_dir);
            let to = tempfile::tempdir_in(scratch.path())?;
            settle().await;
            let start = Instant::now();
            succeed(Command::new("tar").args(["-xp", "-f"]).arg(&archive).arg("-C").arg(to.path()))?;
            succeed(Command::new("sync").arg("-f").arg(to.path()))?;
            theirs.values.push(rate(start));
            made.push(to);
        }
        report.push(compare(
            &format!("unpack {} MiB, {what}", plain >> 20),
            "MiB/s",
            true,
            vec![ours, theirs],
        ));
    }
    Ok(report)
}

/// Milliseconds from nothing to an image that can be run from.
pub(super) async fn pull(binary: PathBuf, samples: usize) -> Result<Vec<Comparison>> {
    let scenario = "pull 36 MiB in 4 layers";
    let found = match (std::env::var(REGISTRY), Engine::find().await) {
        (Ok(registry), Ok(engine)) if !registry.is_empty() => (format!("{registry}/{PULLED}"), engine),
        _ => {
            let mut comparison = compare(scenario, "ms", false, Vec::new());
            comparison
                .not_run
                .push("there is no registry and no Docker Engine: see scripts/setup-test-host.sh".to_owned());
            return Ok(vec![comparison]);
        }
    };
    let (image, engine) = found;
    let (mut ours, mut docker) = (Samples::new("stacyvm image pull"), Samples::new("docker pull"));
    for _ in 0..samples.div_ceil(4) {
        let store = Store::new(&binary)?;
        settle().await;
        let start = Instant::now();
        store.run(&["pull", &image])?;
        ours.values.push(start.elapsed().as_secs_f64() * 1e3);
        drop(store);
        let Some(mut pull) = engine.cli(&["pull", "--quiet", &image]) else { continue };
        settle().await;
        let start = Instant::now();
        succeed(&mut pull)?;
        docker.values.push(start.elapsed().as_secs_f64() * 1e3);
        succeed(&mut engine.cli(&["image", "rm", "--force", &image]).context("docker went away")?)?;
    }
    Ok(vec![compare(scenario, "ms", false, vec![ours, docker])])
}
