//! The host half's way onto a connection: dial, introduce ourselves, speak HTTP/2. Nothing that an agent answers here is
//! believed further than it can be checked.

use crate::{
    hello::{self, HelloError},
    limits,
    proto::{Hello, Role, Welcome},
};
use hyper_util::rt::TokioIo;
use std::{future::Future, time::Duration};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tonic::transport::{Channel, Endpoint};

/// A raw duplex stream to an agent: a Unix socket, a vsock, a bridge's stdio.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Duplex for T {}

/// Cause of a failed connection, as the runtime's dialler or the opening exchange gave it.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Who is calling, and which agent must answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The installation that owns the sandbox.
    pub installation_id: String,
    /// Grows with each start of the control plane.
    pub generation: u64,
    /// The sandbox whose agent must answer.
    pub sandbox_id: String,
}

/// Longest time for a way to the agent: a bridge is a program that has to be started in a sandbox.
const DIAL: Duration = Duration::from_secs(30);
/// Silence after which a connection with calls under way is tested, then given up.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Time for the answer to a keepalive.
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(10);

/// A channel in one role that connects when first used and again whenever its connection is lost.
///
/// `dial` is called for each new connection. What it or the opening exchange reports stands in the source chain of the
/// resulting `tonic::Status`. `idle`: the connection is kept alive also while no call is under way.
pub fn channel<F, Fut>(identity: Identity, role: Role, idle: bool, dial: F) -> Channel
where
    F: Fn() -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Box<dyn Duplex>, Cause>> + Send + 'static,
{
    let connector = tower::service_fn(move |_| {
        let (dial, identity) = (dial.clone(), identity.clone());
        async move {
            let dialled = tokio::time::timeout(DIAL, dial()).await;
            let mut stream = dialled.map_err(|_| Cause::from("there was no way to the agent in time"))??;
            let opened = tokio::time::timeout(hello::TIMEOUT, introduce(&mut stream, &identity, role)).await;
            opened.map_err(|_| Cause::from("the agent did not complete the opening exchange in time"))??;
            Ok::<_, Cause>(TokioIo::new(stream))
        }
    });
    Endpoint::from_static("http://agent")
        .initial_stream_window_size(limits::STREAM_WINDOW)
        .initial_connection_window_size(limits::CONNECTION_WINDOW)
        .http2_max_header_list_size(16 << 10)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_ANSWER)
        .keep_alive_while_idle(idle)
        .connect_with_connector_lazy(connector)
}

/// Performs the opening exchange on a fresh stream.
///
/// # Errors
/// An I/O error, or [`HelloError`] if the peer is no agent, refuses, or belongs to another sandbox.
pub async fn introduce(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    identity: &Identity,
    role: Role,
) -> Result<Welcome, Cause> {
    let hello = Hello::new(&identity.installation_id, identity.generation, role);
    stream.write_all(&hello::encode_frame(&hello)).await?;
    stream.flush().await?;
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix).await?;
    let length = hello::frame_length(prefix)?;
    // Byte-exact reads: what follows the frame belongs to HTTP/2.
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let welcome = hello::decode_welcome(&body)?;
    if welcome.sandbox_id != identity.sandbox_id {
        return Err(HelloError::NotOurs("the agent of another sandbox").into());
    }
    Ok(welcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity { installation_id: "i".into(), generation: 3, sandbox_id: "sb-1".into() }
    }

    async fn answer(welcome: Welcome) -> Result<Welcome, Cause> {
        let (mut host, mut agent) = tokio::io::duplex(1024);
        let peer = tokio::spawn(async move {
            let mut prefix = [0; 4];
            agent.read_exact(&mut prefix).await.unwrap();
            let mut body = vec![0; hello::frame_length(prefix).unwrap()];
            agent.read_exact(&mut body).await.unwrap();
            assert_eq!(hello::decode_hello(&body).unwrap().generation, 3);
            agent.write_all(&hello::encode_frame(&welcome)).await.unwrap();
        });
        let result = introduce(&mut host, &identity(), Role::Control).await;
        peer.await.unwrap();
        result
    }

    fn welcome() -> Welcome {
        Welcome { magic: hello::MAGIC, version: 1, sandbox_id: "sb-1".into(), ..Welcome::default() }
    }

    #[tokio::test]
    async fn an_agent_of_ours_is_welcome() {
        assert_eq!(answer(welcome()).await.unwrap(), welcome());
    }

    #[tokio::test]
    async fn another_sandboxs_agent_is_not_believed() {
        let error = answer(Welcome { sandbox_id: "sb-2".into(), ..welcome() }).await.unwrap_err();
        assert!(error.to_string().contains("another sandbox"), "{error}");
    }

    #[tokio::test]
    async fn a_refusal_carries_its_reason() {
        let error = answer(Welcome { refused: "older generation".into(), ..welcome() }).await.unwrap_err();
        assert!(error.to_string().contains("older generation"), "{error}");
    }
}
