//! `stacyvm attach`.

use crate::{
    cli::Global,
    complete,
    failure::{Failure, Result, code},
    output,
    process::{self, Input, Left, Remote},
    remote::about_process,
    result::RunResult,
    signals::Signals,
    stdio::{self, Captured, Sink},
    terminal::{self, keys::DetachKeys},
};
use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use stacyvm_types::PtySize;
use std::time::Instant;

/// Follow a process of a sandbox: its output as it comes, and its exit code as ours
///
/// The process belongs to nobody who watches it: Ctrl-C leaves it alone, and when the server is restarted, the output goes
/// on where it was. Of a process that has ended, what is kept of its output is printed. Whoever attaches slows it down
/// rather than lose output.
///
/// With -i, a process that has a terminal gets this one, and Ctrl-] d leaves it.
///
/// Exit code: the process's, 128 + signal if a signal ended it or made us leave, 124 if its deadline ended it, 125 if we
/// failed.
///
/// With --json, one object at the end and nothing else, as of `stacyvm exec --json`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  stacyvm attach sb-0123456789abcdef p-0123456789abcdef
  stacyvm attach sb-0123456789abcdef p-0123456789abcdef --from now
  stacyvm attach sb-0123456789abcdef p-0123456789abcdef --from 4096 >> log
  echo quit | stacyvm attach sb-0123456789abcdef p-0123456789abcdef -i")]
pub(crate) struct Attach {
    /// The sandbox
    #[arg(value_name = "SANDBOX", add = ArgValueCompleter::new(complete::sandboxes))]
    sandbox: String,
    /// The process; `stacyvm ps SANDBOX` shows them
    #[arg(value_name = "PROCESS", add = ArgValueCompleter::new(complete::processes))]
    process: String,
    /// Where in its output to begin: start, now, or the offset of a byte
    /// [default: start; now, and shown anew, for a terminal with -i]
    #[arg(long, value_name = "WHERE", value_parser = from)]
    from: Option<From>,
    /// Pass our standard input to the process, and its end; to a process with a terminal, this one
    #[arg(short, long)]
    interactive: bool,
    /// Keys that leave the process to itself, typed one after the other; none if empty
    #[arg(long, value_name = "KEYS", default_value = DetachKeys::DEFAULT)]
    detach_keys: DetachKeys,
}

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Now,
    Offset(u64),
}

fn from(text: &str) -> Result<From, String> {
    match text {
        "start" => Ok(From::Offset(0)),
        "now" => Ok(From::Now),
        _ => text.parse().map(From::Offset).map_err(|_| "use start, now, or a number of bytes".to_owned()),
    }
}

impl Attach {
    pub(crate) async fn execute(&self, global: &Global) -> Result<u8> {
        self.run(global)
            .await
            .map_err(|failure| if failure.code == 1 { failure.exit(code::OURS) } else { failure })
    }

    async fn run(&self, global: &Global) -> Result<u8> {
        let client = global.client()?;
        let mut signals = Signals::listen()?;
        let found = match client.process(&self.sandbox, &self.process).await {
            Ok(found) => found,
            Err(error) => return Err(about_process(&client, error, &self.sandbox).await),
        };
        if self.interactive && !found.stdin_open {
            let what = format!("process {} takes no input: its stdin is closed", self.process);
            return Err(Failure::new(what, "leave out -i"));
        }
        let tty = found.pty.is_some() && self.interactive && stdio::stdin_is_terminal();
        terminal::check(global.json, tty, self.interactive)?;
        // What was shown before may ask the terminal things, and its answers would be typed.
        let from = self.from.unwrap_or(if tty { From::Now } else { From::Offset(0) });
        let offset = match from {
            From::Offset(offset) => offset,
            From::Now => found.output_end,
        };
        let terminal = terminal::take_if(tty)?;
        if tty && self.from.is_none() {
            // Whatever has the whole screen draws it when its size changes, and does so again at the size that it has.
            let PtySize { rows, cols } = terminal::size();
            let other = PtySize { rows: rows.saturating_sub(1).max(1), cols };
            client.resize(&self.sandbox, &self.process, other).await?;
        }
        let started = Instant::now();
        let mut process = Remote::attach(&client, &self.sandbox, &self.process, offset);
        let input = Input::from_here(self.interactive, terminal, &self.detach_keys);
        let mut sink = if global.json { Sink::Memory(Captured::default()) } else { Sink::Streams };
        let exit = match process::watch(&mut process, input, &mut signals, &mut sink).await? {
            Left::Exit(exit) => exit,
            Left::Detached => {
                terminal::say_detached(&self.sandbox, &self.process);
                return Ok(0);
            }
            Left::Signal { signal, passed } => return Err(self.left(signal, offset + passed)),
        };
        let code = process::exit_code(&exit)?;
        match sink {
            Sink::Memory(captured) => {
                output::json(&RunResult::new(&self.sandbox, code, &exit, captured, started.elapsed()))?;
            }
            Sink::Streams => process::explain(&exit, 0),
        }
        Ok(code)
    }

    fn left(&self, signal: i32, offset: u64) -> Failure {
        output::note(format_args!(
            "stacyvm: the process goes on; back to it: stacyvm attach {} {} --from {offset}",
            self.sandbox, self.process
        ));
        Failure::silent(u8::try_from(128 + signal).unwrap_or(code::OURS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_to_begin() {
        assert_eq!(from("start"), Ok(From::Offset(0)));
        assert_eq!(from("now"), Ok(From::Now));
        assert_eq!(from("4096"), Ok(From::Offset(4096)));
        assert!(from("-1").is_err() && from("then").is_err());
    }
}
