//! Certificates that are served, and CAs that client certificates are checked against.

use std::sync::Arc;

use anyhow::{Context, ensure};
use jiff::Timestamp;
use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;

use crate::x509;

/// A certificate with its private key.
#[derive(Debug)]
pub struct Certificate {
    pub(super) certified: Arc<CertifiedKey>,
    not_after: Timestamp,
}

/// The CAs that client certificates are checked against.
#[derive(Debug)]
pub struct ClientAuthorities {
    pub(super) certificates: Vec<CertificateDer<'static>>,
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
}

impl Certificate {
    /// `chain` begins with the server's own certificate.
    ///
    /// # Errors
    /// If the chain is empty, the certificate cannot be read, or the key does not match.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> anyhow::Result<Self> {
        let first = chain.first().context("there is no certificate")?;
        let (_, not_after) = x509::validity(first).context("the certificate cannot be read")?;
        let certified = CertifiedKey::from_der(chain, key, &ring::default_provider())?;
        Ok(Self { certified: Arc::new(certified), not_after })
    }

    /// The server's own certificate.
    pub fn leaf(&self) -> Option<&CertificateDer<'static>> {
        self.certified.cert.first()
    }

    /// The server's own certificate, followed by intermediate certificates.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// When the certificate expires.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }
}

impl ClientAuthorities {
    /// At least one CA certificate. Its own dates are not checked (RFC 5280, 6.1.1 (d)).
    ///
    /// # Errors
    /// If there is none, or one cannot be read or is not a CA's.
    pub fn new(certificates: Vec<CertificateDer<'static>>) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        for (index, certificate) in certificates.iter().enumerate() {
            ensure!(x509::is_authority(certificate), "certificate {index} is not a CA certificate");
            roots.add(certificate.clone()).with_context(|| format!("certificate {index} cannot be used"))?;
        }
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
        Ok(Self { certificates, verifier })
    }
}
