//! An internet of the tests' own: a machine in a network namespace behind this host, with addresses of all kinds.

use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::{fs::File, net, os::fd::AsFd, process::Command, thread};
use tokio::{io::AsyncWriteExt, net::TcpListener, task::JoinHandle};

/// Port of its server.
pub(crate) const PORT: u16 = 8080;
/// A public address of it.
pub(crate) const PUBLIC: &str = "198.51.100.2";
/// Another one.
pub(crate) const OTHER: &str = "198.51.100.3";
/// What it is reached by in networks that sandboxes have no business in.
pub(crate) const PRIVATE: [&str; 3] = ["10.99.0.1", "169.254.169.254", "100.64.7.7"];
/// This host's own address on the way to it, a public one.
pub(crate) const HOST: &str = "198.51.100.1";

/// The machine; gone, with the link and the routes to it, when dropped.
pub(crate) struct Outside {
    name: String,
    server: Option<JoinHandle<()>>,
}

impl Outside {
    pub(crate) fn new() -> Result<Self> {
        // Names of links end at 15 bytes.
        let name = format!("svmout{:06x}", rand::random::<u32>() >> 8);
        let mut outside = Self { name: name.clone(), server: None };
        ip(&format!("netns add {name}"))?;
        ip(&format!("link add {name} type veth peer name eth0 netns {name}"))?;
        ip(&format!("address add {HOST}/24 dev {name}"))?;
        ip(&format!("link set {name} up"))?;
        ip(&format!("-n {name} address add {PUBLIC}/24 dev eth0"))?;
        ip(&format!("-n {name} link set eth0 up"))?;
        ip(&format!("-n {name} link set lo up"))?;
        ip(&format!("-n {name} route add default via {HOST}"))?;
        for address in PRIVATE.iter().chain(&[OTHER]) {
            ip(&format!("-n {name} address add {address}/32 dev lo"))?;
            ip(&format!("route add {address}/32 via {PUBLIC} dev {name}"))?;
        }
        outside.server = Some(serve(outside.listen()?)?);
        Ok(outside)
    }

    /// A listener of the machine's, made by a thread that enters it and ends.
    fn listen(&self) -> Result<net::TcpListener> {
        let namespace = File::open(format!("/run/netns/{}", self.name))?;
        let made = thread::spawn(move || -> Result<_> {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(net::TcpListener::bind(("0.0.0.0", PORT))?)
        });
        made.join().ok().context("the thread in the namespace ended")?
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
        }
        // The namespace itself lives as long as the listener does.
        let _ = ip(&format!("link delete {}", self.name));
        let _ = ip(&format!("netns delete {}", self.name));
    }
}

/// Greets every connection with a word, until the task is aborted.
pub(crate) fn serve(listener: net::TcpListener) -> Result<JoinHandle<()>> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    Ok(tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"hello\n").await;
        }
    }))
}

fn ip(words: &str) -> Result<()> {
    let output = Command::new("ip").args(words.split_whitespace()).output().context("cannot run ip")?;
    ensure!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
