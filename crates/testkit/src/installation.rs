//! The leak checker for one installation: everything on this host that still leads into its data directory.

use anyhow::{Context, Result};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Time for the host's init to reap, and for background cleaning to converge.
const PATIENCE: Duration = Duration::from_secs(5);
/// What an installation keeps for good; anything else in its data directory is gone with its last sandbox.
const KEPT: [&str; 7] = ["installation", "lock", "sandboxes", "images", "trash", "run", "mock"];
/// Start of the names of the database and its companions.
const DATABASE: &str = "stacyvm.db";

/// What the installation in `data_dir` left behind, one line each, once that has not changed for the better any more:
/// processes, mounts in any process's view, sockets, files. Its server is stopped and its sandboxes are destroyed.
///
/// # Errors
/// When the directory does not exist.
pub async fn left_in(data_dir: &Path) -> Result<Vec<String>> {
    let data_dir = data_dir.canonicalize().with_context(|| data_dir.display().to_string())?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = look(&data_dir);
        if left.is_empty() || Instant::now() >= deadline {
            return Ok(left.into_iter().collect());
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

fn look(data_dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    processes(data_dir, &mut found);
    let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let text = data_dir.to_string_lossy();
    found.extend(sockets.lines().filter(|line| line.contains(&*text)).map(|line| format!("socket: {line}")));
    files(data_dir, &mut found);
    found
}

fn processes(data_dir: &Path, found: &mut BTreeSet<String>) {
    let own = std::process::id();
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in
        numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).filter(|pid| *pid != own)
    {
        let base = PathBuf::from(format!("/proc/{pid}"));
        let leads_in = |path: PathBuf| fs::read_link(path).is_ok_and(|target| target.starts_with(data_dir));
        let mut ways: Vec<&str> =
            ["cwd", "exe", "root"].into_iter().filter(|link| leads_in(base.join(link))).collect();
        let open = fs::read_dir(base.join("fd")).into_iter().flatten().flatten();
        if open.map(|entry| entry.path()).any(leads_in) {
            ways.push("an open file");
        }
        let mounts = fs::read_to_string(base.join("mountinfo")).unwrap_or_default();
        if mounts.contains(&*data_dir.to_string_lossy()) {
            ways.push("a mount");
        }
        if !ways.is_empty() {
            let line = fs::read(base.join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            found.insert(format!("process {pid}: {} (by {})", line.trim(), ways.join(", ")));
        }
    }
}

fn files(data_dir: &Path, found: &mut BTreeSet<String>) {
    for path in entries(data_dir) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !KEPT.contains(&&*name) && !name.starts_with(DATABASE) {
            found.insert(format!("file: {}", path.display()));
        }
    }
    let mock = entries(&data_dir.join("mock")).map(|installation| (installation, &["stacyvm-agent"][..]));
    let places = [("sandboxes", &[][..]), ("trash", &[]), ("run", &["images", "lock"])];
    let places = places.map(|(name, kept)| (data_dir.join(name), kept)).into_iter().chain(mock);
    for (place, kept) in places {
        let left = entries(&place).filter(|path| !kept.iter().any(|name| path.ends_with(name)));
        found.extend(left.map(|path| format!("file: {}", path.display())));
    }
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn installation() -> tempfile::TempDir {
        let home = tempfile::tempdir().unwrap();
        for kept in ["sandboxes", "images", "trash", "run/images", "mock/inst"] {
            fs::create_dir_all(home.path().join(kept)).unwrap();
        }
        for kept in
            ["installation", "lock", "stacyvm.db", "stacyvm.db-wal", "run/lock", "mock/inst/stacyvm-agent"]
        {
            fs::write(home.path().join(kept), "").unwrap();
        }
        home
    }

    #[tokio::test]
    async fn an_idle_installation_leaves_nothing() {
        assert_eq!(left_in(installation().path()).await.unwrap(), Vec::<String>::new());
    }

    #[test]
    fn sandboxes_drafts_and_strange_files_are_leaks() {
        let home = installation();
        let path = home.path().canonicalize().unwrap();
        fs::create_dir(path.join("sandboxes/sb-1")).unwrap();
        fs::create_dir(path.join("trash/sb-2")).unwrap();
        fs::create_dir(path.join("mock/inst/sb-3")).unwrap();
        fs::write(path.join("draft"), "").unwrap();
        let left: Vec<_> = look(&path).into_iter().collect();
        let expected = ["draft", "mock/inst/sb-3", "sandboxes/sb-1", "trash/sb-2"]
            .map(|p| format!("file: {}", path.join(p).display()));
        assert_eq!(left, expected);
    }

    #[test]
    fn a_process_in_the_directory_is_a_leak_and_its_way_is_named() {
        let home = installation();
        let path = home.path().canonicalize().unwrap();
        let mut child =
            Command::new("sleep").arg("600").current_dir(&path).stdin(Stdio::null()).spawn().unwrap();
        let left = look(&path);
        child.kill().unwrap();
        child.wait().unwrap();
        let expected = format!("process {}: sleep 600 (by cwd)", child.id());
        assert!(left.contains(&expected), "{left:?}");
        assert!(look(&path).is_empty());
    }

    #[test]
    fn a_bound_socket_is_a_leak() {
        let home = installation();
        let path = home.path().canonicalize().unwrap();
        let socket = std::os::unix::net::UnixListener::bind(path.join("sandboxes/agent.sock")).unwrap();
        assert!(look(&path).iter().any(|line| line.starts_with("socket: ")));
        drop(socket);
    }
}
