//! The user namespaces of sandboxes: whether this host has them, and a few that are ready.

use crate::{
    failure::{Doing, Failure},
    ids::{IdRange, Ids},
    layout::Layout,
    pool::Pool,
    rights,
    spawner::Spawner,
};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use stacyvm_provider::SandboxId;
use std::{fs, sync::Arc};

/// How many are ready: what comes at once, usually. Each is a kernel object of a kilobyte or two.
const READY: usize = 8;

/// Where sandboxes get their user namespaces from.
#[derive(Debug)]
pub(crate) struct UserNamespaces {
    source: Arc<Source>,
    /// `None` where there are no user namespaces, or they have one user.
    pool: Option<Pool<UserNamespace>>,
    why_not: Option<String>,
}

#[derive(Debug)]
struct Source {
    ids: Arc<Ids>,
    layout: Layout,
    spawner: Arc<Spawner>,
}

/// One user namespace with a range of ids, and nobody in it yet.
#[derive(Debug)]
pub(crate) struct UserNamespace {
    range: IdRange,
    namespace: OwnedFd,
    ids: Arc<Ids>,
    given: bool,
}

impl UserNamespaces {
    pub(crate) fn start(layout: Layout, spawner: Arc<Spawner>) -> Result<Self, Failure> {
        let source = Arc::new(Source { ids: Arc::default(), layout, spawner });
        let rootless = rights::rootless();
        let why_not = if rootless { None } else { why_not() };
        let pool = match why_not {
            Some(_) => None,
            // The first process of a sandbox makes it itself.
            None if rootless => None,
            None => {
                let source = Arc::clone(&source);
                let make = move || {
                    source
                        .make()
                        .inspect_err(|error| tracing::debug!(%error, "no user namespace for later"))
                        .ok()
                };
                let pool = Pool::start("native-users", READY, make);
                Some(pool.doing(|| "start a thread".to_owned())?)
            }
        };
        Ok(Self { source, pool, why_not })
    }

    /// Why sandboxes have none on this host, if that is so.
    pub(crate) fn why_not(&self) -> Option<&str> {
        self.why_not.as_deref()
    }

    /// Whether sandboxes get a range of ids, with a root among them.
    pub(crate) fn has_ranges(&self) -> bool {
        self.pool.is_some()
    }

    /// Has some made for later.
    pub(crate) fn prepare(&self) {
        if let Some(pool) = &self.pool {
            pool.fill();
        }
    }

    /// One for a new sandbox; `None` where they have no range of ids, which health says.
    ///
    /// # Errors
    /// It cannot be made now: no sandbox is made without what the others have.
    pub(crate) fn take(&self) -> Result<Option<UserNamespace>, Failure> {
        let Some(pool) = &self.pool else { return Ok(None) };
        pool.take().map_or_else(|| self.source.make(), Ok).map(Some)
    }

    /// The sandbox is gone: its ids may be another's.
    pub(crate) fn release(&self, id: &SandboxId) {
        self.source.ids.release(id);
    }
}

impl Source {
    fn make(&self) -> Result<UserNamespace, Failure> {
        let range = self.ids.reserve(&self.layout).doing(|| "find free user ids for a sandbox".to_owned())?;
        match self.spawner.user_namespace(Some(range)) {
            Ok(namespace) => Ok(UserNamespace { range, namespace, ids: Arc::clone(&self.ids), given: false }),
            Err(failure) => {
                self.ids.give_back(range);
                Err(failure)
            }
        }
    }
}

impl UserNamespace {
    pub(crate) fn range(&self) -> IdRange {
        self.range
    }

    /// It is this sandbox's from now on.
    pub(crate) fn give(&mut self, id: &SandboxId) {
        self.ids.give(self.range, id);
        self.given = true;
    }
}

impl AsFd for UserNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

impl Drop for UserNamespace {
    fn drop(&mut self) {
        if !self.given {
            self.ids.give_back(self.range);
        }
    }
}

/// What this host lacks, if it has no user namespaces for us. Only what does not change while it runs: anything else fails
/// the sandbox that it happens to.
fn why_not() -> Option<String> {
    if !fs::exists("/proc/self/ns/user").unwrap_or(false) {
        return Some("the kernel has none (CONFIG_USER_NS)".to_owned());
    }
    let most = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    if most.trim() == "0" {
        return Some("the sysctl user.max_user_namespaces is 0".to_owned());
    }
    // In a user namespace with fewer ids than there are, as in some containers, the range is not ours to give.
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let whole = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u32>);
        matches!((numbers.next(), numbers.next(), numbers.next()), (Some(Ok(0)), Some(Ok(_)), Some(Ok(n))) if n >= IdRange::HIGHEST)
    };
    (!map.lines().any(whole)).then(|| "the server runs in a user namespace with too few ids".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_that_nobody_got_gives_its_ids_back() {
        let tmp = tempfile::tempdir().unwrap();
        let layout = Layout::new(tmp.path().to_owned());
        layout.prepare().unwrap();
        let ids = Arc::new(Ids::default());
        let namespace = |range| UserNamespace {
            range,
            namespace: fs::File::open("/dev/null").unwrap().into(),
            ids: Arc::clone(&ids),
            given: false,
        };
        let (one, other) = (ids.reserve(&layout).unwrap(), ids.reserve(&layout).unwrap());
        drop(namespace(one));
        assert!(!ids.is_taken(one) && ids.is_taken(other));
        let mut given = namespace(other);
        given.give(&"sb-1".parse().unwrap());
        drop(given);
        assert!(ids.is_taken(other));
    }
}
