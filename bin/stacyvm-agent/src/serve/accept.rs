//! From the listening socket to HTTP/2, one task for each connection.
//!
//! hyper is driven directly, as a connection must end when a newer control plane arrives: dropping its future does that,
//! and resets every call on it.

use super::{Sandbox, bulk::BulkService, control::ControlService, gate::Gate};
use crate::args::Listen;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use stacyvm_guest::{
    hello, limits,
    proto::{Role, bulk_server::BulkServer, control_server::ControlServer},
};
use std::{
    convert::Infallible, fs::Permissions, io, os::unix::fs::PermissionsExt, path::Path, sync::Arc,
    time::Duration,
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
};
use tonic::{body::Body, codegen::Service};

/// Opening exchanges under way at once; further callers are turned away.
const PENDING: usize = 64;
/// Connections at once; further callers are turned away.
const CONNECTIONS: usize = 64;
/// Silence after which a peer is asked whether it lives.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Time for its answer.
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(20);
/// Longest list of headers, in bytes.
const HEADERS: u32 = 16 << 10;
/// Answer bytes that wait in one stream for its reader's window, beyond that window.
const SEND_BUFFER: usize = 128 << 10;
/// Pause after a failure to accept: descriptors or memory may be free again then.
const PAUSE: Duration = Duration::from_millis(100);

/// Makes the socket that bridges come to. What an earlier agent of a container that was started again left is replaced.
///
/// # Errors
/// The kernel's.
pub(crate) fn listen(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Whether a caller is a bridge and not a process of the sandbox: it runs as the agent's own user. A socket that was
/// inherited cannot be reached from inside at all.
fn is_ours(stream: &UnixStream, sandbox: &Sandbox) -> bool {
    let ours = rustix::process::geteuid().as_raw();
    matches!(sandbox.config.listen, Listen::Fd(_)) || stream.peer_cred().is_ok_and(|peer| peer.uid() == ours)
}

/// Accepts connections for ever.
pub(crate) async fn run(listener: UnixListener, sandbox: Sandbox) -> Infallible {
    let gate = Arc::new(Gate::new(Arc::clone(&sandbox.config)));
    let pending = Arc::new(Semaphore::new(PENDING));
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        if !is_ours(&stream, &sandbox) {
            continue;
        }
        let permits =
            (Arc::clone(&pending).try_acquire_owned(), Arc::clone(&connections).try_acquire_owned());
        let (Ok(pending), Ok(connection)) = permits else { continue };
        let (gate, sandbox) = (Arc::clone(&gate), sandbox.clone());
        tokio::spawn(async move {
            let _connection = connection;
            serve(stream, &gate, sandbox, pending).await;
        });
    }
}

async fn serve<P>(mut stream: UnixStream, gate: &Gate, sandbox: Sandbox, pending: P) {
    let Ok(Ok(mut admitted)) = tokio::time::timeout(hello::TIMEOUT, gate.admit(&mut stream)).await else {
        return;
    };
    drop(pending);
    match admitted.role {
        Role::Bulk => {
            let service = BulkServer::new(BulkService(sandbox));
            let service = service
                .max_decoding_message_size(limits::MESSAGE_BYTES)
                .max_encoding_message_size(limits::MESSAGE_BYTES);
            until_superseded(stream, service, admitted.superseded()).await;
        }
        _ => {
            let service = ControlServer::new(ControlService(sandbox));
            let service = service
                .max_decoding_message_size(limits::MESSAGE_BYTES)
                .max_encoding_message_size(limits::MESSAGE_BYTES);
            until_superseded(stream, service, admitted.superseded()).await;
        }
    }
}

/// Serves one connection until either side ends it or `superseded` returns.
async fn until_superseded<S>(stream: UnixStream, service: S, superseded: impl Future<Output = ()>)
where
    S: Service<http::Request<Incoming>, Response = http::Response<Body>, Error = Infallible> + Clone,
    S::Future: Send + 'static,
{
    let service = service_fn(move |request| service.clone().call(request));
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(limits::STREAM_WINDOW)
        .initial_connection_window_size(limits::CONNECTION_WINDOW)
        .max_concurrent_streams(limits::STREAMS)
        .max_header_list_size(HEADERS)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_ANSWER)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // However it ends, the peer knows as much as we do.
        _ = connection => {}
        () = superseded => {}
    }
}
