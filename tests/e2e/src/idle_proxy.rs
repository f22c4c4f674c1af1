//! A proxy as many installations have one in front: it passes bytes on, and cuts a connection whose server has been silent
//! for too long.

use anyhow::Result;
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// The proxy; it goes when it is dropped.
pub struct IdleProxy {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl IdleProxy {
    /// A proxy to `upstream` that cuts connections after `idle` without a byte from there.
    ///
    /// # Errors
    /// There is no port for it.
    pub async fn to(upstream: SocketAddr, idle: Duration) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(async move {
                    if let Ok(server) = TcpStream::connect(upstream).await {
                        pass(client, server, idle).await;
                    }
                });
            }
        });
        Ok(Self { address, task })
    }

    /// Where it listens, as `--server` takes it.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for IdleProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Passes bytes on until a side closes or the server is silent for too long; both sides are closed then.
async fn pass(client: TcpStream, server: TcpStream, idle: Duration) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async { tokio::io::copy(&mut from_client, &mut to_server).await.map(drop) };
    let down = async {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(Ok(length @ 1..)) = tokio::time::timeout(idle, from_server.read(&mut buffer)).await {
            to_client.write_all(&buffer[..length]).await?;
        }
        std::io::Result::Ok(())
    };
    // How it ended does not matter: both ends of both connections are dropped.
    tokio::select! {
        _ = up => {}
        _ = down => {}
    }
}
