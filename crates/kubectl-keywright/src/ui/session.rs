//! Who may talk to the page's server: the one browser that was given the token, and in it only the page itself.
//!
//! Any page in the browser, and any program on this machine, can reach a port of the loopback interface. So:
//!
//! - The address that is printed holds a token in its fragment, which no request carries. It is good once: the page trades
//!   it for two secrets, and every request must show both.
//! - One is a cookie, which scripts cannot read and other sites' requests do not carry. But cookies know no ports: whatever
//!   else listens on this machine may be sent it.
//! - So the other stands in a header. The page keeps it in its tab's storage, which is of one origin, and that has a port.
//! - `Host` must be the address itself. A name that an attacker lets point here (DNS rebinding) is refused.
//! - `Origin` and `Sec-Fetch-Site` must be the page's own.
//! - What changes something is a POST of JSON, which no form can send.

use std::fmt;
use std::sync::Mutex;

use axum::http::{HeaderMap, Method, header};
use keywright_core::key::Digest;
use zeroize::Zeroizing;

/// Headers of every answer.
pub const HEADERS: [(&str, &str); 7] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cache-control", "no-store"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
];

/// The header that proves that a request is the page's.
pub const PROOF_HEADER: &str = "x-keywright-session";

/// The one session of this server.
pub struct Session {
    port: u16,
    /// Of the token, until it is spent.
    token: Mutex<Option<Digest>>,
    cookie: Zeroizing<String>,
    proof: Zeroizing<String>,
}

/// What the page gets for the token.
pub struct Begun {
    /// The value of `Set-Cookie`.
    pub cookie: String,
    /// The value of [`PROOF_HEADER`].
    pub proof: Zeroizing<String>,
}

/// What a session is made of: random octets.
pub struct Secrets {
    /// Of the token in the address.
    pub token: [u8; 32],
    /// Of the cookie.
    pub cookie: [u8; 32],
    /// Of the header.
    pub proof: [u8; 32],
}

/// What a request must show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The files of the page: for whoever asks this server by its address.
    Open,
    /// The session's beginning: for the page, with the token.
    Token,
    /// All else: for the page, with both secrets.
    Session,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It was meant for another host.
    Host,
    /// Another page sent it.
    Origin,
    /// It does not say that it brings JSON.
    ContentType,
    /// It lacks one of the secrets, or has an old one.
    Session,
}

impl Session {
    /// The session on this port, and its token.
    pub fn new(port: u16, secrets: &Secrets) -> (Self, Zeroizing<String>) {
        let token = hexadecimal(&secrets.token);
        let session = Self {
            port,
            token: Mutex::new(Some(Digest::of(token.as_bytes()))),
            cookie: hexadecimal(&secrets.cookie),
            proof: hexadecimal(&secrets.proof),
        };
        (session, token)
    }

    /// Spends the token, once.
    pub fn begin(&self, token: &str) -> Option<Begun> {
        let mut expected = self.token.lock().ok()?;
        // Digests are compared, so that the time tells nothing about the token.
        if *expected != Some(Digest::of(token.as_bytes())) {
            return None;
        }
        *expected = None;
        let cookie = format!("{}={}; Path=/; HttpOnly; SameSite=Strict", self.cookie_name(), self.cookie.as_str());
        Some(Begun { cookie, proof: self.proof.clone() })
    }

    /// Whether a request may come in by this door.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn judge(&self, door: Door, method: &Method, headers: &HeaderMap) -> Result<(), Refusal> {
        let address = format!("127.0.0.1:{}", self.port);
        if only(headers, header::HOST) != Some(&address) {
            return Err(Refusal::Host);
        }
        if door == Door::Open {
            return Ok(());
        }
        let origin = only(headers, header::ORIGIN);
        let is_own = origin == Some(&format!("http://{address}"));
        let is_read = method == Method::GET;
        let site = headers.get("sec-fetch-site").map(|site| site.as_bytes());
        if !(is_own || is_read && origin.is_none() && !headers.contains_key(header::ORIGIN))
            || site.is_some_and(|site| site != b"same-origin")
        {
            return Err(Refusal::Origin);
        }
        if !is_read && only(headers, header::CONTENT_TYPE) != Some("application/json") {
            return Err(Refusal::ContentType);
        }
        if door == Door::Session && !self.knows(headers) {
            return Err(Refusal::Session);
        }
        Ok(())
    }

    fn knows(&self, headers: &HeaderMap) -> bool {
        let is = |given: &str, expected: &str| Digest::of(given.as_bytes()) == Digest::of(expected.as_bytes());
        let proof = only(headers, header::HeaderName::from_static(PROOF_HEADER));
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let has_cookie = pairs.any(|(name, value)| name == self.cookie_name() && is(value, &self.cookie));
        has_cookie && proof.is_some_and(|proof| is(proof, &self.proof))
    }

    /// With the port in it, as cookies of all ports share one jar.
    fn cookie_name(&self) -> String {
        format!("keywright-{}", self.port)
    }
}

impl Refusal {
    /// The status of the answer.
    pub fn status(self) -> u16 {
        match self {
            Self::Host => 421,
            Self::Origin => 403,
            Self::ContentType => 415,
            Self::Session => 401,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "This server answers at its own address only.",
            Self::Origin => "This server answers its own page only.",
            Self::ContentType => "Send JSON.",
            Self::Session => "This tab's session is not known: its address is old, or another page has replaced its cookie. Run kubectl keywright ui again.",
        })
    }
}

/// The value of a header that is there once.
fn only(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() { None } else { value.to_str().ok() }
}

/// Bytes as digits.
pub fn hexadecimal(bytes: &[u8]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(2 * bytes.len()));
    for digit in bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]) {
        text.push(char::from_digit(digit.into(), 16).unwrap_or_default());
    }
    text
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    const OWN: [(&str, &str); 2] = [("host", "127.0.0.1:4711"), ("origin", "http://127.0.0.1:4711")];

    fn session() -> (Session, Zeroizing<String>) {
        Session::new(4711, &Secrets { token: [1; 32], cookie: [2; 32], proof: [3; 32] })
    }

    fn headers(given: &[(&'static str, &str)]) -> HeaderMap {
        given.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn the_token_is_good_once() {
        let (session, token) = session();
        assert_eq!(token.len(), 64);
        assert!(session.begin("0101").is_none());
        let begun = session.begin(&token).unwrap();
        assert_eq!(begun.cookie, format!("keywright-4711={}; Path=/; HttpOnly; SameSite=Strict", "02".repeat(32)));
        assert_eq!(begun.proof.as_str(), "03".repeat(32));
        assert!(session.begin(&token).is_none());
    }

    #[test]
    fn a_request_comes_from_the_page_or_not_at_all() {
        let (session, _) = session();
        let cookie = format!("other=1; keywright-4711={}", "02".repeat(32));
        let good = format!("keywright-4711={}", "02".repeat(32));
        let json = ("content-type", "application/json");
        let proof = "03".repeat(32);
        let proof = (PROOF_HEADER, &*proof);
        let (get, post) = (Method::GET, Method::POST);
        let host = OWN[0];
        for (door, method, given, verdict) in [
            (Door::Open, &get, vec![host], Ok(())),
            (Door::Open, &get, vec![], Err(Refusal::Host)),
            (Door::Open, &get, vec![("host", "localhost:4711")], Err(Refusal::Host)),
            (Door::Open, &get, vec![("host", "127.0.0.1")], Err(Refusal::Host)),
            (Door::Open, &get, vec![("host", "127.0.0.1:4712")], Err(Refusal::Host)),
            (Door::Open, &get, vec![("host", "rebound.example.org:4711")], Err(Refusal::Host)),
            (Door::Open, &get, vec![host, ("host", "rebound.example.org")], Err(Refusal::Host)),
            (Door::Session, &get, vec![host, ("cookie", &*cookie), proof], Ok(())),
            (Door::Session, &get, vec![host, ("cookie", &*good), proof, ("sec-fetch-site", "same-origin")], Ok(())),
            (
                Door::Session,
                &get,
                vec![host, ("cookie", &*good), proof, ("sec-fetch-site", "same-site")],
                Err(Refusal::Origin),
            ),
            (
                Door::Session,
                &get,
                vec![host, ("cookie", &*good), proof, ("sec-fetch-site", "cross-site")],
                Err(Refusal::Origin),
            ),
            (Door::Session, &get, vec![host, ("cookie", &*good), proof, ("origin", "null")], Err(Refusal::Origin)),
            (Door::Session, &get, vec![host], Err(Refusal::Session)),
            // Any server on this machine may be sent the cookie.
            (Door::Session, &get, vec![host, ("cookie", &*good)], Err(Refusal::Session)),
            (Door::Session, &get, vec![host, ("cookie", &*good), (PROOF_HEADER, "0303")], Err(Refusal::Session)),
            (Door::Session, &get, vec![host, ("cookie", &*good), proof, proof], Err(Refusal::Session)),
            (Door::Session, &get, vec![host, proof], Err(Refusal::Session)),
            (Door::Session, &get, vec![host, ("cookie", "keywright-4711=")], Err(Refusal::Session)),
            (Door::Session, &get, vec![host, ("cookie", "keywright-4712=0202")], Err(Refusal::Session)),
            (Door::Session, &post, vec![host, OWN[1], json, ("cookie", &*good), proof], Ok(())),
            (Door::Session, &post, vec![host, json, ("cookie", &*good), proof], Err(Refusal::Origin)),
            (
                Door::Session,
                &post,
                vec![host, ("origin", "http://127.0.0.1:80"), json, ("cookie", &*good), proof],
                Err(Refusal::Origin),
            ),
            (
                Door::Session,
                &post,
                vec![host, ("origin", "https://127.0.0.1:4711"), json, ("cookie", &*good), proof],
                Err(Refusal::Origin),
            ),
            (Door::Session, &post, vec![host, OWN[1], OWN[1], json, ("cookie", &*good), proof], Err(Refusal::Origin)),
            (
                Door::Session,
                &post,
                vec![host, OWN[1], ("content-type", "text/plain"), ("cookie", &*good), proof],
                Err(Refusal::ContentType),
            ),
            (Door::Session, &post, vec![host, OWN[1], ("cookie", &*good), proof], Err(Refusal::ContentType)),
            (Door::Token, &post, vec![host, OWN[1], json], Ok(())),
            (Door::Token, &post, vec![host, ("origin", "http://evil.example"), json], Err(Refusal::Origin)),
        ] {
            let said = session.judge(door, method, &headers(&given));
            assert_eq!(said, verdict, "{door:?} {method} {given:?}");
        }
    }
}
