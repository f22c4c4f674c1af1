//! `stacyvm ps`.

use crate::{
    cli::Global,
    commands::list::clock,
    complete,
    failure::Result,
    output,
    remote::about_sandbox,
    table::{Cell, Table},
};
use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use jiff::ZonedDateTime;
use stacyvm_types::{Process, ProcessState};

/// List processes of a sandbox, oldest first
///
/// Those that were started from outside and run; with --all also those that ended lately. OUTPUT is how many bytes each has
/// written: where `stacyvm attach --from` may start.
///
/// With --json: an array of processes as the API describes them.
///
/// Exit code: 0 also if none runs, 1 if there is no such sandbox.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  stacyvm ps sb-0123456789abcdef
  stacyvm ps sb-0123456789abcdef --all
  stacyvm ps sb-0123456789abcdef --json | jq -r '.[].id'")]
pub(crate) struct Ps {
    /// The sandbox
    #[arg(value_name = "SANDBOX", add = ArgValueCompleter::new(complete::sandboxes))]
    sandbox: String,
    /// Also those that ended
    #[arg(short, long)]
    all: bool,
}

impl Ps {
    pub(crate) async fn execute(&self, global: &Global) -> Result<()> {
        let mut processes = global.client()?.processes(&self.sandbox).await.map_err(about_sandbox)?;
        if !self.all {
            processes.retain(|process| process.state == ProcessState::Running);
        }
        if global.json {
            return output::json(&processes);
        }
        if processes.is_empty() {
            return output::line(if self.all {
                "No processes"
            } else {
                "No processes run; --all shows those that ended"
            });
        }
        output::text(&render(&processes, &ZonedDateTime::now(), output::width(), output::colours()))
    }
}

fn render(processes: &[Process], now: &ZonedDateTime, width: Option<usize>, colours: bool) -> String {
    let mut table = Table::new(&["ID", "STATE", "STARTED", "USER", "PID", "OUTPUT", "COMMAND"])
        .cut(&[(6, 16)])
        .leave_out(&[3, 4, 5, 2])
        .right(&[4, 5]);
    for process in processes {
        table.row(vec![
            Cell::new(&process.id),
            state(process),
            Cell::new(clock(process.started_at, now)),
            Cell::new(&process.user),
            Cell::new(process.pid.to_string()),
            Cell::new(process.output_end.to_string()),
            Cell::new(command(process)),
        ]);
    }
    table.render(width, colours)
}

/// The command as a shell would read it, more or less, behind the caller's words.
fn command(process: &Process) -> String {
    let words = process.argv.iter().map(|word| {
        let plain = !word.is_empty() && word.chars().all(|c| !c.is_whitespace() && !"'\"\\$`".contains(c));
        if plain { word.clone() } else { format!("'{}'", word.replace('\'', "'\\''")) }
    });
    let words = words.collect::<Vec<_>>().join(" ");
    if process.tag.is_empty() { words } else { format!("[{}] {words}", process.tag) }
}

fn state(process: &Process) -> Cell {
    match process.state {
        ProcessState::Running => Cell::new("running").coloured("32"),
        ProcessState::Exited if process.exit_code == Some(0) => Cell::new("exited 0").coloured("2"),
        ProcessState::Exited => {
            Cell::new(process.exit_code.map_or("exited".to_owned(), |code| format!("exited {code}")))
                .coloured("31")
        }
        ProcessState::Signaled if process.timed_out => Cell::new("timed out").coloured("31"),
        ProcessState::Signaled => {
            Cell::new(process.signal.map_or("signaled".to_owned(), |signal| format!("signal {signal}")))
                .coloured("31")
        }
        ProcessState::Lost => Cell::new("lost").coloured("31"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::{Timestamp, tz::TimeZone};

    fn process(json: &str) -> Process {
        let mut all = serde_json::json!({
            "id": "p-1", "state": "running", "pid": 7, "argv": ["sleep", "60"], "workdir": "/", "user": "sandbox",
            "started_at": "2026-05-04T10:30:00Z", "output_start": 0, "output_end": 12, "output_open": true,
            "stdin_open": false, "stdin_offset": 0,
        });
        let more: serde_json::Value = serde_json::from_str(json).unwrap();
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(all).unwrap()
    }

    fn text(processes: &[Process], width: Option<usize>) -> String {
        let now = "2026-05-04T12:00:00Z".parse::<Timestamp>().unwrap().to_zoned_datetime(TimeZone::UTC);
        render(processes, &now, width, false)
    }

    #[test]
    fn a_table_of_processes() {
        let processes = [
            process("{}"),
            process(r#"{"id":"web","state":"signaled","signal":9,"argv":["sh","-c","a b"]}"#),
        ];
        assert_eq!(
            text(&processes, None),
            "ID   STATE     STARTED   USER     PID  OUTPUT  COMMAND\n\
             p-1  running   10:30:00  sandbox    7      12  sleep 60\n\
             web  signal 9  10:30:00  sandbox    7      12  sh -c 'a b'\n"
        );
        assert!(
            text(&processes, Some(30)).starts_with("ID   STATE     COMMAND\n"),
            "{}",
            text(&processes, Some(30))
        );
    }

    #[test]
    fn how_it_ended() {
        for (json, text) in [
            (r#"{"state":"exited","exit_code":0}"#, "exited 0"),
            (r#"{"state":"exited","exit_code":7}"#, "exited 7"),
            (r#"{"state":"signaled","signal":9,"timed_out":true}"#, "timed out"),
            (r#"{"state":"lost"}"#, "lost"),
        ] {
            assert_eq!(state(&process(json)).text(), text);
        }
        assert_eq!(command(&process(r#"{"tag":"job","argv":["it's",""]}"#)), r"[job] 'it'\''s' ''");
    }
}
