use std::str;

use keywright_core::key::{Digest, MalformedKey, Prefix, Presented, UnfitKey, read_submitted};
use sha2::Digest as _;

const SYMBOLS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// What octets are, if they are a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Own,
    Foreign,
}

/// The input is tried as a key, as a digest and as a prefix; and a good key is made of it, and spoilt.
pub fn key(data: &[u8]) {
    check(data);
    check_submitted(data);
    texts(&String::from_utf8_lossy(data));

    let good = made_of(data);
    assert_eq!(read(&good), Ok(Kind::Own), "{good:?}");
    check(&good);
    let [.., place, octet] = data else { return };
    let mut spoilt = good;
    let place = usize::from(*place) % spoilt.len();
    spoilt[place] = *octet;
    let is_own = Presented::parse(&spoilt).is_ok_and(|key| !key.is_foreign());
    assert_eq!(is_own, spoilt == good, "one octet is another: {spoilt:?}");
    check(&spoilt);
    check_submitted(&spoilt);
}

fn check(octets: &[u8]) {
    let parsed = Presented::parse(octets);
    let kind = |key: Presented<'_>| if key.is_foreign() { Kind::Foreign } else { Kind::Own };
    assert_eq!(parsed.map(kind), read(octets), "{octets:?}");
    let Ok(key) = parsed else { return };
    let hash = sha2::Sha256::digest(octets);
    let digits: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    let digest = key.digest();
    assert_eq!(digest.to_string(), format!("sha256:{digits}"));
    let (shown, debugged) = (key.shown(&digest).to_string(), format!("{key:?}"));
    if key.is_foreign() {
        assert_eq!((shown, debugged), (format!("sha256:{}", &digits[..12]), "Presented(foreign)".to_owned()));
    } else {
        assert_eq!(shown.as_bytes(), &octets[..14]);
        assert_eq!(debugged, format!("Presented({shown})"));
    }
    assert_eq!(key.is_b64token(), fits_bearer(octets), "{octets:?}");
}

/// What a Secret may hold is what a request may present, but for short and trivial foreign keys.
fn check_submitted(octets: &[u8]) {
    match (read_submitted(octets), read(octets)) {
        (Ok(digest), Ok(kind)) => {
            assert_eq!(digest, Digest::of(octets));
            assert!(kind == Kind::Own || octets.len() >= 32, "{octets:?}");
        }
        (Err(UnfitKey::Short), Ok(Kind::Foreign)) => assert!(octets.len() < 32, "{octets:?}"),
        (Err(UnfitKey::Trivial), Ok(Kind::Foreign)) => assert!(Digest::of(octets).worthlessness().is_some()),
        (Err(unfit), Err(_)) => {
            assert_eq!(unfit == UnfitKey::TrailingNewline, octets.last() == Some(&b'\n'), "{octets:?}");
        }
        (found, expected) => panic!("{found:?} where a request has {expected:?}: {octets:?}"),
    }
}

fn texts(text: &str) {
    let is_digest = text.len() == 71
        && text.starts_with("sha256:")
        && text[7..].bytes().all(|digit| b"0123456789abcdef".contains(&digit));
    match text.parse::<Digest>() {
        Ok(digest) => assert!(is_digest && digest.to_string() == text, "{text:?}"),
        Err(_) => assert!(!is_digest, "{text:?}"),
    }
    let is_prefix =
        text.len() == 14 && text.starts_with("keyw1_") && text.bytes().skip(6).all(|symbol| SYMBOLS.contains(&symbol));
    match text.parse::<Prefix>() {
        Ok(prefix) => assert!(is_prefix && prefix.as_str() == text, "{text:?}"),
        Err(_) => assert!(!is_prefix, "{text:?}"),
    }
}

/// The second reading.
pub(crate) fn read(octets: &[u8]) -> Result<Kind, MalformedKey> {
    let text = String::from_utf8_lossy(octets);
    if text.to_ascii_lowercase().starts_with("keyw") {
        return read_own(octets).map(|()| Kind::Own);
    }
    let is_visible = |octet: &u8| (0x21..0x7f).contains(octet) && ![b'"', b','].contains(octet);
    match octets.len() {
        16..=256 if octets.iter().all(is_visible) => Ok(Kind::Foreign),
        16..=256 if !text.contains("keyw1_") => Err(MalformedKey::Charset),
        _ => Err(MalformedKey::Length),
    }
}

/// An own key, with a checksum that is computed bit by bit.
fn read_own(octets: &[u8]) -> Result<(), MalformedKey> {
    let key: &[u8; 55] = octets.try_into().map_err(|_| MalformedKey::Length)?;
    if !key.starts_with(b"keyw1_") {
        return Err(MalformedKey::Prefix);
    }
    if key[6..].iter().any(|symbol| !SYMBOLS.contains(symbol)) {
        return Err(MalformedKey::Charset);
    }
    if key[49..] != checksum(&key[..49]) { Err(MalformedKey::Checksum) } else { Ok(()) }
}

/// Whether a key may stand after `Bearer`: some characters of a token, and then any number of `=`.
pub(crate) fn fits_bearer(key: &[u8]) -> bool {
    let text = String::from_utf8_lossy(key);
    let token = text.trim_end_matches('=');
    !token.is_empty() && token.chars().all(|c| c.is_ascii_alphanumeric() || "-._~+/".contains(c))
}

fn made_of(data: &[u8]) -> [u8; 55] {
    let symbols = data.iter().map(|byte| SYMBOLS[usize::from(*byte) % 62]).chain([b'0'].into_iter().cycle());
    let covered: Vec<u8> = b"keyw1_".iter().copied().chain(symbols).take(49).collect();
    let key = [&*covered, &checksum(&covered)].concat();
    key.try_into().unwrap_or_else(|key| panic!("{key:?} is not 55 octets"))
}

/// CRC-32/ISO-HDLC in base 62.
fn checksum(covered: &[u8]) -> [u8; 6] {
    let mut register = u32::MAX;
    for octet in covered {
        register ^= u32::from(*octet);
        for _ in 0..8 {
            register = register >> 1 ^ if register & 1 == 1 { 0xedb8_8320 } else { 0 };
        }
    }
    let mut rest = !register;
    let mut symbols = [0; 6];
    for symbol in symbols.iter_mut().rev() {
        *symbol = SYMBOLS[(rest % 62) as usize];
        rest /= 62;
    }
    symbols
}

/// Whether `text` shows more of a key than its prefix.
pub(crate) fn shows(text: &[u8], key: &str) -> bool {
    str::from_utf8(text).map_or_else(
        |_| text.windows(15).any(|part| part == &key.as_bytes()[..15]),
        |text| text.contains(&key[..15]) || text.contains(&key[15..30]),
    )
}
