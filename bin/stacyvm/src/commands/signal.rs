//! `stacyvm signal`.

use crate::{
    cli::Global,
    complete,
    failure::{Failure, Result},
    output,
    remote::about_process,
};
use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use stacyvm_types::SignalName;

/// Send a signal to a process of a sandbox
///
/// Exit code: 0 if it was delivered, 1 if the process had ended.
///
/// With --json: {"sandbox", "process", "signal", "delivered"}.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  stacyvm signal sb-0123456789abcdef p-0123456789abcdef
  stacyvm signal sb-0123456789abcdef p-0123456789abcdef HUP
  stacyvm signal sb-0123456789abcdef p-0123456789abcdef KILL --tree")]
pub(crate) struct Signal {
    /// The sandbox
    #[arg(value_name = "SANDBOX", add = ArgValueCompleter::new(complete::sandboxes))]
    sandbox: String,
    /// The process; `stacyvm ps SANDBOX` shows them
    #[arg(value_name = "PROCESS", add = ArgValueCompleter::new(complete::processes))]
    process: String,
    /// Name or number
    #[arg(value_name = "SIGNAL", default_value = "TERM", value_parser = number, add = ArgValueCompleter::new(complete::signals))]
    signal: i32,
    /// Also to everything that the process started
    #[arg(long)]
    tree: bool,
}

impl Signal {
    pub(crate) async fn execute(&self, global: &Global) -> Result<()> {
        let client = global.client()?;
        let delivered = match client.signal(&self.sandbox, &self.process, self.signal, self.tree).await {
            Ok(delivered) => delivered,
            Err(error) => return Err(about_process(&client, error, &self.sandbox).await),
        };
        if global.json {
            output::json(&serde_json::json!({
                "sandbox": self.sandbox, "process": self.process, "signal": self.signal, "delivered": delivered,
            }))?;
            return if delivered { Ok(()) } else { Err(Failure::silent(1)) };
        }
        if delivered {
            return Ok(());
        }
        let fix = format!("`stacyvm ps {} --all` shows how it ended", self.sandbox);
        Err(Failure::new(format!("process {} had ended already", self.process), fix))
    }
}

fn number(text: &str) -> Result<i32, String> {
    let number = SignalName::Name(text.to_owned()).number();
    number.ok_or_else(|| "use a name, as TERM or SIGTERM, or a number from 1 to 64".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_in_every_spelling() {
        for text in ["TERM", "sigterm", "15"] {
            assert_eq!(number(text), Ok(15));
        }
        assert!(number("0").is_err() && number("NOPE").is_err());
    }
}
