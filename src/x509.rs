//! PURE. Reads certificates (RFC 5280).

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

/// The first and the last moment of a certificate. `None` if it cannot be read.
pub fn validity(certificate: &CertificateDer<'_>) -> Option<(Timestamp, Timestamp)> {
    validity_of(&parse(certificate)?)
}

/// Whether a certificate is a CA's and may sign others.
pub fn is_authority(certificate: &CertificateDer<'_>) -> bool {
    parse(certificate).is_some_and(|parsed| may_sign(&parsed))
}

/// Parses a certificate. `None` if it cannot be read, or bytes follow it.
pub fn parse<'d>(certificate: &'d CertificateDer<'_>) -> Option<X509Certificate<'d>> {
    let (rest, parsed) = X509Certificate::from_der(certificate).ok()?;
    rest.is_empty().then_some(parsed)
}

/// Whether a parsed certificate is a CA's and may sign others.
pub fn may_sign(parsed: &X509Certificate<'_>) -> bool {
    let usage = parsed.key_usage();
    parsed.is_ca() && usage.is_ok_and(|usage| usage.is_none_or(|usage| usage.value.key_cert_sign()))
}

/// The first and the last moment of a parsed certificate.
pub fn validity_of(parsed: &X509Certificate<'_>) -> Option<(Timestamp, Timestamp)> {
    let at = |time: ASN1Time| Timestamp::from_second(time.timestamp()).ok();
    at(parsed.validity().not_before).zip(at(parsed.validity().not_after))
}
