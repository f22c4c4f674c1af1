//! How long it takes to unpack an archive, beside GNU tar: `cargo run --release --example unpack -- layer.tar.gz [runs]`.

use stacyvm_image::unpack::{Limits, unpack};
use std::{
    error::Error,
    fs::{self, File},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let archive = arguments.next().ok_or("name an archive")?;
    let runs = arguments.next().map_or(Ok(5), |n| n.parse())?;
    let (mut ours, mut synced, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    // Kept to the end: ext4 is slow where many files were removed a moment ago.
    let mut kept = Vec::new();
    for _ in 0..runs {
        let into = tempfile::tempdir_in(".")?;
        sync(into.path())?;
        let started = Instant::now();
        let unpacked = unpack(File::open(&archive)?, into.path(), &Limits::default())?;
        ours.push(started.elapsed());
        sync(into.path())?;
        synced.push(started.elapsed());
        eprintln!("{} entries, {} MiB", unpacked.entries, unpacked.stream_bytes >> 20);
        kept.push(into);

        let into = tempfile::tempdir_in(".")?;
        sync(into.path())?;
        let started = Instant::now();
        let status = Command::new("tar").args(["-xpf", &archive, "-C"]).arg(into.path()).status()?;
        theirs.push(started.elapsed());
        if !status.success() {
            return Err("tar failed".into());
        }
        kept.push(into);
    }
    println!(
        "here    {:?} (median of {runs}), {:?} with everything on the disk",
        median(&mut ours),
        median(&mut synced)
    );
    println!("GNU tar {:?}", median(&mut theirs));
    Ok(())
}

fn sync(directory: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(directory)?;
    Ok(rustix::fs::syncfs(File::open(directory)?)?)
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
