//! The docker provider's keys with the types that it wants.

use crate::{
    problem::{Problem, excerpt},
    validate::place,
    value::{Origin, Settings},
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Processes of a container where the key says none.
const PIDS: u32 = 256;

/// The docker provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Docker {
    /// It is on.
    pub enabled: bool,
    /// Somebody said that it is on, or where the daemon is: it is there even while no daemon is.
    pub wanted: bool,
    /// URL or path of the daemon; `None`: as the docker command finds it.
    pub socket: Option<String>,
    /// Runtime of sandboxes that name none.
    pub runtime: String,
    /// Runtimes that sandboxes may name.
    pub allowed_runtimes: Vec<String>,
    /// Network: `none`, `internet`, or the name of one.
    pub network_mode: String,
    /// What `internet` blocks beside the usual.
    pub blocked_addresses: Vec<String>,
    /// Resolvers.
    pub dns: Vec<String>,
    /// `default`, `unconfined`, or the path of a profile.
    pub seccomp_profile: String,
    /// The image cannot be written to.
    pub read_only_rootfs: bool,
    /// Uid and gid of the sandbox user.
    pub user: Option<(u32, u32)>,
    /// Most processes of a sandbox.
    pub pids_limit: u32,
    /// Paths with tmpfs mount options.
    pub tmpfs: BTreeMap<String, String>,
    /// Names with soft and hard limit.
    pub ulimits: Vec<(String, i64, i64)>,
    /// Size of the writable layer in MiB; 0: no limit.
    pub disk_size_mb: u32,
    /// `always`, `missing` or `never`.
    pub pull_policy: String,
    /// Platform of images.
    pub platform: Option<String>,
    /// Credentials of registries.
    pub auth_file: Option<PathBuf>,
}

impl Docker {
    /// From settings that passed the checks.
    pub(crate) fn new(settings: &Settings, cwd: &Path) -> Self {
        let text = |name: &str| settings.text(name).trim().to_owned();
        let optional = |name: &str| Some(text(name)).filter(|text| !text.is_empty());
        let said = |name: &str| settings.get(name).is_some_and(|setting| setting.origin != Origin::Default);
        let profile = text("providers.docker.seccomp_profile");
        let is_word = matches!(profile.as_str(), "" | "default" | "unconfined");
        Self {
            enabled: settings.bool("providers.docker.enabled"),
            wanted: said("providers.docker.enabled")
                || said("providers.docker.socket")
                || settings.text("providers.default") == "docker",
            socket: optional("providers.docker.socket"),
            runtime: optional("providers.docker.runtime").unwrap_or_else(|| "runc".to_owned()),
            allowed_runtimes: settings.list("providers.docker.allowed_runtimes"),
            network_mode: text("providers.docker.network_mode"),
            blocked_addresses: settings.list("providers.docker.blocked_addresses"),
            dns: settings.list("providers.docker.dns"),
            seccomp_profile: if is_word { profile } else { cwd.join(profile).to_string_lossy().into_owned() },
            read_only_rootfs: settings.bool("providers.docker.read_only_rootfs"),
            user: user(settings.text("providers.docker.user")),
            pids_limit: u32::try_from(settings.int("providers.docker.pids_limit"))
                .ok()
                .filter(|n| *n > 0)
                .unwrap_or(PIDS),
            tmpfs: settings.map("providers.docker.tmpfs"),
            ulimits: settings
                .map("providers.docker.ulimits")
                .into_iter()
                .filter_map(|(name, limit)| ulimit(&limit).map(|(soft, hard)| (name, soft, hard)))
                .collect(),
            disk_size_mb: u32::try_from(settings.int("providers.docker.disk_size_mb")).unwrap_or(0),
            pull_policy: text("providers.docker.pull_policy"),
            platform: optional("providers.docker.platform"),
            auth_file: optional("providers.docker.auth_file").map(|path| cwd.join(path)),
        }
    }
}

/// `uid` or `uid:gid` of somebody who is not root.
fn user(text: &str) -> Option<(u32, u32)> {
    let (uid, gid) = text.trim().split_once(':').unwrap_or((text.trim(), text.trim()));
    let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
    // The highest number means "leave it as it is" to the kernel.
    (uid != 0 && uid != u32::MAX && gid != u32::MAX).then_some((uid, gid))
}

/// `soft:hard`, or one number for both; -1: no limit.
fn ulimit(text: &str) -> Option<(i64, i64)> {
    let (soft, hard) = text.trim().split_once(':').unwrap_or((text.trim(), text.trim()));
    let (soft, hard) = (soft.parse().ok()?, hard.parse().ok()?);
    (soft >= -1 && hard >= -1 && (hard == -1 || soft <= hard && soft != -1)).then_some((soft, hard))
}

/// Checks beyond the spelling of a value.
pub(crate) fn check(settings: &Settings, problems: &mut Vec<Problem>, warnings: &mut Vec<Problem>) {
    let mut problem = |name: &str, what: String, fix: &str| {
        problems.push(Problem::new(place(settings, name), format!("{name} {what}"), fix));
    };
    for (name, limit) in settings.map("providers.docker.ulimits") {
        if ulimit(&limit).is_none() {
            let what = format!("gives {} the limit \"{}\"", excerpt(&name), excerpt(&limit));
            problem("providers.docker.ulimits", what, "write soft:hard, as in nofile: 1024:65536");
        }
    }
    for path in settings.map("providers.docker.tmpfs").into_keys() {
        if !path.starts_with('/') || path.starts_with("/.stacyvm") {
            let what = format!("cannot mount \"{}\"", excerpt(&path));
            problem("providers.docker.tmpfs", what, "use an absolute path outside /.stacyvm");
        }
    }
    let prefixes = [
        "providers.docker.blocked_addresses",
        "providers.native.blocked_addresses",
        "providers.native.address_pool",
    ];
    for name in prefixes {
        for prefix in settings.list(name).into_iter().filter(|prefix| !is_prefix(prefix)) {
            let what = format!("holds \"{}\", which is no address", excerpt(&prefix));
            problem(name, what, "write 203.0.113.7 or 2001:db8::/32");
        }
    }
    for name in ["providers.docker.dns", "providers.native.dns"] {
        let is_address = |text: &String| text.parse::<std::net::IpAddr>().is_ok();
        for resolver in settings.list(name).into_iter().filter(|text| !is_address(text)) {
            let what = format!("holds \"{}\", which is no address", excerpt(&resolver));
            problem(name, what, "write the address of a resolver, as in 1.1.1.1");
        }
    }
    let text = settings.text("providers.docker.user");
    if !text.trim().is_empty() && user(text).is_none() {
        let name = "providers.docker.user";
        let what = format!(
            "{name} is \"{}\": processes run as uid 1000 unless they ask for another user",
            excerpt(text)
        );
        warnings.push(Problem::new(
            place(settings, name),
            what,
            "write a number other than 0, as in 1000:1000",
        ));
    }
}

fn is_prefix(text: &str) -> bool {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, bits.parse::<u8>().ok()),
        None => (text, Some(0)),
    };
    match (address.parse(), bits) {
        (Ok(std::net::IpAddr::V4(_)), Some(bits)) => bits <= 32,
        (Ok(std::net::IpAddr::V6(_)), Some(bits)) => bits <= 128,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_numbers_and_not_root() {
        assert_eq!(user("1000:1001"), Some((1000, 1001)));
        assert_eq!(user(" 7 "), Some((7, 7)));
        for other in ["4294967295", "7:4294967295", "", "0", "0:0", "root", "node", "1:", ":1", "-1"] {
            assert_eq!(user(other), None, "{other}");
        }
    }

    #[test]
    fn limits_have_a_soft_and_a_hard_side() {
        assert_eq!(ulimit("1024:65536"), Some((1024, 65536)));
        assert_eq!(ulimit("-1"), Some((-1, -1)));
        assert_eq!(ulimit("64"), Some((64, 64)));
        for bad in ["", "x", "2:1", "-2", "-1:5"] {
            assert_eq!(ulimit(bad), None, "{bad}");
        }
    }

    #[test]
    fn addresses_with_and_without_a_prefix() {
        for good in ["203.0.113.7", "10.0.0.0/8", "2001:db8::/32", "::1"] {
            assert!(is_prefix(good), "{good}");
        }
        for bad in ["", "host", "10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/"] {
            assert!(!is_prefix(bad), "{bad}");
        }
    }
}
