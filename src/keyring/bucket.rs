//! The claims whose digests share the first bits of their hash: about 60 of them where a keyring holds a million.
//!
//! ```text
//! tags   t t t t ...                    8 more bits of each hash: where to look
//! rows   64 octets each                 digest, uid of the record's name, profile, slot
//! tails  one after the other            flags, serial of the record's name, notAfter if there is one, ApiKey name
//! lists  for keys that have one         slot, allowed addresses
//! ```
//!
//! None of these has room to spare: a bucket is read far more often than it is changed, and copied when it is.

use std::sync::Arc;

use jiff::Timestamp;

use super::entry::{Entry, Profile};
use super::{RecordName, Terms};
use crate::address::AllowedAddresses;
use crate::key::Digest;

#[derive(Clone, Default)]
pub(super) struct Bucket {
    tags: Vec<u8>,
    rows: Vec<Row>,
    tails: Vec<u8>,
    lists: Vec<(u32, Arc<AllowedAddresses>)>,
}

#[derive(Clone)]
struct Row {
    digest: Digest,
    uid: [u8; 16],
    profile: Arc<Profile>,
    slot: u32,
    /// Where its tail ends; it begins where the one before ends.
    tail_end: u32,
}

/// A record's claim to a digest.
pub(super) struct Claim<'k> {
    pub(super) record_name: RecordName,
    pub(super) slot: u32,
    /// `None`: the record cannot be read.
    pub(super) entry: Option<Entry<'k>>,
}

/// A claim on its way into a bucket.
pub(super) struct NewClaim {
    pub(super) tag: u8,
    pub(super) digest: Digest,
    pub(super) record_name: RecordName,
    pub(super) slot: u32,
    pub(super) profile: Arc<Profile>,
    pub(super) allowed_addresses: Option<Arc<AllowedAddresses>>,
    pub(super) tail: Vec<u8>,
}

/// The variable part of a claim, decoded.
struct Tail<'k> {
    flags: u8,
    serial: u32,
    not_after: Option<Timestamp>,
    name: &'k str,
}

const UNREADABLE: u8 = 1;
const SUSPENDED: u8 = 2;
const REVOKED: u8 = 4;
/// There is a notAfter.
const EXPIRES: u8 = 8;
/// There is a list of addresses.
const LISTED: u8 = 16;
/// The serial has one octet and not four.
const SHORT_SERIAL: u8 = 32;

impl Bucket {
    /// Where the claims to `digest` stand.
    pub(super) fn positions(&self, tag: u8, digest: &Digest) -> impl Iterator<Item = usize> {
        let is_of = move |position: &usize| self.rows.get(*position).is_some_and(|row| row.digest == *digest);
        memchr::memchr_iter(tag, &self.tags).filter(is_of)
    }

    /// Where the claim of `record_name` to `digest` stands.
    pub(super) fn position_of(&self, tag: u8, digest: &Digest, record_name: RecordName) -> Option<usize> {
        self.positions(tag, digest).find(|position| self.is_of_record(*position, record_name))
    }

    /// Where a claim of `record_name` stands, whatever it claims.
    pub(super) fn find(&self, record_name: RecordName) -> Option<usize> {
        (0..self.rows.len()).find(|position| self.is_of_record(*position, record_name))
    }

    pub(super) fn claims(&self, tag: u8, digest: &Digest) -> impl Iterator<Item = Claim<'_>> {
        self.positions(tag, digest).filter_map(|position| self.claim(position))
    }

    pub(super) fn all_claims(&self) -> impl Iterator<Item = Claim<'_>> {
        (0..self.rows.len()).filter_map(|position| self.claim(position))
    }

    /// Where which record's claim stands, without decoding it.
    pub(super) fn slots(&self) -> impl Iterator<Item = (usize, u32)> {
        self.rows.iter().map(|row| row.slot).enumerate()
    }

    /// The claim at `position`. `None` only beyond the last one.
    pub(super) fn claim(&self, position: usize) -> Option<Claim<'_>> {
        let row = self.rows.get(position)?;
        let tail = self.tail(position).and_then(Tail::read);
        let serial = tail.as_ref().map_or(0, |tail| tail.serial);
        let record_name = RecordName::new(row.uid, serial);
        let entry = tail.and_then(|tail| self.entry(row, record_name, tail));
        Some(Claim { record_name, slot: row.slot, entry })
    }

    pub(super) fn push(&mut self, claim: NewClaim) {
        push_exactly(&mut self.tags, claim.tag);
        self.tails.reserve_exact(claim.tail.len());
        self.tails.extend_from_slice(&claim.tail);
        let row = Row {
            digest: claim.digest,
            uid: claim.record_name.uid(),
            profile: claim.profile,
            slot: claim.slot,
            tail_end: narrow(self.tails.len()),
        };
        push_exactly(&mut self.rows, row);
        if let Some(list) = claim.allowed_addresses {
            push_exactly(&mut self.lists, (claim.slot, list));
        }
    }

    /// Takes out the claim at `position`, if there is one.
    pub(super) fn remove(&mut self, position: usize) {
        if position >= self.rows.len() {
            return;
        }
        let start = self.tail_start(position);
        self.tags.remove(position);
        let row = self.rows.remove(position);
        let end = (row.tail_end as usize).clamp(start, self.tails.len());
        self.tails.drain(start..end);
        for later in self.rows.iter_mut().skip(position) {
            later.tail_end = later.tail_end.saturating_sub(narrow(end - start));
        }
        self.lists.retain(|(slot, _)| *slot != row.slot);
        self.tags.shrink_to_fit();
        self.rows.shrink_to_fit();
        self.tails.shrink_to_fit();
        self.lists.shrink_to_fit();
    }

    fn is_of_record(&self, position: usize, record_name: RecordName) -> bool {
        self.rows.get(position).is_some_and(|row| row.uid == record_name.uid())
            && self.claim(position).is_some_and(|claim| claim.record_name == record_name)
    }

    fn tail(&self, position: usize) -> Option<&[u8]> {
        self.tails.get(self.tail_start(position)..self.rows.get(position)?.tail_end as usize)
    }

    fn tail_start(&self, position: usize) -> usize {
        let before = position.checked_sub(1).and_then(|before| self.rows.get(before));
        before.map_or(0, |row| row.tail_end as usize)
    }

    fn entry<'k>(&'k self, row: &'k Row, record_name: RecordName, tail: Tail<'k>) -> Option<Entry<'k>> {
        let has = |flag| tail.flags & flag != 0;
        if has(UNREADABLE) {
            return None;
        }
        let allowed_addresses = if has(LISTED) { Some(self.list(row.slot)?) } else { None };
        Some(Entry {
            profile: &row.profile,
            name: tail.name,
            allowed_addresses,
            not_after: tail.not_after,
            is_suspended: has(SUSPENDED),
            is_revoked: has(REVOKED),
            record_name,
            slot: row.slot,
        })
    }

    fn list(&self, slot: u32) -> Option<&AllowedAddresses> {
        self.lists.iter().find(|(owner, _)| *owner == slot).map(|(_, list)| &**list)
    }
}

impl<'k> Tail<'k> {
    fn read(octets: &'k [u8]) -> Option<Self> {
        let (flags, rest) = octets.split_first()?;
        let (serial, rest) = match flags & SHORT_SERIAL {
            0 => rest.split_first_chunk().map(|(serial, rest)| (u32::from_le_bytes(*serial), rest))?,
            _ => rest.split_first().map(|(serial, rest)| (u32::from(*serial), rest))?,
        };
        let (not_after, name) = match flags & EXPIRES {
            0 => (None, rest),
            _ => rest.split_first_chunk().map(|(not_after, name)| (Some(i64::from_le_bytes(*not_after)), name))?,
        };
        let not_after = not_after.map(Timestamp::from_microsecond).transpose().ok()?;
        let name = str::from_utf8(name).ok()?;
        Some(Self { flags: *flags, serial, not_after, name })
    }
}

/// The tail of a claim; without terms, of a record that cannot be read.
pub(super) fn tail(serial: u32, terms: Option<&Terms>) -> Vec<u8> {
    let serial_octets = serial.to_le_bytes();
    let (short, serial) = if serial < 256 { (SHORT_SERIAL, &serial_octets[..1]) } else { (0, &serial_octets[..]) };
    let Some(terms) = terms else {
        return [&[UNREADABLE | short][..], serial].concat();
    };
    let flag = |flag, is_set| if is_set { flag } else { 0 };
    let flags = short
        | flag(SUSPENDED, terms.is_suspended)
        | flag(REVOKED, terms.is_revoked)
        | flag(EXPIRES, terms.not_after.is_some())
        | flag(LISTED, terms.allowed_addresses.is_some());
    let not_after = terms.not_after.map(|instant| microseconds(instant).to_le_bytes());
    let not_after = not_after.as_ref().map_or(&[][..], |octets| octets);
    [&[flags][..], serial, not_after, terms.name.as_bytes()].concat()
}

/// Rounded down, before 1970 too: no key lives longer than its record says.
fn microseconds(instant: Timestamp) -> i64 {
    i64::try_from(instant.as_nanosecond().div_euclid(1000)).unwrap_or(i64::MIN)
}

/// A length beyond 32 bits would make its claim unreadable, which refuses the key.
fn narrow(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn push_exactly<T>(list: &mut Vec<T>, item: T) {
    list.reserve_exact(1);
    list.push(item);
}
