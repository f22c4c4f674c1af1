//! Terminals: what a person types reaches whoever is in the foreground, and what is shown arrives exactly.

use crate::{
    check::{During, Verdict, checks, ensure, refused},
    context::{Collected, Context, Sandbox},
    observe::{flood, same},
};
use bytes::Bytes;
use stacyvm_provider::{ErrorKind, Outcome, OutputStream, ProcessInfo, ProcessSpec, PtySize, Signal};
use std::time::Duration;

checks! {
    "terminal.streams" "stdin, stdout and stderr are one terminal of the size asked for, with the process in its foreground" [Pty] 30 streams;
    "terminal.controls" "the terminal controls the session: it is /dev/tty" [PtySignals] 30 controls;
    "terminal.resize" "a new size reaches the process in the foreground, and is what the process is said to have" [PtySignals] 30 resize;
    "terminal.interrupt" "Ctrl-C interrupts the process in the foreground" [Pty] 30 interrupt;
    "terminal.eof" "what was typed is shown and read, and the end of input ends the reading and not the terminal" [Pty] 30 eof;
    "terminal.exact" "1 MiB of output arrives byte for byte, with the exit code behind it" [Pty] 45 exact;
    "terminal.many" "terminals are given back: 300 processes with one, one after the other" [Pty] 120 many;
    "terminal.hang_up" "what is left at the terminal of an ended process is hung up" [PtySignals] 30 hang_up;
    "terminal.refused" "a size without room, and another size for what has no terminal, are InvalidArgument" [Pty] 30 refusals;
}

const SIZE: PtySize = PtySize { rows: 33, cols: 101 };

fn spec(sandbox: &Sandbox, words: &[&str]) -> ProcessSpec {
    ProcessSpec { pty: Some(SIZE), ..sandbox.probe_spec(words) }
}

/// A process at a terminal, and somebody who reads along.
struct Session {
    info: ProcessInfo,
    output: OutputStream,
    seen: Collected,
    ended: Option<ProcessInfo>,
}

impl Session {
    async fn start(sandbox: &Sandbox, words: &[&str]) -> Verdict<Self> {
        let (info, output) = sandbox.guest.run(&spec(sandbox, words)).await.during("start")?;
        Ok(Self { info, output, seen: Collected::from(0), ended: None })
    }

    /// Reads until `text` was shown.
    async fn until(&mut self, cx: &Context, text: &str) -> Verdict {
        while !String::from_utf8_lossy(&self.seen.stdout).contains(text) {
            ensure!(self.ended.is_none(), "it ended and has shown only {:?}, without {text:?}", self.shown());
            let next = self.seen.next(&mut self.output);
            self.ended = cx.prompt(&format!("{text:?} on the terminal"), next).await??;
        }
        Ok(())
    }

    /// Reads until it has ended.
    async fn end(&mut self, cx: &Context) -> Verdict<ProcessInfo> {
        loop {
            if let Some(ended) = &self.ended {
                ensure!(self.seen.stderr.is_empty(), "a terminal has one output, and this came on stderr");
                return Ok(ended.clone());
            }
            self.ended =
                cx.prompt("the end of a process at a terminal", self.seen.next(&mut self.output)).await??;
        }
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.seen.stdout).into_owned()
    }
}

/// Types all of `text` behind what was typed before.
async fn type_in(sandbox: &Sandbox, id: &str, offset: u64, text: &'static str, eof: bool) -> Verdict {
    let ack = sandbox.guest.write_stdin(id, offset, Bytes::from(text), eof).await.during("write_stdin")?;
    ensure!(ack.accepted == offset + text.len() as u64, "typed {text:?} at {offset}: {ack:?}");
    Ok(())
}

async fn streams(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let mut session = Session::start(&sandbox, &["terminal"]).await?;
    ensure!(session.info.pty == Some(SIZE), "it is {:?}", session.info);
    let ended = session.end(&cx).await?;
    let expected = "stdin=1 stdout=1 stderr=1 size=33x101 foreground=1 ";
    ensure!(session.shown().starts_with(expected), "it says {:?}, {:?}", session.shown(), ended.outcome);
    ensure!(ended.outcome == Some(Outcome::Exited(0)), "it ended with {:?}", ended.outcome);
    Ok(())
}

async fn controls(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let done = sandbox.run(&spec(&sandbox, &["terminal"])).await?.ok()?;
    ensure!(done.text().ends_with(" controlling=1\r\n"), "it says {:?}", done.text());
    Ok(())
}

async fn resize(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let mut session = Session::start(&sandbox, &["sizes"]).await?;
    session.until(&cx, "33x101\r\n").await?;
    let running = sandbox.guest.process(&session.info.id).await.during("process")?;
    ensure!(running.stdin_open && running.pty == Some(SIZE), "it is {running:?}");
    let size = PtySize { rows: 50, cols: 132 };
    sandbox.guest.resize(&session.info.id, size).await.during("resize")?;
    session.until(&cx, "50x132\r\n").await?;
    let seen = sandbox.guest.process(&session.info.id).await.during("process")?.pty;
    ensure!(seen == Some(size), "the terminal is said to have {seen:?}");
    sandbox.kill(&session.info.id).await?;
    session.end(&cx).await?;
    sandbox.guest.resize(&session.info.id, SIZE).await.during("resize of an ended process")
}

async fn interrupt(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let mut session = Session::start(&sandbox, &["sizes"]).await?;
    session.until(&cx, "33x101\r\n").await?;
    type_in(&sandbox, &session.info.id, 0, "\x03", false).await?;
    let ended = session.end(&cx).await?;
    ensure!(ended.outcome == Some(Outcome::Signaled(Signal::INT.0)), "it ended with {:?}", ended.outcome);
    Ok(())
}

async fn eof(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let mut session = Session::start(&sandbox, &["cat"]).await?;
    let id = session.info.id.clone();
    type_in(&sandbox, &id, 0, "one\n", false).await?;
    // Once as it is typed, once as it was read.
    session.until(&cx, "one\r\none\r\n").await?;
    type_in(&sandbox, &id, 4, "two", true).await?;
    let ended = session.end(&cx).await?;
    ensure!(ended.outcome == Some(Outcome::Exited(0)), "it ended with {:?}", ended.outcome);
    ensure!(session.shown() == "one\r\none\r\ntwotwo", "it was shown {:?}", session.shown());
    ensure!(ended.stdin_offset == 7, "it ended as {ended:?}");
    Ok(())
}

async fn exact(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let bytes = 1 << 20;
    let mut session = Session::start(&sandbox, &["flood", &bytes.to_string()]).await?;
    let ended = session.end(&cx).await?;
    ensure!(ended.outcome == Some(Outcome::Exited(0)), "it ended with {:?}", ended.outcome);
    // A terminal shows the beginning of a line at its beginning.
    let mut expected = Vec::new();
    for byte in flood(0, bytes) {
        if byte == b'\n' {
            expected.push(b'\r');
        }
        expected.push(byte);
    }
    same("the output", &session.seen.stdout, &expected)
}

async fn many(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    for number in 0..300 {
        let done = sandbox.run(&spec(&sandbox, &["echo", "here"])).await?.ok()?;
        ensure!(done.text() == "here\r\n", "number {number} has shown {:?}", done.text());
    }
    Ok(())
}

async fn hang_up(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let started =
        sandbox.guest.start(&spec(&sandbox, &["spawn", "child", "exit", &cx.relative("beat")])).await;
    let id = started.during("start")?.id;
    sandbox.wait(&id).await?;
    let left = async {
        while sandbox.guest.process(&id).await.during("process")?.output_open {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    };
    cx.prompt("the end of the terminal", left).await?
}

async fn refusals(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    for size in [PtySize { rows: 0, cols: 80 }, PtySize { rows: 24, cols: 0 }] {
        let spec = ProcessSpec { pty: Some(size), ..sandbox.probe_spec(&["terminal"]) };
        refused("a terminal without room", sandbox.guest.start(&spec).await, &[ErrorKind::InvalidArgument])?;
    }
    let plain = sandbox.start(&["sleep", "60000"]).await?;
    ensure!(plain.pty.is_none(), "a process without a terminal has {:?}", plain.pty);
    let resized = sandbox.guest.resize(&plain.id, SIZE).await;
    refused("a size for a process without a terminal", resized, &[ErrorKind::InvalidArgument])?;
    sandbox.kill(&plain.id).await?;
    let unknown = sandbox.guest.resize("p-never", SIZE).await;
    refused("a size for an unknown process", unknown, &[ErrorKind::NotFound])
}
