//! `stacyvm config`: what is configured and where each value came from; what could be.

use crate::{
    cli::Global,
    failure::{Failure, Result},
    output,
};
use clap::{Args, Subcommand};
use stacyvm_config::{Loaded, Override, Problem, Sources};

/// Show the configuration, and where each value came from
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  stacyvm config show              every key as YAML, with its origin
  stacyvm config show --set        only what is set
  stacyvm config show --json
  stacyvm config reference         every key and variable with its meaning")]
pub(crate) struct Config {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print every key with its value and where that came from
    ///
    /// The output is a configuration file; secrets that are set stand in comments, without their value. Warnings go to
    /// standard error.
    ///
    /// With --json: {"file", "settings": [{"key", "value", "set", "origin", "variable", "secret", "effect"}],
    /// "warnings": [{"place", "what", "fix"}]}; the value of a secret is null.
    #[command(
        after_help = "Examples:\n  stacyvm config show --set\n  stacyvm config show --config /etc/stacyvm.yaml"
    )]
    Show {
        /// Only what is not a default
        #[arg(long)]
        set: bool,
    },
    /// Print every key and variable with its meaning, as a table in Markdown
    ///
    /// With --json: an array of {"key", "variable", "takes", "default", "meaning", "effect"}.
    Reference,
}

impl Config {
    pub(crate) fn execute(&self, global: &Global) -> Result<()> {
        match self.action {
            Action::Reference if global.json => output::json(&stacyvm_config::reference_json()),
            Action::Reference => output::text(&stacyvm_config::reference()),
            Action::Show { set } => show(global, set),
        }
    }
}

fn show(global: &Global, set: bool) -> Result<()> {
    // What a secret file holds is not shown, so it need not be readable here.
    let loaded = load(global, Vec::new(), false)?;
    if global.json {
        let problem =
            |p: &Problem| serde_json::json!({"place": p.place.to_string(), "what": p.what, "fix": p.fix});
        return output::json(&serde_json::json!({
            "file": loaded.file,
            "settings": stacyvm_config::to_json(&loaded.settings, set),
            "warnings": loaded.warnings.iter().map(problem).collect::<Vec<_>>(),
        }));
    }
    warn(global, &loaded.warnings);
    output::text(&stacyvm_config::to_yaml(&loaded.settings, set))
}

/// Reads the configuration of this command line. `secrets`: also the files that hold them.
pub(crate) fn load(global: &Global, mut overrides: Vec<Override>, secrets: bool) -> Result<Loaded> {
    let root = rustix::process::geteuid().is_root();
    let sources = Sources::from_process(root).map_err(|e| {
        Failure::new(format!("the current directory cannot be used: {e}"), "change to one that exists")
    })?;
    if let Some(data_dir) = &global.data_dir {
        overrides.push(Override { key: "data_dir", flag: "--data-dir", text: data_dir.clone() });
    }
    let sources = Sources { file: global.config.clone(), overrides, secrets, ..sources };
    let loaded = stacyvm_config::load(&sources).map_err(|invalid| {
        warn(global, &invalid.warnings);
        Failure::from(invalid)
    })?;
    Ok(loaded)
}

/// Prints warnings, unless they are not wanted.
pub(crate) fn warn(global: &Global, warnings: &[Problem]) {
    if !global.quiet {
        for warning in warnings {
            output::note(format_args!("warning: {warning}"));
        }
    }
}
