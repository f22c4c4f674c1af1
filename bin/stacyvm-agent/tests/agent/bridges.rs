//! An agent with a socket of its own, reached through bridges: who gets through, and how a bridge ends.

use crate::harness::{HANG, eventually, identity};
use stacyvm_guest::{
    hello::BRIDGE_GREETING,
    host::{self, Duplex},
    proto::{PingRequest, Role, control_client::ControlClient},
};
use std::{
    fs,
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt, net::UnixStream as StdStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};
use tokio::{io::AsyncReadExt, net::UnixStream};

const AGENT: &str = env!("CARGO_BIN_EXE_stacyvm-agent");

struct Listening {
    directory: tempfile::TempDir,
    child: Child,
}

impl Listening {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let socket = directory.path().join("agent.sock");
        // What an earlier agent of the same container left.
        fs::write(&socket, "").unwrap();
        let child = Command::new(AGENT)
            .args(["--sandbox", "sb-test", "--installation", "inst", "--uid", "0", "--gid", "0", "--listen"])
            .arg(&socket)
            .arg("--root")
            .arg(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        eventually("no socket", || StdStream::connect(&socket).is_ok()).await;
        Self { directory, child }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A bridge, and the caller's end of its standard streams.
fn bridge(socket: &Path) -> (Child, UnixStream) {
    let (ours, theirs) = StdStream::pair().unwrap();
    let mut command = Command::new(AGENT);
    command.arg("bridge").arg(socket);
    command.stdin(OwnedFd::from(theirs.try_clone().unwrap())).stdout(OwnedFd::from(theirs));
    let child = command.stderr(Stdio::null()).spawn().unwrap();
    ours.set_nonblocking(true).unwrap();
    (child, UnixStream::from_std(ours).unwrap())
}

async fn greeted(stream: &mut UnixStream) {
    let mut greeting = vec![0; BRIDGE_GREETING.len()];
    tokio::time::timeout(HANG, stream.read_exact(&mut greeting)).await.unwrap().unwrap();
    assert_eq!(greeting, BRIDGE_GREETING);
}

#[tokio::test]
async fn a_bridge_carries_a_connection_and_ends_with_its_caller() {
    let agent = Listening::start().await;
    let (mut child, mut stream) = bridge(&agent.socket());
    greeted(&mut stream).await;
    let stream = std::sync::Arc::new(std::sync::Mutex::new(Some(stream)));
    let channel = host::channel(identity(1), Role::Control, true, move || {
        let stream = std::sync::Arc::clone(&stream);
        async move {
            let stream = stream.lock().unwrap().take().ok_or("it was dialled twice")?;
            Ok(Box::new(stream) as Box<dyn Duplex>)
        }
    });
    let mut control = ControlClient::new(channel);
    tokio::time::timeout(HANG, control.ping(PingRequest {})).await.unwrap().unwrap();
    drop(control);
    eventually("the bridge outlives its caller", || child.try_wait().unwrap().is_some()).await;
}

#[tokio::test]
async fn a_bridge_ends_with_its_agent() {
    let mut agent = Listening::start().await;
    let (mut child, mut stream) = bridge(&agent.socket());
    greeted(&mut stream).await;
    agent.child.kill().unwrap();
    let mut rest = Vec::new();
    tokio::time::timeout(HANG, stream.read_to_end(&mut rest)).await.expect("no end").unwrap();
    eventually("the bridge outlives its agent", || child.try_wait().unwrap().is_some()).await;
    let (mut child, mut stream) = bridge(&agent.socket());
    tokio::time::timeout(HANG, stream.read_to_end(&mut rest)).await.expect("no end").unwrap();
    assert!(rest.is_empty() && !child.wait().unwrap().success(), "a bridge to nobody greets");
}

/// Needs root, to be somebody else.
#[tokio::test]
async fn a_process_of_the_sandbox_is_turned_away() {
    let agent = Listening::start().await;
    // In a sandbox its directory is closed too; here only the agent's own look counts.
    fs::set_permissions(agent.socket(), fs::Permissions::from_mode(0o666)).unwrap();
    let (agents_socket, somebody) = (agent.socket(), rustix::process::Uid::from_raw(12345));
    // A thread has a user of its own for the kernel, and only this one becomes somebody else.
    let connect = std::thread::spawn(move || {
        rustix::thread::set_thread_res_uid(somebody, somebody, somebody).unwrap();
        StdStream::connect(agents_socket).unwrap()
    });
    let stream = connect.join().unwrap();
    stream.set_nonblocking(true).unwrap();
    let mut stream = UnixStream::from_std(stream).unwrap();
    let refused = tokio::time::timeout(HANG, host::introduce(&mut stream, &identity(1), Role::Control)).await;
    assert!(refused.expect("it is neither served nor turned away").is_err());
}

/// Whoever put a socket of its own where the agent's was gets no connection.
#[tokio::test]
async fn a_bridge_to_an_impostor_does_not_greet() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agent.sock");
    let (path, somebody) = (socket.clone(), rustix::process::Uid::from_raw(12345));
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let listen = std::thread::spawn(move || {
        rustix::thread::set_thread_res_uid(somebody, somebody, somebody).unwrap();
        std::os::unix::net::UnixListener::bind(path).unwrap()
    });
    let _listener = listen.join().unwrap();
    let (mut child, mut stream) = bridge(&socket);
    let mut said = Vec::new();
    tokio::time::timeout(HANG, stream.read_to_end(&mut said)).await.expect("no end").unwrap();
    assert!(said.is_empty() && !child.wait().unwrap().success(), "it greets");
}
