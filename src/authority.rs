//! PURE. The webhook's certificate authority (CA): reads and checks the Secret [`SECRET`], decides what to do about it, and
//! issues certificates.
//!
//! Key pairs come from the caller. The only randomness in here is in ECDSA signatures: ring takes it from the operating
//! system, inside rcgen. Serial numbers are digests of keys that are used once, so they are as good as random (RFC 5280,
//! 4.1.2.2).

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use pem::{EncodeConfig, LineEnding, Pem};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use thiserror::Error;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use keywright_core::authority::{Mandate, Upkeep, renewal_at};

use crate::x509::{self, is_authority, may_sign, parse, validity_of};

/// The Secret that holds the CA, of type `kubernetes.io/tls`.
pub const SECRET: &str = "keywright-webhook-ca";

/// Data key: the certificate of the CA that signs now, PEM.
pub const CERTIFICATE: &str = "tls.crt";
/// Data key: its private key, PKCS#8 in PEM.
pub const KEY: &str = "tls.key";
/// Data key: all trusted CA certificates, the newest first, PEM. The content of `caBundle`.
pub const BUNDLE: &str = "ca.crt";

/// Certificates are valid from this long ago on, because clocks differ.
const BACKDATING: SignedDuration = SignedDuration::from_hours(1);

/// A CA that signs now, and the bundle of trusted CA certificates, its own included.
#[derive(Debug)]
pub struct Authority {
    certificate: CertificateDer<'static>,
    not_before: Timestamp,
    not_after: Timestamp,
    key: KeyPair,
    bundle: Vec<CertificateDer<'static>>,
}

/// Why the Secret does not hold a usable CA.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Flaw {
    /// There is no such Secret.
    #[error("it does not exist")]
    Absent,
    /// A data key is absent or empty.
    #[error("it has no {0}")]
    Missing(&'static str),
    /// A data key does not hold certificates in PEM.
    #[error("its {0} is damaged: not certificates in PEM")]
    NotPem(&'static str),
    /// `tls.crt` does not hold exactly one certificate.
    #[error("its tls.crt holds {0} certificates instead of one")]
    NotOne(usize),
    /// The certificate with this index does not follow RFC 5280.
    #[error("its {0} is damaged: certificate {1} cannot be read")]
    Unreadable(&'static str, usize),
    /// `tls.crt` is not a CA's certificate.
    #[error("its tls.crt may not sign certificates")]
    NotAuthority,
    /// `tls.key` is not PKCS#8, or its algorithm is not supported. No details, because they would be a part of the key.
    #[error("its tls.key is damaged: not a private key as PKCS#8 in PEM")]
    NotKey,
    /// `tls.key` belongs to another certificate.
    #[error("its tls.key does not belong to its tls.crt")]
    OtherKey,
    /// `tls.crt` is valid from a later time on.
    #[error("its tls.crt is not valid before {0}")]
    NotYetValid(Timestamp),
    /// `tls.crt` has expired.
    #[error("its tls.crt expired at {0}")]
    Expired(Timestamp),
    /// `ca.crt` does not hold `tls.crt`, so clients would not trust what it signs.
    #[error("its ca.crt does not hold its tls.crt: it is another CA's")]
    NotInBundle,
}

/// Why a certificate could not be issued.
#[derive(Debug, Error)]
pub enum SigningError {
    /// A server name is not valid in certificates, or the key cannot sign.
    #[error("cannot sign a certificate: {0}")]
    Signature(#[from] rcgen::Error),
    /// A time is beyond the year 9999.
    #[error("the certificate's time is out of range")]
    Time,
}

/// A server's certificate and its key.
#[derive(Debug)]
pub struct Leaf {
    /// The server's certificate alone. Clients trust its issuer.
    pub certificate: CertificateDer<'static>,
    /// The private key, as PKCS#8.
    pub key: PrivateKeyDer<'static>,
    /// When the certificate expires.
    pub not_after: Timestamp,
    /// When to issue the next certificate.
    pub renewal_at: Timestamp,
}

impl Authority {
    /// Reads and checks a Secret's data at `now`.
    ///
    /// # Errors
    /// What is wrong with the data, without any of it.
    pub fn read(data: &BTreeMap<String, ByteString>, now: Timestamp) -> Result<Self, Flaw> {
        let mut certificates = certificates(data, CERTIFICATE)?;
        let count = certificates.len();
        let (Some(certificate), 1) = (certificates.pop(), count) else {
            return Err(Flaw::NotOne(count));
        };
        let parsed = parse(&certificate).ok_or(Flaw::Unreadable(CERTIFICATE, 0))?;
        let key = key(data)?;
        if !may_sign(&parsed) {
            return Err(Flaw::NotAuthority);
        }
        if rcgen::PublicKeyData::subject_public_key_info(&key) != parsed.public_key().raw {
            return Err(Flaw::OtherKey);
        }
        let (not_before, not_after) = validity_of(&parsed).ok_or(Flaw::Unreadable(CERTIFICATE, 0))?;
        if now < not_before {
            return Err(Flaw::NotYetValid(not_before));
        }
        if now >= not_after {
            return Err(Flaw::Expired(not_after));
        }
        let bundle = self::certificates(data, BUNDLE)?;
        if !bundle.contains(&certificate) {
            return Err(Flaw::NotInBundle);
        }
        Ok(Self { certificate, not_before, not_after, key, bundle })
    }

    /// A new CA, valid from `now` on for `lifetime`. Its bundle holds its own certificate only.
    ///
    /// # Errors
    /// If the key cannot sign, or the time is out of range.
    pub fn establish(key: KeyPair, lifetime: SignedDuration, now: Timestamp) -> Result<Self, SigningError> {
        let (not_before, not_after) = (seconds(now - BACKDATING), seconds_up(now, lifetime)?);
        let mut parameters = parameters(not_before, not_after, "keywright-webhook-ca")?;
        // It may sign servers' certificates, but no other CAs. No name constraints: it is trusted for one webhook only, and
        // the API server checks that name anyway.
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = parameters.self_signed(&key)?.der().clone();
        Ok(Self { bundle: vec![certificate.clone()], certificate, not_before, not_after, key })
    }

    /// This CA, with these certificates added to its bundle if they are not there yet.
    #[must_use]
    pub fn trusting(mut self, others: impl IntoIterator<Item = CertificateDer<'static>>) -> Self {
        for other in others {
            if !self.bundle.contains(&other) {
                self.bundle.push(other);
            }
        }
        self
    }

    /// The certificate that signs.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The trusted CA certificates, the newest first.
    pub fn bundle(&self) -> &[CertificateDer<'static>] {
        &self.bundle
    }

    /// When the CA expires.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// When `keywright certificates` may replace the CA: after two thirds of its life.
    pub fn renewal_at(&self) -> Timestamp {
        renewal_at(self.not_before, self.not_after)
    }

    /// What to do about the CA at `now`.
    pub fn judge(&self, mandate: Mandate, now: Timestamp) -> Upkeep {
        let has_expired = unexpired(&self.bundle, now).len() < self.bundle.len();
        Upkeep::of(self.renewal_at(), has_expired, mandate, now)
    }

    /// This CA, with expired certificates removed from its bundle.
    #[must_use]
    pub fn pruned(mut self, now: Timestamp) -> Self {
        self.bundle = unexpired(&self.bundle, now);
        self
    }

    /// The Secret's data.
    pub fn data(&self) -> BTreeMap<String, ByteString> {
        let key = Zeroizing::new(self.key.serialize_der());
        BTreeMap::from([
            (CERTIFICATE.to_owned(), ByteString(encode(std::slice::from_ref(&self.certificate)))),
            (KEY.to_owned(), ByteString(encode_block("PRIVATE KEY", &key).into_bytes())),
            (BUNDLE.to_owned(), ByteString(encode(&self.bundle))),
        ])
    }

    /// The bundle for `caBundle`, as PEM.
    pub fn encoded_bundle(&self) -> Vec<u8> {
        encode(&self.bundle)
    }

    /// A certificate for a server with these names or addresses, valid for `lifetime` or until the CA expires.
    ///
    /// # Errors
    /// If a name is not valid in certificates.
    pub fn issue(
        &self,
        key: KeyPair,
        server_names: &[String],
        lifetime: SignedDuration,
        now: Timestamp,
    ) -> Result<Leaf, SigningError> {
        let not_before = seconds(now - BACKDATING).max(self.not_before);
        let not_after = seconds_up(now, lifetime)?.min(self.not_after);
        // The common name is for people. Clients check the alternative names (RFC 9525), and Go reads nothing else.
        let mut parameters = parameters(not_before, not_after, "keywright-webhook")?;
        parameters.subject_alt_names = CertificateParams::new(server_names)?.subject_alt_names;
        parameters.is_ca = IsCa::ExplicitNoCa;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        // All our CAs have the same name: the identifier tells Go which one of the bundle it is.
        parameters.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &self.key)?;
        let certificate = parameters.signed_by(&key, &issuer)?.der().clone();
        Ok(Leaf { certificate, key: key.into(), not_after, renewal_at: renewal_at(now, not_after) })
    }
}

/// Whether a client that trusts `bundle` accepts `certificate` at `now`, for each of the names.
///
/// # Errors
/// The first reason why it does not, to follow "the certificate is not valid".
pub fn verify(
    certificate: &CertificateDer<'_>,
    bundle: &[CertificateDer<'static>],
    server_names: &[String],
    now: Timestamp,
) -> Result<(), String> {
    let mut roots = RootCertStore::empty();
    // webpki does not check the dates of trusted certificates; Go does.
    roots.add_parsable_certificates(unexpired(bundle, now));
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
    let verifier = verifier.map_err(|_| "because no CA certificate in the bundle is valid".to_owned())?;
    let since = u64::try_from(now.as_second()).unwrap_or_default();
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(since));
    for name in server_names {
        let server_name =
            ServerName::try_from(name.as_str()).map_err(|_| format!("for {name}: this is not a server's name"))?;
        let verified = verifier.verify_server_cert(certificate, &[], &server_name, &[], now);
        verified.map_err(|problem| format!("for {name}: {problem}"))?;
    }
    Ok(())
}

/// The first `limit` certificates in `text` (PEM) that are CA certificates and have not expired at `now`. What cannot be
/// read is left out.
pub fn salvage(text: &[u8], limit: usize, now: Timestamp) -> Vec<CertificateDer<'static>> {
    let blocks = pem::parse_many(text).unwrap_or_default().into_iter();
    let certificates = blocks.filter(|block| block.tag() == "CERTIFICATE");
    let mut certificates: Vec<_> = certificates.map(|block| CertificateDer::from(block.into_contents())).collect();
    certificates.retain(|certificate| is_authority(certificate));
    certificates = unexpired(&certificates, now);
    certificates.truncate(limit);
    certificates
}

/// The Secret's data while the next CA is published: the new bundle, and the present CA unchanged, valid or not.
pub fn staged(data: &BTreeMap<String, ByteString>, successor: &Authority) -> BTreeMap<String, ByteString> {
    let mut staged = data.clone();
    for key in [CERTIFICATE, KEY] {
        // A Secret of type `kubernetes.io/tls` must have both.
        staged.entry(key.to_owned()).or_default();
    }
    staged.insert(BUNDLE.to_owned(), ByteString(successor.encoded_bundle()));
    staged
}

fn present<'d>(data: &'d BTreeMap<String, ByteString>, name: &'static str) -> Result<&'d [u8], Flaw> {
    data.get(name).map(|value| value.0.as_slice()).filter(|value| !value.is_empty()).ok_or(Flaw::Missing(name))
}

fn certificates(data: &BTreeMap<String, ByteString>, name: &'static str) -> Result<Vec<CertificateDer<'static>>, Flaw> {
    let blocks = pem::parse_many(present(data, name)?).map_err(|_| Flaw::NotPem(name))?;
    if blocks.is_empty() || blocks.iter().any(|block| block.tag() != "CERTIFICATE") {
        return Err(Flaw::NotPem(name));
    }
    let certificates: Vec<_> = blocks.into_iter().map(|block| CertificateDer::from(block.into_contents())).collect();
    match certificates.iter().position(|certificate| parse(certificate).is_none()) {
        Some(index) => Err(Flaw::Unreadable(name, index)),
        None => Ok(certificates),
    }
}

fn key(data: &BTreeMap<String, ByteString>) -> Result<KeyPair, Flaw> {
    let block = pem::parse(present(data, KEY)?).map_err(|_| Flaw::NotKey)?;
    if block.tag() != "PRIVATE KEY" {
        return Err(Flaw::NotKey);
    }
    let pkcs8 = Zeroizing::new(block.into_contents());
    KeyPair::try_from(pkcs8.as_slice()).map_err(|_| Flaw::NotKey)
}

fn unexpired(certificates: &[CertificateDer<'static>], now: Timestamp) -> Vec<CertificateDer<'static>> {
    let is_valid = |certificate: &&CertificateDer<'_>| x509::validity(certificate).is_some_and(|(_, end)| now < end);
    certificates.iter().filter(is_valid).cloned().collect()
}

fn encode(certificates: &[CertificateDer<'_>]) -> Vec<u8> {
    certificates.iter().map(|certificate| encode_block("CERTIFICATE", certificate)).collect::<String>().into_bytes()
}

fn encode_block(tag: &str, der: &[u8]) -> String {
    pem::encode_config(&Pem::new(tag, der), EncodeConfig::new().set_line_ending(LineEnding::LF))
}

fn parameters(not_before: Timestamp, not_after: Timestamp, name: &str) -> Result<CertificateParams, SigningError> {
    let at = |time: Timestamp| OffsetDateTime::from_unix_timestamp(time.as_second()).map_err(|_| SigningError::Time);
    let mut parameters = CertificateParams::default();
    (parameters.not_before, parameters.not_after) = (at(not_before)?, at(not_after)?);
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, name);
    Ok(parameters)
}

/// Rounded down: certificates have whole seconds. Ends are rounded up, so that no life is shorter than requested.
fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

fn seconds_up(now: Timestamp, lifetime: SignedDuration) -> Result<Timestamp, SigningError> {
    let end = now.checked_add(lifetime).map_err(|_| SigningError::Time)?;
    let whole = seconds(end);
    if whole < end {
        whole.checked_add(SignedDuration::from_secs(1)).map_err(|_| SigningError::Time)
    } else {
        Ok(whole)
    }
}

#[cfg(test)]
mod tests;
