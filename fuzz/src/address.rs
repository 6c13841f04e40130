use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use keywright_core::address::{AllowedAddresses, MAX_ENTRIES, Network, canonical};

use crate::assert_fit_to_print;

/// First and last address of a network, both as 128 bits, and whether it is of IPv4.
pub(crate) type Range = (u128, u128, bool);

/// Each line of the input is an entry, and all of them are a list.
pub fn address_entry(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let lines: Vec<&str> = text.split('\n').take(MAX_ENTRIES + 2).collect();
    let ranges: Vec<Option<Range>> = lines.iter().map(|line| entry(line)).collect();
    list(&lines, &ranges);
}

fn entry(text: &str) -> Option<Range> {
    let expected = read(text);
    match Network::parse(text) {
        Ok(network) => {
            let (address, length) = expected.unwrap_or_else(|| panic!("{text:?} is accepted as {network}"));
            let shown = network.to_string();
            assert_eq!(shown, format!("{address}/{length}"), "{text:?}");
            assert_eq!(Network::parse(&shown), Ok(network), "{text:?}");
            assert_eq!((network.is_ipv4(), network.is_everything()), (address.is_ipv4(), length == 0), "{text:?}");
            let range = range(address, length);
            for probe in neighbours(range) {
                assert_eq!(network.contains(probe), contains(&[range], probe), "{text:?} and {probe}");
            }
            Some(range)
        }
        Err(refusal) => {
            assert_eq!(expected, None, "{text:?} is refused: {refusal}");
            assert_fit_to_print(&refusal.to_string());
            if let Some(suggestion) = refusal.suggestion() {
                assert!(suggestion != text && read(suggestion).is_some(), "{text:?} should become {suggestion:?}");
            }
            None
        }
    }
}

fn list(lines: &[&str], ranges: &[Option<Range>]) {
    let refused = ranges.iter().take(MAX_ENTRIES).filter(|range| range.is_none()).count();
    let accepted: Vec<Range> = ranges.iter().take(MAX_ENTRIES).copied().flatten().collect();
    let repeated = accepted.len() - accepted.iter().collect::<HashSet<_>>().len();
    let too_many = usize::from(lines.len() > MAX_ENTRIES);
    match AllowedAddresses::parse(lines) {
        Ok(allowed) => {
            assert_eq!((refused, repeated, too_many), (0, 0, 0), "{lines:?}");
            let entries = allowed.canonical_entries();
            assert_eq!(entries.len(), lines.len());
            assert_eq!(AllowedAddresses::parse(&entries).as_ref(), Ok(&allowed), "{lines:?}");
            let probes: Vec<IpAddr> = accepted.iter().flat_map(|range| neighbours(*range)).chain(edges()).collect();
            for probe in &probes {
                assert_eq!(allowed.contains(*probe), contains(&accepted, *probe), "{lines:?} and {probe}");
            }
            let covers = |is_ipv4| {
                let mut clients = probes.iter().filter(|probe| probe.is_ipv4() == is_ipv4 && is_client(**probe));
                accepted.iter().any(|range| range.2 == is_ipv4) && clients.all(|probe| contains(&accepted, *probe))
            };
            assert_eq!((allowed.covers_ipv4(), allowed.covers_ipv6()), (covers(true), covers(false)), "{lines:?}");
        }
        Err(problems) => {
            assert_eq!(problems.len(), refused + repeated + too_many, "{lines:?}: {problems:?}");
            problems.iter().for_each(|problem| assert_fit_to_print(&problem.to_string()));
        }
    }
}

/// The second reading of an entry, by std and arithmetic on 128 bits.
fn read(text: &str) -> Option<(IpAddr, u32)> {
    let is_plain = text.len() <= 43 && text.bytes().all(|octet| b"0123456789abcdefABCDEF:./".contains(&octet));
    let is_mixed = text.contains(':') && text.contains('.');
    if !is_plain || is_mixed {
        return None;
    }
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address.parse::<IpAddr>().ok()?, length.parse::<u32>().ok()?),
        None => {
            let address = text.parse::<IpAddr>().ok()?;
            (address, if address.is_ipv4() { 32 } else { 128 })
        }
    };
    let is_written_canonically = text.split_once('/').is_none_or(|(_, digits)| digits == length.to_string());
    let is_possible = length <= if address.is_ipv4() { 32 } else { 128 };
    if !is_written_canonically || !is_possible {
        return None;
    }
    let (first, last, is_ipv4) = range(address, length);
    let has_host_bits = first != bits(address);
    let mapped = (0xffff_0000_0000, 0xffff_ffff_ffff);
    let overlaps_mapped = !is_ipv4 && length >= 80 && first <= mapped.1 && mapped.0 <= last;
    (!has_host_bits && !overlaps_mapped && !is_nobody((first, last, is_ipv4))).then_some((address, length))
}

/// Whether all of the range is multicast, or it is one address that nobody has.
fn is_nobody((first, last, is_ipv4): Range) -> bool {
    let multicast = if is_ipv4 { (0xe000_0000, 0xefff_ffff) } else { (0xff << 120, u128::MAX) };
    let is_multicast = multicast.0 <= first && last <= multicast.1;
    is_multicast || first == last && (first == 0 || is_ipv4 && first == u128::from(u32::MAX))
}

/// Whether a client can have this address.
pub(crate) fn is_client(address: IpAddr) -> bool {
    canonical(address) == address && !is_nobody((bits(address), bits(address), address.is_ipv4()))
}

pub(crate) fn range(address: IpAddr, length: u32) -> Range {
    let width = if address.is_ipv4() { 32 } else { 128 };
    let host = if length == width { 0 } else { u128::MAX >> (128 - width + length) };
    (bits(address) & !host, bits(address) | host, address.is_ipv4())
}

pub(crate) fn contains(ranges: &[Range], address: IpAddr) -> bool {
    let is_in = |(first, last, is_ipv4): &Range| {
        *is_ipv4 == address.is_ipv4() && *first <= bits(address) && bits(address) <= *last
    };
    ranges.iter().any(is_in)
}

/// Both ends of a range and what is next to them, and the same number in the other family.
fn neighbours((first, last, is_ipv4): Range) -> impl Iterator<Item = IpAddr> {
    let numbers = [first, last, first.saturating_sub(1), last.saturating_add(1)];
    numbers.into_iter().flat_map(move |number| [address(number, is_ipv4), address(number, !is_ipv4)]).flatten()
}

/// What is next to the addresses that nobody has.
fn edges() -> impl Iterator<Item = IpAddr> {
    let ipv4 = [1, 0xdfff_ffff, 0xf000_0000, 0xffff_fffe].map(|number| address(number, true));
    let ipv6 = [1, 0xfffe_ffff_ffff, 0x1_0000_0000_0000, (0xff << 120) - 1].map(|number| address(number, false));
    ipv4.into_iter().chain(ipv6).flatten()
}

fn address(number: u128, is_ipv4: bool) -> Option<IpAddr> {
    if is_ipv4 {
        u32::try_from(number).ok().map(|number| Ipv4Addr::from_bits(number).into())
    } else {
        Some(Ipv6Addr::from_bits(number).into())
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}
