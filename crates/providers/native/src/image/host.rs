//! The image `host`: the host's own `/usr`, read-only, in an otherwise empty system with an `/etc` of its own.
//!
//! The skeleton is built once and never changed afterwards, because sandboxes that run have it mounted. Nothing of the
//! host's `/etc` is in it but what [`COPIED`] names and every user may read.

use super::Bind;
use crate::{
    failure::{Doing, Failure},
    layout::Layout,
    process::boot_id,
};
use sha2::{Digest, Sha256};
use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// Files and trees of the host that programs need to find libraries, certificates and the time zone, on the
/// distributions that we know. Only what every user of the host may read is copied.
const COPIED: &[&str] = &[
    "etc/ld.so.cache",
    "etc/ld.so.conf",
    "etc/ld.so.conf.d",
    "etc/localtime",
    "etc/timezone",
    "etc/os-release",
    "etc/alternatives",
    "etc/ssl/certs",
    "etc/ssl/cert.pem",
    "etc/ssl/openssl.cnf",
    "etc/ca-certificates",
    "etc/ca-certificates.conf",
    "etc/pki/tls/certs",
    "etc/pki/tls/cert.pem",
    "etc/pki/tls/openssl.cnf",
    "etc/pki/ca-trust/extracted",
    "var/lib/ca-certificates",
];
/// Top-level directories with programs and libraries: links into `usr` where the host merged them, else shown as they
/// are.
const SYSTEM: &[&str] = &["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// Directories that exist and are empty, with their modes.
const EMPTY: &[(&str, u32)] = &[
    ("boot", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("media", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("run/lock", 0o1777),
    ("srv", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("var", 0o755),
    ("var/cache", 0o755),
    ("var/lib", 0o755),
    ("var/log", 0o755),
    ("var/tmp", 0o1777),
];
/// Files of our own.
const FILES: &[(&str, &str)] = &[
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\n\
         daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
         bin:x:2:2:bin:/bin:/usr/sbin/nologin\n\
         sandbox:x:1000:1000:sandbox:/home/sandbox:/bin/sh\n\
         nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    ),
    (
        "etc/group",
        "root:x:0:\ndaemon:x:1:\nbin:x:2:\ntty:x:5:\nusers:x:100:\nsandbox:x:1000:\nnogroup:x:65534:\n",
    ),
    (
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\nprotocols: files\nservices: files\n",
    ),
    ("etc/resolv.conf", "# This sandbox has no network.\n"),
    (
        "etc/profile",
        "export PATH=\"${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}\"\nexport PS1='\\u@\\h:\\w\\$ '\n",
    ),
];
/// Bounds of one skeleton: a host with more than this in the trees above has something else in them.
const MAX_FILE_BYTES: u64 = 8 << 20;
const MAX_ENTRIES: usize = 20_000;
const MAX_DEPTH: usize = 8;
/// Part of the name, so that a skeleton of another shape is not taken for one of these.
const SHAPE: &str = "1";

/// The skeleton, built when first needed.
#[derive(Debug)]
pub(crate) struct HostImage {
    root: PathBuf,
    built: Mutex<Option<Arc<Skeleton>>>,
}

/// A built skeleton.
#[derive(Debug)]
pub(crate) struct Skeleton {
    pub(crate) path: PathBuf,
    pub(crate) binds: Vec<Bind>,
}

impl Default for HostImage {
    fn default() -> Self {
        Self { root: PathBuf::from("/"), built: Mutex::new(None) }
    }
}

impl HostImage {
    /// The skeleton for the host as it is now. Blocks while it is built.
    pub(crate) fn get(&self, layout: &Layout) -> Result<Arc<Skeleton>, Failure> {
        // The value is replaced as a whole, so a panic elsewhere cannot have left half of one.
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(skeleton) = built.as_ref().filter(|s| s.path.is_dir()) {
            return Ok(Arc::clone(skeleton));
        }
        let skeleton = Arc::new(build(&self.root, layout)?);
        *built = Some(Arc::clone(&skeleton));
        Ok(skeleton)
    }
}

/// Removes skeletons that neither `used` names nor this run of the host could have built.
pub(crate) fn remove_unused(layout: &Layout, used: &HashSet<PathBuf>) {
    let Ok(entries) = fs::read_dir(layout.images()) else { return };
    for entry in entries.flatten() {
        let ours =
            entry.file_name().to_str().is_some_and(|n| n.starts_with("host-") || n.starts_with(".host-"));
        if ours && !used.contains(&entry.path()) {
            let _ = crate::remove::remove_tree(&entry.path());
        }
    }
}

fn build(root: &Path, layout: &Layout) -> Result<Skeleton, Failure> {
    let mut binds = Vec::new();
    let mut links = Vec::new();
    for name in SYSTEM {
        let Ok(metadata) = fs::symlink_metadata(root.join(name)) else { continue };
        if metadata.is_symlink() {
            let target = fs::read_link(root.join(name)).doing(|| format!("read the link /{name}"))?;
            links.push((name, target));
        } else if metadata.is_dir() {
            binds.push(Bind { path: root.join(name) });
        }
    }
    let mut inputs = Inputs::default();
    for path in COPIED {
        inputs.collect(root, Path::new(path), 0);
    }
    let path = layout.images().join(format!("host-{}", inputs.fingerprint(&binds)));
    if path.is_dir() {
        return Ok(Skeleton { path, binds });
    }
    // Built aside and renamed: a name without dot in front is always a complete skeleton.
    let temporary = tempfile::Builder::new()
        .prefix(".host-")
        .tempdir_in(layout.images())
        .doing(|| "make the skeleton of the image host".to_owned())?;
    let write = || -> io::Result<()> {
        let top = temporary.path();
        for (name, mode) in EMPTY {
            make_dir(&top.join(name), *mode)?;
        }
        for bind in &binds {
            make_dir(&top.join(bind.path.strip_prefix(root).unwrap_or(&bind.path)), 0o755)?;
        }
        for (name, target) in &links {
            symlink(target, top.join(name))?;
        }
        symlink("/run", top.join("var/run"))?;
        symlink("/proc/self/mounts", top.join("etc/mtab"))?;
        for (name, text) in FILES {
            fs::write(top.join(name), text)?;
            fs::set_permissions(top.join(name), fs::Permissions::from_mode(0o644))?;
        }
        inputs.copy(root, top)?;
        fs::set_permissions(top, fs::Permissions::from_mode(0o755))
    };
    write().doing(|| "write the skeleton of the image host".to_owned())?;
    match fs::rename(temporary.path(), &path) {
        Ok(()) => drop(temporary.keep()),
        // Another control plane of this directory was faster; its skeleton is the same.
        Err(_) if path.is_dir() => {}
        Err(e) => return Err(e).doing(|| format!("name the skeleton {}", path.display())),
    }
    Ok(Skeleton { path, binds })
}

fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    match fs::DirBuilder::new().mode(mode).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
        // The mask of the process may have taken bits away, and the sticky bit is never given.
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(mode)),
    }
}

/// What is copied from the host.
#[derive(Debug, Default)]
struct Inputs {
    entries: Vec<(PathBuf, fs::Metadata)>,
}

impl Inputs {
    fn collect(&mut self, root: &Path, path: &Path, depth: usize) {
        let Ok(metadata) = fs::symlink_metadata(root.join(path)) else { return };
        let public = metadata.mode() & 0o004 != 0;
        if depth > MAX_DEPTH || self.entries.len() >= MAX_ENTRIES {
            return;
        }
        if metadata.is_symlink() || (metadata.is_file() && public && metadata.len() <= MAX_FILE_BYTES) {
            self.entries.push((path.to_owned(), metadata));
        } else if metadata.is_dir() && public {
            self.entries.push((path.to_owned(), metadata));
            let Ok(children) = fs::read_dir(root.join(path)) else { return };
            let mut names: Vec<_> = children.flatten().map(|c| c.file_name()).collect();
            names.sort();
            for name in names {
                self.collect(root, &path.join(name), depth + 1);
            }
        }
    }

    /// Changes when anything that is copied changes. The run of the kernel is part of it, so that a skeleton that a
    /// power failure left with empty files is not used again.
    fn fingerprint(&self, binds: &[Bind]) -> String {
        let mut hash = Sha256::new();
        let mut add = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        add(SHAPE.as_bytes());
        add(env!("CARGO_PKG_VERSION").as_bytes());
        add(boot_id().unwrap_or_default().as_bytes());
        for bind in binds {
            add(bind.path.as_os_str().as_encoded_bytes());
        }
        for (path, metadata) in &self.entries {
            add(path.as_os_str().as_encoded_bytes());
            for number in [metadata.ino(), metadata.size(), u64::from(metadata.mode())] {
                add(&number.to_le_bytes());
            }
            add(&metadata.mtime().to_le_bytes());
            add(&metadata.mtime_nsec().to_le_bytes());
        }
        hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect()
    }

    fn copy(&self, root: &Path, top: &Path) -> io::Result<()> {
        for (path, metadata) in &self.entries {
            let (from, to) = (root.join(path), top.join(path));
            // One by one from the top down, so that a skeleton whose place vanished is not made again elsewhere.
            let parents: Vec<_> = path.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()).collect();
            for parent in parents.into_iter().rev() {
                if !top.join(parent).is_dir() {
                    make_dir(&top.join(parent), 0o755)?;
                }
            }
            let copied = if metadata.is_dir() {
                make_dir(&to, 0o755)
            } else if metadata.is_symlink() {
                fs::read_link(&from).and_then(|target| symlink(target, &to))
            } else {
                fs::read(&from).and_then(|bytes| fs::write(&to, bytes)).and_then(|()| {
                    fs::set_permissions(&to, fs::Permissions::from_mode(metadata.mode() & 0o755 | 0o444))
                })
            };
            match copied {
                // It went away while we looked, or a parent is a link on this host and was copied as one.
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists) => {}
                result => result?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small host with merged `/usr`, a certificate, a link and a secret.
    fn fixture() -> (tempfile::TempDir, Layout, HostImage) {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().join("host");
        for directory in ["usr/bin", "etc/ssl/certs/private", "etc/ssl/private", "lib64", "etc/alternatives"]
        {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        symlink("usr/bin", root.join("bin")).unwrap();
        symlink("../usr/share/zoneinfo/UTC", root.join("etc/localtime")).unwrap();
        let write = |name: &str, mode: u32| {
            fs::write(root.join(name), name).unwrap();
            fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        write("etc/ssl/certs/ca.pem", 0o644);
        write("etc/ssl/certs/key.pem", 0o600);
        write("etc/ssl/certs/private/key.pem", 0o644);
        fs::set_permissions(root.join("etc/ssl/certs/private"), fs::Permissions::from_mode(0o750)).unwrap();
        write("etc/ssl/private/key.pem", 0o644);
        write("etc/shadow", 0o644);
        write("etc/passwd", 0o644);
        let layout = Layout::new(tmp.path().join("data"));
        layout.prepare().unwrap();
        (tmp, layout, HostImage { root, built: Mutex::new(None) })
    }

    #[test]
    fn only_what_is_named_and_public_is_copied() {
        let (_tmp, layout, image) = fixture();
        let skeleton = image.get(&layout).unwrap();
        let has = |path: &str| fs::symlink_metadata(skeleton.path.join(path)).is_ok();
        assert!(has("etc/ssl/certs/ca.pem") && has("etc/localtime") && has("var/run"));
        for secret in ["etc/ssl/certs/key.pem", "etc/ssl/certs/private", "etc/ssl/private", "etc/shadow"] {
            assert!(!has(secret), "{secret}");
        }
        let passwd = fs::read_to_string(skeleton.path.join("etc/passwd")).unwrap();
        assert!(passwd.contains("sandbox:x:1000:1000:"), "{passwd}");
        let mode = |path: &str| fs::metadata(skeleton.path.join(path)).unwrap().mode() & 0o7777;
        assert_eq!((mode("tmp"), mode("root"), mode("etc")), (0o1777, 0o700, 0o755));
    }

    #[test]
    fn merged_and_separate_directories_are_kept_as_they_are() {
        let (_tmp, layout, image) = fixture();
        let skeleton = image.get(&layout).unwrap();
        assert_eq!(fs::read_link(skeleton.path.join("bin")).unwrap(), PathBuf::from("usr/bin"));
        let binds: Vec<_> = skeleton.binds.iter().map(|b| b.path.file_name().unwrap().to_owned()).collect();
        assert_eq!(binds, ["usr", "lib64"]);
        assert!(skeleton.path.join("lib64").is_dir() && skeleton.path.join("usr").is_dir());
    }

    #[test]
    fn it_is_built_once_and_anew_when_the_host_changes() {
        let (_tmp, layout, image) = fixture();
        let first = image.get(&layout).unwrap().path.clone();
        assert_eq!(image.get(&layout).unwrap().path, first);
        let same = HostImage { root: image.root.clone(), built: Mutex::new(None) };
        assert_eq!(same.get(&layout).unwrap().path, first);
        fs::write(image.root.join("etc/ssl/certs/new.pem"), "new").unwrap();
        let other = HostImage { root: image.root, built: Mutex::new(None) };
        let second = other.get(&layout).unwrap().path.clone();
        assert_ne!(first, second);

        // A leftover of a build that was killed goes away with what nobody uses.
        fs::create_dir(layout.images().join(".host-half")).unwrap();
        fs::create_dir(layout.images().join("other")).unwrap();
        remove_unused(&layout, &[second.clone()].into());
        let mut left: Vec<_> = fs::read_dir(layout.images()).unwrap().map(|e| e.unwrap().path()).collect();
        left.sort();
        assert_eq!(left, [second, layout.images().join("other")]);
    }

    #[test]
    fn a_skeleton_that_vanished_is_built_again() {
        let (_tmp, layout, image) = fixture();
        let path = image.get(&layout).unwrap().path.clone();
        fs::remove_dir_all(&path).unwrap();
        assert_eq!(image.get(&layout).unwrap().path, path);
        assert!(path.join("etc/passwd").is_file());
    }
}
