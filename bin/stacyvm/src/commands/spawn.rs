//! `stacyvm spawn`.

use crate::{cli::Global, complete, failure::Result, output, parse, pulling};
use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use stacyvm_client::CreateOptions;
use stacyvm_types::{CreateSandbox, WireDuration};
use std::collections::BTreeMap;

/// Make a sandbox that stays until it is killed or its time is over
///
/// What is not said is the server's choice (`defaults` in its configuration).
///
/// With --json: the sandbox as the API describes it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  stacyvm spawn --image host
  stacyvm spawn --image python:3.12 --ttl 2h --memory 2g --vcpus 2
  id=$(stacyvm spawn --image host --json | jq -r .id)")]
pub(crate) struct Spawn {
    /// What the root filesystem comes from
    #[arg(long, value_name = "IMAGE", add = ArgValueCompleter::new(complete::served_images))]
    image: Option<String>,
    /// Provider that runs it
    #[arg(long, value_name = "NAME")]
    provider: Option<String>,
    /// Time to live, as 30m
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    ttl: Option<WireDuration>,
    /// Memory limit: a number of MiB, or 512m, 2g
    #[arg(long, value_name = "SIZE", value_parser = parse::memory)]
    memory: Option<i64>,
    /// Disk limit: a number of MiB, or 512m, 2g
    #[arg(long, value_name = "SIZE", value_parser = parse::memory)]
    disk: Option<i64>,
    /// What isolates it, where the provider offers a choice: runc, runsc, …
    #[arg(long, value_name = "NAME")]
    runtime: Option<String>,
    /// Its network, where the provider offers a choice: none, internet
    #[arg(long, value_name = "NAME")]
    network: Option<String>,
    /// Processor limit
    #[arg(long, visible_alias = "cpus", value_name = "N", value_parser = parse::processors)]
    vcpus: Option<i64>,
    /// Label, may be repeated
    #[arg(long = "metadata", value_name = "NAME=VALUE", value_parser = parse::variable)]
    metadata: Vec<(String, String)>,
}

impl Spawn {
    pub(crate) async fn execute(&self, global: &Global) -> Result<()> {
        let metadata: BTreeMap<_, _> = self.metadata.iter().cloned().collect();
        let request = CreateSandbox {
            image: self.image.clone(),
            provider: self.provider.clone(),
            runtime: self.runtime.clone(),
            network_mode: self.network.clone(),
            memory_mb: self.memory,
            disk_size_mb: self.disk,
            vcpus: self.vcpus,
            ttl: self.ttl.map(|ttl| ttl.to_string()),
            metadata: (!metadata.is_empty()).then_some(metadata),
            ..CreateSandbox::default()
        };
        let client = global.client()?;
        let options = CreateOptions::default();
        let creating = client.create(&request, &options);
        let sandbox = pulling::shown(&client, self.image.as_deref(), creating).await?;
        if global.json {
            return output::json(&sandbox);
        }
        output::line(format_args!(
            "Sandbox {} spawned (provider: {}, image: {})",
            sandbox.id, sandbox.provider, sandbox.image
        ))
    }
}
