//! The native runtime inside a container: what it needs there, what it says where it does not get it, and what it gives.

use crate::host::daemon;
use anyhow::{Result, ensure};
use stacyvm_testkit::binary;
use std::{fs, os::unix::fs::PermissionsExt, process::Command};

/// Prints who it is, whom files belong to, and that what it writes is kept.
const SCRIPT: &str = "id -u; stat -c %u:%g /etc/passwd; echo kept > /workspace/f; cat /workspace/f; grep -c . /proc/self/uid_map; \
                      python3 -c 'print(40+2)'; ls /var/log | wc -l";
const OUTPUT: &str = "1000\n{owner}\nkept\n1\n42\n0\n";
/// Without these Docker hides parts of `/proc` and refuses user namespaces.
const OPEN: [&str; 4] = ["--security-opt", "seccomp=unconfined", "--security-opt", "systempaths=unconfined"];

/// `stacyvm run` as the only program of a container: exit code, output, errors.
fn run(options: &[&str], owner: &str) -> Result<(bool, String)> {
    let directory = tempfile::Builder::new().prefix("stacyvm-inside-").tempdir_in("/var/tmp")?;
    let program = directory.path().join("stacyvm");
    fs::copy(binary()?, &program)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let data = directory.path().join("data");
    fs::create_dir(&data)?;
    fs::set_permissions(&data, fs::Permissions::from_mode(0o777))?;
    let (mounted, volume) =
        (format!("{}:/stacyvm:ro", program.display()), format!("{}:/volume", data.display()));
    let output = Command::new("docker")
        .arg("--host")
        .arg(daemon()?)
        .args([
            "run",
            "--rm",
            "--network",
            "none",
            "--volume",
            &mounted,
            "--volume",
            &volume,
            "--env",
            "HOME=/tmp",
        ])
        .args(options)
        .args(["stacyvm-test/python", "/stacyvm", "run", "--", "sh", "-c", SCRIPT])
        .output()?;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        let expected = OUTPUT.replace("{owner}", owner);
        ensure!(stdout == expected, "{options:?}: {stdout:?} {stderr:?}");
    }
    Ok((output.status.success(), stderr.into_owned()))
}

#[test]
fn with_the_rights_that_it_needs_it_is_what_it_is_on_a_host() -> Result<()> {
    let rights = ["--cap-add", "SYS_ADMIN", "--cap-add", "NET_ADMIN", "--security-opt", "seccomp=unconfined"];
    // On a volume; and in memory where the container's own filesystem is all there is, which cannot map owners either.
    for (data_dir, owner) in [("/volume/d", "0:0"), ("/d", "65534:65534")] {
        let data_dir = format!("STACYVM_DATA_DIR={data_dir}");
        let (ran, said) = run(&[&rights[..], &["--env", &data_dir]].concat(), owner)?;
        ensure!(ran, "{data_dir}: {said}");
    }
    Ok(())
}

#[test]
fn without_any_right_it_has_one_user() -> Result<()> {
    for user in ["0", "1000", "4711:4711"] {
        for data_dir in ["/volume/d", "/tmp/d"] {
            let data_dir = format!("STACYVM_DATA_DIR={data_dir}");
            let options = [&OPEN[..], &["--user", user, "--env", &data_dir]].concat();
            let (ran, said) = run(&options, "1000:1000")?;
            ensure!(ran, "{options:?}: {said}");
        }
    }
    Ok(())
}

#[test]
fn what_is_missing_is_named_with_the_fix() -> Result<()> {
    let everything = ["--cap-drop", "ALL"];
    let cases: [(&[&str], &[&str]); 4] = [
        (&[], &["lacks the capabilities SYS_ADMIN, NET_ADMIN", "/proc", "systempaths=unconfined"]),
        (&OPEN[..2], &["/proc", "systempaths=unconfined"]),
        (&OPEN[2..], &["may not make a user namespace", "seccomp=unconfined"]),
        (&[&OPEN[..], &everything].concat(), &["SETFCAP", "--user 1000"]),
    ];
    for (options, words) in cases {
        let options = [options, &["--env", "STACYVM_DATA_DIR=/volume/d"]].concat();
        let (ran, said) = run(&options, "")?;
        ensure!(!ran, "{options:?} works");
        for word in words {
            ensure!(said.contains(word), "{options:?}: {word:?} is not in {said:?}");
        }
    }
    Ok(())
}
