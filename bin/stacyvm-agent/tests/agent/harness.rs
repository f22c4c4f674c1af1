//! Starts an agent in a temporary directory, speaks to it, and sees to it that nothing of it stays.

use stacyvm_guest::{
    host::{self, Identity},
    proto::{
        AttachRequest, OutputEvent, Process, Role, RunRequest, StartRequest, WaitRequest,
        bulk_client::BulkClient, control_client::ControlClient, output_event::Event, process::Outcome,
    },
};
use std::{
    fs,
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt, net::UnixListener},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tokio::net::UnixStream;
use tonic::{Code, Status, Streaming, transport::Channel};

/// Long enough that only something that hangs takes it.
pub(crate) const HANG: Duration = Duration::from_secs(20);

pub(crate) struct Agent {
    directory: tempfile::TempDir,
    child: Child,
    pub(crate) control: ControlClient<Channel>,
    pub(crate) bulk: BulkClient<Channel>,
}

pub(crate) fn identity(generation: u64) -> Identity {
    Identity { installation_id: "inst".into(), generation, sandbox_id: "sb-test".into() }
}

fn channel(socket: PathBuf, generation: u64, role: Role) -> Channel {
    host::channel(identity(generation), role, false, move || {
        let socket = socket.clone();
        async move {
            let stream = UnixStream::connect(socket).await?;
            Ok(Box::new(stream) as Box<dyn host::Duplex>)
        }
    })
}

impl Agent {
    /// A running agent without isolation, and clients of generation 1.
    pub(crate) fn start() -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stacyvm-agent"));
        Self::spawn(|root| {
            command
                .arg("--root")
                .arg(root)
                .args(["--uid", &rustix::process::getuid().as_raw().to_string()])
                .args(["--gid", &rustix::process::getgid().as_raw().to_string()]);
            command
        })
    }

    /// The same as the first process of a pid namespace, with users of its own, on the host's files.
    pub(crate) fn start_first() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        Self::spawn(|root| {
            command.arg(env!("CARGO_BIN_EXE_stacyvm-agent"));
            command.arg("--home").arg(root.join("home/sandbox")).arg("--workdir").arg(root.join("workspace"));
            command
        })
    }

    fn spawn(command: impl FnOnce(&Path) -> Command) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for inner in ["root/workspace", "root/home/sandbox", "root/tmp"] {
            fs::create_dir_all(directory.path().join(inner)).unwrap();
            fs::set_permissions(directory.path().join(inner), fs::Permissions::from_mode(0o777)).unwrap();
        }
        let socket = directory.path().join("agent.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let child = command(&directory.path().join("root"))
            .args(["--listen-fd", "0", "--sandbox", "sb-test", "--installation", "inst"])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("SECRET", "of the server")
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let control = ControlClient::new(channel(socket.clone(), 1, Role::Control));
        let bulk = BulkClient::new(channel(socket, 1, Role::Bulk));
        Self { directory, child, control, bulk }
    }

    /// A file or directory of the sandbox, as the host sees it.
    pub(crate) fn host_path(&self, path: &str) -> PathBuf {
        self.directory.path().join("root").join(path.trim_start_matches('/'))
    }

    /// A new raw stream.
    pub(crate) async fn dial(&self) -> UnixStream {
        UnixStream::connect(self.directory.path().join("agent.sock")).await.unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The agent itself: `unshare` stays in front of a first process.
    fn agent_pid(&self) -> i32 {
        let own = self.child.id();
        let name = fs::read_to_string(format!("/proc/{own}/comm")).unwrap();
        if name.trim() != "unshare" {
            return own as i32;
        }
        let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap();
        children.trim().parse().unwrap()
    }

    /// Starts a shell script.
    pub(crate) async fn sh(&self, id: &str, script: &str) -> Process {
        self.run(StartRequest { argv: words(&["sh", "-c", script]), ..request(id) }).await.unwrap()
    }

    pub(crate) async fn run(&self, request: StartRequest) -> Result<Process, Status> {
        tokio::time::timeout(HANG, self.control.clone().start(request)).await.unwrap().map(|r| r.into_inner())
    }

    /// Waits for the end of a process.
    pub(crate) async fn end_of(&self, id: &str) -> Process {
        let request = WaitRequest { id: id.into(), timeout_ms: HANG.as_millis() as u64 };
        let process = self.control.clone().wait(request).await.unwrap().into_inner();
        assert!(process.outcome.is_some(), "it did not end: {process:?}");
        process
    }

    pub(crate) async fn attach(&self, id: &str, offset: u64, follow: bool, pace: bool) -> Attached {
        let request = AttachRequest { id: id.into(), offset, follow, pace };
        Attached(self.bulk.clone().attach(request).await.unwrap().into_inner())
    }

    /// Starts a process and attaches to it in one call.
    pub(crate) async fn start_and_attach(
        &self,
        start: StartRequest,
        pace: bool,
    ) -> Result<(Process, Attached), Status> {
        let request = RunRequest { start: Some(start), pace };
        let answer = tokio::time::timeout(HANG, self.bulk.clone().run(request)).await.unwrap()?;
        let mut attached = Attached(answer.into_inner());
        let Some(Event::Started(process)) = attached.next().await else { panic!("no start") };
        Ok((process, attached))
    }

    /// Everything that a process writes until it ends.
    pub(crate) async fn output_of(&self, id: &str) -> Output {
        self.attach(id, 0, true, false).await.rest().await
    }

    /// Processes of this sandbox, the agent's own included: known by the home directory in their environment, or by
    /// descent from the agent.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let mark = format!("HOME={}", self.directory.path().display());
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let read = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
            let stat = String::from_utf8_lossy(&read("stat")).into_owned();
            let fields: Vec<&str> =
                stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
            if fields.first().is_none_or(|state| matches!(*state, "Z" | "X")) {
                continue;
            }
            let home = String::from_utf8_lossy(&read("environ")).contains(&mark);
            let arguments =
                String::from_utf8_lossy(&read("cmdline")).contains(&*self.directory.path().to_string_lossy());
            if home || arguments {
                found.push(pid);
            }
        }
        found
    }

    /// Waits until nothing of the sandbox runs but the agent's own two processes.
    pub(crate) async fn only_agent_left(&self) {
        eventually("processes are left", || self.processes().len() <= 2).await;
    }

    /// Ends the agent as a runtime does and checks that nothing stays.
    pub(crate) async fn end(mut self) {
        let pid = rustix::process::Pid::from_raw(self.agent_pid()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        eventually("the agent does not end", || self.child.try_wait().unwrap().is_some()).await;
        assert_eq!(self.processes(), [] as [i32; 0], "after its end");
    }

    /// Kills the agent as nothing should, and waits for what it started to notice.
    pub(crate) async fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        eventually("processes outlive their agent", || self.processes().is_empty()).await;
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // After `end` both do nothing. After a failed test the supervisors see their agent gone and end their trees.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a condition that must come true.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + HANG;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

pub(crate) fn request(id: &str) -> StartRequest {
    StartRequest { id: id.into(), ..StartRequest::default() }
}

/// The code of a call that must fail.
pub(crate) fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    result.unwrap_err().code()
}

/// Output events that were received.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// Offset and length of what was not kept.
    pub(crate) gaps: Vec<(u64, u64)>,
    /// Offset behind the last byte.
    pub(crate) position: u64,
    pub(crate) exit: Option<Process>,
}

impl Output {
    pub(crate) fn code(&self) -> i32 {
        match self.exit.as_ref().and_then(|process| process.outcome.clone()) {
            Some(Outcome::ExitCode(code)) => code,
            other => panic!("it did not exit: {other:?}"),
        }
    }
}

pub(crate) struct Attached(Streaming<OutputEvent>);

impl Attached {
    /// The next event; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        let message = tokio::time::timeout(HANG, self.0.message()).await.expect("the output hangs").unwrap();
        message.map(|event| event.event.unwrap())
    }

    /// Everything to the end of the stream, checked for order.
    pub(crate) async fn rest(mut self) -> Output {
        let mut output = Output::default();
        let mut position = None;
        while let Some(event) = self.next().await {
            assert!(output.exit.is_none(), "something follows the exit: {event:?}");
            match event {
                Event::Chunk(chunk) => {
                    assert_eq!(position.unwrap_or(chunk.offset), chunk.offset, "out of order");
                    assert!(!chunk.data.is_empty() && chunk.data.len() <= 64 << 10);
                    position = Some(chunk.offset + chunk.data.len() as u64);
                    match chunk.stream {
                        1 => output.stdout.extend_from_slice(&chunk.data),
                        2 => output.stderr.extend_from_slice(&chunk.data),
                        other => panic!("stream {other}"),
                    }
                }
                Event::Gap(gap) => {
                    assert_eq!(position.unwrap_or(gap.offset), gap.offset, "out of order");
                    position = Some(gap.offset + gap.length);
                    output.gaps.push((gap.offset, gap.length));
                }
                Event::Exit(process) => output.exit = Some(process),
                Event::Started(process) => panic!("a start in the middle: {process:?}"),
            }
        }
        output.position = position.unwrap_or_default();
        output
    }
}
