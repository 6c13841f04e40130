//! Forward authentication over HTTP, as nginx, Traefik and Envoy ask it: a request's head in, an answer out.
//!
//! Header names must match completely. Header lines are taken in order, and never joined. A client cannot change what the
//! route requires, because that is in the proxy's URL. It cannot forge `X-Keywright-*` headers, because an answer always sets
//! all of them.

use std::mem;
use std::net::IpAddr;

use http_body_util::Full;
use hyper::header::{
    AUTHORIZATION, CACHE_CONTROL, CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, InvalidHeaderValue,
};
use hyper::{Request, Response, StatusCode, Version};
use tracing::error;

use super::decisions::Decisions;
use crate::serve::connections::Answer;
use crate::serve::problem::{INTERNAL_SERVER_ERROR, ProblemDocument};
use keywright_core::client_address::ClientAddressSource;
use keywright_core::credential::credential;
use keywright_core::verify::{self, InvalidRoute, Permit, Route};

/// Answers the requests of proxies.
pub struct ForwardAuth {
    decisions: Decisions,
    client_address_source: ClientAddressSource,
    /// The headers of an allow, with empty values: copying the map is cheaper than inserting each header.
    allow_headers: HeaderMap,
}

/// The only path.
const PATH: &str = "/verify";

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The headers about a key: its prefix, namespace, name, owner and scopes.
const IDENTITY: [HeaderName; 5] = [
    HeaderName::from_static("x-keywright-key"),
    HeaderName::from_static("x-keywright-namespace"),
    HeaderName::from_static("x-keywright-name"),
    HeaderName::from_static("x-keywright-owner"),
    HeaderName::from_static("x-keywright-scopes"),
];

const NOTHING: HeaderValue = HeaderValue::from_static("");

const NOT_FOUND: ProblemDocument = ProblemDocument {
    status: StatusCode::NOT_FOUND,
    challenge: None,
    body: r#"{"status":404,"title":"Not Found","detail":"Ask at /verify."}"#,
};
const BAD_REQUEST: ProblemDocument = ProblemDocument {
    status: StatusCode::BAD_REQUEST,
    challenge: None,
    body: r#"{"status":400,"title":"Bad Request","detail":"Send exactly one Host header."}"#,
};

impl ForwardAuth {
    /// Answers with `decisions`, and takes the client's address from `client_address_source`.
    pub fn new(decisions: Decisions, client_address_source: ClientAddressSource) -> Self {
        let mut allow_headers: HeaderMap = IDENTITY.map(|name| (name, NOTHING)).into_iter().collect();
        allow_headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Self { decisions, client_address_source, allow_headers }
    }

    /// Answers a request from `peer`.
    pub fn answer(&self, request: &Request<()>, peer: IpAddr) -> Answer {
        if !has_one_host(request) {
            let mut response = BAD_REQUEST.into_response();
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            return response.into();
        }
        if request.uri().path() != PATH {
            return NOT_FOUND.into_response().into();
        }
        let headers = request.headers();
        let request = verify::Request {
            credential: credential(lines(headers, &AUTHORIZATION), lines(headers, &X_API_KEY)),
            route: route(request.uri().query()),
            client_address: &|| {
                let forwarded_for: Vec<&[u8]> = lines(headers, &X_FORWARDED_FOR).collect();
                self.client_address_source.resolve(peer, forwarded_for.into_iter())
            },
        };
        match self.decisions.decide(&request, |permit, until| (self.identity(permit), until)) {
            Ok((Ok(headers), until)) => {
                let mut response = Response::new(Full::default());
                *response.headers_mut() = headers;
                Answer { response, until: Some(until) }
            }
            Ok((Err(error), _)) => {
                // The keyring refuses such texts. If one gets through, the request is not allowed.
                error!(%error, "refused a request: the key's identity is not valid in a header. Report this as a bug");
                INTERNAL_SERVER_ERROR.into_response().into()
            }
            Err(answer) => answer.into_response().into(),
        }
    }

    /// The headers about the key, for the proxy. All of them are set, some to an empty value, so that they replace any header
    /// that a client has forged.
    fn identity(&self, permit: &Permit<'_>) -> Result<HeaderMap, InvalidHeaderValue> {
        let (entry, shown) = (permit.entry(), permit.shown());
        let texts = [shown.as_str(), entry.namespace(), entry.name(), entry.owner(), entry.scopes()];
        let mut values = texts.map(HeaderValue::from_str);
        let mut headers = self.allow_headers.clone();
        for (name, place) in headers.iter_mut() {
            let value = IDENTITY.iter().position(|own| own == name).and_then(|index| values.get_mut(index));
            if let Some(value) = value {
                *place = mem::replace(value, Ok(NOTHING))?;
            }
        }
        Ok(headers)
    }
}

/// Whether an HTTP/1.1 request has exactly one Host, and an older request at most one (RFC 9112, 3.2).
fn has_one_host(request: &Request<()>) -> bool {
    match lines(request.headers(), &HOST).count() {
        0 => request.version() < Version::HTTP_11,
        count => count == 1,
    }
}

/// The values of all lines with this name, in order.
fn lines<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h [u8]> + use<'h> {
    headers.get_all(name).into_iter().map(HeaderValue::as_bytes)
}

fn route(query: Option<&str>) -> Result<Route<'_>, InvalidRoute> {
    Route::read(form_urlencoded::parse(query.unwrap_or_default().as_bytes()))
}

#[cfg(test)]
mod tests;
