//! `stacyvm man`.

use crate::{
    cli::{Cli, Global},
    failure::{Failure, Result},
    output,
};
use clap::{Args, Command, CommandFactory};
use clap_mangen::Man as Page;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Print a manual page, or write all of them
///
/// With --dir: one page for each command, named as `man` looks for them. The directory is made if need be.
///
/// With --dir and --json: {"pages": [paths]}.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  stacyvm man | man -l -
  stacyvm man image pull | man -l -
  stacyvm man --dir /usr/local/share/man/man1")]
pub(crate) struct Man {
    /// Write every page into this directory
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    dir: Option<PathBuf>,
    /// The command [default: stacyvm itself]
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
}

impl Man {
    pub(crate) fn execute(&self, global: &Global) -> Result<()> {
        let mut root = Cli::command();
        // Gives every command its full name and the global flags.
        root.build();
        let Some(dir) = &self.dir else {
            let mut command = &root;
            for word in &self.command {
                command = command.find_subcommand(word).ok_or_else(|| {
                    Failure::usage(
                        format!("there is no command {}", self.command.join(" ")),
                        "`stacyvm --help` lists them",
                    )
                })?;
            }
            return output::text(&String::from_utf8_lossy(&page(command)?));
        };
        let failed = |path: &Path, error: &io::Error| {
            Failure::new(
                format!("cannot write {}: {error}", path.display()),
                "name a directory that can be written with --dir",
            )
        };
        fs::create_dir_all(dir).map_err(|e| failed(dir, &e))?;
        let mut pages = Vec::new();
        let mut left = vec![&root];
        while let Some(command) = left.pop() {
            let path = dir.join(format!("{}.1", name(command)));
            fs::write(&path, page(command)?).map_err(|e| failed(&path, &e))?;
            pages.push(path);
            left.extend(
                command.get_subcommands().filter(|sub| sub.get_name() != "help" && !sub.is_hide_set()),
            );
        }
        pages.sort();
        if global.json {
            return output::json(&serde_json::json!({ "pages": pages }));
        }
        output::line(format_args!("{} pages are in {}", pages.len(), dir.display()))
    }
}

/// `stacyvm-image-pull`.
fn name(command: &Command) -> String {
    command.get_bin_name().unwrap_or(command.get_name()).replace(' ', "-")
}

fn page(command: &Command) -> Result<Vec<u8>> {
    let version = env!("CARGO_PKG_VERSION");
    let named = command.clone().name(name(command)).version(version);
    let mut page = Vec::new();
    Page::new(named).manual("StacyVM").source(format!("stacyvm {version}")).render(&mut page)?;
    // What stands behind the help of every command is its examples.
    let page = String::from_utf8_lossy(&page).replace(".SH EXTRA\nExamples:\n", ".SH EXAMPLES\n");
    Ok(page.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_a_name_flags_and_examples() {
        let mut root = Cli::command();
        root.build();
        let pull = root.find_subcommand("image").and_then(|image| image.find_subcommand("pull")).unwrap();
        assert_eq!(name(pull), "stacyvm-image-pull");
        let text = String::from_utf8(page(root.find_subcommand("attach").unwrap()).unwrap()).unwrap();
        for part in [
            ".TH stacyvm-attach 1",
            "stacyvm attach",
            "\\-\\-from",
            "\\-\\-server",
            ".SH EXAMPLES\n  stacyvm attach",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
