//! `stacyvm events`.

use crate::{
    cli::Global,
    commands::list::clock,
    complete,
    failure::{Failure, Result},
    output,
    table::{Cell, cut},
};
use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use jiff::ZonedDateTime;
use serde_json::Value;
use stacyvm_client::{EventQuery, Heard};
use stacyvm_types::{Event, EventType, MissedEvents};
use std::time::Duration;

/// How long a server that is gone is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Columns of the longest type.
const TYPE: usize = 18;

/// Show what happened to sandboxes, oldest first
///
/// What is kept of the past; with --follow what happens from now on, until Ctrl-C, after the past if --after or --since asks
/// for it. Each event has an id, which --json shows; --after with the last one that was seen misses nothing, or says how much
/// is gone. A server that is restarted is waited for.
///
/// A type is as sandbox.created; a group (sandbox, exec, file, image, …) stands for all of its types.
///
/// With --json, a line for each event: {"id", "type", "sandbox_id", "timestamp", "data"}, and {"missed": {"after", "next",
/// "count"}} for events that are not kept any more.
///
/// Exit code: 0 at the end of the past, 1 if the server is gone for a minute, 2 for a type that there is not.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  stacyvm events --since 10m
  stacyvm events --follow
  stacyvm events --follow --sandbox sb-0123456789abcdef --type exec,sandbox.limit
  stacyvm events --follow --after evt-1041 --json | jq -r .id
  stacyvm events --type sandbox.error --owner team-a")]
pub(crate) struct Events {
    /// Go on with what happens from now on
    #[arg(short, long)]
    follow: bool,
    /// Begin behind the event of this id
    #[arg(long, value_name = "ID", value_parser = id)]
    after: Option<String>,
    /// Begin so long ago, as 10m, or at a time, as 2026-01-31T10:00:00Z
    #[arg(long, value_name = "TIME", conflicts_with = "after", value_parser = since)]
    since: Option<String>,
    /// Only of this sandbox; may be repeated
    #[arg(long = "sandbox", value_name = "SANDBOX", value_delimiter = ',', add = ArgValueCompleter::new(complete::sandboxes))]
    sandboxes: Vec<String>,
    /// Only of this type or group; may be repeated
    #[arg(long = "type", value_name = "TYPE", value_delimiter = ',', add = ArgValueCompleter::new(complete::event_types))]
    types: Vec<String>,
    /// Only of sandboxes of this owner
    #[arg(long, value_name = "OWNER")]
    owner: Option<String>,
}

fn id(text: &str) -> Result<String, String> {
    let number = text.strip_prefix("evt-").unwrap_or(text).parse::<u64>();
    number.map(|number| format!("evt-{number}")).map_err(|_| "use the id of an event, as evt-7".to_owned())
}

fn since(text: &str) -> Result<String, String> {
    let ago = text.parse::<stacyvm_types::WireDuration>().is_ok_and(|ago| ago.to_std().is_some());
    if ago || text.parse::<jiff::Timestamp>().is_ok() {
        return Ok(text.to_owned());
    }
    Err("use a duration, as 10m, or a time, as 2026-01-31T10:00:00Z".to_owned())
}

impl Events {
    pub(crate) async fn execute(&self, global: &Global) -> Result<()> {
        let query = EventQuery {
            after: self.after.clone(),
            since: self.since.clone(),
            types: self.types.clone(),
            sandboxes: self.sandboxes.clone(),
            owner: self.owner.clone(),
            past: !self.follow,
        };
        let mut events = global.client()?.watch_events(query, PATIENCE);
        while let Some(heard) = events.next().await.map_err(about_query)? {
            match heard {
                Heard::Event(event) if global.json => output::json_line(&event)?,
                Heard::Event(event) => {
                    let now = ZonedDateTime::now();
                    output::line(render(&event, &now, output::width(), output::colours()))?;
                }
                Heard::Missed(missed) if global.json => {
                    output::json_line(&serde_json::json!({ "missed": missed }))?;
                }
                Heard::Missed(missed) => output::note(told(&missed)),
                Heard::Reconnecting { reason } => {
                    output::note(format_args!("stacyvm: {reason}; trying again"));
                }
            }
        }
        Ok(())
    }
}

fn about_query(error: stacyvm_client::Error) -> Failure {
    let bad = matches!(error, stacyvm_client::Error::Api { status: 400, .. });
    let failure = Failure::from(error);
    if bad { Failure { code: 2, ..failure } } else { failure }
}

fn told(missed: &MissedEvents) -> String {
    match missed.count {
        Some(count) => format!("stacyvm: {count} events behind {} are not kept any more", missed.after),
        None => format!("stacyvm: this server never had {}: what came behind it is not known", missed.after),
    }
}

/// `10:30:00  sandbox.created     sb-…  image=host provider=native`
fn render(event: &Event, now: &ZonedDateTime, width: Option<usize>, colours: bool) -> String {
    let mut details = String::new();
    if let Some(sandbox) = &event.sandbox_id {
        details.push_str(sandbox);
    }
    for (name, value) in &event.data {
        let text = value.as_str().map_or_else(|| value.to_string(), quoted);
        if !details.is_empty() {
            details.push_str("  ");
        }
        details.push_str(&format!("{name}={text}"));
    }
    let time = clock(event.timestamp, now);
    let details = Cell::new(details);
    let room = width.map_or(usize::MAX, |width| width.saturating_sub(time.len() + TYPE + 4));
    let details = if room == usize::MAX { details.text().to_owned() } else { cut(details.text(), room) };
    let kind = event.kind.as_str();
    let padding = " ".repeat(TYPE.saturating_sub(kind.len()));
    let kind = match colour(event.kind).filter(|_| colours) {
        Some(colour) => format!("\x1b[{colour}m{kind}\x1b[0m"),
        None => kind.to_owned(),
    };
    format!("{time}  {kind}{padding}  {details}").trim_end().to_owned()
}

/// A value as it is, unless it would look like several.
fn quoted(text: &str) -> String {
    if text.is_empty() || text.contains(char::is_whitespace) {
        Value::from(text).to_string()
    } else {
        text.to_owned()
    }
}

fn colour(kind: EventType) -> Option<&'static str> {
    match kind {
        EventType::SandboxRunning | EventType::SandboxResumed => Some("32"),
        EventType::SandboxUnhealthy
        | EventType::SandboxLimit
        | EventType::ExecTimeout
        | EventType::SandboxPaused => Some("33"),
        EventType::SandboxError
        | EventType::ExecFailed
        | EventType::OperationFailed
        | EventType::ProviderFailed => Some("31"),
        EventType::SandboxDestroyed | EventType::SandboxExpired => Some("2"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::{Timestamp, tz::TimeZone};

    #[test]
    fn a_line_for_each_event() {
        let event: Event = serde_json::from_str(
            r#"{"id":"evt-7","type":"sandbox.error","sandbox_id":"sb-1","timestamp":"2026-05-04T10:30:00Z",
                "data":{"count":2,"image":"host","reason":"out of\nmemory"}}"#,
        )
        .unwrap();
        let now = "2026-05-04T12:00:00Z".parse::<Timestamp>().unwrap().to_zoned_datetime(TimeZone::UTC);
        assert_eq!(
            render(&event, &now, None, false),
            r#"10:30:00  sandbox.error       sb-1  count=2  image=host  reason="out of\nmemory""#
        );
        assert_eq!(render(&event, &now, Some(40), false), "10:30:00  sandbox.error       sb-1  cou…");
        assert!(render(&event, &now, Some(40), true).contains("\x1b[31msandbox.error\x1b[0m     "));
        let longest = EventType::ALL.iter().map(|kind| kind.as_str().len()).max();
        assert!(longest <= Some(TYPE), "{longest:?}");
    }

    #[test]
    fn values_of_flags() {
        assert_eq!((id("7").unwrap(), id("evt-7").unwrap()), ("evt-7".to_owned(), "evt-7".to_owned()));
        assert!(id("seven").is_err());
        assert!(since("10m").is_ok() && since("2026-01-31T10:00:00Z").is_ok());
        assert!(since("-1h").is_err() && since("yesterday").is_err());
    }

    #[test]
    fn what_is_missing_is_said() {
        let missed = |count| MissedEvents { after: "evt-1".into(), next: None, count };
        assert!(told(&missed(Some(3))).contains("3 events behind evt-1"));
        assert!(told(&missed(None)).contains("never had evt-1"));
    }
}
