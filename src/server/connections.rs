//! Connections of HTTP/1.1: accepted, shared out to workers, limited, and brought to an end in which no request is lost.
//!
//! Handlers are plain functions from a request to an answer; only this file waits.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::FutureExt;
use futures::future::poll_fn;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, EXPECT, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, watch};
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::INTERNAL_SERVER_ERROR;
use super::places::{Admission, Cause, Client, Occupant, Places, Share, Ticket};
use super::timed::{Requests, Timed, Timeouts};
use super::workers::Workers;
use crate::tls;

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

/// Connections that the system may hold before they are accepted.
const BACKLOG: i32 = 1024;

/// How long to wait for a connection to end that is to make room, before another one has to; and where all are busy, before
/// the next look at them.
const ROOM_PAUSE: Duration = Duration::from_millis(20);

/// For how long a listener may be full of the busy before it is not Ready.
const FULL_TOLERANCE: Duration = Duration::from_secs(5);

/// How long a TLS handshake may take; the read timeout where that is shorter. A client needs two round trips for it.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Where to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// There, and nowhere else.
    Given(SocketAddr),
    /// On all addresses of this machine, at this port.
    All(u16),
}

impl Address {
    /// What was given, else the default.
    pub fn or_all(given: Option<SocketAddr>, port: u16) -> Self {
        given.map_or(Self::All(port), Self::Given)
    }
}

/// A listener on `address`.
///
/// # Errors
/// Names the flag that the address came from.
pub(crate) async fn bind(address: Address, flag: &str) -> anyhow::Result<TcpListener> {
    bind_by(listen, address, flag)
}

fn bind_by<L>(listen: impl Fn(SocketAddr) -> io::Result<L>, address: Address, flag: &str) -> anyhow::Result<L> {
    let (address, listening) = match address {
        Address::Given(address) => (address, listen(address)),
        Address::All(port) => {
            let (ipv6, ipv4) = ((Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into());
            match listen(ipv6) {
                Err(error) if has_no_ipv6(&error) => (ipv4, listen(ipv4)),
                listening => (ipv6, listening),
            }
        }
    };
    listening.with_context(|| format!("{flag} {address}: cannot listen there; is the port taken?"))
}

/// Whether it failed as this machine has IPv6 switched off; anything else, as a port that is taken, would not be better with
/// IPv4.
fn has_no_ipv6(error: &io::Error) -> bool {
    const EAFNOSUPPORT: i32 = 97;
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(EAFNOSUPPORT)
}

/// As tokio would, but that `[::]` is always for IPv4 too, whatever the machine's default is.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

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

/// How full a listener is: for `/metrics` and `/readyz`.
#[derive(Clone, Debug, Default)]
pub struct Occupancy {
    name: &'static str,
    held: Gauge,
    listener_full: Counter,
    client_full: Counter,
    refused: Counter,
    full_since: Arc<Mutex<Option<Instant>>>,
}

/// What is told of all listeners of a program.
pub struct ConnectionMetrics {
    held: Family<ListenerLabels, Gauge>,
    closed: Family<ClosedLabels, Counter>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ListenerLabels {
    listener: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClosedLabels {
    listener: &'static str,
    cause: &'static str,
}

impl ConnectionMetrics {
    /// Registers them; `registry` gives the prefix.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self { held: Family::default(), closed: Family::default() };
        registry.register("connections", "Connections that hold a place of a listener", metrics.held.clone());
        registry.register("connections_closed", "Connections closed to make room", metrics.closed.clone());
        metrics
    }

    /// What is told of one listener, named as the flag of its address. All is there from the start, at 0.
    pub fn of(&self, listener: &'static str) -> Occupancy {
        let closed = |cause| self.closed.get_or_create_owned(&ClosedLabels { listener, cause });
        Occupancy {
            name: listener,
            held: self.held.get_or_create_owned(&ListenerLabels { listener }),
            listener_full: closed("listener_full"),
            client_full: closed("client_full"),
            refused: closed("client_refused"),
            full_since: Arc::default(),
        }
    }
}

impl Occupancy {
    /// # Errors
    /// If new connections have found no room for a while, as all those that are there are busy.
    pub fn readiness(&self, now: Instant) -> Result<(), String> {
        let full_for = self.full_since().map(|since| now.saturating_duration_since(since));
        match full_for.filter(|full_for| *full_for > FULL_TOLERANCE) {
            Some(full_for) => Err(format!(
                "all connections of the listener {} have been busy for {} s",
                self.name,
                full_for.as_secs()
            )),
            None => Ok(()),
        }
    }

    fn full_since(&self) -> Option<Instant> {
        *self.full_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_full(&self, is_full: bool) {
        let mut full_since = self.full_since.lock().unwrap_or_else(PoisonError::into_inner);
        *full_since = is_full.then(|| full_since.unwrap_or_else(Instant::now));
    }

    fn count(&self, cause: Cause) {
        match cause {
            Cause::ListenerFull => self.listener_full.inc(),
            Cause::ClientFull => self.client_full.inc(),
        };
    }
}

/// The places of a listener.
struct Room {
    held: Mutex<Places<Guest>>,
    /// One for each place, also of those who are just making room.
    free: Arc<Semaphore>,
    occupancy: Occupancy,
}

/// A connection, and how it is asked to make room.
struct Guest {
    requests: Requests,
    make_room: CancellationToken,
}

/// One connection's place, for as long as it lives.
struct Place {
    room: Arc<Room>,
    ticket: Ticket,
    _permit: OwnedSemaphorePermit,
}

impl Occupant for Guest {
    fn idle_since(&self) -> Option<Instant> {
        self.requests.idle_since()
    }
}

impl Room {
    fn new(limits: Limits, occupancy: Occupancy) -> Self {
        let held = Mutex::new(Places::new(limits.connections_per_client));
        Self { held, free: Arc::new(Semaphore::new(limits.connections)), occupancy }
    }

    fn held<T>(&self, act: impl FnOnce(&mut Places<Guest>) -> T) -> T {
        act(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A place for a connection of `client`, once another has made room if need be. `None` if there is not to be one.
    async fn place(self: &Arc<Self>, client: Client, guest: Guest) -> Option<Place> {
        let permit = loop {
            let is_full = self.free.available_permits() == 0;
            match self.held(|places| places.admit(client, is_full)) {
                Admission::Free => {}
                Admission::InsteadOf(ticket, cause) => {
                    if let Some(guest) = self.held(|places| places.leave(ticket)) {
                        self.occupancy.count(cause);
                        guest.make_room.cancel();
                    }
                }
                Admission::Full => self.occupancy.tell_full(true),
                Admission::Refused => {
                    self.occupancy.refused.inc();
                    return None;
                }
            }
            // The semaphore is never closed.
            if let Ok(permit) = timeout(ROOM_PAUSE, Arc::clone(&self.free).acquire_owned()).await {
                break permit.ok()?;
            }
        };
        self.occupancy.tell_full(false);
        self.occupancy.held.inc();
        let ticket = self.held(|places| places.enter(client, guest));
        Some(Place { room: Arc::clone(self), ticket, _permit: permit })
    }
}

/// Also if the connection ends in a panic.
impl Drop for Place {
    fn drop(&mut self) {
        self.room.held(|places| places.leave(self.ticket));
        self.room.occupancy.held.dec();
    }
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
        let room = Arc::new(Room::new(limits, occupancy));
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
pub(super) fn unless_it_panics<T>(handler: impl FnOnce() -> T) -> Option<T> {
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
pub(super) fn plain_text(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn without_ipv6_the_default_is_ipv4_and_nothing_else_is_replaced() {
        const EAFNOSUPPORT: i32 = 97;
        const EADDRNOTAVAIL: i32 = 99;
        const EADDRINUSE: i32 = 98;
        const EACCES: i32 = 13;
        const EMFILE: i32 = 24;
        let given = |text: &str| Address::Given(text.parse().unwrap());
        for (address, ipv6_fails, tried, works) in [
            (Address::All(9090), None, &["[::]:9090"][..], true),
            (Address::All(9090), Some(EAFNOSUPPORT), &["[::]:9090", "0.0.0.0:9090"], true),
            (Address::All(9090), Some(EADDRNOTAVAIL), &["[::]:9090", "0.0.0.0:9090"], true),
            (Address::All(9090), Some(EADDRINUSE), &["[::]:9090"], false),
            (Address::All(9090), Some(EACCES), &["[::]:9090"], false),
            (Address::All(9090), Some(EMFILE), &["[::]:9090"], false),
            (given("[::]:9090"), Some(EAFNOSUPPORT), &["[::]:9090"], false),
            (given("[::1]:9090"), Some(EADDRNOTAVAIL), &["[::1]:9090"], false),
            (given("0.0.0.0:9090"), Some(EAFNOSUPPORT), &["0.0.0.0:9090"], true),
        ] {
            let asked = RefCell::new(Vec::new());
            let listen = |address: SocketAddr| {
                asked.borrow_mut().push(address.to_string());
                match ipv6_fails.filter(|_| address.is_ipv6()) {
                    Some(error) => Err(io::Error::from_raw_os_error(error)),
                    None => Ok(()),
                }
            };
            let bound = bind_by(listen, address, "--admin-address");
            assert_eq!(bound.is_ok(), works, "{address:?} {ipv6_fails:?}");
            assert_eq!(*asked.borrow(), tried, "{address:?} {ipv6_fails:?}");
        }
    }

    #[tokio::test]
    async fn all_addresses_are_those_of_ipv4_too() {
        let listener = bind(Address::All(0), "--http-address").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut addresses = vec![IpAddr::from(Ipv4Addr::LOCALHOST)];
        if listener.local_addr().unwrap().is_ipv6() {
            addresses.push(Ipv6Addr::LOCALHOST.into());
        }
        for address in addresses {
            let connecting = TcpStream::connect((address, port));
            let (connected, accepted) = tokio::join!(connecting, listener.accept());
            connected.unwrap();
            assert_eq!(accepted.unwrap().1.ip().to_canonical(), address);
        }
    }
}
