//! Which key a request carries: `Authorization: Bearer <key>` or `X-API-Key: <key>`, exactly one of them, once. Anything
//! ambiguous is refused, because a proxy or the service behind it may read it differently. For the same reason only a
//! `b64token` may stand after `Bearer`, as RFC 6750 has it.

use crate::key::Presented;

/// The key that a request presents, and the header that carried it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credential<'a> {
    /// A well-formed key, or what may be a foreign one.
    pub key: Presented<'a>,
    /// The header that carried it.
    pub carrier: Carrier,
}

/// The header that carried a key, to be removed before the request goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// `Authorization: Bearer <key>`
    Authorization,
    /// `X-API-Key: <key>`
    XApiKey,
}

/// Why a request presents no key that could be looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// There is no Bearer credential and no `X-API-Key`. Other schemes are ignored.
    #[error("the request carries no key")]
    Missing,
    /// There is a Bearer credential and an `X-API-Key`, even if they are equal or not keys.
    #[error("the request carries both a Bearer credential and an X-API-Key")]
    Ambiguous,
    /// The header with the key is there more than once.
    #[error("the header that carries the key is repeated")]
    Duplicate,
    /// The value is neither a well-formed key nor what a foreign one may be, or it may not stand after `Bearer`.
    #[error("the value that the request carries is not a key")]
    Malformed,
}

/// Reads the key out of the values of all `Authorization` and all `X-API-Key` lines of a request.
///
/// The caller matches the names (ASCII case-insensitively, never an alias such as `X_API_Key`) and passes the values as
/// received, not trimmed. Does not allocate.
///
/// # Errors
/// See [`CredentialError`]; a repeated header is reported before two headers that contradict each other.
pub fn credential<'a>(
    authorization: impl Iterator<Item = &'a [u8]>,
    x_api_key: impl Iterator<Item = &'a [u8]>,
) -> Result<Credential<'a>, CredentialError> {
    let after_scheme = sole_bearer(authorization)?;
    let x_api_key = at_most_one(x_api_key)?;
    let (bytes, carrier) = match (after_scheme, x_api_key) {
        (None, None) => return Err(CredentialError::Missing),
        (Some(_), Some(_)) => return Err(CredentialError::Ambiguous),
        (None, Some(value)) => (value, Carrier::XApiKey),
        (Some(rest), None) => {
            // Exactly one space: the next hop must not read the header differently.
            let token = rest.strip_prefix(b" ").ok_or(CredentialError::Malformed)?;
            (token, Carrier::Authorization)
        }
    };
    let key = Presented::parse(bytes).map_err(|_| CredentialError::Malformed)?;
    if carrier == Carrier::Authorization && !key.is_b64token() {
        return Err(CredentialError::Malformed);
    }
    Ok(Credential { key, carrier })
}

impl Carrier {
    /// The header's name, in lower case as HTTP/2 and Envoy write it.
    pub fn header_name(self) -> &'static str {
        match self {
            Self::Authorization => "authorization",
            Self::XApiKey => "x-api-key",
        }
    }
}

impl CredentialError {
    /// The error's name in `tests/cases/credentials.tsv`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "credential_missing",
            Self::Ambiguous => "credential_ambiguous",
            Self::Duplicate => "credential_duplicate",
            Self::Malformed => "credential_malformed",
        }
    }
}

/// The text after the Bearer scheme, if that is the scheme.
///
/// `Authorization` is a singleton field (RFC 9110, 5.3 and 11.6.2): a Bearer line beside any other line
/// is refused, as the next hop may pick the other one.
fn sole_bearer<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Result<Option<&'a [u8]>, CredentialError> {
    let mut count = 0;
    let mut found = None;
    for line in lines {
        count += 1;
        found = found.or(after_bearer(line));
        if count > 1 && found.is_some() {
            return Err(CredentialError::Duplicate);
        }
    }
    Ok(found)
}

/// The text after the scheme, which is the longest run of token characters at the start (RFC 9110, 11.4).
fn after_bearer(line: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = line.split_at_checked(b"bearer".len())?;
    let is_whole = rest.first().is_none_or(|byte| !is_token_character(*byte));
    (is_whole && scheme.eq_ignore_ascii_case(b"bearer")).then_some(rest)
}

/// `tchar` of RFC 9110, 5.6.2.
fn is_token_character(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn at_most_one<'a>(mut lines: impl Iterator<Item = &'a [u8]>) -> Result<Option<&'a [u8]>, CredentialError> {
    let first = lines.next();
    if lines.next().is_some() {
        return Err(CredentialError::Duplicate);
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::KEY;

    /// The verdicts of a verifier that knows no foreign key.
    const CASES: &str = include_str!("../../../tests/cases/credentials.tsv");

    fn extract<'a>(headers: &'a [(String, String)]) -> Result<(Credential<'a>, &'a str), CredentialError> {
        let lines = |wanted: &'static str| {
            let named = headers.iter().filter(move |(name, _)| name.eq_ignore_ascii_case(wanted));
            named.map(|(_, value)| value.as_bytes())
        };
        let found = credential(lines("authorization"), lines("x-api-key"))?;
        Ok((found, str::from_utf8(found.key.reveal()).unwrap()))
    }

    fn check(headers: &[(&str, &str)], expected: Result<Carrier, CredentialError>) {
        let owned: Vec<_> = headers.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect();
        let found = extract(&owned);
        assert_eq!(found.map(|(found, _)| found.carrier), expected, "{headers:?}");
    }

    #[test]
    fn every_case_has_its_verdict_and_reason() {
        let mut ran = 0;
        for row in CASES.lines().filter(|line| !line.starts_with("# ")) {
            let mut columns = row.split('\t');
            let headers: Vec<(String, String)> = serde_json::from_str(columns.next().unwrap()).unwrap();
            let found = match extract(&headers) {
                Ok((found, _)) if found.key.is_foreign() => format!("deny:{}", CredentialError::Malformed.as_str()),
                Ok((_, key)) => format!("key:{key}"),
                Err(error) => format!("deny:{}", error.as_str()),
            };
            assert_eq!(Some(found.as_str()), columns.next(), "{row}");
            ran += 1;
        }
        assert!(ran > 0);
    }

    #[test]
    fn the_carrier_is_the_header_that_held_the_key() {
        let bearer = format!("bearer {KEY}");
        check(&[("Authorization", &bearer)], Ok(Carrier::Authorization));
        check(&[("X-API-Key", KEY)], Ok(Carrier::XApiKey));
        check(&[("Authorization", "Basic eA=="), ("X-API-Key", KEY)], Ok(Carrier::XApiKey));
        assert_eq!(Carrier::Authorization.header_name(), "authorization");
        assert_eq!(Carrier::XApiKey.header_name(), "x-api-key");
    }

    /// Foreign ones, where a verifier knows any.
    #[test]
    fn a_foreign_key_may_stand_in_x_api_key_and_a_b64token_after_bearer_too() {
        let is_bearer_too = [
            ("live_0123456789abcdef", true),
            ("eyJhbGciOiJub25lIn0.e30.", true),
            ("MDEyMzQ1Njc4OWFiY2RlZg==", true),
            ("sk!#$%&'()*+-./:;<=>?@[]^_`{|}~", false),
            ("api:0123456789abcdef", false),
        ];
        for (key, is_bearer_too) in is_bearer_too {
            check(&[("X-API-Key", key)], Ok(Carrier::XApiKey));
            check(&[("Authorization", "Basic eA=="), ("X-API-Key", key)], Ok(Carrier::XApiKey));
            let after_bearer = if is_bearer_too { Ok(Carrier::Authorization) } else { Err(CredentialError::Malformed) };
            let bearer = format!("Bearer {key}");
            check(&[("Authorization", &bearer)], after_bearer);
            check(&[("Authorization", &bearer), ("X-API-Key", key)], Err(CredentialError::Ambiguous));
            check(&[("X-API-Key", key), ("x-api-key", key)], Err(CredentialError::Duplicate));
            check(&[("Authorization", &format!("{bearer} "))], Err(CredentialError::Malformed));
            check(&[("Authorization", &format!("Bearer  {key}"))], Err(CredentialError::Malformed));
            check(&[("Authorization", key)], Err(CredentialError::Missing));
        }
        for no_key in ["live_0123456789", "live 0123456789abcdef", "live_0123456789abcdef,", "keyw_0123456789abcdef"] {
            check(&[("X-API-Key", no_key)], Err(CredentialError::Malformed));
        }
    }

    #[test]
    fn a_bearer_line_beside_any_other_authorization_line_is_refused() {
        let bearer = format!("Bearer {KEY}");
        for other in [bearer.as_str(), "Basic dXNlcjpwdw==", "", "Bearer", "Negotiate"] {
            let expected = Err(CredentialError::Duplicate);
            check(&[("Authorization", &bearer), ("Authorization", other)], expected);
            check(&[("Authorization", other), ("Authorization", &bearer)], expected);
        }
        let two_of_another_scheme = [("Authorization", "Basic eA=="), ("Authorization", "Negotiate")];
        check(&two_of_another_scheme, Err(CredentialError::Missing));
    }

    #[test]
    fn between_scheme_and_key_stands_exactly_one_space() {
        for between in ["", "  ", "\t", " \t", "\u{a0}", "=", ":", ",", "\r\n "] {
            let value = format!("Bearer{between}{KEY}");
            let expected = match between {
                "" => CredentialError::Missing,
                _ => CredentialError::Malformed,
            };
            check(&[("Authorization", &value)], Err(expected));
        }
    }

    #[test]
    fn a_bearer_credential_of_any_content_makes_an_x_api_key_ambiguous() {
        for junk in ["Bearer", "bearer ", "BEARER=", "Bearer\tx", "Bearer eyJh.e30."] {
            check(&[("Authorization", junk), ("X-API-Key", KEY)], Err(CredentialError::Ambiguous));
        }
    }

    fn values() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let value = prop_oneof![
            Just(KEY.as_bytes().to_vec()),
            Just(format!("Bearer {KEY}").into_bytes()),
            "(?i)bearer[ \t:]{0,2}[a-z]{0,3}".prop_map(String::into_bytes),
            prop::collection::vec(any::<u8>(), 0..70),
        ];
        prop::collection::vec(value, 0..4)
    }

    proptest! {
        #[test]
        fn a_key_is_found_only_where_it_stands_whole_and_alone(auth in values(), keys in values()) {
            let found = credential(auth.iter().map(Vec::as_slice), keys.iter().map(Vec::as_slice));
            if let Ok(found) = found {
                match found.carrier {
                    Carrier::XApiKey => prop_assert_eq!(&keys, &[found.key.reveal().to_vec()]),
                    Carrier::Authorization => {
                        prop_assert!(keys.is_empty() && auth.len() == 1);
                        prop_assert!(auth[0][..7].eq_ignore_ascii_case(b"bearer "));
                        prop_assert_eq!(&auth[0][7..], found.key.reveal());
                    }
                }
            }
        }
    }
}
