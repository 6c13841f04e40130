//! What clients may take of a server: bytes, time, connections. Beyond that, they are refused, closed, or wait.

use std::time::Duration;

use super::places::Share;

/// Bodies that are read and dropped at the same time. Further ones wait, unread. Each takes 64 KiB.
pub const BODIES_AT_ONCE: usize = 256;

/// Limits for clients. Beyond them, connections are closed or wait to be accepted.
///
/// A request may also have at most 100 header lines (431): hyper's own limit.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a request's head, at least 8192. Longer: 431.
    pub head: usize,
    /// Bytes of a body that are read and dropped. Longer: answered, and the connection is closed.
    pub body: usize,
    /// How long a head may take to arrive, from its first byte on, and a client to read a part of an answer. Longer, up to
    /// twice that: closed.
    pub read_timeout: Duration,
    /// How long a connection may be idle between requests. Longer, up to twice that: closed. The proxy should close first: a
    /// request that it sends while the connection is being closed here is lost.
    pub idle_timeout: Duration,
    /// Connections at the same time. For one more, the longest idle connection is closed. If none is idle, new ones wait in
    /// the backlog of the operating system.
    pub connections: usize,
    /// Connections of one client address. For one more, the client's longest idle connection is closed. If none is idle, the
    /// new one is closed.
    pub connections_per_client: usize,
    /// How long connections are still accepted after shutdown began, each for one more request. A proxy keeps connections
    /// open, and only an answer can tell it to close one.
    pub leave_taking: Duration,
    /// How long shutdown then waits for requests in flight.
    pub drain: Duration,
}

/// Limits for the bodies of requests. All bodies together take at most
/// `small * Limits::connections + largest * large_at_once` bytes.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// Bytes of the largest body. Longer: 413.
    pub largest: usize,
    /// Bytes of a body that every connection may hold.
    pub small: usize,
    /// How many longer bodies may be read at the same time. Further ones wait, unread.
    pub large_at_once: usize,
    /// How long a body may take to arrive, including that wait. Longer: 408.
    pub timeout: Duration,
}

impl Limits {
    /// These limits, with this share of the connections for each client.
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
            // Longer than nginx (60 s) and the recipes for other proxies keep a connection.
            idle_timeout: Duration::from_secs(300),
            connections: 10_000,
            connections_per_client: 2_500,
            leave_taking: Duration::from_secs(3),
            drain: Duration::from_secs(10),
        }
    }
}
