//! Which addresses an ApiKey may be used from: one allowed-IP entry, and the list of them.
//!
//! Webhook, controller, verifier and command line use this one parser. It refuses everything that other parsers read in
//! different ways: leading zeros, IPv4 inside IPv6, host bits, masks. KEP-4858 refuses the same for Kubernetes itself.
//! Hand-written for that reason: `ipnet` accepts host bits, and the standard library IPv4-mapped addresses.
//!
//! ```text
//! entry     = address [ "/" length ]     at most 43 ASCII bytes of 0-9 A-F a-f : . /
//! canonical = RFC 5952 address "/" length
//! ```

mod network;
mod spelling;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

pub(crate) use self::network::is_unspecified_or_broadcast;
use self::network::{IPV4_MAPPED, ipv4_mask, ipv6_mask};
pub use self::network::{Network, Rule, canonical};
use crate::key::{begins_like_a_key, may_hold_a_key};

/// Entries of the longest list.
pub const MAX_ENTRIES: usize = 256;
/// Characters of a text that a message repeats.
const MAX_SHOWN: usize = 64;

/// Why an entry is refused: the entry, the rule that it breaks, and the nearest valid spelling.
///
/// `Display` is a sentence such as `"10.0.0.1/8" has host bits set; did you mean "10.0.0.0/8"?`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    entry: String,
    rule: Rule,
    has_port: bool,
    suggestion: Option<String>,
}

/// A list of entries: whether an address is in any of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AllowedAddresses {
    /// The entries, in the caller's order.
    networks: Box<[Network]>,
    ipv4: Ranges<u32>,
    ipv6: Ranges<u128>,
}

/// One problem of a list.
///
/// `Display` does not name the field: put [`ListRefusal::field_path`] before it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListRefusal {
    /// The list has no entries. This does not mean "any address": removing the last entry would open the key to
    /// everybody.
    #[error("the list is empty; leave the field out to allow any address")]
    Empty,
    /// More than [`MAX_ENTRIES`] entries.
    #[error("the list has {count} entries; write at most {MAX_ENTRIES}, with wider networks")]
    TooMany {
        /// Number of entries in the list.
        count: usize,
    },
    /// An entry that is refused by itself.
    #[error("{refusal}")]
    Entry {
        /// Position in the list, from 0.
        index: usize,
        /// Why the entry is refused.
        refusal: Refusal,
    },
    /// Two entries with the same canonical form.
    #[error("entries {first} and {index} are both {network}; remove one of them")]
    Duplicate {
        /// Position of the later one, from 0.
        index: usize,
        /// Position of the earlier one, from 0.
        first: usize,
        /// The network that both entries mean.
        network: Network,
    },
}

/// First and last members, ascending, with a gap between any two.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Ranges<T>(Box<[(T, T)]>);

impl Network {
    /// Reads one entry.
    ///
    /// # Errors
    /// The first [`Rule`] that the entry breaks, and the nearest valid spelling if there is one.
    pub fn parse(entry: &str) -> Result<Self, Refusal> {
        Self::read(entry).map_err(|rule| Refusal {
            entry: printable(entry),
            rule,
            has_port: spelling::without_port(entry) != entry,
            suggestion: spelling::nearest(entry),
        })
    }
}

impl FromStr for Network {
    type Err = Refusal;

    fn from_str(entry: &str) -> Result<Self, Refusal> {
        Self::parse(entry)
    }
}

impl Refusal {
    /// The entry, fit to print: control and non-ASCII characters escaped, and cut if it is long.
    pub fn entry(&self) -> &str {
        &self.entry
    }

    /// The rule that the entry breaks.
    pub fn rule(&self) -> Rule {
        self.rule
    }

    /// A valid entry that was probably meant.
    pub fn suggestion(&self) -> Option<&str> {
        self.suggestion.as_deref()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (problem, remedy) = match self.has_port {
            true => ("has a port", "write the address without it"),
            false => self.rule.problem_and_remedy(),
        };
        write!(f, "\"{}\" {problem}; ", self.entry)?;
        match &self.suggestion {
            Some(suggestion) => write!(f, "did you mean \"{suggestion}\"?"),
            None => f.write_str(remedy),
        }
    }
}

impl std::error::Error for Refusal {}

impl AllowedAddresses {
    /// Reads a list of entries.
    ///
    /// # Errors
    /// All problems, in the order of the entries. Of a list that is too long, only the first [`MAX_ENTRIES`] entries are
    /// checked.
    pub fn parse(entries: &[impl AsRef<str>]) -> Result<Self, Vec<ListRefusal>> {
        let mut problems = Vec::new();
        match entries.len() {
            0 => problems.push(ListRefusal::Empty),
            1..=MAX_ENTRIES => {}
            count => problems.push(ListRefusal::TooMany { count }),
        }
        let mut networks = Vec::new();
        let mut first_positions = HashMap::new();
        for (index, entry) in entries.iter().take(MAX_ENTRIES).enumerate() {
            match Network::parse(entry.as_ref()) {
                Err(refusal) => problems.push(ListRefusal::Entry { index, refusal }),
                Ok(network) => match first_positions.entry(network) {
                    Entry::Occupied(position) => {
                        let first = *position.get();
                        problems.push(ListRefusal::Duplicate { index, first, network });
                    }
                    Entry::Vacant(position) => {
                        position.insert(index);
                        networks.push(network);
                    }
                },
            }
        }
        if problems.is_empty() { Ok(Self::of(networks)) } else { Err(problems) }
    }

    /// Whether `address`, in [`canonical`] form, is in one of the entries. Does not allocate.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.ipv4.contains(address.to_bits()),
            IpAddr::V6(address) => self.ipv6.contains(address.to_bits()),
        }
    }

    /// The entries in the caller's order.
    pub fn networks(&self) -> &[Network] {
        &self.networks
    }

    /// Whether the list allows every IPv4 client, by one entry or by several together.
    pub fn covers_ipv4(&self) -> bool {
        let multicast = (0xe000_0000, 0xefff_ffff);
        self.ipv4.cover((0, u32::MAX), &[(0, 0), multicast, (u32::MAX, u32::MAX)])
    }

    /// Whether the list allows every IPv6 client, by one entry or by several together.
    pub fn covers_ipv6(&self) -> bool {
        let multicast = (0xff << 120, u128::MAX);
        self.ipv6.cover((0, u128::MAX), &[(0, 0), (IPV4_MAPPED, IPV4_MAPPED | 0xffff_ffff), multicast])
    }

    /// The canonical forms of the entries, in the caller's order.
    pub fn canonical_entries(&self) -> Vec<String> {
        self.networks.iter().map(Network::to_string).collect()
    }

    fn of(networks: Vec<Network>) -> Self {
        let (mut ipv4, mut ipv6) = (Vec::new(), Vec::new());
        for network in &networks {
            match network.address {
                IpAddr::V4(address) => {
                    let first = address.to_bits();
                    ipv4.push((first, first | !ipv4_mask(network.prefix_length)));
                }
                IpAddr::V6(address) => {
                    let first = address.to_bits();
                    ipv6.push((first, first | !ipv6_mask(network.prefix_length)));
                }
            }
        }
        Self { networks: networks.into(), ipv4: Ranges::merged(ipv4), ipv6: Ranges::merged(ipv6) }
    }
}

impl ListRefusal {
    /// The position of the entry, from 0. `None` if the problem is about the whole list.
    pub fn index(&self) -> Option<usize> {
        match self {
            Self::Empty | Self::TooMany { .. } => None,
            Self::Entry { index, .. } | Self::Duplicate { index, .. } => Some(*index),
        }
    }

    /// The field path of the problem, for a list in `field`: `spec.allowedIPs[2]`, or `spec.allowedIPs`.
    pub fn field_path(&self, field: &str) -> String {
        match self.index() {
            Some(index) => format!("{field}[{index}]"),
            None => field.to_owned(),
        }
    }
}

impl<T: Copy + Ord + Into<u128>> Ranges<T> {
    fn merged(mut ranges: Vec<(T, T)>) -> Self {
        ranges.sort_unstable();
        let mut merged: Vec<(T, T)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(previous) if first.into() <= previous.1.into().saturating_add(1) => {
                    previous.1 = previous.1.max(last);
                }
                _ => merged.push((first, last)),
            }
        }
        Self(merged.into())
    }

    /// Whether these ranges cover `whole`, except for the addresses of `nobody`, which no entry can name.
    fn cover(&self, whole: (T, T), nobody: &[(T, T)]) -> bool {
        !self.0.is_empty() && *Self::merged([&*self.0, nobody].concat()).0 == [whole]
    }

    fn contains(&self, member: T) -> bool {
        let after = self.0.partition_point(|(first, _)| *first <= member);
        let candidate = after.checked_sub(1).and_then(|index| self.0.get(index));
        candidate.is_some_and(|(_, last)| member <= *last)
    }
}

/// `text`, safe to print between quotes in a message, log or terminal: escaped, and cut if it is long. A text that may be
/// a key in the wrong place is not repeated.
pub(crate) fn printable(text: &str) -> String {
    shown(text, char::escape_default)
}

/// Like [`printable`], but letters of all languages stay as written. Not for texts in which letters that look alike must
/// be told apart.
pub(crate) fn as_written(text: &str) -> String {
    shown(text, char::escape_debug)
}

fn shown<E: Iterator<Item = char>>(text: &str, escape: impl Fn(char) -> E) -> String {
    let mut shown = String::new();
    if begins_like_a_key(text) || may_hold_a_key(text) {
        return "(not repeated here)".to_owned();
    }
    for character in text.chars() {
        if shown.len() >= MAX_SHOWN {
            shown.push_str("...");
            break;
        }
        shown.extend(escape(character));
    }
    shown
}

#[cfg(test)]
mod tests;
