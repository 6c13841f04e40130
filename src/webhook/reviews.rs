//! The API server's reviews over HTTP: `/mutate` and `/validate`, a POST of JSON each.
//!
//! A review that can be read is answered with 200 and a verdict. What cannot be read is answered in plain text, which
//! the API server repeats to whoever it asks for.

use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tracing::{debug, error, info, warn};

use crate::serve::connections::{BodyLimits, Limits, plain_text};
use keywright_core::admission::review::Request as ReviewRequest;
use keywright_core::admission::{Phase, Verdict, judge};

/// What the API server may take up, and whoever else reaches the port.
///
/// A connection may lie idle for longer than an API server keeps one (90 s), so that it is always the API server that
/// closes: a review sent into a connection that is just being closed here would be lost, and the request with it. For
/// the same reason its end is taken leave of. The API server never sends a review twice, so none may be cut off. For those
/// who were told of this replica by a Service there is the Pod's preStop pause, before that.
pub const LIMITS: Limits = Limits {
    head: 16 * 1024,
    body: 8 * 1024 * 1024, // two objects, each as large as the API server takes
    read_timeout: Duration::from_secs(15),
    idle_timeout: Duration::from_secs(120),
    connections: 512,
    connections_per_client: 128,
    leave_taking: Duration::from_secs(3),
    drain: Duration::from_secs(10),
};

/// At most 56 MiB of bodies. An ApiKey that fills every field has about 64 KiB, twice in an update.
///
/// The API server waits 10 s or less, as the webhook configurations say; there is no use in waiting for longer.
pub const BODY_LIMITS: BodyLimits =
    BodyLimits { largest: 3 * 1024 * 1024, small: 64 * 1024, large_at_once: 8, timeout: Duration::from_secs(10) };

/// Paths that are repeated in a log line about a refusal.
const MAX_LOGGED: usize = 8;

/// Answers the reviews of the API server.
pub struct Webhook {
    now: fn() -> Timestamp,
    reviews: Family<ReviewLabels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReviewLabels {
    allowed: &'static str,
    webhook: &'static str,
}

impl Webhook {
    /// A webhook that judges at the time that `now` tells, and counts in `registry`.
    pub fn new(now: fn() -> Timestamp, registry: &mut Registry) -> Self {
        let reviews = Family::<ReviewLabels, Counter>::default();
        registry.register("admission_reviews", "Reviews, by webhook and verdict", reviews.clone());
        // All are there from the start, at 0: a rate needs a value to rise from.
        for webhook in ["mutate", "validate"] {
            for allowed in ["true", "false"] {
                drop(reviews.get_or_create(&ReviewLabels { allowed, webhook }));
            }
        }
        Self { now, reviews }
    }

    /// Answers one request.
    pub fn answer(&self, request: &Request<Bytes>) -> Response<Full<Bytes>> {
        let (phase, webhook) = match request.uri().path() {
            "/mutate" => (Phase::Mutating, "mutate"),
            "/validate" => (Phase::Validating, "validate"),
            _ => return plain_text(StatusCode::NOT_FOUND, "ask at /mutate or /validate"),
        };
        if request.method() != Method::POST {
            let mut response = plain_text(StatusCode::METHOD_NOT_ALLOWED, "send a POST");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
            return response;
        }
        if !is_json(request.headers()) {
            return plain_text(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send application/json");
        }
        let review = match ReviewRequest::read(request.body()) {
            Ok(review) => review,
            Err(malformed) => {
                warn!(webhook, octets = request.body().len(), "a request could not be read");
                return plain_text(StatusCode::BAD_REQUEST, malformed.to_string());
            }
        };
        let verdict = judge(phase, &review, (self.now)());
        self.tell(webhook, &review, &verdict);
        match review.answer(&verdict) {
            Ok(body) => {
                let mut response = Response::new(Full::from(body));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                response
            }
            Err(error) => {
                error!(%error, "an answer cannot be written as JSON");
                plain_text(StatusCode::INTERNAL_SERVER_ERROR, "the answer cannot be written as JSON")
            }
        }
    }

    /// Log and metrics: who asked about which object, and never what is in it.
    fn tell(&self, webhook: &'static str, review: &ReviewRequest<'_>, verdict: &Verdict) {
        let (namespace, name, user) = (&*review.namespace, &*review.object_name(), &*review.user);
        let operation = review.operation;
        let allowed = match verdict {
            Verdict::Allowed { .. } => {
                debug!(webhook, ?operation, namespace, name, user, "allowed");
                "true"
            }
            Verdict::Invalid(problems) => {
                let paths: Vec<_> = problems.iter().take(MAX_LOGGED).map(|problem| &*problem.path).collect();
                let (fields, count) = (paths.join(" "), problems.len());
                info!(webhook, ?operation, namespace, name, user, fields, problems = count, "refused");
                "false"
            }
            Verdict::Misdirected(reason) => {
                warn!(webhook, ?operation, namespace, name, user, reason, "refused");
                "false"
            }
        };
        self.reviews.get_or_create(&ReviewLabels { allowed, webhook }).inc();
    }
}

/// Whether the body is JSON, whatever parameters stand behind that.
fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("application/json")
}

#[cfg(test)]
mod tests;
