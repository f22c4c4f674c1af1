//! Checks that concern more than the spelling of one value.

use crate::{
    docker, images,
    problem::{Place, Problem, closest, excerpt},
    typed::Config,
    value::Settings,
};
use std::{net::IpAddr, ops::RangeInclusive, time::Duration};

/// Providers of this version, in the order in which `auto` tries them.
pub(crate) const PROVIDERS: &[&str] = &["docker", "native", "mock"];

/// What `server.stream_heartbeat` may be.
const HEARTBEAT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(30);

/// A key is configured, inline or by file.
pub(crate) fn has_credentials(settings: &Settings) -> bool {
    ["auth.api_key", "auth.admin_api_key", "auth.api_key_file", "auth.admin_api_key_file"]
        .iter()
        .any(|name| !settings.text(name).is_empty())
}

pub(crate) fn place(settings: &Settings, name: &str) -> Place {
    settings.get(name).map_or(Place::Nowhere, |setting| setting.origin.place())
}

/// Checks of every command.
pub(crate) fn all(settings: &Settings, problems: &mut Vec<Problem>, warnings: &mut Vec<Problem>) {
    let mut problem = |name: &str, what: String, fix: &str| {
        problems.push(Problem::new(place(settings, name), format!("{name} {what}"), fix));
    };
    for origin in settings.list("server.cors_allowed_origins") {
        if !is_origin(&origin) {
            let what = format!("holds \"{}\", which is no origin", excerpt(&origin));
            problem(
                "server.cors_allowed_origins",
                what,
                "write scheme and host, as in https://app.example.org",
            );
        }
    }
    if !HEARTBEAT.contains(&settings.duration("server.stream_heartbeat")) {
        // Clients give a silent stream up after a minute.
        problem("server.stream_heartbeat", "is out of range".to_owned(), "use 100ms to 30s");
    }
    for directory in settings.list("providers.native.image_dirs") {
        if !directory.starts_with('/') {
            let what = format!("holds \"{}\", which is no absolute path", excerpt(&directory));
            problem("providers.native.image_dirs", what, "write it from / on");
        }
    }
    docker::check(settings, problems, warnings);
    images::check(settings, problems);
    let mut problem = |name: &str, what: String, fix: &str| {
        problems.push(Problem::new(place(settings, name), format!("{name} {what}"), fix));
    };
    let postgres = settings.text("database.driver").starts_with("postgres");
    if postgres && settings.text("database.dsn").trim().is_empty() {
        problem("database.dsn", "is empty".to_owned(), "name the PostgreSQL database");
    }
    if !postgres && settings.text("database.path").trim().is_empty() {
        problem("database.path", "is blank".to_owned(), "name a file, or remove the key");
    }
    for name in ["auth.api_key", "auth.admin_api_key"] {
        if settings.text(name).chars().any(|c| !c.is_ascii_graphic()) {
            let what = "holds a space or a character that no HTTP header carries".to_owned();
            problem(name, what, "use letters, digits and punctuation");
        }
    }

    let mut above = |name: &str, most: &str| {
        let (value, limit) = (settings.duration(name), settings.duration(most));
        if !limit.is_zero() && value > limit {
            let what = format!("{name} is above {most}: requests that name no time are refused");
            warnings.push(Problem::new(place(settings, name), what, format!("lower it, or raise {most}")));
        }
    };
    above("defaults.ttl", "defaults.max_ttl");
    above("defaults.default_exec_timeout", "defaults.max_exec_timeout");
}

/// Checks of the server alone.
pub(crate) fn serve(config: &Config, settings: &Settings) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut problem = |name: &str, what: String, fix: String| {
        problems.push(Problem::new(place(settings, name), what, fix));
    };
    let credentials = has_credentials(settings);
    if config.auth.enabled && !credentials {
        problem(
            "auth.enabled",
            "auth.enabled is true and no key is set".to_owned(),
            "set auth.api_key (STACYVM_AUTH_API_KEY) or auth.api_key_file".to_owned(),
        );
    } else if !credentials && !config.auth.allow_unauthenticated && !is_loopback(&config.server.host) {
        problem(
            "server.host",
            format!("listening on {} without a key lets whoever reaches it run commands", excerpt(&config.server.host)),
            "set auth.api_key (STACYVM_AUTH_API_KEY), listen on 127.0.0.1, or accept it with --insecure-no-auth"
                .to_owned(),
        );
    }
    if settings.text("database.driver").starts_with("postgres") {
        problem(
            "database.driver",
            "this version stores in SQLite only".to_owned(),
            "set database.driver to sqlite".to_owned(),
        );
    }
    if let Some((what, fix)) = provider(config) {
        problem("providers.default", what, fix);
    }
    problems
}

fn provider(config: &Config) -> Option<(String, String)> {
    let enabled = config.providers.enabled();
    let default = config.providers.default.as_str();
    if enabled.is_empty() {
        let fix = "set providers.native.enabled or providers.docker.enabled (or, to try things out, providers.mock.enabled)";
        return Some(("no provider is enabled".to_owned(), fix.to_owned()));
    }
    if default == "auto" || enabled.contains(&default) {
        return None;
    }
    if PROVIDERS.contains(&default) {
        let what = format!("providers.default is {default}, which is not enabled");
        return Some((what, format!("set providers.{default}.enabled, or use {}", enabled.join(", "))));
    }
    let what = format!("providers.default is {}, which this version does not have", excerpt(default));
    let fix = match closest(default, PROVIDERS.iter().copied()) {
        Some(name) => format!("did you mean {name}?"),
        None => format!("use one that is enabled: {}, auto", enabled.join(", ")),
    };
    Some((what, fix))
}

/// The address can be reached from this machine only. A name other than `localhost` may resolve to anything.
pub(crate) fn is_loopback(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// `*`, or scheme and host with nothing behind.
fn is_origin(origin: &str) -> bool {
    if origin.trim().is_empty() || origin == "*" {
        return true;
    }
    let host = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    host.is_some_and(|host| {
        !host.is_empty()
            && !host.starts_with(':')
            && host.chars().all(|c| !c.is_whitespace() && !c.is_control() && !"/?#@\\".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins() {
        for good in ["*", "", "https://a.example", "http://localhost:5173", "http://[::1]:80"] {
            assert!(is_origin(good), "{good}");
        }
        for bad in
            ["a.example", "ftp://a", "https://", "https://a/", "https://a?b", "https://a#b", "https://u@a"]
        {
            assert!(!is_origin(bad), "{bad}");
        }
    }

    #[test]
    fn loopback_in_every_spelling() {
        assert!(is_loopback("::ffff:127.0.0.1") && is_loopback("LOCALHOST"));
        assert!(
            !is_loopback("localhost.example.org") && !is_loopback("") && !is_loopback("127.0.0.1.nip.io")
        );
    }
}
