//! The policy against Docker's default profiles, call by call: nothing more may be allowed, and what is less has its reason.

use super::policy::{Answer, Test, UNKNOWN, calls};
use std::collections::{BTreeMap, BTreeSet};

/// Where both profiles of Docker allow a call and ours does not.
const TIGHTER: &[(&str, &str)] = &[
    ("clock_adjtime", "clocks are the machine's; adjtimex reads"),
    ("fanotify_mark", "of no use without fanotify_init, which Docker refuses, too"),
    ("modify_ldt", "segments of 16-bit programs; a history of holes"),
    ("epoll_ctl_old", "no kernel has it"),
    ("epoll_wait_old", "no kernel has it"),
    ("get_thread_area", "32-bit programs only"),
    ("set_thread_area", "32-bit programs only"),
];

/// A line of the table.
#[derive(Debug)]
struct Call {
    name: &'static str,
    x86_64: Option<u32>,
    aarch64: Option<u32>,
    /// In the profile of Engine 20.10, and in the current one.
    allowed: [Verdict; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Yes,
    No,
    /// It depends on the arguments.
    Part,
}

impl Call {
    /// Its number where this runs.
    fn here(&self) -> Option<u32> {
        if cfg!(target_arch = "x86_64") { self.x86_64 } else { self.aarch64 }
    }
}

fn table() -> Vec<Call> {
    let verdict = |word: &str| match word {
        "yes" => Verdict::Yes,
        "no" => Verdict::No,
        "part" => Verdict::Part,
        other => panic!("{other}"),
    };
    let number = |word: &str| (word != "-").then(|| word.parse().unwrap());
    let lines = include_str!("docker.txt").lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
            [name, x86_64, aarch64, old, now] => Call {
                name,
                x86_64: number(x86_64),
                aarch64: number(aarch64),
                allowed: [verdict(old), verdict(now)],
            },
            _ => panic!("{line}"),
        })
        .collect()
}

/// What becomes of a call with these arguments.
fn decide(answer: Answer, arguments: [u32; 3]) -> Answer {
    let Answer::Depends(rows) = answer else { return answer };
    let holds = |(argument, test): &(u8, Test)| match test {
        Test::Is(value) => arguments[usize::from(*argument)] == *value,
        Test::HasNoneOf(bits) => arguments[usize::from(*argument)] & bits == 0,
    };
    rows.iter().find(|row| row.tests.iter().all(holds)).unwrap().answer
}

fn ours(calls: &BTreeMap<u32, Answer>, name: &str) -> Answer {
    let call = table().into_iter().find(|call| call.name == name).unwrap();
    calls[&call.here().unwrap()]
}

#[test]
fn nothing_is_allowed_that_docker_refuses() {
    let calls = calls();
    let mut known = BTreeSet::new();
    let mut tighter = BTreeSet::new();
    for call in table() {
        let Some(number) = call.here() else { continue };
        known.insert(number);
        let answer = calls.get(&number).copied().unwrap_or(UNKNOWN);
        let refused = matches!(answer, Answer::Refuse(_));
        assert!(refused || !call.allowed.contains(&Verdict::No), "{call:?}: {answer:?}");
        // The conditions themselves are compared below.
        assert!(answer != Answer::Allow || call.allowed == [Verdict::Yes; 2], "{call:?}: {answer:?}");
        if refused && !call.allowed.contains(&Verdict::No) {
            tighter.insert(call.name);
        }
    }
    let beyond: Vec<_> = calls.keys().filter(|number| !known.contains(number)).collect();
    assert!(beyond.is_empty(), "not in the table: {beyond:?}");
    let here: BTreeSet<_> =
        table().iter().filter(|call| call.here().is_some()).map(|call| call.name).collect();
    let reasons = TIGHTER.iter().map(|(name, _)| *name).filter(|name| here.contains(name));
    assert_eq!(tighter, reasons.collect());
}

#[test]
fn conditions_are_no_wider_than_dockers() {
    let calls = calls();
    // Both profiles refuse exactly these to `clone`, and say ENOSYS to `clone3`.
    let clone = ours(&calls, "clone");
    for bit in 0..32 {
        let allowed = 0x7e02_0000_u32 & 1 << bit == 0;
        assert_eq!(decide(clone, [1 << bit, 0, 0]) == Answer::Allow, allowed, "clone {bit}");
        assert_eq!(decide(clone, [1 << bit | 0x11, 0, 0]) == Answer::Allow, allowed, "clone {bit}");
    }
    assert!(!calls.contains_key(&435));
    let personality = ours(&calls, "personality");
    for value in (0..0x4_0000).chain([0x20_0000, 0x40_0000, 0x80_0000, u32::MAX - 1, u32::MAX]) {
        let allowed = [0, 8, 0x2_0000, 0x2_0008, u32::MAX].contains(&value);
        assert_eq!(decide(personality, [value, 0, 0]) == Answer::Allow, allowed, "personality {value:x}");
    }
    // The current profile refuses the crypto and the hypervisor family; ours allows four of the others.
    for name in ["socket", "socketpair"] {
        let socket = ours(&calls, name);
        let families: Vec<_> =
            (0..64).filter(|family| decide(socket, [*family, 1, 0]) == Answer::Allow).collect();
        assert_eq!(families, [1, 2, 10, 16], "{name}");
        let kinds: Vec<_> = (0..64).filter(|kind| decide(socket, [16, 3, *kind]) == Answer::Allow).collect();
        assert_eq!(kinds, [0, 4, 15], "{name}");
    }
}

#[test]
fn what_root_needs_for_packages_is_left_to_the_kernel() {
    let calls = calls();
    for name in [
        "chroot",
        "setuid",
        "setgid",
        "setgroups",
        "setresuid",
        "setresgid",
        "setfsuid",
        "setfsgid",
        "fchown",
        "fchownat",
        "fchmodat",
        "setxattr",
        "fsetxattr",
        "capset",
        "kill",
        "sync",
        "syncfs",
        "sync_file_range",
        "flock",
        "linkat",
        "renameat2",
        "utimensat",
    ] {
        assert_eq!(ours(&calls, name), Answer::Allow, "{name}");
    }
    let mut calls_and_modes = vec![("mknodat", 2)];
    if cfg!(target_arch = "x86_64") {
        calls_and_modes.push(("mknod", 1));
    }
    for (name, argument) in calls_and_modes {
        let with = |mode: u32| {
            let mut arguments = [0; 3];
            arguments[argument] = mode | 0o644;
            decide(ours(&calls, name), arguments)
        };
        for mode in [0, libc::S_IFREG, libc::S_IFIFO, libc::S_IFSOCK] {
            assert_eq!(with(mode), Answer::Allow, "{name} {mode:o}");
        }
        for mode in [libc::S_IFCHR, libc::S_IFBLK] {
            assert_eq!(with(mode), Answer::Refuse(libc::EPERM), "{name} {mode:o}");
        }
    }
    for name in ["mount", "umount2", "setns", "unshare", "pivot_root", "fsopen", "move_mount"] {
        assert_eq!(ours(&calls, name), Answer::Refuse(libc::EPERM), "{name}");
    }
}

/// The numbers that are written out because the library has no names for them: those of the other architecture, too.
#[test]
fn written_numbers_are_those_of_the_table() {
    let table: BTreeMap<_, _> = table().into_iter().map(|call| (call.name.to_owned(), call)).collect();
    let mut architecture = None;
    let mut count = 0;
    for line in include_str!("numbers.rs").lines() {
        match line.trim() {
            "#[cfg(target_arch = \"x86_64\")]" => architecture = Some("x86_64"),
            "#[cfg(target_arch = \"aarch64\")]" => architecture = Some("aarch64"),
            "}" => architecture = None,
            _ => {}
        }
        let Some((name, value)) = line.split_once(": c_long = ") else { continue };
        let name = name.rsplit(' ').next().unwrap().to_lowercase();
        let Ok(value) = value.trim_end_matches(';').parse::<u32>() else { continue };
        count += 1;
        let call = &table[&name];
        if architecture != Some("aarch64") {
            assert_eq!(call.x86_64, Some(value), "{name}");
        }
        if architecture != Some("x86_64") {
            assert_eq!(call.aarch64, Some(value), "{name}");
        }
    }
    assert!(count > 15, "{count}");
}
