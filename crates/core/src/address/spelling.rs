//! The nearest valid spelling of a refused entry: a guess for a person.
//!
//! It is lenient on purpose, and so stays apart from the parser. It decides nothing about access, and a guess is only
//! shown if the parser accepts it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::network::{Network, width};

/// Bytes of the longest entry that is guessed at. Longer ones are not one mistyped address.
const MAX_LENGTH: usize = 128;

/// What `entry` was probably meant to be, if the parser would accept that.
pub(super) fn nearest(entry: &str) -> Option<String> {
    if entry.len() > MAX_LENGTH {
        return None;
    }
    let text: String = entry.chars().map(half_width).collect();
    let text = without_port(text.trim_matches(is_padding));
    let guess = match text.split_once('/') {
        Some((address, "")) => single(lenient_address(address)?),
        Some((address, length)) => network(address.trim(), length.trim())?,
        None => match wildcard(text) {
            Some(network) => network.to_string(),
            None => single(lenient_address(text)?),
        },
    };
    Network::read(&guess).is_ok().then_some(guess)
}

/// `text` without the port after an IPv4 address, an IPv4 network or an IPv6 address in brackets.
pub(super) fn without_port(text: &str) -> &str {
    match text.rsplit_once(':') {
        Some((address, port)) if is_port(port) => {
            let is_ipv4 = address.contains('.') && address.bytes().all(|b| b.is_ascii_digit() || b"./".contains(&b));
            let is_bracketed = address.starts_with('[') && address.ends_with(']');
            if is_ipv4 || is_bracketed { address } else { text }
        }
        _ => text,
    }
}

fn single(address: IpAddr) -> String {
    address.to_canonical().to_string()
}

fn network(address: &str, length: &str) -> Option<String> {
    let address = lenient_address(address).or_else(|| padded(address))?;
    let prefix_length = lenient_length(length, address)?;
    let network = match address {
        IpAddr::V6(mapped) if mapped.to_ipv4_mapped().is_some() => {
            Network { address: address.to_canonical(), prefix_length: prefix_length.checked_sub(96)? }
        }
        _ => Network { address, prefix_length },
    };
    let masked = network.masked();
    // A hint must not allow everybody: 1.2.3.4/0 more likely meant that one address.
    let widened_to_everything = masked.is_everything() && masked != network;
    let meant =
        if widened_to_everything { Network { prefix_length: width(network.address), ..network } } else { masked };
    Some(meant.to_string())
}

/// An address without the brackets, port or zone around it and the leading zeros in it.
fn lenient_address(text: &str) -> Option<IpAddr> {
    let text = without_port(text);
    let text = match text.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?,
        None => text,
    };
    let text = text.split_once('%').map_or(text, |(address, _zone)| address);
    without_leading_zeros(text).parse().ok()
}

/// `10/8` and `192.168/16`: an IPv4 network without its last zeros.
fn padded(text: &str) -> Option<IpAddr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for (octet, part) in octets.iter_mut().zip(&mut parts) {
        *octet = part.parse().ok()?;
    }
    parts.next().is_none().then_some(IpAddr::from(octets))
}

/// `192.168.*` and `192.168.*.*`, but not `*`: a hint must not allow everybody.
fn wildcard(text: &str) -> Option<Network> {
    let known = text.split('.').take_while(|part| *part != "*").count();
    let parts: Vec<&str> = text.split('.').collect();
    let (numbers, stars) = parts.split_at_checked(known)?;
    let is_wildcard = !stars.is_empty() && parts.len() <= 4 && stars.iter().all(|part| *part == "*");
    let prefix_length = u8::try_from(known * 8).ok().filter(|length| *length > 0)?;
    let address = padded(&numbers.join("."))?;
    is_wildcard.then_some(Network { address, prefix_length })
}

/// A prefix length with sign or leading zeros, or a netmask or wildcard mask in its place.
fn lenient_length(text: &str, address: IpAddr) -> Option<u8> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    if digits.bytes().all(|byte| byte.is_ascii_digit()) {
        let length = without_leading_zeros(digits).parse().ok()?;
        return (length <= width(address)).then_some(length);
    }
    let ones = match address {
        IpAddr::V4(_) => {
            let mask: Ipv4Addr = text.parse().ok()?;
            let mask = mask.to_bits().max(!mask.to_bits());
            (mask.leading_ones() + mask.trailing_zeros() == 32).then_some(mask.leading_ones())
        }
        IpAddr::V6(_) => {
            let mask: Ipv6Addr = text.parse().ok()?;
            let mask = mask.to_bits().max(!mask.to_bits());
            (mask.leading_ones() + mask.trailing_zeros() == 128).then_some(mask.leading_ones())
        }
    };
    u8::try_from(ones?).ok()
}

fn without_leading_zeros(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for part in text.split_inclusive(['.', ':']) {
        let digits = part.trim_end_matches(['.', ':']);
        let significant = digits.trim_start_matches('0');
        if significant.is_empty() && !digits.is_empty() {
            plain.push('0');
        }
        plain.push_str(significant);
        plain.push_str(part.strip_prefix(digits).unwrap_or_default());
    }
    plain
}

fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok()
}

/// Characters that copy and paste leaves around an address: spaces, quotes, and invisible marks.
fn is_padding(character: char) -> bool {
    character.is_whitespace()
        || character.is_control()
        || matches!(character, '"' | '\'' | '`')
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}')
        || matches!(character, '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// The ASCII character for a full-width one, or for another system's separator.
fn half_width(character: char) -> char {
    match character {
        '\u{ff01}'..='\u{ff5e}' => char::from_u32(u32::from(character) - 0xfee0).unwrap_or(character),
        '\u{3002}' => '.',
        '\\' | '\u{2044}' | '\u{2215}' => '/',
        _ => character,
    }
}
