//! Images: unpacking beside `tar`, pulling beside `docker pull` from the same registry.

use crate::{
    context::Context,
    measure::{settle, succeed, timed},
    rivals::command,
    samples::{Comparison, NotRun, OURS, Samples},
    server::scratch,
};
use anyhow::Result;
use std::{
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::Command,
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
        Ok(Self { binary: binary.to_owned(), data_dir: scratch()? })
    }

    fn image(&self, arguments: &[&str]) -> Command {
        let registry = std::env::var(REGISTRY).unwrap_or_default();
        let mut command = command(&self.binary.to_string_lossy());
        command.arg("image").args(arguments).env("STACYVM_DATA_DIR", self.data_dir.path());
        command.env("STACYVM_IMAGES_INSECURE_REGISTRIES", registry).env_remove("STACYVM_SERVER");
        command
    }
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
pub(super) async fn unpack(context: &Context) -> Result<Vec<Comparison>> {
    let scratch = scratch()?;
    let mut report = Vec::new();
    // Removed at the end: ext4 makes files many times more slowly when many have just gone.
    let mut made: Vec<tempfile::TempDir> = Vec::new();
    let list = scratch.path().join("files");
    std::fs::write(&list, files().join(&b'\n'))?;
    for (what, flag, name) in [("plain", "-c", "plain.tar"), ("gzip", "-cz", "packed.tar.gz")] {
        let archive = scratch.path().join(name);
        let mut tar = command("tar");
        tar.args(["-C", "/", "--no-recursion", flag, "-f"]).arg(&archive).arg("-T").arg(&list);
        succeed(tar)?;
        let plain = std::fs::metadata(scratch.path().join("plain.tar"))?.len();
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = |start: Instant| (plain >> 20) as f64 / start.elapsed().as_secs_f64();
        let (mut ours, mut theirs) = (Samples::new(OURS), Samples::new("tar -x, sync"));
        for _ in 0..context.rounds(8, 10) {
            let store = Store::new(&context.binary)?;
            settle().await;
            context.go_on()?;
            let start = Instant::now();
            succeed(store.image(&["import", &archive.to_string_lossy(), "--name", "bench/unpack"]))?;
            ours.values.push(rate(start));
            made.push(store.data_dir);
            let to = tempfile::tempdir_in(scratch.path())?;
            let (mut tar, mut sync) = (command("tar"), command("sync"));
            tar.args(["-xp", "-f"]).arg(&archive).arg("-C").arg(to.path());
            sync.arg("-f").arg(to.path());
            settle().await;
            let start = Instant::now();
            succeed(tar)?;
            succeed(sync)?;
            theirs.values.push(rate(start));
            made.push(to);
        }
        let what = format!("unpack {} MiB, {what}", plain >> 20);
        report.push(Comparison::more(&what, "MiB/s", vec![ours, theirs], Vec::new()));
    }
    Ok(report)
}

/// Milliseconds from nothing to an image that can be run from.
pub(super) async fn pull(context: &Context) -> Result<Vec<Comparison>> {
    let what = "pull 36 MiB in 4 layers";
    let registry = std::env::var(REGISTRY).unwrap_or_default();
    if registry.is_empty() {
        let why = "there is no registry: see scripts/setup-test-host.sh";
        return Ok(vec![Comparison::left_out(what, why)]);
    }
    let image = format!("{registry}/{PULLED}");
    let (mut ours, mut docker) = (Samples::new(OURS), Samples::new("docker pull"));
    for _ in 0..context.rounds(4, 10) {
        let store = Store::new(&context.binary)?;
        settle().await;
        context.go_on()?;
        ours.values.push(timed(store.image(&["pull", &image]))?);
        drop(store);
        if let Ok(engine) = &context.engine {
            settle().await;
            docker.values.push(timed(engine.cli(&["pull", "--quiet", &image]))?);
            succeed(engine.cli(&["image", "rm", "--force", &image]))?;
        }
    }
    let mut not_run = Vec::new();
    if let Err(why) = &context.engine {
        not_run.push(NotRun { side: docker.side.clone(), why: why.clone() });
    }
    let sides = [ours, docker].into_iter().filter(|side| !side.values.is_empty()).collect();
    Ok(vec![Comparison::less(what, "ms", sides, not_run)])
}
