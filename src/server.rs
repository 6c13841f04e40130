//! The verifier's listeners, and what a denial looks like on the wire.
//!
//! `server/http.rs` is the codec for proxies, `server/webhook.rs` the one for the API server's reviews,
//! `server/admin.rs` the page for probes and metrics. They are plain functions from a request to an answer;
//! `server/connections.rs` is what waits for requests, and `server/decisions.rs` what codecs ask for a decision.

pub mod admin;
pub mod connections;
pub mod decisions;
pub mod http;
pub mod timed;
pub mod webhook;
pub mod workers;

use std::fmt;
use std::future::{Future, pending};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Request, Response, StatusCode};
use kube::Client;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::task::JoinSet;
use tracing::info;

use crate::address::client::ClientAddressSource;
use crate::clock;
use crate::feed::Feed;
use crate::verify::Denial;
use connections::{Leaving, Limits, Listener, Server, bind};
use decisions::{DecisionMetrics, Decisions, Tally};
use workers::Workers;

/// What a verifier is told by its flags.
#[derive(Clone, Debug)]
pub struct Options {
    /// The system namespace, where the records are.
    pub namespace: String,
    /// Where proxies ask.
    pub http_address: SocketAddr,
    /// Where probes and metrics are answered.
    pub admin_address: SocketAddr,
    /// Whose address a request comes from.
    pub client_address_source: ClientAddressSource,
    /// For how long decisions are made without hearing from the API server.
    pub lease_duration: Duration,
}

/// What a caller is told, however it asked: one constant for each thing it may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The value of `WWW-Authenticate`, if there is one.
    pub challenge: Option<&'static str>,
    /// A problem document (RFC 9457).
    pub body: &'static str,
}

const INTERNAL_SERVER_ERROR: Answer = Answer {
    status: StatusCode::INTERNAL_SERVER_ERROR,
    challenge: None,
    body: r#"{"status":500,"title":"Internal Server Error"}"#,
};

/// Runs a verifier until `shutdown`: follows the records and answers proxies and probes.
///
/// `client` should neither retry nor have a read timeout.
///
/// # Errors
/// If an address cannot be listened on, or a part of the verifier ends by itself.
pub async fn run(client: Client, options: Options, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let Options { namespace, http_address, admin_address, client_address_source, lease_duration } = options;
    let listener = bind(http_address, "--http-address").await?;
    let admin_listener = bind(admin_address, "--admin-address").await?;
    info!(http_address = %listener.local_addr()?, admin_address = %admin_listener.local_addr()?, "listening");

    let feed = Arc::new(Feed::new(lease_duration, Instant::now()));
    let tally = Arc::new(Tally::new("http"));
    let mut registry = Registry::with_prefix("keywright");
    registry.register_collector(Box::new(FeedMetrics(Arc::clone(&feed))));
    registry.register_collector(Box::new(DecisionMetrics(vec![Arc::clone(&tally)])));
    let decisions = Decisions::new(Arc::clone(&feed), clock::now, tally);
    let verifier = http::Verifier::new(decisions, client_address_source);
    let server = Server {
        listener: Listener::plain(listener),
        limits: Limits::default(),
        workers: Workers::per_core().context("cannot start a thread for each core")?,
        leaving: Leaving::default(),
    };

    let mut background = JoinSet::new();
    let readiness = {
        let (feed, leaving) = (Arc::clone(&feed), server.leaving.clone());
        move || readiness(&feed, &leaving)
    };
    background.spawn(admin::serve(admin_listener, readiness, Arc::new(registry), pending()));
    background.spawn(async move { match feed.follow(client, &namespace).await {} });
    let handler = move |request: &Request<()>, peer: IpAddr| verifier.answer(request, peer);
    tokio::select! {
        () = server.serve(handler, shutdown) => Ok(()),
        ended = background.join_next() => bail!("a part of the verifier ended by itself: {ended:?}"),
    }
}

fn readiness(feed: &Feed, leaving: &Leaving) -> Result<(), String> {
    if leaving.has_begun() {
        return Err("shutting down".to_owned());
    }
    feed.current(Instant::now()).map(drop).map_err(|unready| unready.to_string())
}

impl From<Denial> for Answer {
    /// The one place that decides what a caller is told. Whoever holds a key that is not good learns the same from
    /// every attempt, whether it once was good or never.
    fn from(denial: Denial) -> Self {
        match denial {
            Denial::Missing
            | Denial::Malformed
            | Denial::Unknown(_)
            | Denial::Revoked
            | Denial::Suspended
            | Denial::Expired => Self {
                status: StatusCode::UNAUTHORIZED,
                challenge: Some("Bearer"),
                body: r#"{"status":401,"title":"Unauthorized","detail":"Send a valid API key, once, as \"Authorization: Bearer <key>\" or \"X-API-Key: <key>\"."}"#,
            },
            Denial::Namespace => Self::forbidden(
                r#"{"status":403,"title":"Forbidden","detail":"The API key belongs to a namespace that is not accepted here."}"#,
            ),
            Denial::Scope => Self::forbidden(
                r#"{"status":403,"title":"Forbidden","detail":"The API key lacks a scope that is demanded here."}"#,
            ),
            Denial::Address(_) => Self::forbidden(
                r#"{"status":403,"title":"Forbidden","detail":"The API key must not be used from this address."}"#,
            ),
            Denial::Route(_) => Self::forbidden(
                r#"{"status":403,"title":"Forbidden","detail":"The proxy asks with parameters other than namespace and scope, or with unusable values: correct its configuration."}"#,
            ),
            Denial::Stale => Self {
                status: StatusCode::SERVICE_UNAVAILABLE,
                challenge: None,
                body: r#"{"status":503,"title":"Service Unavailable","detail":"API keys cannot be verified at the moment. Try again later."}"#,
            },
        }
    }
}

impl Answer {
    const fn forbidden(body: &'static str) -> Self {
        Self { status: StatusCode::FORBIDDEN, challenge: None, body }
    }

    /// The answer over HTTP.
    pub fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::from(self.body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(challenge) = self.challenge {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        response
    }
}

/// What the feed knows, read when it is asked for.
struct FeedMetrics(Arc<Feed>);

impl Collector for FeedMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut gauge = |name, help, value: f64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        gauge("records", "Records in the keyring", self.0.records() as f64)?;
        let silence = self.0.silence(Instant::now()).as_secs_f64();
        gauge("record_version_lag_seconds", "Time since the API server was last heard", silence)
    }
}

impl fmt::Debug for FeedMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FeedMetrics")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
pub(crate) mod tests;
