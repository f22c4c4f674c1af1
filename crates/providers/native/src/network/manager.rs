//! Networks of one installation: sees that the rules are in force, keeps namespaces ready, hands them out.

use super::{
    addresses::{FIRST, Pools},
    coexist, forwarding,
    link::{self, Attached, Attachment, Link, Plan, Refused},
    names::{INTERFACES, Names},
    probe,
    resolvers::{self, is_blocked},
    routes,
    rules::Rules,
    settings::{Mode, NetworkConfig, Settings},
    table,
};
use crate::{
    failure::{Doing, Failure},
    layout::Layout,
    pool::Pool,
    record::Record,
    rights,
};
use rustix::{fd::OwnedFd, io::Errno};
use stacyvm_netlink::{Prefix, Socket};
use stacyvm_provider::{Error, Result};
use std::{
    collections::VecDeque,
    fs,
    net::IpAddr,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Time between two looks at the host's interfaces, as what is near changes with them.
const LOOK: Duration = Duration::from_secs(10);
/// How long after some were taken others are made: whoever took one has use for the processors now.
const PAUSE: Duration = Duration::from_millis(20);
/// Pause after a namespace could not be made.
const AGAIN: Duration = Duration::from_secs(5);
/// Numbers that are tried for one sandbox. Others may have taken some.
const TRIES: u32 = 1 << 16;

/// The networks of an installation. Dropped, it lets go of the namespaces that nobody uses.
#[derive(Debug)]
pub(crate) struct Network {
    shared: Arc<Shared>,
    /// Namespaces with nothing but their own loopback, once there is somebody to make them.
    plain: OnceLock<Pool<OwnedFd>>,
}

#[derive(Debug)]
struct Shared {
    names: Names,
    settings: Settings,
    /// Held while the rules are looked at or written.
    guard: Mutex<Guard>,
    /// Ways to the internet that nobody uses yet. Not a [`Pool`], as each is made under rules that are looked at first.
    ready: Mutex<VecDeque<Attached>>,
    /// Something was taken, or it is over.
    changed: Condvar,
    /// `internet` is or was used here, so that it is worth to have some ready.
    internet: AtomicBool,
    /// Somebody listens for changes to the packet filter.
    watched: AtomicBool,
    over: AtomicBool,
}

/// What is known of the kernel's rules.
#[derive(Debug, Default)]
struct Guard {
    pools: Option<Pools>,
    installed: Option<Installed>,
    /// The number to try next. They go round, so that late packets for a sandbox do not reach the next one.
    next: u32,
    /// What others drop, and what to do about it.
    in_the_way: Vec<String>,
    /// Open as long as it works: the kernel takes its time to close one.
    socket: Option<Socket>,
}

#[derive(Debug)]
struct Installed {
    rules: Rules,
    /// What the kernel made of them.
    contents: Vec<Vec<u8>>,
    /// Of all tables when that was last seen to be so.
    generation: u32,
    /// It was tried out.
    proven: bool,
}

/// The network of one sandbox.
#[derive(Debug, Default)]
pub(crate) struct Given {
    /// `None`: one with nothing but loopback, which is yet to be made.
    pub(crate) namespace: Option<OwnedFd>,
    /// Its way to the host, to be recorded.
    pub(crate) attachment: Option<Attachment>,
    /// Text of its `/etc/resolv.conf`; `None`: the image's.
    pub(crate) resolv_conf: Option<String>,
}

impl Network {
    /// # Errors
    /// `InvalidArgument` that names a key of the configuration.
    pub(crate) fn new(installation_id: &str, config: &NetworkConfig) -> Result<Self> {
        let settings = Settings::new(config)?;
        let names = Names::of(installation_id);
        // Anywhere: the addresses of an earlier server's sandboxes are not the first to be given again.
        let mut next = [0; 4];
        let _ = rustix::rand::getrandom(&mut next, rustix::rand::GetRandomFlags::empty());
        let next = u32::from_ne_bytes(next) >> 1;
        let internet = settings.mode == Mode::Internet;
        Ok(Self {
            shared: Arc::new(Shared {
                names,
                settings,
                guard: Mutex::new(Guard { next, ..Guard::default() }),
                ready: Mutex::default(),
                changed: Condvar::new(),
                internet: AtomicBool::new(internet),
                watched: AtomicBool::new(false),
                over: AtomicBool::new(false),
            }),
            plain: OnceLock::new(),
        })
    }

    /// Takes over the rules of an earlier server, and begins to have namespaces ready.
    /// `exclusive`: no other server is at work in this installation.
    pub(crate) fn start(&self, layout: &Layout, exclusive: bool) -> std::io::Result<()> {
        if rights::rootless() {
            return Ok(());
        }
        if is_used(layout) {
            self.shared.internet.store(true, Ordering::Relaxed);
        } else if exclusive && let Err(error) = remove(&self.shared.names) {
            tracing::debug!(%error, "the rules of an earlier server are not removed");
        }
        let make = || {
            link::plain().inspect_err(|error| tracing::debug!(%error, "no network namespace for later")).ok()
        };
        let plain = Pool::start("native-loopbacks", self.shared.settings.ready, make)?;
        plain.fill();
        // Nobody starts this twice.
        let _ = self.plain.set(plain);
        let shared = Arc::clone(&self.shared);
        std::thread::Builder::new().name("native-networks".to_owned()).spawn(move || shared.keep_ready())?;
        Ok(())
    }

    /// The network of a sandbox that asks for this.
    ///
    /// # Errors
    /// `InvalidArgument` if there is none of that name.
    pub(crate) fn mode(&self, asked: Option<&str>) -> Result<Mode> {
        asked.map_or(Ok(self.shared.settings.mode), Mode::parse)
    }

    /// What a sandbox that asks for this network gets.
    ///
    /// # Errors
    /// `InvalidArgument` if there is none of that name; `Unavailable` and `ResourceLimit` with what to do, above all where the
    /// network cannot be restricted.
    pub(crate) fn give(&self, asked: Option<&str>) -> Result<Given> {
        match self.mode(asked)? {
            // The spawner makes one, along with a namespace of users.
            Mode::None if rights::rootless() => Ok(Given::default()),
            Mode::Internet if rights::rootless() => Err(Error::unavailable(format!(
                "the network internet takes root with CAP_NET_ADMIN and CAP_SYS_ADMIN, and the server {}: use the network none, or give it those",
                rights::lacking().unwrap_or_default()
            ))),
            Mode::None => Ok(Given { namespace: Some(self.plain()?), ..Given::default() }),
            Mode::Internet => {
                let (Attached { namespace, attachment }, resolv_conf) = self.internet()?;
                Ok(Given {
                    namespace: Some(namespace),
                    attachment: Some(attachment),
                    resolv_conf: Some(resolv_conf),
                })
            }
        }
    }

    /// A namespace with nothing but its own loopback.
    fn plain(&self) -> std::result::Result<OwnedFd, Failure> {
        self.plain.get().and_then(Pool::take).map_or_else(link::plain, Ok)
    }

    /// A namespace with a way to the internet and nowhere else, and the text of its `/etc/resolv.conf`.
    fn internet(&self) -> Result<(Attached, String)> {
        let shared = &self.shared;
        shared.internet.store(true, Ordering::Relaxed);
        let resolvers = shared.restrict()?;
        shared.watch();
        let ready = lock(&shared.ready).pop_front();
        shared.changed.notify_all();
        let attached = match ready {
            Some(attached) => attached,
            None => shared.attach()?,
        };
        shared.prove(&attached)?;
        Ok((attached, resolvers::file(&resolvers)))
    }

    /// What sandboxes lack, and what they may have that an operator did not think of.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let shared = &self.shared;
        if rights::rootless() || !shared.internet.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let mut warnings = match shared.restrict() {
            Err(error) => vec![format!("no sandbox can have the network internet: {}", error.message())],
            Ok(_) => Vec::new(),
        };
        let blocked = shared.blocked();
        for address in shared.settings.dns.iter().filter(|address| is_blocked(**address, &blocked)) {
            warnings.push(format!(
                "sandboxes ask the resolver {address}, which is not on the internet and may tell names and addresses of your own network: use a public one in providers.native.dns"
            ));
        }
        warnings.extend(lock(&shared.guard).in_the_way.iter().cloned());
        warnings
    }

    /// What an operator may want to know, by name.
    pub(crate) fn settings(&self) -> Vec<(&'static str, String)> {
        let shared = &self.shared;
        let mut settings = vec![("network_mode", shared.settings.mode.as_str().to_owned())];
        if let Some(pools) = lock(&shared.guard).pools {
            let v6 = pools.v6.map(|pool| format!(" {pool}")).unwrap_or_default();
            settings.push(("address_pool", format!("{}{v6}", pools.v4)));
            settings.push(("network_table", format!("inet {}", shared.names.table)));
        }
        settings
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        {
            // Nobody writes the rules behind this: the spawner is about to take them away.
            let _guard = lock(&self.shared.guard);
            self.shared.over.store(true, Ordering::Relaxed);
        }
        lock(&self.shared.ready).clear();
        self.shared.changed.notify_all();
    }
}

impl Shared {
    /// Sees that the rules are in force, as they have to be now; returns the resolvers of sandboxes.
    ///
    /// # Errors
    /// `Unavailable`: they are not, and what to do.
    fn restrict(&self) -> Result<Vec<IpAddr>> {
        let mut guard = lock(&self.guard);
        if self.over.load(Ordering::Relaxed) {
            return Err(Error::unavailable("the server is shutting down"));
        }
        match self.restrict_with(&mut guard) {
            Ok(resolvers) => Ok(resolvers),
            Err(why) => {
                guard.installed = None;
                guard.socket = None;
                Err(Error::unavailable(why))
            }
        }
    }

    fn restrict_with(&self, guard: &mut Guard) -> std::result::Result<Vec<IpAddr>, String> {
        let filter = |error: Errno| {
            format!(
                "the network internet cannot be restricted ({error}): it takes nf_tables with fib and NAT in the kernel, and CAP_NET_ADMIN; use the network none without them"
            )
        };
        let blocked = self.blocked();
        let resolvers = resolvers::resolvers(&self.settings.dns, &blocked);
        let rules = Rules { names: self.names.clone(), blocked, resolvers: resolvers.clone() };
        let socket = match &guard.socket {
            Some(socket) => socket,
            None => guard.socket.insert(table::socket().map_err(filter)?),
        };
        let generation = table::generation(socket).map_err(filter)?;
        let known = guard.installed.as_ref().filter(|installed| installed.rules == rules);
        // Not ours alone to turn off; what is made while it is off has no way out, and nobody would know why.
        forwarding::enable(forwarding::has_v6())?;
        if known.is_some_and(|installed| installed.generation == generation) {
            return Ok(resolvers);
        }
        let there = match known {
            Some(installed) => table::contents(socket, &self.names).map_err(filter)? == installed.contents,
            None => false,
        };
        if !there {
            if known.is_some() {
                tracing::warn!(
                    table = self.names.table,
                    "somebody changed our table of the packet filter: it is written again"
                );
            }
            let contents = rules.write(socket).map_err(filter)?;
            guard.installed = Some(Installed { rules, contents, generation, proven: false });
        }
        guard.in_the_way = coexist::open(socket, &self.names).map_err(filter)?;
        // The number before our own changes would do as well: it means one more look. After them, what somebody changes
        // between the look and this would not be seen.
        if let Some(installed) = &mut guard.installed {
            installed.generation = generation;
        }
        Ok(resolvers)
    }

    /// Begins to listen for changes to the packet filter, once. It only makes repairs quicker, so it may fail.
    fn watch(self: &Arc<Self>) {
        if self.watched.swap(true, Ordering::Relaxed) {
            return;
        }
        let shared = Arc::downgrade(self);
        let listening = move || {
            if let Ok(changes) = table::listen() {
                while let Ok(heard) = changes.heard() {
                    let Some(shared) = shared.upgrade().filter(|shared| !shared.over.load(Ordering::Relaxed))
                    else {
                        return;
                    };
                    if heard {
                        shared.renew();
                    }
                }
            }
            // The next that wants to be sure listens again.
            if let Some(shared) = shared.upgrade() {
                shared.watched.store(false, Ordering::Relaxed);
            }
        };
        if std::thread::Builder::new().name("native-rules".to_owned()).spawn(listening).is_err() {
            self.watched.store(false, Ordering::Relaxed);
        }
    }

    /// What is not the internet, as it is now: always the same text for the same host.
    fn blocked(&self) -> Vec<Prefix> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let (v4, v6) = (read("/proc/net/route"), read("/proc/net/ipv6_route"));
        // What leads to sandboxes comes and goes, and is blocked as such.
        let others = |text: &str, name: usize| {
            let lines = text.lines().filter(|line| {
                !line.split_ascii_whitespace().nth(name).is_some_and(|name| name.starts_with(INTERFACES))
            });
            lines.map(|line| format!("{line}\n")).collect::<String>()
        };
        let (v4, v6) = (others(&v4, 0), others(&v6, 9));
        let mut near: Vec<_> = stacyvm_netlink::v4(&v4).chain(stacyvm_netlink::v6(&v6)).collect();
        near.extend(&self.settings.blocked);
        near.sort();
        stacyvm_netlink::blocked(near.into_iter())
    }

    /// Makes a namespace with a way to the host.
    fn attach(&self) -> Result<Attached> {
        let socket = Socket::open(None).doing(|| "ask the kernel for interfaces".to_owned())?;
        let mut tries = 0;
        loop {
            let (plan, numbers) = self.plan()?;
            // Most of those that are taken are ours, which is quickly seen.
            if Link::named(&socket, &plan.interface) == Err(Errno::NODEV) {
                match link::attached(&plan) {
                    Ok(attached) => return Ok(attached),
                    Err(Refused::Taken) => {}
                    Err(Refused::Failed(failure)) => return Err(failure.into()),
                }
            }
            tries += 1;
            if tries >= numbers.min(TRIES) {
                break;
            }
        }
        Err(Error::resource_limit(
            "no address is left for another sandbox with the network internet: set providers.native.address_pool to a larger one",
        ))
    }

    /// What follows from the next number, and how many numbers there are.
    fn plan(&self) -> Result<(Plan, u32)> {
        let mut guard = lock(&self.guard);
        let pools = match guard.pools {
            Some(pools) => pools,
            None => {
                let routes = Socket::open(None).and_then(|socket| routes::all(&socket));
                let routes = routes.doing(|| "list the host's routes".to_owned())?;
                let chosen = Pools::choose(self.settings.pool, &self.names, &routes, forwarding::has_v6());
                *guard.pools.insert(chosen.map_err(Error::unavailable)?)
            }
        };
        let numbers = pools.last() - FIRST + 1;
        let index = FIRST + guard.next % numbers;
        guard.next = guard.next.wrapping_add(1);
        let (v4, v6) = pools.addresses(index);
        Ok((Plan { interface: self.names.interface(index), v4, v6: v6.zip(pools.gateway_v6()) }, numbers))
    }

    /// Tries the rules out, if they were not since they were written.
    ///
    /// # Errors
    /// `Unavailable`: they do not hold.
    fn prove(&self, attached: &Attached) -> Result<()> {
        let mut guard = lock(&self.guard);
        let Some(installed) = guard.installed.as_mut() else {
            return Err(Error::unavailable("the network internet is not restricted any more: try again"));
        };
        if !installed.proven {
            probe::refused(attached).map_err(|failure| Error::unavailable(failure.to_string()))?;
            installed.proven = true;
        }
        Ok(())
    }

    /// The thread that has ways to the internet ready, and looks at the rules now and then.
    fn keep_ready(self: &Arc<Self>) {
        if self.internet.load(Ordering::Relaxed) {
            self.renew();
            self.watch();
        }
        let mut ready = lock(&self.ready);
        while !self.over.load(Ordering::Relaxed) {
            let internet = self.internet.load(Ordering::Relaxed);
            let wait = if internet && ready.len() < self.settings.ready {
                drop(ready);
                let made = self.restrict().and_then(|_| self.attach());
                self.watch();
                ready = lock(&self.ready);
                made.map(|made| ready.push_back(made)).err().map(|error| error.chain())
            } else {
                ready = self.wait(ready, LOOK);
                drop(ready);
                std::thread::sleep(PAUSE);
                ready = lock(&self.ready);
                if internet && !self.over.load(Ordering::Relaxed) {
                    drop(ready);
                    self.renew();
                    ready = lock(&self.ready);
                }
                None
            };
            if let Some(error) = wait {
                tracing::debug!(error, "no network is ready for the next sandbox");
                ready = self.wait(ready, AGAIN);
                if internet && !self.over.load(Ordering::Relaxed) {
                    drop(ready);
                    self.renew();
                    ready = lock(&self.ready);
                }
            }
        }
        ready.clear();
    }

    /// The rules as they have to be now, for sandboxes that have them already.
    fn renew(&self) {
        if let Err(error) = self.restrict() {
            tracing::warn!(error = error.chain(), "the network internet is not restricted");
        }
    }

    fn wait<'a, T>(&self, ready: MutexGuard<'a, T>, time: Duration) -> MutexGuard<'a, T> {
        let waited = self.changed.wait_timeout(ready, time);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Removes what an installation has in the packet filter, if none of its sandboxes needs it any more.
///
/// # Errors
/// The kernel's.
pub(crate) fn remove_if_unused(layout: &Layout, installation_id: &str) -> std::result::Result<(), Errno> {
    if is_used(layout) { Ok(()) } else { remove(&Names::of(installation_id)) }
}

fn remove(names: &Names) -> std::result::Result<(), Errno> {
    let removed = table::socket().and_then(|socket| {
        coexist::close(&socket, names)?;
        table::remove(names)
    });
    match removed {
        // No packet filter, or none that we may look at: there cannot be anything of ours.
        Err(
            Errno::PERM
            | Errno::ACCESS
            | Errno::INVAL
            | Errno::OPNOTSUPP
            | Errno::AFNOSUPPORT
            | Errno::PROTONOSUPPORT,
        ) => Ok(()),
        result => result,
    }
}

/// Whether a sandbox that is there has, or is about to have, a network. What cannot be read counts as one.
fn is_used(layout: &Layout) -> bool {
    let Ok(ids) = layout.ids() else { return true };
    ids.iter().any(|id| match Record::read(&layout.sandbox(id)) {
        Ok(record) => {
            record.state.is_some_and(|state| state.network.is_some())
                || record.spec.is_none_or(|spec| spec.network.as_deref() == Some(Mode::Internet.as_str()))
        }
        Err(_) => true,
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No critical section here can leave its value half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::write_spec;
    use stacyvm_provider::SandboxSpec;

    #[test]
    fn the_rules_stay_for_as_long_as_a_sandbox_may_need_them() {
        let tmp = tempfile::tempdir().unwrap();
        let layout = Layout::new(tmp.path().to_owned());
        assert!(!is_used(&layout), "an installation that is gone");
        layout.prepare().unwrap();
        let directory = layout.sandbox(&"sb-1".parse().unwrap());
        for (network, used) in [(None, false), (Some("none"), false), (Some("internet"), true)] {
            fs::create_dir_all(&directory).unwrap();
            let spec = SandboxSpec { network: network.map(str::to_owned), ..SandboxSpec::new("host") };
            write_spec(&directory, &spec).unwrap();
            assert_eq!(is_used(&layout), used, "{network:?}");
        }
        fs::write(directory.join("spec.json"), "{").unwrap();
        assert!(is_used(&layout), "what it asked for is not known");
    }
}
