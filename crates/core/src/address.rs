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

pub mod client;
mod spelling;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::key::{begins_like_a_key, may_hold_a_key};

/// Bytes of the longest entry: a full IPv6 address and `/128`.
const MAX_ENTRY_LENGTH: usize = 43;
/// Entries of the longest list.
pub const MAX_ENTRIES: usize = 256;
/// `::ffff:0:0/96`, where IPv4 addresses stand in IPv6 (RFC 4291, 2.5.5.2).
const IPV4_MAPPED: u128 = 0xffff_0000_0000;
/// Characters of a text that a message repeats.
const MAX_SHOWN: usize = 64;

/// One allowed-IP entry: an address, or a network without host bits.
///
/// `Display` is the canonical form, such as `192.0.2.0/24` or `2001:db8::1/128`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    address: IpAddr,
    /// 0..=32 for IPv4, 0..=128 for IPv6.
    prefix_length: u8,
}

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

/// A rule for entries. The variants are in the order of the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// At most 43 bytes.
    TooLong,
    /// One address or network in an entry, not several with commas.
    Comma,
    /// Only digits, hexadecimal letters, `:`, `.` and `/`: no name, zone, port, range or space.
    BadCharacter,
    /// No IPv4 notation inside IPv6.
    MixedNotation,
    /// No leading zero in an IPv4 address; some programs read such a number as octal.
    LeadingZero,
    /// An IPv4 or IPv6 address, written in full.
    BadAddress,
    /// A decimal length up to 32 or 128, without sign or leading zero.
    BadPrefix,
    /// No bit set to the right of the length.
    HostBits,
    /// No overlap with `::ffff:0:0/96`: such a client has an IPv4 address here.
    Ipv4Mapped,
    /// Not the unspecified or the broadcast address, nothing inside multicast: no client has those.
    NotUnicast,
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

/// The form in which addresses are compared: an IPv4-mapped IPv6 address becomes an IPv4 address.
///
/// A dual-stack socket reports IPv4 clients as mapped. Everything else stays as it is: NAT64, 6to4 and
/// IPv4-compatible addresses are IPv6 addresses, and `::1` is not `0.0.0.1`.
pub fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

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

    /// Whether `address`, in [`canonical`] form, is in this network.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                (network.to_bits() ^ address.to_bits()) & ipv4_mask(self.prefix_length) == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                (network.to_bits() ^ address.to_bits()) & ipv6_mask(self.prefix_length) == 0
            }
            _ => false,
        }
    }

    /// Whether this is an IPv4 network.
    pub fn is_ipv4(&self) -> bool {
        self.address.is_ipv4()
    }

    /// Whether every address of its family is in this network: `0.0.0.0/0` and `::/0`.
    pub fn is_everything(&self) -> bool {
        self.prefix_length == 0
    }

    fn read(entry: &str) -> Result<Self, Rule> {
        if entry.len() > MAX_ENTRY_LENGTH {
            return Err(Rule::TooLong);
        }
        if !entry.bytes().all(|byte| byte.is_ascii_hexdigit() || b":./".contains(&byte)) {
            return Err(if entry.contains(',') { Rule::Comma } else { Rule::BadCharacter });
        }
        let (address, prefix_length) = match entry.split_once('/') {
            Some((address, length)) => {
                let address = read_address(address)?;
                (address, read_prefix_length(length, width(address))?)
            }
            None => {
                let address = read_address(entry)?;
                (address, width(address))
            }
        };
        let network = Self { address, prefix_length };
        network.check()?;
        Ok(network)
    }

    fn check(&self) -> Result<(), Rule> {
        if self.masked() != *self {
            Err(Rule::HostBits)
        } else if self.overlaps_ipv4_mapped() {
            Err(Rule::Ipv4Mapped)
        } else if self.is_never_a_client() {
            Err(Rule::NotUnicast)
        } else {
            Ok(())
        }
    }

    /// This network without host bits.
    fn masked(self) -> Self {
        let address = match self.address {
            IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() & ipv4_mask(self.prefix_length)).into(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & ipv6_mask(self.prefix_length)).into(),
        };
        Self { address, ..self }
    }

    /// Wide networks such as `::/0` are accepted: they have other members too. Their mapped members never match, because
    /// clients are compared in [`canonical`] form. From /80 on, hardly any other members are left.
    fn overlaps_ipv4_mapped(&self) -> bool {
        let IpAddr::V6(address) = self.address else {
            return false;
        };
        let common = ipv6_mask(self.prefix_length.min(96));
        self.prefix_length >= 80 && (address.to_bits() ^ IPV4_MAPPED) & common == 0
    }

    fn is_never_a_client(&self) -> bool {
        let is_single = self.prefix_length == width(self.address);
        // A network wider than all multicast addresses may begin with them and still have other members.
        let multicast_length = if self.address.is_ipv4() { 4 } else { 8 };
        let is_multicast = self.address.is_multicast() && self.prefix_length >= multicast_length;
        is_multicast || is_single && is_unspecified_or_broadcast(self.address)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_length)
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

impl Rule {
    /// The rule's name in `tests/cases/allowed-ips.tsv`. A comma is one of the bad characters there.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TooLong => "too-long",
            Self::Comma | Self::BadCharacter => "bad-char",
            Self::MixedNotation => "mixed-notation",
            Self::LeadingZero => "leading-zero",
            Self::BadAddress => "bad-address",
            Self::BadPrefix => "bad-prefix",
            Self::HostBits => "host-bits",
            Self::Ipv4Mapped => "ipv4-mapped",
            Self::NotUnicast => "not-unicast",
        }
    }

    fn problem_and_remedy(self) -> (&'static str, &'static str) {
        match self {
            Self::TooLong => ("is longer than 43 characters", "write one address or CIDR in each entry of the list"),
            Self::Comma => ("holds a comma", "write each address or CIDR as its own list entry"),
            Self::BadCharacter => (
                "has a character that no IP address or CIDR has",
                "write an address such as 192.0.2.1 or a CIDR such as 192.0.2.0/24",
            ),
            Self::MixedNotation => {
                ("mixes IPv4 and IPv6 notation", "write an IPv4 address, or an IPv6 address in hexadecimal groups only")
            }
            Self::LeadingZero => (
                "has a number with a leading zero, which some programs read as octal",
                "write four decimal numbers without leading zeros",
            ),
            Self::BadAddress => {
                ("is not an IPv4 or IPv6 address", "write an address such as 192.0.2.1 or a CIDR such as 192.0.2.0/24")
            }
            Self::BadPrefix => {
                ("has an unusable prefix length", "write /0 to /32 after an IPv4 and /0 to /128 after an IPv6 address")
            }
            Self::HostBits => ("has host bits set", "write zeros in all bits that the prefix does not cover"),
            Self::Ipv4Mapped => {
                ("overlaps the IPv4-mapped addresses ::ffff:0:0/96", "write the IPv4 addresses or networks")
            }
            Self::NotUnicast => {
                ("is an unspecified, broadcast or multicast address", "write the addresses that clients have")
            }
        }
    }
}

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

/// std's parsers accept IPv4 notation inside IPv6, so that is refused before. They refuse leading zeros too, but without
/// saying why.
fn read_address(text: &str) -> Result<IpAddr, Rule> {
    if text.contains(':') {
        if text.contains('.') {
            return Err(Rule::MixedNotation);
        }
        return text.parse().map(IpAddr::V6).map_err(|_| Rule::BadAddress);
    }
    if text.contains('.') && text.split('.').any(has_leading_zero) {
        return Err(Rule::LeadingZero);
    }
    text.parse().map(IpAddr::V4).map_err(|_| Rule::BadAddress)
}

/// Refuses leading zeros. `u8::from_str` would accept a sign too, but no entry has that character.
fn read_prefix_length(text: &str, width: u8) -> Result<u8, Rule> {
    let length = text.parse().ok().filter(|_| !has_leading_zero(text));
    length.filter(|length| *length <= width).ok_or(Rule::BadPrefix)
}

fn has_leading_zero(number: &str) -> bool {
    number.len() > 1 && number.starts_with('0') && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// Number of bits in an address.
fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn ipv4_mask(prefix_length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix_length)).unwrap_or(0)
}

fn ipv6_mask(prefix_length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix_length)).unwrap_or(0)
}

fn is_unspecified_or_broadcast(address: IpAddr) -> bool {
    address.is_unspecified() || address == IpAddr::V4(Ipv4Addr::BROADCAST)
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
