//! The handshake, and what is said of those that fail.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{AlertDescription, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use super::served::{Failure, Served};
use crate::clock;

/// Ends TLS on accepted connections.
#[derive(Clone)]
pub struct Acceptor {
    served: Arc<Served>,
    protocol: &'static str,
    remedy: &'static str,
    is_required: bool,
}

/// The one protocol of [`Acceptor`]s for HTTP (RFC 7301), although Go would take HTTP/2: with one request at a time on a
/// connection, `Connection: close` ends it where nothing can be lost, and a client has no streams to open and reset by the
/// thousand.
pub const HTTP_1: &str = "http/1.1";

/// The one protocol of [`Acceptor`]s for gRPC (RFC 7301).
pub const HTTP_2: &str = "h2";

impl Acceptor {
    /// Serves what `served` holds at each connection's beginning, for the one `protocol`; without anything there,
    /// connections are refused. `remedy` is for the log: what to do when a client does not accept the certificate.
    pub fn new(served: Arc<Served>, protocol: &'static str, remedy: &'static str) -> Self {
        Self { served, protocol, remedy, is_required: true }
    }

    /// Whether every connection has to speak TLS. Otherwise those that do not are to be taken as they are: while clients are
    /// switched over, one after another.
    pub fn required(self, is_required: bool) -> Self {
        Self { is_required, ..self }
    }

    /// See [`Acceptor::required`].
    pub fn is_required(&self) -> bool {
        self.is_required
    }

    /// One came in plain text.
    pub fn count_plain(&self) {
        self.served.plain.inc();
    }

    /// The configuration of this moment.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let mut config = ServerConfig::clone(&self.served.config.load());
        config.alpn_protocols = vec![self.protocol.into()];
        TlsAcceptor::from(Arc::new(config))
    }

    /// The connection after its handshake, or `None` if that failed or took longer than `limit`.
    pub async fn accept<S>(&self, stream: S, limit: Duration) -> Option<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        match timeout(limit, self.acceptor().accept(stream)).await {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err(error)) => {
                let is_served = self.served.current(clock::now()).is_some();
                self.fail(if is_served { reason(&error) } else { "no_certificate" }, &error);
                None
            }
            Err(elapsed) => {
                self.fail("timeout", &elapsed);
                None
            }
        }
    }

    fn fail(&self, reason: &'static str, error: &impl fmt::Display) {
        self.served.failures.get_or_create(&Failure { reason }).inc();
        debug!(reason, %error, "a connection ended in its TLS handshake");
        let complaint = match reason {
            DISTRUSTED => format!("a client does not accept our certificate; {}", self.remedy),
            NO_CLIENT_CERTIFICATE => "a client has no certificate, and is refused".to_owned(),
            BAD_CLIENT_CERTIFICATE => "a client's certificate is not good, and it is refused".to_owned(),
            _ => return,
        };
        if self.served.may_complain(reason, Instant::now()) {
            warn!(%error, "{complaint}");
        }
    }
}

/// The client does not accept our certificate.
const DISTRUSTED: &str = "distrusted";
/// The client sent none.
const NO_CLIENT_CERTIFICATE: &str = "no_client_certificate";
/// The client's is of another authority, expired or not for clients.
const BAD_CLIENT_CERTIFICATE: &str = "bad_client_certificate";

/// A word for the metric: few and fixed.
fn reason(error: &std::io::Error) -> &'static str {
    use AlertDescription::{
        BadCertificate, CertificateExpired, CertificateRevoked, CertificateUnknown, DecryptError, UnknownCA,
        UnsupportedCertificate,
    };
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(rustls::Error::AlertReceived(
            BadCertificate
            | UnsupportedCertificate
            | CertificateRevoked
            | CertificateExpired
            | CertificateUnknown
            | UnknownCA
            // Signed by an authority of the same name and with another key.
            | DecryptError,
        )) => DISTRUSTED,
        Some(rustls::Error::NoCertificatesPresented) => NO_CLIENT_CERTIFICATE,
        // Nobody but a client sends us certificates.
        Some(rustls::Error::InvalidCertificate(_)) => BAD_CLIENT_CERTIFICATE,
        Some(_) => "protocol",
        None => "closed",
    }
}
