//! The client's address: the connection's peer, or an entry of `X-Forwarded-For` that a trusted proxy has written.
//!
//! A proxy appends the address that it sees to the right of the header. So only entries counted from the right can be
//! trusted. If there are too few of them, there is no answer. The peer or the leftmost entry is no substitute: a client
//! that bypasses a proxy could choose it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU8;
use std::str::{self, FromStr};

use crate::address::{Network, Refusal, canonical, is_unspecified_or_broadcast, printable};

/// Bytes of all lines of `X-Forwarded-For` together.
const MAX_FORWARDED_LENGTH: usize = 8192;
/// The most hops that the flag takes.
const MAX_HOPS: u8 = 8;

/// The source of a client's address, written as in the flags `--http-client-ip` and `--grpc-client-ip`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientAddressSource {
    /// `peer`: the other end of the connection. `X-Forwarded-For` is not read.
    Peer,
    /// `xff-hops=N`: the N-th entry from the right, where N proxies append to `X-Forwarded-For` on the
    /// shortest way to here. The flag takes 1 to 8.
    XffHops(NonZeroU8),
    /// `xff-proxies=CIDR,CIDR`: the rightmost entry that is not one of these proxies; the peer itself if
    /// that is none of them. The flag takes no /0.
    XffProxies(Vec<Network>),
}

/// Why a request has no trusted client address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    /// There is no `X-Forwarded-For`, although the request should come through a proxy.
    #[error("X-Forwarded-For is missing: let the proxy append to it")]
    Missing,
    /// All lines together have more than 8192 bytes.
    #[error("X-Forwarded-For is longer than 8192 bytes")]
    TooLong,
    /// A byte is neither TAB nor printable ASCII.
    #[error("X-Forwarded-For holds a byte that is not printable ASCII")]
    BadByte,
    /// There are fewer entries than proxies are configured.
    #[error(
        "X-Forwarded-For has fewer entries than xff-hops counts: lower xff-hops, or stop clients from bypassing a proxy"
    )]
    TooShort,
    /// A trusted entry is not the address of a client.
    #[error("X-Forwarded-For has an entry that is not a unicast IP address")]
    Malformed,
    /// Every entry is a trusted proxy, so there is no client.
    #[error("X-Forwarded-For names only trusted proxies")]
    AllTrusted,
    /// The proxy does not tell its peer's address, or it is not an IP address.
    #[error("the proxy does not tell the IP address of its client")]
    NoPeer,
}

/// Why a text is not a [`ClientAddressSource`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSource {
    /// None of the three forms. Holds the text, safe to print.
    #[error("\"{0}\" is unknown; write peer, xff-hops=N (N from 1 to 8) or xff-proxies=CIDR,CIDR")]
    Unknown(String),
    /// Not a number from 1 to 8. Holds the text, safe to print.
    #[error(
        "xff-hops cannot be \"{0}\"; write how many proxies append to X-Forwarded-For, from 1 to 8, \
         such as xff-hops=1"
    )]
    Hops(String),
    /// `xff-proxies` without any network.
    #[error("xff-proxies is empty; write the networks of your proxies, such as xff-proxies=10.0.0.0/24")]
    NoProxies,
    /// An item of `xff-proxies` is not a valid network.
    #[error("xff-proxies: {0}")]
    Proxy(Refusal),
    /// An item of `xff-proxies` covers a whole address family.
    #[error(
        "xff-proxies: {0} would let every client choose its address; write the networks of your \
         proxies, such as xff-proxies=10.0.0.0/24"
    )]
    Everything(Network),
}

impl ClientAddressSource {
    /// The client's address, in [`canonical`] form.
    ///
    /// `peer` is the other end of the connection. `x_forwarded_for` holds the values of all lines of
    /// exactly that name (ASCII case-insensitive) in wire order. Does not allocate.
    ///
    /// # Errors
    /// If `X-Forwarded-For` gives no trusted answer. Refuse such a request if the address matters.
    pub fn resolve<'a>(
        &self,
        peer: IpAddr,
        x_forwarded_for: impl Iterator<Item = &'a [u8]> + Clone,
    ) -> Result<IpAddr, Unresolved> {
        let peer = canonical(peer);
        match self {
            Self::Peer => Ok(peer),
            Self::XffHops(hops) => {
                check_lines(x_forwarded_for.clone())?;
                nth_from_the_right(*hops, x_forwarded_for)
            }
            Self::XffProxies(proxies) if is_in(proxies, peer) => {
                check_lines(x_forwarded_for.clone())?;
                rightmost_stranger(proxies, x_forwarded_for)
            }
            Self::XffProxies(_) => Ok(peer),
        }
    }
}

impl FromStr for ClientAddressSource {
    type Err = InvalidSource;

    fn from_str(text: &str) -> Result<Self, InvalidSource> {
        match text.split_once('=') {
            None if text == "peer" => Ok(Self::Peer),
            Some(("xff-hops", hops)) => parse_hops(hops).map(Self::XffHops),
            Some(("xff-proxies", proxies)) => parse_proxies(proxies).map(Self::XffProxies),
            _ => Err(InvalidSource::Unknown(printable(text))),
        }
    }
}

impl fmt::Display for ClientAddressSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer => f.write_str("peer"),
            Self::XffHops(hops) => write!(f, "xff-hops={hops}"),
            Self::XffProxies(proxies) => {
                f.write_str("xff-proxies=")?;
                for (index, proxy) in proxies.iter().enumerate() {
                    let separator = if index == 0 { "" } else { "," };
                    write!(f, "{separator}{proxy}")?;
                }
                Ok(())
            }
        }
    }
}

impl Unresolved {
    /// The reason's name in `tests/cases/client-ip.tsv`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "xff_missing",
            Self::TooLong => "xff_too_long",
            Self::BadByte => "xff_bad_byte",
            Self::TooShort => "xff_too_short",
            Self::Malformed => "xff_malformed",
            Self::AllTrusted => "xff_all_trusted",
            Self::NoPeer => "no_peer",
        }
    }
}

fn parse_hops(text: &str) -> Result<NonZeroU8, InvalidSource> {
    let is_digit = text.len() == 1 && text.bytes().all(|byte| byte.is_ascii_digit());
    let hops: Option<NonZeroU8> = text.parse().ok().filter(|_| is_digit);
    hops.filter(|hops| hops.get() <= MAX_HOPS).ok_or_else(|| InvalidSource::Hops(printable(text)))
}

fn parse_proxies(text: &str) -> Result<Vec<Network>, InvalidSource> {
    if text.is_empty() {
        return Err(InvalidSource::NoProxies);
    }
    let proxy = |item| {
        let network = Network::parse(item).map_err(InvalidSource::Proxy)?;
        if network.is_everything() {
            return Err(InvalidSource::Everything(network));
        }
        Ok(network)
    };
    text.split(',').map(proxy).collect()
}

fn check_lines<'a>(lines: impl Iterator<Item = &'a [u8]> + Clone) -> Result<(), Unresolved> {
    if lines.clone().next().is_none() {
        return Err(Unresolved::Missing);
    }
    if lines.clone().map(<[u8]>::len).sum::<usize>() > MAX_FORWARDED_LENGTH {
        return Err(Unresolved::TooLong);
    }
    if lines.flatten().any(|byte| !matches!(byte, b'\t' | b' '..=b'~')) {
        return Err(Unresolved::BadByte);
    }
    Ok(())
}

fn nth_from_the_right<'a>(
    hops: NonZeroU8,
    lines: impl Iterator<Item = &'a [u8]> + Clone,
) -> Result<IpAddr, Unresolved> {
    let hops = usize::from(hops.get());
    let to_the_left = items(lines.clone()).count().checked_sub(hops).ok_or(Unresolved::TooShort)?;
    let mut ours = items(lines).skip(to_the_left).map(parse_item);
    let client = ours.next().ok_or(Unresolved::TooShort)??;
    // Proxies also wrote the entries to its right: if one is malformed, the count is wrong.
    ours.try_for_each(|item| item.map(drop))?;
    Ok(client)
}

/// The last stranger from the left is the first from the right, so the items need not be collected. An unreadable item
/// counts as a stranger: if only proxies are to its right, it is the answer, and an error.
fn rightmost_stranger<'a>(proxies: &[Network], lines: impl Iterator<Item = &'a [u8]>) -> Result<IpAddr, Unresolved> {
    let is_proxy = |item: &Result<IpAddr, _>| item.is_ok_and(|address| is_in(proxies, address));
    let strangers = items(lines).map(parse_item).filter(|item| !is_proxy(item));
    strangers.last().unwrap_or(Err(Unresolved::AllTrusted))
}

fn items<'a>(lines: impl Iterator<Item = &'a [u8]>) -> impl Iterator<Item = &'a [u8]> {
    lines.flat_map(|line| line.split(|byte| *byte == b','))
}

fn is_in(networks: &[Network], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(address))
}

/// An IPv4 or IPv6 address, with or without port, in [`canonical`] form.
fn parse_item(item: &[u8]) -> Result<IpAddr, Unresolved> {
    let text = str::from_utf8(item).map_err(|_| Unresolved::Malformed)?;
    let address = parse_address_and_port(text.trim_matches([' ', '\t'])).map(canonical);
    address
        .filter(|address| !address.is_multicast() && !is_unspecified_or_broadcast(*address))
        .ok_or(Unresolved::Malformed)
}

fn parse_address_and_port(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    if let Some(bracketed) = text.strip_prefix('[') {
        let (address, after) = bracketed.split_once(']')?;
        let is_complete = after.is_empty() || is_port(after.strip_prefix(':')?);
        return address.parse::<Ipv6Addr>().ok().filter(|_| is_complete).map(IpAddr::V6);
    }
    let (address, port) = text.split_once(':')?;
    address.parse::<Ipv4Addr>().ok().filter(|_| is_port(port)).map(IpAddr::V4)
}

/// 1 to 5 digits, at most 65535. `u16::from_str` alone would accept a sign and more zeros.
fn is_port(text: &str) -> bool {
    text.len() <= 5 && text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests;
