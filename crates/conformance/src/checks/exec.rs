//! Starting processes: what is promised about ids, arguments, errors and lists.

use crate::{
    check::{During, Verdict, checks, ensure, refused},
    context::{Context, PROBE, collect},
    observe::{flood, same},
};
use futures::{StreamExt, future::join_all, stream};
use stacyvm_provider::{ErrorKind, Outcome, ProcessSpec};
use std::{collections::BTreeMap, time::Duration};

checks! {
    "exec.exit_code" "every exit code from 0 to 255 arrives as it was" [] 45 exit_code;
    "exec.signal_outcome" "a process ended by a signal is reported with that signal" [] 30 signal_outcome;
    "exec.argv" "arguments arrive byte for byte" [] 30 argv;
    "exec.start_idempotent" "start with a known id returns that process and starts nothing" [] 30 start_idempotent;
    "exec.start_concurrent" "two starts of one id at once start one process" [] 30 start_concurrent;
    "exec.run" "run starts a process once, says which, and gives all its output each time" [] 30 run;
    "exec.command_missing" "a command that does not exist is NotFound" [] 30 command_missing;
    "exec.not_executable" "a file that cannot be executed is InvalidArgument" [] 30 not_executable;
    "exec.bad_cwd" "a working directory that does not exist is NotFound" [] 30 bad_cwd;
    "exec.bad_spec" "a spec that makes no sense is InvalidArgument and starts nothing" [] 30 bad_spec;
    "exec.unknown_process" "every call about an unknown process is NotFound" [] 30 unknown_process;
    "exec.wait_timeout" "wait returns the running process when its time is over" [] 30 wait_timeout;
    "exec.process_list" "live and recently ended processes are listed, oldest first" [] 30 process_list;
    "exec.process_info" "a process is described as it was started, with a start and an end" [] 30 process_info;
    "exec.logs" "the last lines of a sandbox's processes can be read" [] 30 logs;
    "exec.many" "32 processes at once each give their own output and status" [] 45 many;
    "exec.orphans" "orphans that end with statuses of their own disturb no exit code" [] 45 orphans;
}

async fn exit_code(cx: Context) -> Verdict {
    let sandbox = cx.sandbox().await?;
    let outcomes = stream::iter(0..=255_i32).map(|code| {
        let sandbox = sandbox.clone();
        async move { Ok((code, sandbox.probe(&["exit", &code.to_string()]).await?.info.outcome)) }
    });
    let outcomes: Vec<Verdict<_>> = outcomes.buffer_unordered(16).collect().await;
    for seen in outcomes {
        let (code, outcome) = seen?;
        ensure!(outcome == Some(Outcome::Exited(code)), "exit {code} is reported as {outcome:?}");
    }
    Ok(())
}

async fn signal_outcome(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    for signal in [1, 2, 3, 6, 9, 11, 13, 15, 31, 34, 64] {
        let outcome = sandbox.probe(&["self-signal", &signal.to_string()]).await?.info.outcome;
        ensure!(
            outcome == Some(Outcome::Signaled(signal)),
            "the end by signal {signal} is reported as {outcome:?}"
        );
    }
    Ok(())
}

async fn argv(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let long = "x".repeat(100 << 10);
    let words = [
        "",
        " ",
        "a b",
        "'",
        "\"",
        "\\",
        "$HOME",
        "`id`",
        "*",
        "--",
        "-n",
        "line\nbreak",
        "\t",
        "ünï©ødé 漢字 🦀",
        &long,
    ];
    let done = sandbox.probe_ok(&[&["args"][..], &words[..]].concat()).await?;
    let expected: Vec<u8> = words.iter().flat_map(|word| [word.as_bytes(), b"\0"].concat()).collect();
    crate::observe::same("arguments", &done.stdout, &expected)
}

async fn start_idempotent(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let mark = cx.relative("mark");
    let spec = sandbox.probe_spec(&["append", &mark, "x"]);
    let first = sandbox.guest.start(&spec).await.during("start")?;
    let while_known = sandbox.guest.start(&spec).await.during("second start")?;
    ensure!(first.pid == while_known.pid, "a second start made another process");
    sandbox.wait(&spec.id).await?;
    let ended = sandbox.guest.start(&spec).await.during("start behind the end")?;
    ensure!(
        ended.pid == first.pid && ended.outcome.is_some(),
        "a start behind the end made another process: {ended:?}"
    );
    let other =
        ProcessSpec { argv: vec![PROBE.to_owned(), "exit".to_owned(), "9".to_owned()], ..spec.clone() };
    let unchanged = sandbox.guest.start(&other).await.during("start of another command with a known id")?;
    ensure!(unchanged.argv == spec.argv, "the known process became {:?}", unchanged.argv);
    tokio::time::sleep(Duration::from_millis(30)).await;
    let runs = sandbox.size(&cx.path("mark")).await?;
    ensure!(runs == 1, "it ran {runs} times");
    Ok(())
}

async fn run(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let spec = sandbox.probe_spec(&["flood", "5000"]);
    let (first, output) = sandbox.guest.run(&spec).await.during("run")?;
    let once = collect(output).await?.ok()?;
    ensure!(once.info.pid == first.pid, "it is said to be {}, and {} ended", first.pid, once.info.pid);
    let (again, output) = sandbox.guest.run(&spec).await.during("second run")?;
    ensure!(again.pid == first.pid, "a second run made another process");
    let twice = collect(output).await?.ok()?;
    for done in [once, twice] {
        same("stdout", &done.stdout, &flood(0, 5000))?;
    }
    let missing = ProcessSpec { argv: vec!["/no/such/program".to_owned()], ..sandbox.probe_spec(&[]) };
    refused("run of a missing program", sandbox.guest.run(&missing).await.map(drop), &[ErrorKind::NotFound])
}

async fn start_concurrent(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let mark = cx.relative("mark");
    let spec = sandbox.probe_spec(&["append", &mark, "x"]);
    let mut pids = Vec::new();
    for info in join_all((0..6).map(|_| sandbox.guest.start(&spec))).await {
        pids.push(info.during("one of six starts at once")?.pid);
    }
    ensure!(pids.iter().all(|pid| *pid == pids[0]), "they started processes {pids:?}");
    sandbox.wait(&spec.id).await?;
    tokio::time::sleep(Duration::from_millis(30)).await;
    let runs = sandbox.size(&cx.path("mark")).await?;
    ensure!(runs == 1, "it ran {runs} times");
    Ok(())
}

async fn command_missing(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    for command in ["no-such-command-here", "./no-such-file", "/no/such/file"] {
        let spec = ProcessSpec { argv: vec![command.to_owned()], ..sandbox.probe_spec(&[]) };
        refused(command, sandbox.guest.start(&spec).await, &[ErrorKind::NotFound])?;
        refused(
            "a process that never started",
            sandbox.guest.process(&spec.id).await,
            &[ErrorKind::NotFound],
        )?;
    }
    Ok(())
}

async fn not_executable(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    sandbox.write(&cx.path("plain"), b"no program").await?;
    sandbox.write_mode(&cx.path("garbage"), b"\x7fELFno program either", 0o755).await.during("write")?;
    for name in ["plain", "garbage", "."] {
        let command = format!("./{}", cx.relative(name));
        let spec = ProcessSpec { argv: vec![command.clone()], ..sandbox.probe_spec(&[]) };
        refused(&command, sandbox.guest.start(&spec).await, &[ErrorKind::InvalidArgument])?;
    }
    Ok(())
}

async fn bad_cwd(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let spec = ProcessSpec { cwd: Some(cx.path("no-such-directory")), ..sandbox.probe_spec(&["exit", "0"]) };
    refused("a missing directory", sandbox.guest.start(&spec).await, &[ErrorKind::NotFound])?;
    sandbox.write(&cx.path("file"), b"").await?;
    let spec = ProcessSpec { cwd: Some(cx.path("file")), ..sandbox.probe_spec(&["exit", "0"]) };
    let kinds = [ErrorKind::NotFound, ErrorKind::InvalidArgument];
    refused("a file as directory", sandbox.guest.start(&spec).await, &kinds)
}

async fn bad_spec(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let good = || sandbox.probe_spec(&["exit", "0"]);
    let with_env = |key: &str| BTreeMap::from([(key.to_owned(), "v".to_owned())]);
    let cases = [
        ("no argv", ProcessSpec { argv: Vec::new(), ..good() }),
        ("an empty command", ProcessSpec { argv: vec![String::new()], ..good() }),
        ("a NUL in an argument", ProcessSpec { argv: vec![PROBE.to_owned(), "a\0b".to_owned()], ..good() }),
        ("no id", ProcessSpec { id: String::new(), ..good() }),
        ("an id of 65 bytes", ProcessSpec { id: "x".repeat(65), ..good() }),
        ("a variable without a name", ProcessSpec { env: with_env(""), ..good() }),
        ("a variable with = in its name", ProcessSpec { env: with_env("A=B"), ..good() }),
        ("a variable with NUL in its name", ProcessSpec { env: with_env("A\0B"), ..good() }),
        ("a relative working directory", ProcessSpec { cwd: Some("relative".to_owned()), ..good() }),
    ];
    for (what, spec) in cases {
        refused(what, sandbox.guest.start(&spec).await, &[ErrorKind::InvalidArgument])?;
    }
    Ok(())
}

async fn unknown_process(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let (guest, id, none) = (&sandbox.guest, "p-unknown", &[ErrorKind::NotFound]);
    refused("process", guest.process(id).await, none)?;
    refused("wait", guest.wait(id, Duration::from_secs(5)).await, none)?;
    refused("signal", guest.signal(id, stacyvm_provider::Signal::TERM, false).await, none)?;
    refused("write_stdin", guest.write_stdin(id, 0, "x".into(), false).await, none)?;
    match guest.attach(id, 0, true, false).await {
        Err(error) => refused::<()>("attach", Err(error), none),
        // The answer may also be the first event: it is the same to a caller.
        Ok(mut output) => match output.next().await {
            Some(Err(error)) => refused::<()>("attach", Err(error), none),
            other => Err(crate::check::Failure(format!("attach to an unknown process gives {other:?}"))),
        },
    }
}

async fn wait_timeout(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let running = sandbox.start(&["sleep", "60000"]).await?;
    for timeout in [Duration::ZERO, Duration::from_millis(100)] {
        let info = cx.prompt("wait", sandbox.guest.wait(&running.id, timeout)).await?.during("wait")?;
        ensure!(
            info.outcome.is_none() && info.ended.is_none(),
            "a running process is said to have ended: {info:?}"
        );
    }
    sandbox.kill(&running.id).await?;
    let info = sandbox.wait(&running.id).await?;
    ensure!(info.outcome == Some(Outcome::Signaled(9)), "the killed process ended with {:?}", info.outcome);
    Ok(())
}

async fn process_list(cx: Context) -> Verdict {
    let sandbox = cx.sandbox().await?;
    let mut started = Vec::new();
    for words in [&["sleep", "60000"][..], &["exit", "3"], &["sleep", "60000"]] {
        started.push(sandbox.start(words).await?.id);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    sandbox.wait(&started[1]).await?;
    let listed = sandbox.guest.processes().await.during("processes")?;
    let ids: Vec<&str> = listed.iter().map(|info| info.id.as_str()).collect();
    ensure!(ids == started, "listed {ids:?}, started {started:?}");
    let running: Vec<bool> = listed.iter().map(|info| info.outcome.is_none()).collect();
    ensure!(running == [true, false, true], "running: {running:?}");
    ensure!(
        listed[1].outcome == Some(Outcome::Exited(3)),
        "the ended one is listed with {:?}",
        listed[1].outcome
    );
    Ok(())
}

async fn process_info(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let dir = cx.dir();
    let spec = ProcessSpec {
        tag: "a tag, with = and \n".to_owned(),
        cwd: Some(dir.clone()),
        argv: ["../.probe", "echo", "12345"].map(str::to_owned).to_vec(),
        ..sandbox.probe_spec(&[])
    };
    let done = sandbox.run(&spec).await?.ok()?;
    let info = done.info;
    ensure!(info.id == spec.id && info.argv == spec.argv && info.tag == spec.tag, "described as {info:?}");
    ensure!(info.cwd == dir, "the working directory is given as {:?}", info.cwd);
    ensure!(info.pid > 0, "the pid is {}", info.pid);
    let ended = info.ended.is_some_and(|ended| ended >= info.started);
    ensure!(ended, "it started {:?} and ended {:?}", info.started, info.ended);
    ensure!(
        (info.output_start, info.output_end) == (0, 6),
        "output {}..{}",
        info.output_start,
        info.output_end
    );
    ensure!(!info.stdin_open && !info.output_open, "an ended process has open streams: {info:?}");
    ensure!(!info.timed_out && !info.oom_killed, "a plain end is described as {info:?}");
    let again = sandbox.guest.process(&spec.id).await.during("process")?;
    ensure!(again == info, "the exit event says {info:?}, process says {again:?}");
    Ok(())
}

async fn logs(cx: Context) -> Verdict {
    let sandbox = cx.sandbox().await?;
    let token = cx.unique("line");
    for number in 0..3 {
        sandbox.probe_ok(&["echo", &format!("{token}-{number}")]).await?;
    }
    let lines = sandbox.guest.logs(2).await.during("logs")?;
    ensure!(lines.len() == 2, "asked for 2 lines, got {lines:?}");
    for (line, number) in lines.iter().zip(1..) {
        ensure!(line.contains(&format!("{token}-{number}")), "the last two lines are {lines:?}");
    }
    Ok(())
}

async fn many(cx: Context) -> Verdict {
    let sandbox = cx.sandbox().await?;
    let runs = (0..32).map(|number| {
        let sandbox = &sandbox;
        async move {
            let word = format!("number-{number}");
            let done = sandbox.probe_ok(&["echo", &word]).await?;
            ensure!(done.text() == format!("{word}\n"), "process {number} printed {:?}", done.text());
            Ok(())
        }
    });
    join_all(runs).await.into_iter().collect()
}

async fn orphans(cx: Context) -> Verdict {
    let sandbox = cx.sandbox().await?;
    for round in 0..4 {
        let storm = sandbox.start(&["orphans", "40"]).await?;
        let codes = (100..110).map(|code| {
            let sandbox = &sandbox;
            async move { Ok((code, sandbox.probe(&["exit", &code.to_string()]).await?.info.outcome)) }
        });
        let codes: Verdict<Vec<_>> = join_all(codes).await.into_iter().collect();
        for (code, outcome) in codes? {
            ensure!(
                outcome == Some(Outcome::Exited(code)),
                "round {round}: exit {code} is reported as {outcome:?}"
            );
        }
        let outcome = sandbox.wait(&storm.id).await?.outcome;
        ensure!(outcome == Some(Outcome::Exited(0)), "the parent of orphans ended with {outcome:?}");
    }
    Ok(())
}
