//! `stacyvm stats`.

use crate::{
    cli::Global,
    complete,
    failure::{Failure, Result},
    output, parse,
    remote::about_sandbox,
    table::{Cell, Table},
};
use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use futures::{StreamExt, stream};
use jiff::Timestamp;
use serde::Serialize;
use stacyvm_client::{Client, Error};
use stacyvm_types::{SandboxState, SandboxStats, WireDuration};
use std::time::Duration;

/// Sandboxes that are asked about at once.
const AT_ONCE: usize = 32;
/// Shortest and usual pause between two looks.
const SHORTEST: Duration = Duration::from_millis(100);
const USUAL: Duration = Duration::from_secs(2);

/// Show what sandboxes use: processors, memory, processes
///
/// Of all that have a guest, or of those that are named. CPU is over a short sample, 100% is one whole processor; MEM is
/// what counts against the limit; TIME is processor time since the sandbox was made.
///
/// With --json, a line for each sandbox and look: {"id", "at", "supported", "cpu_pct", "mem_bytes", "mem_limit_bytes",
/// "cpu_time_ms", "pids"}; with "supported": false nothing follows it.
///
/// Exit code: 1 if a sandbox that was named is not there; the others are shown all the same.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  stacyvm stats
  stacyvm stats sb-0123456789abcdef --follow
  stacyvm stats --follow --interval 10s
  stacyvm stats --json | jq -r 'select(.cpu_pct > 90).id'")]
pub(crate) struct Stats {
    /// Sandboxes [default: all]
    #[arg(value_name = "SANDBOX", add = ArgValueCompleter::new(complete::sandboxes))]
    sandboxes: Vec<String>,
    /// Look again and again, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// With --follow: pause between two looks [default: 2s]
    #[arg(long, value_name = "DURATION", value_parser = parse::duration, requires = "follow")]
    interval: Option<WireDuration>,
}

/// One look at one sandbox.
#[derive(Debug, Serialize)]
struct Look {
    id: String,
    at: Timestamp,
    #[serde(flatten)]
    stats: SandboxStats,
}

impl Stats {
    pub(crate) async fn execute(&self, global: &Global) -> Result<()> {
        let client = global.client()?;
        let (looks, missing) = self.look(&client).await?;
        let mut screen = Screen::default();
        screen.show(&looks, global.json)?;
        if !self.follow {
            return missing.map_or(Ok(()), Err);
        }
        if looks.is_empty()
            && let Some(missing) = missing
        {
            return Err(missing);
        }
        let pause = self.interval.and_then(WireDuration::to_std).map_or(USUAL, |pause| pause.max(SHORTEST));
        loop {
            tokio::time::sleep(pause).await;
            let (looks, missing) = self.look(&client).await?;
            if looks.is_empty()
                && let Some(missing) = missing
            {
                // The last one that was named is gone.
                return Err(missing);
            }
            screen.show(&looks, global.json)?;
        }
    }

    /// Looks at each sandbox; also what is said of the first one that was named and is not there.
    async fn look(&self, client: &Client) -> Result<(Vec<Look>, Option<Failure>)> {
        let named = !self.sandboxes.is_empty();
        let ids = if named {
            self.sandboxes.clone()
        } else {
            let alive = [SandboxState::Running, SandboxState::Paused, SandboxState::Unhealthy];
            let all = client.list().await?.into_iter();
            all.filter(|sandbox| alive.contains(&sandbox.state)).map(|sandbox| sandbox.id).collect()
        };
        let looks = stream::iter(ids).map(async |id| {
            let stats = client.stats(&id).await;
            stats.map(|stats| Look { id, at: Timestamp::now(), stats })
        });
        let looks: Vec<_> = looks.buffered(AT_ONCE).collect().await;
        let (mut found, mut missing) = (Vec::new(), None);
        for look in looks {
            match look {
                Ok(look) => found.push(look),
                // One of all that went between two questions is nothing to speak of.
                Err(Error::Api { .. }) if !named => {}
                Err(error @ Error::Api { .. }) => {
                    missing.get_or_insert_with(|| about_sandbox(error));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok((found, missing))
    }
}

/// Where looks are shown: on a terminal, each in the place of the one before.
#[derive(Debug, Default)]
struct Screen {
    lines: usize,
}

impl Screen {
    fn show(&mut self, looks: &[Look], json: bool) -> Result<()> {
        if json {
            return looks.iter().try_for_each(output::json_line);
        }
        let size = output::size();
        let table = render(looks, size.map(|(columns, _)| columns), output::colours());
        let Some((_, rows)) = size else { return output::text(&table) };
        // What does not fit could not be overwritten.
        let shown: Vec<&str> = table.lines().take(rows.saturating_sub(1)).collect();
        let back = if self.lines > 0 { format!("\x1b[{}A\r\x1b[J", self.lines) } else { String::new() };
        self.lines = shown.len();
        output::text(&format!("{back}{}\n", shown.join("\n")))
    }
}

fn render(looks: &[Look], width: Option<usize>, colours: bool) -> String {
    if looks.is_empty() {
        return "No sandboxes run\n".to_owned();
    }
    let mut table = Table::new(&["ID", "CPU", "MEM", "LIMIT", "MEM%", "PIDS", "TIME"])
        .leave_out(&[6, 3, 5, 4])
        .right(&[1, 2, 3, 4, 5, 6]);
    for Look { id, stats, .. } in looks {
        let limit = stats.mem_limit_bytes.filter(|limit| *limit > 0);
        let share = stats.mem_bytes.zip(limit).map(|(used, limit)| used as f64 * 100.0 / limit as f64);
        let cell = |text: Option<String>| Cell::new(text.unwrap_or_else(|| "-".to_owned()));
        table.row(vec![
            Cell::new(id),
            warm(cell(stats.cpu_pct.map(|cpu| format!("{cpu:.1}%"))), stats.cpu_pct),
            cell(stats.mem_bytes.map(size)),
            cell(limit.map(size)),
            warm(cell(share.map(|share| format!("{share:.1}%"))), share),
            cell(stats.pids.map(|pids| pids.to_string())),
            cell(stats.cpu_time_ms.map(|time| output::span(time / 1000))),
        ]);
    }
    table.render(width, colours)
}

/// A share in the colour of how much it is.
fn warm(cell: Cell, percent: Option<f64>) -> Cell {
    match percent {
        Some(90.0..) => cell.coloured("31"),
        Some(60.0..) => cell.coloured("33"),
        _ => cell,
    }
}

fn size(bytes: u64) -> String {
    bytesize::ByteSize::b(bytes).display().iec().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(id: &str, stats: SandboxStats) -> Look {
        Look { id: id.to_owned(), at: Timestamp::UNIX_EPOCH, stats }
    }

    #[test]
    fn a_table_of_what_is_used() {
        let stats = SandboxStats {
            supported: true,
            cpu_pct: Some(97.25),
            mem_bytes: Some(5 << 20),
            mem_limit_bytes: Some(10 << 20),
            cpu_time_ms: Some(61_500),
            pids: Some(3),
        };
        let unlimited = SandboxStats { mem_limit_bytes: Some(0), ..stats };
        let looks = [look("sb-1", stats), look("sb-2", unlimited), look("sb-3", SandboxStats::default())];
        assert_eq!(
            render(&looks, None, false),
            "ID      CPU      MEM     LIMIT   MEM%  PIDS   TIME\n\
             sb-1  97.2%  5.0 MiB  10.0 MiB  50.0%     3  1m 1s\n\
             sb-2  97.2%  5.0 MiB         -      -     3  1m 1s\n\
             sb-3      -        -         -      -     -      -\n"
        );
        assert!(render(&looks, Some(30), false).starts_with("ID      CPU      MEM   MEM%\n"));
        assert!(render(&looks, None, true).contains("\x1b[31m97.2%\x1b[0m"));
        assert_eq!(render(&[], None, false), "No sandboxes run\n");
    }
}
