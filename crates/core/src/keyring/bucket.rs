//! The claims whose digests share the first bits of their hash: about 60 of them where a keyring holds a million.
//!
//! ```text
//! runs   32 counts                      how many claims share 5 more bits of their hashes: where to look
//! rows   64 octets each, run by run     digest, slot, profile, flags, seconds of creation and of the key's end, serial
//! tails  in any order                   uid of the ApiKey, notAfter if it is no whole second, name of the ApiKey
//! ```
//!
//! Among many keys, a lookup finds none of this in the processor's cache, and each place that it has to look at costs it
//! more than its hash. So the counts and where the rows are stand in one line of the cache, a row is one line too, and what
//! a decision on a good key can do without is in the tail.
//!
//! A bucket is read far more often than it is changed, and copied when it is: so nothing has room to spare, and all that
//! is allocated comes in few sizes, or memory would lie idle in the ones that a growing keyring has left behind.

use std::fmt;
use std::hint::black_box;
use std::iter::zip;
use std::ops::Range;
use std::sync::Arc;

use jiff::Timestamp;

use super::pieces::Pieces;
use super::profile::Profile;
use super::tails::{Location, Tails};
use super::{RecordName, Terms};
use crate::key::Digest;

/// In this order, `runs` and the start of `rows` are the first line, and the rest is the second.
#[derive(Clone, Default)]
#[repr(C, align(64))]
pub(super) struct Bucket {
    runs: [u8; RUNS],
    rows: Pieces<Row>,
    tails: Tails,
}

/// Runs in a bucket.
const RUNS: usize = 1 << RUN_BITS;
/// Bits of the hash that say which run a claim is in.
pub(super) const RUN_BITS: u32 = 5;

/// The fixed part of a claim.
#[derive(Clone)]
#[repr(align(64))]
pub(super) struct Row {
    digest: Digest,
    profile: Arc<Profile>,
    slot: u32,
    /// The second since 1970 in which the key ends, if it does: at its start, unless the tail says more exactly when. Times
    /// for which there is no room are the first and the last second, and in the tail.
    end: u32,
    /// The second since 1970 in which the record was made.
    created: u32,
    serial: u32,
    tail: Location,
    flags: u8,
}

const _: () = assert!(size_of::<Row>() == 64 && size_of::<Bucket>() == 128);

/// A record's claim to a digest: a view into its bucket, decoded as far as it is asked.
#[derive(Clone, Copy)]
pub(super) struct Claim<'k> {
    pub(super) position: usize,
    bucket: &'k Bucket,
    row: &'k Row,
}

/// A claim outside of any bucket.
pub(super) struct Detached {
    /// Its place for a tail is of no meaning.
    row: Row,
    tail: Vec<u8>,
}

/// Of two claims to a digest, the one with the lower rank rules: the older record, and of two that were made in the same
/// second the one whose name comes first.
pub(super) type Rank = (u32, RecordName);

/// The variable part of a claim, decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Tail<'k> {
    uid: [u8; 16],
    /// Microseconds since 1970.
    not_after: Option<i64>,
    pub(super) name: &'k str,
    /// Octets of all of it.
    length: usize,
}

const UNREADABLE: u8 = 1;
const SUSPENDED: u8 = 2;
const REVOKED: u8 = 4;
/// There is a notAfter.
const EXPIRES: u8 = 8;
/// The notAfter is in the tail.
const EXACT: u8 = 16;
/// The profile has a list of addresses. Without this, it need not be looked at.
const LISTED: u8 = 32;

impl Bucket {
    /// A bucket of this claim alone.
    pub(super) fn of(claim: Detached) -> Self {
        let mut bucket = Self::default();
        // An empty bucket has room.
        bucket.push(0, claim);
        bucket
    }

    /// The claim to `digest`, which is in this run.
    pub(super) fn claim_to(&self, run: usize, digest: &Digest) -> Option<Claim<'_>> {
        let mut rows = self.rows.range(self.positions(run));
        let (position, row) = rows.find(|(_, row)| row.digest == *digest)?;
        Some(Claim { position, bucket: self, row })
    }

    pub(super) fn all_claims(&self) -> impl Iterator<Item = Claim<'_>> {
        self.rows.range(0..usize::MAX).map(|(position, row)| Claim { position, bucket: self, row })
    }

    /// Adds a claim to the end of a run, or gives it back where there is no room: a run has at most 255, which it takes a
    /// hundred million keys to reach.
    pub(super) fn push(&mut self, run: usize, claim: Detached) -> Option<Detached> {
        let Some(longer) = self.runs.get(run).and_then(|count| count.checked_add(1)) else { return Some(claim) };
        let Some(tail) = self.tails.add(&claim.tail) else { return Some(claim) };
        self.rows.insert(self.positions(run).end, Row { tail, ..claim.row });
        self.set_count(run, longer);
        None
    }

    /// Takes out the claim at `position`, if there is one.
    pub(super) fn remove(&mut self, position: usize) -> Option<Detached> {
        let length = self.claim(position).map_or(0, |claim| claim.tail().length);
        let row = self.rows.remove(position)?;
        let octets = self.tails.starting_at(row.tail).and_then(|octets| octets.get(..length)).unwrap_or_default();
        let tail = octets.to_owned();
        self.tails.remove(row.tail, length);
        for other in self.rows.iter_mut() {
            other.tail = other.tail.after_removal(row.tail, length);
        }
        if let Some(run) = (0..RUNS).find(|run| self.positions(*run).contains(&position)) {
            let count = self.runs.get(run).copied().unwrap_or_default();
            self.set_count(run, count.saturating_sub(1));
        }
        Some(Detached { row, tail })
    }

    /// Looks at what leads to its rows and tails.
    pub(super) fn look(&self) {
        black_box((self.runs.first().copied(), self.tails.count()));
    }

    /// The rows of a run, none of which is looked at.
    pub(super) fn rows_in(&self, run: usize) -> impl Iterator<Item = &Row> {
        self.rows.range(self.positions(run)).map(|(_, row)| row)
    }

    pub(super) fn claim(&self, position: usize) -> Option<Claim<'_>> {
        self.rows.get(position).map(|row| Claim { position, bucket: self, row })
    }

    /// Where the rows of a run stand.
    fn positions(&self, run: usize) -> Range<usize> {
        // In numbers of one and two octets, so that the compiler makes a few vectors of them.
        let first_later = u8::try_from(run).unwrap_or(u8::MAX);
        let earlier = zip(0..RUNS as u8, &self.runs).map(|(own, count)| if own < first_later { *count } else { 0 });
        let start = usize::from(earlier.map(u16::from).sum::<u16>());
        start..start + self.runs.get(run).copied().map_or(0, usize::from)
    }

    fn set_count(&mut self, run: usize, count: u8) {
        if let Some(own) = self.runs.get_mut(run) {
            *own = count;
        }
    }
}

impl Row {
    /// Looks at it.
    pub(super) fn look(&self) {
        black_box(self.flags);
    }
}

impl<'k> Claim<'k> {
    /// Looks at its tail.
    pub(super) fn look(self) {
        black_box(self.bucket.tails.starting_at(self.row.tail).and_then(|octets| octets.first().copied()));
    }

    pub(super) fn record_name(self) -> RecordName {
        RecordName { uid: self.tail().uid, serial: self.row.serial }
    }

    pub(super) fn digest(self) -> Digest {
        self.row.digest
    }

    pub(super) fn rank(self) -> Rank {
        (self.row.created, self.record_name())
    }

    pub(super) fn slot(self) -> u32 {
        self.row.slot
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

    /// Whether the key has a list of the client addresses that may use it.
    pub(super) fn is_listed(self) -> bool {
        self.has(LISTED)
    }

    fn has(self, flag: u8) -> bool {
        self.row.flags & flag != 0
    }

    /// What [`tail_of`] has written.
    pub(super) fn tail(self) -> Tail<'k> {
        let octets = self.bucket.tails.starting_at(self.row.tail);
        octets.and_then(|octets| Tail::read(self.row.flags, octets)).unwrap_or_default()
    }
}

impl fmt::Debug for Claim<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim").field("record_name", &self.record_name()).finish_non_exhaustive()
    }
}

impl PartialEq for Claim<'_> {
    fn eq(&self, other: &Self) -> bool {
        let fixed = |claim: &Self| (claim.row.digest, claim.rank(), claim.row.flags, claim.row.slot, claim.row.end);
        fixed(self) == fixed(other) && self.tail() == other.tail() && self.profile() == other.profile()
    }
}

impl<'k> Tail<'k> {
    /// What `octets` begin with.
    fn read(flags: u8, octets: &'k [u8]) -> Option<Self> {
        let (uid, rest) = octets.split_first_chunk()?;
        let (not_after, rest) = match flags & EXACT {
            0 => (None, rest),
            _ => rest.split_first_chunk().map(|(not_after, rest)| (Some(i64::from_le_bytes(*not_after)), rest))?,
        };
        let (length, rest) = rest.split_first()?;
        let (name, rest) = rest.split_at_checked(usize::from(*length))?;
        Some(Self { uid: *uid, not_after, name: str::from_utf8(name).ok()?, length: octets.len() - rest.len() })
    }
}

impl Detached {
    /// What the record with this name and digest says of its key; `terms` is `None` if that cannot be read.
    pub(super) fn new(
        digest: &Digest,
        (created, record_name): Rank,
        slot: u32,
        profile: Arc<Profile>,
        terms: Option<&Terms>,
    ) -> Self {
        let not_after = terms.and_then(|terms| terms.not_after);
        let flags = terms.map_or(UNREADABLE, |terms| flags(terms, &profile));
        let tail =
            tail_of(record_name, not_after.filter(|_| flags & EXACT != 0), terms.map_or("", |terms| &terms.name));
        let row = Row {
            digest: *digest,
            profile,
            slot,
            end: not_after.map_or(0, second),
            created,
            serial: record_name.serial,
            tail: Location::NOWHERE,
            flags,
        };
        Self { row, tail }
    }
}

fn flags(terms: &Terms, profile: &Profile) -> u8 {
    let flag = |flag, is_set| if is_set { flag } else { 0 };
    let is_inexact = |instant: Timestamp| instant.as_nanosecond() != nanoseconds(second(instant));
    flag(SUSPENDED, terms.is_suspended)
        | flag(REVOKED, terms.is_revoked)
        | flag(EXPIRES, terms.not_after.is_some())
        | flag(EXACT, terms.not_after.is_some_and(is_inexact))
        | flag(LISTED, profile.allowed_addresses().is_some())
}

fn tail_of(record_name: RecordName, not_after: Option<Timestamp>, name: &str) -> Vec<u8> {
    let not_after = not_after.map(|instant| microseconds(instant).to_le_bytes());
    let not_after = not_after.as_ref().map_or(&[][..], |octets| octets);
    // `terms` lets through no more than 253 octets.
    let length = u8::try_from(name.len()).unwrap_or(u8::MAX);
    [&record_name.uid, not_after, &[length], name.as_bytes()].concat()
}

/// Rounded down, before 1970 too: no key lives longer than its record says.
fn microseconds(instant: Timestamp) -> i64 {
    i64::try_from(instant.as_nanosecond().div_euclid(1000)).unwrap_or(i64::MIN)
}

/// The second that an instant is in, or the nearest one that there is room for.
pub(super) fn second(instant: Timestamp) -> u32 {
    u32::try_from(instant.as_second().max(0)).unwrap_or(u32::MAX)
}

fn nanoseconds(second: u32) -> i128 {
    i128::from(second) * 1_000_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(number: u32) -> Terms {
        Terms {
            profile: Profile::default(),
            name: format!("key-{number}"),
            allowed_addresses: None,
            not_after: None,
            is_suspended: false,
            is_revoked: false,
        }
    }

    fn digest(number: u32) -> Digest {
        Digest::of(&number.to_le_bytes())
    }

    fn record_name(number: u32) -> RecordName {
        format!("0b0e7a4c-93d1-4f5e-8a6b-7c8d9e0f1a2b-{number}").parse().unwrap()
    }

    fn push(bucket: &mut Bucket, run: usize, number: u32) -> bool {
        let terms = terms(number);
        let rank = (number, record_name(number));
        bucket.push(run, Detached::new(&digest(number), rank, number, Arc::default(), Some(&terms))).is_none()
    }

    fn run_of(number: u32) -> usize {
        (number * 13 % 7 * 5) as usize
    }

    fn check(bucket: &Bucket, present: &[bool]) {
        for (number, is_present) in (0..).zip(present) {
            let claim = bucket.claim_to(run_of(number), &digest(number));
            assert_eq!(claim.is_some(), *is_present, "{number}");
            if let Some(claim) = claim {
                assert_eq!((claim.slot(), claim.rank()), (number, (number, record_name(number))));
                assert_eq!((claim.tail().name.to_owned(), claim.is_readable()), (format!("key-{number}"), true));
            }
        }
        assert_eq!(bucket.all_claims().count(), present.iter().filter(|is_present| **is_present).count());
    }

    #[test]
    fn a_claim_keeps_what_is_its_own_while_others_come_and_go() {
        let (mut bucket, mut present) = (Bucket::default(), vec![false; 400]);
        // All come, all go and half come again, in an order that mixes them.
        for step in 0..1000_u32 {
            let number = step * 151 % 400;
            if present[number as usize] {
                let position = bucket.claim_to(run_of(number), &digest(number)).unwrap().position;
                let removed = bucket.remove(position).unwrap();
                assert_eq!(Bucket::of(removed).claim(0).unwrap().rank(), (number, record_name(number)));
            } else {
                assert!(push(&mut bucket, run_of(number), number));
            }
            present[number as usize] ^= true;
            if step.is_multiple_of(17) {
                check(&bucket, &present);
            }
        }
    }

    #[test]
    fn a_run_without_room_leaves_its_claims_as_they_are() {
        let mut bucket = Bucket::default();
        assert!((0..255).all(|number| push(&mut bucket, 9, number)) && push(&mut bucket, 10, 255));
        assert!(!push(&mut bucket, 9, 256));
        assert!(bucket.claim_to(9, &digest(256)).is_none());
        assert!((0..255).all(|number| bucket.claim_to(9, &digest(number)).is_some_and(Claim::is_readable)));
        assert!(bucket.claim_to(10, &digest(255)).is_some_and(Claim::is_readable));
        assert_eq!(bucket.all_claims().count(), 256);
    }
}
