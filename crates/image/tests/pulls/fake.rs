//! A registry in this process that can also lie, break off, hang and send for ever: HTTP by hand, since no HTTP library would
//! send what some of these tests need.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    /// By name in lower case.
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What becomes of an answer's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    Whole,
    /// The connection breaks after so many bytes.
    Cut(usize),
    /// Nothing more comes after so many bytes.
    Hang(usize),
    /// Not even a head comes.
    Silence,
    /// In chunks, again and again.
    Endless,
    /// In pieces of so many bytes with a pause after each.
    Slowly(usize, Duration),
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) how: How,
}

impl Answer {
    pub(crate) fn of(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), how: How::Whole }
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn but(mut self, how: How) -> Self {
        self.how = how;
        self
    }

    /// An error as the distribution specification writes it.
    pub(crate) fn error(status: u16, code: &str) -> Self {
        Self::of(status, format!(r#"{{"errors":[{{"code":"{code}","message":"words of the registry"}}]}}"#))
            .with("Content-Type", "application/json")
    }
}

type Handler = dyn Fn(&Asked) -> Answer + Send + Sync;

/// A server that answers as it was told to, until it is dropped.
pub(crate) struct Fake {
    address: SocketAddr,
    log: Arc<Mutex<Vec<Asked>>>,
    _task: tokio_util::task::AbortOnDropHandle<()>,
}

impl Fake {
    pub(crate) async fn start(handler: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        Self::serve(handler, None).await
    }

    pub(crate) async fn start_tls(
        handler: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
        tls: TlsAcceptor,
    ) -> Self {
        Self::serve(handler, Some(tls)).await
    }

    async fn serve(
        handler: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
        tls: Option<TlsAcceptor>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let log: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (handler, seen): (Arc<Handler>, _) = (Arc::new(handler), Arc::clone(&log));
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (handler, seen, tls) = (Arc::clone(&handler), Arc::clone(&seen), tls.clone());
                connections.spawn(async move {
                    // Whoever goes away, or speaks no TLS, is the test's business.
                    let _ = match tls {
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => converse(stream, &*handler, &seen).await,
                            Err(error) => Err(error),
                        },
                        None => converse(stream, &*handler, &seen).await,
                    };
                });
            }
        });
        Self { address, log, _task: tokio_util::task::AbortOnDropHandle::new(task) }
    }

    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    /// The requests so far.
    pub(crate) fn log(&self) -> Vec<Asked> {
        self.log.lock().unwrap().clone()
    }

    /// How many requests had this in their path.
    pub(crate) fn count(&self, part: &str) -> usize {
        self.log().iter().filter(|asked| asked.path.contains(part)).count()
    }
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    handler: &Handler,
    log: &Mutex<Vec<Asked>>,
) -> std::io::Result<()> {
    loop {
        let Some(asked) = read(&mut stream).await? else { return Ok(()) };
        log.lock().unwrap().push(asked.clone());
        let answer = handler(&asked);
        if !write(&mut stream, &answer).await? {
            return Ok(());
        }
    }
}

async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> std::io::Result<Option<Asked>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).await? == 0 {
            return Ok(None);
        }
        head.push(byte[0]);
        // What a client of TLS says first is no request, and answered as other servers answer it.
        if head[0] == 0x16 {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
    }
    let text = String::from_utf8(head).unwrap();
    let mut lines = text.lines();
    let mut first = lines.next().unwrap().split(' ');
    let (method, path) = (first.next().unwrap().to_owned(), first.next().unwrap().to_owned());
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Some(Asked { method, path, headers, body }))
}

/// Whether the connection can be used again.
async fn write<S: AsyncWrite + Unpin>(stream: &mut S, answer: &Answer) -> std::io::Result<bool> {
    let mut head = format!("HTTP/1.1 {} X\r\n", answer.status);
    let endless = answer.how == How::Endless;
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let announced = answer.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    if endless {
        head.push_str("Transfer-Encoding: chunked\r\n");
    } else if !announced {
        head.push_str(&format!("Content-Length: {}\r\n", answer.body.len()));
    }
    head.push_str("\r\n");
    let hang = std::future::pending::<std::io::Result<bool>>();
    if answer.how == How::Silence {
        return hang.await;
    }
    stream.write_all(head.as_bytes()).await?;
    match answer.how {
        How::Whole | How::Silence => {
            stream.write_all(&answer.body).await?;
            stream.flush().await?;
            Ok(!announced)
        }
        How::Cut(after) => {
            stream.write_all(&answer.body[..after.min(answer.body.len())]).await?;
            stream.flush().await?;
            Ok(false)
        }
        How::Hang(after) => {
            stream.write_all(&answer.body[..after.min(answer.body.len())]).await?;
            stream.flush().await?;
            hang.await
        }
        How::Endless => loop {
            stream.write_all(format!("{:x}\r\n", answer.body.len()).as_bytes()).await?;
            stream.write_all(&answer.body).await?;
            stream.write_all(b"\r\n").await?;
        },
        How::Slowly(piece, pause) => {
            for part in answer.body.chunks(piece) {
                stream.write_all(part).await?;
                stream.flush().await?;
                tokio::time::sleep(pause).await;
            }
            Ok(true)
        }
    }
}
