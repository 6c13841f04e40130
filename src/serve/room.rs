//! The places of a listener: lets connections in, asks others to make room, and counts them. `places.rs` decides which.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::places::{Admission, Cause, Client, Occupant, Places, Ticket};
use super::timed::Requests;

/// How long to wait for a connection that was asked to make room, before another one is asked. Also how long to wait before
/// the next try if all are busy.
const ROOM_PAUSE: Duration = Duration::from_millis(20);

/// How long all connections of a listener may be busy before the program is not ready.
const FULL_TOLERANCE: Duration = Duration::from_secs(5);

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

/// Metrics of all listeners of a program.
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
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self { held: Family::default(), closed: Family::default() };
        registry.register("connections", "Open connections of a listener", metrics.held.clone());
        registry.register(
            "connections_closed",
            "Connections closed to make room for others, or refused because their client has too many",
            metrics.closed.clone(),
        );
        metrics
    }

    /// The metrics of one listener, which has the name of its address flag. All exist from the start, at 0.
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
    /// Whether new connections find room.
    ///
    /// # Errors
    /// If all connections have been busy for more than 5 seconds.
    pub fn readiness(&self, now: Instant) -> Result<(), String> {
        let full_for = self.full_since().map(|since| now.saturating_duration_since(since));
        match full_for.filter(|full_for| *full_for > FULL_TOLERANCE) {
            Some(full_for) => Err(format!(
                "all connections of the listener {} have been busy for {} s: add replicas, or find the clients that are slow",
                self.name,
                full_for.as_secs()
            )),
            None => Ok(()),
        }
    }

    fn full_since(&self) -> Option<Instant> {
        *self.full_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_full(&self, is_full: bool) {
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
pub(super) struct Room {
    held: Mutex<Places<Guest>>,
    /// One permit for each place. A connection that is making room still has one.
    free: Arc<Semaphore>,
    occupancy: Occupancy,
}

/// A connection, and how it is asked to make room.
pub(super) struct Guest {
    pub(super) requests: Requests,
    pub(super) make_room: CancellationToken,
}

/// The place of one connection. Dropping it frees the place.
pub(super) struct Place {
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
    /// A room for `connections` connections, of which one client may have `connections_per_client`.
    pub(super) fn new(connections: usize, connections_per_client: usize, occupancy: Occupancy) -> Self {
        let held = Mutex::new(Places::new(connections_per_client));
        Self { held, free: Arc::new(Semaphore::new(connections)), occupancy }
    }

    fn held<T>(&self, act: impl FnOnce(&mut Places<Guest>) -> T) -> T {
        act(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A place for a connection of `client`. Waits until another has made room, if need be. `None` if the client already has
    /// its full share of busy connections.
    pub(super) async fn place(self: &Arc<Self>, client: Client, guest: Guest) -> Option<Place> {
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
                Admission::Full => self.occupancy.note_full(true),
                Admission::Refused => {
                    self.occupancy.refused.inc();
                    return None;
                }
            }
            // The semaphore is never closed, so this is a permit or a timeout.
            if let Ok(permit) = timeout(ROOM_PAUSE, Arc::clone(&self.free).acquire_owned()).await {
                break permit.ok()?;
            }
        };
        self.occupancy.note_full(false);
        self.occupancy.held.inc();
        let ticket = self.held(|places| places.enter(client, guest));
        Some(Place { room: Arc::clone(self), ticket, _permit: permit })
    }
}

/// Runs also if the connection's task panics.
impl Drop for Place {
    fn drop(&mut self) {
        self.room.held(|places| places.leave(self.ticket));
        self.room.occupancy.held.dec();
    }
}
