//! Who may come in: validation, defaults, caps and idempotency keys.
//!
//! The [`Registry`] is the list of all sandboxes that are not destroyed. Checking a cap, taking the slot and claiming the
//! key happen under one short lock that is never held across an await, so two requests cannot both take the last slot.

use crate::{CreateRequest, EngineConfig, Error, Result, SandboxRecord, sandbox::Handle};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use stacyvm_provider::{SandboxId, SandboxSpec};
use stacyvm_types::{Admission, WireDuration};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Most memory, and most disk, that can be asked for, in MiB.
const MEMORY_MB: i64 = 16 << 20;
/// Most processors that can be asked for.
const VCPUS: i64 = 1024;
/// Longest time to live where the configuration has no limit: times beyond it cannot be told from mistakes.
const TTL: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
const IMAGE_BYTES: usize = 1024;
const OWNER_CHARS: usize = 128;
const NAME_BYTES: usize = 64;
const LABELS: usize = 64;
const LABEL_BYTES: usize = 16 << 10;
const KEY_BYTES: usize = 255;

/// A create request that is in order, with its defaults filled in.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) provider: String,
    pub(crate) spec: SandboxSpec,
    pub(crate) ttl: Duration,
    pub(crate) owner: String,
    /// Idempotency key and digest of the request as it was made.
    pub(crate) key: Option<(String, String)>,
}

impl Plan {
    /// # Errors
    /// `BadRequest`; limits are not looked at.
    pub(crate) fn new(request: &CreateRequest, config: &EngineConfig) -> Result<Self> {
        let defaults = &config.defaults;
        let text = |given: &Option<String>, default: &str| match given.as_deref().map(str::trim) {
            None | Some("") => default.to_owned(),
            Some(given) => given.to_owned(),
        };
        let spec = SandboxSpec {
            image: text(&request.image, &defaults.image),
            memory_mb: number("memory_mb", request.memory_mb, defaults.memory_mb, MEMORY_MB)?,
            vcpus: number("vcpus", request.vcpus, defaults.vcpus, VCPUS)?,
            pids: defaults.pids,
            disk_mb: number("disk_size_mb", request.disk_mb, defaults.disk_mb, MEMORY_MB)?,
            ephemeral: request.ephemeral,
            runtime: name("runtime", request.runtime.as_deref())?,
            network: name("network_mode", request.network.as_deref())?,
            metadata: request.metadata.clone(),
        };
        if spec.image.len() > IMAGE_BYTES || spec.image.chars().any(char::is_control) {
            return Err(Error::bad_request("image must be at most 1024 bytes without control characters"));
        }
        let label_bytes: usize = spec.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
        if spec.metadata.len() > LABELS || label_bytes > LABEL_BYTES || spec.metadata.contains_key("") {
            return Err(Error::bad_request("metadata must be at most 64 named entries with 16 KiB in all"));
        }
        let ttl = request.ttl.unwrap_or(defaults.ttl);
        check_ttl(ttl)?;
        let key = request.idempotency_key.as_deref().filter(|key| !key.is_empty());
        if key.is_some_and(|key| key.len() > KEY_BYTES || key.chars().any(char::is_control)) {
            return Err(Error::bad_request(
                "idempotency key must be at most 255 bytes without control characters",
            ));
        }
        Ok(Self {
            provider: text(&request.provider, &defaults.provider),
            spec,
            ttl,
            owner: owner(request.owner.as_deref())?,
            key: key.map(|key| (key.to_owned(), fingerprint(request))),
        })
    }
}

/// # Errors
/// `BadRequest` for what cannot be a name.
fn name(field: &str, given: Option<&str>) -> Result<Option<String>> {
    let Some(name) = given.map(str::trim).filter(|name| !name.is_empty()) else { return Ok(None) };
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if name.len() > NAME_BYTES || !name.bytes().all(legal) {
        return Err(Error::bad_request(format!(
            "{field} must be at most 64 letters, digits, '.', '_' or '-'"
        )));
    }
    Ok(Some(name.to_owned()))
}

fn number(name: &str, given: Option<i64>, default: u32, most: i64) -> Result<u32> {
    match given {
        None | Some(0) => Ok(default),
        Some(given) if (1..=most).contains(&given) => {
            u32::try_from(given).map_err(|_| Error::internal("a limit of the engine is too large"))
        }
        Some(given) => Err(Error::bad_request(format!("{name} must be between 1 and {most}, not {given}"))),
    }
}

/// An owner id as it is stored.
///
/// # Errors
/// `BadRequest`.
pub(crate) fn owner(given: Option<&str>) -> Result<String> {
    let owner = given.unwrap_or_default().trim();
    let bad = |c: char| c.is_whitespace() || c.is_control() || c == '/' || c == '\\';
    if owner.chars().count() > OWNER_CHARS || owner.contains(bad) {
        return Err(Error::bad_request(
            "invalid owner id: at most 128 characters, no white space, control characters, '/' or '\\'",
        ));
    }
    Ok(owner.to_owned())
}

/// # Errors
/// `BadRequest` for a time that cannot be meant.
pub(crate) fn check_ttl(ttl: Duration) -> Result<()> {
    if ttl.is_zero() {
        return Err(Error::bad_request("ttl must be positive"));
    }
    if ttl > TTL {
        return Err(Error::bad_request("ttl must be at most 100 years"));
    }
    Ok(())
}

/// # Errors
/// `ResourceLimit`.
pub(crate) fn check_max_ttl(ttl: Duration, max: Duration) -> Result<()> {
    if max.is_zero() || ttl <= max {
        return Ok(());
    }
    Err(Error::resource_limit(format!(
        "ttl {} is over the limit of {} (defaults.max_ttl)",
        WireDuration::from(ttl),
        WireDuration::from(max)
    )))
}

/// The instant `ttl` from now, as precise as the store keeps it.
pub(crate) fn expiry(ttl: Duration) -> Timestamp {
    now().checked_add(ttl).unwrap_or(Timestamp::MAX)
}

/// This moment, as precise as the store keeps it.
pub(crate) fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
}

/// Digest of a request as it was made: the same request repeated after the defaults changed is still the same.
fn fingerprint(request: &CreateRequest) -> String {
    let mut parts = vec![
        serde_json::json!(request.image),
        serde_json::json!(request.provider),
        serde_json::json!(request.memory_mb),
        serde_json::json!(request.vcpus),
        serde_json::json!(request.ttl.map(|ttl| ttl.as_nanos().to_string())),
        serde_json::json!(request.metadata),
        serde_json::json!(request.ephemeral),
    ];
    // What came later is added only where it is used: digests that are stored stay what they are.
    parts.extend(request.runtime.as_ref().map(|runtime| serde_json::json!({ "runtime": runtime })));
    parts.extend(request.network.as_ref().map(|network| serde_json::json!({ "network": network })));
    parts.extend(request.disk_mb.map(|disk_mb| serde_json::json!({ "disk_mb": disk_mb })));
    let parts = serde_json::Value::from(parts);
    let digest = Sha256::digest(parts.to_string());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// All sandboxes that are not destroyed.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    sandboxes: HashMap<String, Entry>,
    owners: HashMap<String, u64>,
    keys: HashMap<(String, String), Claim>,
    closed: bool,
}

#[derive(Debug)]
struct Entry {
    handle: Handle,
    owner: String,
    key: Option<String>,
}

#[derive(Debug)]
struct Claim {
    id: String,
    fingerprint: String,
}

/// Result of [`Registry::admit`].
pub(crate) enum Admitted {
    /// A slot was taken: the caller starts the task that owns it.
    New,
    /// The same request came before.
    Known(Handle),
}

impl Registry {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a slot for `id` unless the request is known or a cap is reached.
    ///
    /// # Errors
    /// `Conflict` for a key that another request holds, `ResourceLimit`, `Unavailable` once closed.
    pub(crate) fn admit(
        &self,
        plan: &Plan,
        id: &SandboxId,
        handle: Handle,
        config: &EngineConfig,
    ) -> Result<Admitted> {
        let mut table = self.table();
        if table.closed {
            return Err(Error::unavailable("the server is stopping"));
        }
        if let Some((key, fingerprint)) = &plan.key
            && let Some(claim) = table.keys.get(&(plan.owner.clone(), key.clone()))
        {
            if claim.fingerprint != *fingerprint {
                return Err(Error::conflict("this idempotency key was used for another request"));
            }
            if let Some(entry) = table.sandboxes.get(&claim.id) {
                return Ok(Admitted::Known(entry.handle.clone()));
            }
        }
        let verdict = table.verdict(plan, config);
        if !verdict.allowed {
            return Err(refusal(plan, &verdict, config));
        }
        table.insert(id.as_str(), &plan.owner, plan.key.clone(), handle);
        Ok(Admitted::New)
    }

    /// Takes up a stored sandbox after a start, whatever the caps are now.
    pub(crate) fn restore(&self, record: &SandboxRecord, key: Option<(String, String)>, handle: Handle) {
        self.table().insert(record.id.as_str(), &record.owner, key, handle);
    }

    /// What [`Registry::admit`] would say now.
    pub(crate) fn verdict(&self, plan: &Plan, config: &EngineConfig) -> Admission {
        self.table().verdict(plan, config)
    }

    pub(crate) fn get(&self, id: &str) -> Option<Handle> {
        self.table().sandboxes.get(id).map(|entry| entry.handle.clone())
    }

    pub(crate) fn contains(&self, id: &str) -> bool {
        self.table().sandboxes.contains_key(id)
    }

    pub(crate) fn all(&self) -> Vec<Handle> {
        self.table().sandboxes.values().map(|entry| entry.handle.clone()).collect()
    }

    /// Frees the idempotency key of a sandbox: the next request with it makes a new one.
    pub(crate) fn release_key(&self, id: &str) {
        let mut table = self.table();
        if let Some(entry) = table.sandboxes.get_mut(id)
            && let Some(key) = entry.key.take()
        {
            let owner = entry.owner.clone();
            table.keys.remove(&(owner, key));
        }
    }

    /// Frees the slot of a sandbox that is gone.
    pub(crate) fn remove(&self, id: &str) {
        self.release_key(id);
        let mut table = self.table();
        let Some(entry) = table.sandboxes.remove(id) else { return };
        if let Some(count) = table.owners.get_mut(&entry.owner) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                table.owners.remove(&entry.owner);
            }
        }
    }

    /// Lets nobody in any more.
    pub(crate) fn close(&self) {
        self.table().closed = true;
    }
}

impl Table {
    fn insert(&mut self, id: &str, owner: &str, key: Option<(String, String)>, handle: Handle) {
        let key = key.map(|(key, fingerprint)| {
            self.keys.insert((owner.to_owned(), key.clone()), Claim { id: id.to_owned(), fingerprint });
            key
        });
        *self.owners.entry(owner.to_owned()).or_default() += 1;
        self.sandboxes.insert(id.to_owned(), Entry { handle, owner: owner.to_owned(), key });
    }

    fn verdict(&self, plan: &Plan, config: &EngineConfig) -> Admission {
        let limits = &config.limits;
        let active = self.sandboxes.len() as u64;
        let owned = self.owners.get(&plan.owner).copied().unwrap_or_default();
        let capped_owner = !plan.owner.is_empty() && limits.max_sandboxes_per_owner > 0;
        let reason = if check_max_ttl(plan.ttl, limits.max_ttl).is_err() {
            "max_ttl"
        } else if limits.max_sandboxes > 0 && active >= limits.max_sandboxes {
            "max_sandboxes"
        } else if capped_owner && owned >= limits.max_sandboxes_per_owner {
            "max_sandboxes_per_owner"
        } else {
            ""
        };
        Admission {
            allowed: reason.is_empty(),
            queueable: false,
            reason: reason.into(),
            active_sandboxes: active,
            max_sandboxes: limits.max_sandboxes,
            active_owner_sandboxes: (!plan.owner.is_empty() && owned > 0).then_some(owned),
            max_owner_sandboxes: capped_owner.then_some(limits.max_sandboxes_per_owner),
            max_ttl: (!limits.max_ttl.is_zero()).then(|| WireDuration::from(limits.max_ttl).to_string()),
        }
    }
}

fn refusal(plan: &Plan, verdict: &Admission, config: &EngineConfig) -> Error {
    match verdict.reason.as_str() {
        "max_sandboxes" => Error::resource_limit(format!(
            "there are {} sandboxes, and the limit is {} (defaults.max_sandboxes); destroy one first",
            verdict.active_sandboxes, verdict.max_sandboxes
        )),
        "max_sandboxes_per_owner" => Error::resource_limit(format!(
            "this owner has {} sandboxes, and the limit is {} (defaults.max_sandboxes_per_owner); destroy one first",
            verdict.active_owner_sandboxes.unwrap_or_default(),
            verdict.max_owner_sandboxes.unwrap_or_default()
        )),
        _ => match check_max_ttl(plan.ttl, config.limits.max_ttl) {
            Err(error) => error,
            Ok(()) => Error::internal("a create was refused for no reason"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stacyvm_types::ErrorCode;

    fn code(request: &CreateRequest) -> Option<ErrorCode> {
        Plan::new(request, &EngineConfig::default()).err().map(|error| error.code())
    }

    #[test]
    fn nothing_given_means_the_defaults() {
        let config = EngineConfig::default();
        let old_client = CreateRequest {
            image: Some(String::new()),
            memory_mb: Some(0),
            vcpus: Some(0),
            ..Default::default()
        };
        for request in [CreateRequest::default(), old_client] {
            let plan = Plan::new(&request, &config).unwrap();
            assert_eq!(
                (plan.spec.image.as_str(), plan.spec.memory_mb, plan.spec.vcpus),
                ("alpine:latest", 1024, 1)
            );
            assert_eq!((plan.provider.as_str(), plan.ttl), ("native", Duration::from_secs(1800)));
        }
    }

    #[test]
    fn a_disk_has_no_limit_unless_the_request_or_the_default_says_one() {
        let mut config = EngineConfig::default();
        let disk = |given: Option<i64>, config: &EngineConfig| {
            let request = CreateRequest { disk_mb: given, ..Default::default() };
            Plan::new(&request, config).unwrap().spec.disk_mb
        };
        assert_eq!((disk(None, &config), disk(Some(64), &config)), (0, 64));
        config.defaults.disk_mb = 512;
        assert_eq!((disk(None, &config), disk(Some(0), &config), disk(Some(64), &config)), (512, 512, 64));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let bad = [
            CreateRequest { memory_mb: Some(-1), ..Default::default() },
            CreateRequest { memory_mb: Some(i64::MAX), ..Default::default() },
            CreateRequest { vcpus: Some(-4), ..Default::default() },
            CreateRequest { vcpus: Some(1025), ..Default::default() },
            CreateRequest { disk_mb: Some(-1), ..Default::default() },
            CreateRequest { disk_mb: Some((16 << 20) + 1), ..Default::default() },
            CreateRequest { ttl: Some(Duration::ZERO), ..Default::default() },
            CreateRequest { ttl: Some(Duration::MAX), ..Default::default() },
            CreateRequest { image: Some("a\nb".into()), ..Default::default() },
            CreateRequest { image: Some("x".repeat(1025)), ..Default::default() },
            CreateRequest {
                metadata: (0..65).map(|n| (n.to_string(), String::new())).collect(),
                ..Default::default()
            },
            CreateRequest { metadata: [("k".into(), "v".repeat(16 << 10))].into(), ..Default::default() },
            CreateRequest { idempotency_key: Some("k".repeat(256)), ..Default::default() },
        ];
        for request in bad {
            assert_eq!(code(&request), Some(ErrorCode::BadRequest), "{request:?}");
        }
    }

    #[test]
    fn owners_are_trimmed_and_checked() {
        assert_eq!(owner(Some(" team-a ")).unwrap(), "team-a");
        assert_eq!(owner(None).unwrap(), "");
        assert_eq!(owner(Some(&"é".repeat(128))).unwrap().chars().count(), 128);
        for bad in ["a b", "a/b", "a\\b", "a\u{7}b", &"x".repeat(129)] {
            assert_eq!(owner(Some(bad)).unwrap_err().code(), ErrorCode::BadRequest, "{bad:?}");
        }
    }

    #[test]
    fn the_fingerprint_is_of_the_request_not_of_the_defaults() {
        let request = CreateRequest { idempotency_key: Some("k".into()), ..Default::default() };
        let mut config = EngineConfig::default();
        let before = Plan::new(&request, &config).unwrap().key;
        config.defaults.image = "other".into();
        assert_eq!(Plan::new(&request, &config).unwrap().key, before);
        let other = CreateRequest { vcpus: Some(2), ..request };
        assert_ne!(Plan::new(&other, &config).unwrap().key, before);
        let other = CreateRequest { disk_mb: Some(64), vcpus: None, ..other };
        assert_ne!(Plan::new(&other, &config).unwrap().key, before);
    }
}
