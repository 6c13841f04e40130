//! Listeners: connections, limits, drain, and what a denial looks like on the wire.
//!
//! `server/http.rs` is the codec for proxies, `server/webhook.rs` the one for the API server's reviews,
//! `server/admin.rs` the page for probes and metrics. Handlers are plain functions from a request to an answer; only
//! this file waits.

pub mod admin;
pub mod http;
pub mod webhook;

use std::convert::Infallible;
use std::fmt;
use std::future::{Future, pending};
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::FutureExt;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, EXPECT, HeaderValue, WWW_AUTHENTICATE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use kube::Client;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use crate::address::client::ClientAddressSource;
use crate::clock;
use crate::feed::Feed;
use crate::tls;
use crate::verify::Denial;

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

/// Where connections come in.
pub struct Listener {
    /// Accepts them.
    pub tcp: TcpListener,
    /// Ends their TLS; without it they are plain.
    pub tls: Option<tls::Acceptor>,
}

/// What a client may take up. Beyond it, connections are closed or wait to be accepted.
///
/// A request may also have no more than 100 header lines (431): the number that hyper has room for without allocating.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Octets of a request's head, 8192 or more. Longer: 431.
    pub head: usize,
    /// Octets of a body that are read, to be thrown away. Longer: answered, and the connection is closed.
    pub body: usize,
    /// How long a request may take to arrive, or its connection to lie idle before it. Longer: closed.
    pub read_timeout: Duration,
    /// Connections at the same time. More wait in the system's backlog.
    pub connections: usize,
    /// How long a shutdown waits for requests in flight.
    pub drain: Duration,
}

/// How the bodies of requests are taken in. However many come at once, they take up at most
/// `small * Limits::connections + largest * large_at_once` octets.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// Octets of the largest body. Longer: 413.
    pub largest: usize,
    /// Octets of a body that every connection may hold.
    pub small: usize,
    /// How many bodies may be longer than that at the same time. More wait, and are not read while they do.
    pub large_at_once: usize,
    /// How long a body may take to arrive, that wait included. Longer: 408.
    pub timeout: Duration,
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

/// How long to wait before accepting again after that failed: for want of file descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a TLS handshake may take; the read timeout where that is shorter. A client needs two round trips for it.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

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
    let mut registry = Registry::with_prefix("keywright");
    registry.register_collector(Box::new(FeedMetrics(Arc::clone(&feed))));
    let verifier = Arc::new(http::Verifier::new(Arc::clone(&feed), client_address_source, clock::now, &mut registry));
    let handler = move |request: &Request<()>, peer: IpAddr| verifier.answer(request, peer);

    let mut background = JoinSet::new();
    let readiness = {
        let feed = Arc::clone(&feed);
        move || readiness(&feed)
    };
    background.spawn(admin::serve(admin_listener, readiness, Arc::new(registry), pending()));
    background.spawn(async move { match feed.follow(client, &namespace).await {} });
    tokio::select! {
        () = serve(Listener::plain(listener), Limits::default(), handler, shutdown) => Ok(()),
        ended = background.join_next() => bail!("a part of the verifier ended by itself: {ended:?}"),
    }
}

/// A listener on `address`.
///
/// # Errors
/// Names the flag that the address came from.
pub(crate) async fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| format!("{flag} {address}: cannot listen there; is the port taken?"))
}

fn readiness(feed: &Feed) -> Result<(), String> {
    feed.current(Instant::now()).map(drop).map_err(|unready| unready.to_string())
}

/// Accepts connections and lets `handler` answer their requests, until `shutdown`; then finishes what is in flight.
///
/// `handler` gets a request's head and the connection's peer, and must not block. If it panics, its connection is
/// closed and nothing else is disturbed.
pub async fn serve<H>(listener: Listener, limits: Limits, handler: H, shutdown: impl Future<Output = ()>)
where
    H: Fn(&Request<()>, IpAddr) -> Response<Full<Bytes>> + Send + Sync + 'static,
{
    let handler = Arc::new(handler);
    let service = move |request, peer| answer(request, peer, limits, Arc::clone(&handler));
    serve_connections(listener, limits, service, shutdown).await;
}

/// Like [`serve`], for a handler that needs the whole request. If it panics, the answer is 500.
pub async fn serve_with_bodies<H>(
    listener: Listener,
    limits: Limits,
    bodies: BodyLimits,
    handler: H,
    shutdown: impl Future<Output = ()>,
) where
    H: Fn(&Request<Bytes>) -> Response<Full<Bytes>> + Send + Sync + 'static,
{
    let handler = Arc::new(handler);
    let places = Arc::new(Semaphore::new(bodies.large_at_once));
    let service = move |request, _| {
        let (handler, places) = (Arc::clone(&handler), Arc::clone(&places));
        async move { answer_with_body(request, limits, bodies, &places, &*handler).await }
    };
    serve_connections(listener, limits, service, shutdown).await;
}

async fn serve_connections<S, F>(listener: Listener, limits: Limits, service: S, shutdown: impl Future<Output = ()>)
where
    S: Fn(Request<Incoming>, IpAddr) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let Listener { tcp, tls } = listener;
    let slots = Arc::new(Semaphore::new(limits.connections));
    let connections = GracefulShutdown::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let (stream, peer, slot) = tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = accept(&tcp, &slots) => accepted,
        };
        let service = service.clone();
        let (tls, watcher) = (tls.clone(), connections.watcher());
        tokio::spawn(async move {
            let service = move |request| service(request, peer.ip());
            match tls {
                None => converse(stream, limits, service, watcher).await,
                Some(tls) => {
                    if let Some(stream) = tls.accept(stream, limits.read_timeout.min(HANDSHAKE_TIMEOUT)).await {
                        converse(stream, limits, service, watcher).await;
                    }
                }
            }
            drop(slot);
        });
    }
    drop(tcp);
    if timeout(limits.drain, connections.shutdown()).await.is_err() {
        warn!(waited = ?limits.drain, "requests were still in flight at shutdown");
    }
}

/// Answers the requests of one connection until it ends, or until `watcher` tells that there should be no more.
async fn converse<IO, S, F>(stream: IO, limits: Limits, service: S, watcher: Watcher)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Fn(Request<Incoming>) -> F + Send + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let service = service_fn(move |request| service(request).map(Ok::<_, Infallible>));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.read_timeout)
        .max_header_size(limits.head)
        .max_buf_size(limits.head)
        .serve_connection(TokioIo::new(stream), service);
    // An error is the client's: it went away, was too slow, or was told what is wrong.
    watcher.watch(connection).await.ok();
}

/// Waits for a free slot and for a connection to fill it. Whatever goes wrong passes.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, Option<OwnedSemaphorePermit>) {
    // The semaphore is never closed, so there always is a slot.
    let slot = Arc::clone(slots).acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Answers are one packet each; waiting to fill it only costs time.
                stream.set_nodelay(true).ok();
                return (stream, peer, slot);
            }
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Waits for the request's end before it is decided on: no answer is older than what it rests on.
async fn answer<H>(request: Request<Incoming>, peer: IpAddr, limits: Limits, handler: Arc<H>) -> Response<Full<Bytes>>
where
    H: Fn(&Request<()>, IpAddr) -> Response<Full<Bytes>>,
{
    let (head, body) = request.into_parts();
    // A client that waits for permission to send its body gets the answer instead.
    if !body.is_end_stream() && !head.headers.contains_key(EXPECT) {
        timeout(limits.read_timeout, discard(body, limits.body)).await.ok();
    }
    handler(&Request::from_parts(head, ()), peer)
}

/// Takes the body in, or says why not.
async fn answer_with_body<H>(
    request: Request<Incoming>,
    limits: Limits,
    bodies: BodyLimits,
    places: &Semaphore,
    handler: &H,
) -> Response<Full<Bytes>>
where
    H: Fn(&Request<Bytes>) -> Response<Full<Bytes>>,
{
    let (head, mut body) = request.into_parts();
    match timeout(bodies.timeout, collect(&mut body, bodies, places)).await {
        Ok(Ok((body, _place))) => {
            let request = Request::from_parts(head, body);
            catch_unwind(AssertUnwindSafe(|| handler(&request))).unwrap_or_else(|_| {
                // The panic's own message is on standard error.
                error!("a request could not be answered");
                plain_text(StatusCode::INTERNAL_SERVER_ERROR, "the webhook failed; its log says why")
            })
        }
        Ok(Err(Untaken::TooLarge)) => {
            if !head.headers.contains_key(EXPECT) {
                timeout(bodies.timeout, discard(body, limits.body)).await.ok();
            }
            let said = format!("the request is longer than {} octets", bodies.largest);
            plain_text(StatusCode::PAYLOAD_TOO_LARGE, said)
        }
        Ok(Err(Untaken::Broken)) => plain_text(StatusCode::BAD_REQUEST, "the request ended before its body did"),
        Err(_) => {
            let said = format!("the request's body took longer than {:?}", bodies.timeout);
            plain_text(StatusCode::REQUEST_TIMEOUT, said)
        }
    }
}

/// Why a body was not taken in.
enum Untaken {
    TooLarge,
    Broken,
}

/// Reads a body to its end. The place of a large one is to be kept until its octets are gone.
async fn collect<'p>(
    body: &mut Incoming,
    limits: BodyLimits,
    places: &'p Semaphore,
) -> Result<(Bytes, Option<SemaphorePermit<'p>>), Untaken> {
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > limits.largest {
        return Err(Untaken::TooLarge);
    }
    let mut whole = Vec::with_capacity(announced.min(limits.small));
    let mut place = None;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Untaken::Broken)?.into_data() else {
            continue; // trailers
        };
        let length = whole.len() + data.len();
        if length > limits.largest {
            return Err(Untaken::TooLarge);
        }
        if length > limits.small && place.is_none() {
            // The semaphore is never closed, so there always is a place.
            place = places.acquire().await.ok();
            whole.reserve_exact(announced.saturating_sub(whole.len()));
        }
        whole.extend_from_slice(&data);
    }
    Ok((whole.into(), place))
}

/// An answer in words. The API server repeats plain text to whoever it asks for.
fn plain_text(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Reads a body to its end, or to its first `limit` octets. Closing a connection with octets left unread resets it,
/// and the answer may be lost on the way.
async fn discard(mut body: Incoming, limit: usize) {
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        read += frame.data_ref().map_or(0, Bytes::len);
        if read > limit {
            return;
        }
    }
}

impl Listener {
    /// One without TLS.
    pub fn plain(tcp: TcpListener) -> Self {
        Self { tcp, tls: None }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: 16 * 1024,
            body: 1024 * 1024,
            read_timeout: Duration::from_secs(30),
            connections: 10_000,
            drain: Duration::from_secs(10),
        }
    }
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
pub(crate) mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::TcpStream as Socket;

    use serde_json::{Value, json};
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::feed::tests::{Reply, Script, event, list, record};
    use crate::key::Digest;
    use crate::keyring::Keyring;

    const KEY: &str = "keyw1_eVULq19jgYgonBwBS9PnYuwEwkbytwZtG3LkFawtUJJ3cXN0G";
    const REVOKED: &str = "keyw1_x3dylZ3lzYKIhQQXeAJ94cGS4sbYtvgcYDsSikFczMP1KVy2b";
    const SUSPENDED: &str = "keyw1_5LdvPPYbsFuXItWtxeRYxNSM0lFE7WG6AJPOloe336t3XOvuE";
    const EXPIRED: &str = "keyw1_GIJjCtps9VfyK3QoUQexN2DvsoQN4YWslJWRPo4m4Ex4LtC2d";
    const UNKNOWN: &str = "keyw1_00000000000000000000000000000000000000000003dznj0";

    /// Long enough for anything that is expected to happen, even on a busy machine.
    pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

    /// A listener on loopback, and how to end it.
    pub(crate) struct Running {
        pub(crate) address: SocketAddr,
        stop: oneshot::Sender<()>,
        task: JoinHandle<()>,
    }

    fn spec(key: &str, name: &str) -> Value {
        let api_key = json!({ "namespace": "team-a", "name": name, "uid": "c" });
        json!({ "digest": Digest::of(key.as_bytes()).to_string(), "apiKey": api_key })
    }

    fn feed() -> Feed {
        let mut suspended = spec(SUSPENDED, "suspended");
        suspended["suspended"] = json!(true);
        let mut revoked = spec(REVOKED, "revoked");
        revoked["revoked"] = json!({ "at": "2026-01-01T00:00:00Z", "reason": "Deleted" });
        let mut expired = spec(EXPIRED, "expired");
        expired["notAfter"] = json!("2026-01-01T00:00:00Z");
        let mut keyring = Keyring::default();
        for (name, spec) in [("r-1", spec(KEY, "good")), ("r-2", suspended), ("r-3", revoked), ("r-4", expired)] {
            keyring.upsert(name, &spec).unwrap();
        }
        Feed::holding(&keyring)
    }

    impl Running {
        async fn serving<H>(limits: Limits, handler: H) -> Self
        where
            H: Fn(&Request<()>, IpAddr) -> Response<Full<Bytes>> + Send + Sync + 'static,
        {
            let listener = bind("127.0.0.1:0".parse().unwrap(), "--http-address").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (stop, stopped) = oneshot::channel::<()>();
            let shutdown = async { stopped.await.unwrap_or_default() };
            Self { address, stop, task: tokio::spawn(serve(Listener::plain(listener), limits, handler, shutdown)) }
        }

        pub(crate) async fn serving_bodies<H>(limits: Limits, bodies: BodyLimits, handler: H) -> Self
        where
            H: Fn(&Request<Bytes>) -> Response<Full<Bytes>> + Send + Sync + 'static,
        {
            let listener = bind("127.0.0.1:0".parse().unwrap(), "--https-address").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (stop, stopped) = oneshot::channel::<()>();
            let shutdown = async { stopped.await.unwrap_or_default() };
            Self {
                address,
                stop,
                task: tokio::spawn(serve_with_bodies(Listener::plain(listener), limits, bodies, handler, shutdown)),
            }
        }

        async fn verifier(limits: Limits) -> Self {
            let now = || "2026-11-23T12:00:00Z".parse().unwrap();
            let source = ClientAddressSource::Peer;
            let verifier = http::Verifier::new(Arc::new(feed()), source, now, &mut Registry::default());
            Self::serving(limits, move |request: &Request<()>, peer: IpAddr| verifier.answer(request, peer)).await
        }

        pub(crate) fn connect(&self) -> Socket {
            connect(self.address)
        }

        /// All that is answered to `request`, until the server closes the connection.
        pub(crate) fn exchange(&self, request: impl AsRef<[u8]>) -> String {
            let mut socket = self.connect();
            socket.write_all(request.as_ref()).unwrap();
            rest(&mut socket)
        }
    }

    fn connect(address: SocketAddr) -> Socket {
        let socket = Socket::connect(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    pub(crate) fn rest(socket: &mut Socket) -> String {
        let mut answer = Vec::new();
        match socket.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&answer)),
        }
        String::from_utf8(answer).unwrap()
    }

    /// One answer with an empty or a counted body, on a connection that stays open.
    fn one_answer(socket: &mut Socket) -> String {
        let mut answer = String::new();
        let mut octet = [0];
        while !answer.ends_with("\r\n\r\n") {
            socket.read_exact(&mut octet).unwrap();
            answer.push(char::from(octet[0]));
        }
        let length = answer.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        socket.read_exact(&mut body).unwrap();
        answer + str::from_utf8(&body).unwrap()
    }

    pub(crate) fn statuses(answers: &str) -> Vec<u16> {
        answers.match_indices("HTTP/1.1 ").map(|(start, _)| answers[start + 9..start + 12].parse().unwrap()).collect()
    }

    fn good_request() -> String {
        format!("GET /verify HTTP/1.1\r\nHost: v\r\nX-API-Key: {KEY}\r\n\r\n")
    }

    fn last_request(key: &str) -> String {
        format!("GET /verify HTTP/1.1\r\nHost: v\r\nX-API-Key: {key}\r\nConnection: close\r\n\r\n")
    }

    /// Requests that HTTP forbids. A good one follows each, which must not be answered: what begins where is in doubt.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_http_forbids_is_refused_and_the_connection_closed() {
        let running = Running::verifier(Limits::default()).await;
        let smuggled = good_request();
        let with = |line: &str| format!("GET /verify HTTP/1.1\r\nHost: v\r\nX-API-Key: {KEY}\r\n{line}\r\n\r\n");
        let post = |lines: &str| format!("POST /verify HTTP/1.1\r\nHost: v\r\nX-API-Key: {KEY}\r\n{lines}\r\n\r\n");
        let forbidden = [
            with("A: b\0c"),
            with("A: b\rc"),
            with("A: b\x1bc"),
            with("A: b\x7fc"),
            with("A: b\r\n folded"),
            with("A: b\r\n\tfolded"),
            with(" A: b"),
            with("A : b"),
            with("A\t: b"),
            with("no colon"),
            with(": no name"),
            with("A\0: b"),
            with("A(b): c"),
            with("Host: second"),
            post("Content-Length: 1\r\nContent-Length: 2"),
            post("Content-Length: 1, 1"),
            post("Content-Length: +1"),
            post("Content-Length: -1"),
            post("Content-Length: 0x1"),
            post("Content-Length: 99999999999999999999"),
            post("Transfer-Encoding: gzip"),
            post("Transfer-Encoding: chunked, identity"),
            post("Transfer-Encoding: xchunked"),
            good_request().replace("Host: v\r\n", ""),
            good_request().replace("HTTP/1.1", "HTTP/1.0").replace("Host: v", "Transfer-Encoding: chunked"),
            good_request().replace("HTTP/1.1", "HTTP/2.0"),
            good_request().replace("HTTP/1.1", "HTTP/1.1 x"),
            good_request().replace("/verify", "/veri\0fy"),
            good_request().replace("/verify", "/verify /verify"),
            good_request().replace("GET", "G@T"),
            "\0\0\0\0\r\n\r\n".to_owned(),
        ];
        for request in forbidden {
            assert_eq!(statuses(&running.exchange(request.clone() + &smuggled)), [400], "{request:?}");
        }
        let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned();
        assert_eq!(statuses(&running.exchange(preface + &smuggled)), [0; 0], "no HTTP/2: closed without a word");
    }

    /// With both lengths, the chunks count, and nothing after them is read as a request (RFC 9112, 6.1).
    #[tokio::test(flavor = "multi_thread")]
    async fn a_request_with_two_ideas_of_its_length_is_the_last_of_its_connection() {
        let running = Running::verifier(Limits::default()).await;
        for lines in
            ["Content-Length: 4\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 4"]
        {
            let request =
                format!("POST /verify HTTP/1.1\r\nHost: v\r\nX-API-Key: {UNKNOWN}\r\n{lines}\r\n\r\n0\r\n\r\n");
            assert_eq!(statuses(&running.exchange(request + &good_request())), [401], "{lines:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_head_may_have_16_kib_and_100_lines() {
        let running = Running::verifier(Limits::default()).await;
        let padded = |octets: usize| {
            let request = last_request(KEY);
            let padding = octets - request.len() - "Padding: \r\n".len();
            request.replace("Host:", &format!("Padding: {}\r\nHost:", "x".repeat(padding)))
        };
        assert_eq!(statuses(&running.exchange(padded(16 * 1024))), [200]);
        assert_eq!(statuses(&running.exchange(padded(16 * 1024 + 1))), [431]);
        assert_eq!(
            statuses(&running.exchange("GET /verify?".to_owned() + &"x".repeat(20_000))),
            [431],
            "without an end"
        );
        let lines = |count: usize| last_request(KEY).replace("Host:", &("A: b\r\n".repeat(count - 3) + "Host:"));
        assert_eq!(statuses(&running.exchange(lines(100))), [200]);
        assert_eq!(statuses(&running.exchange(lines(101))), [431]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_client_that_is_too_slow_is_cut_off() {
        let running = Running::verifier(Limits { read_timeout: Duration::from_millis(100), ..Limits::default() }).await;
        for beginning in ["", "GET /ver", "GET /verify HTTP/1.1\r\nHost: v\r\nX-A"] {
            assert_eq!(running.exchange(beginning), "", "{beginning:?}");
        }
        let body = format!("POST /verify HTTP/1.1\r\nHost: v\r\nX-API-Key: {KEY}\r\nContent-Length: 2\r\n\r\nx");
        assert_eq!(statuses(&running.exchange(body)), [200], "a body does not matter");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn every_method_gets_the_same_decision_and_no_path_but_one_gets_any() {
        let running = Running::verifier(Limits::default()).await;
        let methods =
            ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "X-Y"];
        for method in methods {
            let ask = |key| statuses(&running.exchange(last_request(key).replace("GET", method)));
            assert_eq!((ask(KEY), ask(UNKNOWN)), (vec![200], vec![401]), "{method}");
        }
        let paths = [
            "/",
            "/verify/",
            "//verify",
            "/verify;x",
            "/%76erify",
            "/verify%20",
            "/verify/../verify",
            "/x/../verify",
            "/VERIFY",
            "/verify/healthz",
            "/healthz",
            "/readyz",
            "/metrics",
            "*",
            "http://v/",
            "http://v/verify/",
        ];
        for path in paths {
            let answer = running.exchange(last_request(KEY).replace("/verify", path));
            assert_eq!(statuses(&answer), [404], "{path}");
        }
        let absolute = last_request(KEY).replace("/verify", "http://elsewhere.example/verify?namespace=team-b");
        assert_eq!(statuses(&running.exchange(absolute)), [403], "absolute form (RFC 9112, 3.2.2)");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_body_is_read_and_ignored_and_the_connection_goes_on() {
        let running = Running::verifier(Limits::default()).await;
        let body = "x".repeat(200_000);
        let head = format!("POST /verify HTTP/1.1\r\nHost: v\r\nX-API-Key: {KEY}\r\n");
        let counted = format!("{head}Content-Length: 200000\r\n\r\n{body}");
        let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n30d40\r\n{body}\r\n0\r\n\r\n");
        assert_eq!(statuses(&running.exchange(counted + &chunked + &last_request(UNKNOWN))), [200, 200, 401]);
        let expecting = format!("{head}Content-Length: 200000\r\nExpect: 100-continue\r\n\r\n");
        assert_eq!(statuses(&running.exchange(expecting)), [200], "nobody asks for the body");
    }

    /// Whoever tries keys learns nothing about which were ever good.
    #[tokio::test(flavor = "multi_thread")]
    async fn all_refusals_of_a_key_are_the_same_to_the_octet() {
        let running = Running::verifier(Limits::default()).await;
        let malformed = last_request("keyw1_x");
        let missing = last_request("x").replace("X-API-Key", "X-API-Keys");
        let both = last_request(KEY).replace("Host", &format!("Authorization: Bearer {KEY}\r\nHost"));
        let requests = [UNKNOWN, REVOKED, SUSPENDED, EXPIRED].map(last_request).into_iter();
        let answers = requests.chain([malformed, missing, both]).map(|request| {
            let answer = running.exchange(request);
            let lines = answer.split_inclusive("\r\n").filter(|line| !line.starts_with("date: "));
            lines.collect::<String>()
        });
        let answers: Vec<String> = answers.collect();
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:#?}");
        for part in [
            "HTTP/1.1 401 Unauthorized\r\n",
            "www-authenticate: Bearer\r\n",
            "cache-control: no-store\r\n",
            "content-type: application/problem+json\r\n",
        ] {
            assert!(answers[0].contains(part), "{part}");
        }
    }

    #[test]
    fn every_answer_is_a_problem_document_that_is_not_to_be_stored() {
        use crate::address::client::Unresolved;
        use crate::keyring::Untrusted;
        use crate::verify::{AddressDenial, InvalidRoute};

        let denials = [
            (Denial::Missing, 401),
            (Denial::Malformed, 401),
            (Denial::Unknown(Untrusted::Unreadable), 401),
            (Denial::Revoked, 401),
            (Denial::Suspended, 401),
            (Denial::Expired, 401),
            (Denial::Namespace, 403),
            (Denial::Scope, 403),
            (Denial::Address(AddressDenial::Unresolved(Unresolved::Missing)), 403),
            (Denial::Route(InvalidRoute::InvalidValue), 403),
            (Denial::Stale, 503),
        ];
        for (denial, status) in denials {
            let answer = Answer::from(denial);
            let document: Value = serde_json::from_str(answer.body).unwrap();
            assert_eq!((answer.status.as_u16(), &document["status"]), (status, &json!(status)), "{denial:?}");
            assert_eq!(document["title"].as_str(), answer.status.canonical_reason());
            assert_eq!(answer.challenge, (status == 401).then_some("Bearer"));
            let response = answer.into_response();
            assert_eq!(response.headers()["cache-control"], "no-store");
            assert_eq!(response.headers()["content-type"], "application/problem+json");
        }
        let unresolved = Denial::Address(AddressDenial::Unresolved(Unresolved::Missing));
        let not_allowed = Denial::Address(AddressDenial::NotAllowed([127, 0, 0, 1].into()));
        assert_eq!(Answer::from(unresolved), Answer::from(not_allowed), "one body for each cause");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_panic_ends_its_own_connection_and_nothing_else() {
        let handler = |request: &Request<()>, _: IpAddr| {
            assert_ne!(request.uri().path(), "/panic");
            Response::new(Full::default())
        };
        let running = Running::serving(Limits { connections: 1, ..Limits::default() }, handler).await;
        for _ in 0..3 {
            assert_eq!(running.exchange(last_request(KEY).replace("/verify", "/panic")), "");
            assert_eq!(statuses(&running.exchange(last_request(KEY))), [200]);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_connection_too_many_waits_for_another_to_end() {
        let running = Running::verifier(Limits { connections: 2, ..Limits::default() }).await;
        let mut open = [running.connect(), running.connect()];
        for socket in &mut open {
            socket.write_all(good_request().as_bytes()).unwrap();
            one_answer(socket);
        }
        let mut waiting = running.connect();
        waiting.write_all(last_request(KEY).as_bytes()).unwrap();
        waiting.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert!(waiting.read(&mut [0]).is_err(), "no slot, no answer");
        drop(open);
        waiting.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(statuses(&rest(&mut waiting)), [200]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_shutdown_finishes_what_is_in_flight_and_closes_the_rest() {
        let running = Running::verifier(Limits::default()).await;
        let (mut idle, mut busy) = (running.connect(), running.connect());
        idle.write_all(good_request().as_bytes()).unwrap();
        one_answer(&mut idle);
        let head = format!("POST /verify HTTP/1.1\r\nHost: v\r\nX-API-Key: {KEY}\r\nContent-Length: 2\r\n\r\nx");
        busy.write_all((good_request() + &head).as_bytes()).unwrap();
        one_answer(&mut busy);
        running.stop.send(()).unwrap();
        assert_eq!(rest(&mut idle), "");
        assert!(Socket::connect(running.address).is_err(), "nobody listens any more");
        sleep(Duration::from_millis(100)).await;
        assert!(!running.task.is_finished(), "it waits for the request in flight");
        busy.write_all(b"x").unwrap();
        assert_eq!(statuses(&rest(&mut busy)), [200]);
        timeout(PATIENCE, running.task).await.unwrap().unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_shutdown_does_not_wait_for_ever() {
        let running = Running::verifier(Limits { drain: Duration::from_millis(50), ..Limits::default() }).await;
        let mut busy = running.connect();
        busy.write_all(b"POST /verify HTTP/1.1\r\nHost: v\r\nContent-Length: 2\r\n\r\nx").unwrap();
        assert_eq!(statuses(&running.exchange(last_request(KEY))), [200]);
        running.stop.send(()).unwrap();
        timeout(PATIENCE, running.task).await.unwrap().unwrap();
    }

    /// A child process of this test has few file descriptors, and more clients than that.
    #[test]
    fn running_out_of_file_descriptors_passes() {
        const CHILD: &str = "KEYWRIGHT_TEST_FEW_DESCRIPTORS";
        if std::env::var_os(CHILD).is_none() {
            let test = std::env::current_exe().unwrap();
            let arguments = "--exact server::tests::running_out_of_file_descriptors_passes --nocapture";
            let output = std::process::Command::new("sh")
                .args(["-c", &format!("ulimit -n 40; exec '{}' {arguments}", test.display())])
                .env(CHILD, "1")
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            assert!(String::from_utf8_lossy(&output.stdout).contains("descriptors ran out"), "{output:?}");
            return;
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let running = Running::verifier(Limits::default()).await;
            let mut open = Vec::new();
            while let Ok(socket) = Socket::connect(running.address) {
                open.push(socket);
            }
            println!("descriptors ran out after {} connections", open.len());
            // Until the server has tried to accept one more; nothing outside tells when.
            std::thread::sleep(Duration::from_millis(300));
            drop(open);
            assert_eq!(statuses(&running.exchange(last_request(KEY))), [200]);
        });
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn probes_and_metrics_are_answered() {
        let listener = bind("127.0.0.1:0".parse().unwrap(), "--admin-address").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut registry = Registry::with_prefix("keywright");
        registry.register_collector(Box::new(FeedMetrics(Arc::new(feed()))));
        let is_ready = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let asked = Arc::clone(&is_ready);
        let readiness = move || match asked.load(std::sync::atomic::Ordering::SeqCst) {
            true => Ok(()),
            false => Err("waiting for the records".to_owned()),
        };
        tokio::spawn(admin::serve(listener, readiness, Arc::new(registry), pending()));
        let get = |path| {
            let mut socket = connect(address);
            socket.write_all(last_request("x").replace("/verify", path).as_bytes()).unwrap();
            rest(&mut socket)
        };
        assert_eq!(statuses(&get("/healthz")), [200]);
        let unready = get("/readyz");
        assert_eq!(statuses(&unready), [503]);
        assert!(unready.ends_with("\r\n\r\nwaiting for the records\n"), "{unready}");
        is_ready.store(true, std::sync::atomic::Ordering::SeqCst);
        assert_eq!(statuses(&get("/readyz")), [200]);
        assert_eq!(statuses(&get("/verify")), [404]);
        let metrics = get("/metrics");
        assert!(metrics.contains("content-type: application/openmetrics-text; version=1.0.0"), "{metrics}");
        assert!(metrics.contains("\nkeywright_records 4"), "{metrics}");
        assert!(metrics.contains("\nkeywright_record_version_lag_seconds "), "{metrics}");
    }

    /// The whole of it, but for Kubernetes: not ready, ready, allowed, revoked, shut down.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_verifier_follows_the_records_and_answers() {
        let mut revoked = spec(KEY, "good");
        revoked["revoked"] = json!({ "at": "2026-01-01T00:00:00Z", "reason": "Deleted" });
        let script = Script::start(
            vec![
                ("limit=500&", Reply::Answer(503, json!({}))),
                ("limit=500&", list("100", "", &[record("r-1", "7", &spec(KEY, "good"))])),
                ("watch=true", Reply::Held(vec![event("MODIFIED", record("r-1", "101", &revoked))])),
            ],
            |_| Reply::NoAnswer,
        );
        let [http_address, admin_address] = [(); 2].map(|()| {
            // A port that was free a moment ago.
            std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
        });
        let options = Options {
            namespace: "keywright-system".to_owned(),
            http_address,
            admin_address,
            client_address_source: "xff-hops=1".parse().unwrap(),
            lease_duration: Duration::from_secs(600),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async { stopped.await.unwrap_or_default() };
        let task = tokio::spawn(run(script.client(), options, shutdown));
        let ask = |address, path: &str| {
            let mut socket = Socket::connect(address).ok()?;
            socket.write_all(last_request(KEY).replace("/verify", path).as_bytes()).unwrap();
            statuses(&rest(&mut socket)).first().copied()
        };
        let until = async |address, path, status| {
            let wait = async {
                while ask(address, path) != Some(status) {
                    sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{path} is never {status}"));
        };
        until(admin_address, "/readyz", 200).await;
        assert_eq!(ask(http_address, "/verify"), Some(200));
        script.release();
        until(http_address, "/verify", 401).await;
        stop.send(()).unwrap();
        timeout(PATIENCE, task).await.unwrap().unwrap().unwrap();
        assert!(ask(http_address, "/verify").is_none());
    }

    #[tokio::test]
    async fn an_address_that_is_taken_is_named_with_its_flag() {
        let taken = bind("127.0.0.1:0".parse().unwrap(), "--http-address").await.unwrap();
        let error = bind(taken.local_addr().unwrap(), "--http-address").await.unwrap_err();
        assert!(error.to_string().starts_with("--http-address 127.0.0.1:"), "{error}");
    }
}
