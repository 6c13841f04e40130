use keywright_core::credential::{self, Carrier, CredentialError};
use keywright_core::key::Digest;

/// Each line of the input that begins with `A` goes on with a value of `Authorization`, and each that begins with `X`
/// with one of `X-API-Key`.
pub fn credential(data: &[u8]) {
    let lines = || data.split(|octet| *octet == b'\n');
    let authorization: Vec<&[u8]> = lines().filter_map(|line| line.strip_prefix(b"A")).collect();
    let x_api_key: Vec<&[u8]> = lines().filter_map(|line| line.strip_prefix(b"X")).collect();
    let found = credential::credential(authorization.iter().copied(), x_api_key.iter().copied());
    let expected = read(&authorization, &x_api_key);
    match (found, expected) {
        (Ok(credential), Ok((octets, carrier))) => {
            assert_eq!(credential.carrier, carrier);
            assert_eq!(credential.key.digest(), Digest::of(octets));
            // The target `key` says what is shown of a key.
            let shown = format!("Credential {{ key: {:?}, carrier: {carrier:?} }}", credential.key);
            assert_eq!(format!("{credential:?}"), shown);
        }
        (Err(error), Err(expected)) => assert_eq!(error, expected),
        (found, expected) => panic!("{found:?} instead of {expected:?}"),
    }
}

/// The second reading: the key and the header that it came in.
pub(crate) fn read<'a>(
    authorization: &[&'a [u8]],
    x_api_key: &[&'a [u8]],
) -> Result<(&'a [u8], Carrier), CredentialError> {
    let bearers = authorization.iter().filter(|value| is_bearer(value)).count();
    if bearers > 0 && authorization.len() > 1 || x_api_key.len() > 1 {
        return Err(CredentialError::Duplicate);
    }
    let (octets, carrier) = match (bearers, authorization.first(), x_api_key.first()) {
        (1, _, Some(_)) => return Err(CredentialError::Ambiguous),
        (1, Some(value), None) => {
            let token = value.get(6..).and_then(|rest| rest.strip_prefix(b" "));
            (token.ok_or(CredentialError::Malformed)?, Carrier::Authorization)
        }
        (_, _, Some(value)) => (*value, Carrier::XApiKey),
        _ => return Err(CredentialError::Missing),
    };
    let is_key = crate::key::read(octets).is_ok();
    if !is_key || carrier == Carrier::Authorization && !crate::key::fits_bearer(octets) {
        return Err(CredentialError::Malformed);
    }
    Ok((octets, carrier))
}

fn is_bearer(value: &[u8]) -> bool {
    let scheme = value.split(|octet| !(octet.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(octet))).next();
    scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer"))
}
