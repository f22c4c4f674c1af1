//! The client of the server that was named, or of the usual one.

use crate::{
    cli::{DEFAULT_SERVER, Global},
    failure::{Failure, Result},
};
use stacyvm_client::{Client, Error, Options};

impl Global {
    /// A client. Nothing is sent yet.
    pub(crate) fn client(&self) -> Result<Client> {
        Ok(Client::new(&Options {
            server: self.named_server().unwrap_or(DEFAULT_SERVER).to_owned(),
            api_key: self.api_key().map(str::to_owned),
            user: None,
            agent: Some(concat!("stacyvm/", env!("CARGO_PKG_VERSION")).to_owned()),
        })?)
    }
}

/// A failure of a call about one sandbox: not found means the sandbox.
pub(crate) fn about_sandbox(error: Error) -> Failure {
    let not_found = error.is_not_found();
    let failure = Failure::from(error);
    if not_found && failure.fix.is_empty() {
        return Failure { fix: "`stacyvm list` shows the sandboxes there are".to_owned(), ..failure };
    }
    failure
}

/// A failure of a call about one process. Not found is the process or the sandbox: a look tells.
pub(crate) async fn about_process(client: &Client, error: Error, sandbox: &str) -> Failure {
    if !error.is_not_found() {
        return error.into();
    }
    if client.sandbox(sandbox).await.is_err() {
        return about_sandbox(error);
    }
    let fix = format!("`stacyvm ps {sandbox} --all` shows the processes there are");
    Failure { fix, ..Failure::from(error) }
}
