//! `xtask leak-check`: what StacyVM left on this host. Nothing of ours may be running when it is called.

use anyhow::{Result, bail};
use stacyvm_testkit::{LeakCheck, left_in};
use std::path::PathBuf;

/// Arguments of `xtask leak-check`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Look only at this installation, whose server is stopped and whose sandboxes were all destroyed.
    #[arg(long)]
    data_dir: Option<PathBuf>,
}

/// Prints what is left and fails if that is anything.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match &arguments.data_dir {
        None => runtime.block_on(LeakCheck::from_nothing().check())?,
        Some(data_dir) => {
            let left = runtime.block_on(left_in(data_dir))?;
            if !left.is_empty() {
                bail!("left by the installation in {}:\n  {}", data_dir.display(), left.join("\n  "));
            }
        }
    }
    println!("nothing is left");
    Ok(())
}
