//! A listener's places at work: connections are let in, asked to make room for others, and counted. Who has to go is decided in
//! `server/places.rs`.

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

/// How long to wait for a connection to end that is to make room, before another one has to; and where all are busy, before
/// the next look at them.
const ROOM_PAUSE: Duration = Duration::from_millis(20);

/// For how long a listener may be full of the busy before it is not Ready.
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
pub(super) struct Room {
    held: Mutex<Places<Guest>>,
    /// One for each place, also of those who are just making room.
    free: Arc<Semaphore>,
    occupancy: Occupancy,
}

/// A connection, and how it is asked to make room.
pub(super) struct Guest {
    pub(super) requests: Requests,
    pub(super) make_room: CancellationToken,
}

/// One connection's place, for as long as it lives.
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
    /// Room for so many connections, and so many of each client.
    pub(super) fn new(connections: usize, connections_per_client: usize, occupancy: Occupancy) -> Self {
        let held = Mutex::new(Places::new(connections_per_client));
        Self { held, free: Arc::new(Semaphore::new(connections)), occupancy }
    }

    fn held<T>(&self, act: impl FnOnce(&mut Places<Guest>) -> T) -> T {
        act(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A place for a connection of `client`, once another has made room if need be. `None` if there is not to be one.
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
