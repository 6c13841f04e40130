//! The TLS handshake, and the log and metrics of handshakes that fail.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{AlertDescription, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use super::served::{HandshakeFailure, Served};
use crate::clock;

/// Terminates TLS on accepted connections.
#[derive(Clone)]
pub struct Acceptor {
    served: Arc<Served>,
    protocol: &'static str,
    remedy: &'static str,
    is_required: bool,
}

/// The one protocol of [`Acceptor`]s for HTTP (RFC 7301), although Go would use HTTP/2. With one request at a time,
/// `Connection: close` loses no request, and a client cannot open and reset thousands of streams.
pub const HTTP_1: &str = "http/1.1";

/// The one protocol of [`Acceptor`]s for gRPC (RFC 7301).
pub const HTTP_2: &str = "h2";

impl Acceptor {
    /// Offers one `protocol`. Each connection gets the certificate of `served` at that moment, and is refused if there is
    /// none. `remedy` is for the log: what to do if a client does not accept the certificate.
    pub fn new(served: Arc<Served>, protocol: &'static str, remedy: &'static str) -> Self {
        Self { served, protocol, remedy, is_required: true }
    }

    /// Whether every connection must use TLS. `false` accepts plain text too, while clients are switched over.
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

    /// An acceptor with the present configuration.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let mut config = ServerConfig::clone(&self.served.config.load());
        config.alpn_protocols = vec![self.protocol.into()];
        TlsAcceptor::from(Arc::new(config))
    }

    /// The connection after its handshake. `None` if the handshake failed or took longer than `limit`.
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
        self.served.failures.get_or_create(&HandshakeFailure { reason }).inc();
        debug!(reason, %error, "a connection ended in its TLS handshake");
        let message = match reason {
            DISTRUSTED => format!("a client does not accept our certificate. {}", self.remedy),
            NO_CLIENT_CERTIFICATE => {
                "refused a client without a certificate. Give the proxy one, or unset --tls-client-ca".to_owned()
            }
            BAD_CLIENT_CERTIFICATE => {
                "refused a client: its certificate is not valid. Check its CA, dates and purpose".to_owned()
            }
            _ => return,
        };
        if self.served.may_log(reason, Instant::now()) {
            warn!(%error, "{message}");
        }
    }
}

/// The client does not accept our certificate.
const DISTRUSTED: &str = "distrusted";
/// The client sent no certificate.
const NO_CLIENT_CERTIFICATE: &str = "no_client_certificate";
/// The client's certificate is of another CA, has expired, or is not for clients.
const BAD_CLIENT_CERTIFICATE: &str = "bad_client_certificate";

/// The reason, one of a few fixed words for the metric.
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
            // The certificate is of a CA with the same name and another key.
            | DecryptError,
        )) => DISTRUSTED,
        Some(rustls::Error::NoCertificatesPresented) => NO_CLIENT_CERTIFICATE,
        // Only clients send certificates.
        Some(rustls::Error::InvalidCertificate(_)) => BAD_CLIENT_CERTIFICATE,
        Some(_) => "protocol",
        None => "closed",
    }
}
