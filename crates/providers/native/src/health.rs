//! Whether this host can carry native sandboxes, and what it cannot guarantee.

use crate::{
    cgroup::{self, Controller},
    failure::NEEDS_ROOT,
    inner::Inner,
    layout::Layout,
    rights, seccomp,
    spawner::Spawner,
};
use std::sync::atomic::Ordering;

/// Oldest kernel that has every system call that we use.
const KERNEL: (u32, u32) = (5, 12);

/// Why no sandbox can be made here, if none can, as far as the host says without being tried.
pub(crate) fn problem(layout: &Layout) -> Option<String> {
    let needs = |lacking: &str, why: &str| format!("{NEEDS_ROOT}. The server {lacking}, and {why}");
    if let Some(lacking) = rights::lacking() {
        if let Some(why) = no_namespaces_for_users() {
            return Some(needs(lacking, &why));
        }
        if let Some(hidden) =
            hidden_in_proc(&std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
        {
            let why = format!(
                "parts of /proc are hidden from it ({hidden}), so that the kernel lets it mount none: run this container with --security-opt systempaths=unconfined (Kubernetes: procMount: Unmasked), or with the capabilities SYS_ADMIN and NET_ADMIN"
            );
            return Some(needs(lacking, &why));
        }
    }
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    if kernel_version(&release).is_some_and(|version| version < KERNEL) {
        return Some(format!(
            "native needs Linux {}.{} or newer, this is {release}: upgrade the kernel, or use the docker provider",
            KERNEL.0, KERNEL.1
        ));
    }
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let overlay = filesystems.lines().any(|l| l.split_ascii_whitespace().last() == Some("overlay"));
    // The kernel loads the module at the first mount, if it has one.
    if !overlay && !module_exists(&release, "overlay") {
        return Some("native needs overlayfs: run `modprobe overlay`, or a kernel that has it".to_owned());
    }
    if !seccomp::is_available() {
        return Some(
            "native needs filters of system calls: a kernel with CONFIG_SECCOMP_FILTER, and a container that may use them"
                .to_owned(),
        );
    }
    match rustix::fs::access(layout.data_dir(), rustix::fs::Access::WRITE_OK) {
        Ok(()) => None,
        Err(e) => Some(format!(
            "the data directory {} cannot be written ({e}): set data_dir to one that can",
            layout.data_dir().display()
        )),
    }
}

/// What is lost without the rights of root, whatever the host.
const ROOTLESS: [&str; 4] = [
    "whatever gets out of a sandbox has the rights of the server's user, with its groups",
    "what the kernel counts by user (watches, queues, pending signals) is one supply for all sandboxes",
    "a sandbox has one user, to which every file in it belongs; no process may run as another",
    "a process may end what starts and watches processes in its own sandbox, whose exit codes it can make up so",
];

/// Tries whether somebody without the rights of root may make a user namespace, which container engines and security modules
/// forbid in their own ways.
pub(crate) fn tried(spawner: &Spawner) -> Option<String> {
    let lacking = rights::lacking()?;
    let failure = spawner.user_namespace(None).err()?;
    let why = match failure.errno {
        libc::EPERM
            if rustix::process::geteuid().is_root() && failure.doing.starts_with("set the uid_map") =>
        {
            "root without the capability SETFCAP may not have a user namespace: run this container as another user, with --user 1000 (Kubernetes: runAsUser)"
        }
        libc::EPERM | libc::EACCES | libc::ENOSYS => {
            "it may not make a user namespace: run this container with --security-opt seccomp=unconfined (Kubernetes: seccompProfile: Unconfined), or look at the host's security module"
        }
        libc::ENOSPC | libc::EUSERS => {
            "there are too many user namespaces: raise the sysctl user.max_user_namespaces"
        }
        _ => return Some(format!("a user namespace cannot be made: {failure}")),
    };
    Some(format!("{NEEDS_ROOT}. The server {lacking}, and {why}"))
}

/// What covers parts of `/proc`, if anything does. A user namespace may mount a `/proc` of its own only where all of it can
/// be seen; empty directories that are there to be mounted over do not count.
fn hidden_in_proc(mountinfo: &str) -> Option<String> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (place, rest) = line.split_once(" - ")?;
        Some((place.split(' ').nth(4)?, rest.split(' ').next()?))
    });
    let hidden: Vec<_> = mounts
        .filter(|(path, kind)| path.starts_with("/proc/") && !["autofs", "binfmt_misc"].contains(kind))
        .map(|(path, _)| path)
        .take(3)
        .collect();
    (!hidden.is_empty()).then(|| hidden.join(", "))
}

/// Why the kernel lets nobody but root make a user namespace, as far as settings say so.
fn no_namespaces_for_users() -> Option<String> {
    [
        ("user.max_user_namespaces", "0", "a number above 0"),
        ("kernel.unprivileged_userns_clone", "0", "1"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
    ]
    .into_iter()
    .find_map(|(name, closed, open)| {
        let value = std::fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).ok()?;
        (value.trim() == closed)
            .then(|| format!("the sysctl {name} is {closed}, and would have to be {open}"))
    })
}

/// Guarantees that this host cannot give.
pub(crate) fn warnings(inner: &Inner) -> Vec<String> {
    let in_memory = inner.upper_in_memory.load(Ordering::Relaxed);
    let mut warnings = limits_and_files(&inner.layout, &inner.cgroups, in_memory);
    if let Some(lacking) = rights::lacking() {
        warnings.extend(ROOTLESS.map(|lost| format!("the server {lacking}: {lost}")));
    }
    if let Some(why) = inner.user_namespaces.why_not() {
        warnings.push(format!(
            "sandboxes have no user namespace: {why}; root of a sandbox has the number of the host's root, and no process may run as it"
        ));
    }
    let not_mapped = inner.not_mapped();
    if !not_mapped.is_empty() {
        let paths: Vec<_> = not_mapped.iter().map(|p| p.display().to_string()).collect();
        warnings.push(format!(
            "files of {} belong to nobody in sandboxes: their filesystem or this kernel cannot map owners (Linux 5.19 and most filesystems can)",
            paths.join(", ")
        ));
    }
    warnings.extend(inner.network.warnings());
    warnings
}

fn limits_and_files(layout: &Layout, cgroups: &cgroup::Host, upper_in_memory: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    let missing: Vec<_> = [Controller::Memory, Controller::Cpu, Controller::Pids]
        .into_iter()
        .filter(|c| !cgroups.has(*c))
        .map(Controller::name)
        .collect();
    if !missing.is_empty() {
        warnings.push(format!(
            "limits on {} are not enforced: this host offers no writable cgroup controller for them",
            missing.join(", ")
        ));
    }
    if upper_in_memory || is_overlay(layout) {
        warnings.push(format!(
            "files written in sandboxes are kept in memory: the filesystem of {} cannot carry an overlay; put data_dir on a volume",
            layout.data_dir().display()
        ));
    }
    warnings
}

fn is_overlay(layout: &Layout) -> bool {
    const OVERLAYFS_SUPER_MAGIC: u64 = 0x794c_7630;
    rustix::fs::statfs(layout.data_dir()).is_ok_and(|s| s.f_type as u64 == OVERLAYFS_SUPER_MAGIC)
}

fn module_exists(release: &str, name: &str) -> bool {
    let modules = format!("/lib/modules/{release}");
    ["modules.dep", "modules.builtin"].iter().any(|list| {
        std::fs::read_to_string(format!("{modules}/{list}"))
            .is_ok_and(|text| text.contains(&format!("/{name}.ko")))
    })
}

fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_are_compared_as_numbers() {
        assert_eq!(kernel_version("6.18.44-fc"), Some((6, 18)));
        assert_eq!(kernel_version("5.4.0-150-generic"), Some((5, 4)));
        assert_eq!(kernel_version("nonsense"), None);
        assert!(kernel_version("5.4.0") < Some(KERNEL) && kernel_version("5.12.1") >= Some(KERNEL));
    }

    #[test]
    fn what_covers_proc_is_found() {
        let host = "24 1 0:22 / /proc rw,nosuid - proc proc rw\n30 24 0:28 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw";
        assert_eq!(hidden_in_proc(host), None);
        let container = format!(
            "{host}\n31 24 0:22 /bus /proc/bus ro - proc proc rw\n32 24 0:5 / /proc/kcore rw - tmpfs tmpfs rw"
        );
        assert_eq!(hidden_in_proc(&container).unwrap(), "/proc/bus, /proc/kcore");
        assert_eq!(hidden_in_proc("garbage\n\n - x"), None);
    }

    #[test]
    fn what_the_host_cannot_limit_is_said() {
        let layout = Layout::new(std::env::temp_dir());
        let warnings = limits_and_files(&layout, &cgroup::Host::default(), true);
        assert!(warnings.iter().any(|w| w.contains("memory, cpu, pids")), "{warnings:?}");
        assert!(warnings.iter().any(|w| w.contains("volume")), "{warnings:?}");
    }
}
