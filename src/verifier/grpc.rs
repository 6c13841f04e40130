//! gRPC over HTTP/2, as far as unary calls need it: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>.
//! Hand-written, because tonic answered 1.76 times fewer calls a second over 4 connections with 16 streams each, and 1.24 times
//! fewer over 16 with one (docs/performance.md).
//!
//! Most calls arrive whole in one read, and are answered on the spot. One that arrives in pieces waits for the rest, and what
//! it holds meanwhile is given back to the connection's window only if it has one of [`PLACES`]: so a connection never
//! holds more than its window, and all of them together no more than that many messages besides.

use std::future::poll_fn;
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use futures::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::ext_authz::{Authorization, NoResponse};
use super::field::{health_check_request, health_check_response};
use super::protobuf::{fields, put_number};
use crate::serve::connections::{Accepted, Leaving, Server, Stream, unless_it_panics};
use crate::serve::limits::Limits;
use crate::serve::timed::{Requests, Timed, Timeouts};
use keywright_core::fence::Moment;

/// What can be called.
pub struct Services {
    /// `envoy.service.auth.v3.Authorization`
    pub authorization: Authorization,
    /// Whether calls of it are answered: for `grpc.health.v1.Health`.
    pub is_ready: Box<dyn Fn() -> bool + Send + Sync>,
}

/// What a client may take up. A connection holds 0.5 MiB at most, its window and 2 KiB for each call; or 1.5 MiB, with 10 KiB
/// for each, if it takes in no answers and they are as long as can be. What has just come on it is more while it is read, heads
/// above all: up to 2 MiB, for one connection on each core.
pub const LIMITS: Limits = Limits {
    head: 8 * 1024,
    body: MAX_MESSAGE,
    read_timeout: Duration::from_secs(15),
    // Envoy is told before the connection is closed, and so loses no request, however long it keeps one.
    idle_timeout: Duration::from_secs(300),
    connections: 1024,
    connections_per_client: 256,
    leave_taking: Duration::from_secs(3),
    drain: Duration::from_secs(10),
};

/// Octets of the largest message: an Envoy takes in 60 KiB of headers. Longer: `RESOURCE_EXHAUSTED`.
pub const MAX_MESSAGE: usize = 128 * 1024;

/// Octets in flight on a connection.
pub const CONNECTION_WINDOW: u32 = 256 * 1024;

/// Messages in pieces that do not count against the window of their connection: 32 MiB in all. With the window alone,
/// calls that share it could wait for one another, each with a part of its message.
pub const PLACES: usize = 256;

/// Calls at the same time on a connection. An Envoy that has more opens a second one.
pub const MAX_CONCURRENT_STREAMS: u32 = 128;

/// Calls that the client took back before they were looked at; with more, the connection is closed (CVE-2023-44487). An
/// Envoy may take back all that it has under way, if this process had to wait for a processor.
const MAX_UNSEEN_RESET_STREAMS: usize = MAX_CONCURRENT_STREAMS as usize;

/// Streams that were reset here and are still remembered.
const MAX_RESET_STREAMS: usize = 32;

/// Streams that had to be reset here because of what the client sent; with more, the connection is closed.
const MAX_FAULTY_STREAMS: usize = 128;

/// Octets before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// A call whose head has arrived, and where its answer goes.
type Call = (Request<RecvStream>, SendResponse<Bytes>);

/// How a call ended that has no response (`google.rpc.Code`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failure {
    code: u16,
    message: &'static str,
}

impl Failure {
    const INVALID_ARGUMENT: Self = Self { code: 3, message: "the message cannot be read" };
    const INCOMPLETE: Self = Self { code: 3, message: "there has to be one message, whole and not compressed" };
    const TOO_SLOW: Self = Self { code: 4, message: "the message took too long to arrive" };
    const NOT_FOUND: Self = Self { code: 5, message: "there is no such service" };
    const TOO_LARGE: Self = Self { code: 8, message: "the message is longer than 128 KiB" };
    const UNIMPLEMENTED: Self = Self { code: 12, message: "call envoy.service.auth.v3.Authorization/Check" };
    const INTERNAL: Self = Self { code: 13, message: "the call failed; the log says why" };
    const UNAVAILABLE: Self = Self { code: 14, message: "API keys cannot be verified at the moment" };
}

/// What can be called, of both services.
#[derive(Clone, Copy, Debug)]
enum Procedure {
    Check,
    Health,
}

impl Procedure {
    fn at(path: &str) -> Result<Self, Failure> {
        match path {
            "/envoy.service.auth.v3.Authorization/Check" => Ok(Self::Check),
            "/grpc.health.v1.Health/Check" => Ok(Self::Health),
            _ => Err(Failure::UNIMPLEMENTED),
        }
    }
}

impl From<NoResponse> for Failure {
    fn from(reason: NoResponse) -> Self {
        match reason {
            NoResponse::Malformed => Self::INVALID_ARGUMENT,
            NoResponse::Unavailable => Self::UNAVAILABLE,
        }
    }
}

impl Services {
    /// Appends the response to the call of `procedure` with `message`. Answers until when it may be sent.
    fn call(&self, procedure: Procedure, message: &[u8], response: &mut Vec<u8>) -> Result<Option<Moment>, Failure> {
        match procedure {
            Procedure::Check => Ok(self.authorization.check(message, response)?),
            Procedure::Health => {
                put_number(response, health_check_response::STATUS, if self.health(message)? { 1 } else { 2 });
                Ok(None)
            }
        }
    }

    /// Whether the service that `message` names is serving; none means all.
    fn health(&self, message: &[u8]) -> Result<bool, Failure> {
        let mut service = "";
        for field in fields(message) {
            let field = field.map_err(|_| Failure::INVALID_ARGUMENT)?;
            if field.number == health_check_request::SERVICE {
                service = field.text().map_err(|_| Failure::INVALID_ARGUMENT)?;
            }
        }
        match service {
            "" | "envoy.service.auth.v3.Authorization" => Ok((self.is_ready)()),
            _ => Err(Failure::NOT_FOUND),
        }
    }

    /// The response to the call of `procedure` with what its stream has brought, ready to be sent, and until when it may be.
    fn answer(&self, procedure: Procedure, stream: &[u8]) -> Result<(Bytes, Option<Moment>), Failure> {
        let message = unframe(stream)?;
        let mut response = Vec::with_capacity(512);
        response.extend_from_slice(&[0; PREFIX]);
        let until = unless_it_panics(|| self.call(procedure, message, &mut response));
        let until = until.unwrap_or(Err(Failure::INTERNAL))?;
        let length = u32::try_from(response.len() - PREFIX).map_err(|_| Failure::INTERNAL)?;
        if let Some(place) = response.get_mut(1..PREFIX) {
            place.copy_from_slice(&length.to_be_bytes());
        }
        Ok((response.into(), until))
    }
}

/// The one message that a stream consists of.
fn unframe(stream: &[u8]) -> Result<&[u8], Failure> {
    let (compressed, rest) = stream.split_first().ok_or(Failure::INCOMPLETE)?;
    let (length, message) = rest.split_first_chunk().ok_or(Failure::INCOMPLETE)?;
    let is_whole = usize::try_from(u32::from_be_bytes(*length)).is_ok_and(|length| length == message.len());
    if *compressed == 0 && is_whole { Ok(message) } else { Err(Failure::INCOMPLETE) }
}

/// Answers calls until `shutdown`; then takes leave, and finishes those in flight.
pub async fn serve(server: Server, services: Services, shutdown: impl Future<Output = ()>) {
    let (limits, leaving) = (server.limits, server.leaving.clone());
    let shared = Arc::new((services, Semaphore::new(PLACES)));
    let converse = move |accepted| {
        let (shared, leaving) = (Arc::clone(&shared), leaving.clone());
        async move {
            let (services, places) = &*shared;
            converse(services, places, accepted, limits, leaving).await;
        }
    };
    server.serve_connections(converse, shutdown).await;
}

/// Answers the calls of one connection until it ends, or the server does.
async fn converse(services: &Services, places: &Semaphore, accepted: Accepted, limits: Limits, leaving: Leaving) {
    let Accepted { stream, requests, mut closing, .. } = accepted;
    let mut room_closing = closing.clone();
    let mut making_room = pin!(room_closing.making_room().fuse());
    // Twice: before that, a client that is idle is told, below. A head that has begun has no less: h2 does not tell it from a
    // ping, after which nothing has to come.
    let idle_timeout = limits.idle_timeout * 2;
    let timeouts = Timeouts { idle: idle_timeout, head: idle_timeout, write: limits.read_timeout };
    let stream = Timed::new(stream, timeouts, requests.clone());
    let mut connection = tokio::select! {
        biased;
        begun = timeout(limits.read_timeout, handshake(stream, limits)) => match begun {
            Ok(Ok(connection)) => connection,
            _ => return,
        },
        () = &mut making_room => return,
    };
    let (mut accepted, mut calls) = (Vec::new(), FuturesUnordered::new());
    let mut closing = pin!(closing.begun().fuse());
    let mut idle = pin!(sleep(limits.idle_timeout));
    let mut seen = requests.count();
    let mut makes_room = false;
    loop {
        tokio::select! {
            biased;
            is_open = poll_fn(|context| poll_accept_all(&mut connection, &mut accepted, context)) => {
                if !is_open {
                    break;
                }
                requests.begin();
                if leaving.has_begun() {
                    connection.graceful_shutdown();
                }
                for (request, respond) in accepted.drain(..) {
                    calls.extend(take_call(services, places, limits, &requests, request, respond));
                }
                if calls.is_empty() {
                    requests.end();
                }
            }
            Some(()) = calls.next() => if calls.is_empty() {
                requests.end();
            },
            () = &mut closing => connection.graceful_shutdown(),
            () = &mut making_room => {
                makes_room = true;
                if requests.idle_since().is_none() {
                    connection.graceful_shutdown();
                }
            }
            // Whatever was answered has been written above.
            true = poll_fn(|_| Poll::Ready(requests.idle_since().is_some())), if makes_room => {
                connection.abrupt_shutdown(Reason::NO_ERROR);
                poll_fn(|context| connection.poll_closed(context)).now_or_never();
                break;
            }
            () = &mut idle => {
                if calls.is_empty() && seen == requests.count() {
                    connection.graceful_shutdown();
                }
                seen = requests.count();
                idle.set(sleep(limits.idle_timeout));
            }
        }
    }
}

async fn handshake(stream: Timed<Stream>, limits: Limits) -> Result<Connection<Timed<Stream>, Bytes>, h2::Error> {
    Builder::new()
        .initial_window_size(CONNECTION_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .max_header_list_size(u32::try_from(limits.head).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(MAX_UNSEEN_RESET_STREAMS)
        .max_concurrent_reset_streams(MAX_RESET_STREAMS)
        .max_local_error_reset_streams(Some(MAX_FAULTY_STREAMS))
        .handshake(stream)
        .await
}

/// Takes all the calls that have arrived: answered one by one, each would be written by itself. False if the connection
/// has ended.
fn poll_accept_all(
    connection: &mut Connection<Timed<Stream>, Bytes>,
    accepted: &mut Vec<Call>,
    context: &mut Context<'_>,
) -> Poll<bool> {
    match ready!(connection.poll_accept(context)) {
        Some(Ok(call)) => accepted.push(call),
        _ => return Poll::Ready(false),
    }
    // The connection is polled again in any case, to write the answers: none of them needs to wake it for that.
    let mut unheard = Context::from_waker(Waker::noop());
    while let Poll::Ready(Some(Ok(call))) = connection.poll_accept(&mut unheard) {
        accepted.push(call);
    }
    Poll::Ready(true)
}

/// Answers a call that is there whole. Otherwise gives back what will, once it is.
fn take_call<'s>(
    services: &'s Services,
    places: &'s Semaphore,
    limits: Limits,
    requests: &'s Requests,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> Option<impl Future<Output = ()> + use<'s>> {
    let (head, mut body) = request.into_parts();
    let content_type = head.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    if head.method != Method::POST || !is_grpc(content_type) {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        respond.send_response(response, true).ok();
        return None;
    }
    // Nothing of the head is kept while the message comes.
    let procedure = match Procedure::at(head.uri.path()) {
        Ok(procedure) => procedure,
        Err(failure) => {
            respond_to(Err(failure), &mut respond, requests);
            return None;
        }
    };
    let first = match body.data().now_or_never() {
        Some(Some(Ok(stream))) if body.is_end_stream() => {
            respond_to(services.answer(procedure, &stream), &mut respond, requests);
            return None;
        }
        first => first,
    };
    Some(async move {
        let collected = timeout(limits.read_timeout, collect(first.flatten(), body, limits.body, places));
        let whole = tokio::select! {
            whole = collected => whole.unwrap_or(Err(Failure::TOO_SLOW)),
            _ = poll_fn(|context| respond.poll_reset(context)) => return,
        };
        let answer = whole.and_then(|stream| services.answer(procedure, &stream));
        respond_to(answer, &mut respond, requests);
    })
}

/// `application/grpc`, perhaps with the format of its messages, which is always the one that is understood here; not
/// `application/grpc-web`, which is another protocol.
fn is_grpc(content_type: &[u8]) -> bool {
    content_type.strip_prefix(GRPC.as_bytes()).is_some_and(|rest| matches!(rest, [] | [b'+' | b';', ..]))
}

/// The whole of a stream, of which `first` is the beginning.
async fn collect(
    first: Option<Result<Bytes, h2::Error>>,
    mut body: RecvStream,
    limit: usize,
    places: &Semaphore,
) -> Result<Vec<u8>, Failure> {
    let mut whole = Vec::new();
    let mut next = first;
    if next.is_none() {
        next = body.data().await;
    }
    let mut place = None;
    let mut kept_from_window = 0;
    while let Some(data) = next {
        let data = data.map_err(|_| Failure::INCOMPLETE)?;
        if whole.len() + data.len() > limit + PREFIX {
            return Err(Failure::TOO_LARGE);
        }
        whole.extend_from_slice(&data);
        kept_from_window += data.len();
        place = place.or_else(|| places.try_acquire().ok());
        if place.is_some() {
            // An error means that the stream is over.
            body.flow_control().release_capacity(mem::take(&mut kept_from_window)).ok();
        }
        next = body.data().await;
    }
    Ok(whole)
}

/// Errors are the client's: it went away, or took the call back.
fn respond_to(
    answer: Result<(Bytes, Option<Moment>), Failure>,
    respond: &mut SendResponse<Bytes>,
    requests: &Requests,
) {
    let mut head = Response::new(());
    head.headers_mut().insert(CONTENT_TYPE, GRPC);
    match answer {
        Ok((response, until)) => {
            if let Some(until) = until {
                requests.expire(until);
            }
            let mut trailers = HeaderMap::with_capacity(1);
            trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
            if let Ok(mut stream) = respond.send_response(head, false) {
                stream.send_data(response, false).and_then(|()| stream.send_trailers(trailers)).ok();
            }
        }
        Err(failure) => {
            head.headers_mut().insert(GRPC_STATUS, failure.code.into());
            head.headers_mut().insert(GRPC_MESSAGE, HeaderValue::from_static(failure.message));
            respond.send_response(head, true).ok();
        }
    }
}

#[cfg(test)]
mod tests;
