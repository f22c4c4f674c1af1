//! Who may talk to this agent: the installation that started it, and of its control planes only the newest.

use crate::args::Config;
use stacyvm_guest::{
    hello::{self, HelloError},
    proto::{Hello, Role, Welcome},
};
use std::sync::Arc;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::watch,
};

/// Decides about hellos, and remembers the highest generation that it has seen.
#[derive(Debug)]
pub(crate) struct Gate {
    config: Arc<Config>,
    newest: watch::Sender<u64>,
}

/// A connection that was let in.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) role: Role,
    generation: u64,
    newest: watch::Receiver<u64>,
}

impl Admitted {
    /// Returns when a newer control plane has come.
    pub(crate) async fn superseded(&mut self) {
        let generation = self.generation;
        if self.newest.wait_for(|newest| *newest > generation).await.is_err() {
            // The gate is gone, and with it everybody newer.
            std::future::pending::<()>().await;
        }
    }
}

impl Gate {
    pub(crate) fn new(config: Arc<Config>) -> Self {
        Self { config, newest: watch::Sender::new(0) }
    }

    /// Lets a caller in, or says why not. A newer generation closes the connections of all older ones.
    fn decide(&self, hello: &Hello) -> Result<(Admitted, u32), String> {
        if hello.installation_id != self.config.installation {
            return Err("this sandbox belongs to another installation".to_owned());
        }
        let version = hello.common_version().ok_or_else(|| {
            let (oldest, newest) = (stacyvm_guest::VERSION_MIN, stacyvm_guest::VERSION_MAX);
            format!("this agent speaks versions {oldest} to {newest} of the guest protocol")
        })?;
        let role = match hello.role() {
            role @ (Role::Control | Role::Bulk) => role,
            Role::Unspecified => return Err("the connection has no role that this agent knows".to_owned()),
        };
        let generation = hello.generation;
        let mut newest = 0;
        self.newest.send_if_modified(|seen| {
            let newer = generation > *seen;
            *seen = generation.max(*seen);
            newest = *seen;
            newer
        });
        if generation < newest {
            return Err(format!("generation {generation} was replaced by {newest}"));
        }
        Ok((Admitted { role, generation, newest: self.newest.subscribe() }, version))
    }

    /// Performs the opening exchange. The caller bounds its time.
    ///
    /// # Errors
    /// What the peer did wrong; the connection is to be closed.
    pub(crate) async fn admit(&self, stream: &mut UnixStream) -> Result<Admitted, HelloError> {
        let cut = |_| HelloError::NotOurs("the connection ended");
        let mut prefix = [0; 4];
        stream.read_exact(&mut prefix).await.map_err(cut)?;
        let mut body = vec![0; hello::frame_length(prefix)?];
        stream.read_exact(&mut body).await.map_err(cut)?;
        let hello = hello::decode_hello(&body)?;
        let decision = self.decide(&hello);
        let mut welcome = Welcome {
            magic: hello::MAGIC,
            version: 0,
            refused: String::new(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            sandbox_id: self.config.sandbox.clone(),
        };
        match &decision {
            Ok((_, version)) => welcome.version = *version,
            Err(why) => welcome.refused.clone_from(why),
        }
        stream.write_all(&hello::encode_frame(&welcome)).await.map_err(cut)?;
        decision.map(|(admitted, _)| admitted).map_err(HelloError::Refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;

    fn gate() -> Gate {
        let line = "--listen-fd 3 --sandbox sb-1 --installation mine";
        Gate::new(Arc::new(Config::parse(line.split(' ').map(OsString::from)).unwrap()))
    }

    fn hello(generation: u64) -> Hello {
        Hello::new("mine", generation, Role::Control)
    }

    #[tokio::test]
    async fn the_newest_generation_wins() {
        let gate = gate();
        let (mut first, _) = gate.decide(&hello(3)).unwrap();
        let (mut twin, _) = gate.decide(&hello(3)).unwrap();
        let soon = std::time::Duration::from_millis(1);
        assert!(tokio::time::timeout(soon, first.superseded()).await.is_err());
        assert!(gate.decide(&hello(2)).unwrap_err().contains("replaced"));
        assert!(tokio::time::timeout(soon, twin.superseded()).await.is_err());
        let (mut newer, _) = gate.decide(&hello(4)).unwrap();
        first.superseded().await;
        twin.superseded().await;
        assert!(tokio::time::timeout(soon, newer.superseded()).await.is_err());
    }

    #[test]
    fn strangers_change_nothing() {
        let gate = gate();
        assert!(gate.decide(&Hello::new("other", 9, Role::Control)).is_err());
        assert!(gate.decide(&Hello::new("mine", 9, Role::Unspecified)).is_err());
        assert!(gate.decide(&Hello { version_min: 99, version_max: 99, ..hello(9) }).is_err());
        assert!(gate.decide(&hello(1)).is_ok());
    }

    #[tokio::test]
    async fn what_is_no_hello_gets_no_answer() {
        let (mut caller, mut ours) = UnixStream::pair().unwrap();
        caller.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert!(gate().admit(&mut ours).await.is_err());
        drop(ours);
        let mut answer = Vec::new();
        let _ = caller.read_to_end(&mut answer).await;
        assert!(answer.is_empty());
    }
}
