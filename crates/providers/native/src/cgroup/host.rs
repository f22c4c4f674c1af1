//! Which hierarchies this host has, which of them we may use, and where in them our subtree is.

use super::{Controller, Freezer, Limits, SandboxCgroups, Version, sandbox::Group};
use crate::failure::{Doing, Failure};
use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Controllers and hierarchies of a host, for one installation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Host {
    hierarchies: Vec<Hierarchy>,
    /// Name of our subtree in each of them.
    subtree: String,
}

/// One hierarchy that we can use.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    version: Version,
    /// Directory in which our subtree is made.
    base: PathBuf,
    /// What we use it for.
    controllers: BTreeSet<Controller>,
}

impl Host {
    /// Looks at the host that we run on. What cannot be read or written is what we cannot use.
    pub(crate) fn discover(installation_id: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::from_text(&mounts, &membership, installation_id, |path| {
            rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
        })
    }

    fn from_text(
        mounts: &str,
        membership: &str,
        installation_id: &str,
        writable: impl Fn(&Path) -> bool,
    ) -> Self {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        let mut taken = BTreeSet::new();
        // Version 1 first: a controller that is mounted there is not available in version 2.
        for mount in mounts.lines().filter_map(Mount::parse).filter(|m| m.kind == "cgroup") {
            let controllers: BTreeSet<_> = Controller::ALL
                .into_iter()
                .filter(|c| mount.options.split(',').any(|o| o == c.name()) && !taken.contains(c))
                .collect();
            if !controllers.is_empty() && writable(&mount.path) {
                taken.extend(controllers.iter().copied());
                hierarchies.push(Hierarchy { version: Version::V1, base: mount.path, controllers });
            }
        }
        if let Some(mount) = mounts.lines().filter_map(Mount::parse).find(|m| m.kind == "cgroup2") {
            let base = delegated_base(&mount.path, membership);
            let available = fs::read_to_string(base.join("cgroup.controllers")).unwrap_or_default();
            let is_available = |controller: Controller| {
                controller.comes_with_version_2()
                    || available.split_ascii_whitespace().any(|name| name == controller.name())
            };
            let controllers: BTreeSet<_> =
                Controller::ALL.into_iter().filter(|c| is_available(*c) && !taken.contains(c)).collect();
            if !controllers.is_empty() && writable(&base) {
                hierarchies.push(Hierarchy { version: Version::V2, base, controllers });
            }
        }
        Self { hierarchies, subtree: format!("stacyvm-{installation_id}") }
    }

    /// Whether this controller can be used.
    pub(crate) fn has(&self, controller: Controller) -> bool {
        self.hierarchies.iter().any(|h| h.controllers.contains(&controller))
    }

    /// Our subtrees, for an operator who wants to look.
    pub(crate) fn subtrees(&self) -> Vec<PathBuf> {
        self.hierarchies.iter().map(|h| h.base.join(&self.subtree)).collect()
    }

    /// The cgroups that a sandbox with these limits needs, not made yet. Controllers without a limit are left out, and
    /// so are limits that this host cannot give (health says which).
    pub(crate) fn plan(&self, name: &str, limits: Limits) -> SandboxCgroups {
        let mut wanted = BTreeSet::from([Controller::Cpuacct]);
        if limits.memory_mb != 0 {
            wanted.insert(Controller::Memory);
        }
        if limits.vcpus != 0 {
            wanted.insert(Controller::Cpu);
        }
        if limits.pids != 0 {
            wanted.insert(Controller::Pids);
        }
        self.groups(name, |h| h.controllers.intersection(&wanted).copied().collect())
    }

    /// Where a sandbox of this name with these cgroups is frozen; `None` on a host that cannot.
    pub(crate) fn freezer(&self, name: &str, cgroups: &SandboxCgroups) -> Option<Freezer> {
        let hierarchy = self.hierarchies.iter().find(|h| h.controllers.contains(&Controller::Freezer))?;
        let path = hierarchy.base.join(&self.subtree).join(name);
        let member = cgroups.0.iter().any(|group| group.path == path);
        Some(Freezer { version: hierarchy.version, path, member })
    }

    /// Every cgroup that a sandbox of this name could have, whatever its limits were and whether it was ever paused.
    pub(crate) fn all(&self, name: &str) -> SandboxCgroups {
        self.groups(name, |h| h.controllers.clone())
    }

    fn groups(&self, name: &str, controllers: impl Fn(&Hierarchy) -> BTreeSet<Controller>) -> SandboxCgroups {
        let groups = self.hierarchies.iter().filter_map(|hierarchy| {
            let controllers = controllers(hierarchy);
            let path = hierarchy.base.join(&self.subtree).join(name);
            (!controllers.is_empty()).then_some(Group { version: hierarchy.version, path, controllers })
        });
        SandboxCgroups(groups.collect())
    }

    /// Makes the way down to a sandbox's own groups: our subtree and, on version 2, the controllers in it.
    pub(crate) fn prepare(&self, groups: &SandboxCgroups) -> Result<(), Failure> {
        for hierarchy in &self.hierarchies {
            let subtree = hierarchy.base.join(&self.subtree);
            if !groups.0.iter().any(|g| g.path.parent() == Some(subtree.as_path())) {
                continue;
            }
            make(&subtree)?;
            if hierarchy.version == Version::V2 {
                let wanted: BTreeSet<_> = groups.0.iter().flat_map(|g| &g.controllers).copied().collect();
                let wanted = wanted.intersection(&hierarchy.controllers).copied().collect();
                enable(&hierarchy.base, &wanted, true)?;
                enable(&subtree, &wanted, false)?;
            }
        }
        Ok(())
    }

    /// Removes our subtrees if no sandbox is left in them.
    pub(crate) fn remove_if_empty(&self) {
        for subtree in self.subtrees() {
            // Refused while a sandbox has a group in it, which is what makes this safe at any time.
            let _ = fs::remove_dir(subtree);
        }
    }
}

/// Makes a cgroup unless it exists.
pub(super) fn make(path: &Path) -> Result<(), Failure> {
    match fs::create_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result.doing(|| format!("make the cgroup {}", path.display())),
    }
}

/// Hands controllers down to the children of a version 2 cgroup; counting needs none. With `evict`, processes in it, which forbid that, are
/// moved into a child first: it is ours alone, by delegation.
pub(super) fn enable(path: &Path, controllers: &BTreeSet<Controller>, evict: bool) -> Result<(), Failure> {
    let control = path.join("cgroup.subtree_control");
    if controllers.iter().all(|c| c.comes_with_version_2()) {
        return Ok(());
    }
    let doing = || format!("enable controllers in {}", path.display());
    let enabled = fs::read_to_string(&control).doing(doing)?;
    let missing: Vec<_> = controllers
        .iter()
        .filter(|c| !c.comes_with_version_2() && !enabled.split_ascii_whitespace().any(|e| e == c.name()))
        .map(|c| format!("+{}", c.name()))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.join(" ");
    match write(&control, &missing) {
        Err(e) if evict && e.raw_os_error() == Some(libc::EBUSY) => {
            let leaf = path.join("server");
            make(&leaf)?;
            for pid in pids(&path.join("cgroup.procs")).doing(doing)? {
                // A process that ended meanwhile needs no move.
                let _ = write(&leaf.join("cgroup.procs"), &pid.to_string());
            }
            write(&control, &missing).doing(doing)
        }
        result => result.doing(doing),
    }
}

/// Writes a control file. Never creates one: what the kernel does not offer is an error.
pub(super) fn write(path: &Path, value: &str) -> io::Result<()> {
    io::Write::write_all(&mut fs::OpenOptions::new().write(true).open(path)?, value.as_bytes())
}

/// Numbers in a `cgroup.procs` file. Processes of another pid namespace show as 0 and are left out.
pub(super) fn pids(path: &Path) -> io::Result<Vec<i32>> {
    let text = fs::read_to_string(path)?;
    Ok(text.split_ascii_whitespace().filter_map(|p| p.parse().ok()).filter(|p| *p > 0).collect())
}

/// The nearest cgroup at or above ours that a service manager handed over to us (it marks them), else the root: a
/// manager's own groups are not to be meddled with.
fn delegated_base(mount: &Path, membership: &str) -> PathBuf {
    let own = membership.lines().find_map(|l| l.strip_prefix("0::/")).unwrap_or_default();
    let own = mount.join(own);
    own.ancestors()
        .take_while(|p| p.starts_with(mount) && *p != mount)
        .find(|p| ["trusted.delegate", "user.delegate"].iter().any(|name| is_marked(p, name)))
        .unwrap_or(mount)
        .to_owned()
}

fn is_marked(path: &Path, name: &str) -> bool {
    let mut value = [0_u8; 8];
    matches!(rustix::fs::getxattr(path, name, &mut value), Ok(length) if &value[..length] == b"1")
        && fs::metadata(path).is_ok_and(|m| m.uid() == rustix::process::geteuid().as_raw())
}

/// One line of `/proc/self/mountinfo`.
struct Mount<'a> {
    path: PathBuf,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let path = left.split(' ').nth(4)?;
        let mut right = right.split(' ');
        let kind = right.next()?;
        let options = right.nth(1)?;
        // Blanks in paths are escaped; no hierarchy is mounted at one in practice.
        (!path.contains('\\')).then(|| Self { path: path.into(), kind, options })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "\
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    fn limits(memory_mb: u32, vcpus: u32, pids: u32) -> Limits {
        Limits { memory_mb, vcpus, pids }
    }

    #[test]
    fn version_1_hierarchies_are_found_by_controller() {
        let host = Host::from_text(V1, "0::/", "i1", |_| true);
        assert!(Controller::ALL.into_iter().all(|c| host.has(c)));
        let paths: Vec<_> = host.plan("sb-1", limits(1, 1, 1)).0.into_iter().map(|g| g.path).collect();
        assert_eq!(
            paths,
            ["memory", "cpu,cpuacct", "pids"]
                .map(|c| PathBuf::from(format!("/sys/fs/cgroup/{c}/stacyvm-i1/sb-1")))
        );
    }

    #[test]
    fn beyond_counting_only_what_is_limited_gets_a_cgroup() {
        let host = Host::from_text(V1, "0::/", "i1", |_| true);
        let controllers = |limits| -> Vec<Controller> {
            host.plan("sb-1", limits).0.into_iter().flat_map(|g| g.controllers).collect()
        };
        assert_eq!(controllers(limits(0, 0, 0)), [Controller::Cpuacct]);
        assert_eq!(controllers(limits(0, 0, 5)), [Controller::Cpuacct, Controller::Pids]);
        assert_eq!(host.all("sb-1").0.len(), 4);
    }

    #[test]
    fn a_sandbox_joins_the_freezer_of_version_1_later_and_is_in_that_of_version_2() {
        let host = Host::from_text(V1, "0::/", "i1", |_| true);
        let freezer = host.freezer("sb-1", &host.plan("sb-1", limits(1, 1, 1))).unwrap();
        let path = PathBuf::from("/sys/fs/cgroup/freezer/stacyvm-i1/sb-1");
        assert_eq!(freezer, Freezer { version: Version::V1, path, member: false });

        let tmp = tempfile::tempdir().unwrap();
        let mounts = format!("41 31 0:38 / {} rw - cgroup2 cgroup2 rw", tmp.path().display());
        let host = Host::from_text(&mounts, "0::/", "i1", |_| true);
        let freezer = host.freezer("sb-1", &host.plan("sb-1", limits(0, 0, 0))).unwrap();
        let path = tmp.path().join("stacyvm-i1/sb-1");
        assert_eq!(freezer, Freezer { version: Version::V2, path, member: true });

        // Mounted together with one that limits: not to be joined, which would be to leave the limit.
        let mounts = "32 31 0:29 / /sys/fs/cgroup/all rw - cgroup cgroup rw,cpu,cpuacct,freezer";
        let host = Host::from_text(mounts, "", "i1", |_| true);
        assert!(host.freezer("sb-1", &host.plan("sb-1", limits(0, 1, 0))).unwrap().member);
        assert!(Host::default().freezer("sb-1", &SandboxCgroups::default()).is_none());
    }

    #[test]
    fn read_only_hierarchies_are_not_used() {
        let host = Host::from_text(V1, "0::/", "i1", |path| !path.ends_with("memory"));
        assert!(!host.has(Controller::Memory) && host.has(Controller::Pids));
    }

    #[test]
    fn installations_do_not_share_a_subtree() {
        let (a, b) = (Host::from_text(V1, "", "a", |_| true), Host::from_text(V1, "", "b", |_| true));
        assert!(a.subtrees().iter().all(|path| !b.subtrees().contains(path)));
    }

    #[test]
    fn version_2_uses_the_controllers_that_are_there() {
        let tmp = tempfile::tempdir().unwrap();
        fs::write(tmp.path().join("cgroup.controllers"), "cpuset cpu io memory\n").unwrap();
        let mounts = format!("41 31 0:38 / {} rw - cgroup2 cgroup2 rw", tmp.path().display());
        let host = Host::from_text(&mounts, "0::/user.slice/x\n", "i1", |_| true);
        assert!(host.has(Controller::Memory) && host.has(Controller::Cpu));
        assert!(!host.has(Controller::Pids) && host.has(Controller::Cpuacct));
        assert_eq!(host.subtrees(), [tmp.path().join("stacyvm-i1")]);
    }

    #[test]
    fn version_2_controllers_are_handed_down() {
        let tmp = tempfile::tempdir().unwrap();
        fs::write(tmp.path().join("cgroup.controllers"), "memory pids").unwrap();
        fs::write(tmp.path().join("cgroup.subtree_control"), "pids\n").unwrap();
        let subtree = tmp.path().join("stacyvm-i1");
        fs::create_dir(&subtree).unwrap();
        fs::write(subtree.join("cgroup.subtree_control"), "").unwrap();
        let mounts = format!("41 31 0:38 / {} rw - cgroup2 cgroup2 rw", tmp.path().display());
        let host = Host::from_text(&mounts, "", "i1", |_| true);
        let read = |path: &Path| fs::read_to_string(path.join("cgroup.subtree_control")).unwrap();
        host.prepare(&host.plan("sb-1", limits(0, 0, 0))).unwrap();
        assert_eq!((read(tmp.path()).as_str(), read(&subtree).as_str()), ("pids\n", ""));
        host.prepare(&host.plan("sb-1", limits(1, 0, 1))).unwrap();
        assert!(read(tmp.path()).starts_with("+memory"));
        assert_eq!(read(&subtree), "+memory +pids");
    }

    #[test]
    fn a_host_without_cgroups_plans_none() {
        let host = Host::from_text("", "", "i1", |_| true);
        assert!(host.plan("sb-1", limits(1, 1, 1)).0.is_empty());
        assert!(Controller::ALL.into_iter().all(|c| !host.has(c)));
    }

    #[test]
    fn garbage_in_mountinfo_is_skipped() {
        let host = Host::from_text("\n - \nx - y\na b c d /e - cgroup\n", "0::/", "i1", |_| true);
        assert_eq!(host.subtrees(), Vec::<PathBuf>::new());
    }
}
