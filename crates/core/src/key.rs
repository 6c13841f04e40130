//! What a key is: how it is minted, recognised, hashed and shown. Only this module and [`crate::credential`] handle key
//! bytes.
//!
//! ```text
//! key     = own / foreign
//! own     = "keyw1_" 43symbol 6symbol     55 bytes, so that SHA-256 needs one block
//!            ^       ^        ^
//!            prefix  random   CRC-32/ISO-HDLC of the 49 bytes before it, base 62, big-endian
//! symbol  = 0-9 / A-Z / a-z               the digits 0..61, in this order
//! foreign = 16*256visible                 made elsewhere; does not begin with "keyw", in any letter case
//! visible = "!" to "~" except <"> and ","
//! ```
//!
//! 43 uniform symbols are 256 bits, so a plain SHA-256 is a safe way to store a key (NIST SP 800-63B, 5.1.2.2). The
//! checksum proves nothing: it catches typing errors before the hash, and secret scanners use it to tell a key from an
//! example.
//!
//! Of a foreign key only its maker knows how random it is. Its grammar keeps it whole on its way: no proxy takes it for a
//! list or a quoted string.

mod trivial;

use std::fmt;
use std::ops::RangeInclusive;
use std::str::{self, FromStr};

use rand_core::TryCryptoRng;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// Length of an own key, in bytes.
const KEY_LENGTH: usize = 55;
/// How every own key begins; the digit is the version of the format.
const KEY_START: &str = "keyw1_";
/// How no foreign key begins, in any letter case, so that a mistyped own key is never taken for one.
const RESERVED_START: &[u8] = b"keyw";
/// Lengths of foreign keys, in bytes.
const FOREIGN_LENGTHS: RangeInclusive<usize> = 16..=256;
/// The shortest foreign key that a Secret may hold, in bytes. Only its maker knows how random it is, and one that was
/// shorter than 128 bits in hexadecimal digits was not meant to be.
const SUBMITTED_FOREIGN_LENGTH: usize = 32;
/// Bytes that the checksum covers: the start and the random symbols.
const COVERED_LENGTH: usize = 49;
/// Length of the checksum, in symbols.
const CHECKSUM_LENGTH: usize = 6;
/// Length of what may be shown of an own key: the start and 8 random symbols.
pub(crate) const PREFIX_LENGTH: usize = 14;
/// Length of what is shown in place of a foreign key: `sha256:` and 12 digits.
const DIGEST_START_LENGTH: usize = 19;
/// Number of different symbols.
const BASE: u8 = 62;
/// Random bytes from here on are dropped: they would favour low symbols, as 256 is not a multiple of 62.
const UNIFORM_BELOW: u8 = u8::MAX / BASE * BASE;

/// A whole key in plain text, owned, and wiped from memory when dropped.
///
/// It is neither `Debug`, `Display`, `Clone` nor `Serialize`, so that no log line, error or status can hold one.
/// [`Key::reveal`] is the one way to read it.
pub struct Key(Zeroizing<String>);

/// What a request presents as its key: a well-formed own key, or what may be a foreign one. Only the keyring can tell
/// whether it is a known one. Not hashed until asked.
///
/// Its `Debug` output is the prefix of an own key, and nothing of a foreign one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Presented<'a>(Octets<'a>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Octets<'a> {
    Own(&'a [u8; KEY_LENGTH]),
    Foreign(&'a [u8]),
}

/// Why bytes are not a key. The variants are in the order of the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedKey {
    /// What begins with `keyw` is not 55 bytes long, or anything else not 16 to 256. So is an own key with something
    /// around it.
    #[error("a keyw1_ key is 55 characters long, and any other key 16 to 256")]
    Length,
    /// The key begins with `keyw`, and not with `keyw1_`. `keyw2_` is reserved, and unknown to this version.
    #[error("a key that begins with keyw begins with keyw1_, in lower case")]
    Prefix,
    /// A byte of an own key after the start is not one of `0-9A-Za-z`, or one of a foreign key is not visible ASCII, or is `"`
    /// or `,`.
    #[error(
        "after keyw1_ a key holds only 0-9, A-Z and a-z, and any other key visible ASCII characters except \" and ,"
    )]
    Charset,
    /// The last 6 symbols are not the checksum of the 49 bytes before them.
    #[error("the checksum is wrong: the key is mistyped or incomplete")]
    Checksum,
}

/// Why the value of a Secret does not fit as a key. The variants are in the order of the checks. Repeats no byte of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnfitKey {
    /// It ends in a newline: the commonest slip, made by `echo` and by editors.
    #[error("the key ends in a newline: store it without one, as printf %s \"$KEY\" writes it")]
    TrailingNewline,
    /// It begins with `keyw`, in any letter case, and is not a well-formed own key.
    #[error(
        "only keys that Keywright made may begin with keyw, and this is not a whole one: {0}; copy the key again, or store \
         one that begins otherwise"
    )]
    Malformed(MalformedKey),
    /// A foreign key of fewer than 32 bytes.
    #[error("the key is shorter than 32 characters: store a longer, random one, as openssl rand -hex 32 makes it")]
    Short,
    /// A foreign key of more than 256 bytes.
    #[error("the key is longer than 256 characters: store a shorter one")]
    Long,
    /// A byte of a foreign key is not visible ASCII, or is `"` or `,`.
    #[error(
        "the key holds a space, \", a comma or a character that is not ASCII: store a key of visible ASCII characters"
    )]
    Charset,
    /// One of a short list of texts that stand where a key should be.
    #[error("anybody would guess the key: store a random one, as openssl rand -hex 32 makes it")]
    Trivial,
}

/// SHA-256 of a key: stored instead of the key, and used to look it up.
///
/// Written `sha256:<64 lower-case hexadecimal digits>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// Why no digest of a key is worth declaring. The variants are in the order of the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorthlessDigest {
    /// Nothing but zeros, or nothing but f.
    #[error("is a placeholder and no digest: write what printf %s \"$KEY\" | sha256sum prints")]
    Placeholder,
    /// Of nothing, or of a newline alone.
    #[error("is the digest of an empty key: set KEY, and write what printf %s \"$KEY\" | sha256sum prints")]
    Empty,
    /// Of one of a short list of texts that stand where a key should be, or of one with a newline after it, as `echo` makes
    /// it.
    #[error("is the digest of a key that anybody would guess: make a random one, as openssl rand -hex 32 does")]
    Trivial,
}

/// The text is not a [`Digest`]. The message does not repeat it: it may be a key in the wrong place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected sha256: followed by 64 lower-case hexadecimal digits")]
pub struct InvalidDigest;

/// The part of an own key that may be shown: `keyw1_` and its first 8 random symbols, 14 ASCII bytes.
///
/// Except for [`Key::reveal`], this file never gives out more of a key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix([u8; PREFIX_LENGTH]);

/// How a digest begins: `sha256:` and 12 hexadecimal digits, 19 ASCII bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DigestStart([u8; DIGEST_START_LENGTH]);

/// What is shown of a key, so that people can tell keys apart.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// Of an own key, its prefix.
    Prefix(Prefix),
    /// Of a foreign key, no part: the start of its digest.
    Digest(DigestStart),
}

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
    /// Recognises a key of either kind: an own one by length, start, symbols and checksum, a foreign one by length and
    /// characters. Does not allocate.
    ///
    /// # Errors
    /// The first rule that `bytes` break.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, MalformedKey> {
        if let Ok(key) = <&[u8; KEY_LENGTH]>::try_from(bytes)
            && let Some(symbols) = key.strip_prefix(KEY_START.as_bytes())
        {
            return check_own(key, symbols).map(|()| Self(Octets::Own(key)));
        }
        check_other(bytes).map(|()| Self(Octets::Foreign(bytes)))
    }

    /// Whether the key was made elsewhere, if it is one.
    pub fn is_foreign(self) -> bool {
        matches!(self.0, Octets::Foreign(_))
    }

    /// Whether the key may stand after `Bearer`: whether it is a `b64token` (RFC 6750, 2.1).
    pub fn is_b64token(self) -> bool {
        match self.0 {
            Octets::Own(_) => true,
            Octets::Foreign(key) => is_b64token(key),
        }
    }

    /// The digest, used for the lookup. Computed anew at each call.
    pub fn digest(self) -> Digest {
        match self.0 {
            // One block: the compiler knows the length.
            Octets::Own(key) => Digest::of(key),
            Octets::Foreign(key) => digest_of_foreign(key),
        }
    }

    /// What is shown of the key; `digest` is its own.
    pub fn shown(self, digest: &Digest) -> Shown {
        match self.0 {
            Octets::Own(key) => Shown::Prefix(Prefix::first_of(key)),
            Octets::Foreign(_) => Shown::Digest(digest.start()),
        }
    }

    /// The part of an own key that may be shown.
    pub fn prefix(self) -> Option<Prefix> {
        match self.0 {
            Octets::Own(key) => Some(Prefix::first_of(key)),
            Octets::Foreign(_) => None,
        }
    }

    /// The whole key.
    #[cfg(test)]
    pub(crate) fn reveal(self) -> &'a [u8] {
        match self.0 {
            Octets::Own(key) => key,
            Octets::Foreign(key) => key,
        }
    }
}

impl fmt::Debug for Presented<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix() {
            Some(prefix) => f.debug_tuple("Presented").field(&prefix).finish(),
            None => f.write_str("Presented(foreign)"),
        }
    }
}

/// Reads the value of a Secret as a key of either kind. Answers with its digest.
///
/// # Errors
/// The first rule that `octets` break.
pub fn read_submitted(octets: &[u8]) -> Result<Digest, UnfitKey> {
    if octets.ends_with(b"\n") {
        return Err(UnfitKey::TrailingNewline);
    }
    if !is_reserved(octets) {
        match octets.len() {
            ..SUBMITTED_FOREIGN_LENGTH => return Err(UnfitKey::Short),
            length if length > *FOREIGN_LENGTHS.end() => return Err(UnfitKey::Long),
            _ if !are_visible(octets) => return Err(UnfitKey::Charset),
            _ if trivial::TEXTS.iter().any(|text| text.as_bytes() == octets) => return Err(UnfitKey::Trivial),
            _ => {}
        }
    }
    Presented::parse(octets).map(Presented::digest).map_err(UnfitKey::Malformed)
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
    #[inline]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The 32 bytes of the hash.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// What makes the digest worthless, if it is the digest of nothing, of a trivial text, or of no text that anybody knows.
    pub fn worthlessness(&self) -> Option<WorthlessDigest> {
        let is_of = |text: &str| [text, &format!("{text}\n")].iter().any(|text| Self::of(text.as_bytes()) == *self);
        match () {
            () if [[0; 32], [0xff; 32]].contains(&self.0) => Some(WorthlessDigest::Placeholder),
            () if is_of("") => Some(WorthlessDigest::Empty),
            () if trivial::TEXTS.into_iter().any(is_of) => Some(WorthlessDigest::Trivial),
            () => None,
        }
    }

    /// How the digest begins when it is written.
    #[cold]
    pub fn start(&self) -> DigestStart {
        let mut start = *b"sha256:000000000000";
        let digits = self.0.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
        for (to, digit) in start.iter_mut().skip(b"sha256:".len()).zip(digits) {
            *to = if digit < 10 { b'0' + digit } else { b'a' + (digit - 10) };
        }
        DigestStart(start)
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

impl Shown {
    /// What is shown, as text.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Prefix(prefix) => prefix.as_str(),
            Self::Digest(start) => start.as_str(),
        }
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl DigestStart {
    /// The start as text.
    pub fn as_str(&self) -> &str {
        // Only Digest::start makes one, of ASCII, so the default is never taken.
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for DigestStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Checks symbols and checksum of what has the length and the start of an own key.
fn check_own(key: &[u8; KEY_LENGTH], symbols: &[u8]) -> Result<(), MalformedKey> {
    // No early exit, so that the loop vectorises.
    if !symbols.iter().fold(true, |all, byte| all & byte.is_ascii_alphanumeric()) {
        return Err(MalformedKey::Charset);
    }
    let (covered, checksum) = key.split_last_chunk::<CHECKSUM_LENGTH>().ok_or(MalformedKey::Length)?;
    if checksum_value(checksum) == u64::from(crc32fast::hash(covered)) { Ok(()) } else { Err(MalformedKey::Checksum) }
}

/// Apart from the hash of an own key, which is of one length.
#[cold]
fn digest_of_foreign(key: &[u8]) -> Digest {
    Digest::of(key)
}

/// Checks what has not both the length and the start of an own key.
#[cold]
fn check_other(bytes: &[u8]) -> Result<(), MalformedKey> {
    if is_reserved(bytes) {
        return Err(if bytes.len() == KEY_LENGTH { MalformedKey::Prefix } else { MalformedKey::Length });
    }
    if !FOREIGN_LENGTHS.contains(&bytes.len()) {
        return Err(MalformedKey::Length);
    }
    if are_visible(bytes) {
        return Ok(());
    }
    // An own key behind a space, or behind its scheme: what is wrong is that there is more than the key.
    let holds_own_start = bytes.windows(KEY_START.len()).any(|window| window == KEY_START.as_bytes());
    Err(if holds_own_start { MalformedKey::Length } else { MalformedKey::Charset })
}

/// Whether only an own key may begin so.
fn is_reserved(bytes: &[u8]) -> bool {
    bytes.get(..RESERVED_START.len()).is_some_and(|start| start.eq_ignore_ascii_case(RESERVED_START))
}

/// Whether a foreign key may hold all of these bytes. No early exit, so that the loop vectorises.
fn are_visible(bytes: &[u8]) -> bool {
    let is_visible = |byte: &u8| byte.is_ascii_graphic() & (*byte != b'"') & (*byte != b',');
    bytes.iter().fold(true, |all, byte| all & is_visible(byte))
}

/// `b64token = 1*( ALPHA / DIGIT / "-" / "." / "_" / "~" / "+" / "/" ) *"="`
fn is_b64token(bytes: &[u8]) -> bool {
    let is_symbol = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(byte);
    let padding = bytes.iter().rev().take_while(|byte| **byte == b'=').count();
    let symbols = bytes.len() - padding;
    symbols > 0 && bytes.iter().take(symbols).all(is_symbol)
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
