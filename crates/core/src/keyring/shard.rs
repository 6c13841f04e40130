//! The claims whose digests share some bits of their hash: some 244 of them where a keyring holds a million.
//!
//! ```text
//! rows   hash table by digest   what a decision needs of most keys
//! texts  one after the other    uid of the ApiKey, its namespace and name, owner, scopes
//! lists  by slot                allowed addresses, of the keys that have a list
//! ```
//!
//! Among many keys a lookup finds none of this in the processor's cache, so it should look at few places. A row is one line
//! of the cache, and stands in the table itself, although a table is up to half empty. A decision looks at a text only if
//! the route demands something, and at a list only if the key has one.
//!
//! A shard is copied when it changes. Rows and texts are plain octets, so that a copy counts no references.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use hashbrown::HashTable;
use jiff::Timestamp;

use super::terms::Terms;
use crate::address::AllowedAddresses;
use crate::key::Digest;
use crate::record_name::RecordName;

#[derive(Clone, Default)]
pub(super) struct Shard {
    rows: HashTable<Row>,
    texts: Vec<u8>,
    lists: BTreeMap<u32, Arc<AllowedAddresses>>,
}

/// The fixed part of a claim.
#[derive(Clone, Copy, PartialEq)]
#[repr(align(64))]
struct Row {
    digest: Digest,
    /// Microseconds since 1970 from which on the key is refused, or [`NEVER`].
    not_after: i64,
    slot: u32,
    /// The second since 1970 in which the record was made.
    created: u32,
    serial: u32,
    /// Where its text is among the texts.
    text_start: u32,
    text_end: u32,
    /// Octets of the text's parts, after the uid. The rest are the scopes.
    namespace_length: u8,
    name_length: u8,
    owner_length: u8,
    flags: u8,
}

const _: () = assert!(size_of::<Row>() == 64);

/// Later than any instant that there is.
const NEVER: i64 = i64::MAX;

/// Octets of an ApiKey's uid.
const UID_LENGTH: usize = 16;

const UNREADABLE: u8 = 1;
const SUSPENDED: u8 = 2;
const REVOKED: u8 = 4;
/// There is a list of addresses.
const LISTED: u8 = 8;
/// The key was made elsewhere.
const SUBMITTED: u8 = 16;

/// A record's claim to a digest: a view into its shard.
#[derive(Clone, Copy)]
pub(super) struct Claim<'k> {
    row: &'k Row,
    text: &'k [u8],
    list: Option<&'k AllowedAddresses>,
}

/// A claim outside of any shard.
#[derive(Clone)]
pub(super) struct Detached {
    row: Row,
    text: Box<[u8]>,
    list: Option<Arc<AllowedAddresses>>,
}

/// Of two claims to a digest, the one with the lower rank rules: the older record, and of two that were made in the same
/// second the one whose name comes first.
pub(super) type Rank = (u32, RecordName);

impl Shard {
    /// The claim to `digest`, whose hash this is.
    pub(super) fn claim_to(&self, hash: u64, digest: &Digest) -> Option<Claim<'_>> {
        self.rows.find(hash, |row| row.digest == *digest).map(|row| self.claim(row))
    }

    pub(super) fn claims(&self) -> impl Iterator<Item = Claim<'_>> {
        self.rows.iter().map(|row| self.claim(row))
    }

    /// Adds a claim to a digest that no claim here is to.
    pub(super) fn insert(&mut self, claim: Detached, hash: impl Fn(&Digest) -> u64) {
        let Detached { row, text, list } = claim;
        let (text_start, text_end) = (offset(self.texts.len()), offset(self.texts.len() + text.len()));
        // No room to spare, as the next change copies the shard.
        self.texts.reserve_exact(text.len());
        self.texts.extend_from_slice(&text);
        self.lists.extend(list.map(|list| (row.slot, list)));
        self.rows.insert_unique(hash(&row.digest), Row { text_start, text_end, ..row }, |row| hash(&row.digest));
    }

    /// Takes out the claim to `digest`, if there is one.
    pub(super) fn remove(&mut self, digest: &Digest, hash: impl Fn(&Digest) -> u64) -> Option<Detached> {
        let found = self.rows.find_entry(hash(digest), |row| row.digest == *digest);
        let (row, _) = found.ok()?.remove();
        if self.rows.len() < self.rows.capacity() / 4 {
            self.rows.shrink_to(self.rows.len() * 2, |row| hash(&row.digest));
        }
        let text: Box<[u8]> = self.texts.get(row.text())?.into();
        self.texts.drain(row.text());
        let length = offset(text.len());
        for other in self.rows.iter_mut().filter(|other| other.text_start > row.text_start) {
            (other.text_start, other.text_end) = (other.text_start - length, other.text_end - length);
        }
        Some(Detached { row: Row { text_start: 0, text_end: length, ..row }, text, list: self.lists.remove(&row.slot) })
    }

    fn claim<'k>(&'k self, row: &'k Row) -> Claim<'k> {
        let list = if row.has(LISTED) { self.lists.get(&row.slot).map(Arc::as_ref) } else { None };
        Claim { row, text: self.texts.get(row.text()).unwrap_or_default(), list }
    }
}

impl Row {
    fn text(&self) -> Range<usize> {
        self.text_start as usize..self.text_end as usize
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

impl<'k> Claim<'k> {
    pub(super) fn record_name(self) -> RecordName {
        let uid = self.text.first_chunk::<UID_LENGTH>().copied().unwrap_or_default();
        RecordName { uid, serial: self.row.serial }
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

    pub(super) fn is_suspended(self) -> bool {
        self.row.has(SUSPENDED)
    }

    pub(super) fn is_revoked(self) -> bool {
        self.row.has(REVOKED)
    }

    pub(super) fn is_submitted(self) -> bool {
        self.row.has(SUBMITTED)
    }

    pub(super) fn not_after(self) -> Option<Timestamp> {
        let instant = Some(self.row.not_after).filter(|instant| *instant != NEVER)?;
        Some(Timestamp::from_microsecond(instant).unwrap_or(Timestamp::MIN))
    }

    /// Whether all is there that the row speaks of.
    pub(super) fn is_readable(self) -> bool {
        let has_list = self.list.is_some() || !self.row.has(LISTED);
        !self.row.has(UNREADABLE) && !self.text.is_empty() && has_list
    }

    /// The client addresses that may use the key; absent means any.
    pub(super) fn allowed_addresses(self) -> Option<&'k AllowedAddresses> {
        self.list
    }

    pub(super) fn namespace(self) -> &'k str {
        self.part(0, self.row.namespace_length)
    }

    pub(super) fn name(self) -> &'k str {
        self.part(self.row.namespace_length.into(), self.row.name_length)
    }

    pub(super) fn owner(self) -> &'k str {
        self.part(self.before_owner(), self.row.owner_length)
    }

    pub(super) fn scopes(self) -> &'k str {
        let start = UID_LENGTH + self.before_owner() + usize::from(self.row.owner_length);
        self.text.get(start..).and_then(|scopes| str::from_utf8(scopes).ok()).unwrap_or_default()
    }

    fn before_owner(self) -> usize {
        usize::from(self.row.namespace_length) + usize::from(self.row.name_length)
    }

    /// The part of the text that starts so many octets after the uid.
    fn part(self, start: usize, length: u8) -> &'k str {
        let start = UID_LENGTH + start;
        let part = self.text.get(start..start + usize::from(length));
        part.and_then(|part| str::from_utf8(part).ok()).unwrap_or_default()
    }
}

impl fmt::Debug for Claim<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim").field("record_name", &self.record_name()).finish_non_exhaustive()
    }
}

impl PartialEq for Claim<'_> {
    /// Wherever their texts are.
    fn eq(&self, other: &Self) -> bool {
        let fixed = |claim: &Self| Row { text_start: 0, text_end: 0, ..*claim.row };
        fixed(self) == fixed(other) && self.text == other.text && self.list == other.list
    }
}

impl Detached {
    /// What the record with this name and digest says of its key; `terms` is `None` if that cannot be read.
    pub(super) fn new(
        digest: Digest,
        (created, record_name): Rank,
        slot: u32,
        terms: Option<&Terms<'_>>,
        list: Option<Arc<AllowedAddresses>>,
    ) -> Self {
        let flags = terms.map_or(UNREADABLE, |terms| {
            let flag = |flag, is_set| if is_set { flag } else { 0 };
            flag(SUSPENDED, terms.is_suspended)
                | flag(REVOKED, terms.is_revoked)
                | flag(SUBMITTED, terms.is_submitted)
                | flag(LISTED, list.is_some())
        });
        let parts = terms.map_or([""; 4], |terms| [&terms.namespace, &terms.name, terms.owner, &terms.scopes]);
        let [namespace, name, owner, _] = parts;
        // Of these three, `terms` lets through no more than 253 octets.
        let length = |text: &str| u8::try_from(text.len()).unwrap_or(u8::MAX);
        let text: Box<[u8]> = [&record_name.uid, parts.concat().as_bytes()].concat().into();
        let row = Row {
            digest,
            not_after: terms.and_then(|terms| terms.not_after).map_or(NEVER, microseconds),
            slot,
            created,
            serial: record_name.serial,
            text_start: 0,
            text_end: offset(text.len()),
            namespace_length: length(namespace),
            name_length: length(name),
            owner_length: length(owner),
            flags,
        };
        Self { row, text, list }
    }

    pub(super) fn claim(&self) -> Claim<'_> {
        Claim { row: &self.row, text: &self.text, list: self.list.as_deref() }
    }
}

/// Where there is no room for it, where no text is: the key is closed.
fn offset(octets: usize) -> u32 {
    u32::try_from(octets).unwrap_or(u32::MAX)
}

/// Rounded down, before 1970 too: no key lives longer than its record says.
fn microseconds(instant: Timestamp) -> i64 {
    i64::try_from(instant.as_nanosecond().div_euclid(1000)).unwrap_or(i64::MIN)
}

/// The second that an instant is in, or the nearest one that there is room for.
pub(super) fn second(instant: Timestamp) -> u32 {
    u32::try_from(instant.as_second().max(0)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u32) -> Digest {
        Digest::of(&number.to_le_bytes())
    }

    fn list(number: u32) -> AllowedAddresses {
        AllowedAddresses::parse(&[format!("10.0.{}.{}", number / 256, number % 256)]).unwrap()
    }

    /// A claim with a text of another length than that of most others, and perhaps a list.
    fn claim(number: u32) -> Detached {
        let terms = Terms {
            namespace: "n".repeat(1 + number as usize % 5),
            name: format!("key-{number}"),
            owner: "jane@example.com",
            scopes: "orders:read ".repeat(number as usize % 3).trim().to_owned(),
            allowed_addresses: None,
            not_after: None,
            is_suspended: false,
            is_revoked: false,
            is_submitted: false,
        };
        let name = format!("0b0e7a4c-93d1-4f5e-8a6b-7c8d9e0f1a2b-{number}").parse().unwrap();
        let list = number.is_multiple_of(4).then(|| Arc::new(list(number)));
        Detached::new(digest(number), (number, name), number, Some(&terms), list)
    }

    fn check(shard: &Shard, present: &[bool], hash: impl Fn(&Digest) -> u64) {
        for (number, is_present) in (0..).zip(present) {
            let found = shard.claim_to(hash(&digest(number)), &digest(number));
            let expected = claim(number);
            assert_eq!(found, is_present.then(|| expected.claim()), "{number}");
            if let Some(found) = found {
                assert_eq!((found.name(), found.owner()), (&*format!("key-{number}"), "jane@example.com"));
                assert_eq!(found.namespace().len(), 1 + number as usize % 5);
                assert_eq!(found.scopes().split_whitespace().count(), number as usize % 3);
                assert_eq!(found.allowed_addresses(), Some(&list(number)).filter(|_| number.is_multiple_of(4)));
                assert!(found.is_readable() && found.rank() == expected.claim().rank());
            }
        }
        assert_eq!(shard.claims().count(), present.iter().filter(|is_present| **is_present).count());
    }

    /// Whatever the hash is worth: the worst is the same for all digests.
    #[test]
    fn a_claim_keeps_what_is_its_own_while_others_come_and_go() {
        let spread = |digest: &Digest| u64::from_le_bytes(*digest.as_bytes().first_chunk().unwrap());
        let hashes: [&dyn Fn(&Digest) -> u64; 2] = [&spread, &|_| 7];
        for hash in hashes {
            let (mut shard, mut present) = (Shard::default(), vec![false; 400]);
            // All come, all go and half come again, in an order that mixes them.
            for step in 0..1000_u32 {
                let number = step * 151 % 400;
                if present[number as usize] {
                    assert_eq!(shard.remove(&digest(number), hash).unwrap().claim(), claim(number).claim());
                } else {
                    shard.insert(claim(number), hash);
                }
                present[number as usize] ^= true;
                if step.is_multiple_of(17) {
                    check(&shard, &present, hash);
                }
            }
            check(&shard, &present, hash);
        }
    }

    #[test]
    fn what_is_gone_takes_up_no_memory() {
        let mut shard = Shard::default();
        let hash = |digest: &Digest| u64::from_le_bytes(*digest.as_bytes().first_chunk().unwrap());
        (0..1000).for_each(|number| shard.insert(claim(number), hash));
        (10..1000).for_each(|number| drop(shard.remove(&digest(number), hash)));
        assert_eq!(shard.texts.len(), shard.claims().map(|claim| claim.text.len()).sum::<usize>());
        assert!(shard.rows.capacity() < 60 && shard.lists.len() == 3, "{}", shard.rows.capacity());
        let copy = shard.clone();
        assert_eq!((copy.rows.capacity(), copy.texts.capacity()), (shard.rows.capacity(), copy.texts.len()));
        (0..10).for_each(|number| drop(shard.remove(&digest(number), hash)));
        assert_eq!((shard.rows.capacity(), shard.texts.len(), shard.lists.len()), (0, 0, 0));
    }
}
