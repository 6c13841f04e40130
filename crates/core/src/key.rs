//! What a key is: how it is minted, recognised, hashed and shown. Only this module and [`crate::credential`] handle key
//! bytes.
//!
//! ```text
//! key    = "keyw1_" 43symbol 6symbol     55 bytes, so that SHA-256 needs one block
//!           ^       ^        ^
//!           prefix  random   CRC-32/ISO-HDLC of the 49 bytes before it, base 62, big-endian
//! symbol = 0-9 / A-Z / a-z               the digits 0..61, in this order
//! ```
//!
//! 43 uniform symbols are 256 bits, so a plain SHA-256 is a safe way to store a key (NIST SP 800-63B, 5.1.2.2). The
//! checksum proves nothing: it catches typing errors before the hash, and secret scanners use it to tell a key from an
//! example.

use std::fmt;
use std::str::{self, FromStr};

use rand_core::TryCryptoRng;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// Length of a key, in bytes.
const KEY_LENGTH: usize = 55;
/// How every key begins; the digit is the version of the format.
const KEY_START: &str = "keyw1_";
/// Bytes that the checksum covers: the start and the random symbols.
const COVERED_LENGTH: usize = 49;
/// Length of the checksum, in symbols.
const CHECKSUM_LENGTH: usize = 6;
/// Length of what may be shown of a key: the start and 8 random symbols.
pub(crate) const PREFIX_LENGTH: usize = 14;
/// Number of different symbols.
const BASE: u8 = 62;
/// Random bytes from here on are dropped: they would favour low symbols, as 256 is not a multiple of 62.
const UNIFORM_BELOW: u8 = u8::MAX / BASE * BASE;

/// A whole key in plain text, owned, and wiped from memory when dropped.
///
/// It is neither `Debug`, `Display`, `Clone` nor `Serialize`, so that no log line, error or status can hold one.
/// [`Key::reveal`] is the one way to read it.
pub struct Key(Zeroizing<String>);

/// A well-formed key of a request. Only the keyring can tell whether it is a known one.
///
/// Its `Debug` output is the prefix alone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Presented<'a> {
    bytes: &'a [u8; KEY_LENGTH],
    digest: Digest,
}

/// Why bytes are not a key. The variants are in the order of the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedKey {
    /// The key is not 55 bytes long.
    #[error("a key is 55 characters long")]
    Length,
    /// The key does not begin with `keyw1_`. `keyw2_` is reserved, and unknown to this version.
    #[error("a key begins with keyw1_")]
    Prefix,
    /// A byte after the start is not one of `0-9A-Za-z`.
    #[error("a key holds only 0-9, A-Z and a-z after keyw1_")]
    Charset,
    /// The last 6 symbols are not the checksum of the 49 bytes before them.
    #[error("the checksum is wrong: the key is mistyped or incomplete")]
    Checksum,
}

/// SHA-256 of a key: stored instead of the key, and used to look it up.
///
/// Written `sha256:<64 lower-case hexadecimal digits>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// The text is not a [`Digest`]. The message does not repeat it: it may be a key in the wrong place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected sha256: followed by 64 lower-case hexadecimal digits")]
pub struct InvalidDigest;

/// The part of a key that may be shown: `keyw1_` and its first 8 random symbols, 14 ASCII bytes.
///
/// Except for [`Key::reveal`], this file never gives out more of a key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix([u8; PREFIX_LENGTH]);

/// The text is not a [`Prefix`]. The message does not repeat it: it may be a key in the wrong place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected keyw1_ followed by 8 characters of 0-9, A-Z and a-z")]
pub struct InvalidPrefix;

/// Whether a text may hold a key, or more of one than its [`Prefix`]: `keyw`, a digit, `_` and more than eight symbols,
/// in any letter case. Such a text must not be repeated.
pub fn may_hold_a_key(text: &str) -> bool {
    let start = KEY_START.len();
    let begins_so = |bytes: &[u8]| match bytes.get(..start) {
        Some([k, e, y, w, digit, b'_']) => {
            [*k, *e, *y, *w].eq_ignore_ascii_case(b"keyw")
                && digit.is_ascii_digit()
                && bytes.iter().skip(start).take_while(|byte| byte.is_ascii_alphanumeric()).count()
                    > PREFIX_LENGTH - start
        }
        _ => false,
    };
    (0..text.len()).any(|at| text.as_bytes().get(at..).is_some_and(begins_so))
}

/// Whether a text begins like a key, in any letter case. Keywright's own name does not count.
pub fn begins_like_a_key(text: &str) -> bool {
    let begins_with =
        |start: &str| text.trim_start().get(..start.len()).is_some_and(|text| text.eq_ignore_ascii_case(start));
    begins_with("keyw") && !begins_with("keywright")
}

impl Key {
    /// Makes a new key from `rng`, which should be the operating system's.
    ///
    /// # Errors
    /// The error of `rng`. There is no fallback.
    pub fn mint<R: TryCryptoRng + ?Sized>(rng: &mut R) -> Result<Self, R::Error> {
        // The full capacity from the start: a string that grows leaves copies in memory that are not wiped.
        let mut key = Zeroizing::new(String::with_capacity(KEY_LENGTH));
        key.push_str(KEY_START);
        let mut random = Zeroizing::new([0; 64]);
        while key.len() < COVERED_LENGTH {
            rng.try_fill_bytes(random.as_mut_slice())?;
            let uniform = random.iter().filter(|byte| **byte < UNIFORM_BELOW);
            let missing = COVERED_LENGTH - key.len();
            key.extend(uniform.take(missing).map(|byte| char::from(symbol(u32::from(*byte)))));
        }
        let checksum = crc32fast::hash(key.as_bytes());
        key.extend(checksum_symbols(checksum).map(char::from));
        Ok(Self(key))
    }

    /// The key in plain text, for its Secret only.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The digest, which is stored.
    pub fn digest(&self) -> Digest {
        Digest::of(self.0.as_bytes())
    }

    /// The part that may be shown.
    pub fn prefix(&self) -> Prefix {
        Prefix::first_of(self.0.as_bytes())
    }
}

impl<'a> Presented<'a> {
    /// Checks length, start, symbols and checksum. Hashes only a well-formed key. Does not allocate.
    ///
    /// # Errors
    /// The first rule that `bytes` break.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, MalformedKey> {
        let key: &[u8; KEY_LENGTH] = bytes.try_into().map_err(|_| MalformedKey::Length)?;
        let symbols = key.strip_prefix(KEY_START.as_bytes()).ok_or(MalformedKey::Prefix)?;
        // No early exit, so that the loop vectorises.
        if !symbols.iter().fold(true, |all, byte| all & byte.is_ascii_alphanumeric()) {
            return Err(MalformedKey::Charset);
        }
        let (covered, checksum) = key.split_last_chunk::<CHECKSUM_LENGTH>().ok_or(MalformedKey::Length)?;
        if checksum_value(checksum) != u64::from(crc32fast::hash(covered)) {
            return Err(MalformedKey::Checksum);
        }
        Ok(Self { bytes: key, digest: Digest::of(key) })
    }

    /// The digest, used for the lookup.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The part that may be shown.
    pub fn prefix(&self) -> Prefix {
        Prefix::first_of(self.bytes)
    }

    /// The whole key.
    #[cfg(test)]
    pub(crate) fn reveal(&self) -> &'a [u8] {
        self.bytes
    }
}

impl fmt::Debug for Presented<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Presented").field(&self.prefix()).finish()
    }
}

impl MalformedKey {
    /// The rule's name in `tests/cases/keys.tsv`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Length => "length",
            Self::Prefix => "prefix",
            Self::Charset => "charset",
            Self::Checksum => "checksum",
        }
    }
}

impl Digest {
    /// SHA-256 of any bytes: of a key, or of a Secret's value that should be one.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The 32 bytes of the hash.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let digits = text.strip_prefix("sha256:").ok_or(InvalidDigest)?;
        let (pairs, []) = digits.as_bytes().as_chunks::<2>() else {
            return Err(InvalidDigest);
        };
        let pairs: &[[u8; 2]; 32] = pairs.try_into().map_err(|_| InvalidDigest)?;
        let mut hash = [0; 32];
        for (byte, &[high, low]) in hash.iter_mut().zip(pairs) {
            *byte = hexadecimal(high)? << 4 | hexadecimal(low)?;
        }
        Ok(Self(hash))
    }
}

impl Prefix {
    /// The prefix as text.
    pub fn as_str(&self) -> &str {
        // Every way to make a Prefix checks for ASCII, so the default is never taken.
        str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The prefix of a well-formed key.
    fn first_of(key: &[u8]) -> Self {
        let mut prefix = [b'0'; PREFIX_LENGTH];
        for (to, from) in prefix.iter_mut().zip(key) {
            *to = *from;
        }
        Self(prefix)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Prefix {
    type Err = InvalidPrefix;

    fn from_str(text: &str) -> Result<Self, InvalidPrefix> {
        let symbols = text.strip_prefix(KEY_START).ok_or(InvalidPrefix)?;
        if !symbols.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(InvalidPrefix);
        }
        text.as_bytes().try_into().map(Self).map_err(|_| InvalidPrefix)
    }
}

/// The symbol for the lowest base-62 digit of `value`.
fn symbol(value: u32) -> u8 {
    match (value % u32::from(BASE)) as u8 {
        digit @ 0..10 => b'0' + digit,
        digit @ 10..36 => b'A' + (digit - 10),
        digit => b'a' + (digit - 36),
    }
}

fn checksum_symbols(mut checksum: u32) -> [u8; CHECKSUM_LENGTH] {
    let mut symbols = [b'0'; CHECKSUM_LENGTH];
    for place in symbols.iter_mut().rev() {
        *place = symbol(checksum);
        checksum /= u32::from(BASE);
    }
    symbols
}

/// The number that 6 symbols encode.
///
/// In 64 bits, because 62^6 > 2^32: a decoder that wraps would accept 13 or 14 spellings of each number.
fn checksum_value(symbols: &[u8; CHECKSUM_LENGTH]) -> u64 {
    symbols.iter().fold(0, |value, symbol| value * u64::from(BASE) + u64::from(digit(*symbol)))
}

/// The digit that a symbol encodes. Any number for other bytes.
fn digit(symbol: u8) -> u8 {
    match symbol {
        b'a'.. => symbol.wrapping_sub(b'a').wrapping_add(36),
        b'A'.. => symbol - b'A' + 10,
        _ => symbol.wrapping_sub(b'0'),
    }
}

fn hexadecimal(digit: u8) -> Result<u8, InvalidDigest> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(InvalidDigest),
    }
}

#[cfg(test)]
mod tests;
