//! Forward authentication over HTTP, as nginx, Traefik and Envoy ask it: a request's head in, an answer out.
//!
//! Header names are compared whole; lines are taken as they stand, in order, never joined. What a client sends can
//! change neither what the route demands, which is in the proxy's URL, nor the `X-Keywright-*` headers of an answer,
//! which are all always set.

use std::mem;
use std::net::IpAddr;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{
    AUTHORIZATION, CACHE_CONTROL, CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, InvalidHeaderValue,
};
use hyper::{Request, Response, StatusCode, Version};
use tracing::error;

use super::decisions::Decisions;
use crate::serve::problem::{INTERNAL_SERVER_ERROR, ProblemDocument};
use keywright_core::address::client::ClientAddressSource;
use keywright_core::key::credential;
use keywright_core::verify::{self, InvalidRoute, Permit, Route};

/// Answers the requests of proxies.
pub struct ForwardAuth {
    decisions: Decisions,
    client_address_source: ClientAddressSource,
    /// The headers of an allow, without what they say: to copy them is cheaper than to enter each.
    allow_headers: HeaderMap,
}

/// The one path that is answered.
const PATH: &str = "/verify";

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// What an answer says of a key: its prefix, namespace, name, owner and scopes.
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
    /// A verifier that takes the address of the client from `client_address_source`.
    pub fn new(decisions: Decisions, client_address_source: ClientAddressSource) -> Self {
        let mut allow_headers: HeaderMap = IDENTITY.map(|name| (name, NOTHING)).into_iter().collect();
        allow_headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Self { decisions, client_address_source, allow_headers }
    }

    /// Answers a request that `peer` sent.
    pub fn answer(&self, request: &Request<()>, peer: IpAddr) -> Response<Full<Bytes>> {
        if !has_one_host(request) {
            let mut response = BAD_REQUEST.into_response();
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            return response;
        }
        if request.uri().path() != PATH {
            return NOT_FOUND.into_response();
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
        match self.decisions.decide(&request, |permit| self.identity(permit)) {
            Ok(Ok(headers)) => {
                let mut response = Response::new(Full::default());
                *response.headers_mut() = headers;
                response
            }
            Ok(Err(error)) => {
                // The keyring takes in no text that does not fit; if it ever does, nobody gets in by it.
                error!(%error, "an identity does not fit into a header");
                INTERNAL_SERVER_ERROR.into_response()
            }
            Err(answer) => answer.into_response(),
        }
    }

    /// The headers that tell the proxy whose key it is: all of them, empty where there is nothing to say, so that none
    /// that a client made up is left standing.
    fn identity(&self, permit: &Permit<'_>) -> Result<HeaderMap, InvalidHeaderValue> {
        let (entry, prefix) = (permit.entry(), permit.prefix());
        let texts = [prefix.as_str(), entry.namespace(), entry.name(), entry.owner(), entry.scopes()];
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

/// An HTTP/1.1 request has exactly one Host, and a request before that at most one (RFC 9112, 3.2).
fn has_one_host(request: &Request<()>) -> bool {
    match lines(request.headers(), &HOST).count() {
        0 => request.version() < Version::HTTP_11,
        count => count == 1,
    }
}

/// The values of all lines of a name, in the order in which they came.
fn lines<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h [u8]> + use<'h> {
    headers.get_all(name).into_iter().map(HeaderValue::as_bytes)
}

fn route(query: Option<&str>) -> Result<Route<'_>, InvalidRoute> {
    Route::read(form_urlencoded::parse(query.unwrap_or_default().as_bytes()))
}

#[cfg(test)]
mod tests;
