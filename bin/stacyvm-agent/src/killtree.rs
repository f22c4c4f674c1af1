//! All descendants of a process, whatever session or group they moved to, and how to end them.
//!
//! A process can leave its group and session, but not its line of descent: whose parent ends becomes a child of the
//! nearest ancestor that asked for it (`PR_SET_CHILD_SUBREAPER`, PID 1). Children that are made while we look are found by
//! looking again until nothing is new; stopped processes make none.

use crate::signals;
use rustix::process::Pid;
use std::{
    collections::{HashMap, HashSet},
    fs,
};

/// Rounds of stopping before the kill. A tree that grows faster is cut down and looked at again.
const ROUNDS: usize = 64;

/// Live or unreaped descendants of `root`, without it, parents before their children.
pub(crate) fn descendants(root: Pid) -> Vec<Pid> {
    descendants_except(root, &HashSet::new())
}

/// The same without `except` and what descends from it.
pub(crate) fn descendants_except(root: Pid, except: &HashSet<Pid>) -> Vec<Pid> {
    let mut found = Vec::new();
    let mut seen = except.clone();
    let mut next = vec![root];
    let mut table = None;
    while let Some(parent) = next.pop() {
        let children = match (&table, children(parent)) {
            (None, Some(children)) => children,
            // No such file in this kernel, or the process is gone and has no children anyway.
            (None, None) if parent != root => continue,
            _ => table
                .get_or_insert_with(parents_and_children)
                .get(&parent.as_raw_nonzero().get())
                .cloned()
                .unwrap_or_default(),
        };
        for child in children {
            if seen.insert(child) {
                found.push(child);
                next.push(child);
            }
        }
    }
    found
}

/// Children of all threads of a process, as `/proc/<pid>/task/<tid>/children` lists them.
fn children(parent: Pid) -> Option<Vec<Pid>> {
    let mut found = Vec::new();
    let threads = fs::read_dir(format!("/proc/{}/task", parent.as_raw_nonzero())).ok()?;
    let mut readable = false;
    for thread in threads.flatten() {
        if let Ok(list) = fs::read_to_string(thread.path().join("children")) {
            readable = true;
            found.extend(list.split_ascii_whitespace().filter_map(parse_pid));
        }
    }
    readable.then_some(found)
}

fn parse_pid(text: &str) -> Option<Pid> {
    text.parse().ok().and_then(Pid::from_raw)
}

/// Children of every process, from the parents that `/proc/<pid>/stat` names.
fn parents_and_children() -> HashMap<i32, Vec<Pid>> {
    let mut table: HashMap<i32, Vec<Pid>> = HashMap::new();
    let Ok(processes) = fs::read_dir("/proc") else { return table };
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(parse_pid) else { continue };
        let Ok(stat) = fs::read_to_string(process.path().join("stat")) else { continue };
        if let Some(parent) = parent_in_stat(&stat) {
            table.entry(parent).or_default().push(pid);
        }
    }
    table
}

/// The parent in a line of `/proc/<pid>/stat`; the name before it may hold anything, parentheses too.
fn parent_in_stat(line: &str) -> Option<i32> {
    line.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Sends `signal` once to every process that `list` finds, those that appear meanwhile included. Returns how many got it.
pub(crate) fn signal_all(list: impl Fn() -> Vec<Pid>, signal: i32) -> usize {
    let mut seen = HashSet::new();
    let mut reached = 0;
    for _ in 0..ROUNDS {
        let new: Vec<Pid> = list().into_iter().filter(|pid| seen.insert(*pid)).collect();
        if new.is_empty() {
            break;
        }
        reached += new.into_iter().filter(|pid| signals::send(*pid, signal).is_ok()).count();
    }
    reached
}

/// Kills every process that `list` finds, stopping all of them first. Returns how many there were; another round may find
/// more, until their parent has nothing left to reap.
pub(crate) fn kill_all(list: impl Fn() -> Vec<Pid>) -> usize {
    let mut stopped = HashSet::new();
    for _ in 0..ROUNDS {
        let new: Vec<Pid> = list().into_iter().filter(|pid| stopped.insert(*pid)).collect();
        if new.is_empty() {
            break;
        }
        for pid in new {
            // Gone already, or not ours to signal: the kill below tells.
            let _ = signals::send(pid, libc::SIGSTOP);
        }
    }
    stopped.into_iter().filter(|pid| signals::send(*pid, libc::SIGKILL).is_ok()).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{
        process::{Child, Command, Stdio},
        time::{Duration, Instant},
    };

    fn pid_of(child: &Child) -> Pid {
        Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap()
    }

    /// A shell with two sleeping children, one of them in a session of its own.
    fn family() -> Child {
        let script = "sleep 1000 & setsid sleep 1000 & wait";
        let child = Command::new("sh").args(["-c", script]).stdin(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while descendants(pid_of(&child)).len() < 2 {
            assert!(Instant::now() < deadline, "the children never appeared");
            std::thread::sleep(Duration::from_millis(2));
        }
        child
    }

    fn gone(pid: Pid) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
        stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
    }

    #[test]
    fn both_ways_to_list_agree() {
        let mut child = family();
        let root = pid_of(&child);
        let listed: HashSet<Pid> = descendants(root).into_iter().collect();
        let table = parents_and_children();
        let scanned: HashSet<Pid> = table[&root.as_raw_nonzero().get()].iter().copied().collect();
        kill_all(|| descendants(root));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(listed, scanned);
    }

    #[test]
    fn a_tree_ends_across_sessions() {
        let mut child = family();
        let root = pid_of(&child);
        let members = descendants(root);
        // The root first stops, so that it cannot reap and hide what happens.
        assert_eq!(kill_all(|| descendants(root)), members.len());
        child.kill().unwrap();
        child.wait().unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while !members.iter().all(|pid| gone(*pid)) {
            assert!(Instant::now() < deadline, "a member survived");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn a_signal_reaches_each_once() {
        let mut child = family();
        let root = pid_of(&child);
        assert_eq!(signal_all(|| descendants(root), libc::SIGCONT), 2);
        kill_all(|| descendants(root));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    proptest! {
        #[test]
        fn the_parent_is_found_behind_any_name(name in "[ -~]{0,15}", parent in 0..i32::MAX) {
            prop_assert_eq!(parent_in_stat(&format!("17 ({name}) S {parent} 17 17 0")), Some(parent));
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,64}") {
            let _ = parent_in_stat(&text);
            let _ = parse_pid(&text);
        }
    }
}
