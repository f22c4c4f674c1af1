//! The tools that a user would otherwise pick, each as one command line.

use std::process::{Command, Stdio};

/// `bwrap` with every namespace of its own, a read-only `/usr` and nothing else: what `native` is compared with.
pub(super) fn bwrap(command: &[&str]) -> Option<Command> {
    if !present("bwrap") {
        return None;
    }
    let mut bwrap = Command::new("bwrap");
    bwrap.args([
        "--unshare-all",
        "--die-with-parent",
        "--ro-bind",
        "/usr",
        "/usr",
        "--proc",
        "/proc",
        "--dev",
        "/dev",
    ]);
    bwrap.args(["--tmpfs", "/tmp", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib"]);
    bwrap.args(["--symlink", "usr/lib64", "/lib64", "--"]);
    bwrap.args(command);
    Some(quiet(bwrap))
}

/// The same command on the bare host: the floor.
pub(super) fn bare(command: &[&str]) -> Command {
    let mut bare = Command::new(command[0]);
    bare.args(&command[1..]);
    quiet(bare)
}

fn quiet(mut command: Command) -> Command {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

/// Whether a program of this name is here.
pub(super) fn present(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).exists()))
}
