//! The claims whose digests share the first bits of their hash: about 60 of them where a keyring holds a million.
//!
//! ```text
//! tags   t t t t ...                    8 more bits of each hash: where to look
//! rows   64 octets each                 digest, uid of the record's name, profile, flags, second in which the key ends
//! tails  one after the other            slot, serial of the record's name, notAfter if it is no whole second, ApiKey name
//! lists  for keys that have one         its place among the rows, allowed addresses
//! ```
//!
//! Among many keys, a lookup finds none of this in the processor's cache, and each place that it has to look at costs it
//! more than its hash. So the tags stand beside what tells where the rows are, a row is one line of the cache, and what a
//! decision on a good key can do without is in the tail.
//!
//! None of these has room to spare: a bucket is read far more often than it is changed, and copied when it is.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use smallvec::SmallVec;

use super::profile::Profile;
use super::{RecordName, Terms};
use crate::address::AllowedAddresses;
use crate::key::Digest;

#[derive(Clone, Default)]
pub(super) struct Bucket {
    /// With room for all that a million keys bring into one bucket.
    tags: SmallVec<[u8; 88]>,
    rows: Vec<Row>,
    tails: Vec<u8>,
    lists: Vec<(usize, Arc<AllowedAddresses>)>,
}

/// The fixed part of a claim.
#[derive(Clone)]
#[repr(align(64))]
struct Row {
    digest: Digest,
    uid: [u8; 16],
    profile: Arc<Profile>,
    /// The second since 1970 in which the key ends, if it does: at its start, unless the tail says more exactly when. Times
    /// for which there is no room are the first and the last second, and in the tail.
    end: u32,
    flags: u8,
    /// Where the tail starts, in little-endian order, or [`NOWHERE`].
    tail: [u8; 3],
}

/// A record's claim to a digest: a view into its bucket, decoded as far as it is asked.
#[derive(Clone, Copy)]
pub(super) struct Claim<'k> {
    pub(super) position: usize,
    bucket: &'k Bucket,
    row: &'k Row,
}

/// A claim on its way into a bucket.
pub(super) struct NewClaim<'t> {
    pub(super) tag: u8,
    pub(super) digest: Digest,
    pub(super) record_name: RecordName,
    pub(super) slot: u32,
    pub(super) profile: Arc<Profile>,
    pub(super) allowed_addresses: Option<Arc<AllowedAddresses>>,
    /// What else the record says; `None` if it cannot be read.
    pub(super) terms: Option<&'t Terms>,
}

/// The variable part of a claim, decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Tail<'k> {
    serial: u32,
    /// Microseconds since 1970.
    not_after: Option<i64>,
    pub(super) name: &'k str,
}

/// Of a tail that would start beyond what three octets can say.
const NOWHERE: [u8; 3] = [u8::MAX; 3];

const UNREADABLE: u8 = 1;
const SUSPENDED: u8 = 2;
const REVOKED: u8 = 4;
/// There is a notAfter.
const EXPIRES: u8 = 8;
/// The notAfter is in the tail.
const EXACT: u8 = 64;
/// There is a list of addresses.
const LISTED: u8 = 16;
/// The serial has one octet and not four.
const SHORT_SERIAL: u8 = 32;

impl Bucket {
    /// The claims to `digest`.
    pub(super) fn claims(&self, tag: u8, digest: &Digest) -> impl Iterator<Item = Claim<'_>> {
        let claims = memchr::memchr_iter(tag, &self.tags).filter_map(|position| self.claim(position));
        claims.filter(move |claim| claim.row.digest == *digest)
    }

    pub(super) fn all_claims(&self) -> impl Iterator<Item = Claim<'_>> {
        self.rows.iter().enumerate().map(|(position, row)| Claim { position, bucket: self, row })
    }

    fn claim(&self, position: usize) -> Option<Claim<'_>> {
        self.rows.get(position).map(|row| Claim { position, bucket: self, row })
    }

    pub(super) fn push(&mut self, claim: NewClaim<'_>) {
        let flags = flags(&claim);
        let start = u32::try_from(self.tails.len()).unwrap_or(u32::MAX).to_le_bytes();
        match start {
            [tail @ .., 0] if tail != NOWHERE => {
                let octets = tail_of(&claim, flags);
                self.tails.reserve_exact(octets.len());
                self.tails.extend_from_slice(&octets);
                self.push_row(&claim, flags, tail);
            }
            // The claim refuses. It takes a billion keys to get here.
            _ => self.push_row(&claim, flags | UNREADABLE, NOWHERE),
        }
    }

    fn push_row(&mut self, claim: &NewClaim<'_>, flags: u8, tail: [u8; 3]) {
        self.tags.reserve_exact(1);
        self.tags.push(claim.tag);
        if let Some(list) = &claim.allowed_addresses {
            push_exactly(&mut self.lists, (self.rows.len(), Arc::clone(list)));
        }
        let row = Row {
            digest: claim.digest,
            uid: claim.record_name.uid(),
            profile: Arc::clone(&claim.profile),
            end: claim.terms.and_then(|terms| terms.not_after).map_or(0, second),
            flags,
            tail,
        };
        push_exactly(&mut self.rows, row);
    }

    /// Takes out the claim at `position`, if there is one.
    pub(super) fn remove(&mut self, position: usize) {
        if position >= self.rows.len() {
            return;
        }
        self.tags.remove(position);
        if let Some(start) = self.rows.remove(position).tail_start() {
            let next = self.rows.iter().skip(position).find_map(Row::tail_start).unwrap_or(self.tails.len());
            let start = start.min(self.tails.len());
            let end = next.clamp(start, self.tails.len());
            self.tails.drain(start..end);
            for later in self.rows.iter_mut().skip(position) {
                later.move_tail(end - start);
            }
        }
        self.lists.retain(|(listed, _)| *listed != position);
        for (later, _) in self.lists.iter_mut().filter(|(listed, _)| *listed > position) {
            *later -= 1;
        }
        self.tags.shrink_to_fit();
        self.rows.shrink_to_fit();
        self.tails.shrink_to_fit();
        self.lists.shrink_to_fit();
    }
}

impl Row {
    /// `None` if there was no room for it.
    fn tail_start(&self) -> Option<usize> {
        let [low, middle, high] = self.tail;
        (self.tail != NOWHERE).then_some(u32::from_le_bytes([low, middle, high, 0]) as usize)
    }

    fn move_tail(&mut self, distance: usize) {
        if let Some(start) = self.tail_start() {
            let [low, middle, high, ..] = start.saturating_sub(distance).to_le_bytes();
            self.tail = [low, middle, high];
        }
    }
}

impl<'k> Claim<'k> {
    pub(super) fn record_name(self) -> RecordName {
        RecordName::new(self.row.uid, self.tail().serial)
    }

    /// The record's slot. No record has the last one: it is that of a claim for which there was no room.
    pub(super) fn slot(self) -> u32 {
        self.tail_octets().and_then(|octets| octets.first_chunk()).map_or(u32::MAX, |slot| u32::from_le_bytes(*slot))
    }

    pub(super) fn profile(self) -> &'k Profile {
        &self.row.profile
    }

    pub(super) fn is_suspended(self) -> bool {
        self.has(SUSPENDED)
    }

    pub(super) fn is_revoked(self) -> bool {
        self.has(REVOKED)
    }

    pub(super) fn not_after(self) -> Option<Timestamp> {
        let exact = || self.tail().not_after.and_then(|instant| Timestamp::from_microsecond(instant).ok());
        match self.has(EXPIRES) {
            true if self.has(EXACT) => Some(exact().unwrap_or(Timestamp::MIN)),
            true => Some(Timestamp::from_second(self.row.end.into()).unwrap_or(Timestamp::MIN)),
            false => None,
        }
    }

    pub(super) fn is_readable(self) -> bool {
        !self.has(UNREADABLE)
    }

    pub(super) fn is_listed(self) -> bool {
        self.has(LISTED)
    }

    fn has(self, flag: u8) -> bool {
        self.row.flags & flag != 0
    }

    /// The client addresses that may use the key, if it has a list.
    pub(super) fn list(self) -> Option<&'k AllowedAddresses> {
        self.bucket.lists.iter().find(|(position, _)| *position == self.position).map(|(_, list)| &**list)
    }

    /// What [`tail_of`] has written.
    pub(super) fn tail(self) -> Tail<'k> {
        self.tail_octets().and_then(|octets| Tail::read(self.row.flags, octets)).unwrap_or_default()
    }

    fn tail_octets(self) -> Option<&'k [u8]> {
        self.bucket.tails.get(self.row.tail_start()?..)
    }
}

impl fmt::Debug for Claim<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim").field("record_name", &self.record_name()).finish_non_exhaustive()
    }
}

impl PartialEq for Claim<'_> {
    fn eq(&self, other: &Self) -> bool {
        let fixed = |claim: &Self| (claim.row.digest, claim.row.uid, claim.row.flags, claim.slot());
        fixed(self) == fixed(other) && self.tail() == other.tail() && self.profile() == other.profile()
    }
}

impl<'k> Tail<'k> {
    /// What `octets` begin with.
    fn read(flags: u8, octets: &'k [u8]) -> Option<Self> {
        let (_slot, rest) = octets.split_first_chunk::<4>()?;
        let (serial, rest) = match flags & SHORT_SERIAL {
            0 => rest.split_first_chunk().map(|(serial, rest)| (u32::from_le_bytes(*serial), rest))?,
            _ => rest.split_first().map(|(serial, rest)| (u32::from(*serial), rest))?,
        };
        let (not_after, rest) = match flags & EXACT {
            0 => (None, rest),
            _ => rest.split_first_chunk().map(|(not_after, rest)| (Some(i64::from_le_bytes(*not_after)), rest))?,
        };
        let (length, rest) = rest.split_first()?;
        let name = str::from_utf8(rest.get(..usize::from(*length))?).ok()?;
        Some(Self { serial, not_after, name })
    }
}

fn flags(claim: &NewClaim<'_>) -> u8 {
    let flag = |flag, is_set| if is_set { flag } else { 0 };
    let serial = flag(SHORT_SERIAL, claim.record_name.serial() < 256);
    let Some(terms) = claim.terms else {
        return serial | UNREADABLE;
    };
    serial
        | flag(SUSPENDED, terms.is_suspended)
        | flag(REVOKED, terms.is_revoked)
        | flag(EXPIRES, terms.not_after.is_some())
        | flag(EXACT, terms.not_after.is_some_and(|instant| instant.as_nanosecond() != nanoseconds(second(instant))))
        | flag(LISTED, claim.allowed_addresses.is_some())
}

fn tail_of(claim: &NewClaim<'_>, flags: u8) -> Vec<u8> {
    let serial = claim.record_name.serial().to_le_bytes();
    let serial = serial.get(..if flags & SHORT_SERIAL == 0 { 4 } else { 1 }).unwrap_or(&serial);
    let not_after = claim.terms.and_then(|terms| terms.not_after).filter(|_| flags & EXACT != 0);
    let not_after = not_after.map(|instant| microseconds(instant).to_le_bytes());
    let not_after = not_after.as_ref().map_or(&[][..], |octets| octets);
    let name = claim.terms.map_or("", |terms| &terms.name);
    // `terms` lets through no more than 253 octets.
    let length = u8::try_from(name.len()).unwrap_or(u8::MAX);
    [&claim.slot.to_le_bytes(), serial, not_after, &[length], name.as_bytes()].concat()
}

/// Rounded down, before 1970 too: no key lives longer than its record says.
fn microseconds(instant: Timestamp) -> i64 {
    i64::try_from(instant.as_nanosecond().div_euclid(1000)).unwrap_or(i64::MIN)
}

/// The second that an instant is in, or the nearest one that there is room for.
fn second(instant: Timestamp) -> u32 {
    u32::try_from(instant.as_second().max(0)).unwrap_or(u32::MAX)
}

fn nanoseconds(second: u32) -> i128 {
    i128::from(second) * 1_000_000_000
}

fn push_exactly<T>(list: &mut Vec<T>, item: T) {
    list.reserve_exact(1);
    list.push(item);
}
