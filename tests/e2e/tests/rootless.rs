//! Native sandboxes made by a user without any privilege. That user is this program itself, started again, so it has a
//! `main` of its own.

#![expect(clippy::expect_used, reason = "a test, which clippy does not see without a harness")]

use anyhow::{Context, Result, ensure};
use stacyvm_conformance::{Options, Report};
use stacyvm_e2e::keep_report;
use stacyvm_provider::Provider;
use stacyvm_provider_native::{NativeConfig, NativeProvider, SpawnerCommand};
use stacyvm_testkit::{LeakCheck, binary};
use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::Command,
    sync::Arc,
};

/// Nobody on any host, as far as anybody knows.
const USER: u32 = 54_321;
/// Name of the report.
const NAME: &str = "native-rootless";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if let [_, role, directory] = arguments.as_slice()
        && role == "user"
    {
        return runtime.block_on(user(Path::new(directory)));
    }
    // A filter that does not name this, as `cargo test <name>` passes to every program.
    let filters: Vec<_> = arguments.iter().skip(1).filter(|a| !a.starts_with('-') && **a != "1").collect();
    if !filters.is_empty() && !filters.iter().any(|filter| "rootless".contains(filter.as_str())) {
        return Ok(());
    }
    ensure!(
        rustix::process::geteuid().is_root(),
        "this test takes root, to become somebody without privileges"
    );
    runtime.block_on(rootless())?;
    println!("rootless ... ok");
    Ok(())
}

/// What root prepares and looks at afterwards.
async fn rootless() -> Result<()> {
    let leaks = LeakCheck::before();
    let directory = tempfile::Builder::new().prefix("stacyvm-rootless-").tempdir_in("/var/tmp")?;
    let path = |name: &str| directory.path().join(name);
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    // Where everybody may start them.
    for (from, to) in [(binary()?, "stacyvm"), (std::env::current_exe()?, "test")] {
        fs::copy(&from, path(to)).with_context(|| from.display().to_string())?;
        fs::set_permissions(path(to), fs::Permissions::from_mode(0o755))?;
    }
    fs::create_dir(path("home"))?;
    std::os::unix::fs::chown(path("home"), Some(USER), Some(USER))?;
    let as_user = |program: &str| {
        let mut command = Command::new(path(program));
        // Gives up groups and capabilities too.
        command.uid(USER).gid(USER).current_dir("/").env("HOME", path("home")).env("TMPDIR", path("home"));
        command
    };

    let status = as_user("test").arg("user").arg(path("home")).status()?;
    let report = fs::read(path("home").join("report.json")).context("the report")?;
    let report: Report = serde_json::from_slice(&report)?;
    keep_report(NAME, &report)?;
    ensure!(status.success(), "the suite failed: {:?}", report.failures());

    // The same by hand: nothing but the program, nothing set up.
    let run = as_user("stacyvm")
        .args(["run", "--", "python3", "-c", "import os; print(40 + 2, os.getuid())"])
        .output()?;
    let (stdout, stderr) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    ensure!(run.status.success() && stdout == "42 1000\n", "{stdout:?} {stderr:?}");
    let refused = as_user("stacyvm").args(["run", "--user", "root", "--", "true"]).output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(125) && said.contains("only the user sandbox"), "{said:?}");

    drop(directory);
    leaks.check().await
}

/// What the user does.
async fn user(home: &Path) -> Result<()> {
    ensure!(rustix::process::geteuid().as_raw() == USER, "this is somebody else");
    let program = std::env::current_exe()?.parent().expect("a file is in a directory").join("stacyvm");
    let provider = NativeProvider::start(NativeConfig {
        data_dir: home.join("data"),
        installation_id: format!("rootless-{}", std::process::id()),
        generation: 1,
        spawner: SpawnerCommand { program, args: vec!["internal-spawner".into()] },
        agent: stacyvm_guest_binaries::AGENT,
        lock: None,
        image_dirs: Vec::new(),
        images: None,
        network: Default::default(),
    })?;
    let health = provider.health().await;
    ensure!(health.healthy, "{health:?}");
    // Each guarantee that is lost has its words.
    for lost in ["rights of the server's user", "one user", "may end what starts", "limits on"] {
        ensure!(health.warnings.iter().any(|warning| warning.contains(lost)), "{lost}: {health:?}");
    }
    ensure!(!provider.capabilities().root_user, "there is no root");
    let report = stacyvm_conformance::run(Arc::new(provider), Options::default()).await;
    println!("{report}");
    fs::write(home.join("report.json"), serde_json::to_vec(&report)?)?;
    ensure!(report.is_success(), "promises were broken");
    Ok(())
}
