//! How much disk a tree takes, as `du` counts it: blocks, each file with several names once.

use super::{
    Cancel,
    archive::{failed, takes},
    path::SandboxPath,
    resolve::{Root, refuse_kernel_view},
};
use crate::fail::{Fail, Result};
use rustix::fs::{FileType, Mode, OFlags, Stat, fstat};
use stacyvm_guest::proto::UsageReply;
use stacyvm_tar::Walk;
use std::collections::HashSet;

/// Files with several names that are remembered: a megabyte at most.
const LINKED: usize = 50_000;

#[derive(Default)]
struct Sum {
    usage: UsageReply,
    linked: HashSet<(u64, u64)>,
}

impl Sum {
    fn add(&mut self, stat: &Stat) {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let total = &mut self.usage;
        if kind == FileType::Directory {
            total.directories += 1;
        } else {
            total.files += 1;
            if stat.st_nlink > 1 {
                let inode = (stat.st_dev, stat.st_ino);
                if self.linked.contains(&inode) {
                    return;
                }
                if self.linked.len() < LINKED {
                    self.linked.insert(inode);
                } else {
                    total.counted_twice = true;
                }
            }
        }
        total.bytes =
            total.bytes.saturating_add(u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512));
        if kind == FileType::RegularFile {
            total.apparent_bytes =
                total.apparent_bytes.saturating_add(u64::try_from(stat.st_size).unwrap_or(0));
        }
    }
}

/// What `path` takes, with everything in it. File systems of the kernel in it are left out.
///
/// # Errors
/// `NotFound`.
pub(crate) fn usage(root: &Root, path: &SandboxPath, cancel: &Cancel) -> Result<UsageReply> {
    let fail = |errno| Fail::errno(path.as_str(), errno);
    let top = root.open(path, OFlags::PATH, Mode::empty()).map_err(fail)?;
    refuse_kernel_view(&top, path.as_str())?;
    let stat = fstat(&top).map_err(fail)?;
    let mut sum = Sum::default();
    sum.add(&stat);
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Ok(sum.usage);
    }
    let top = root.open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).map_err(fail)?;
    let told = |error| failed(path, &error);
    let mut walk = Walk::new(top).map_err(told)?;
    let mut seen = 0_u32;
    while let Some(found) = walk.step().map_err(told)? {
        seen = seen.wrapping_add(1);
        if seen.is_multiple_of(256) {
            cancel.check()?;
        }
        match found.directory {
            Some(directory) if found.mounted && !takes(&directory) => {}
            Some(directory) => {
                sum.add(&found.stat);
                walk.enter(directory).map_err(told)?;
            }
            None => sum.add(&found.stat),
        }
    }
    Ok(sum.usage)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::MetadataExt};

    #[test]
    fn names_of_one_file_are_counted_once() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir_all(at("t/a/b")).unwrap();
        fs::write(at("t/f"), vec![1; 10_000]).unwrap();
        fs::hard_link(at("t/f"), at("t/a/g")).unwrap();
        fs::write(at("t/a/b/h"), vec![1; 5]).unwrap();
        std::os::unix::fs::symlink("/", at("t/l")).unwrap();
        let blocks: u64 = ["t", "t/a", "t/a/b", "t/f", "t/a/b/h", "t/l"]
            .map(|name| fs::symlink_metadata(at(name)).unwrap().blocks() * 512)
            .iter()
            .sum();
        let root = Root::new(Some(directory.path())).unwrap();
        let of = |path: &str| usage(&root, &SandboxPath::parse(path).unwrap(), &Cancel::default());
        let expected = UsageReply {
            bytes: blocks,
            apparent_bytes: 10_005,
            files: 4,
            directories: 3,
            counted_twice: false,
        };
        assert_eq!(of("/t").unwrap(), expected);
        assert_eq!(of("/t/f").unwrap().apparent_bytes, 10_000);
        assert_eq!(of("/none").unwrap_err().code(), tonic::Code::NotFound);
    }
}
