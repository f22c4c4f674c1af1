//! Sized upper layers: a filesystem of just the size in a file of the sandbox's.
//!
//! Making one takes longer than making the sandbox, so it is made once for each size and copied: what is in an empty
//! filesystem is less than a megabyte. It has no journal, as nothing of it is read again after a crash of the host.

use super::INODES_PER_MB;
use crate::failure::{Doing, Failure};
use rustix::fs::{SeekFrom, ioctl_ficlone, seek};
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Name of a sandbox's image in its directory.
pub(crate) const IMAGE: &str = "disk.img";
/// Fewest inodes.
const INODES: u64 = 4096;
/// Templates that are kept: whoever asks for ever other sizes must not fill the disk with them.
const TEMPLATES: usize = 16;
/// Where `mkfs.ext4` is looked for.
const PROGRAMS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"];
/// Blocks of nothing but zeros become holes in a template.
const BLOCK: usize = 4096;

/// `mkfs.ext4` of this host.
pub(super) fn mkfs() -> Option<PathBuf> {
    PROGRAMS.iter().map(|directory| Path::new(directory).join("mkfs.ext4")).find(|path| path.exists())
}

/// Makes the image of a sandbox, `mb` MiB large, in its `directory`.
pub(super) fn make(templates: &Path, mkfs: &Path, directory: &Path, mb: u32) -> Result<(), Failure> {
    let template = template(templates, mkfs, mb)?;
    let doing = || format!("copy {}", template.display());
    let mut from = File::open(&template).doing(doing)?;
    let to = create(&directory.join(IMAGE)).doing(doing)?;
    if ioctl_ficlone(&to, &from).is_ok() {
        return Ok(());
    }
    copy_data(&mut from, &to).doing(doing)
}

fn template(templates: &Path, mkfs: &Path, mb: u32) -> Result<PathBuf, Failure> {
    let path = templates.join(format!("{mb}.ext4"));
    if path.exists() {
        return Ok(path);
    }
    crate::layout::make_private_dir(templates, true)?;
    make_room(templates);
    let doing = || format!("make {}", path.display());
    // Several may do this at once, and one may be killed: only what is complete gets the name.
    let scratch = tempfile::Builder::new().prefix(".new-").tempdir_in(templates).doing(doing)?;
    let (raw, sparse) = (scratch.path().join("raw"), scratch.path().join("sparse"));
    create(&raw).and_then(|file| file.set_len(u64::from(mb) << 20)).doing(doing)?;
    let inodes = (u64::from(mb) * INODES_PER_MB).max(INODES).to_string();
    let made = Command::new(mkfs)
        .args([
            "-q",
            "-F",
            "-b",
            "4096",
            "-m",
            "0",
            "-N",
            &inodes,
            "-O",
            "^has_journal,^metadata_csum,^resize_inode",
        ])
        .args(["-E", "lazy_itable_init=1,nodiscard"])
        .arg(&raw)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .doing(doing)?;
    if !made.status.success() {
        let said: String = String::from_utf8_lossy(&made.stderr).trim().chars().take(300).collect();
        return Err(Failure::plain(format!("make a filesystem of {mb} MiB: mkfs.ext4: {said}")));
    }
    let (mut raw, to) = (File::open(&raw).doing(doing)?, create(&sparse).doing(doing)?);
    copy_nonzero(&mut raw, &to).doing(doing)?;
    fs::rename(&sparse, &path).doing(doing)?;
    Ok(path)
}

/// Removes the templates that were made first, so that there is room for one more.
fn make_room(templates: &Path) {
    let Ok(entries) = fs::read_dir(templates) else { return };
    let age = |entry: &fs::DirEntry| entry.metadata().and_then(|m| m.modified()).ok();
    let mut all: Vec<_> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.path().extension().is_some_and(|e| e == "ext4"))
        .map(|entry| (age(&entry), entry.path()))
        .collect();
    all.sort();
    for (_, path) in all.iter().take((all.len() + 1).saturating_sub(TEMPLATES)) {
        // Whoever copies it now has it open.
        let _ = fs::remove_file(path);
    }
}

fn create(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Copies what is not zero; the rest is a hole.
fn copy_nonzero(from: &mut File, to: &File) -> io::Result<()> {
    let length = from.metadata()?.len();
    to.set_len(length)?;
    for_each_extent(from, |from, start, end| {
        let mut block = [0; BLOCK];
        let mut at = start;
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(BLOCK).min(BLOCK);
            let read = from.read_at(&mut block[..most], at)?;
            if read == 0 {
                break;
            }
            if block[..read].iter().any(|byte| *byte != 0) {
                to.write_all_at(&block[..read], at)?;
            }
            at += read as u64;
        }
        Ok(())
    })
}

/// Copies the parts that are not holes.
fn copy_data(from: &mut File, to: &File) -> io::Result<()> {
    let length = from.metadata()?.len();
    to.set_len(length)?;
    for_each_extent(from, |mut from, start, end| {
        seek(&*from, SeekFrom::Start(start))?;
        let mut to = to;
        seek(to, SeekFrom::Start(start))?;
        let mut part = Read::by_ref(&mut from).take(end - start);
        // By the kernel where the filesystem can.
        io::copy(&mut part, &mut to)?;
        to.flush()
    })
}

fn for_each_extent(
    from: &mut File,
    mut work: impl FnMut(&mut File, u64, u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut at = 0;
    loop {
        let start = match seek(&*from, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but holes from here on.
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = seek(&*from, SeekFrom::Hole(start))?;
        work(from, start, end)?;
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn copies_have_the_same_content_and_the_same_holes() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("from");
        let from = create(&path).unwrap();
        from.set_len(64 << 20).unwrap();
        from.write_all_at(b"begin", 0).unwrap();
        from.write_all_at(&[0; 1 << 20], 8 << 20).unwrap();
        from.write_all_at(b"middle", (32 << 20) + 5).unwrap();
        drop(from);
        let (nonzero, data) = (tmp.path().join("nonzero"), tmp.path().join("data"));
        copy_nonzero(&mut File::open(&path).unwrap(), &create(&nonzero).unwrap()).unwrap();
        copy_data(&mut File::open(&nonzero).unwrap(), &create(&data).unwrap()).unwrap();
        let original = fs::read(&path).unwrap();
        for copy in [&nonzero, &data] {
            assert!(fs::read(copy).unwrap() == original, "{}", copy.display());
            let blocks = fs::metadata(copy).unwrap().blocks() * 512;
            assert!(blocks <= 64 << 10, "{} takes {blocks} bytes", copy.display());
        }
    }

    #[test]
    fn templates_are_made_once_for_each_size_and_not_kept_for_ever() {
        let Some(mkfs) = mkfs() else {
            println!("not run: this host has no mkfs.ext4");
            return;
        };
        let tmp = tempfile::tempdir().unwrap();
        let templates = tmp.path().join("disks");
        let first = template(&templates, &mkfs, 16).unwrap();
        let inode = fs::metadata(&first).unwrap().ino();
        assert_eq!(template(&templates, &mkfs, 16).unwrap(), first);
        assert_eq!(fs::metadata(&first).unwrap().ino(), inode);
        assert!(fs::metadata(&first).unwrap().blocks() * 512 < 1 << 20);
        for mb in 17..17 + TEMPLATES as u32 {
            template(&templates, &mkfs, mb).unwrap();
        }
        assert_eq!(fs::read_dir(&templates).unwrap().count(), TEMPLATES, "and no leftovers of making them");
        assert!(!first.exists());
        make(&templates, &mkfs, tmp.path(), 32).unwrap();
        assert_eq!(fs::metadata(tmp.path().join(IMAGE)).unwrap().len(), 32 << 20);
    }

    #[test]
    fn a_filesystem_that_cannot_be_made_is_a_failure_with_the_reason() {
        let tmp = tempfile::tempdir().unwrap();
        let failure = make(&tmp.path().join("disks"), Path::new("/bin/false"), tmp.path(), 16).unwrap_err();
        assert!(failure.to_string().contains("16 MiB"), "{failure}");
        assert_eq!(fs::read_dir(tmp.path().join("disks")).unwrap().count(), 0);
    }
}
