//! The client: one thread, requests encoded beforehand, cheaper than any server that it asks.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::bytes::{FRAME_HEAD, Template, Verdict, check_response, frame, frame_length, http_answer};
use keywright_measure::population::{KeyText, Random};

/// What to ask, and how.
pub struct Load<'k> {
    pub address: SocketAddr,
    pub protocol: Protocol,
    pub connections: usize,
    /// One of them at random in each request.
    pub keys: &'k [KeyText],
    /// Requests a second, sent when they are due whatever became of those before. `None`: each connection and stream asks
    /// again as soon as it was answered.
    pub rate: Option<f64>,
    pub duration: Duration,
    /// Whether something that is measured is on the client's core too, and is to have it while the client waits. Otherwise
    /// the client never sleeps while it asks: the server would have to wake it, which costs what a request does on a
    /// virtual machine, and comes as often as chance has it.
    pub shares_its_core: bool,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Protocol {
    Http { path: &'static str },
    Grpc { streams: usize },
}

/// What came of it.
#[derive(Default)]
pub struct Outcome {
    pub allowed: usize,
    pub refused: usize,
    pub other: usize,
    pub elapsed: Duration,
    /// From when a request was to be sent to its answer.
    pub latencies: Vec<Duration>,
    /// Part of the time that the client was not waiting.
    pub utilisation: f64,
}

impl Outcome {
    pub fn answered(&self) -> usize {
        self.allowed + self.refused + self.other
    }

    pub fn count(&self, verdict: Verdict) -> usize {
        match verdict {
            Verdict::Allowed => self.allowed,
            Verdict::Refused => self.refused,
            Verdict::Other => self.other,
        }
    }

    pub fn per_second(&self) -> f64 {
        self.answered() as f64 / self.elapsed.as_secs_f64()
    }
}

struct Connection {
    stream: TcpStream,
    input: Vec<u8>,
    filled: usize,
    output: Vec<u8>,
    written: usize,
    /// Streams, or 1 for HTTP/1.1, less the requests without an answer.
    free: usize,
    /// Requests without an answer.
    waiting: VecDeque<Waiting>,
    next_stream: u32,
    /// What the server still takes in on the connection.
    window: i64,
}

struct Waiting {
    /// The number of its stream.
    stream: u32,
    due: Instant,
    /// What the answer's DATA says; without one it is no answer to the question.
    verdict: Verdict,
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

impl Connection {
    fn open(load: &Load<'_>) -> Result<Self> {
        let stream =
            std::net::TcpStream::connect(load.address).with_context(|| format!("connecting to {}", load.address))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let (mut output, mut free) = (Vec::new(), 1);
        if let Protocol::Grpc { streams } = load.protocol {
            free = streams;
            output.extend_from_slice(PREFACE);
            frame(&mut output, 0x4, 0, &[]); // SETTINGS
            frame(&mut output, 0x8, 0, &0x3fff_0000_u32.to_be_bytes()); // WINDOW_UPDATE
        }
        Ok(Self {
            stream: TcpStream::from_std(stream),
            input: vec![0; 256 * 1024],
            filled: 0,
            output,
            written: 0,
            free,
            waiting: VecDeque::new(),
            next_stream: 1,
            window: 65_535,
        })
    }

    fn ask(&mut self, template: &Template, protocol: Protocol, key: &KeyText, due: Instant) {
        self.free -= 1;
        match protocol {
            Protocol::Http { .. } => template.write(key, &mut self.output),
            Protocol::Grpc { .. } => {
                template.write_on_stream(key, self.next_stream, &mut self.output);
                self.window -= template.data_length() as i64;
                assert!(self.window >= 0, "the server's window is used up: fewer streams");
            }
        }
        self.waiting.push_back(Waiting { stream: self.next_stream, due, verdict: Verdict::Other });
        self.next_stream += 2;
    }

    fn flush(&mut self) -> Result<()> {
        while self.written < self.output.len() {
            match self.stream.write(&self.output[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        self.output.clear();
        self.written = 0;
        Ok(())
    }

    /// Reads what is there, and hands over each answer.
    fn read(&mut self, protocol: Protocol, mut answered: impl FnMut(Verdict, Instant)) -> Result<()> {
        loop {
            ensure!(self.filled < self.input.len(), "an answer is too long");
            let room = self.input.len() - self.filled;
            match self.stream.read(&mut self.input[self.filled..]) {
                Ok(0) => anyhow::bail!("the server closed a connection"),
                Ok(count) => {
                    self.filled += count;
                    self.take_answers(protocol, &mut answered)?;
                    if count < room {
                        return Ok(()); // All that there was: epoll tells if more comes.
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn take_answers(&mut self, protocol: Protocol, answered: &mut impl FnMut(Verdict, Instant)) -> Result<()> {
        let mut start = 0;
        match protocol {
            Protocol::Http { .. } => {
                while let Some((verdict, length)) = http_answer(&self.input[start..self.filled]) {
                    start += length;
                    let waiting = self.waiting.pop_front().context("an answer without a request")?;
                    self.free += 1;
                    answered(verdict, waiting.due);
                }
            }
            Protocol::Grpc { .. } => {
                while self.filled - start >= FRAME_HEAD {
                    let end = start + FRAME_HEAD + frame_length(&self.input[start..]);
                    if end > self.filled {
                        break;
                    }
                    self.take_frame(start, end, answered)?;
                    start = end;
                }
            }
        }
        self.input.copy_within(start..self.filled, 0);
        self.filled -= start;
        Ok(())
    }

    fn take_frame(&mut self, start: usize, end: usize, answered: &mut impl FnMut(Verdict, Instant)) -> Result<()> {
        let (kind, flags) = (self.input[start + 3], self.input[start + 4]);
        let number = |at: usize| u32::from_be_bytes(self.input[at..at + 4].try_into().expect("four octets"));
        let stream = number(start + 5);
        let place = self.waiting.iter().position(|waiting| waiting.stream == stream);
        match kind {
            0x0 if end > start + FRAME_HEAD => {
                let place = place.context("DATA without a request")?;
                self.waiting[place].verdict = check_response(&self.input[start + FRAME_HEAD..end]);
            }
            0x4 if flags & 1 == 0 => frame(&mut self.output, 0x4, 1, &[]),
            0x6 if flags & 1 == 0 => {
                let payload = self.input[start + FRAME_HEAD..end].to_vec();
                frame(&mut self.output, 0x6, 1, &payload);
            }
            0x8 if stream == 0 => self.window += i64::from(number(start + FRAME_HEAD)),
            0x3 | 0x7 => anyhow::bail!("the server ended a stream or a connection"),
            _ => {}
        }
        if matches!(kind, 0x0 | 0x1) && flags & 1 == 1 {
            let waiting = place.and_then(|place| self.waiting.remove(place)).context("an answer without a request")?;
            self.free += 1;
            answered(waiting.verdict, waiting.due);
        }
        Ok(())
    }
}

/// Connections that stay open from round to round, so that all rounds meet the same.
pub struct Client<'k> {
    load: Load<'k>,
    poll: Poll,
    connections: Vec<Connection>,
    template: Template,
    random: Random,
}

impl<'k> Client<'k> {
    pub fn connect(load: Load<'k>) -> Result<Self> {
        let poll = Poll::new()?;
        let mut connections = Vec::new();
        for index in 0..load.connections {
            let mut connection = Connection::open(&load)?;
            poll.registry().register(&mut connection.stream, Token(index), Interest::READABLE)?;
            connections.push(connection);
        }
        let template = match load.protocol {
            Protocol::Http { path } => Template::http(path),
            Protocol::Grpc { .. } => Template::grpc(),
        };
        let random = Random::new(Instant::now().elapsed().as_nanos() as u64 + 77);
        Ok(Self { load, poll, connections, template, random })
    }

    /// Asks for the duration of the load, and then waits for what is still to come.
    pub fn run(&mut self) -> Result<Outcome> {
        let mut run = Run::begin(self);
        while !run.is_complete {
            run.step(true)?;
        }
        Ok(run.end())
    }

    /// Does so in turns with another client: two threads would share the core in slices that are longer than a thousand
    /// requests, and keep the server waiting in between.
    pub fn run_with(&mut self, other: &mut Client<'_>) -> Result<(Outcome, Outcome)> {
        let mut runs = (Run::begin(self), Run::begin(other));
        while !(runs.0.is_complete && runs.1.is_complete) {
            runs.0.step(false)?;
            runs.1.step(false)?;
        }
        Ok((runs.0.end(), runs.1.end()))
    }
}

/// A client at work.
struct Run<'c, 'k> {
    client: &'c mut Client<'k>,
    outcome: Outcome,
    events: Events,
    started: Instant,
    idle: Duration,
    /// Requests of a load that has a rate.
    sent: u32,
    /// The connection that the next of them goes to.
    next: usize,
    /// Everything was asked and answered.
    is_complete: bool,
}

impl<'c, 'k> Run<'c, 'k> {
    fn begin(client: &'c mut Client<'k>) -> Self {
        let events = Events::with_capacity(1024);
        let (outcome, started, idle) = (Outcome::default(), Instant::now(), Duration::ZERO);
        Self { client, outcome, events, started, idle, sent: 0, next: 0, is_complete: false }
    }

    /// Asks what is to be asked, and takes in what is there to be read.
    fn step(&mut self, may_sleep: bool) -> Result<()> {
        let now = Instant::now();
        let end = self.started + self.client.load.duration;
        let is_over = now >= end;
        if !is_over {
            self.ask(now);
        }
        for connection in &mut self.client.connections {
            connection.flush()?;
        }
        self.is_complete = is_over && self.client.connections.iter().all(|connection| connection.waiting.is_empty());
        if self.is_complete {
            return Ok(());
        }
        ensure!(now < end + Duration::from_secs(10), "requests were not answered");
        let sleeps = may_sleep && (is_over || self.client.load.rate.is_none() && self.client.load.shares_its_core);
        let patience = if sleeps { Duration::from_millis(100) } else { Duration::ZERO };
        let before = Instant::now();
        self.client.poll.poll(&mut self.events, Some(patience))?;
        let now = Instant::now();
        self.idle += now - before;
        for event in &self.events {
            self.client.connections[event.token().0].read(self.client.load.protocol, |verdict, due| {
                self.outcome.latencies.push(now - due);
                match verdict {
                    Verdict::Allowed => self.outcome.allowed += 1,
                    Verdict::Refused => self.outcome.refused += 1,
                    Verdict::Other => self.outcome.other += 1,
                }
            })?;
        }
        Ok(())
    }

    fn ask(&mut self, now: Instant) {
        let Client { load, connections, template, random, .. } = &mut *self.client;
        let mut ask = |connection: &mut Connection, due| {
            connection.ask(template, load.protocol, &load.keys[random.below(load.keys.len())], due);
        };
        let Some(rate) = load.rate else {
            for connection in connections {
                while connection.free > 0 {
                    ask(connection, now);
                }
            }
            return;
        };
        let interval = Duration::from_secs_f64(1.0 / rate);
        // In turns, beginning behind the last one, so that all connections share the load.
        let mut tried = 0;
        while self.started + interval * self.sent <= now && tried < connections.len() {
            let connection = &mut connections[self.next];
            self.next = (self.next + 1) % load.connections;
            tried += 1;
            if connection.free > 0 {
                tried = 0;
                ask(connection, self.started + interval * self.sent);
                self.sent += 1;
            }
        }
    }

    fn end(mut self) -> Outcome {
        self.outcome.elapsed = self.started.elapsed();
        self.outcome.utilisation = 1.0 - self.idle.as_secs_f64() / self.outcome.elapsed.as_secs_f64();
        self.outcome
    }
}
