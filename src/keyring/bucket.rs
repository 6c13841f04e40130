//! The claims whose digests share the first bits of their hash: about 60 of them where a keyring holds a million.
//!
//! ```text
//! runs   32 counts                      how many claims share 5 more bits of their hashes: where to look
//! rows   64 octets each, run by run     digest, record name, slot, profile, flags, second in which the key ends
//! tails  in any order                   notAfter if it is no whole second, name of the ApiKey
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
    digest: DigestStart,
    record_name: RecordName,
    slot: u32,
    profile: Arc<Profile>,
    /// The second since 1970 in which the key ends, if it does: at its start, unless the tail says more exactly when. Times
    /// for which there is no room are the first and the last second, and in the tail.
    end: u32,
    flags: u8,
    tail: Location,
}

/// As much of a digest as keys are told apart by: 192 bits. To find a key that shares them with another one's SHA-256 is as
/// hopeless as to guess the other one.
type DigestStart = [u8; 24];

const _: () = assert!(size_of::<Row>() == 64 && size_of::<Bucket>() == 128);

/// A record's claim to a digest: a view into its bucket, decoded as far as it is asked.
#[derive(Clone, Copy)]
pub(super) struct Claim<'k> {
    pub(super) position: usize,
    bucket: &'k Bucket,
    row: &'k Row,
}

/// A claim on its way into a bucket.
pub(super) struct NewClaim<'t> {
    pub(super) run: usize,
    pub(super) digest: Digest,
    pub(super) record_name: RecordName,
    pub(super) slot: u32,
    pub(super) profile: Arc<Profile>,
    /// What else the record says; `None` if it cannot be read.
    pub(super) terms: Option<&'t Terms>,
}

/// The variable part of a claim, decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Tail<'k> {
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
    /// The claims to `digest`, which are in this run.
    pub(super) fn claims(&self, run: usize, digest: &Digest) -> impl Iterator<Item = Claim<'_>> {
        let digest = start_of(digest);
        let rows = self.rows.range(self.positions(run)).filter(move |(_, row)| row.digest == digest);
        rows.map(|(position, row)| Claim { position, bucket: self, row })
    }

    pub(super) fn all_claims(&self) -> impl Iterator<Item = Claim<'_>> {
        self.rows.range(0..usize::MAX).map(|(position, row)| Claim { position, bucket: self, row })
    }

    /// Adds a claim, and answers whether there was room for it: a run has at most 255, which it takes a hundred million
    /// keys to reach. Where there is none, the run's other claims refuse from then on, as one of them may be a rival.
    #[must_use]
    pub(super) fn push(&mut self, claim: &NewClaim<'_>) -> bool {
        let positions = self.positions(claim.run);
        let Some(longer) = self.runs.get(claim.run).and_then(|count| count.checked_add(1)) else {
            self.rows.iter_mut().skip(positions.start).take(positions.len()).for_each(|row| row.flags |= UNREADABLE);
            return false;
        };
        let flags = flags(claim);
        // The claim refuses if there is no room for its tail. It takes a hundred million keys to get there too.
        let tail = self.tails.add(&tail_of(claim, flags));
        let flags = flags | if tail.is_none() { UNREADABLE } else { 0 };
        let row = Row {
            digest: start_of(&claim.digest),
            record_name: claim.record_name,
            slot: claim.slot,
            profile: Arc::clone(&claim.profile),
            end: claim.terms.and_then(|terms| terms.not_after).map_or(0, second),
            flags,
            tail: tail.unwrap_or(Location::NOWHERE),
        };
        self.rows.insert(positions.end, row);
        self.set_count(claim.run, longer);
        true
    }

    /// Takes out the claim at `position`, if there is one.
    pub(super) fn remove(&mut self, position: usize) {
        let length = self.claim(position).map_or(0, |claim| claim.tail().length);
        let Some(row) = self.rows.remove(position) else { return };
        self.tails.remove(row.tail, length);
        for other in self.rows.iter_mut() {
            other.tail = other.tail.after_removal(row.tail, length);
        }
        if let Some(run) = (0..RUNS).find(|run| self.positions(*run).contains(&position)) {
            let count = self.runs.get(run).copied().unwrap_or_default();
            self.set_count(run, count.saturating_sub(1));
        }
    }

    /// Looks at what leads to its rows and tails.
    pub(super) fn look(&self) {
        black_box((self.runs.first().copied(), self.tails.count()));
    }

    /// The rows of a run, none of which is looked at.
    pub(super) fn rows_in(&self, run: usize) -> impl Iterator<Item = &Row> {
        self.rows.range(self.positions(run)).map(|(_, row)| row)
    }

    fn claim(&self, position: usize) -> Option<Claim<'_>> {
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
        self.row.record_name
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
        let fixed = |claim: &Self| (claim.row.digest, claim.row.record_name, claim.row.flags, claim.row.slot);
        fixed(self) == fixed(other) && self.tail() == other.tail() && self.profile() == other.profile()
    }
}

impl<'k> Tail<'k> {
    /// What `octets` begin with.
    fn read(flags: u8, octets: &'k [u8]) -> Option<Self> {
        let (not_after, rest) = match flags & EXACT {
            0 => (None, octets),
            _ => octets.split_first_chunk().map(|(not_after, rest)| (Some(i64::from_le_bytes(*not_after)), rest))?,
        };
        let (length, rest) = rest.split_first()?;
        let (name, rest) = rest.split_at_checked(usize::from(*length))?;
        Some(Self { not_after, name: str::from_utf8(name).ok()?, length: octets.len() - rest.len() })
    }
}

fn start_of(digest: &Digest) -> DigestStart {
    digest.as_bytes().first_chunk().copied().unwrap_or_default()
}

fn flags(claim: &NewClaim<'_>) -> u8 {
    let flag = |flag, is_set| if is_set { flag } else { 0 };
    let Some(terms) = claim.terms else {
        return UNREADABLE;
    };
    flag(SUSPENDED, terms.is_suspended)
        | flag(REVOKED, terms.is_revoked)
        | flag(EXPIRES, terms.not_after.is_some())
        | flag(EXACT, terms.not_after.is_some_and(|instant| instant.as_nanosecond() != nanoseconds(second(instant))))
        | flag(LISTED, claim.profile.allowed_addresses().is_some())
}

fn tail_of(claim: &NewClaim<'_>, flags: u8) -> Vec<u8> {
    let not_after = claim.terms.and_then(|terms| terms.not_after).filter(|_| flags & EXACT != 0);
    let not_after = not_after.map(|instant| microseconds(instant).to_le_bytes());
    let not_after = not_after.as_ref().map_or(&[][..], |octets| octets);
    let name = claim.terms.map_or("", |terms| &terms.name);
    // `terms` lets through no more than 253 octets.
    let length = u8::try_from(name.len()).unwrap_or(u8::MAX);
    [not_after, &[length], name.as_bytes()].concat()
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
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
        bucket.push(&NewClaim {
            run,
            digest: digest(number),
            record_name: record_name(number),
            slot: number,
            profile: Arc::default(),
            terms: Some(&terms),
        })
    }

    fn run_of(number: u32) -> usize {
        (number * 13 % 7 * 5) as usize
    }

    fn check(bucket: &Bucket, present: &[bool]) {
        for (number, is_present) in (0..).zip(present) {
            let claims: Vec<_> = bucket.claims(run_of(number), &digest(number)).collect();
            assert_eq!(claims.len(), usize::from(*is_present), "{number}");
            for claim in claims {
                assert_eq!((claim.slot(), claim.record_name()), (number, record_name(number)));
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
                let position = bucket.claims(run_of(number), &digest(number)).next().unwrap().position;
                bucket.remove(position);
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
    fn a_run_without_room_refuses_all_its_keys_and_no_others() {
        let mut bucket = Bucket::default();
        assert!((0..255).all(|number| push(&mut bucket, 9, number)) && push(&mut bucket, 10, 255));
        assert!(bucket.all_claims().all(Claim::is_readable));
        assert!(!push(&mut bucket, 9, 256));
        assert_eq!(bucket.claims(9, &digest(256)).count(), 0);
        assert!((0..255).all(|number| bucket.claims(9, &digest(number)).all(|claim| !claim.is_readable())));
        assert!(bucket.claims(10, &digest(255)).all(Claim::is_readable));
        assert_eq!(bucket.all_claims().count(), 256);
    }
}
