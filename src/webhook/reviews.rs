//! The API server's reviews over HTTP: `/mutate` and `/validate`, a POST of JSON each.
//!
//! The answer to a review is 200 and a verdict. Anything else is answered in plain text, which the API server repeats to its
//! user.

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

use crate::serve::connections::plain_text;
use crate::serve::limits::{BodyLimits, Limits};
use keywright_core::admission::review::Request as ReviewRequest;
use keywright_core::admission::{Phase, Verdict, judge};

/// The limits of connections.
///
/// The API server never sends a review twice, so none may be lost. It keeps an idle connection for 90 s. The limit here is
/// longer, so that the API server closes first: a review that it sends while the connection is being closed here is lost,
/// and the user's request with it. For the same reason there is `leave_taking`. The Pod's preStop pause comes before that,
/// for connections through the Service.
pub const LIMITS: Limits = Limits {
    head: 16 * 1024,
    body: 8 * 1024 * 1024, // two objects of the API server's maximum size
    read_timeout: Duration::from_secs(15),
    idle_timeout: Duration::from_secs(120),
    connections: 512,
    connections_per_client: 128,
    leave_taking: Duration::from_secs(3),
    drain: Duration::from_secs(10),
};

/// At most 56 MiB of bodies. An ApiKey that fills every field has about 64 KiB, twice in an update.
///
/// The webhook configurations let the API server wait at most 10 s, so a longer timeout is useless.
pub const BODY_LIMITS: BodyLimits =
    BodyLimits { largest: 3 * 1024 * 1024, small: 64 * 1024, large_at_once: 8, timeout: Duration::from_secs(10) };

/// Field paths in a log line about a refusal.
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
    /// A webhook that takes the time from `now`, and registers its metrics.
    pub fn new(now: fn() -> Timestamp, registry: &mut Registry) -> Self {
        let reviews = Family::<ReviewLabels, Counter>::default();
        registry.register("admission_reviews", "Reviews, by webhook and verdict", reviews.clone());
        // All exist from the start, at 0: a rate needs a first value.
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
                warn!(webhook, bytes = request.body().len(), %malformed, "refused a request that is not an AdmissionReview");
                return plain_text(StatusCode::BAD_REQUEST, malformed.to_string());
            }
        };
        let verdict = judge(phase, &review, (self.now)());
        self.log_and_count(webhook, &review, &verdict);
        match review.answer(&verdict) {
            Ok(body) => {
                let mut response = Response::new(Full::from(body));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                response
            }
            Err(error) => {
                error!(%error, "cannot write an answer as JSON: report this as a bug");
                plain_text(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the webhook cannot write its answer as JSON; its log says why",
                )
            }
        }
    }

    /// Logs and counts a verdict: who asked about which object, never the object's content.
    fn log_and_count(&self, webhook: &'static str, review: &ReviewRequest<'_>, verdict: &Verdict) {
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

/// Whether the content type is JSON, with any parameters.
fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("application/json")
}

#[cfg(test)]
mod tests;
