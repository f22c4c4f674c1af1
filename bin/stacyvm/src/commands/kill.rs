//! `stacyvm kill`.

use crate::{
    cli::Global,
    complete,
    failure::{Failure, Result},
    output,
    remote::about_sandbox,
};
use clap::Args;
use clap_complete::engine::ArgValueCompleter;

/// Destroy sandboxes
///
/// An unknown id is an error; the others are destroyed all the same.
///
/// With --json: {"destroyed": [ids], "failed": [{"id", "error"}]}.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  stacyvm kill sb-0123456789abcdef
  stacyvm ls --json | jq -r '.[].id' | xargs -r stacyvm kill")]
pub(crate) struct Kill {
    /// Sandboxes to destroy
    #[arg(required = true, value_name = "ID", add = ArgValueCompleter::new(complete::sandboxes))]
    ids: Vec<String>,
}

impl Kill {
    pub(crate) async fn execute(&self, global: &Global) -> Result<()> {
        let client = global.client()?;
        let mut destroyed = Vec::new();
        let mut failed: Vec<(&str, Failure)> = Vec::new();
        for id in &self.ids {
            // Destroying is idempotent, so only a look tells an unknown id.
            let outcome = match client.sandbox(id).await {
                Ok(_) => client.destroy(id).await.map(drop),
                Err(error) => Err(error),
            };
            match outcome {
                Ok(()) => {
                    destroyed.push(id.as_str());
                    if !global.json {
                        output::line(format_args!("Sandbox {id} destroyed"))?;
                    }
                }
                Err(error) => failed.push((id, about_sandbox(error))),
            }
        }
        if global.json {
            let failures = failed.iter().map(|(id, f)| serde_json::json!({"id": id, "error": f.what}));
            output::json(
                &serde_json::json!({"destroyed": destroyed, "failed": failures.collect::<Vec<_>>()}),
            )?;
            return if failed.is_empty() { Ok(()) } else { Err(Failure::silent(1)) };
        }
        let Some((_, last)) = failed.pop() else { return Ok(()) };
        for (_, failure) in failed {
            failure.report(false);
        }
        Err(last)
    }
}
