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
        let kind = |key: Presented<'_>| if key.is_foreign() { "foreign" } else { "ok" };
        let expected = if verdict == "accept" { Ok(reason) } else { Err(reason) };
        assert_eq!(found.map(kind).map_err(MalformedKey::as_str), expected, "{row}");
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
fn a_foreign_key_is_16_to_256_visible_characters_that_are_no_list_and_no_quotes() {
    let lengths = (0..400).filter(|length| Presented::parse("k".repeat(*length).as_bytes()).is_ok());
    assert!(lengths.eq(16..=256));
    let characters = (0..=u8::MAX).filter(|octet| Presented::parse(&[[*octet; 16], [b'k'; 16]].concat()).is_ok());
    let visible = (b'!'..=b'~').filter(|octet| !b"\",".contains(octet));
    assert!(characters.eq(visible), "wherever they stand");
}

/// A mistyped own key, or one of a version to come, must never be looked up as somebody else's.
#[test]
fn what_begins_with_keyw_is_an_own_key_or_none() {
    for start in ["keyw", "KEYW", "Keyw", "keyW1_", "keyw2_", "keywright-", "keyw1_"] {
        for length in start.len()..300 {
            let text = format!("{start:k<length$}");
            let found = Presented::parse(text.as_bytes());
            assert!(found.is_err(), "{text}");
            assert_eq!(found == Err(MalformedKey::Length), length != KEY_LENGTH, "{text}");
        }
    }
    assert!(Presented::parse(b"key-0123456789abcdef").unwrap().is_foreign());
    assert!(Presented::parse(b"a_keyw1_01234567").unwrap().is_foreign());
}

#[test]
fn a_foreign_key_may_stand_after_bearer_if_it_is_a_b64token() {
    for (key, fits) in [
        ("0123456789ABCxyz", true),
        ("-._~+/0123456789", true),
        ("MDEyMzQ1Njc4OQ==", true),
        ("MDEyMzQ1Njc4OQ====", true),
        ("================", false),
        ("=MDEyMzQ1Njc4OQ=", false),
        ("MDEyMzQ1=Njc4OQ=", false),
        ("0123456789abcde!", false),
        ("0123456789:abcde", false),
        ("$0123456789abcde", false),
        (crate::testing::KEY, true),
    ] {
        assert_eq!(Presented::parse(key.as_bytes()).unwrap().is_b64token(), fits, "{key}");
    }
}

#[test]
fn of_a_foreign_key_only_the_start_of_its_digest_is_shown() {
    let key = Presented::parse(b"live_0123456789abcdef").unwrap();
    let digest = key.digest();
    assert_eq!(digest, Digest::of(b"live_0123456789abcdef"));
    assert_eq!(key.shown(&digest).as_str(), &digest.to_string()[..19]);
    assert_eq!((key.prefix(), format!("{key:?}")), (None, "Presented(foreign)".to_owned()));
    let own = Presented::parse(crate::testing::KEY.as_bytes()).unwrap();
    assert_eq!(own.shown(&own.digest()).as_str(), "keyw1_eVULq19j");
}

/// A Secret's value, and the name of the rule that it breaks.
#[test]
fn the_value_of_a_secret_is_a_key_of_either_kind_or_breaks_a_rule_that_is_named() {
    let own = crate::testing::KEY;
    let long = "k".repeat(256);
    for (value, expected) in [
        (own, Ok(())),
        ("0123456789abcdef0123456789abcdee", Ok(())),
        (&long, Ok(())),
        ("", Err(UnfitKey::Short)),
        ("\n", Err(UnfitKey::TrailingNewline)),
        (&format!("{own}\n"), Err(UnfitKey::TrailingNewline)),
        ("0123456789abcdef0123456789abcdee\r\n", Err(UnfitKey::TrailingNewline)),
        ("0123456789abcdef0123456789abcde", Err(UnfitKey::Short)),
        (&format!("{long}k"), Err(UnfitKey::Long)),
        ("0123456789abcdef 0123456789abcdef", Err(UnfitKey::Charset)),
        ("0123456789abcdef,0123456789abcdef", Err(UnfitKey::Charset)),
        ("\"0123456789abcdef0123456789abcdef\"", Err(UnfitKey::Charset)),
        ("0123456789abcdef0123456789abcdef\r", Err(UnfitKey::Charset)),
        ("0123456789abcdéf0123456789abcdéf", Err(UnfitKey::Charset)),
        ("00000000000000000000000000000000", Err(UnfitKey::Trivial)),
        ("keyw", Err(UnfitKey::Malformed(MalformedKey::Length))),
        (&own[..54], Err(UnfitKey::Malformed(MalformedKey::Length))),
        (&own.to_uppercase(), Err(UnfitKey::Malformed(MalformedKey::Prefix))),
        (&own.replace("eVUL", "e-UL"), Err(UnfitKey::Malformed(MalformedKey::Charset))),
        (&own.replace("eVUL", "eVUl"), Err(UnfitKey::Malformed(MalformedKey::Checksum))),
        ("KeyWright-0123456789abcdef0123456789abcdef", Err(UnfitKey::Malformed(MalformedKey::Length))),
    ] {
        let found = read_submitted(value.as_bytes());
        assert_eq!(found, expected.map(|()| Digest::of(value.as_bytes())), "{value}");
        let message = found.err().map(|unfit| unfit.to_string()).unwrap_or_default();
        assert!(value.len() < 5 || !message.contains(value.trim()), "{message}");
    }
}

#[test]
fn digests_of_nothing_of_trivial_texts_and_of_no_text_are_worthless() {
    let hex = |digits: String| format!("sha256:{digits}").parse::<Digest>().unwrap();
    assert!(HashSet::from(trivial::TEXTS).len() == trivial::TEXTS.len());
    for (digest, expected) in [
        (hex("0".repeat(64)), WorthlessDigest::Placeholder),
        (hex("f".repeat(64)), WorthlessDigest::Placeholder),
        // printf %s "" | sha256sum, and echo | sha256sum
        (hex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".to_owned()), WorthlessDigest::Empty),
        (hex("01ba4719c80b6fe911b091a7c05124b64eeece964e09c058ef8f9805daca546b".to_owned()), WorthlessDigest::Empty),
        // printf %s password | sha256sum, and echo password | sha256sum
        (hex("5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8".to_owned()), WorthlessDigest::Trivial),
        (hex("6b3a55e0261b0304143f805a24924d0c1c44524821305f31d9277843b8a10f4e".to_owned()), WorthlessDigest::Trivial),
    ] {
        assert_eq!(digest.worthlessness(), Some(expected), "{digest}");
    }
    for text in trivial::TEXTS {
        for slip in [text.to_owned(), format!("{text}\n")] {
            assert_eq!(Digest::of(slip.as_bytes()).worthlessness(), Some(WorthlessDigest::Trivial), "{slip:?}");
        }
    }
    for good in [crate::testing::KEY, "live_0123456789abcdef", "password\n\n", "Password"] {
        assert_eq!(Digest::of(good.as_bytes()).worthlessness(), None, "{good}");
    }
    assert_eq!(hex(format!("{}1", "0".repeat(63))).worthlessness(), None);
    assert_eq!(hex("7".repeat(64)).worthlessness(), None);
}

#[test]
fn a_minted_key_is_well_formed_and_told_apart_by_digest_and_prefix() {
    let mut rng = StdRng::seed_from_u64(1);
    let (mut digests, mut prefixes) = (HashSet::new(), HashSet::new());
    for _ in 0..1000 {
        let key = Key::mint(&mut rng).unwrap();
        let presented = Presented::parse(key.reveal().as_bytes()).unwrap();
        assert_eq!(presented.digest(), key.digest());
        assert_eq!(presented.prefix(), Some(key.prefix()));
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
