//! The leak checker: everything of ours that a host holds, by kind. What is new after a test is a leak.
//!
//! It looks at the host and not at our own records: processes (agents, spawners, and whatever still lives in a sandbox's
//! mounts or cgroups), mounts, cgroups, sockets, interfaces and rules of the packet filter in this network namespace, and
//! directories in the system's place for temporary files.
//!
//! An installation's table of the packet filter is there for as long as one of its sandboxes has a network, and a moment
//! longer: until the spawner of a server that has stopped is done. Sandboxes of servers that stopped are leaks to be told of
//! here, so a table is one, too.

use anyhow::{Result, ensure};
use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

/// Time for the host's init to reap, and for background cleaning to converge.
const PATIENCE: Duration = Duration::from_secs(10);
/// Part of every path below which sandboxes keep their writable layers.
const SANDBOXES: &str = "/sandboxes/sb-";
/// Start of the name of every cgroup and table of ours, with its separator.
const PREFIX: &str = "stacyvm-";

/// What a host held before a test.
#[derive(Debug)]
pub struct LeakCheck {
    before: BTreeSet<String>,
}

impl LeakCheck {
    /// Notes what is there now; it does not count later.
    pub fn before() -> Self {
        Self { before: holdings() }
    }

    /// Nothing may be there: for the end of a whole run.
    pub fn from_nothing() -> Self {
        Self { before: BTreeSet::new() }
    }

    /// Waits until nothing new is left.
    ///
    /// # Errors
    /// With a list of what is still there after ten seconds.
    pub async fn check(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left: Vec<_> = holdings().difference(&self.before).cloned().collect();
            if left.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "left on this host:\n  {}", left.join("\n  "));
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }
}

/// Everything of ours on this host, one line each.
pub fn holdings() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    processes(&mut found);
    lines_with("/proc/self/mountinfo", SANDBOXES, "mount", &mut found);
    lines_with("/proc/net/unix", "agent.sock", "socket", &mut found);
    cgroups(Path::new("/sys/fs/cgroup"), 0, &mut found);
    interfaces(&mut found);
    rules(&mut found);
    sandbox_directories(&mut found);
    found
}

fn processes(found: &mut BTreeSet<String>) {
    let own = std::process::id().to_string();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|b| b.is_ascii_digit()) && *name != own)
        else {
            continue;
        };
        let read = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
        let stat = String::from_utf8_lossy(&read("stat")).into_owned();
        // A zombie holds nothing but its number; whoever started it has yet to ask for its status.
        if stat.rsplit(") ").next().is_none_or(|rest| rest.starts_with('Z') || rest.is_empty()) {
            continue;
        }
        let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let program = command.split(' ').next().unwrap_or_default();
        let ours = program.ends_with("stacyvm-agent")
            || command.contains("internal-spawner")
            || String::from_utf8_lossy(&read("cgroup")).contains(&format!("/{PREFIX}"))
            || String::from_utf8_lossy(&read("mountinfo")).contains(SANDBOXES);
        if ours {
            found.insert(format!("process {pid}: {}", command.trim()));
        }
    }
}

fn lines_with(file: &str, text: &str, kind: &str, found: &mut BTreeSet<String>) {
    let content = fs::read_to_string(file).unwrap_or_default();
    found.extend(content.lines().filter(|line| line.contains(text)).map(|line| format!("{kind}: {line}")));
}

/// Host ends of sandboxes' interfaces.
fn interfaces(found: &mut BTreeSet<String>) {
    let text = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let names = text.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim());
    found.extend(names.filter(|name| name.starts_with("sv-")).map(|name| format!("interface: {name}")));
}

/// Tables of installations, and rules of theirs in tables of others. A kernel without a packet filter has neither, and who may
/// not look cannot have made any.
fn rules(found: &mut BTreeSet<String>) {
    use stacyvm_netlink::{Answer, Socket, attribute, attributes};
    let Ok(socket) = Socket::open(Some(rustix::net::netlink::NETFILTER)) else { return };
    let list = |message: libc::c_int| {
        let kind = (libc::NFNL_SUBSYS_NFTABLES << 8 | message) as u16;
        socket.list(kind, &[0; 4], |_| {}).unwrap_or_default()
    };
    let text = |answer: &Answer, wanted: u16| {
        let mut all = attributes(answer.body.get(4..).unwrap_or_default());
        let value = all.find(|(kind, _)| *kind == wanted).map(|(_, value)| value).unwrap_or_default();
        String::from_utf8_lossy(value).trim_matches(|c: char| c.is_control()).to_owned()
    };
    let tables = list(libc::NFT_MSG_GETTABLE);
    let names = tables.iter().map(|table| text(table, attribute::TABLE_NAME));
    found.extend(names.filter(|name| name.starts_with(PREFIX)).map(|name| format!("table: {name}")));
    for rule in list(libc::NFT_MSG_GETRULE) {
        let (table, comment) = (text(&rule, attribute::RULE_TABLE), text(&rule, attribute::RULE_USERDATA));
        if comment.starts_with(PREFIX) {
            found.insert(format!("rule: of {comment} in {table}"));
        }
    }
}

/// Cgroups of ours, at most five levels down: below that they are inside one that is listed already.
fn cgroups(directory: &Path, depth: usize, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if ours {
            // The installation's own directory may stay; a sandbox below it may not.
            for sandbox in fs::read_dir(&path).into_iter().flatten().flatten() {
                if sandbox.file_type().is_ok_and(|kind| kind.is_dir()) {
                    found.insert(format!("cgroup: {}", sandbox.path().display()));
                }
            }
        } else if depth < 5 {
            cgroups(&path, depth + 1, found);
        }
    }
}

/// Sandbox directories of test and throw-away installations, which live in the place for temporary files.
fn sandbox_directories(found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with("stacyvm-") {
            continue;
        }
        let mut places = vec![entry.path().join("sandboxes"), entry.path().join("data/sandboxes")];
        places.extend(subdirectories(&entry.path().join("data/run")).map(|run| run.join("sandboxes")));
        for place in places {
            found.extend(subdirectories(&place).map(|sandbox| format!("directory: {}", sandbox.display())));
        }
    }
}

fn subdirectories(path: &Path) -> impl Iterator<Item = std::path::PathBuf> + use<> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{os::unix::process::CommandExt, process::Command};

    #[tokio::test]
    async fn a_process_that_looks_like_ours_is_found_until_it_is_gone() {
        let check = LeakCheck::before();
        let mut child = Command::new("sleep").arg0("/x/stacyvm-agent").arg("60").spawn().unwrap();
        let found = holdings();
        assert!(found.iter().any(|line| line.contains(&format!("process {}", child.id()))), "{found:?}");
        child.kill().unwrap();
        child.wait().unwrap();
        check.check().await.unwrap();
    }

    #[tokio::test]
    async fn a_sandbox_directory_that_stays_is_a_leak() {
        let check = LeakCheck::before();
        let home = tempfile::Builder::new().prefix("stacyvm-leaktest-").tempdir().unwrap();
        let sandbox = home.path().join("data/sandboxes/sb-1");
        fs::create_dir_all(&sandbox).unwrap();
        assert!(holdings().difference(&check.before).any(|line| line.contains("sb-1")));
        fs::remove_dir(&sandbox).unwrap();
        check.check().await.unwrap();
    }
}
