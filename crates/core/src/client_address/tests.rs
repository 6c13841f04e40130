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
            .map(|(_, value)| value.chars().map(|byte| u8::try_from(byte).unwrap()).collect())
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
    for byte in 0..=u8::MAX {
        let line = [&[byte], &b",192.0.2.1"[..]].concat();
        let is_allowed = byte == b'\t' || byte == b' ' || byte.is_ascii_graphic();
        let expected = if is_allowed { Ok([192, 0, 2, 1].into()) } else { Err(Unresolved::BadByte) };
        assert_eq!(resolve(&source("hops:1"), [10, 0, 0, 5].into(), &[line]), expected, "{byte:#04x}");
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
fn walk_from_the_right(source: &ClientAddressSource, peer: IpAddr, lines: &[Vec<u8>]) -> Result<IpAddr, Unresolved> {
    let joined = lines.join(&b',');
    let items: Vec<_> = joined.split(|byte| *byte == b',').rev().map(parse_item).collect();
    match source {
        ClientAddressSource::Peer => Ok(peer),
        ClientAddressSource::XffProxies(proxies) if !is_in(proxies, peer) => Ok(peer),
        _ if lines.is_empty() => Err(Unresolved::Missing),
        _ if lines.concat().len() > 8192 => Err(Unresolved::TooLong),
        _ if joined.iter().any(|byte| !(b' '..=b'~').contains(byte) && *byte != b'\t') => Err(Unresolved::BadByte),
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
    prop_oneof![Just("peer".to_owned()), "xff-hops=[1-8]", "xff-proxies=10\\.0\\.0\\.0/(24|30|32)(,2001:db8::/32)?",]
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
        source in any_source(), bytes in any::<[u8; 2]>(), lines in any_lines(),
    ) {
        let peer = Ipv4Addr::new(10, 0, bytes[0] & 1, bytes[1]);
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
