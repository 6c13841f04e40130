//! Whose address a request comes from: the connection's peer, or an entry of `X-Forwarded-For` that a
//! proxy we trust has written.
//!
//! A proxy appends the address it sees to the right of what the client sent. So only entries counted
//! from the right say anything, and where too few of them are ours there is no answer: falling back to
//! the peer or to the leftmost entry would leave the choice to whoever went round a proxy.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU8;
use std::str::{self, FromStr};

use super::{Network, Refusal, canonical, is_unspecified_or_broadcast, printable};

/// Octets of `X-Forwarded-For` over all of its lines.
const MAX_FORWARDED_LENGTH: usize = 8192;
const MAX_HOPS: u8 = 8;

/// Where a client's address is taken from. Written as in the flags `--http-client-ip` and
/// `--grpc-client-ip`.
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

/// Why a request has no client address that could be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    /// No `X-Forwarded-For`, although the request came through a proxy.
    #[error("X-Forwarded-For is missing: the proxy has to append to it")]
    Missing,
    /// More than 8192 octets over all lines.
    #[error("X-Forwarded-For is longer than 8192 octets")]
    TooLong,
    /// An octet other than TAB and printable ASCII.
    #[error("X-Forwarded-For holds an octet that is not printable ASCII")]
    BadByte,
    /// Fewer entries than proxies.
    #[error("X-Forwarded-For has fewer entries than proxies are configured")]
    TooShort,
    /// An entry that counts is not the address of a client.
    #[error("X-Forwarded-For has an entry that is not a unicast IP address")]
    Malformed,
    /// Every entry is a trusted proxy, so none is a client.
    #[error("X-Forwarded-For names only trusted proxies")]
    AllTrusted,
    /// The proxy does not say who is at the other end of its connection, or that is no IP address.
    #[error("the proxy tells no IP address of the connection that the request came on")]
    NoPeer,
}

/// Why a text is no [`ClientAddressSource`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSource {
    /// Neither of the three forms; holds what was given, fit to print.
    #[error("\"{0}\" is unknown; write peer, xff-hops=N (N from 1 to 8) or xff-proxies=CIDR,CIDR")]
    Unknown(String),
    /// Not a number from 1 to 8; holds what was given, fit to print.
    #[error(
        "xff-hops cannot be \"{0}\"; write how many proxies append to X-Forwarded-For, from 1 to 8, \
         such as xff-hops=1"
    )]
    Hops(String),
    /// `xff-proxies` without any network.
    #[error("xff-proxies is empty; write the networks of your proxies, such as xff-proxies=10.0.0.0/24")]
    NoProxies,
    /// An item of `xff-proxies` is refused by itself.
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
    /// exactly that name (ASCII case-insensitive) in wire order. Allocates nothing.
    ///
    /// # Errors
    /// Where `X-Forwarded-For` gives no answer to rely on; such a request is to be refused wherever the
    /// address matters.
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
    let is_digit = text.len() == 1 && text.bytes().all(|octet| octet.is_ascii_digit());
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
    if lines.flatten().any(|octet| !matches!(octet, b'\t' | b' '..=b'~')) {
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
    // Those to the right of it are proxies' work too: junk there means the count is not ours.
    ours.try_for_each(|item| item.map(drop))?;
    Ok(client)
}

/// The last item from the left is the first from the right, without having to collect the items; an
/// unreadable one counts as a stranger, and is the answer if nothing but proxies stands to its right.
fn rightmost_stranger<'a>(proxies: &[Network], lines: impl Iterator<Item = &'a [u8]>) -> Result<IpAddr, Unresolved> {
    let is_proxy = |item: &Result<IpAddr, _>| item.is_ok_and(|address| is_in(proxies, address));
    let strangers = items(lines).map(parse_item).filter(|item| !is_proxy(item));
    strangers.last().unwrap_or(Err(Unresolved::AllTrusted))
}

fn items<'a>(lines: impl Iterator<Item = &'a [u8]>) -> impl Iterator<Item = &'a [u8]> {
    lines.flat_map(|line| line.split(|octet| *octet == b','))
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

/// 1 to 5 digits, at most 65535; `u16::from_str` alone would take a sign and more zeros.
fn is_port(text: &str) -> bool {
    text.len() <= 5 && text.bytes().all(|octet| octet.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CASES: &str = include_str!("../../../../tests/cases/client-ip.tsv");

    /// The case file's modes are the flag's without `xff-`; it also has a /0, which the flag refuses.
    fn source(mode: &str) -> ClientAddressSource {
        match mode.split_once(':') {
            None => mode.parse().unwrap(),
            Some(("hops", hops)) => format!("xff-hops={hops}").parse().unwrap(),
            Some((_, proxies)) => {
                ClientAddressSource::XffProxies(proxies.split(',').map(|proxy| proxy.parse().unwrap()).collect())
            }
        }
    }

    fn resolve(source: &ClientAddressSource, peer: IpAddr, lines: &[Vec<u8>]) -> Result<IpAddr, Unresolved> {
        source.resolve(peer, lines.iter().map(Vec::as_slice))
    }

    #[test]
    fn every_case_has_its_address_or_reason() {
        let mut ran = 0;
        for row in CASES.lines().filter(|line| !line.starts_with("# ")) {
            let [mode, peer, headers, expected, ..] = row.split('\t').collect::<Vec<_>>()[..] else {
                panic!("fewer than four columns: {row}");
            };
            // A socket reports the zone of a peer beside its address.
            let peer = peer.split('%').next().unwrap().parse().unwrap();
            let headers: Vec<(String, String)> = serde_json::from_str(headers).unwrap();
            let lines: Vec<Vec<u8>> = headers
                .iter()
                .filter(|(name, _)| name.eq_ignore_ascii_case("x-forwarded-for"))
                .map(|(_, value)| value.chars().map(|octet| u8::try_from(octet).unwrap()).collect())
                .collect();
            let found = match resolve(&source(mode), peer, &lines) {
                Ok(address) => address.to_string(),
                Err(error) => format!("deny:{}", error.as_str()),
            };
            assert_eq!(found, expected, "{row}");
            ran += 1;
        }
        assert!(ran > 0);
    }

    fn check(mode: &str, lines: &[&str], expected: Result<&str, Unresolved>) {
        let lines: Vec<Vec<u8>> = lines.iter().map(|line| line.as_bytes().to_vec()).collect();
        let found = resolve(&source(mode), [10, 0, 0, 5].into(), &lines);
        assert_eq!(found, expected.map(|address| address.parse().unwrap()), "{mode} {lines:?}");
    }

    #[test]
    fn every_counted_entry_must_be_an_address_but_none_to_the_left_of_them() {
        check("hops:2", &["junk, 192.0.2.1, 192.0.2.2"], Ok("192.0.2.1"));
        check("hops:2", &["192.0.2.1, junk"], Err(Unresolved::Malformed));
        check("hops:2", &["192.0.2.1, "], Err(Unresolved::Malformed));
        check("hops:3", &["192.0.2.1,192.0.2.2", "192.0.2.3"], Ok("192.0.2.1"));
        let proxies = "proxies:10.0.0.0/24";
        check(proxies, &["192.0.2.1, junk, 10.0.0.7"], Err(Unresolved::Malformed));
        check(proxies, &["junk", "10.0.0.7"], Err(Unresolved::Malformed));
        check(proxies, &["10.0.0.7,", "192.0.2.1 ,10.0.0.8"], Ok("192.0.2.1"));
        check(proxies, &["192.0.2.1", "198.51.100.1", "::ffff:10.0.0.7"], Ok("198.51.100.1"));
    }

    #[test]
    fn an_entry_may_have_a_port_that_is_a_port() {
        for entry in ["192.0.2.1:0", "192.0.2.1:65535", "192.0.2.1:00443"] {
            check("hops:1", &[entry], Ok("192.0.2.1"));
        }
        for entry in [
            "192.0.2.1:+443",
            "192.0.2.1:-1",
            "192.0.2.1:http",
            "192.0.2.1: 443",
            "192.0.2.1:99999",
            "[::1]:",
            "[::1]:x",
            "[::1] :1",
            "[::1",
            "::1]",
            "[]",
            "[::1]]",
            "[[::1]]",
            "[::1%1]",
        ] {
            check("hops:1", &[entry], Err(Unresolved::Malformed));
        }
    }

    #[test]
    fn tab_and_printable_ascii_are_the_only_octets_even_where_nothing_is_read() {
        for octet in 0..=u8::MAX {
            let line = [&[octet], &b",192.0.2.1"[..]].concat();
            let is_allowed = octet == b'\t' || octet == b' ' || octet.is_ascii_graphic();
            let expected = if is_allowed { Ok([192, 0, 2, 1].into()) } else { Err(Unresolved::BadByte) };
            assert_eq!(resolve(&source("hops:1"), [10, 0, 0, 5].into(), &[line]), expected, "{octet:#04x}");
        }
    }

    #[test]
    fn the_length_limit_is_8192_octets_over_all_lines() {
        let padding = " ".repeat(8192 - "192.0.2.1".len());
        check("hops:1", &[&padding, "192.0.2.1"], Ok("192.0.2.1"));
        check("hops:1", &[&padding, " 192.0.2.1"], Err(Unresolved::TooLong));
    }

    #[test]
    fn a_flag_is_read_and_written_alike() {
        for text in ["peer", "xff-hops=1", "xff-hops=8", "xff-proxies=10.0.0.0/24,2001:db8::1/128"] {
            assert_eq!(text.parse::<ClientAddressSource>().unwrap().to_string(), text);
        }
        let single: ClientAddressSource = "xff-proxies=10.0.0.1".parse().unwrap();
        assert_eq!(single.to_string(), "xff-proxies=10.0.0.1/32");
    }

    #[test]
    fn an_unusable_flag_is_told_what_would_be_good() {
        for (text, part) in [
            ("", "write peer, xff-hops=N"),
            ("Peer", "\"Peer\" is unknown"),
            ("peer=1", "write peer, xff-hops=N"),
            ("xff-hops", "write peer, xff-hops=N"),
            ("xff-hops=", "from 1 to 8"),
            ("xff-hops=0", "from 1 to 8"),
            ("xff-hops=9", "cannot be \"9\""),
            ("xff-hops=01", "from 1 to 8"),
            ("xff-hops=+1", "from 1 to 8"),
            ("xff-hops=1 ", "from 1 to 8"),
            ("xff-hops=\n", "cannot be \"\\n\""),
            ("xff-proxies=", "xff-proxies is empty"),
            ("xff-proxies=10.0.0.1/8", "did you mean \"10.0.0.0/8\"?"),
            ("xff-proxies=10.0.0.0/8, 192.0.2.1", "did you mean \"192.0.2.1\"?"),
            ("xff-proxies=10.0.0.0/8,", "\"\" is not an IPv4 or IPv6 address"),
            ("xff-proxies=10.0.0.0/8,0.0.0.0/0", "0.0.0.0/0 would let every client"),
            ("xff-proxies=::/0", "such as xff-proxies=10.0.0.0/24"),
        ] {
            let message = text.parse::<ClientAddressSource>().unwrap_err().to_string();
            assert!(message.contains(part), "{text:?}: {message}");
        }
    }

    /// The rule as written down: collect the items, then walk from the right.
    fn walk_from_the_right(
        source: &ClientAddressSource,
        peer: IpAddr,
        lines: &[Vec<u8>],
    ) -> Result<IpAddr, Unresolved> {
        let joined = lines.join(&b',');
        let items: Vec<_> = joined.split(|octet| *octet == b',').rev().map(parse_item).collect();
        match source {
            ClientAddressSource::Peer => Ok(peer),
            ClientAddressSource::XffProxies(proxies) if !is_in(proxies, peer) => Ok(peer),
            _ if lines.is_empty() => Err(Unresolved::Missing),
            _ if lines.concat().len() > 8192 => Err(Unresolved::TooLong),
            _ if joined.iter().any(|octet| !(b' '..=b'~').contains(octet) && *octet != b'\t') => {
                Err(Unresolved::BadByte)
            }
            ClientAddressSource::XffHops(hops) => {
                let hops = usize::from(hops.get());
                let ours = items.get(..hops).ok_or(Unresolved::TooShort)?;
                ours.iter().copied().collect::<Result<Vec<_>, _>>()?;
                ours[hops - 1]
            }
            ClientAddressSource::XffProxies(proxies) => {
                for item in items {
                    let address = item?;
                    if !is_in(proxies, address) {
                        return Ok(address);
                    }
                }
                Err(Unresolved::AllTrusted)
            }
        }
    }

    fn any_source() -> impl Strategy<Value = ClientAddressSource> {
        prop_oneof![
            Just("peer".to_owned()),
            "xff-hops=[1-8]",
            "xff-proxies=10\\.0\\.0\\.0/(24|30|32)(,2001:db8::/32)?",
        ]
        .prop_map(|text| text.parse().unwrap())
    }

    fn any_peer() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            any::<u8>().prop_map(|last| IpAddr::from([10, 0, 0, last])),
            any::<[u8; 4]>().prop_map(IpAddr::from),
            any::<[u16; 8]>().prop_map(IpAddr::from),
        ]
    }

    fn any_line() -> impl Strategy<Value = Vec<u8>> {
        let item = prop_oneof![
            4 => "10\\.0\\.0\\.[0-9]",
            4 => "192\\.0\\.2\\.[0-9](:[0-9]{1,6})?",
            2 => "\\[?(::ffff:10\\.0\\.0\\.1|2001:db8::[0-9a-f]|fe80::1)\\]?(:80)?",
            1 => "[ \t0-9a-f:.\\[\\]%]{0,12}",
            1 => Just("0.0.0.0".to_owned()),
        ];
        let items = prop::collection::vec(item, 0..6).prop_map(|items| items.join(", ").into_bytes());
        prop_oneof![
            20 => items,
            1 => prop::collection::vec(any::<u8>(), 0..30),
            1 => Just(b"1.1.1.1,".repeat(1100)),
        ]
    }

    fn any_lines() -> impl Strategy<Value = Vec<Vec<u8>>> {
        prop::collection::vec(any_line(), 0..4)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn one_pass_answers_as_a_walk_from_the_right(
            source in any_source(), peer in any_peer(), lines in any_lines(),
        ) {
            let expected = walk_from_the_right(&source, canonical(peer), &lines);
            prop_assert_eq!(resolve(&source, peer, &lines), expected);
        }

        #[test]
        fn nothing_written_to_the_left_turns_an_address_into_another(
            source in any_source(), peer in any_peer(), lines in any_lines(),
            forged in any_line(), on_a_line_of_its_own in any::<bool>(),
        ) {
            let mut extended = lines.clone();
            match extended.first_mut().filter(|_| !on_a_line_of_its_own) {
                Some(first) => *first = [&forged[..], b",", first].concat(),
                None => extended.insert(0, forged),
            }
            if let Ok(address) = resolve(&source, peer, &lines) {
                let answer = resolve(&source, peer, &extended);
                prop_assert!(answer.is_err() || answer == Ok(address), "{:?}", answer);
            }
        }

        #[test]
        fn a_mapped_peer_and_its_ipv4_address_are_the_same(
            source in any_source(), octets in any::<[u8; 2]>(), lines in any_lines(),
        ) {
            let peer = Ipv4Addr::new(10, 0, octets[0] & 1, octets[1]);
            let mapped = peer.to_ipv6_mapped().into();
            prop_assert_eq!(
                resolve(&source, mapped, &lines),
                resolve(&source, peer.into(), &lines)
            );
        }

        #[test]
        fn no_text_makes_the_flag_parser_panic(text in "(peer|xff-hops|xff-proxies)?=?\\PC{0,60}") {
            if let Ok(source) = text.parse::<ClientAddressSource>() {
                prop_assert_eq!(source.to_string().parse(), Ok(source));
            }
        }
    }
}
