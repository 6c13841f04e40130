//! What a canary key tells of a route: from answers to what the verifier saw. No I/O.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use keywright_core::address::Network;
use serde_json::Value;

/// Who lets whom in: a proxy that asks a verifier, and passes on what that says, or says something of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Anything that only whoever is behind the proxy can answer, with this HTTP status.
    LetIn(u16),
    /// 401: no valid key has reached the verifier.
    NoKey,
    /// 403, and the verifier's reason reached us.
    Refused(Reason),
    /// 403 without the verifier's reason: the proxy answers in its own words, or somebody else refuses.
    Forbidden,
    /// 503: the verifier cannot decide, or is not reached.
    Unavailable,
    /// A redirect, 429 or another 5xx: may be before anybody is asked, or behind it.
    Undecided(u16),
}

/// Why a verifier refuses a valid key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The route accepts other namespaces.
    Namespace,
    /// The route demands another scope.
    Scope,
    /// The client's address is not in the key's list.
    Address,
    /// The route's parameters are wrong.
    Route,
}

impl Verdict {
    /// What an answer with this status and this body says.
    pub fn of(status: u16, body: &[u8]) -> Self {
        match status {
            401 => Self::NoKey,
            403 => reason_in(body).map_or(Self::Forbidden, Self::Refused),
            503 => Self::Unavailable,
            300..=399 | 429 | 500.. => Self::Undecided(status),
            other => Self::LetIn(other),
        }
    }

    /// Whether the request has passed.
    pub fn is_let_in(self) -> bool {
        matches!(self, Self::LetIn(_))
    }

    /// Whether a canary that was let in before still is; `None` if the answer has another cause than what was declared since.
    pub fn passes(self) -> Option<bool> {
        match self {
            Self::LetIn(_) => Some(true),
            Self::Refused(Reason::Address | Reason::Scope) | Self::Forbidden => Some(false),
            Self::NoKey | Self::Refused(_) | Self::Unavailable | Self::Undecided(_) => None,
        }
    }

    /// In words.
    pub fn words(self) -> String {
        match self {
            Self::LetIn(status) => format!("let in (HTTP {status})"),
            Self::NoKey => "refused (401): no valid key".to_owned(),
            Self::Refused(reason) => format!("refused (403): {}", reason.words()),
            Self::Forbidden => "refused (403), and the proxy does not say why".to_owned(),
            Self::Unavailable => "refused (503): the verifier cannot decide, or is not reached".to_owned(),
            Self::Undecided(status) => format!("answered HTTP {status}, which is no decision"),
        }
    }

    /// What to do, in a sentence, where an answer to a request `with` something or other decides nothing.
    pub fn remedy(self, with: &str) -> Option<String> {
        let Self::Undecided(status) = self else { return None };
        let remedy = match status {
            300..=399 => "give the address that it leads to",
            _ => "try again later",
        };
        Some(format!("The route answers HTTP {status} to a request {with}: {remedy}."))
    }
}

impl Reason {
    fn words(self) -> &'static str {
        match self {
            Self::Namespace => "the route accepts other namespaces",
            Self::Scope => "the route demands another scope",
            Self::Address => "not from this address",
            Self::Route => "the route's parameters are wrong; the verifier's log says what to write",
        }
    }
}

/// The verifier's answers are constant, one for each cause.
fn reason_in(body: &[u8]) -> Option<Reason> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let detail = body.get("detail")?.as_str()?;
    let causes = [
        ("The API key belongs to a namespace", Reason::Namespace),
        ("The API key lacks a scope", Reason::Scope),
        ("The API key must not be used from this address", Reason::Address),
        ("The proxy's parameters are wrong", Reason::Route),
    ];
    causes.into_iter().find(|(start, _)| detail.starts_with(start)).map(|(_, reason)| reason)
}

/// The addresses that a client may have, by what is known so far: halved with each answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Search {
    bits: u128,
    length: u8,
    is_ipv4: bool,
}

/// One half of what is left: an entry that the key is to be limited to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Half {
    /// The entry.
    pub network: String,
    is_lower: bool,
}

impl Search {
    /// All IPv4 addresses.
    pub const IPV4: Self = Self { bits: 0, length: 0, is_ipv4: true };
    /// All IPv6 addresses.
    pub const IPV6: Self = Self { bits: 0, length: 0, is_ipv4: false };

    /// What is left, as an entry of a list.
    pub fn network(self) -> String {
        let address: IpAddr = if self.is_ipv4 {
            Ipv4Addr::from_bits((self.bits >> 96) as u32).into()
        } else {
            Ipv6Addr::from_bits(self.bits).into()
        };
        format!("{address}/{}", self.length)
    }

    /// The half to ask about. `None` once enough is known: one IPv4 address, or one IPv6 network of a site.
    pub fn half(self) -> Option<Half> {
        if self.length >= if self.is_ipv4 { 32 } else { 64 } {
            return None;
        }
        [true, false].into_iter().find_map(|is_lower| {
            let network = self.in_half(is_lower).network();
            // No list may name the first and the last address, which no client has.
            Network::parse(&network).is_ok().then_some(Half { network, is_lower })
        })
    }

    /// What is left when a key that is limited to `half` is let in, or is not.
    pub fn answered(self, half: &Half, is_let_in: bool) -> Self {
        self.in_half(half.is_lower == is_let_in)
    }

    fn in_half(self, is_lower: bool) -> Self {
        // The next bit, from the top.
        let bit = 1_u128 << (127 - u32::from(self.length.min(127)));
        Self { bits: if is_lower { self.bits } else { self.bits | bit }, length: self.length + 1, ..self }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_answer_says_as_much_as_it_holds() {
        let scope =
            br#"{"status":403,"title":"Forbidden","detail":"The API key lacks a scope that is required here."}"#;
        for (status, body, verdict) in [
            (200, &b""[..], Verdict::LetIn(200)),
            (404, b"not here", Verdict::LetIn(404)),
            (401, b"", Verdict::NoKey),
            (403, scope, Verdict::Refused(Reason::Scope)),
            (403, b"<html>403</html>", Verdict::Forbidden),
            (403, br#"{"detail":"Something else"}"#, Verdict::Forbidden),
            (503, b"", Verdict::Unavailable),
            (302, b"", Verdict::Undecided(302)),
            (304, b"", Verdict::Undecided(304)),
            (429, b"", Verdict::Undecided(429)),
            (500, b"", Verdict::Undecided(500)),
            (502, scope, Verdict::Undecided(502)),
        ] {
            assert_eq!(Verdict::of(status, body), verdict);
        }
    }

    #[test]
    fn what_decides_nothing_says_what_to_do() {
        for (status, remedy) in [
            (200, None),
            (401, None),
            (404, None),
            (503, None),
            (302, Some("The route answers HTTP 302 to a request without a key: give the address that it leads to.")),
            (429, Some("The route answers HTTP 429 to a request without a key: try again later.")),
            (502, Some("The route answers HTTP 502 to a request without a key: try again later.")),
        ] {
            let verdict = Verdict::of(status, b"");
            assert_eq!(verdict.remedy("without a key").as_deref(), remedy);
            assert!(remedy.is_none() || (verdict.passes().is_none() && !verdict.is_let_in()), "{status}");
        }
        assert_eq!(Verdict::Undecided(302).words(), "answered HTTP 302, which is no decision");
    }

    fn found(start: Search, address: IpAddr) -> String {
        let mut search = start;
        while let Some(half) = search.half() {
            let network = Network::parse(&half.network).unwrap();
            search = search.answered(&half, network.contains(address));
        }
        search.network()
    }

    #[test]
    fn an_address_is_found_wherever_it_is() {
        for address in ["192.0.2.44", "0.0.0.1", "255.255.255.254", "10.0.0.0", "223.255.255.255"] {
            assert_eq!(found(Search::IPV4, address.parse().unwrap()), format!("{address}/32"));
        }
        assert_eq!(found(Search::IPV6, "2001:db8:1:2:3::4".parse().unwrap()), "2001:db8:1:2::/64");
        assert_eq!(found(Search::IPV6, "fe80::1".parse().unwrap()), "fe80::/64");
        assert_eq!(found(Search::IPV6, "::1".parse().unwrap()), "::/64");
    }

    proptest! {
        #[test]
        fn every_client_is_found(bits in 1_u32..0xe000_0000) {
            let address = Ipv4Addr::from_bits(bits);
            prop_assert_eq!(found(Search::IPV4, address.into()), format!("{address}/32"));
        }
    }
}
