use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::network::width;
use super::*;

const CASES: &str = include_str!("../../../../tests/cases/allowed-ips.tsv");

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
        (&["::/1", "8000::/2", "c000::/3", "e000::/4", "f000::/5", "f800::/6", "fc00::/7", "fe00::/8"], false, true),
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
        ("10.0.0.1,10.0.0.2", r#""10.0.0.1,10.0.0.2" holds a comma; write each address or CIDR as its own list entry"#),
        (
            "localhost",
            r#""localhost" has a character that no IP address or CIDR has; write an address such as 192.0.2.1 or a CIDR such as 192.0.2.0/24"#,
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
            r#"spec.allowedIPs[5]: "x" has a character that no IP address or CIDR has; write an address such as 192.0.2.1 or a CIDR such as 192.0.2.0/24"#,
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
            prop_assert!(message.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{message}");
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
