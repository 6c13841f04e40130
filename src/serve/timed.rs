//! How long a client may take: over the head of a request, over taking in an answer, and between two requests.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant as Moment};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// A connection that fails once its client takes too long.
///
/// A limit is enforced between once and twice its length: the timer is left alone while requests come, as setting it
/// anew for each would cost more than the decision on it.
pub struct Timed<IO> {
    io: IO,
    timeouts: Timeouts,
    requests: Requests,
    phase: Phase,
    /// How many requests had begun and ended when nothing was left to be sent.
    sent: u32,
    read_timer: Timer,
    write_timer: Timer,
}

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Before the first octet of a request.
    pub idle: Duration,
    /// From there to the end of its head.
    pub head: Duration,
    /// Over taking in nothing of an answer.
    pub write: Duration,
}

/// Tells a [`Timed`] when the head of a request is complete, and when its answer is; and whoever asks, whether the connection
/// is idle.
#[derive(Clone, Debug)]
pub struct Requests(Arc<Progress>);

#[derive(Debug)]
struct Progress {
    /// How many requests began and ended.
    steps: AtomicU32,
    /// Whether an answer waits for its client to take it in.
    is_blocked: AtomicBool,
    opened: Moment,
    /// When the last answer was through: microseconds after `opened`.
    answered: AtomicU64,
}

/// What a connection waits for. The number is that of the requests so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Before the first octet of a request.
    Idle(u32),
    /// In the middle of its head.
    Head(u32),
    /// A request is being answered.
    Busy(u32),
}

/// Runs out once a phase has lasted for its limit.
#[derive(Debug, Default)]
struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    phase: Option<Phase>,
}

impl Requests {
    /// None yet, on a connection that is new at this moment.
    pub fn new(opened: Moment) -> Self {
        let (steps, is_blocked, answered) = Default::default();
        Self(Arc::new(Progress { steps, is_blocked, opened, answered }))
    }

    /// The head of a request is complete. Nothing new where one is being answered already.
    pub fn begin(&self) {
        if self.count().is_multiple_of(2) {
            self.step();
        }
    }

    /// All requests that have begun are answered.
    pub fn end(&self) {
        if !self.count().is_multiple_of(2) {
            self.rest();
            self.step();
        }
    }

    /// How many began and ended: odd while one is being answered.
    pub fn count(&self) -> u32 {
        self.0.steps.load(Ordering::Relaxed)
    }

    /// Since when nothing has been asked: since the last answer was taken in, or the connection opened. `None` while a request
    /// is being answered, and while an answer waits to be taken in. What comes in pieces, as a head or a TLS handshake, is
    /// nothing before it is whole.
    pub fn idle_since(&self) -> Option<Moment> {
        let is_busy = !self.count().is_multiple_of(2) || self.0.is_blocked.load(Ordering::Relaxed);
        let answered = Duration::from_micros(self.0.answered.load(Ordering::Relaxed));
        (!is_busy).then(|| self.0.opened + answered)
    }

    /// Only one thread ever does.
    fn step(&self) {
        self.0.steps.store(self.count().wrapping_add(1), Ordering::Relaxed);
    }

    /// An answer waits to be taken in.
    fn block(&self) {
        self.0.is_blocked.store(true, Ordering::Relaxed);
    }

    /// All answers are taken in.
    fn unblock(&self) {
        if self.0.is_blocked.load(Ordering::Relaxed) {
            self.rest();
            self.0.is_blocked.store(false, Ordering::Relaxed);
        }
    }

    fn rest(&self) {
        let microseconds = u64::try_from(self.0.opened.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.0.answered.store(microseconds, Ordering::Relaxed);
    }
}

impl<IO> Timed<IO> {
    /// Limits `io`, on which `requests` come.
    pub fn new(io: IO, timeouts: Timeouts, requests: Requests) -> Self {
        let (sent, read_timer, write_timer) = Default::default();
        Self { io, timeouts, requests, phase: Phase::Idle(0), sent, read_timer, write_timer }
    }

    fn current_phase(&self) -> Phase {
        let requests = self.requests.count();
        match self.phase {
            _ if !requests.is_multiple_of(2) => Phase::Busy(requests),
            Phase::Head(begun) if begun == requests => self.phase,
            _ => Phase::Idle(requests),
        }
    }

    /// Ready once the client has taken too long to write.
    fn poll_late(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.phase = self.current_phase();
        let limit = match self.phase {
            Phase::Idle(_) => self.timeouts.idle,
            Phase::Head(_) => self.timeouts.head,
            Phase::Busy(_) => return Poll::Pending, // bodies have a limit of their own
        };
        self.read_timer.poll(self.phase, limit, context)
    }
}

impl Timer {
    fn poll(&mut self, phase: Phase, limit: Duration, context: &mut Context<'_>) -> Poll<()> {
        let begins_head = matches!(phase, Phase::Head(_)) && self.phase != Some(phase);
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep(limit)));
        if begins_head {
            sleep.as_mut().reset(Instant::now() + limit);
        }
        let known = self.phase.get_or_insert(phase);
        if begins_head {
            *known = phase;
        }
        while sleep.as_mut().poll(context).is_ready() {
            if *known == phase {
                return Poll::Ready(());
            }
            *known = phase;
            sleep.as_mut().reset(Instant::now() + limit);
        }
        Poll::Pending
    }
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
        let before = buffer.filled().len();
        match Pin::new(&mut self.io).poll_read(context, buffer) {
            Poll::Ready(read) => {
                if buffer.filled().len() > before
                    && let Phase::Idle(requests) = self.current_phase()
                {
                    self.phase = Phase::Head(requests);
                }
                Poll::Ready(read)
            }
            Poll::Pending => self.poll_late(context).map(|()| Err(late())),
        }
    }
}

impl<IO: AsyncWrite + Unpin> Timed<IO> {
    /// The timer runs from the moment in which nothing could be written to the next in which something could.
    fn limited<T>(&mut self, written: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            if self.write_timer.sleep.is_some() {
                self.write_timer = Timer::default();
            }
            return written;
        }
        // What waits may also be an acknowledgement of HTTP/2, which nobody is to be spared for.
        if self.sent != self.requests.count() {
            self.requests.block();
        }
        let phase = Phase::Busy(0);
        self.write_timer.poll(phase, self.timeouts.write, context).map(|()| Err(late()))
    }
}

/// Not vectored: what is written is short, and goes out with one `send` once it is in one piece. h2 too puts short messages
/// one behind the other only then, and writes each by itself otherwise.
impl<IO: AsyncWrite + Unpin> AsyncWrite for Timed<IO> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(context, octets);
        self.limited(written, context)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let written = Pin::new(&mut self.io).poll_flush(context);
        if written.is_ready() {
            self.sent = self.requests.count();
            self.requests.unblock();
        }
        self.limited(written, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let written = Pin::new(&mut self.io).poll_shutdown(context);
        self.limited(written, context)
    }
}
