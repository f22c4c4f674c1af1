//! Two installations on one host: each sees, changes and cleans up only its own.

use anyhow::{Result, ensure};
use stacyvm_e2e::Host;
use stacyvm_testkit::binary;
use std::process::{Command, Stdio};

#[tokio::test]
async fn two_installations_do_not_see_each_other() -> Result<()> {
    let mut one = Host::start().await?;
    let two = Host::start().await?;
    let (in_one, in_two) = (one.spawn().await?.id, two.spawn().await?.id);
    ensure!(one.states().await? == [(in_one.clone(), "running".to_owned())]);
    ensure!(two.states().await? == [(in_two.clone(), "running".to_owned())]);
    one.server.kill_9().await?;
    one.server.restart().await?;
    one.until("it is back", |states| states.iter().any(|(_, state)| state == "running")).await?;
    ensure!(two.sandbox(&in_two)?.stdout("echo untouched").await? == "untouched\n");
    ensure!(one.sandbox(&in_one)?.stdout("echo adopted").await? == "adopted\n");
    one.sandbox(&in_one)?.destroy().await?;
    ensure!(two.sandbox(&in_two)?.stdout("echo still here").await? == "still here\n");
    two.sandbox(&in_two)?.destroy().await?;
    // Each leak check sees the whole host: the last one sees both gone.
    two.server.stop().await?;
    one.finish().await
}

#[tokio::test]
async fn one_data_directory_serves_one_server() -> Result<()> {
    let host = Host::start().await?;
    let output = Command::new(binary()?)
        .arg("serve")
        .env_clear()
        .env("HOME", host.server.data_dir())
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("STACYVM_DATA_DIR", host.server.data_dir())
        .env("STACYVM_SERVER_HOST", "127.0.0.1")
        .env("STACYVM_SERVER_PORT", "0")
        .stdin(Stdio::null())
        .output()?;
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    ensure!(!output.status.success() && said.contains(&host.server.pid().to_string()), "{said}");
    host.finish().await
}
