//! The keys and records of a measurement: all of them follow from their numbers.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub const KEY_LENGTH: usize = 55;

pub type KeyText = [u8; KEY_LENGTH];

/// Keys with these numbers and above have no record.
pub const UNKNOWN: usize = 1 << 32;

const START: &[u8] = b"keyw1_";
const SYMBOLS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const CHECKSUM_LENGTH: usize = 6;

/// A key as Keywright mints it.
pub fn key_text(number: usize) -> KeyText {
    let mut random = StdRng::seed_from_u64(number as u64);
    let mut text = [0; KEY_LENGTH];
    text[..START.len()].copy_from_slice(START);
    let (covered, checksum) = text.split_at_mut(KEY_LENGTH - CHECKSUM_LENGTH);
    for symbol in &mut covered[START.len()..] {
        *symbol = SYMBOLS[random.random_range(0..SYMBOLS.len())];
    }
    let mut rest = crc32fast::hash(covered) as usize;
    for symbol in checksum.iter_mut().rev() {
        *symbol = SYMBOLS[rest % SYMBOLS.len()];
        rest /= SYMBOLS.len();
    }
    text
}

fn digest(number: usize) -> String {
    let digits: String = Sha256::digest(key_text(number)).iter().map(|octet| format!("{octet:02x}")).collect();
    format!("sha256:{digits}")
}

/// A key whose checksum does not fit.
pub fn junk_text(number: usize) -> KeyText {
    let mut text = key_text(number);
    let last = &mut text[KEY_LENGTH - 1];
    *last = if *last == b'0' { b'1' } else { b'0' };
    text
}

pub fn record_name(number: usize) -> String {
    let uid = format!("{:032x}", (number as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
    format!("{}-{}-{}-{}-{}-1", &uid[..8], &uid[8..12], &uid[12..16], &uid[16..20], &uid[20..])
}

/// As many teams may have them: 1000 namespaces with 20 owners each, one of three sets of scopes, an end for a third and
/// for a tenth one of 200 address lists, which lets in where the measurement asks from.
pub fn spec(number: usize) -> Value {
    let (namespace, owner) = (number % 1000, number / 7 % 20);
    let scopes = [&["orders:read"][..], &["orders:read", "orders:write"], &["reports:read", "orders:read"]];
    let mut spec = json!({
        "digest": digest(number),
        "apiKey": { "namespace": format!("team-{namespace:04}"), "name": format!("billing-{:04}", number % 9973), "uid": "u" },
        "serial": 1,
        "owner": format!("person-{owner:02}@team-{namespace:04}.example.com"),
        "scopes": scopes[number / 11 % scopes.len()],
    });
    if number.is_multiple_of(10) {
        spec["allowedIPs"] = json!(["127.0.0.0/8", "192.0.2.0/24", format!("10.{}.0.0/16", number / 10 % 200)]);
    }
    if number.is_multiple_of(3) {
        spec["notAfter"] = json!("2099-01-02T03:04:05Z");
    }
    spec
}

/// A cheap sequence of random numbers.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((u128::from(self.0) * end as u128) >> 64) as usize
    }
}
