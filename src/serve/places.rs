//! PURE. Which connections hold a listener's places, and which one makes room for a new one. A place's holder tells whether
//! and since when it is idle.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;
use std::time::Instant;

/// A client by its address: one IPv4 address, or one IPv6 /64 network, because a client usually has a whole /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Client(IpAddr);

/// The share of a listener's places that one client may hold, written as in the flag `--connections-per-client`: `25%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share(u8);

/// The text is not a [`Share`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write a share of each listener's places, from 1% to 100%, such as 25%")]
pub struct InvalidShare;

/// The holder of a place.
pub trait Occupant {
    /// Since when it has been idle. `None` while it is busy and must not be closed.
    fn idle_since(&self) -> Option<Instant>;
}

/// The held places. A connection that was asked to make room does not count, although it may last a moment longer.
#[derive(Debug)]
pub struct Places<T> {
    per_client: usize,
    clients: HashMap<Client, BTreeMap<u64, T>>,
    entered: u64,
}

/// Names a held place: its client, and a number in the order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    client: Client,
    number: u64,
}

/// What happens to a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// There is a free place.
    Free,
    /// This other connection must make room first.
    InsteadOf(Ticket, Cause),
    /// All places are held by busy connections: the new one waits.
    Full,
    /// The client holds its full share, and all its connections are busy: the new one is closed.
    Refused,
}

/// Why a connection is closed for a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// All places of the listener are held.
    ListenerFull,
    /// The client holds its full share.
    ClientFull,
}

impl Client {
    /// The client that connects from `peer`.
    pub fn of(peer: IpAddr) -> Self {
        Self(match peer.to_canonical() {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        })
    }
}

impl Share {
    /// A quarter: to take all places, a client needs four addresses.
    pub const DEFAULT: Self = Self(25);

    /// This share of `places`: at least one.
    pub fn of(self, places: usize) -> usize {
        (places * usize::from(self.0) / 100).max(1)
    }
}

impl FromStr for Share {
    type Err = InvalidShare;

    fn from_str(text: &str) -> Result<Self, InvalidShare> {
        let digits = text.strip_suffix('%').filter(|digits| digits.bytes().all(|octet| octet.is_ascii_digit()));
        let percent = digits.and_then(|digits| digits.parse().ok());
        percent.filter(|percent| (1..=100).contains(percent)).map(Self).ok_or(InvalidShare)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

impl<T: Occupant> Places<T> {
    /// No held places. A client may hold at most `per_client`, and at least one.
    pub fn new(per_client: usize) -> Self {
        Self { per_client: per_client.max(1), clients: HashMap::new(), entered: 0 }
    }

    /// What happens to a new connection of `client`. The longest idle connection makes room if the listener `is_full`, or
    /// the client's own if the client holds its full share.
    pub fn admit(&self, client: Client, is_full: bool) -> Admission {
        let own = self.clients.get(&client);
        if own.map_or(0, BTreeMap::len) >= self.per_client {
            let longest = longest_idle(own.map(|own| (client, own)).into_iter());
            return longest.map_or(Admission::Refused, |ticket| Admission::InsteadOf(ticket, Cause::ClientFull));
        }
        if !is_full {
            return Admission::Free;
        }
        let longest = longest_idle(self.clients.iter().map(|(client, held)| (*client, held)));
        longest.map_or(Admission::Full, |ticket| Admission::InsteadOf(ticket, Cause::ListenerFull))
    }

    /// Gives `occupant` a place.
    pub fn enter(&mut self, client: Client, occupant: T) -> Ticket {
        let ticket = Ticket { client, number: self.entered };
        self.entered += 1;
        self.clients.entry(client).or_default().insert(ticket.number, occupant);
        ticket
    }

    /// Frees a place. `None` if that was done before.
    pub fn leave(&mut self, ticket: Ticket) -> Option<T> {
        let held = self.clients.get_mut(&ticket.client)?;
        let occupant = held.remove(&ticket.number);
        if held.is_empty() {
            self.clients.remove(&ticket.client);
        }
        occupant
    }
}

/// The longest idle connection. It looks at all of them, which is rare. Keeping them in order would cost every request
/// more.
fn longest_idle<'p, T: Occupant + 'p>(clients: impl Iterator<Item = (Client, &'p BTreeMap<u64, T>)>) -> Option<Ticket> {
    let held = clients.flat_map(|(client, held)| {
        held.iter().map(move |(number, occupant)| (occupant, Ticket { client, number: *number }))
    });
    let idle = held.filter_map(|(occupant, ticket)| Some((occupant.idle_since()?, ticket.number, ticket)));
    idle.min().map(|(.., ticket)| ticket)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// Idle since this many seconds after the start, or busy.
    #[derive(Clone, Copy, Debug)]
    struct Held {
        start: Instant,
        idle_since: Option<u8>,
    }

    impl Occupant for Held {
        fn idle_since(&self) -> Option<Instant> {
            self.idle_since.map(|seconds| self.start + Duration::from_secs(seconds.into()))
        }
    }

    fn client(address: &str) -> Client {
        Client::of(address.parse().unwrap())
    }

    #[test]
    fn a_client_is_an_ipv4_address_or_an_ipv6_network_of_64_bits() {
        for (one, other, are_the_same) in [
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("192.0.2.1", "::ffff:192.0.2.1", true),
            ("::ffff:192.0.2.1", "::ffff:192.0.2.2", false),
            ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
            ("::1", "::2", true),
        ] {
            assert_eq!(client(one) == client(other), are_the_same, "{one} {other}");
        }
    }

    #[test]
    fn a_share_is_written_in_percent() {
        for (text, of_a_thousand) in [("1%", 10), ("25%", 250), ("100%", 1000)] {
            let share: Share = text.parse().unwrap();
            assert_eq!((share.of(1000), share.to_string()), (of_a_thousand, text.to_owned()));
        }
        assert_eq!(Share::DEFAULT.of(2), 1, "never none");
        for text in ["", "%", "0%", "101%", "256%", "25", "+25%", "25 %", "2.5%", "-1%"] {
            assert_eq!(text.parse::<Share>(), Err(InvalidShare), "{text:?}");
        }
    }

    #[test]
    fn whoever_has_been_idle_longest_makes_room() {
        let start = Instant::now();
        let held = |idle_since| Held { start, idle_since };
        let (one, other, third) = (client("192.0.2.1"), client("192.0.2.2"), client("192.0.2.3"));
        let mut places = Places::new(2);
        let busy = places.enter(one, held(None));
        let idle = places.enter(one, held(Some(7)));
        let longest = places.enter(other, held(Some(3)));
        assert_eq!(places.admit(third, false), Admission::Free);
        assert_eq!(places.admit(third, true), Admission::InsteadOf(longest, Cause::ListenerFull));
        assert_eq!(places.admit(one, true), Admission::InsteadOf(idle, Cause::ClientFull), "its own");
        assert_eq!(places.admit(one, false), Admission::InsteadOf(idle, Cause::ClientFull), "full or not");
        places.leave(idle);
        assert_eq!(places.admit(one, true), Admission::InsteadOf(longest, Cause::ListenerFull));
        places.enter(one, held(None));
        assert_eq!(places.admit(one, false), Admission::Refused, "its own are busy");
        places.leave(longest);
        assert_eq!(places.admit(third, true), Admission::Full, "all are busy");
        places.leave(busy);
        assert_eq!(places.admit(one, false), Admission::Free);
    }

    proptest! {
        /// Against a plain list.
        #[test]
        fn no_client_holds_more_than_its_share_and_nobody_busy_is_closed(
            total in 1_usize..12, per_client in 1_usize..6,
            newcomers in prop::collection::vec((0_u8..4, prop::option::of(any::<u8>()), any::<bool>()), 0..60),
        ) {
            let start = Instant::now();
            let mut places = Places::<Held>::new(per_client);
            let mut list: Vec<(Ticket, u8, Option<u8>)> = Vec::new();
            for (address, idle_since, leaves) in newcomers {
                if leaves && !list.is_empty() {
                    let (ticket, ..) = list.remove(list.len() / 2);
                    prop_assert!(places.leave(ticket).is_some());
                    prop_assert!(places.leave(ticket).is_none(), "once");
                }
                let client = Client::of(IpAddr::from([192, 0, 2, address]));
                let own = |entry: &&(Ticket, u8, Option<u8>)| entry.1 == address;
                let is_over = list.iter().filter(own).count() == per_client;
                let choice = list.iter().filter(|entry| !is_over || own(entry));
                let longest = choice.filter_map(|entry| Some((entry.2?, entry.0.number, entry.0))).min();
                let expected = match (is_over, list.len() >= total, longest) {
                    (true, _, Some((.., ticket))) => Admission::InsteadOf(ticket, Cause::ClientFull),
                    (true, _, None) => Admission::Refused,
                    (false, true, Some((.., ticket))) => Admission::InsteadOf(ticket, Cause::ListenerFull),
                    (false, true, None) => Admission::Full,
                    (false, false, _) => Admission::Free,
                };
                let admission = places.admit(client, list.len() >= total);
                prop_assert_eq!(admission, expected);
                if let Admission::InsteadOf(ticket, _) = admission {
                    prop_assert!(places.leave(ticket).unwrap().idle_since.is_some());
                    list.retain(|entry| entry.0 != ticket);
                }
                if matches!(admission, Admission::Free | Admission::InsteadOf(..)) {
                    list.push((places.enter(client, Held { start, idle_since }), address, idle_since));
                }
                prop_assert!(list.len() <= total);
                prop_assert_eq!(places.clients.values().map(BTreeMap::len).sum::<usize>(), list.len());
                prop_assert!(places.clients.values().all(|held| (1..=per_client).contains(&held.len())));
            }
        }
    }
}
