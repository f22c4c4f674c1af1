//! The real `stacyvm serve` as a test subject: started on a free port with a data directory of its own, killed, stopped,
//! restarted, and asked over plain HTTP.

use anyhow::{Context, Result, bail, ensure};
use reqwest::{
    Method, RequestBuilder,
    header::{HeaderMap, HeaderValue},
};
use serde_json::Value;
use std::{
    fs::File,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

/// How long a server may take to become ready or to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// The binary under test: `STACYVM_BIN`, or the one that was built beside the running test.
///
/// # Errors
/// When there is none.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("STACYVM_BIN") {
        return PathBuf::from(&path)
            .canonicalize()
            .with_context(|| format!("STACYVM_BIN is {}", path.display()));
    }
    let test = std::env::current_exe()?;
    let built = test.ancestors().map(|dir| dir.join("stacyvm")).find(|path| path.is_file());
    built.context("build the binary first (cargo build -p stacyvm) or set STACYVM_BIN")
}

/// A server under test. Dropped, it is killed and its data directory removed; the log is shown if the test panicked.
pub struct Server {
    child: Child,
    port: u16,
    home: tempfile::TempDir,
    environment: Vec<(String, String)>,
    http: reqwest::Client,
    binary: PathBuf,
}

impl Server {
    /// Starts a server with these variables on top of the test's defaults and waits until it is ready.
    ///
    /// # Errors
    /// With the server's log when it does not become ready.
    pub async fn start(environment: &[(&str, &str)]) -> Result<Self> {
        Self::start_binary(&binary()?, environment).await
    }

    /// The same with a binary of the caller's choice.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub async fn start_binary(binary: &Path, environment: &[(&str, &str)]) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let home = tempfile::Builder::new().prefix("stacyvm-test-").tempdir()?;
        let environment: Vec<_> =
            environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let child = launch(binary, home.path(), port, &environment, &[])?;
        let key = environment.iter().find(|(name, _)| name == "STACYVM_AUTH_API_KEY");
        let mut headers = HeaderMap::new();
        if let Some((_, key)) = key {
            headers.insert("x-api-key", HeaderValue::from_str(key)?);
        }
        let http = reqwest::Client::builder().default_headers(headers).build()?;
        let mut server = Self { child, port, home, environment, http, binary: binary.to_owned() };
        server.ready().await?;
        Ok(server)
    }

    /// Address of a route below `/api/v1`.
    pub fn url(&self, path: &str) -> String {
        format!("{}/api/v1{path}", self.base_url())
    }

    /// Address of the server, as `--server` takes it.
    pub fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The client that all calls here use.
    pub fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// Everything this installation keeps.
    pub fn data_dir(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// The server's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Memory of the server that is in RAM now, in bytes.
    ///
    /// # Errors
    /// When the server is gone.
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? * 1024)
    }

    /// The server's log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.home.path().join("server.log")).unwrap_or_default()
    }

    /// Asks for JSON.
    ///
    /// # Errors
    /// For any status of 400 and above, with the body.
    pub async fn get(&self, path: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.get_text(path).await?)?)
    }

    /// Asks for text.
    ///
    /// # Errors
    /// As [`Server::get`].
    pub async fn get_text(&self, path: &str) -> Result<String> {
        self.text(self.http.request(Method::GET, self.url(path))).await
    }

    /// Posts JSON.
    ///
    /// # Errors
    /// As [`Server::get`].
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.post_with(path, &[], body).await
    }

    /// Posts JSON with headers.
    ///
    /// # Errors
    /// As [`Server::get`].
    pub async fn post_with(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> Result<Value> {
        let request = self.http.post(self.url(path)).json(body);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        Ok(serde_json::from_str(&self.text(request).await?)?)
    }

    /// Posts bytes.
    ///
    /// # Errors
    /// As [`Server::get`].
    pub async fn post_bytes(&self, path: &str, body: Vec<u8>) -> Result<Value> {
        Ok(serde_json::from_str(&self.text(self.http.post(self.url(path)).body(body)).await?)?)
    }

    /// Deletes.
    ///
    /// # Errors
    /// As [`Server::get`].
    pub async fn delete(&self, path: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.text(self.http.delete(self.url(path))).await?)?)
    }

    async fn text(&self, request: RequestBuilder) -> Result<String> {
        let reply = request.timeout(Duration::from_secs(60)).send().await?;
        let (status, url) = (reply.status(), reply.url().path().to_owned());
        let text = reply.text().await?;
        ensure!(status.is_success(), "{url}: {status}: {text}");
        Ok(text)
    }

    /// Kills the server as `kill -9` does.
    ///
    /// # Errors
    /// When it is not there any more.
    pub async fn kill_9(&mut self) -> Result<()> {
        self.child.kill()?;
        self.wait_for_exit(PATIENCE).await.map(drop)
    }

    /// Stops the server with SIGTERM; it must end with 0.
    ///
    /// # Errors
    /// When it does not end in time, or with another status.
    pub async fn stop_gracefully(&mut self) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = self.wait_for_exit(PATIENCE).await?;
        ensure!(status.success(), "the server ended with {status}:\n{}", self.log());
        Ok(())
    }

    /// Stops the server for good.
    ///
    /// # Errors
    /// As [`Server::stop_gracefully`].
    pub async fn stop(mut self) -> Result<()> {
        self.stop_gracefully().await
    }

    /// Waits until the server has ended by itself.
    ///
    /// # Errors
    /// When it has not within `patience`.
    pub async fn wait_for_exit(&mut self, patience: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "the server did not end:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Starts it again on the same port and data, and waits until it is ready.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub async fn restart(&mut self) -> Result<()> {
        self.restart_with(&[]).await
    }

    /// The same with more variables, for this start only.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub async fn restart_with(&mut self, more: &[(&str, &str)]) -> Result<()> {
        ensure!(self.child.try_wait()?.is_some(), "it is still running");
        self.child = launch(&self.binary, self.home.path(), self.port, &self.environment, more)?;
        self.ready().await
    }

    async fn ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended with {status}:\n{}", self.log());
            }
            let request = self.http.get(self.url("/ready")).timeout(Duration::from_secs(2));
            if let Ok(reply) = request.send().await
                && reply.status().is_success()
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bail!("the server did not become ready:\n{}", self.log())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // After a test that failed: sandboxes outlive their server, and busy ones would spoil every test behind it.
        end_agents(&self.data_dir());
        if std::thread::panicking() {
            eprintln!("--- server log ---\n{}", self.log());
        }
    }
}

/// Kills the agents of an installation, and with each of them its sandbox.
fn end_agents(data_dir: &Path) {
    let Ok(installation) = std::fs::read_to_string(data_dir.join("installation")) else { return };
    let mark = format!("\0--installation\0{}\0", installation.trim());
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(&mark) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

fn launch(
    binary: &Path,
    home: &Path,
    port: u16,
    environment: &[(String, String)],
    more: &[(&str, &str)],
) -> Result<Child> {
    let log = File::options().create(true).append(true).open(home.join("server.log"))?;
    let mut command = Command::new(binary);
    command.arg("serve").current_dir(home).env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("HOME", home);
    command.env("STACYVM_DATA_DIR", home.join("data"));
    command.env("STACYVM_SERVER_HOST", "127.0.0.1");
    command.env("STACYVM_SERVER_PORT", port.to_string());
    command.env("RUST_BACKTRACE", "1");
    command.envs(environment.iter().map(|(key, value)| (key, value)));
    command.envs(more.iter().copied());
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().with_context(|| format!("cannot start {}", binary.display()))
}
