//! `stacyvm list`.

use crate::{
    cli::Global,
    complete,
    failure::Result,
    output,
    table::{Cell, Table},
};
use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use jiff::{Timestamp, ZonedDateTime, tz::TimeZone};
use stacyvm_types::{Sandbox, SandboxState};

/// List sandboxes, newest first
///
/// With --json: an array of sandboxes as the API describes them.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  stacyvm list
  stacyvm list --state paused --owner team-a
  stacyvm ls --json | jq -r '.[].id'")]
pub(crate) struct List {
    /// Only in this state
    #[arg(long, value_name = "STATE", value_parser = in_state, add = ArgValueCompleter::new(complete::states))]
    state: Option<SandboxState>,
    /// Only on this provider
    #[arg(long, value_name = "NAME")]
    provider: Option<String>,
    /// Only of this owner
    #[arg(long, value_name = "OWNER")]
    owner: Option<String>,
}

fn in_state(text: &str) -> Result<SandboxState, String> {
    text.parse().map_err(|_| format!("use one of {}", SandboxState::ALL.map(SandboxState::as_str).join(", ")))
}

impl List {
    pub(crate) async fn execute(&self, global: &Global) -> Result<()> {
        let mut sandboxes = global.client()?.list().await?;
        let all = sandboxes.len();
        sandboxes.retain(|sandbox| {
            self.state.is_none_or(|state| sandbox.state == state)
                && self.provider.as_ref().is_none_or(|provider| sandbox.provider == *provider)
                && self.owner.as_ref().is_none_or(|owner| sandbox.owner_id == *owner)
        });
        if global.json {
            return output::json(&sandboxes);
        }
        if sandboxes.is_empty() {
            return output::line(if all == 0 { "No active sandboxes" } else { "No such sandboxes" });
        }
        output::text(&render(&sandboxes, &ZonedDateTime::now(), output::width(), output::colours()))
    }
}

fn render(sandboxes: &[Sandbox], now: &ZonedDateTime, width: Option<usize>, colours: bool) -> String {
    let mut table = Table::new(&["ID", "STATE", "PROVIDER", "IMAGE", "CREATED", "EXPIRES"])
        .cut(&[(3, 10)])
        .leave_out(&[4, 2, 5]);
    for sandbox in sandboxes {
        table.row(vec![
            Cell::new(&sandbox.id),
            state(sandbox.state),
            Cell::new(&sandbox.provider),
            Cell::new(&sandbox.image),
            Cell::new(clock(sandbox.created_at, now)),
            Cell::new(clock(sandbox.expires_at, now)),
        ]);
    }
    table.render(width, colours)
}

/// A state of a sandbox in its colour.
pub(crate) fn state(state: SandboxState) -> Cell {
    let cell = Cell::new(state.as_str());
    match state {
        SandboxState::Running => cell.coloured("32"),
        SandboxState::Creating | SandboxState::Paused | SandboxState::Destroying => cell.coloured("33"),
        SandboxState::Unhealthy | SandboxState::Error => cell.coloured("31"),
        SandboxState::Expired | SandboxState::Destroyed => cell.coloured("2"),
    }
}

/// Local time of day; with the date when that is not today.
pub(crate) fn clock(at: Timestamp, now: &ZonedDateTime) -> String {
    let zone: TimeZone = now.time_zone().clone();
    let at = at.to_zoned_datetime(zone);
    let format = if at.date() == now.date() { "%H:%M:%S" } else { "%Y-%m-%d %H:%M:%S" };
    at.strftime(format).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_table_as_scripts_know_it() {
        let sandbox = Sandbox {
            id: "sb-1".into(),
            state: SandboxState::Running,
            provider: "native".into(),
            image: "host".into(),
            memory_mb: 1,
            vcpus: 1,
            network_mode: None,
            created_at: "2026-05-04T10:30:00.5Z".parse().unwrap(),
            expires_at: "2026-05-05T11:00:00Z".parse().unwrap(),
            owner_id: String::new(),
            worker_id: String::new(),
            metadata: BTreeMap::new(),
            preview_domain: String::new(),
            reason: String::new(),
            disk_size_mb: None,
            limits_hit: BTreeMap::new(),
        };
        let now = "2026-05-04T12:00:00Z".parse::<Timestamp>().unwrap().to_zoned_datetime(TimeZone::UTC);
        assert_eq!(
            render(&[sandbox], &now, None, false),
            "ID    STATE    PROVIDER  IMAGE  CREATED   EXPIRES\n\
             sb-1  running  native    host   10:30:00  2026-05-05 11:00:00\n"
        );
    }
}
