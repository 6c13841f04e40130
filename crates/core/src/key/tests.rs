use std::collections::HashSet;

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{SeedableRng, TryRng};

use super::*;

const CASES: &str = include_str!("../../../../tests/cases/keys.tsv");

fn unescape(column: &str) -> String {
    serde_json::from_str(&format!("\"{column}\"")).unwrap()
}

#[test]
fn every_case_has_its_verdict_reason_and_digest() {
    let mut ran = 0;
    for row in CASES.lines().filter(|line| !line.starts_with("# ")) {
        let [input, verdict, reason, note] = row.split('\t').collect::<Vec<_>>()[..] else {
            panic!("not four columns: {row}");
        };
        let input = unescape(input);
        let found = Presented::parse(input.as_bytes());
        let expected = if verdict == "accept" { Ok(()) } else { Err(reason) };
        assert_eq!(found.map(drop).map_err(MalformedKey::as_str), expected, "{row}");
        if let (Ok(key), Some((_, hash))) = (found, note.split_once("sha256=")) {
            assert_eq!(key.digest().to_string(), format!("sha256:{hash}"), "{row}");
        }
        ran += 1;
    }
    assert!(ran > 0);
}

#[test]
fn rules_are_checked_in_their_documented_order() {
    let wrong_in_all = "KEYW1-!".to_owned() + &"x".repeat(47);
    assert_eq!(Presented::parse(wrong_in_all.as_bytes()), Err(MalformedKey::Length));
    let wrong_after_length = "KEYW1-!".to_owned() + &"x".repeat(48);
    assert_eq!(Presented::parse(wrong_after_length.as_bytes()), Err(MalformedKey::Prefix));
    let wrong_after_prefix = "keyw1_!".to_owned() + &"x".repeat(48);
    assert_eq!(Presented::parse(wrong_after_prefix.as_bytes()), Err(MalformedKey::Charset));
    let wrong_in_checksum = "keyw1_x".to_owned() + &"x".repeat(48);
    assert_eq!(Presented::parse(wrong_in_checksum.as_bytes()), Err(MalformedKey::Checksum));
}

#[test]
fn a_minted_key_is_well_formed_and_told_apart_by_digest_and_prefix() {
    let mut rng = StdRng::seed_from_u64(1);
    let (mut digests, mut prefixes) = (HashSet::new(), HashSet::new());
    for _ in 0..1000 {
        let key = Key::mint(&mut rng).unwrap();
        let presented = Presented::parse(key.reveal().as_bytes()).unwrap();
        assert_eq!(*presented.digest(), key.digest());
        assert_eq!(presented.prefix(), key.prefix());
        assert_eq!(key.prefix().as_str(), &key.reveal()[..PREFIX_LENGTH]);
        assert!(digests.insert(key.digest()) && prefixes.insert(key.prefix()));
    }
}

#[test]
fn minted_symbols_are_uniform() {
    let mut rng = StdRng::seed_from_u64(2);
    let mut counts = [0u32; 128];
    for _ in 0..2400 {
        let key = Key::mint(&mut rng).unwrap();
        for byte in &key.reveal().as_bytes()[KEY_START.len()..COVERED_LENGTH] {
            counts[usize::from(*byte)] += 1;
        }
    }
    let expected = f64::from(counts.iter().sum::<u32>()) / f64::from(BASE);
    let chi_square: f64 = (b'0'..=b'z')
        .filter(u8::is_ascii_alphanumeric)
        .map(|byte| (f64::from(counts[usize::from(byte)]) - expected).powi(2) / expected)
        .sum();
    // 61 degrees of freedom: mean 61, standard deviation 11. Taking every byte modulo 62 gives 700.
    assert!(chi_square < 130.0, "chi-square {chi_square}");
}

#[test]
fn a_failing_random_source_mints_no_key() {
    struct Broken;
    impl TryRng for Broken {
        type Error = fmt::Error;
        fn try_next_u32(&mut self) -> Result<u32, fmt::Error> {
            Err(fmt::Error)
        }
        fn try_next_u64(&mut self) -> Result<u64, fmt::Error> {
            Err(fmt::Error)
        }
        fn try_fill_bytes(&mut self, _: &mut [u8]) -> Result<(), fmt::Error> {
            Err(fmt::Error)
        }
    }
    impl TryCryptoRng for Broken {}
    assert!(Key::mint(&mut Broken).is_err());
}

#[test]
fn a_key_cannot_be_printed_copied_or_serialized() {
    /// Which impl is meant is ambiguous, and does not compile, where `Key` has the trait.
    macro_rules! assert_key_is_not {
        ($name:ident, $absent:path) => {
            trait $name<Case> {
                fn holds() {}
            }
            impl<T: ?Sized> $name<()> for T {}
            impl<T: ?Sized + $absent> $name<u8> for T {}
            <Key as $name<_>>::holds();
        };
    }
    assert_key_is_not!(NotDebug, fmt::Debug);
    assert_key_is_not!(NotDisplay, fmt::Display);
    assert_key_is_not!(NotClone, Clone);
    assert_key_is_not!(NotSerialize, serde::Serialize);
}

#[test]
fn debug_output_of_a_presented_key_is_its_prefix() {
    let key = Key::mint(&mut StdRng::seed_from_u64(3)).unwrap();
    let presented = Presented::parse(key.reveal().as_bytes()).unwrap();
    assert_eq!(format!("{presented:?}"), format!("Presented({})", key.prefix()));
}

#[test]
fn a_digest_is_read_in_one_spelling_only() {
    let text = Digest::of(b"").to_string();
    assert_eq!(text, "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    assert_eq!(text.parse(), Ok(Digest::of(b"")));
    assert_eq!(format!("{:?}", Digest::of(b"")), text);
    let hex = &text["sha256:".len()..];
    for wrong in [
        "",
        "sha256:",
        hex,
        &text.to_uppercase(),
        &format!("sha256:{}", hex.to_uppercase()),
        &format!("SHA256:{hex}"),
        &format!("sha256:{hex}0"),
        &format!("sha256:{hex}00"),
        &format!(" {text}"),
        &format!("{text}\n"),
        &text[..text.len() - 1],
        &text[..text.len() - 2],
        &text.replace('e', "g"),
        &text.replace("e3", "+3"),
        &format!("sha512:{hex}"),
    ] {
        assert_eq!(wrong.parse::<Digest>(), Err(InvalidDigest), "{wrong}");
    }
}

#[test]
fn a_prefix_is_read_in_one_shape_only() {
    let text = "keyw1_eVULq19j";
    assert_eq!(text.parse::<Prefix>().unwrap().to_string(), text);
    for wrong in [
        "",
        "keyw1_",
        "keyw1_eVULq19",
        "keyw1_eVULq19jg",
        "keyw2_eVULq19j",
        "keyw1_eVULq19_",
        "keyw1_eVULqé9",
        " keyw1_eVULq19j",
    ] {
        assert_eq!(wrong.parse::<Prefix>(), Err(InvalidPrefix), "{wrong}");
    }
}

proptest! {
    #[test]
    fn no_octets_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
        let _ = Presented::parse(&bytes);
        let text = String::from_utf8_lossy(&bytes);
        let _ = (text.parse::<Digest>(), text.parse::<Prefix>());
    }

    #[test]
    fn nothing_near_a_key_makes_the_parser_panic(
        tail in prop::collection::vec(any::<u8>(), 47..51),
    ) {
        let _ = Presented::parse(&[KEY_START.as_bytes(), &tail].concat());
    }

    #[test]
    fn the_checksum_finds_every_single_wrong_symbol(
        seed in any::<u64>(),
        place in KEY_START.len()..KEY_LENGTH,
        wrong in "[0-9A-Za-z]",
    ) {
        let key = Key::mint(&mut StdRng::seed_from_u64(seed)).unwrap();
        let mut bytes = key.reveal().as_bytes().to_vec();
        prop_assume!(bytes[place] != wrong.as_bytes()[0]);
        bytes[place] = wrong.as_bytes()[0];
        prop_assert_eq!(Presented::parse(&bytes), Err(MalformedKey::Checksum));
    }

    #[test]
    fn a_checksum_has_one_spelling(checksum in any::<u32>(), multiple in 1u64..=12) {
        prop_assert_eq!(checksum_value(&checksum_symbols(checksum)), u64::from(checksum));
        let mut rest = u64::from(checksum) + (multiple << 32);
        let mut symbols = [b'0'; CHECKSUM_LENGTH];
        for place in symbols.iter_mut().rev() {
            *place = symbol((rest % 62) as u32);
            rest /= 62;
        }
        prop_assume!(rest == 0);
        prop_assert_ne!(checksum_value(&symbols), u64::from(checksum));
    }

    #[test]
    fn a_digest_survives_being_written_and_read(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let digest = Digest::of(&bytes);
        prop_assert_eq!(digest.to_string().parse(), Ok(digest));
    }
}
