//! `stacyvm watch`.

use crate::{
    cli::Global,
    failure::{Failure, Result},
    output,
    remote::about_sandbox,
    signals::Signals,
};
use clap::Args;
use stacyvm_types::{FileEvent, FileEventKind};
use std::path::Path;

/// Print what changes in a directory of a sandbox, as it happens
///
/// One line for each change: create, modify, attribute, delete, move. A line `overflow` says that changes were lost and
/// the directory has to be looked at again. Ends when the directory is deleted. A relative path starts at /workspace.
///
/// With --json: one object a line, {"type", "path", "from", "is_dir"}; the first is of type ready, and what happens from
/// then on is told.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  stacyvm watch sb-0123456789abcdef
  stacyvm watch sb-0123456789abcdef /home/sandbox --no-recursive
  stacyvm watch sb-0123456789abcdef --json | jq -r .path")]
pub(crate) struct Watch {
    /// The sandbox
    id: String,
    /// The directory
    #[arg(default_value = "/workspace")]
    path: String,
    /// Only what is directly in it
    #[arg(long)]
    no_recursive: bool,
}

impl Watch {
    pub(crate) async fn execute(&self, global: &Global) -> Result<()> {
        let mut signals = Signals::listen()?;
        tokio::select! {
            outcome = self.follow(global) => outcome,
            signal = signals.next() => Err(Failure::silent(u8::try_from(128 + signal).unwrap_or(1))),
        }
    }

    async fn follow(&self, global: &Global) -> Result<()> {
        let client = global.client()?;
        let mut events =
            client.watch_files(&self.id, &self.path, !self.no_recursive).await.map_err(about_sandbox)?;
        let mut end = End::default();
        while let Some(event) = events.next().await? {
            if let Some(error) = event.error {
                return Err(Failure { kind: Some(error.code), ..Failure::new(error.message, "") });
            }
            end.follow(&event);
            if global.json {
                output::line(serde_json::to_string(&event).map_err(std::io::Error::other)?)?;
            } else if let Some(line) = render(&event) {
                output::line(line)?;
            }
        }
        if end.is_deletion {
            return Ok(());
        }
        Err(Failure::new("the server ended the stream", "watch again, and look at what changed meanwhile"))
    }
}

/// What the end of the events would mean now: behind the deletion of the watched directory, that it is gone; otherwise,
/// that the connection is.
#[derive(Debug, Default)]
struct End {
    watched: String,
    is_deletion: bool,
}

impl End {
    fn follow(&mut self, event: &FileEvent) {
        if event.kind == FileEventKind::Ready {
            self.watched.clone_from(&event.path);
        }
        // Compared by component: the server writes its path without what has no meaning in ours.
        let is_watched = Path::new(&event.path) == Path::new(&self.watched);
        self.is_deletion = event.kind == FileEventKind::Delete && event.is_dir && is_watched;
    }
}

/// A line for people; none for what only programs need.
fn render(event: &FileEvent) -> Option<String> {
    let slash = if event.is_dir { "/" } else { "" };
    let kind = event.kind.as_str();
    match (event.kind, &event.from) {
        (FileEventKind::Ready, _) => None,
        (FileEventKind::Overflow, _) => {
            Some(format!("{kind}  changes were lost, look at the directory again"))
        }
        (_, Some(from)) => Some(format!("{kind:<9} {}{slash} -> {}{slash}", shown(from), shown(&event.path))),
        _ => Some(format!("{kind:<9} {}{slash}", shown(&event.path))),
    }
}

/// A path on one line, without what a terminal obeys.
fn shown(path: &str) -> String {
    path.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: FileEventKind, path: &str, from: Option<&str>, is_dir: bool) -> FileEvent {
        FileEvent { kind, path: path.into(), from: from.map(str::to_owned), is_dir, error: None }
    }

    #[test]
    fn only_the_deletion_of_the_watched_directory_is_its_end() {
        let mut end = End::default();
        let mut after = |kind, path, is_dir| {
            end.follow(&event(kind, path, None, is_dir));
            end.is_deletion
        };
        assert!(!after(FileEventKind::Ready, "/w/./d/", true));
        assert!(!after(FileEventKind::Delete, "/w/d/below", true));
        assert!(!after(FileEventKind::Delete, "/w/d", false));
        assert!(after(FileEventKind::Delete, "/w/d", true));
        assert!(!after(FileEventKind::Create, "/w/d/f", false));
    }

    #[test]
    fn lines_for_people() {
        let line = |kind, path, from, is_dir| render(&event(kind, path, from, is_dir));
        assert_eq!(line(FileEventKind::Ready, "/w", None, true), None);
        assert_eq!(line(FileEventKind::Create, "/w/d", None, true).unwrap(), "create    /w/d/");
        assert_eq!(line(FileEventKind::Move, "/b", Some("/a"), false).unwrap(), "move      /a -> /b");
        assert_eq!(
            line(FileEventKind::Modify, "/w/\x1b[2J\n", None, false).unwrap(),
            "modify    /w/\\u{1b}[2J\\n"
        );
        assert!(line(FileEventKind::Overflow, "", None, false).unwrap().starts_with("overflow"));
    }
}
