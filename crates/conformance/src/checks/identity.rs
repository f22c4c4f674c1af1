//! What a process starts with: environment, working directory, user, descriptors, signals.

use crate::{
    check::{During, Failure, Verdict, checks, ensure, refused},
    context::{Context, Sandbox},
    observe::same,
};
use stacyvm_provider::{ErrorKind, ProcessSpec};
use std::collections::BTreeMap;

checks! {
    "exec.environment" "a process sees the base environment and what was added, and nothing of the server's" [] 30 environment;
    "exec.environment_values" "values of the environment arrive byte for byte and win over the base" [] 30 environment_values;
    "exec.cwd" "processes start in /workspace or where they were told to" [] 30 cwd;
    "exec.workspace_writable" "a process can write in /workspace and in its home" [] 30 workspace_writable;
    "exec.descriptors" "a process starts with stdin, stdout and stderr, and no other descriptor" [] 30 descriptors;
    "exec.signal_state" "a process starts with no signal blocked or ignored" [] 30 signal_state;
    "exec.user" "processes run as a user without rights: not root, no capabilities, no way to get them" [Isolated] 30 user;
    "exec.home" "the user has a home of its own, and HOME and USER name it" [Isolated] 30 home;
    "exec.root_user" "a process may ask to be root of the sandbox" [RootUser] 30 root_user;
    "exec.root_user_refused" "a runtime without a root user says Unsupported" [NoRootUser] 30 root_user_refused;
    "exec.unknown_user" "a user that does not exist is refused" [] 30 unknown_user;
}

async fn variables(sandbox: &Sandbox, spec: &ProcessSpec) -> Verdict<BTreeMap<String, String>> {
    let done = sandbox.run(spec).await?.ok()?;
    let text = done.text();
    let pairs = text.split_terminator('\0').map(|pair| pair.split_once('='));
    pairs
        .map(|pair| pair.map(|(key, value)| (key.to_owned(), value.to_owned())))
        .collect::<Option<_>>()
        .ok_or_else(|| Failure(format!("not an environment: {text:?}")))
}

async fn environment(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let mut spec = sandbox.probe_spec(&["env"]);
    spec.env.insert("ADDED".to_owned(), "yes".to_owned());
    let seen = variables(&sandbox, &spec).await?;
    for name in ["PATH", "HOME", "USER", "LANG", "TERM", "ADDED"] {
        ensure!(seen.get(name).is_some_and(|value| !value.is_empty()), "{name} is missing: {seen:?}");
    }
    let expected =
        ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TERM", "PWD", "HOSTNAME", "TZ", "ADDED"];
    let foreign: Vec<_> = seen.keys().filter(|key| !expected.contains(&key.as_str())).collect();
    ensure!(foreign.is_empty(), "variables that nobody set: {foreign:?}");
    Ok(())
}

async fn environment_values(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let mut spec = sandbox.probe_spec(&["env"]);
    let values = [
        ("EMPTY", ""),
        ("EQUALS", "a=b=c"),
        ("LINES", "a\nb\n"),
        ("WIDE", "漢字🦀"),
        ("TERM", "dumb"),
        ("HOME", "/elsewhere"),
    ];
    spec.env = values.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let seen = variables(&sandbox, &spec).await?;
    for (key, value) in values {
        ensure!(
            seen.get(key).map(String::as_str) == Some(value),
            "{key}={value:?} arrives as {:?}",
            seen.get(key)
        );
    }
    Ok(())
}

async fn cwd(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let done = sandbox.probe_ok(&["cwd"]).await?;
    let seen = done.text();
    // Without a root of its own, a sandbox's /workspace has a longer name on the host.
    let right = if cx.provider.capabilities().isolated {
        seen == "/workspace\n"
    } else {
        seen.ends_with("/workspace\n")
    };
    ensure!(right, "processes start in {seen:?}");
    let spec = ProcessSpec {
        cwd: Some(cx.dir()),
        argv: vec!["../.probe".to_owned(), "cwd".to_owned()],
        ..sandbox.probe_spec(&[])
    };
    let told = sandbox.run(&spec).await?.ok()?.text();
    ensure!(
        told.ends_with(&format!("{}\n", cx.dir())),
        "told to start in {:?}, it started in {told:?}",
        cx.dir()
    );
    Ok(())
}

async fn workspace_writable(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let name = cx.unique("written");
    sandbox.probe_ok(&["write", &name, "by a process"]).await?;
    same("the file", &sandbox.read(&format!("/workspace/{name}")).await?, b"by a process")?;
    sandbox.probe_ok(&["write", &cx.relative("inside"), "too"]).await?;
    sandbox.guest.mkdir("/home/sandbox/made", 0o755, true).await.during("mkdir in the home")?;
    if cx.provider.capabilities().isolated {
        sandbox.probe_ok(&["write", "/home/sandbox/file", "x"]).await?;
        sandbox.probe_ok(&["write", "/home/sandbox/made/file", "x"]).await?;
        sandbox.probe_ok(&["write", "/tmp/file", "x"]).await?;
    }
    Ok(())
}

async fn descriptors(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    for stdin in [false, true] {
        let spec = ProcessSpec { stdin, ..sandbox.probe_spec(&["fds"]) };
        sandbox.guest.start(&spec).await.during("start")?;
        let done = sandbox.finish(&spec.id).await?.ok()?;
        let text = done.text();
        let numbers: Vec<&str> = text.lines().filter_map(|line| line.split(' ').next()).collect();
        ensure!(numbers == ["0", "1", "2"], "open descriptors, with stdin {stdin}: {text:?}");
    }
    Ok(())
}

/// The `key=value` lines of `probe id`.
async fn identity(sandbox: &Sandbox, spec: &ProcessSpec) -> Verdict<BTreeMap<String, String>> {
    let text = sandbox.run(spec).await?.ok()?.text();
    Ok(text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect())
}

fn demand(seen: &BTreeMap<String, String>, key: &str, value: &str) -> Verdict {
    let actual = seen.get(key).map(String::as_str);
    ensure!(actual == Some(value), "{key} is {actual:?}, expected {value:?}");
    Ok(())
}

async fn signal_state(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let seen = identity(&sandbox, &sandbox.probe_spec(&["id"])).await?;
    demand(&seen, "SigBlk", "0000000000000000")?;
    // Programs in Rust, the probe among them, ignore SIGPIPE from their first moment on. 32 and 33 are the C library's own,
    // which lets nobody else change them and sets them when it needs them.
    let tolerated = 1 << 12 | 1 << 31 | 1 << 32;
    let ignored = seen.get("SigIgn").and_then(|mask| u64::from_str_radix(mask, 16).ok());
    ensure!(ignored.is_some_and(|mask| mask & !tolerated == 0), "ignored signals: {:?}", seen.get("SigIgn"));
    Ok(())
}

async fn user(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let seen = identity(&sandbox, &sandbox.probe_spec(&["id"])).await?;
    for key in ["uid", "euid", "gid", "egid"] {
        ensure!(seen.get(key).is_some_and(|id| id != "0"), "{key} is {:?}", seen.get(key));
    }
    let groups = seen.get("groups").cloned().unwrap_or_default();
    ensure!(groups.split(',').all(|group| group != "0"), "groups: {groups}");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        demand(&seen, set, "0000000000000000")?;
    }
    demand(&seen, "NoNewPrivs", "1")?;
    let said = sandbox.probe_ok(&["try", "setuid"]).await?.text();
    ensure!(said.starts_with("errno"), "setuid(0) gives {said:?}");
    Ok(())
}

async fn home(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let seen = variables(&sandbox, &sandbox.probe_spec(&["env"])).await?;
    demand(&seen, "HOME", "/home/sandbox")?;
    demand(&seen, "USER", "sandbox")?;
    let me = identity(&sandbox, &sandbox.probe_spec(&["id"])).await?;
    for path in ["/home/sandbox", "/workspace"] {
        let owner = sandbox.guest.stat(path, true).await.during(path)?.uid.to_string();
        demand(&me, "uid", &owner)?;
    }
    Ok(())
}

async fn root_user(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let spec = ProcessSpec { user: Some("root".to_owned()), ..sandbox.probe_spec(&["id"]) };
    demand(&identity(&sandbox, &spec).await?, "uid", "0")
}

async fn root_user_refused(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    // Without isolation, the number of the sandbox user is that of whoever runs the provider, perhaps 0.
    let isolated = cx.provider.capabilities().isolated;
    for user in if isolated { &["root", "0", "0:0"][..] } else { &["root"] } {
        let user = *user;
        let spec = ProcessSpec { user: Some(user.to_owned()), ..sandbox.probe_spec(&["id"]) };
        refused(user, sandbox.guest.start(&spec).await, &[ErrorKind::Unsupported])?;
    }
    Ok(())
}

async fn unknown_user(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let kinds = [ErrorKind::Unsupported, ErrorKind::InvalidArgument, ErrorKind::NotFound];
    for user in ["no-such-user", "-1", "1:2:3", "4294967296"] {
        let spec = ProcessSpec { user: Some(user.to_owned()), ..sandbox.probe_spec(&["id"]) };
        refused(user, sandbox.guest.start(&spec).await, &kinds)?;
    }
    Ok(())
}
