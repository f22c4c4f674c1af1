//! Connections: bounded in number, in the time that a request head may take, and in the time that a stop may take.

use crate::{drain::Drained, place::Place, stop::Stop};
use axum::{Router, body::Body};
use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use rustix::net::sockopt;
use std::{convert::Infallible, future::Future, io, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

/// Connections at once; more wait to be accepted.
const CONNECTIONS: usize = 4096;
/// Longest time between the connection (or the previous answer) and the end of a request head.
const HEAD: Duration = Duration::from_secs(60);
/// Longest time that requests get to end once the server stops.
const GRACE: Duration = Duration::from_secs(10);
/// Silence after which a connection is asked for a sign of life.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// Bytes that the kernel takes beyond what it can send now.
const UNSENT: u32 = 64 << 10;
/// Bytes of answers that wait for the kernel to take them, and the largest request head.
const BUFFER: usize = 64 << 10;
/// Pause after a failure to accept that is likely to last, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves `router` on `listener` until `shutdown` is ready.
///
/// Then nothing is accepted any more, open streams are told to end, and requests under way have 10 s; what is left is
/// dropped. Sandboxes and processes go on, also those behind streams; only a command whose exec request is dropped while
/// it waits ends with that request.
///
/// # Errors
/// None at present: failures to accept are logged and tried again.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let stop = CancellationToken::new();
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let graceful = GracefulShutdown::new();
    // Connections that have become something else than HTTP.
    let upgraded = TaskTracker::new();
    let mut connections = JoinSet::new();
    let builder = builder();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = async {
            let permit = Arc::clone(&room).acquire_owned().await;
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            () = &mut shutdown => break,
            accepted = accepted => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let permit = match permit {
            Ok(permit) => Arc::new(permit),
            // It is never closed.
            Err(_) => break,
        };
        let builder = builder.clone();
        let (router, stop, place) = (router.clone(), stop.clone(), Place::new(permit, upgraded.token()));
        let watcher = graceful.watcher();
        connections.spawn(async move {
            let connection = watcher.watch(connection(&builder, stream, router, stop, place));
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended with an error");
            }
        });
    }
    drop(listener);
    stop.cancel();
    upgraded.close();
    let all = async { tokio::join!(graceful.shutdown(), upgraded.wait()) };
    if tokio::time::timeout(GRACE, all).await.is_err() {
        tracing::warn!("requests that did not end in {} s were dropped", GRACE.as_secs());
    }
    connections.shutdown().await;
    Ok(())
}

/// A stream of small records must not wait for the network to collect more; a client whose machine is gone has to be
/// noticed, or the command behind its silent stream would run for ever; and what is lost with a connection must be little
/// enough that the guest still has it.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE / 4)?;
    sockopt::set_tcp_keepcnt(stream, 4)?;
    Ok(())
}

/// How connections are spoken to.
fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(BUFFER);
    builder
}

fn connection(
    builder: &auto::Builder<TokioExecutor>,
    stream: TcpStream,
    router: Router,
    stop: CancellationToken,
    place: Place,
) -> impl hyper_util::server::graceful::GracefulConnection<Error = Box<dyn std::error::Error + Send + Sync>> + Send
{
    if let Err(error) = tune(&stream) {
        tracing::debug!(%error, "a connection could not be tuned");
    }
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(|body| Body::new(Drained::new(body, stop.clone())));
        request.extensions_mut().insert(Stop(stop.clone()));
        request.extensions_mut().insert(place.clone());
        let router = router.clone();
        async move { router.oneshot(request).await.map_err(|never: Infallible| never) }
    });
    builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use bytes::Bytes;
    use futures::{StreamExt, stream};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A server whose `/endless` is a stream that ends when told to stop, if it `listens`.
    async fn server(
        listens: bool,
    ) -> (std::net::SocketAddr, CancellationToken, tokio::task::JoinHandle<io::Result<()>>) {
        let endless = move |request: axum::extract::Request| async move {
            let Stop(stop) = request.extensions().get::<Stop>().unwrap().clone();
            let stop = if listens { stop } else { CancellationToken::new() };
            let ticks = stream::once(async { Ok::<_, Infallible>(Bytes::from_static(b"tick")) })
                .chain(stream::pending())
                .take_until(stop.cancelled_owned());
            Body::from_stream(ticks)
        };
        let router = Router::new().route("/", get(|| async { "hello" })).route("/endless", get(endless));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let task = tokio::spawn(serve(listener, router, stop.clone().cancelled_owned()));
        (address, stop, task)
    }

    async fn ask(address: std::net::SocketAddr, path: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        stream
    }

    /// Reads until `end` is seen.
    async fn until(stream: &mut TcpStream, end: &str) -> String {
        let mut text = String::new();
        let mut buffer = [0; 1024];
        while !text.contains(end) {
            let n = stream.read(&mut buffer).await.unwrap();
            assert!(n > 0, "{text}");
            text += std::str::from_utf8(&buffer[..n]).unwrap();
        }
        text
    }

    #[tokio::test]
    async fn a_stop_ends_streams_and_idle_connections() {
        let (address, stop, task) = server(true).await;
        let mut idle = ask(address, "/").await;
        until(&mut idle, "hello").await;
        let mut streaming = ask(address, "/endless").await;
        until(&mut streaming, "tick").await;
        stop.cancel();
        until(&mut streaming, "0\r\n\r\n").await;
        assert_eq!(idle.read(&mut [0]).await.unwrap(), 0);
        task.await.unwrap().unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn a_stream_that_does_not_end_is_dropped_in_bounded_time() {
        let (address, stop, task) = server(false).await;
        let mut streaming = ask(address, "/endless").await;
        until(&mut streaming, "tick").await;
        tokio::time::pause();
        stop.cancel();
        task.await.unwrap().unwrap();
        assert_eq!(streaming.read(&mut [0]).await.unwrap_or(0), 0);
    }
}
