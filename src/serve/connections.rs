//! Connections of HTTP/1.1: accepts them, gives them to workers, limits them, and closes them without losing a request.
//!
//! Handlers are plain functions from a request to an answer. Only this file waits.

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
use keywright_core::fence::Moment;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::limits::{BODIES_AT_ONCE, BodyLimits, Limits};
use super::places::Client;
use super::problem::INTERNAL_SERVER_ERROR;
use super::room::{Guest, Occupancy, Room};
use super::timed::{Requests, Timed, Timeouts};
use super::workers::Workers;
use crate::serve::tls;

/// A listener, with or without TLS.
pub struct Listener {
    /// Accepts connections.
    pub tcp: TcpListener,
    /// Terminates TLS, and decides whether plain text is accepted too. `None`: plain text only.
    pub tls: Option<tls::Acceptor>,
}

/// An accepted connection: plain text, or TLS after its handshake.
pub type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// Whether shutdown has begun. The server is then not ready, and closes each connection with its next answer.
///
/// No `CancellationToken`: every answer asks, on every core, and a token takes a lock to tell.
#[derive(Clone, Debug, Default)]
pub struct Leaving(Arc<AtomicBool>);

/// How long to wait after accepting failed, most likely for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a TLS handshake may take, or the read timeout if that is shorter. A handshake takes two round trips.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A server on one listener.
pub struct Server {
    /// Accepts connections.
    pub listener: Listener,
    /// The limits of connections.
    pub limits: Limits,
    /// The threads that serve connections.
    pub workers: Workers,
    /// Set when shutdown begins.
    pub leaving: Leaving,
    /// Keeps how full the listener is.
    pub occupancy: Occupancy,
}

/// A handler's answer.
pub struct Answer {
    /// What is sent.
    pub response: Response<Full<Bytes>>,
    /// The moment from which on the connection is closed instead. `None`: it is true at any time.
    pub until: Option<Moment>,
}

impl From<Response<Full<Bytes>>> for Answer {
    fn from(response: Response<Full<Bytes>>) -> Self {
        Self { response, until: None }
    }
}

/// An accepted connection that has its place.
pub struct Accepted {
    /// The stream of bytes.
    pub stream: Stream,
    /// The client's address. IPv4-mapped addresses are IPv4 addresses here.
    pub peer: IpAddr,
    /// Notes requests and answers.
    pub requests: Requests,
    /// Tells when the connection should be closed.
    pub closing: Closing,
}

impl Server {
    /// Accepts connections and lets `handler` answer their requests, until `shutdown`. Then closes connections with their
    /// next answer, and finishes the requests in flight.
    ///
    /// `handler` gets a request's head and the client's address, and must not block. If it panics, the answer is 500.
    pub async fn serve<H, A>(self, handler: H, shutdown: impl Future<Output = ()>)
    where
        H: Fn(&Request<()>, IpAddr) -> A + Send + Sync + 'static,
        A: Into<Answer> + 'static,
    {
        let limits = self.limits;
        let shared = Arc::new((handler, Semaphore::new(BODIES_AT_ONCE)));
        let service = move |request, peer| {
            let shared = Arc::clone(&shared);
            async move { answer(request, peer, limits, &shared.0, &shared.1).await }
        };
        self.serve_requests(service, shutdown).await;
    }

    /// Like [`Server::serve`], for a handler that needs the body too.
    pub async fn serve_with_bodies<H>(self, bodies: BodyLimits, handler: H, shutdown: impl Future<Output = ()>)
    where
        H: Fn(&Request<Bytes>) -> Response<Full<Bytes>> + Send + Sync + 'static,
    {
        let (limits, handler) = (self.limits, Arc::new(handler));
        let places = Arc::new(Semaphore::new(bodies.large_at_once));
        let service = move |request, _| {
            let (handler, places) = (Arc::clone(&handler), Arc::clone(&places));
            async move { answer_with_body(request, limits, bodies, &places, &*handler).await.into() }
        };
        self.serve_requests(service, shutdown).await;
    }

    async fn serve_requests<S, F>(self, service: S, shutdown: impl Future<Output = ()>)
    where
        S: Fn(Request<Incoming>, IpAddr) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Answer> + Send + 'static,
    {
        let (limits, leaving) = (self.limits, self.leaving.clone());
        let converse = move |accepted: Accepted| {
            let (service, leaving, peer) = (service.clone(), leaving.clone(), accepted.peer);
            converse(accepted, limits, move |request| service(request, peer), leaving)
        };
        self.serve_connections(converse, shutdown).await;
    }

    /// Accepts connections and lets `converse` serve each of them, until `shutdown`. Then asks them to end, and waits for
    /// them. `converse` must end when [`Closing`] says so.
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
            warn!(waited = ?limits.drain, "shutdown ends although requests are in flight");
        }
    }
}

/// Tells when a connection should be closed. The server waits until all of these are dropped.
#[derive(Clone)]
pub struct Closing {
    server: watch::Receiver<bool>,
    make_room: CancellationToken,
}

impl Closing {
    /// Resolves when the server closes.
    pub async fn begun(&mut self) {
        // An error means that the server is gone.
        self.server.wait_for(|is_closing| *is_closing).await.ok();
    }

    /// Resolves when this connection must make room for another: it should end as soon as it is idle. The caller must poll the
    /// connection first each time: a request that has arrived must be answered.
    pub async fn making_room(&mut self) {
        self.make_room.cancelled().await;
        // The runtime polls the sockets before it goes on here.
        yield_now().await;
    }
}

impl Leaving {
    /// Shutdown begins.
    pub fn begin(&self) {
        if !self.0.swap(true, Ordering::Relaxed) {
            info!("shutting down");
        }
    }

    /// Whether shutdown has begun.
    pub fn has_begun(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Takes a connection over into this runtime. `None` if it ended before any request, for example in its TLS handshake.
async fn adopt(stream: std::net::TcpStream, tls: Option<tls::Acceptor>, limits: Limits) -> Option<Stream> {
    let stream = TcpStream::from_std(stream)
        .inspect_err(|error| warn!(%error, "cannot take over a connection: closing it"))
        .ok()?;
    let Some(tls) = tls else { return Some(Either::Left(stream)) };
    if !tls.is_required() && !begins_tls(&stream, limits.idle_timeout).await? {
        tls.count_plain();
        return Some(Either::Left(stream));
    }
    let stream = tls.accept(stream, limits.read_timeout.min(HANDSHAKE_TIMEOUT)).await?;
    Some(Either::Right(Box::new(stream)))
}

/// Whether the first byte begins a TLS handshake (RFC 8446, 5.1). No HTTP request begins with this byte. `None` if nothing
/// arrives within `limit`.
async fn begins_tls(stream: &TcpStream, limit: Duration) -> Option<bool> {
    const HANDSHAKE: u8 = 22;
    let mut first = [0];
    let length = timeout(limit, stream.peek(&mut first)).await.ok()?.ok()?;
    (length == 1).then_some(first == [HANDSHAKE])
}

/// Answers the requests of one connection until it ends or the server shuts down.
async fn converse<S, F>(accepted: Accepted, limits: Limits, service: S, leaving: Leaving)
where
    S: Fn(Request<Incoming>) -> F + Send + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let Accepted { stream, requests, mut closing, .. } = accepted;
    let mut making_room = closing.clone();
    let timeouts = Timeouts { idle: limits.idle_timeout, head: limits.read_timeout, write: limits.read_timeout };
    let stream = Timed::new(stream, timeouts, requests.clone());
    let service = service_fn(|request| {
        requests.begin();
        service(request).map(|Answer { mut response, until }| {
            if let Some(until) = until {
                requests.expire(until);
            }
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
    // An error is the client's: it disconnected, was too slow, or got an error response.
    tokio::select! {
        biased;
        _ = &mut connection => return,
        () = closing.begun() => connection.as_mut().graceful_shutdown(),
        () = making_room.making_room() => {
            connection.as_mut().graceful_shutdown();
            // An idle connection closes at this poll. In the middle of a head it would wait for the rest.
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

/// Waits for a connection. Errors are logged, and accepting goes on.
async fn accept(listener: &TcpListener) -> (std::net::TcpStream, SocketAddr) {
    loop {
        let accepted = listener.accept().await.and_then(|(stream, peer)| {
            // An answer is one packet: Nagle's algorithm would only delay it.
            stream.set_nodelay(true).ok();
            Ok((stream.into_std()?, peer))
        });
        match accepted {
            Ok(accepted) => return accepted,
            Err(error) => {
                warn!(%error, "cannot accept a connection: check the limit of open files");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Answers a request. Waits for the end of its body first, so that the decision uses the newest data.
async fn answer<H, A>(
    request: Request<Incoming>,
    peer: IpAddr,
    limits: Limits,
    handler: &H,
    places: &Semaphore,
) -> Answer
where
    H: Fn(&Request<()>, IpAddr) -> A,
    A: Into<Answer>,
{
    let (head, body) = request.into_parts();
    // A client that waits for permission to send its body gets the answer instead.
    if !body.is_end_stream() && !head.headers.contains_key(EXPECT) {
        // Boxed: almost all requests have no body, and should not need memory for this.
        Box::pin(timeout(limits.read_timeout, discard(body, limits.body, places))).await.ok();
    }
    let request = Request::from_parts(head, ());
    let answer = unless_it_panics(|| handler(&request, peer).into());
    answer.unwrap_or_else(|| INTERNAL_SERVER_ERROR.into_response().into())
}

/// The handler's result. `None` if it panics. The panic's message is on standard error.
pub fn unless_it_panics<T>(handler: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(handler)).inspect_err(|_| error!("a request was not answered because its handler panicked: report this as a bug, with the message on standard error")).ok()
}

/// Reads the body and answers the request, or says why the body was not read.
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
            let said = format!("the request is longer than {} bytes", bodies.largest);
            plain_text(StatusCode::PAYLOAD_TOO_LARGE, said)
        }
        Ok(Err(Untaken::Broken)) => plain_text(StatusCode::BAD_REQUEST, "the request ended before its body did"),
        Err(_) => {
            let said = format!("the request's body took longer than {:?}", bodies.timeout);
            plain_text(StatusCode::REQUEST_TIMEOUT, said)
        }
    }
}

/// Why a body was not read.
enum Untaken {
    TooLarge,
    Broken,
}

/// Reads a body to its end. Keep the permit of a large body until the body is dropped.
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
            // The semaphore is never closed, so there is always a permit.
            place = places.acquire().await.ok();
            whole.reserve_exact(announced.saturating_sub(whole.len()));
        }
        whole.extend_from_slice(&data);
    }
    Ok((whole.into(), place))
}

/// An answer in plain text. The API server repeats it to its user.
pub fn plain_text(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Reads and drops a body, up to `limit` bytes, once there is a permit. Closing a connection with unread bytes resets it,
/// and the answer may be lost.
async fn discard(mut body: Incoming, limit: usize, places: &Semaphore) {
    // The semaphore is never closed, so there is always a permit.
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
    /// A listener without TLS.
    pub fn plain(tcp: TcpListener) -> Self {
        Self { tcp, tls: None }
    }
}
