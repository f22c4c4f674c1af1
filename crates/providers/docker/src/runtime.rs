//! What follows from the runtime that isolates: what it calls itself, what it can do, what it needs.

use bollard::models::{Runtime as Registered, SystemInfo};
use std::collections::HashMap;

/// The families of runtimes that differ in ways that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// Containers on the host's kernel: runc, crun, youki.
    Container,
    /// gVisor: a kernel of its own in a process.
    Gvisor,
    /// Kata Containers: a virtual machine for each.
    Kata,
}

impl Family {
    /// By the name, and if the daemon is known, by the program behind it.
    pub(crate) fn of(name: &str, info: Option<&SystemInfo>) -> Self {
        let program =
            info.and_then(|info| registered(info).get(name).and_then(|runtime| runtime.path.clone()));
        // A second name for another program is what the program is.
        let text = program.filter(|path| !path.is_empty()).unwrap_or_else(|| name.to_owned());
        let text = text.rsplit('/').next().unwrap_or_default().to_lowercase();
        if text.contains("runsc") || text.contains("gvisor") {
            Self::Gvisor
        } else if text.contains("kata") {
            Self::Kata
        } else {
            Self::Container
        }
    }

    /// The word for it in the API.
    pub(crate) fn isolation(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Gvisor => "userspace_kernel",
            Self::Kata => "microvm",
        }
    }

    /// Processes of the sandbox are processes of the host, counted by its cgroups.
    pub(crate) fn shares_kernel(self) -> bool {
        self == Self::Container
    }
}

/// Runtimes that the daemon has.
pub(crate) fn registered(info: &SystemInfo) -> &HashMap<String, Registered> {
    static NONE: std::sync::OnceLock<HashMap<String, Registered>> = std::sync::OnceLock::new();
    info.runtimes.as_ref().unwrap_or_else(|| NONE.get_or_init(HashMap::new))
}

/// Why `name` cannot be used with this daemon, if so.
pub(crate) fn missing(name: &str, info: &SystemInfo) -> Option<String> {
    let known = registered(info);
    // A containerd shim needs no registration: its name is that of its program.
    if known.contains_key(name) || name.starts_with("io.containerd.") {
        return None;
    }
    let mut names: Vec<_> = known.keys().map(String::as_str).collect();
    names.sort_unstable();
    Some(format!(
        "the docker daemon has no runtime {name} (it has {}): register it under \"runtimes\" in the daemon's daemon.json and restart the daemon, or set providers.docker.runtime to one that it has",
        names.join(", ")
    ))
}

/// Whether root of a container is nobody on the host.
pub(crate) fn remaps_users(info: &SystemInfo) -> bool {
    let options = info.security_options.iter().flatten();
    options.into_iter().any(|option| option.contains("name=userns") || option.contains("name=rootless"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(pairs: &[(&str, &str)]) -> SystemInfo {
        let runtime = |path: &str| Registered { path: Some(path.to_owned()), ..Registered::default() };
        let runtimes = pairs.iter().map(|(name, path)| ((*name).to_owned(), runtime(path))).collect();
        SystemInfo { runtimes: Some(runtimes), ..SystemInfo::default() }
    }

    #[test]
    fn a_runtime_is_what_its_program_is() {
        let info =
            info(&[("runc", "runc"), ("strict", "/usr/local/bin/runsc"), ("kata-runtime", "/usr/bin/runc")]);
        assert_eq!(Family::of("strict", Some(&info)), Family::Gvisor);
        assert_eq!(Family::of("kata-runtime", Some(&info)), Family::Container);
        assert_eq!(Family::of("kata-qemu", None), Family::Kata);
        assert_eq!(Family::of("runsc", None), Family::Gvisor);
        assert_eq!(Family::of("io.containerd.kata.v2", Some(&info)), Family::Kata);
        assert_eq!(Family::of("crun", None), Family::Container);
    }

    #[test]
    fn a_missing_runtime_names_the_fix() {
        let info = info(&[("runc", "runc"), ("a", "b")]);
        assert_eq!(missing("runc", &info), None);
        let problem = missing("runsc", &info).unwrap();
        assert!(problem.contains("a, runc") && problem.contains("daemon.json"), "{problem}");
    }
}
