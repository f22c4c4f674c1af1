//! The Docker row as an operator walks it: with `curl`, against a server with a key.

use crate::host::{self, IMAGE};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::process::Command;

const KEY: &str = "row-0123456789abcdef0123456789abcdef";

/// What `curl` got: status and body.
fn curl(method: &str, url: &str, body: Option<&Value>) -> Result<(u16, String)> {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "-X", method, "-H", &format!("X-API-Key: {KEY}"), "-w", "\n%{http_code}", url]);
    if let Some(body) = body {
        curl.args(["-H", "Content-Type: application/json", "-d", &body.to_string()]);
    }
    let output = curl.output()?;
    ensure!(output.status.success(), "curl {url}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let (body, status) = text.rsplit_once('\n').context("no status")?;
    Ok((status.parse()?, body.to_owned()))
}

fn ok(method: &str, url: &str, body: Option<&Value>) -> Result<Value> {
    let (status, text) = curl(method, url, body)?;
    ensure!(status < 300, "{method} {url}: {status} {text}");
    Ok(serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_behaviour_by_curl() -> Result<()> {
    let more = [("STACYVM_AUTH_API_KEY", KEY)];
    let host = host::server(&more).await?;
    let api = host.server.url("");

    let providers = ok("GET", &format!("{api}/providers"), None)?;
    ensure!(providers[0]["name"] == "docker" && providers[0]["healthy"] == true, "{providers}");
    let detail = ok("GET", &format!("{api}/providers/docker"), None)?;
    ensure!(detail["config"]["runtime"] == "runc" && detail["config"]["network"] == "none", "{detail}");
    ensure!(
        detail["config"]["agent_volume"].as_str().is_some_and(|v| v.starts_with("stacyvm-agent-")),
        "{detail}"
    );
    ensure!(ok("GET", &format!("{api}/ready"), None)?["status"] == "ready");

    let made = ok("POST", &format!("{api}/sandboxes"), Some(&json!({"image": IMAGE, "provider": "docker"})))?;
    let id = made["id"].as_str().context("no id")?.to_owned();
    ensure!(made["state"] == "running" && made["image"] == IMAGE, "{made}");
    let sandbox = format!("{api}/sandboxes/{id}");
    let run = ok("POST", &format!("{sandbox}/exec"), Some(&json!({"command": "echo ok"})))?;
    ensure!(run["stdout"] == "ok\n" && run["exit_code"] == 0, "{run}");
    let run = ok("POST", &format!("{sandbox}/exec"), Some(&json!({"command": "id -u; exit 7"})))?;
    ensure!(run["stdout"] == "1000\n" && run["exit_code"] == 7, "{run}");
    let streamed = ok(
        "POST",
        &format!("{sandbox}/exec"),
        Some(&json!({"command": "echo a; echo b >&2", "stream": true})),
    )?;
    let streamed = streamed.as_str().map_or_else(|| streamed.to_string(), str::to_owned);
    ensure!(streamed.contains("stdout") && streamed.contains('a'), "{streamed}");

    let files = format!("{sandbox}/files");
    ok("POST", &files, Some(&json!({"path": "/workspace/dir/a.txt", "content": "hello", "mode": "0640"})))?;
    ensure!(curl("GET", &format!("{files}?path=/workspace/dir/a.txt"), None)? == (200, "hello".to_owned()));
    let owner = ok("POST", &format!("{sandbox}/exec"), Some(&json!({"command": "stat -c %u:%a dir/a.txt"})))?;
    ensure!(owner["stdout"] == "1000:640\n", "files belong to the sandbox user: {owner}");
    let list = ok("GET", &format!("{files}/list?path=/workspace/dir"), None)?;
    ensure!(list[0]["path"] == "/workspace/dir/a.txt" && list[0]["size"] == 5, "{list}");
    ok(
        "POST",
        &format!("{files}/move"),
        Some(&json!({"old_path": "/workspace/dir/a.txt", "new_path": "/workspace/b.txt"})),
    )?;
    ok("POST", &format!("{files}/chmod"), Some(&json!({"path": "/workspace/b.txt", "mode": "0600"})))?;
    let stat = ok("GET", &format!("{files}/stat?path=/workspace/b.txt"), None)?;
    ensure!(stat["mode"] == "600" && stat["is_dir"] == false, "{stat}");
    ensure!(
        ok("GET", &format!("{files}/glob?pattern=/workspace/*.txt"), None)? == json!(["/workspace/b.txt"])
    );
    ok("DELETE", &format!("{files}?path=/workspace/b.txt"), None)?;
    ensure!(curl("GET", &format!("{files}?path=/workspace/b.txt"), None)?.0 == 404);

    let stats = ok("GET", &format!("{sandbox}/stats"), None)?;
    ensure!(
        stats["supported"] == true && stats["mem_bytes"].as_u64().is_some_and(|bytes| bytes > 0),
        "{stats}"
    );
    ok("DELETE", &sandbox, None)?;
    ensure!(curl("GET", &sandbox, None)?.0 == 404);
    ensure!(host::containers(&host::installation(&host)?)?.is_empty());
    host::finish(host).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_smoke_script_passes_and_docker_host_is_enough() -> Result<()> {
    let host = stacyvm_e2e::Host::start_on(IMAGE, &[("DOCKER_HOST", &host::daemon()?)]).await?;
    let providers = host.server.get("/providers").await?;
    ensure!(providers[0]["name"] == "docker" && providers[0]["default"] == true, "{providers}");
    // Each image finds its provider.
    ensure!(host.spawn().await?.stdout("id -u").await? == "1000\n");
    let native = host.server.post("/sandboxes", &json!({"image": "host"})).await?;
    ensure!(native["provider"] == "native", "{native}");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/smoke-deployment.sh");
    let output = Command::new(script).arg(host.server.base_url()).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    host::finish(host).await
}
