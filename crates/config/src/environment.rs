//! `STACYVM_*` variables: every key has one; the rest of the prefix is either known to mean something else or a mistake.

use crate::{
    key::Key,
    problem::{Place, Problem, closest, excerpt},
    table::KEYS,
    value::{self, Value},
};
use std::{collections::HashMap, ffi::OsString};

const PREFIX: &str = "STACYVM_";

/// Variables with this prefix that are not keys: of the client, of tests and of scripts.
const OTHERS: &[&str] = &[
    "STACYVM_SERVER",
    "STACYVM_API_KEY",
    "STACYVM_ADMIN_API_KEY",
    "STACYVM_FAULT",
    "STACYVM_URL",
    "STACYVM_VERSION",
    "STACYVM_INSTALL_DIR",
    "STACYVM_REQUIRE_SIGNATURES",
    "STACYVM_VERIFY_ONLY",
    "STACYVM_VERIFY_DIR",
    "STACYVM_REPO",
    "STACYVM_IMAGE",
    "STACYVM_MEM",
    "STACYVM_HOST_PORT",
    "STACYVM_TRAEFIK_HOST_PORT",
    "STACYVM_DOCKER_SOCKET",
    "STACYVM_PREVIEW_DOMAIN",
    "STACYVM_LOG_LEVEL",
    "STACYVM_DOCKER_INTEGRATION",
    "STACYVM_FIRECRACKER_INTEGRATION",
    "STACYVM_FIRECRACKER_KERNEL",
    "STACYVM_PROOT_ROOTFS",
    "STACYVM_PROOT_WORKSPACE_BASE",
    "STACYVM_POSTGRES_TEST_DSN",
    "STACYVM_RUN_CLUSTER_CONFORMANCE",
    "STACYVM_POST_RELEASE_VERSION",
    "STACYVM_RUNTIME_CERTIFY",
    "STACYVM_VALIDATE_INSTALLER",
    "STACYVM_WORKER_BOOTSTRAP_ADMIN_KEY",
    "STACYVM_WORKER_SIGNING_KEY_FILE",
    "STACYVM_OLD_WORKER_SIGNING_KEY_FILE",
];

/// Beginnings of families of such variables.
const FAMILIES: &[&str] = &[
    "STACYVM_SMOKE_",
    "STACYVM_REMOTE_SMOKE_",
    "STACYVM_TEST_",
    "STACYVM_COSIGN_",
    "STACYVM_WORKER_IDENTITY_",
];

/// What variables set, and what is wrong with them.
#[derive(Debug, Default)]
pub(crate) struct EnvironmentContent {
    pub(crate) values: Vec<(&'static Key, Value, String)>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) warnings: Vec<Problem>,
}

/// Reads the variables of ours. A variable that is empty counts as not set.
pub(crate) fn read(variables: &[(OsString, OsString)]) -> EnvironmentContent {
    let keys: HashMap<String, &'static Key> = KEYS.iter().map(|key| (key.variable(), key)).collect();
    let mut out = EnvironmentContent::default();
    for (name, text) in variables {
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
        let place = || Place::Variable(excerpt(name));
        let Some(key) = keys.get(name).copied() else {
            if !OTHERS.contains(&name) && !FAMILIES.iter().any(|family| name.starts_with(family)) {
                let known = keys.keys().map(String::as_str).chain(OTHERS.iter().copied());
                let fix = closest(name, known).map_or_else(
                    || "unset it; `stacyvm config reference` lists every variable".to_owned(),
                    |name| format!("did you mean {name}?"),
                );
                out.warnings.push(Problem::new(place(), "unknown variable", fix));
            }
            continue;
        };
        let Some(text) = text.to_str() else {
            out.problems.push(Problem::new(
                place(),
                "not UTF-8 text",
                format!("use {}", key.kind.describe()),
            ));
            continue;
        };
        if text.is_empty() {
            continue;
        }
        match value::from_text(key.kind, text) {
            Ok(value) => out.values.push((key, value, name.to_owned())),
            Err(mismatch) => {
                let what = if key.secret() { "not a value that it takes".to_owned() } else { mismatch.what };
                out.problems.push(Problem::new(place(), what, mismatch.fix));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(variables: &[(&str, &str)]) -> EnvironmentContent {
        let variables: Vec<_> =
            variables.iter().map(|(n, v)| (OsString::from(n), OsString::from(v))).collect();
        read(&variables)
    }

    #[test]
    fn every_key_has_a_variable_even_maps() {
        let content = content(&[
            ("STACYVM_PROVIDERS_DOCKER_NETWORK_MODE", "none"),
            ("STACYVM_AUTH_WORKER_TOKENS", "Worker-A=1;b=2"),
            ("STACYVM_DATA_DIR", "/d"),
            ("STACYVM_LOGGING_LEVEL", ""),
            ("PATH", "/bin"),
        ]);
        let names: Vec<_> = content.values.iter().map(|(key, ..)| key.name).collect();
        assert_eq!(names, ["providers.docker.network_mode", "auth.worker_tokens", "data_dir"]);
        assert!(content.problems.is_empty() && content.warnings.is_empty());
    }

    #[test]
    fn mistakes_are_named() {
        let content = content(&[
            ("STACYVM_SERVER_PROT", "1"),
            ("STACYVM_SERVER_PORT", "x"),
            ("STACYVM_SERVER", "http://a"),
            ("STACYVM_SMOKE_URL", "http://a"),
        ]);
        assert_eq!(
            content.warnings[0].to_string(),
            "STACYVM_SERVER_PROT: unknown variable\n  fix: did you mean STACYVM_SERVER_PORT?"
        );
        assert_eq!((content.warnings.len(), content.problems.len()), (1, 1));
    }

    #[test]
    fn no_other_variable_is_a_key() {
        for name in OTHERS {
            assert!(!KEYS.iter().any(|key| key.variable() == *name), "{name}");
        }
    }

    #[test]
    #[cfg(unix)]
    fn bytes_that_are_no_text() {
        use std::os::unix::ffi::OsStringExt;
        let variables = [(OsString::from("STACYVM_DATA_DIR"), OsString::from_vec(vec![0xff]))];
        assert_eq!(read(&variables).problems.len(), 1);
    }
}
