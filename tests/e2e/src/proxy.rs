//! A proxy that cuts connections: those whose server has been silent for too long, as many installations have one in front,
//! or all of them, after some bytes.

use anyhow::Result;
use rand::Rng;
use rustix::net::sockopt::set_socket_linger;
use std::{
    net::SocketAddr,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// When a connection is cut.
#[derive(Debug, Clone)]
pub enum Cut {
    /// After this time without a byte from the server.
    Silent(Duration),
    /// After a random number of bytes from the server, without a goodbye: what is on its way is lost.
    After(Range<usize>),
}

/// The proxy; it goes when it is dropped.
pub struct Proxy {
    address: SocketAddr,
    cuts: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// A proxy to `upstream`.
    ///
    /// # Errors
    /// There is no port for it.
    pub async fn to(upstream: SocketAddr, cut: Cut) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, cuts) = (listener.local_addr()?, Arc::new(AtomicUsize::new(0)));
        let counter = Arc::clone(&cuts);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (cut, counter) = (cut.clone(), Arc::clone(&counter));
                tokio::spawn(async move {
                    if let Ok(server) = TcpStream::connect(upstream).await {
                        pass(client, server, cut, &counter).await;
                    }
                });
            }
        });
        Ok(Self { address, cuts, task })
    }

    /// Where it listens, as `--server` takes it.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Connections that were cut so far.
    pub fn cuts(&self) -> usize {
        self.cuts.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Passes bytes on until a side closes or it is time to cut; both sides are closed then.
async fn pass(mut client: TcpStream, mut server: TcpStream, cut: Cut, cuts: &AtomicUsize) {
    let (idle, mut left) = match cut {
        Cut::Silent(idle) => (idle, usize::MAX),
        Cut::After(range) => (Duration::MAX, rand::rng().random_range(range)),
    };
    let was_cut = {
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        let up = async { tokio::io::copy(&mut from_client, &mut to_server).await.map(drop) };
        let down = async {
            let mut buffer = vec![0; 16 << 10];
            loop {
                let most = left.min(buffer.len());
                match tokio::time::timeout(idle, from_server.read(&mut buffer[..most])).await {
                    Ok(Ok(0) | Err(_)) => return Ok(left == 0),
                    Ok(Ok(length)) => to_client.write_all(&buffer[..length]).await?,
                    Err(_) => return Ok(true),
                }
                if left != usize::MAX {
                    left -= most.min(left);
                }
                if left == 0 {
                    return std::io::Result::Ok(true);
                }
            }
        };
        tokio::select! {
            _ = up => false,
            cut = down => cut.unwrap_or(false),
        }
    };
    if was_cut {
        cuts.fetch_add(1, Ordering::Relaxed);
        for side in [&client, &server] {
            // Closing such a socket resets the connection.
            let _ = set_socket_linger(side, Some(Duration::ZERO));
        }
    }
}
