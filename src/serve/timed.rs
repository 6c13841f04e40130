//! How long a client may take: to send the head of a request, to read an answer, and between two requests. And how long an
//! answer may take, if it is true for a time only.
//! Hand-written, because the timer of hyper covers heads alone: neither answers that nobody reads, nor pauses between requests.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant as Moment};

use keywright_core::fence;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use crate::clock;

/// A connection that fails once its client takes too long.
///
/// A limit is enforced between once and twice its length. The timer is left alone while requests come: resetting it for
/// each would cost more than the decision on the request.
pub struct Timed<IO> {
    io: IO,
    timeouts: Timeouts,
    requests: Requests,
    /// The number of answers when everything was sent.
    sent: u32,
    read_timer: Timer,
    write_timer: Timer,
}

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Until the first byte of a request.
    pub idle: Duration,
    /// From the first byte of a request to the end of its head.
    pub head: Duration,
    /// To read any part of an answer.
    pub write: Duration,
}

/// What happens on one connection. Shared by the service, which notes requests and answers, by the [`Timed`] socket, and by
/// the listener, which closes idle connections.
#[derive(Clone, Debug)]
pub struct Requests(Arc<Progress>);

/// Written by the connection's thread only, so plain stores are enough.
#[derive(Debug)]
struct Progress {
    /// An [`Activity`].
    activity: AtomicU8,
    /// How many times all requests were answered.
    answers: AtomicU32,
    /// Whether an answer waits for its client to read it.
    is_blocked: AtomicBool,
    opened: Moment,
    /// When the last answer was sent: microseconds after `opened`.
    answered: AtomicU64,
    /// Until when the answers that wait to be sent are true, in nanoseconds since the boot. [`ALWAYS`] if there are none.
    until: AtomicU64,
    /// Whether nothing has waited to be sent since the last answer.
    is_sent: AtomicBool,
}

/// Later than any moment.
const ALWAYS: u64 = u64::MAX;

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Activity {
    /// It waits for the first byte of a request.
    Idle,
    /// The head of a request is arriving.
    Head,
    /// A request is being answered.
    Busy,
}

/// One period of an [`Activity`]: the activity, and the number of answers before it.
type Period = (Activity, u32);

/// Runs out once a period has lasted for its limit.
#[derive(Debug, Default)]
struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    period: Option<Period>,
}

impl Requests {
    /// No requests yet, on a connection that was opened at this moment.
    pub fn new(opened: Moment) -> Self {
        let (activity, answers, is_blocked, answered) = Default::default();
        let until = AtomicU64::new(ALWAYS);
        let is_sent = AtomicBool::new(true);
        Self(Arc::new(Progress { activity, answers, is_blocked, opened, answered, until, is_sent }))
    }

    /// The head of a request is complete. No effect while another request is being answered.
    pub fn begin(&self) {
        self.set(Activity::Busy);
    }

    /// All requests are answered. No effect if there were none.
    pub fn end(&self) {
        if self.activity() == Activity::Busy {
            self.rest();
            self.0.answers.store(self.count().wrapping_add(1), Ordering::Relaxed);
            self.set(Activity::Idle);
        }
    }

    /// How many times all requests were answered. The same number twice means that no request was answered in between.
    pub fn count(&self) -> u32 {
        self.0.answers.load(Ordering::Relaxed)
    }

    /// Since when the connection has been idle: since the client has read the last answer, or the connection was opened.
    /// `None` while a request is being answered, or an answer waits to be read. An incomplete head or TLS handshake counts
    /// as idle.
    pub fn idle_since(&self) -> Option<Moment> {
        let is_busy = self.activity() == Activity::Busy || self.0.is_blocked.load(Ordering::Relaxed);
        let answered = Duration::from_micros(self.0.answered.load(Ordering::Relaxed));
        (!is_busy).then(|| self.0.opened + answered)
    }

    /// The answer that comes next is true until this moment. If it is not sent by then, the connection is closed instead: this
    /// process may have been stopped in between, for any time.
    pub fn expire(&self, until: fence::Moment) {
        let until = u64::try_from(until.time().as_nanos()).unwrap_or(ALWAYS);
        self.0.until.store(until.min(self.0.until.load(Ordering::Relaxed)), Ordering::Relaxed);
        self.0.is_sent.store(false, Ordering::Relaxed);
    }

    /// The connection is being read again. All answers may have taken several writes, with a flush after each.
    fn forget_sent(&self) {
        if self.0.is_sent.load(Ordering::Relaxed) {
            self.0.until.store(ALWAYS, Ordering::Relaxed);
        }
    }

    /// Whether an answer waits that is not true any more.
    fn is_expired(&self) -> bool {
        let until = self.0.until.load(Ordering::Relaxed);
        until != ALWAYS && clock::moment() >= fence::Moment::since_boot(Duration::from_nanos(until))
    }

    /// The first bytes of a request's head have arrived.
    fn receive(&self) {
        if self.activity() == Activity::Idle {
            self.set(Activity::Head);
        }
    }

    fn activity(&self) -> Activity {
        match self.0.activity.load(Ordering::Relaxed) {
            activity if activity == Activity::Idle as u8 => Activity::Idle,
            activity if activity == Activity::Head as u8 => Activity::Head,
            _ => Activity::Busy,
        }
    }

    fn set(&self, activity: Activity) {
        self.0.activity.store(activity as u8, Ordering::Relaxed);
    }

    fn period(&self) -> Period {
        (self.activity(), self.count())
    }

    /// An answer waits to be read.
    fn block(&self) {
        self.0.is_blocked.store(true, Ordering::Relaxed);
    }

    /// All answers are sent.
    fn unblock(&self) {
        self.0.is_sent.store(true, Ordering::Relaxed);
        if self.0.is_blocked.load(Ordering::Relaxed) {
            self.rest();
            self.0.is_blocked.store(false, Ordering::Relaxed);
        }
    }

    /// The connection is idle from now on.
    fn rest(&self) {
        let microseconds = u64::try_from(self.0.opened.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.0.answered.store(microseconds, Ordering::Relaxed);
    }
}

impl<IO> Timed<IO> {
    /// Limits `io`, on which `requests` come.
    pub fn new(io: IO, timeouts: Timeouts, requests: Requests) -> Self {
        let (sent, read_timer, write_timer) = Default::default();
        Self { io, timeouts, requests, sent, read_timer, write_timer }
    }

    /// Ready once the client has taken too long to write.
    fn poll_late(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let period = self.requests.period();
        let limit = match period {
            (Activity::Idle, _) => self.timeouts.idle,
            (Activity::Head, _) => self.timeouts.head,
            (Activity::Busy, _) => return Poll::Pending, // bodies have a limit of their own
        };
        self.read_timer.poll(period, limit, context)
    }
}

impl Timer {
    fn poll(&mut self, period: Period, limit: Duration, context: &mut Context<'_>) -> Poll<()> {
        let begins_head = period.0 == Activity::Head && self.period != Some(period);
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep(limit)));
        if begins_head {
            sleep.as_mut().reset(Instant::now() + limit);
        }
        let known = self.period.get_or_insert(period);
        if begins_head {
            *known = period;
        }
        while sleep.as_mut().poll(context).is_ready() {
            if *known == period {
                return Poll::Ready(());
            }
            *known = period;
            sleep.as_mut().reset(Instant::now() + limit);
        }
        Poll::Pending
    }
}

fn expired() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the answer is not true any more")
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the client took too long")
}

impl<IO: AsyncRead + Unpin> AsyncRead for Timed<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.requests.forget_sent();
        let before = buffer.filled().len();
        match Pin::new(&mut self.io).poll_read(context, buffer) {
            Poll::Ready(read) => {
                if buffer.filled().len() > before {
                    self.requests.receive();
                }
                Poll::Ready(read)
            }
            Poll::Pending => self.poll_late(context).map(|()| Err(late())),
        }
    }
}

impl<IO: AsyncWrite + Unpin> Timed<IO> {
    /// Runs the timer while nothing can be written.
    fn limited<T>(&mut self, written: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            if self.write_timer.sleep.is_some() {
                self.write_timer = Timer::default();
            }
            return written;
        }
        self.requests.0.is_sent.store(false, Ordering::Relaxed);
        // The waiting bytes may be an acknowledgement of HTTP/2 alone, which does not keep a connection from being closed.
        if self.sent != self.requests.count() {
            self.requests.block();
        }
        let period = (Activity::Busy, 0);
        self.write_timer.poll(period, self.timeouts.write, context).map(|()| Err(late()))
    }
}

/// Not vectored: messages are short, and go out with one `send` if they are in one buffer. Without vectored writes, h2 too
/// puts short messages into one buffer.
impl<IO: AsyncWrite + Unpin> AsyncWrite for Timed<IO> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.requests.is_expired() {
            return Poll::Ready(Err(expired()));
        }
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        self.limited(written, context)
    }

    /// What TLS has encrypted may not be sent yet.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.requests.is_expired() {
            return Poll::Ready(Err(expired()));
        }
        let written = Pin::new(&mut self.io).poll_flush(context);
        if written.is_ready() {
            self.sent = self.requests.count();
            self.requests.unblock();
        }
        self.limited(written, context)
    }

    /// Neither here: this sends what is left.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.requests.is_expired() {
            return Poll::Ready(Err(expired()));
        }
        let written = Pin::new(&mut self.io).poll_shutdown(context);
        self.limited(written, context)
    }
}
