//! Connections of HTTP/1.1: accepted, shared out to workers, limited, and brought to an end in which no request is lost.
//!
//! Handlers are plain functions from a request to an answer; only this file waits.

use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::poll_fn;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, EXPECT, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::places::{Client, Share};
use super::problem::INTERNAL_SERVER_ERROR;
use super::room::{Guest, Occupancy, Room};
use super::timed::{Requests, Timed, Timeouts};
use super::workers::Workers;
use crate::serve::tls;

/// Where connections come in.
pub struct Listener {
    /// Accepts them.
    pub tcp: TcpListener,
    /// Ends their TLS, and says whether some may be plain; without it they all are.
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
    /// How long a request may take to arrive from its first octet on, and a client to take in a part of an answer.
    /// Longer, up to twice that: closed.
    pub read_timeout: Duration,
    /// How long a connection may lie idle between requests. Longer, up to twice that: closed. It should be the proxy that
    /// closes: a request that it sends into a connection which is just being closed here is lost.
    pub idle_timeout: Duration,
    /// Connections at the same time. For one more, that which has been idle longest is closed. Where none is idle, more wait in
    /// the system's backlog.
    pub connections: usize,
    /// Those of one client, by its address. For one more, its own that has been idle longest is closed. Where none is idle, the
    /// new one is.
    pub connections_per_client: usize,
    /// How long connections are still accepted after the end was asked for, each for one request more. A proxy keeps
    /// connections open between requests, and hears only with an answer that it should use this one no more.
    pub leave_taking: Duration,
    /// How long a shutdown waits for requests in flight after that.
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

/// An accepted connection, after its TLS handshake if it has any.
pub type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// Whether a server is about to end: it is not Ready any more, and closes each connection with its next answer.
#[derive(Clone, Debug, Default)]
pub struct Leaving(Arc<AtomicBool>);

/// Bodies that are read at the same time, to be thrown away. More wait, unread: each that is read takes up 64 KiB.
pub const BODIES_AT_ONCE: usize = 256;

/// How long to wait before accepting again after that failed: for want of file descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a TLS handshake may take; the read timeout where that is shorter. A client needs two round trips for it.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Where connections come in, what they may take up, who works on them, and whether they are to come to an end.
pub struct Server {
    /// Where they come in.
    pub listener: Listener,
    /// What they may take up.
    pub limits: Limits,
    /// Who works on them.
    pub workers: Workers,
    /// Set as soon as the end is asked for.
    pub leaving: Leaving,
    /// Told how full it is.
    pub occupancy: Occupancy,
}

/// An accepted connection that has its place.
pub struct Accepted {
    /// What is said on it.
    pub stream: Stream,
    /// The other end; an IPv4 address always as one.
    pub peer: IpAddr,
    /// To be told what comes on it.
    pub requests: Requests,
    /// When it should come to an end.
    pub closing: Closing,
}

impl Server {
    /// Accepts connections and lets `handler` answer their requests, until `shutdown`; then takes leave, and finishes what
    /// is in flight.
    ///
    /// `handler` gets a request's head and the connection's peer, and must not block. If it panics, the answer is 500.
    pub async fn serve<H>(self, handler: H, shutdown: impl Future<Output = ()>)
    where
        H: Fn(&Request<()>, IpAddr) -> Response<Full<Bytes>> + Send + Sync + 'static,
    {
        let limits = self.limits;
        let shared = Arc::new((handler, Semaphore::new(BODIES_AT_ONCE)));
        let service = move |request, peer| {
            let shared = Arc::clone(&shared);
            async move { answer(request, peer, limits, &shared.0, &shared.1).await }
        };
        self.serve_requests(service, shutdown).await;
    }

    /// Like [`Server::serve`], for a handler that needs the whole request.
    pub async fn serve_with_bodies<H>(self, bodies: BodyLimits, handler: H, shutdown: impl Future<Output = ()>)
    where
        H: Fn(&Request<Bytes>) -> Response<Full<Bytes>> + Send + Sync + 'static,
    {
        let (limits, handler) = (self.limits, Arc::new(handler));
        let places = Arc::new(Semaphore::new(bodies.large_at_once));
        let service = move |request, _| {
            let (handler, places) = (Arc::clone(&handler), Arc::clone(&places));
            async move { answer_with_body(request, limits, bodies, &places, &*handler).await }
        };
        self.serve_requests(service, shutdown).await;
    }

    async fn serve_requests<S, F>(self, service: S, shutdown: impl Future<Output = ()>)
    where
        S: Fn(Request<Incoming>, IpAddr) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
    {
        let (limits, leaving) = (self.limits, self.leaving.clone());
        let converse = move |accepted: Accepted| {
            let (service, leaving, peer) = (service.clone(), leaving.clone(), accepted.peer);
            converse(accepted, limits, move |request| service(request, peer), leaving)
        };
        self.serve_connections(converse, shutdown).await;
    }

    /// Accepts connections and has `converse` see each to its end, until `shutdown`; then takes leave, and waits for those
    /// that are still there. `converse` is to come to an end once it is told to.
    pub async fn serve_connections<C, F>(self, converse: C, shutdown: impl Future<Output = ()>)
    where
        C: Fn(Accepted) -> F + Clone + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let Self { listener: Listener { tcp, tls }, limits, workers, leaving, occupancy } = self;
        let room = Arc::new(Room::new(limits.connections, limits.connections_per_client, occupancy));
        let (close, server) = watch::channel(false);
        let end = async {
            shutdown.await;
            leaving.begin();
            sleep(limits.leave_taking).await;
        };
        let mut end = pin!(end);
        loop {
            let accept = async {
                let (stream, peer) = accept(&tcp).await;
                let peer = peer.ip().to_canonical();
                let (requests, make_room) = (Requests::new(Instant::now()), CancellationToken::new());
                let guest = Guest { requests: requests.clone(), make_room: make_room.clone() };
                let place = room.place(Client::of(peer), guest).await?;
                let closing = Closing { server: server.clone(), make_room };
                Some((stream, peer, requests, closing, place))
            };
            let accepted = tokio::select! {
                biased;
                () = &mut end => break,
                accepted = accept => accepted,
            };
            let Some((stream, peer, requests, mut closing, place)) = accepted else { continue };
            let (converse, tls) = (converse.clone(), tls.clone());
            workers.spawn(async move {
                let stream = tokio::select! {
                    biased;
                    stream = adopt(stream, tls, limits) => stream,
                    () = closing.making_room() => None,
                };
                if let Some(stream) = stream {
                    converse(Accepted { stream, peer, requests, closing }).await;
                }
                drop(place);
            });
        }
        drop((tcp, server));
        close.send_replace(true);
        if timeout(limits.drain, close.closed()).await.is_err() {
            warn!(waited = ?limits.drain, "requests were still in flight at shutdown");
        }
    }
}

/// Tells a conversation when it should come to an end. The server waits until all of these are gone.
#[derive(Clone)]
pub struct Closing {
    server: watch::Receiver<bool>,
    make_room: CancellationToken,
}

impl Closing {
    /// Resolves once the server closes.
    pub async fn begun(&mut self) {
        // An error means that the server is gone altogether.
        self.server.wait_for(|is_closing| *is_closing).await.ok();
    }

    /// Resolves once this connection is to make room for another: as soon as it is idle, and as soon as possible. Whoever waits
    /// for this has to look at the connection first each time: what has arrived by then is to be answered.
    pub async fn making_room(&mut self) {
        self.make_room.cancelled().await;
        // The runtime looks at what has come in before it goes on with this.
        yield_now().await;
    }
}

impl Leaving {
    /// The end was asked for.
    pub fn begin(&self) {
        if !self.0.swap(true, Ordering::Relaxed) {
            info!("shutting down");
        }
    }

    /// Whether it was.
    pub fn has_begun(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Takes a connection over into this runtime. `None` if it ended before any request, in its TLS handshake for one.
async fn adopt(stream: std::net::TcpStream, tls: Option<tls::Acceptor>, limits: Limits) -> Option<Stream> {
    let stream =
        TcpStream::from_std(stream).inspect_err(|error| warn!(%error, "cannot take over a connection")).ok()?;
    let Some(tls) = tls else { return Some(Either::Left(stream)) };
    if !tls.is_required() && !begins_tls(&stream, limits.idle_timeout).await? {
        tls.count_plain();
        return Some(Either::Left(stream));
    }
    let stream = tls.accept(stream, limits.read_timeout.min(HANDSHAKE_TIMEOUT)).await?;
    Some(Either::Right(Box::new(stream)))
}

/// Whether the first that comes is a TLS handshake (RFC 8446, 5.1): no request of HTTP begins with that octet. `None` if
/// nothing comes within the `limit`.
async fn begins_tls(stream: &TcpStream, limit: Duration) -> Option<bool> {
    const HANDSHAKE: u8 = 22;
    let mut first = [0];
    let length = timeout(limit, stream.peek(&mut first)).await.ok()?.ok()?;
    (length == 1).then_some(first == [HANDSHAKE])
}

/// Answers the requests of one connection until it ends, or the server does.
async fn converse<S, F>(accepted: Accepted, limits: Limits, service: S, leaving: Leaving)
where
    S: Fn(Request<Incoming>) -> F + Send + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let Accepted { stream, requests, mut closing, .. } = accepted;
    let mut making_room = closing.clone();
    let timeouts = Timeouts { idle: limits.idle_timeout, head: limits.read_timeout, write: limits.read_timeout };
    let stream = Timed::new(stream, timeouts, requests.clone());
    let service = service_fn(|request| {
        requests.begin();
        service(request).map(|mut response| {
            requests.end();
            if leaving.has_begun() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        })
    });
    let mut connection = pin!(
        http1::Builder::new()
            .max_header_size(limits.head)
            .max_buf_size(limits.head)
            .serve_connection(TokioIo::new(stream), service)
    );
    // An error is the client's: it went away, was too slow, or was told what is wrong.
    tokio::select! {
        biased;
        _ = &mut connection => return,
        () = closing.begun() => connection.as_mut().graceful_shutdown(),
        () = making_room.making_room() => {
            connection.as_mut().graceful_shutdown();
            // Idle, it takes this one look to close; in the middle of a head it would wait for more.
            let is_idle = poll_fn(|_| Poll::Ready(requests.idle_since().is_some()));
            tokio::select! {
                biased;
                _ = &mut connection => return,
                true = is_idle => return,
            }
        }
    }
    connection.await.ok();
}

/// Waits for a connection. Whatever goes wrong passes.
async fn accept(listener: &TcpListener) -> (std::net::TcpStream, SocketAddr) {
    loop {
        let accepted = listener.accept().await.and_then(|(stream, peer)| {
            // Answers are one packet each; waiting to fill it only costs time.
            stream.set_nodelay(true).ok();
            Ok((stream.into_std()?, peer))
        });
        match accepted {
            Ok(accepted) => return accepted,
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Waits for the request's end before it is decided on: no answer is older than what it rests on.
async fn answer<H>(
    request: Request<Incoming>,
    peer: IpAddr,
    limits: Limits,
    handler: &H,
    places: &Semaphore,
) -> Response<Full<Bytes>>
where
    H: Fn(&Request<()>, IpAddr) -> Response<Full<Bytes>>,
{
    let (head, body) = request.into_parts();
    // A client that waits for permission to send its body gets the answer instead.
    if !body.is_end_stream() && !head.headers.contains_key(EXPECT) {
        // In a box: the others, which are nearly all, need no room for it.
        Box::pin(timeout(limits.read_timeout, discard(body, limits.body, places))).await.ok();
    }
    let request = Request::from_parts(head, ());
    unless_it_panics(|| handler(&request, peer)).unwrap_or_else(|| INTERNAL_SERVER_ERROR.into_response())
}

/// `None` if it does. Its own message is on standard error.
pub fn unless_it_panics<T>(handler: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(handler)).inspect_err(|_| error!("a request could not be answered")).ok()
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
            unless_it_panics(|| handler(&request)).unwrap_or_else(|| {
                plain_text(StatusCode::INTERNAL_SERVER_ERROR, "the webhook failed; its log says why")
            })
        }
        Ok(Err(Untaken::TooLarge)) => {
            if !head.headers.contains_key(EXPECT) {
                timeout(bodies.timeout, discard(body, limits.body, places)).await.ok();
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
pub fn plain_text(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Reads a body to its end, or to its first `limit` octets, once there is a place. Closing a connection with octets left
/// unread resets it, and the answer may be lost on the way.
async fn discard(mut body: Incoming, limit: usize, places: &Semaphore) {
    // The semaphore is never closed, so there always is a place.
    let _place = places.acquire().await;
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

impl Limits {
    /// With this share of the places for each client.
    pub fn shared_by(self, share: Share) -> Self {
        Self { connections_per_client: share.of(self.connections), ..self }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: 16 * 1024,
            body: 1024 * 1024,
            read_timeout: Duration::from_secs(15),
            // Longer than nginx (60 s) and the recipes for the others keep a connection.
            idle_timeout: Duration::from_secs(300),
            connections: 10_000,
            connections_per_client: 2_500,
            leave_taking: Duration::from_secs(3),
            drain: Duration::from_secs(10),
        }
    }
}
