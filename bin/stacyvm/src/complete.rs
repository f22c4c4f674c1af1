//! What stands for a word on the command line, for shells: ids of sandboxes and processes, names of images.
//!
//! Asked while somebody types: it answers within a moment or not at all, never says a word of its own, and makes nothing that
//! is not there.

use crate::{
    cli::{Cli, DEFAULT_SERVER},
    images,
};
use clap::CommandFactory;
use clap_complete::{CompleteEnv, CompletionCandidate};
use stacyvm_client::{Client, Options};
use stacyvm_config::{Override, Sources};
use stacyvm_types::{EventType, SandboxState, SignalName};
use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    time::Duration,
};

/// The variable by which scripts of `stacyvm completion` ask for candidates.
pub(crate) const VARIABLE: &str = "_STACYVM_COMPLETE";
/// Time that whoever types is made to wait.
const MOMENT: Duration = Duration::from_millis(80);

/// Answers a shell that asks what a word may become; false if none does.
pub(crate) fn answered() -> bool {
    if std::env::var_os(VARIABLE).is_none_or(|shell| shell.is_empty()) {
        return false;
    }
    let directory = std::env::current_dir().ok();
    let asked = CompleteEnv::with_factory(Cli::command).var(VARIABLE);
    // What went wrong is nothing that a shell in the middle of a line could show.
    asked.try_complete(std::env::args_os(), directory.as_deref()).unwrap_or(true)
}

/// Ids of sandboxes.
pub(crate) fn sandboxes(current: &OsStr) -> Vec<CompletionCandidate> {
    let sandboxes = ask(&Words::typed(), async |client| client.list().await);
    let candidates = sandboxes.into_iter().flatten().map(|sandbox| {
        let help = format!("{}, {}", sandbox.state, sandbox.image);
        (sandbox.id, help)
    });
    starting_with(current, candidates)
}

/// Ids of processes of the sandbox that stands before.
pub(crate) fn processes(current: &OsStr) -> Vec<CompletionCandidate> {
    let words = Words::typed();
    let Some(sandbox) = words.sandbox() else { return Vec::new() };
    let processes = ask(&words, async |client| client.processes(&sandbox).await);
    let candidates = processes.into_iter().flatten().map(|process| {
        let command: String = process.argv.join(" ").chars().take(40).collect();
        (process.id, command)
    });
    starting_with(current, candidates)
}

/// Names of images of the server, and what is always one.
pub(crate) fn served_images(current: &OsStr) -> Vec<CompletionCandidate> {
    let images = ask(&Words::typed(), async |client| client.images().await).unwrap_or_default();
    let names = images.into_iter().flat_map(|image| image.names).chain(["host".to_owned()]);
    starting_with(current, names.map(|name| (name, String::new())))
}

/// Names of images of the server that was named, or of this host; and what is always one.
pub(crate) fn images(current: &OsStr) -> Vec<CompletionCandidate> {
    if Words::typed().server().is_some() {
        return served_images(current);
    }
    let names = local_images().into_iter().chain(["host".to_owned()]);
    starting_with(current, names.map(|name| (name, String::new())))
}

/// Names of signals.
pub(crate) fn signals(current: &OsStr) -> Vec<CompletionCandidate> {
    starting_with(current, SignalName::names().map(|name| (name.to_owned(), String::new())))
}

/// States of sandboxes.
pub(crate) fn states(current: &OsStr) -> Vec<CompletionCandidate> {
    starting_with(current, SandboxState::ALL.map(|state| (state.to_string(), String::new())))
}

/// Types of events and their groups.
pub(crate) fn event_types(current: &OsStr) -> Vec<CompletionCandidate> {
    let groups: BTreeSet<_> = EventType::ALL.iter().map(|kind| kind.group()).collect();
    let all = groups.into_iter().chain(EventType::ALL.iter().map(|kind| kind.as_str()));
    starting_with(current, all.map(|name| (name.to_owned(), String::new())))
}

fn starting_with(
    current: &OsStr,
    candidates: impl IntoIterator<Item = (String, String)>,
) -> Vec<CompletionCandidate> {
    let current = current.to_string_lossy();
    let fitting = candidates.into_iter().filter(|(name, _)| name.starts_with(&*current));
    fitting
        .map(|(name, help)| CompletionCandidate::new(name).help((!help.is_empty()).then(|| help.into())))
        .collect()
}

/// The words of the line that is being typed.
struct Words(Vec<String>);

impl Words {
    fn typed() -> Self {
        Self::of(std::env::args_os())
    }

    /// Those behind the first `--`, without the program.
    fn of(words: impl Iterator<Item = OsString>) -> Self {
        let words = words.map(|word| word.to_string_lossy().into_owned());
        Self(words.skip_while(|word| word != "--").skip(2).collect())
    }

    /// Value of a flag, if it is there.
    fn flag(&self, name: &str) -> Option<&str> {
        let mut words = self.0.iter();
        while let Some(word) = words.next() {
            if word == "--" {
                break;
            }
            if word == name {
                return words.next().map(String::as_str);
            }
            if let Some(value) = word.strip_prefix(name).and_then(|rest| rest.strip_prefix('=')) {
                return Some(value);
            }
        }
        None
    }

    fn server(&self) -> Option<String> {
        self.flag("--server").map(str::to_owned).or_else(|| variable("STACYVM_SERVER"))
    }

    /// What looks like the id of a sandbox.
    fn sandbox(&self) -> Option<String> {
        self.0.iter().find(|word| word.starts_with("sb-")).cloned()
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Asks the server, if it answers within a moment.
fn ask<T>(words: &Words, question: impl AsyncFnOnce(Client) -> stacyvm_client::Result<T>) -> Option<T> {
    let options = Options {
        server: words.server().unwrap_or_else(|| DEFAULT_SERVER.to_owned()),
        api_key: words.flag("--api-key").map(str::to_owned).or_else(|| variable("STACYVM_API_KEY")),
        ..Options::default()
    };
    let client = Client::new(&options).ok()?;
    within_a_moment(async { question(client).await.ok() })
}

fn within_a_moment<T>(work: impl Future<Output = Option<T>>) -> Option<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let answer = runtime.block_on(async { tokio::time::timeout(MOMENT, work).await.ok().flatten() });
    runtime.shutdown_background();
    answer
}

/// Names of images in the data directory of this host, if there are any.
fn local_images() -> Vec<String> {
    let words = Words::typed();
    let root = rustix::process::geteuid().is_root();
    let Ok(mut sources) = Sources::from_process(root) else { return Vec::new() };
    sources.file = words.flag("--config").map(Into::into);
    if let Some(data_dir) = words.flag("--data-dir") {
        sources.overrides.push(Override { key: "data_dir", flag: "--data-dir", text: data_dir.to_owned() });
    }
    let Ok(loaded) = stacyvm_config::load(&sources) else { return Vec::new() };
    if !loaded.config.data_dir.join("images").is_dir() {
        return Vec::new();
    }
    let Ok(images) = images::open(&loaded.config) else { return Vec::new() };
    let images = within_a_moment(async { images.list().await.ok() }).unwrap_or_default();
    images.into_iter().flat_map(|image| stacyvm_types::Image::from(image).names).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Words {
        Words::of(line.split(' ').map(OsString::from))
    }

    #[test]
    fn the_line_is_read_behind_the_first_dashes() {
        let words = words("/bin/stacyvm -- stacyvm --server=http://a:1 attach sb-1 --api-key k p-");
        assert_eq!(words.flag("--server"), Some("http://a:1"));
        assert_eq!(words.flag("--api-key"), Some("k"));
        assert_eq!((words.sandbox().as_deref(), words.flag("--config")), (Some("sb-1"), None));
    }

    #[test]
    fn flags_of_a_command_in_the_sandbox_are_not_ours() {
        assert_eq!(words("s -- s exec sb-1 -- curl --server x").flag("--server"), None);
    }

    #[test]
    fn only_what_fits_is_offered() {
        let names = |current: &str| {
            let found = signals(OsStr::new(current)).into_iter();
            found.map(|candidate| candidate.get_value().to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names("KI"), ["KILL"]);
        assert_eq!(names("x"), [""; 0]);
        let events = event_types(OsStr::new("exec"));
        assert!(events.iter().any(|candidate| candidate.get_value() == "exec"));
        assert!(events.iter().any(|candidate| candidate.get_value() == "exec.started"));
    }
}
