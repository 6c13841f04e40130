//! Which addresses an ApiKey may be used from: one allowed-IP entry, and the list of them.
//!
//! The same parser serves webhook, controller, verifier and command line, and there is exactly one
//! reading of each entry. What other parsers disagree about (leading zeros, IPv4 inside IPv6, host
//! bits, masks) is refused rather than interpreted; KEP-4858 refuses the same for Kubernetes itself.
//!
//! ```text
//! entry     = address [ "/" length ]     at most 43 ASCII octets of 0-9 A-F a-f : . /
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

/// Octets in the longest entry: an IPv6 address in full, and `/128`.
const MAX_ENTRY_LENGTH: usize = 43;
/// Entries in the longest list.
pub const MAX_ENTRIES: usize = 256;
/// `::ffff:0:0/96`, where IPv4 addresses stand in IPv6 (RFC 4291, 2.5.5.2).
const IPV4_MAPPED: u128 = 0xffff_0000_0000;
/// Characters of an entry that are repeated in a message about it.
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

/// Why an entry is refused: which one, the rule it breaks, and the nearest good spelling.
///
/// `Display` is a sentence such as `"10.0.0.1/8" has host bits set; did you mean "10.0.0.0/8"?`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    entry: String,
    rule: Rule,
    has_port: bool,
    suggestion: Option<String>,
}

/// What an entry has to keep to. The variants stand in the order in which they are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// At most 43 octets.
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
    /// In the caller's order.
    networks: Box<[Network]>,
    ipv4: Ranges<u32>,
    ipv6: Ranges<u128>,
}

/// One problem of a list.
///
/// `Display` does not name the field: put [`ListRefusal::field_path`] before it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListRefusal {
    /// A list without entries. It is not read as "any address": taking out the last entry would
    /// open the key to everybody.
    #[error("the list is empty; leave the field out to allow any address")]
    Empty,
    /// More than [`MAX_ENTRIES`] entries.
    #[error("the list has {count} entries; write at most {MAX_ENTRIES}, with wider networks")]
    TooMany {
        /// Length of the list.
        count: usize,
    },
    /// An entry that is refused by itself.
    #[error("{refusal}")]
    Entry {
        /// Position in the list, from 0.
        index: usize,
        /// What is wrong with it.
        refusal: Refusal,
    },
    /// Two entries with the same canonical form.
    #[error("entries {first} and {index} are both {network}; remove one of them")]
    Duplicate {
        /// Position of the later one, from 0.
        index: usize,
        /// Position of the earlier one, from 0.
        first: usize,
        /// What both of them mean.
        network: Network,
    },
}

/// First and last members, ascending, with a gap between any two.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Ranges<T>(Box<[(T, T)]>);

/// The one form of an address that is compared: an IPv4-mapped IPv6 address becomes IPv4.
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
    /// The first [`Rule`] the entry breaks, with the nearest good spelling where there is one.
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

    /// Whether its addresses are IPv4 addresses.
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
        if !entry.bytes().all(|octet| octet.is_ascii_hexdigit() || b":./".contains(&octet)) {
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

    /// The network that this one is a member of by its length.
    fn masked(self) -> Self {
        let address = match self.address {
            IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() & ipv4_mask(self.prefix_length)).into(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & ipv6_mask(self.prefix_length)).into(),
        };
        Self { address, ..self }
    }

    /// Wide networks such as `::/0` are let through: they have other members, and the mapped ones never
    /// match, as clients are compared in [`canonical`] form. From /80 on hardly anything else is left.
    fn overlaps_ipv4_mapped(&self) -> bool {
        let IpAddr::V6(address) = self.address else {
            return false;
        };
        let common = ipv6_mask(self.prefix_length.min(96));
        self.prefix_length >= 80 && (address.to_bits() ^ IPV4_MAPPED) & common == 0
    }

    fn is_never_a_client(&self) -> bool {
        let is_single = self.prefix_length == width(self.address);
        // A network wider than all of multicast may begin there and still have other members.
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

    /// An entry that is accepted and is likely what was meant.
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
    /// The rule's name in `tests/cases/allowed-ips.tsv`, where a comma is a bad character like others.
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
            Self::Comma => ("holds a comma", "write each address or CIDR as an entry of the list of its own"),
            Self::BadCharacter => (
                "holds a character that no IP address or CIDR has",
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
    /// Every problem there is, in the order of the entries; in a list longer than [`MAX_ENTRIES`], that
    /// and the problems of the first [`MAX_ENTRIES`].
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

    /// Whether `address`, in [`canonical`] form, is in one of the entries. Allocates nothing.
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

    /// Whether the list lets every IPv4 client in, by one entry or by several together.
    pub fn covers_ipv4(&self) -> bool {
        let multicast = (0xe000_0000, 0xefff_ffff);
        self.ipv4.cover((0, u32::MAX), &[(0, 0), multicast, (u32::MAX, u32::MAX)])
    }

    /// Whether the list lets every IPv6 client in, by one entry or by several together.
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
    /// The entry it is about, from 0; `None` if it is about the list.
    pub fn index(&self) -> Option<usize> {
        match self {
            Self::Empty | Self::TooMany { .. } => None,
            Self::Entry { index, .. } | Self::Duplicate { index, .. } => Some(*index),
        }
    }

    /// Where the problem is, for a list in `field`: `spec.allowedIPs[2]`, or `spec.allowedIPs`.
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

    /// Whether `whole` is in these ranges, but for what `nobody` has and no entry can name.
    fn cover(&self, whole: (T, T), nobody: &[(T, T)]) -> bool {
        !self.0.is_empty() && *Self::merged([&*self.0, nobody].concat()).0 == [whole]
    }

    fn contains(&self, member: T) -> bool {
        let after = self.0.partition_point(|(first, _)| *first <= member);
        let candidate = after.checked_sub(1).and_then(|index| self.0.get(index));
        candidate.is_some_and(|(_, last)| member <= *last)
    }
}

/// std's parsers are strict about everything but what is checked before them: they read IPv4 notation
/// inside IPv6. Leading zeros they refuse as well, but cannot say so.
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

/// Only leading zeros are left to refuse here: `u8::from_str` would take a sign too, but no entry has one.
fn read_prefix_length(text: &str, width: u8) -> Result<u8, Rule> {
    let length = text.parse().ok().filter(|_| !has_leading_zero(text));
    length.filter(|length| *length <= width).ok_or(Rule::BadPrefix)
}

fn has_leading_zero(number: &str) -> bool {
    number.len() > 1 && number.starts_with('0') && number.bytes().all(|octet| octet.is_ascii_digit())
}

/// Bits in an address.
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

/// `text` as it may stand between quotes in a message, a log or a terminal: escaped, and cut if it is long. A text that
/// may be a key in the wrong place is not repeated.
pub(crate) fn printable(text: &str) -> String {
    shown(text, char::escape_default)
}

/// As [`printable`], with letters of all languages as they were written: for people, and not where two letters that look
/// alike have to be told apart.
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CASES: &str = include_str!("../../../tests/cases/allowed-ips.tsv");

    fn refusal(entry: &str) -> Refusal {
        Network::parse(entry).unwrap_err()
    }

    #[test]
    fn every_case_has_its_verdict_reason_and_canonical_form() {
        let mut ran = 0;
        for row in CASES.lines().filter(|line| !line.starts_with("# ")) {
            let [input, verdict, expected, ..] = row.split('\t').collect::<Vec<_>>()[..] else {
                panic!("fewer than three columns: {row}");
            };
            let input: String = serde_json::from_str(&format!("\"{input}\"")).unwrap();
            let (found_verdict, found) = match Network::parse(&input) {
                Ok(network) => ("accept", network.to_string()),
                Err(refusal) => ("reject", refusal.rule().as_str().to_owned()),
            };
            assert_eq!((found_verdict, found.as_str()), (verdict, expected), "{row}");
            ran += 1;
        }
        assert!(ran > 0);
    }

    #[test]
    fn rules_are_checked_in_their_documented_order() {
        for (entry, rule) in [
            ("10.0.0.1, 10.0.0.2, 10.0.0.3, 10.0.0.4, 10.0.0.5", Rule::TooLong),
            ("::ffff:010.0.0.1,::/129", Rule::Comma),
            ("::ffff:010.0.0.1%0/129", Rule::BadCharacter),
            ("::ffff:010.0.0.1/129", Rule::MixedNotation),
            ("0300.0250.0.1/33", Rule::LeadingZero),
            ("10.0.0/33", Rule::BadAddress),
            ("::ffff:0:1/129", Rule::BadPrefix),
            ("::ffff:0:1/96", Rule::HostBits),
            ("::ffff:0:0/96", Rule::Ipv4Mapped),
            ("ff00::/8", Rule::NotUnicast),
        ] {
            assert_eq!(refusal(entry).rule(), rule, "{entry}");
        }
    }

    #[test]
    fn networks_at_the_edge_of_a_rule() {
        for accepted in [
            "0.0.0.0/0",
            "0.0.0.0/31",
            "::/127",
            "::/96",
            "::/79",
            "::ffff:0:0:0/80",
            "::fffe:0:0/96",
            "::1:0:0:0/80",
            "224.0.0.0/3",
            "fe00::/7",
            "223.255.255.255",
            "255.255.255.254",
            "2001:0db8:0000:0000:0000:0000:0000:0000/128",
        ] {
            assert!(Network::parse(accepted).is_ok(), "{accepted}");
        }
        for (refused, rule) in [
            ("", Rule::BadAddress),
            ("0.0.0.0", Rule::NotUnicast),
            ("::", Rule::NotUnicast),
            ("::/128", Rule::NotUnicast),
            ("255.255.255.255", Rule::NotUnicast),
            ("224.0.0.0/4", Rule::NotUnicast),
            ("239.255.0.0/16", Rule::NotUnicast),
            ("::/80", Rule::Ipv4Mapped),
            ("::ffff:1:0/112", Rule::Ipv4Mapped),
            ("10.0.0.0/8/8", Rule::BadPrefix),
            ("10.0.0.0//8", Rule::BadPrefix),
            ("10.0.0.0/08", Rule::BadPrefix),
            ("10.0.0.0/a", Rule::BadPrefix),
            ("2001:00db8::1", Rule::BadAddress),
        ] {
            assert_eq!(refusal(refused).rule(), rule, "{refused}");
        }
    }

    #[test]
    fn the_nearest_good_spelling_is_offered() {
        for (entry, suggestion) in [
            ("10.0.0.1/8", Some("10.0.0.0/8")),
            ("2001:db8::1/64", Some("2001:db8::/64")),
            ("1.2.3.4/0", Some("1.2.3.4/32")),
            (" 10.0.0.1\n", Some("10.0.0.1")),
            ("\u{feff}10.0.0.0/8\0", Some("10.0.0.0/8")),
            ("\"10.0.0.1\"", Some("10.0.0.1")),
            ("10.0.0.0 / 8", Some("10.0.0.0/8")),
            ("010.08.0.00/016", Some("10.8.0.0/16")),
            ("192.168.001.001", Some("192.168.1.1")),
            ("2001:00db8::00001", Some("2001:db8::1")),
            ("2001:0db8:0000:0000:0000:0000:0000:0000/0128", Some("2001:db8::/128")),
            ("::ffff:1.2.3.4", Some("1.2.3.4")),
            ("::ffff:102:304/128", Some("1.2.3.4/32")),
            ("::ffff:1.2.3.4/120", Some("1.2.3.0/24")),
            ("::ffff:0:0/96", Some("0.0.0.0/0")),
            ("0000:0000:0000:0000:0000:ffff:192.168.100.100", Some("192.168.100.100")),
            ("::1.2.3.4", Some("::102:304")),
            ("[2001:db8::1]:443", Some("2001:db8::1")),
            ("[::1]/128", Some("::1/128")),
            ("192.0.2.1:8080", Some("192.0.2.1")),
            ("fe80::1%eth0", Some("fe80::1")),
            ("fe80::1%eth0/64", Some("fe80::/64")),
            ("192.0.2.0/255.255.255.0", Some("192.0.2.0/24")),
            ("192.0.2.0/0.0.0.255", Some("192.0.2.0/24")),
            ("2001:db8::/ffff:ffff::", Some("2001:db8::/32")),
            ("10.0.0.0/+8", Some("10.0.0.0/8")),
            ("10.0.0.0\\8", Some("10.0.0.0/8")),
            ("10.0.0.1/", Some("10.0.0.1")),
            ("10/8", Some("10.0.0.0/8")),
            ("192.168/16", Some("192.168.0.0/16")),
            ("192.168.*.*", Some("192.168.0.0/16")),
            ("１０．０．０．１", Some("10.0.0.1")),
            ("*", None),
            ("*.*.*.*", None),
            ("127.1", None),
            ("10.0.0.0/33", None),
            ("10.0.0.0/255.0.255.0", None),
            ("10.0.0.1-10.0.0.9", None),
            ("10.0.0.1,10.0.0.2", None),
            ("::8000:0:0/81", None),
            ("224.0.0.1", None),
            ("localhost", None),
            ("", None),
        ] {
            assert_eq!(refusal(entry).suggestion(), suggestion, "{entry}");
        }
    }

    #[test]
    fn a_list_that_covers_everything_is_recognised_in_pieces() {
        for (entries, ipv4, ipv6) in [
            (&["0.0.0.0/0"][..], true, false),
            (&["::/0", "0.0.0.0/0"], true, true),
            (&["128.0.0.0/1", "0.0.0.0/1"], true, false),
            // 224.0.0.0/4, multicast, is refused as an entry; nobody is left out by that.
            (&["0.0.0.0/1", "128.0.0.0/2", "192.0.0.0/3", "240.0.0.0/4"], true, false),
            (&["0.0.0.0/1", "128.0.0.0/2", "192.0.0.0/3"], false, false),
            (&["0.0.0.0/1", "128.0.0.0/1", "8000::/1"], true, false),
            (&["8000::/1", "::/1"], false, true),
            (
                &["::/1", "8000::/2", "c000::/3", "e000::/4", "f000::/5", "f800::/6", "fc00::/7", "fe00::/8"],
                false,
                true,
            ),
            (&["::/1", "8000::/2", "c000::/3", "e000::/4", "f000::/5", "f800::/6", "fc00::/7"], false, false),
            (&["240.0.0.0/4"], false, false),
        ] {
            let list = AllowedAddresses::parse(entries).unwrap();
            assert_eq!((list.covers_ipv4(), list.covers_ipv6()), (ipv4, ipv6), "{entries:?}");
        }
    }

    #[test]
    fn a_refusal_says_what_is_wrong_and_what_to_do() {
        for (entry, message) in [
            ("10.0.0.1/8", r#""10.0.0.1/8" has host bits set; did you mean "10.0.0.0/8"?"#),
            (
                "10.0.0.1,10.0.0.2",
                r#""10.0.0.1,10.0.0.2" holds a comma; write each address or CIDR as an entry of the list of its own"#,
            ),
            (
                "localhost",
                r#""localhost" holds a character that no IP address or CIDR has; write an address such as 192.0.2.1 or a CIDR such as 192.0.2.0/24"#,
            ),
            (
                "10.0.0.0/33",
                r#""10.0.0.0/33" has an unusable prefix length; write /0 to /32 after an IPv4 and /0 to /128 after an IPv6 address"#,
            ),
        ] {
            assert_eq!(refusal(entry).to_string(), message);
        }
    }

    #[test]
    fn what_is_shown_of_an_entry_cannot_harm_a_log_or_a_terminal() {
        assert_eq!(refusal("a\n\u{1b}[31m\"é").entry(), r#"a\n\u{1b}[31m\"\u{e9}"#);
        let long = "\u{202e}".repeat(1_000_000);
        assert!(refusal(&long).to_string().len() < 300);
        assert!(refusal(&"1".repeat(1_000_000)).entry().ends_with("1..."));
    }

    #[test]
    fn every_problem_of_a_list_is_reported_with_its_place() {
        let entries = ["10.0.0.1/8", "2001:DB8::/32", "10.0.0.1", "2001:db8::/32", "10.0.0.1/32", "x"];
        let problems = AllowedAddresses::parse(&entries).unwrap_err();
        let report: Vec<String> =
            problems.iter().map(|problem| format!("{}: {problem}", problem.field_path("spec.allowedIPs"))).collect();
        assert_eq!(
            report,
            [
                r#"spec.allowedIPs[0]: "10.0.0.1/8" has host bits set; did you mean "10.0.0.0/8"?"#,
                "spec.allowedIPs[3]: entries 1 and 3 are both 2001:db8::/32; remove one of them",
                "spec.allowedIPs[4]: entries 2 and 4 are both 10.0.0.1/32; remove one of them",
                r#"spec.allowedIPs[5]: "x" holds a character that no IP address or CIDR has; write an address such as 192.0.2.1 or a CIDR such as 192.0.2.0/24"#,
            ]
        );
    }

    #[test]
    fn an_empty_list_is_refused_rather_than_read_as_any_address() {
        let problems = AllowedAddresses::parse(&[""; 0]).unwrap_err();
        assert_eq!(problems, [ListRefusal::Empty]);
        assert_eq!(problems[0].field_path("spec.allowedIPs"), "spec.allowedIPs");
        assert!(problems[0].to_string().contains("leave the field out"));
    }

    #[test]
    fn a_list_has_at_most_256_entries() {
        let mut entries: Vec<String> = (0..256).map(|n| format!("10.0.{n}.0/24")).collect();
        assert!(AllowedAddresses::parse(&entries).is_ok());
        entries.push("10.1.0.0/24".to_owned());
        let problems = AllowedAddresses::parse(&entries).unwrap_err();
        assert_eq!(problems, [ListRefusal::TooMany { count: 257 }]);
    }

    #[test]
    fn entries_keep_the_order_they_were_written_in() {
        let list = AllowedAddresses::parse(&["2001:DB8::/32", "192.0.2.1", "10.0.0.0/8"]).unwrap();
        assert_eq!(list.canonical_entries(), ["2001:db8::/32", "192.0.2.1/32", "10.0.0.0/8"]);
    }

    #[test]
    fn only_mapped_addresses_become_ipv4() {
        for (address, expected) in [
            ("::ffff:10.1.2.3", "10.1.2.3"),
            ("::1", "::1"),
            ("::", "::"),
            ("::10.1.2.3", "::a01:203"),
            ("64:ff9b::a01:203", "64:ff9b::a01:203"),
            ("2002:a01:203::1", "2002:a01:203::1"),
        ] {
            assert_eq!(canonical(address.parse().unwrap()), expected.parse::<IpAddr>().unwrap());
        }
    }

    #[test]
    fn a_network_holds_its_own_family_only() {
        let (ipv4, ipv6) = ("0.0.0.0/0".parse::<Network>().unwrap(), "::/0".parse().unwrap());
        let (client4, client6) = ([10, 0, 0, 1].into(), [1u16; 8].into());
        assert!(ipv4.contains(client4) && !ipv4.contains(client6) && ipv4.is_everything());
        assert!(!Network::contains(&ipv6, client4) && ipv6.contains(client6) && ipv6.is_everything());
        let both = AllowedAddresses::parse(&["0.0.0.0/0", "::/0"]).unwrap();
        assert!(both.contains(client4) && both.contains(client6));
        assert!(!"0.0.0.0/1".parse::<Network>().unwrap().is_everything());
    }

    /// Networks that lie close together, so that lists overlap, nest and touch.
    fn network() -> impl Strategy<Value = Network> {
        let ipv4 = (any::<[u8; 2]>(), 0..=32u8)
            .prop_map(|([a, b], prefix_length)| Network { address: [10, a & 3, 0, b].into(), prefix_length }.masked());
        let ipv6 = (any::<[u8; 2]>(), 0..=128u8).prop_map(|([a, b], prefix_length)| {
            let address = [0x2001, 0xdb8, (a & 3).into(), 0, 0, 0, 0, b.into()];
            Network { address: Ipv6Addr::from(address).into(), prefix_length }.masked()
        });
        prop_oneof![ipv4, ipv6].prop_filter("accepted", |network| network.check().is_ok())
    }

    fn client() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            any::<[u8; 2]>().prop_map(|[a, b]| IpAddr::from([10, a & 7, 0, b])),
            any::<[u8; 2]>()
                .prop_map(|[a, b]| { Ipv6Addr::from([0x2001, 0xdb8, (a & 7).into(), 0, 0, 0, 0, b.into()]).into() }),
            any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).into()),
            any::<u128>().prop_map(|bits| canonical(Ipv6Addr::from_bits(bits).into())),
        ]
    }

    fn list(networks: &[Network]) -> AllowedAddresses {
        let mut entries: Vec<String> = networks.iter().map(Network::to_string).collect();
        let mut seen = std::collections::HashSet::new();
        entries.retain(|entry| seen.insert(entry.clone()));
        AllowedAddresses::parse(&entries).unwrap()
    }

    /// Membership by shifting whole addresses, with nothing in common with masks and ranges.
    fn is_member(network: &Network, address: IpAddr) -> bool {
        let (of_network, of_address) = match (network.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits())),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits()),
            _ => return false,
        };
        let host_bits = u32::from(width(address) - network.prefix_length);
        host_bits == 128 || of_network >> host_bits == of_address >> host_bits
    }

    /// Entries as people and attackers write them: a good one with something wrong about it.
    fn entry() -> impl Strategy<Value = String> {
        let insertion = prop_oneof!["[0-9a-f:./%,\\[\\] ]{0,3}", any::<String>()];
        prop_oneof![
            any::<String>(),
            "[0-9a-fA-F:./]{0,45}",
            "[0-9]{1,4}(\\.[0-9]{1,4}){0,4}(/[0-9]{1,3})?",
            "[0-9a-f]{0,5}(:[0-9a-f]{0,5}){1,8}(/[0-9]{1,4})?",
            (network(), insertion, any::<prop::sample::Index>()).prop_map(|(network, add, at)| {
                let mut text = network.to_string();
                text.insert_str(at.index(text.len() + 1), &add);
                text
            }),
        ]
    }

    proptest! {
        #[test]
        fn the_canonical_form_reads_back_as_itself(network in network()) {
            prop_assert_eq!(network.to_string().parse(), Ok(network));
        }

        #[test]
        fn what_is_accepted_is_what_std_reads_too(entry in entry()) {
            if let Ok(network) = Network::parse(&entry) {
                let address = entry.split('/').next().unwrap();
                prop_assert_eq!(address.parse(), Ok(network.address));
                prop_assert!(network.contains(network.address));
                prop_assert_eq!(network.to_string().parse(), Ok(network));
            }
        }

        #[test]
        fn a_suggestion_is_accepted_and_a_refusal_is_printable(entry in entry()) {
            if let Err(refusal) = Network::parse(&entry) {
                let message = refusal.to_string();
                prop_assert!(message.bytes().all(|octet| matches!(octet, b' '..=b'~')), "{message}");
                if let Some(suggestion) = refusal.suggestion() {
                    prop_assert!(Network::parse(suggestion).is_ok(), "{message}");
                    prop_assert_ne!(suggestion, entry);
                }
            }
        }

        #[test]
        fn a_list_holds_exactly_what_its_entries_hold(
            networks in prop::collection::vec(network(), 1..20),
            client in client(),
        ) {
            let expected = networks.iter().any(|network| is_member(network, client));
            prop_assert_eq!(networks.iter().any(|network| network.contains(client)), expected);
            prop_assert_eq!(list(&networks).contains(client), expected);
        }

        #[test]
        fn the_ends_of_every_network_are_in_and_their_neighbours_out(network in network()) {
            let alone = list(&[network]);
            let (first, last) = match network.address {
                IpAddr::V4(_) => (alone.ipv4.0[0].0.into(), alone.ipv4.0[0].1.into()),
                IpAddr::V6(_) => alone.ipv6.0[0],
            };
            let address = |bits: u128| match network.address {
                IpAddr::V4(_) => u32::try_from(bits).ok().map(|bits| IpAddr::from(bits.to_be_bytes())),
                IpAddr::V6(_) => Some(IpAddr::from(bits.to_be_bytes())),
            };
            for (bits, expected) in [
                (Some(first), true),
                (Some(last), true),
                (first.checked_sub(1), false),
                (last.checked_add(1), false),
            ] {
                if let Some(address) = bits.and_then(address) {
                    prop_assert_eq!(alone.contains(address), expected, "{}", address);
                    prop_assert_eq!(is_member(&network, address), expected, "{}", address);
                }
            }
        }

        #[test]
        fn the_order_of_a_list_does_not_matter(
            (networks, shuffled) in prop::collection::vec(network(), 1..12)
                .prop_flat_map(|networks| (Just(networks.clone()), Just(networks).prop_shuffle())),
            client in client(),
        ) {
            prop_assert_eq!(list(&networks).contains(client), list(&shuffled).contains(client));
        }

        #[test]
        fn another_entry_never_takes_access_away(
            networks in prop::collection::vec(network(), 1..12),
            added in network(),
            client in client(),
        ) {
            let before = list(&networks).contains(client);
            let after = list(&[networks.as_slice(), &[added]].concat()).contains(client);
            prop_assert_eq!(after, before || added.contains(client));
        }
    }
}
