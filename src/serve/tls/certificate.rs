//! Certificates that are served, and authorities that clients are checked against.

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

/// A certificate with the key that belongs to it.
#[derive(Debug)]
pub struct Certificate {
    pub(super) certified: Arc<CertifiedKey>,
    not_after: Timestamp,
}

/// Authorities whose clients may come in.
#[derive(Debug)]
pub struct ClientAuthorities {
    pub(super) certificates: Vec<CertificateDer<'static>>,
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
}

impl Certificate {
    /// `chain` begins with the server's own certificate.
    ///
    /// # Errors
    /// If there is none, it cannot be read, or the key is another's.
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

    /// It, and what leads to an authority.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// The last moment of its life.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }
}

impl ClientAuthorities {
    /// At least one certificate of an authority. Its own dates are not looked at (RFC 5280, 6.1.1 (d)).
    ///
    /// # Errors
    /// If there is none, or one that cannot be read or is no authority's.
    pub fn new(certificates: Vec<CertificateDer<'static>>) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        for (index, certificate) in certificates.iter().enumerate() {
            ensure!(x509::is_authority(certificate), "certificate {index} is not that of an authority (CA)");
            roots.add(certificate.clone()).with_context(|| format!("certificate {index} cannot be used"))?;
        }
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
        Ok(Self { certificates, verifier })
    }
}
