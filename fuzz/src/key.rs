use std::str;

use keywright_core::key::{Digest, MalformedKey, Prefix, Presented};
use sha2::Digest as _;

const SYMBOLS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The input is tried as a key, as a digest and as a prefix; and a good key is made of it, and spoilt.
pub fn key(data: &[u8]) {
    check(data);
    texts(&String::from_utf8_lossy(data));

    let good = made_of(data);
    assert!(Presented::parse(&good).is_ok(), "{good:?}");
    check(&good);
    let [.., place, octet] = data else { return };
    let mut spoilt = good;
    let place = usize::from(*place) % spoilt.len();
    spoilt[place] = *octet;
    assert_eq!(Presented::parse(&spoilt).is_ok(), spoilt == good, "one octet is another: {spoilt:?}");
    check(&spoilt);
}

fn check(octets: &[u8]) {
    let parsed = Presented::parse(octets);
    assert_eq!(parsed.err(), read(octets).err(), "{octets:?}");
    let Ok(key) = parsed else { return };
    assert_eq!(key.prefix().as_str().as_bytes(), &octets[..14]);
    assert_eq!(format!("{key:?}"), format!("Presented({})", key.prefix()));
    let hash = sha2::Sha256::digest(octets);
    let digits: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(key.digest().to_string(), format!("sha256:{digits}"));
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

/// The second reading, with a checksum that is computed bit by bit.
pub(crate) fn read(octets: &[u8]) -> Result<&[u8; 55], MalformedKey> {
    let key: &[u8; 55] = octets.try_into().map_err(|_| MalformedKey::Length)?;
    if !key.starts_with(b"keyw1_") {
        return Err(MalformedKey::Prefix);
    }
    if key[6..].iter().any(|symbol| !SYMBOLS.contains(symbol)) {
        return Err(MalformedKey::Charset);
    }
    if key[49..] != checksum(&key[..49]) { Err(MalformedKey::Checksum) } else { Ok(key) }
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
