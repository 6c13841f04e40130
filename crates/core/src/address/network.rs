//! One entry: its grammar, its canonical form, and what is in it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of the longest entry: a full IPv6 address and `/128`.
const MAX_ENTRY_LENGTH: usize = 43;
/// `::ffff:0:0/96`, where IPv4 addresses stand in IPv6 (RFC 4291, 2.5.5.2).
pub(super) const IPV4_MAPPED: u128 = 0xffff_0000_0000;

/// One allowed-IP entry: an address, or a network without host bits.
///
/// `Display` is the canonical form, such as `192.0.2.0/24` or `2001:db8::1/128`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    pub(super) address: IpAddr,
    /// 0..=32 for IPv4, 0..=128 for IPv6.
    pub(super) prefix_length: u8,
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

/// The form in which addresses are compared: an IPv4-mapped IPv6 address becomes an IPv4 address.
///
/// A dual-stack socket reports IPv4 clients as mapped. Everything else stays as it is: NAT64, 6to4 and
/// IPv4-compatible addresses are IPv6 addresses, and `::1` is not `0.0.0.1`.
pub fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

impl Network {
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

    pub(super) fn read(entry: &str) -> Result<Self, Rule> {
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

    pub(super) fn check(&self) -> Result<(), Rule> {
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
    pub(super) fn masked(self) -> Self {
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

    pub(super) fn problem_and_remedy(self) -> (&'static str, &'static str) {
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
pub(super) fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

pub(super) fn ipv4_mask(prefix_length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix_length)).unwrap_or(0)
}

pub(super) fn ipv6_mask(prefix_length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix_length)).unwrap_or(0)
}

pub(crate) fn is_unspecified_or_broadcast(address: IpAddr) -> bool {
    address.is_unspecified() || address == IpAddr::V4(Ipv4Addr::BROADCAST)
}
