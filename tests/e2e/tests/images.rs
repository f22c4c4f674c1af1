//! Images of the server's store under native sandboxes: imported, run from, kept while they are used, removed.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use stacyvm_e2e::Host;
use std::process::{Command, Stdio};

/// A root filesystem with the host's own shell and libraries, one user more, and a file to tell layers by.
fn rootfs(directory: &std::path::Path) -> Result<Vec<u8>> {
    let at = directory.join("rootfs");
    let script = r#"
        set -e
        mkdir -p "$1/bin" "$1/etc" "$1/srv/app" "$1/tmp"
        for program in sh cat id ls sleep; do
            path=$(command -v $program)
            cp -L "$path" "$1/bin/$program"
            for library in $(ldd "$path" | grep -o '/[^ ]*'); do
                mkdir -p "$1$(dirname "$library")"
                cp -L "$library" "$1$library"
            done
        done
        printf 'root:x:0:0::/root:/bin/sh\napp:x:4711:4712::/srv/app:/bin/sh\n' >"$1/etc/passwd"
        echo 'from the image' >"$1/srv/app/file"
        chown 4711:4712 "$1/srv/app" "$1/srv/app/file"
        chmod 750 "$1/srv/app"
        ln "$1/srv/app/file" "$1/srv/app/same"
        tar -C "$1" -c .
    "#;
    let made = Command::new("sh").args(["-c", script, "sh"]).arg(&at).stdin(Stdio::null()).output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Ok(made.stdout)
}

/// The root filesystem as `docker save` would give it, with a configuration of its own.
fn archive(directory: &std::path::Path, tag: &str, config: &Value) -> Result<Vec<u8>> {
    let layer = rootfs(directory)?;
    let at = directory.join("archive");
    std::fs::create_dir(&at)?;
    std::fs::write(at.join("layer.tar"), &layer)?;
    let sum = Command::new("sha256sum").arg(at.join("layer.tar")).output()?.stdout;
    let digest = String::from_utf8(sum)?.split(' ').next().context("no digest")?.to_owned();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    std::fs::write(at.join("config.json"), config.to_string())?;
    let manifest = json!([{"Config": "config.json", "RepoTags": [tag], "Layers": ["layer.tar"]}]);
    std::fs::write(at.join("manifest.json"), manifest.to_string())?;
    let tar = Command::new("tar")
        .arg("-C")
        .arg(&at)
        .args(["-c", "manifest.json", "config.json", "layer.tar"])
        .output()?;
    ensure!(tar.status.success(), "tar failed");
    Ok(tar.stdout)
}

async fn names(host: &Host) -> Result<Vec<String>> {
    let images = host.server.get("/images").await?;
    let images = images.as_array().context("no list")?;
    Ok(images
        .iter()
        .flat_map(|i| i["names"].as_array().cloned().unwrap_or_default())
        .filter_map(|n| n.as_str().map(str::to_owned))
        .collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_is_what_its_image_says() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let config = json!({
        "User": "app", "WorkingDir": "/srv/app", "Env": ["MODE=production", "PATH=/bin"],
        "Volumes": {"/data": {}}, "ExposedPorts": {"8080/tcp": {}}, "Entrypoint": ["/bin/false"],
    });
    let archive = archive(scratch.path(), "my/app:1", &config)?;
    let host = Host::start().await?;
    let imported = host.server.post_bytes("/images/import", archive).await?;
    ensure!(imported[0]["names"] == json!(["my/app:1"]), "{imported}");
    ensure!(imported[0]["config"]["exposed_ports"] == json!(["8080/tcp"]), "{imported}");
    ensure!(imported[0]["notes"].to_string().contains("/data"), "{imported}");
    let sandbox = host.spawn_as(&json!({"image": "my/app:1", "ttl": "5m"})).await?;
    let seen = sandbox.stdout("id -u; id -g; pwd; echo $MODE $HOME; cat file; ls -ln file").await?;
    let lines: Vec<_> = seen.lines().collect();
    ensure!(lines[..5] == ["4711", "4712", "/srv/app", "production /srv/app", "from the image"], "{seen}");
    ensure!(
        lines[5].contains(" 2 4711 ") && lines[5].contains(" 4712 "),
        "a hard link to the user's own file: {seen}"
    );
    // What is written stays in the sandbox.
    sandbox.stdout("echo mine >file; echo more >other").await?;
    let other = host.spawn_as(&json!({"image": "my/app", "ttl": "5m"})).await.err();
    let said = format!("{:#}", other.context("a name without its tag is another")?);
    ensure!(!said.contains("500"), "{said}");
    let second = host.spawn_as(&json!({"image": "my/app:1", "ttl": "5m"})).await?;
    ensure!(second.stdout("cat file; ls").await? == "from the image\nfile\nsame\n");
    host.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_in_use_stays_also_when_the_server_is_killed() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let mut host = Host::start().await?;
    host.server.post_bytes("/images/import?name=local/one:1", rootfs(scratch.path())?).await?;
    let id = host.spawn_as(&json!({"image": "local/one:1", "ttl": "5m"})).await?.id;
    for round in 0..2 {
        let refused = host.server.delete("/images?image=local/one:1").await.err();
        let said = format!("{:#}", refused.context("it was removed under a sandbox")?);
        ensure!(said.contains("is used by 1") && said.contains("force"), "round {round}: {said}");
        host.server.post("/images/prune", &json!({"all": true})).await?;
        ensure!(names(&host).await? == ["local/one:1"], "round {round}");
        if round == 0 {
            host.server.kill_9().await?;
            host.server.restart().await?;
        }
    }
    // By force the name goes, and the files stay for whoever has them.
    host.server.delete("/images?image=local/one:1&force=true").await?;
    host.server.post("/images/prune", &json!({"all": true})).await?;
    ensure!(names(&host).await?.is_empty());
    let sandbox = host.sandbox(&id)?;
    ensure!(
        sandbox.stdout("cat /srv/app/file 2>/dev/null || ls /srv").await? == "app\n",
        "the directory is its owner's"
    );
    sandbox.destroy().await?;
    let pruned = host.server.post("/images/prune", &json!({})).await?;
    ensure!(pruned["layers"] == 1 && pruned["bytes"].as_u64() > Some(0), "{pruned}");
    let layers = host.server.data_dir().join("images/layers");
    ensure!(std::fs::read_dir(&layers)?.next().is_none(), "something is left in {}", layers.display());
    host.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_does_all_of_it_with_and_without_a_server() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let file = scratch.path().join("rootfs.tar");
    std::fs::write(&file, rootfs(scratch.path())?)?;
    let file = file.to_str().context("no name")?;
    let host = Host::start().await?;
    let data_dir = scratch.path().join("data");
    for server in [true, false] {
        let run = |arguments: &[&str]| -> Result<String> {
            let mut command = if server {
                host.cli_command(arguments)?
            } else {
                let mut command = Command::new(stacyvm_testkit::binary()?);
                command.env_clear().args(arguments).stdin(Stdio::null());
                command.env("STACYVM_DATA_DIR", &data_dir).env("HOME", scratch.path());
                command
            };
            let output = command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").output()?;
            let error = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{arguments:?}: {error}");
            Ok(String::from_utf8(output.stdout)?)
        };
        ensure!(run(&["image", "ls"])?.contains("stacyvm image pull"));
        ensure!(
            run(&["image", "import", file, "--name", "local/two"])?
                .starts_with("Imported local/two:latest (")
        );
        let table = run(&["image", "ls"])?;
        ensure!(table.lines().count() == 2 && table.contains("local/two:latest"), "{table}");
        let image: Value = serde_json::from_str(&run(&["image", "inspect", "local/two"])?)?;
        let digits = image["id"].as_str().and_then(|id| id.get(7..19)).context("no id")?.to_owned();
        ensure!(run(&["run", "--image", &digits, "--", "/bin/cat", "/etc/passwd"])?.contains("app:x:4711:"));
        ensure!(run(&["image", "rm", "local/two"])?.starts_with("Removed local/two"));
        ensure!(run(&["image", "prune", "--json"])?.contains("\"layers\""));
    }
    host.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_had_is_said_and_leaves_nothing() -> Result<()> {
    let host = Host::start_with(&[("STACYVM_IMAGES_PULL_POLICY", "never")]).await?;
    for (image, part) in [("local/none:1", "never"), ("no such image!", "alpine"), ("../../etc", "alpine")] {
        let refused = host.spawn_as(&json!({"image": image, "ttl": "5m"})).await.err();
        let said = format!("{:#}", refused.context("it was made")?);
        ensure!(said.contains(part) && !said.contains("500"), "{image}: {said}");
    }
    let refused = host.server.post_bytes("/images/import", b"this is no archive".to_vec()).await.err();
    let said = format!("{:#}", refused.context("it was imported")?);
    ensure!(said.contains("400"), "{said}");
    ensure!(host.states().await?.is_empty() && names(&host).await?.is_empty());
    host.finish().await
}
