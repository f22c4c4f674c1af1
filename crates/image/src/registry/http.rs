//! Requests as they go out: TLS with the host's roots, through a proxy where the environment names one, with an end to
//! every silence.
//!
//! Neither `oci-client` nor `reqwest`: the first bounds, resumes and redirects too little; the second, with TLS of this kind,
//! would need a provider of cryptography set for the whole process by everyone who uses it, or panic.

use super::failure::Failure;
use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::{
        legacy::{
            Client,
            connect::{HttpConnector, proxy::Tunnel},
        },
        proxy::matcher::Matcher,
    },
    rt::{TokioExecutor, TokioIo},
};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use stacyvm_provider::{Error, Result};
use std::{error::Error as StdError, io, path::Path, pin::Pin, sync::Arc, task, time::Duration};
use tokio::net::TcpStream;
use tower::Service;

/// Longest time for a connection to one address.
const CONNECT: Duration = Duration::from_secs(15);
/// Connections that are kept for later, to one host.
const IDLE: usize = 4;

type Source = Box<dyn StdError + Send + Sync>;

/// Sends requests.
#[derive(Debug)]
pub(super) struct Http {
    verified: Client<HttpsConnector<Way>, Full<Bytes>>,
    unverified: Client<HttpsConnector<Way>, Full<Bytes>>,
    silence: Duration,
}

impl Http {
    /// # Errors
    /// `InvalidArgument` for a file of certificates that cannot be read.
    pub(super) fn new(ca_file: Option<&Path>, silence: Duration) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let internal = |error| Error::internal("TLS cannot be set up").because(error);
        let builder = || {
            ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()
                .map_err(internal)
        };
        let verified = builder()?.with_root_certificates(roots(ca_file)?).with_no_client_auth();
        let unverified = builder()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone(Arc::clone(&provider))))
            .with_no_client_auth();
        let proxies = Arc::new(Matcher::from_env());
        let client = |tls: ClientConfig| {
            let mut direct = HttpConnector::new();
            direct.enforce_http(false);
            direct.set_nodelay(true);
            direct.set_connect_timeout(Some(CONNECT.min(silence)));
            let way = Way { direct, proxies: Arc::clone(&proxies) };
            let connector = HttpsConnectorBuilder::new()
                .with_tls_config(tls)
                .https_or_http()
                .enable_http1()
                .wrap_connector(way);
            Client::builder(TokioExecutor::new()).pool_max_idle_per_host(IDLE).build(connector)
        };
        Ok(Self { verified: client(verified), unverified: client(unverified), silence })
    }

    /// Sends a request and waits for the head of the answer.
    pub(super) async fn send(
        &self,
        request: Request<Full<Bytes>>,
        verify: bool,
    ) -> Result<Response<Incoming>, Failure> {
        let client = if verify { &self.verified } else { &self.unverified };
        match tokio::time::timeout(self.silence, client.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(classify(error.into())),
            Err(_) => Err(Failure::Silent(self.silence)),
        }
    }

    /// The next bytes of an answer; `None` at its end.
    pub(super) async fn chunk(&self, body: &mut Incoming) -> Result<Option<Bytes>, Failure> {
        loop {
            match tokio::time::timeout(self.silence, body.frame()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Ok(Some(Err(error))) => return Err(Failure::Unreachable(error.into())),
                Err(_) => return Err(Failure::Silent(self.silence)),
            }
        }
    }

    /// A whole answer of at most `most` bytes; `None` if it is longer.
    pub(super) async fn whole(&self, mut body: Incoming, most: usize) -> Result<Option<Vec<u8>>, Failure> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk(&mut body).await? {
            if bytes.len() + chunk.len() > most {
                return Ok(None);
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(Some(bytes))
    }
}

/// The certificates that are trusted: the host's and those of a file.
fn roots(ca_file: Option<&Path>) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    let host = rustls_native_certs::load_native_certs();
    let (_, ignored) = store.add_parsable_certificates(host.certs);
    if ignored > 0 || !host.errors.is_empty() {
        tracing::debug!(ignored, errors = ?host.errors, "some of the host's certificates cannot be used");
    }
    if store.is_empty() {
        tracing::warn!(
            "this host trusts no certificates: install its ca-certificates, or set images.ca_file"
        );
    }
    if let Some(path) = ca_file {
        let refused = |error: Source| {
            Error::invalid_argument(format!(
                "the file of certificates {} (images.ca_file) cannot be used: it must hold certificates in PEM",
                path.display()
            ))
            .because(error)
        };
        let mut count = 0;
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| refused(error.into()))? {
            let certificate = certificate.map_err(|error| refused(error.into()))?;
            store.add(certificate).map_err(|error| refused(error.into()))?;
            count += 1;
        }
        if count == 0 {
            return Err(refused("it holds none".into()));
        }
    }
    Ok(store)
}

/// Which failure an error of the connection is.
fn classify(error: Source) -> Failure {
    let mut next: Option<&(dyn StdError + 'static)> = Some(&*error);
    while let Some(cause) = next {
        // An I/O error hides what it was made of from `source`.
        let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let tls = cause
            .downcast_ref::<rustls::Error>()
            .or_else(|| inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()));
        match tls {
            Some(rustls::Error::InvalidCertificate(_)) => return Failure::Untrusted(error),
            Some(rustls::Error::InvalidMessage(_)) => return Failure::NoTls(error),
            _ => {}
        }
        next = inner.map(|inner| inner as &(dyn StdError + 'static)).or_else(|| cause.source());
    }
    Failure::Unreachable(error)
}

/// The way to a host: directly, or through the proxy that the environment names for TLS. Registries without TLS are near,
/// and asked directly.
#[derive(Debug, Clone)]
struct Way {
    direct: HttpConnector,
    proxies: Arc<Matcher>,
}

impl Service<Uri> for Way {
    type Response = TokioIo<TcpStream>;
    type Error = Source;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Source>> + Send>>;

    fn poll_ready(&mut self, context: &mut task::Context<'_>) -> task::Poll<Result<(), Source>> {
        self.direct.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let mut direct = self.direct.clone();
        let proxy = match uri.scheme_str() {
            Some("https") => self.proxies.intercept(&uri),
            _ => None,
        };
        Box::pin(async move {
            let Some(proxy) = proxy else { return Ok(direct.call(uri).await?) };
            if proxy.uri().scheme_str() != Some("http") {
                return Err(
                    "HTTPS_PROXY names a proxy that is not spoken to by HTTP, as in http://proxy:3128".into(),
                );
            }
            let mut tunnel = Tunnel::new(proxy.uri().clone(), direct);
            if let Some(auth) = proxy.basic_auth() {
                tunnel = tunnel.with_auth(auth.clone());
            }
            Ok(tunnel.call(uri).await?)
        })
    }
}

/// Takes every certificate, for registries that are listed as insecure.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_certificates_that_holds_none_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.pem");
        for text in ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            std::fs::write(&path, text).unwrap();
            let error = Http::new(Some(&path), Duration::from_secs(1)).unwrap_err();
            assert!(error.message().contains("images.ca_file"), "{error}");
        }
        let error = Http::new(Some(&directory.path().join("none")), Duration::from_secs(1)).unwrap_err();
        assert!(error.message().contains("none"), "{error}");
    }
}
