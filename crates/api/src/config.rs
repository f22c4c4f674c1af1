//! What an operator decides about the HTTP face.

use std::{fmt, path::PathBuf, time::Duration};

/// Settings of the API.
#[derive(Clone)]
pub struct ApiConfig {
    /// Key for ordinary routes; `None` or empty: none. Without any key everybody who reaches the listener is served, so
    /// `Host`, `Origin` and content types are checked instead.
    pub api_key: Option<String>,
    /// Key for all routes; `None` or empty: none.
    pub admin_api_key: Option<String>,
    /// With an API key and no admin key, the API key opens the admin routes.
    pub admin_fallback_enabled: bool,
    /// Origins that browsers may call from; `*` or empty: all, as long as a key is configured. Without a key only the
    /// origins named here.
    pub cors_allowed_origins: Vec<String>,
    /// Names besides `localhost`, 127.0.0.0/8 and `::1` under which this server is called when no key is configured.
    pub allowed_hosts: Vec<String>,
    /// The listener is on loopback only. If not, and no key is configured (which takes an explicit opt-in elsewhere),
    /// any IP address is accepted in `Host`.
    pub loopback: bool,
    /// Version in health answers.
    pub version: String,
    /// Where the installation keeps its state; `/system/stats` reports how full its filesystem is.
    pub data_dir: PathBuf,
    /// Limits of request bodies and streams.
    pub limits: BodyLimits,
}

/// Limits of request bodies and streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BodyLimits {
    /// Largest JSON body, in bytes.
    pub json: usize,
    /// Largest JSON body of a file write, in bytes.
    pub file_json: usize,
    /// Largest body of a stdin write, in bytes.
    pub stdin: usize,
    /// Largest raw upload, in bytes; `None`: as large as the sandbox takes.
    pub upload: Option<u64>,
    /// Longest silence within a body.
    pub idle: Duration,
    /// Longest time for a body that is held in memory.
    pub buffered: Duration,
    /// Longest silence on a stream: a sign of life is sent then.
    pub heartbeat: Duration,
}

impl Default for BodyLimits {
    fn default() -> Self {
        Self {
            json: 2 << 20,
            file_json: 64 << 20,
            stdin: 1 << 20,
            upload: None,
            idle: Duration::from_secs(300),
            buffered: Duration::from_secs(300),
            heartbeat: Duration::from_secs(15),
        }
    }
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            api_key: None,
            admin_api_key: None,
            admin_fallback_enabled: true,
            cors_allowed_origins: vec!["*".into()],
            allowed_hosts: Vec::new(),
            loopback: true,
            version: env!("CARGO_PKG_VERSION").into(),
            data_dir: PathBuf::from("/"),
            limits: BodyLimits::default(),
        }
    }
}

impl ApiConfig {
    /// At least one key is configured.
    pub fn has_key(&self) -> bool {
        [&self.api_key, &self.admin_api_key].into_iter().flatten().any(|key| !key.is_empty())
    }
}

impl ApiConfig {
    /// Whether pages of `origin` may read what is answered to `host`: pages of ours, and those that are named. Without a key
    /// a `*` names nobody.
    pub(crate) fn may_read(&self, origin: &str, host: Option<&str>) -> bool {
        let named = |name: &String| name.trim().eq_ignore_ascii_case(origin);
        let all =
            self.cors_allowed_origins.is_empty() || self.cors_allowed_origins.iter().any(|o| o.trim() == "*");
        let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        (all && self.has_key())
            || self.cors_allowed_origins.iter().any(named)
            || authority.zip(host).is_some_and(|(authority, host)| authority.eq_ignore_ascii_case(host))
    }
}

impl fmt::Debug for ApiConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = |key: &Option<String>| if key.is_some() { "(set)" } else { "(none)" };
        f.debug_struct("ApiConfig")
            .field("api_key", &set(&self.api_key))
            .field("admin_api_key", &set(&self.admin_api_key))
            .field("admin_fallback_enabled", &self.admin_fallback_enabled)
            .field("cors_allowed_origins", &self.cors_allowed_origins)
            .field("allowed_hosts", &self.allowed_hosts)
            .field("loopback", &self.loopback)
            .field("version", &self.version)
            .field("data_dir", &self.data_dir)
            .field("limits", &self.limits)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_not_printed() {
        let config = ApiConfig { api_key: Some("hunter2".into()), ..ApiConfig::default() };
        assert!(config.has_key());
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn an_empty_key_is_no_key() {
        assert!(!ApiConfig { api_key: Some(String::new()), ..ApiConfig::default() }.has_key());
    }
}
