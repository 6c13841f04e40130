use std::net::{IpAddr, SocketAddr};

use keywright_core::address::{Network, canonical};
use keywright_core::client_address::{ClientAddressSource, Unresolved};

use crate::address::is_client;
use crate::assert_fit_to_print;

/// The first line of the input is the source as in the flag, the second one the peer, and each further one a line of
/// `X-Forwarded-For`.
pub fn client_address(data: &[u8]) {
    let mut lines = data.split(|octet| *octet == b'\n');
    let mut text = || String::from_utf8_lossy(lines.next().unwrap_or_default());
    let (source, peer) = (text(), text());
    let forwarded_for: Vec<&[u8]> = lines.collect();
    let source: ClientAddressSource = match source.parse() {
        Ok(source) => source,
        Err(invalid) => return assert_fit_to_print(&invalid.to_string()),
    };
    assert_eq!(source.to_string().parse().as_ref(), Ok(&source));
    let Ok(peer) = peer.parse() else { return };

    let resolve = |lines: &[&[u8]]| source.resolve(peer, lines.iter().copied());
    let answer = resolve(&forwarded_for);
    assert_eq!(answer, read(&source, peer, &forwarded_for), "{source} {peer} {forwarded_for:?}");
    let Ok(client) = answer else { return };
    assert!(source == ClientAddressSource::Peer || client == canonical(peer) || is_client(client), "{client}");

    // What a client sends stands to the left of what the proxies wrote.
    for claim in ["198.51.100.77", "junk", ""] {
        let longer = [&[claim.as_bytes()], &*forwarded_for].concat();
        assert!([Ok(client), Err(Unresolved::TooLong)].contains(&resolve(&longer)), "{claim:?} {forwarded_for:?}");
    }
    // A proxy may join lines, and may not change what they say by it.
    if !forwarded_for.is_empty() {
        let joined = forwarded_for.join(&b","[..]);
        assert!([Ok(client), Err(Unresolved::TooLong)].contains(&resolve(&[&joined])), "{forwarded_for:?}");
    }
}

/// The second reading: all items into one list, and std's parsers.
pub(crate) fn read(source: &ClientAddressSource, peer: IpAddr, lines: &[&[u8]]) -> Result<IpAddr, Unresolved> {
    let peer = peer.to_canonical();
    let is_in = |networks: &[Network], address| networks.iter().any(|network| network.contains(address));
    match source {
        ClientAddressSource::Peer => return Ok(peer),
        ClientAddressSource::XffProxies(proxies) if !is_in(proxies, peer) => return Ok(peer),
        _ if lines.is_empty() => return Err(Unresolved::Missing),
        _ if lines.concat().len() > 8192 => return Err(Unresolved::TooLong),
        _ => {}
    }
    let joined = String::from_utf8(lines.join(&b","[..])).map_err(|_| Unresolved::BadByte)?;
    if joined.chars().any(|character| character != '\t' && (!character.is_ascii() || character.is_control())) {
        return Err(Unresolved::BadByte);
    }
    let from_the_right: Vec<Option<IpAddr>> = joined.rsplit(',').map(item).collect();
    match source {
        ClientAddressSource::XffHops(hops) => {
            let ours = from_the_right.get(..hops.get().into()).ok_or(Unresolved::TooShort)?;
            let ours: Option<Vec<IpAddr>> = ours.iter().copied().collect();
            ours.and_then(|ours| ours.last().copied()).ok_or(Unresolved::Malformed)
        }
        ClientAddressSource::XffProxies(proxies) => {
            let mut strangers = from_the_right.iter().filter(|item| item.is_none_or(|item| !is_in(proxies, item)));
            strangers.next().map_or(Err(Unresolved::AllTrusted), |client| client.ok_or(Unresolved::Malformed))
        }
        ClientAddressSource::Peer => Ok(peer),
    }
}

fn item(text: &str) -> Option<IpAddr> {
    let text = text.trim_matches([' ', '\t']);
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok().map(IpAddr::V6);
    let with_port = || {
        let port = text.rsplit(':').next()?;
        let address: SocketAddr = text.parse().ok()?;
        (port.len() <= 5 && !text.contains('%')).then_some(address.ip())
    };
    let address: Option<IpAddr> = text.parse().ok().or_else(bracketed).or_else(with_port);
    address.map(|address| address.to_canonical()).filter(|address| is_client(*address))
}
