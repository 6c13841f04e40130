//! PURE. The records trusted now: from a key's digest to what a decision needs to know of the key.
//!
//! ```text
//! digest ── seeded hash ──> root ──> branch ──> twig ──> bucket ──> claims whose digests are equal
//!                           32       32         16       16 384 in all
//! ```
//!
//! A [`Keyring`] is a persistent value: a clone shares everything with its original, and a change copies the way from the
//! root to one bucket. So the feed keeps a working copy, publishes clones of it, and no reader ever waits.
//!
//! Every doubt about a record closes that record's key, and no other: a record that cannot be read, and two records
//! that claim the same digest, refuse.

mod bucket;
mod entry;
mod interner;
mod pieces;
mod profile;
mod record_name;
mod tails;
mod terms;

use std::array;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;
use smallvec::SmallVec;

use self::bucket::{Bucket, Claim, NewClaim, RUN_BITS};
use self::interner::Interner;
use self::profile::Profile;
use self::terms::Terms;
use crate::address::AllowedAddresses;
use crate::key::Digest;

pub use self::entry::Entry;
pub use self::record_name::{InvalidRecordName, RecordName};
pub(crate) use self::terms::is_word;

/// The records trusted now.
#[derive(Clone)]
pub struct Keyring {
    root: Arc<Root>,
    /// Seeded, because the digest of a key made elsewhere is its maker's choice; and over the whole of it, for the same
    /// reason.
    hasher: RandomState,
    len: usize,
    common: Arc<Common>,
}

/// What a keyring and all its clones have in common. A lookup does not touch it.
#[derive(Default)]
struct Common {
    profiles: Interner<Profile>,
    lists: Interner<AllowedAddresses>,
    /// Number of slots handed out.
    slots: AtomicU32,
}

/// Narrow, as a copy counts one user more of each of its children, and the buckets' counts are in no cache.
type Root = [Arc<Branch>; 1 << BRANCH_BITS];
type Branch = [Arc<Twig>; 1 << TWIG_BITS];
type Twig = [Arc<Bucket>; 1 << BUCKET_BITS];

/// Bits of the hash that say which branch of the root, and so on.
const BRANCH_BITS: u32 = 5;
const TWIG_BITS: u32 = 5;
const BUCKET_BITS: u32 = 4;

/// Where the claims to a digest are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Place {
    branch: usize,
    twig: usize,
    bucket: usize,
    run: usize,
}

/// Why the keyring vouches for no key with a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untrusted {
    /// No record claims it.
    Absent,
    /// The record that claims it cannot be read.
    Unreadable,
    /// Several records claim it and none of them is revoked. Picking one would let whoever writes a second record
    /// widen what the first one allows.
    Ambiguous,
}

/// Why a record's key is refused, whatever else the record says. Repeats no value, as it may be a key in the wrong
/// place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// The record is not named as the controller names it, so that another hand has made it.
    #[error("the record's name is not <ApiKey uid>-<serial>: it counts for nothing and should be deleted")]
    Name,
    /// A field that has to be there is not.
    #[error("spec.{0} is missing: the key is refused until the record is complete")]
    Missing(&'static str),
    /// A field holds what it cannot hold.
    #[error("spec.{0} cannot be read: the key is refused until the record is corrected")]
    Unreadable(&'static str),
    /// Another record claims the same key.
    #[error("spec.digest is claimed by record {0} too: the key is refused until one of the two is gone")]
    Ambiguous(RecordName),
    /// Too many records have a digest with such a hash. It takes a hundred million of them.
    #[error(
        "there are too many records: its key is refused, and those of others; spread them over several installations"
    )]
    NoRoom,
}

impl Keyring {
    /// Takes in a record that is new, or has changed in anything but its digest: `record` is its object name, `spec`
    /// what the API server sent.
    ///
    /// # Errors
    /// Why the record's key is refused for now. The keyring has taken that in.
    pub fn upsert(&mut self, record: &str, spec: &Value) -> Result<(), Distrust> {
        let record: RecordName = record.parse().map_err(|_| Distrust::Name)?;
        self.enter(record, terms::digest(spec)?, spec, None)
    }

    /// An empty keyring that can take the place of this one, for all records to be read anew.
    pub fn successor(&self) -> Self {
        Self { hasher: self.hasher.clone(), common: Arc::clone(&self.common), ..Self::default() }
    }

    /// Takes in a record as [`Keyring::upsert`] does, into a [`Keyring::successor`] of `before`: a record that was there
    /// keeps its slot.
    ///
    /// # Errors
    /// Why the record's key is refused for now. The keyring has taken that in.
    pub fn carry_over(&mut self, before: &Self, record: &str, spec: &Value) -> Result<(), Distrust> {
        let record_name: RecordName = record.parse().map_err(|_| Distrust::Name)?;
        self.enter(record_name, terms::digest(spec)?, spec, before.slot_of(record, spec))
    }

    /// Takes in a record that was there before, whatever has changed in it.
    ///
    /// Digests are immutable, and a record is found by its own. Where one has changed all the same, or can no longer
    /// be read, this looks through all records for the old one, lest its key stay trusted: some 20 ms for a million.
    ///
    /// # Errors
    /// Why the record's key is refused for now. The keyring has taken that in.
    pub fn replace(&mut self, record: &str, spec: &Value) -> Result<(), Distrust> {
        let name: RecordName = record.parse().map_err(|_| Distrust::Name)?;
        if !self.stands_under(name, terms::digest(spec)) {
            self.search_and_remove(name);
        }
        self.upsert(record, spec)
    }

    /// Forgets a record that is gone; `spec` is the last that was known of it. Where that does not lead to the record,
    /// this looks through all of them, as [`Keyring::replace`] does.
    pub fn remove(&mut self, record: &str, spec: &Value) {
        let Ok(name) = record.parse() else {
            return;
        };
        match terms::digest(spec) {
            Ok(digest) if self.stands_under(name, Ok(digest)) => drop(self.withdraw(name, &digest)),
            _ => self.search_and_remove(name),
        }
    }

    /// What there is to know of the key with this digest. Of several claims, one that is revoked wins: a revoked key
    /// stays revoked.
    ///
    /// # Errors
    /// If no entry can be relied on; the key is then to be refused.
    pub fn get(&self, digest: &Digest) -> Result<Entry<'_>, Untrusted> {
        let mut result = Err(Untrusted::Absent);
        for claim in self.claims(digest) {
            result = match (result, Entry::of(claim)) {
                (_, Some(entry)) if entry.is_revoked() => return Ok(entry),
                (Err(Untrusted::Absent), entry) => entry.ok_or(Untrusted::Unreadable),
                _ => Err(Untrusted::Ambiguous),
            };
        }
        result
    }

    /// Looks at all that [`Keyring::get`] and its entries will look at for these keys, so that it is in the processor's
    /// cache: step by step, each for all keys, as it then waits for all of them at once. `look` gets the slots that were
    /// found, to look at what stands there.
    pub fn prefetch(&self, digests: &[Digest], mut look: impl FnMut(u32)) {
        let find = |digest| {
            let place = self.place(digest);
            Some((self.bucket(place)?, place.run, digest))
        };
        let buckets: SmallVec<[_; 32]> = digests.iter().filter_map(find).collect();
        buckets.iter().for_each(|(bucket, ..)| bucket.look());
        let rows: SmallVec<[_; 96]> = buckets.iter().flat_map(|(bucket, run, _)| bucket.rows_in(*run)).collect();
        rows.iter().for_each(|row| row.look());
        let claims = buckets.iter().filter_map(|(bucket, run, digest)| bucket.claims(*run, digest).next());
        let claims: SmallVec<[_; 32]> = claims.collect();
        claims.iter().for_each(|claim| look(claim.slot()));
        claims.iter().for_each(|claim| claim.look());
        claims.iter().for_each(|claim| claim.profile().look());
    }

    /// Number of records with a name and a digest that can be read.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no such records.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of slots handed out: every [`Entry::slot`] of this keyring is below it. Rises when records come, and
    /// never falls when they go.
    pub fn slots(&self) -> u32 {
        self.common.slots.load(Ordering::Acquire)
    }

    /// The slot of a record, with the last that was known of it; `None` if it is not there.
    pub fn slot_of(&self, record: &str, spec: &Value) -> Option<u32> {
        let claim = self.claim_of(record.parse().ok()?, &terms::digest(spec).ok()?)?;
        Some(claim.slot())
    }

    /// Slot and name of the records with such slots, in no particular order.
    pub fn names_of(&self, wanted: impl Fn(u32) -> bool) -> impl Iterator<Item = (u32, RecordName)> {
        let wanted = self.all_claims().filter(move |claim| wanted(claim.slot()));
        wanted.map(|claim| (claim.slot(), claim.record_name()))
    }

    /// Slot and name of every record, in no particular order, and its entry if it can be read.
    pub fn records(&self) -> impl Iterator<Item = (u32, RecordName, Option<Entry<'_>>)> {
        self.all_claims().map(|claim| (claim.slot(), claim.record_name(), Entry::of(claim)))
    }

    /// Puts a record's claim to `digest` in the place of the one it had, or adds it.
    fn enter(
        &mut self,
        record_name: RecordName,
        digest: Digest,
        spec: &Value,
        slot_before: Option<u32>,
    ) -> Result<(), Distrust> {
        let slot = self.withdraw(record_name, &digest).or(slot_before).unwrap_or_else(|| self.next_slot());
        let (mut terms, readable) = match Terms::try_from(spec) {
            Ok(terms) => (Some(terms), Ok(())),
            Err(distrust) => (None, Err(distrust)),
        };
        let profile = terms.as_mut().map(|terms| mem::take(&mut terms.profile)).unwrap_or_default();
        let list = terms.as_mut().and_then(|terms| terms.allowed_addresses.take());
        let place = self.place(&digest);
        let claim = NewClaim {
            run: place.run,
            digest,
            record_name,
            slot,
            profile: self.common.profile(profile, list),
            terms: terms.as_ref(),
        };
        if !self.bucket_mut(place).is_some_and(|bucket| bucket.push(&claim)) {
            return Err(Distrust::NoRoom);
        }
        self.len += 1;
        readable?;
        self.check_rivals(record_name, &digest)
    }

    fn check_rivals(&self, record_name: RecordName, digest: &Digest) -> Result<(), Distrust> {
        let rival = self.claims(digest).map(Claim::record_name).find(|rival| *rival != record_name);
        match (self.get(digest), rival) {
            (Err(Untrusted::Ambiguous), Some(rival)) => Err(Distrust::Ambiguous(rival)),
            _ => Ok(()),
        }
    }

    fn stands_under(&self, record_name: RecordName, digest: Result<Digest, Distrust>) -> bool {
        digest.is_ok_and(|digest| self.claim_of(record_name, &digest).is_some())
    }

    fn claims(&self, digest: &Digest) -> impl Iterator<Item = Claim<'_>> {
        let place = self.place(digest);
        self.bucket(place).into_iter().flat_map(move |bucket| bucket.claims(place.run, digest))
    }

    fn claim_of(&self, record_name: RecordName, digest: &Digest) -> Option<Claim<'_>> {
        self.claims(digest).find(|claim| claim.record_name() == record_name)
    }

    fn all_claims(&self) -> impl Iterator<Item = Claim<'_>> {
        let twigs = self.root.iter().flat_map(|branch| branch.iter());
        twigs.flat_map(|twig| twig.iter()).flat_map(|bucket| bucket.all_claims())
    }

    /// Takes out a record's claim to `digest`, if there is one, and answers its slot.
    fn withdraw(&mut self, record_name: RecordName, digest: &Digest) -> Option<u32> {
        let claim = self.claim_of(record_name, digest)?;
        let (slot, position) = (claim.slot(), claim.position);
        self.remove_at(self.place(digest), position);
        Some(slot)
    }

    fn search_and_remove(&mut self, record_name: RecordName) {
        let mut places = (0..1 << (BRANCH_BITS + TWIG_BITS + BUCKET_BITS)).map(Place::of);
        let found = places.find_map(|place| {
            let mut claims = self.bucket(place)?.all_claims();
            Some((place, claims.find(|claim| claim.record_name() == record_name)?.position))
        });
        if let Some((place, position)) = found {
            self.remove_at(place, position);
        }
    }

    fn remove_at(&mut self, place: Place, position: usize) {
        if let Some(bucket) = self.bucket_mut(place) {
            bucket.remove(position);
            self.len -= 1;
        }
    }

    fn next_slot(&self) -> u32 {
        self.common.slots.fetch_add(1, Ordering::AcqRel)
    }

    fn place(&self, digest: &Digest) -> Place {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(digest.as_bytes());
        Place::of(hasher.finish())
    }

    fn bucket(&self, place: Place) -> Option<&Bucket> {
        self.root.get(place.branch)?.get(place.twig)?.get(place.bucket).map(Arc::as_ref)
    }

    /// Copies what clones share of the way to the bucket, and the bucket.
    fn bucket_mut(&mut self, place: Place) -> Option<&mut Bucket> {
        let branch = Arc::make_mut(&mut self.root).get_mut(place.branch)?;
        let twig = Arc::make_mut(branch).get_mut(place.twig)?;
        Arc::make_mut(twig).get_mut(place.bucket).map(Arc::make_mut)
    }
}

impl Common {
    /// What keys with this profile and list share.
    fn profile(&self, profile: Profile, list: Option<AllowedAddresses>) -> Arc<Profile> {
        let without_list = self.profiles.share(profile);
        match list {
            None => without_list,
            Some(list) => self.profiles.share(without_list.with_allowed_addresses(self.lists.share(list))),
        }
    }
}

impl Place {
    /// Where a hash leads to: its lowest bits to a bucket, the next ones to a run there.
    fn of(hash: u64) -> Self {
        let mut rest = hash as usize;
        let mut take = |bits: u32| {
            let taken = rest % (1 << bits);
            rest >>= bits;
            taken
        };
        Self { branch: take(BRANCH_BITS), twig: take(TWIG_BITS), bucket: take(BUCKET_BITS), run: take(RUN_BITS) }
    }
}

impl Default for Keyring {
    fn default() -> Self {
        let bucket = Arc::<Bucket>::default();
        let twig: Arc<Twig> = Arc::new(array::from_fn(|_| Arc::clone(&bucket)));
        let branch: Arc<Branch> = Arc::new(array::from_fn(|_| Arc::clone(&twig)));
        let root = Arc::new(array::from_fn(|_| Arc::clone(&branch)));
        Self { root, hasher: RandomState::new(), len: 0, common: Arc::default() }
    }
}

impl Untrusted {
    /// The word that stands in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Unreadable => "unreadable",
            Self::Ambiguous => "ambiguous",
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
pub(crate) mod tests {
    use std::collections::{BTreeMap, BTreeSet, HashMap};
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// The name of a record of one ApiKey with this serial.
    pub(crate) fn record_name(serial: u32) -> String {
        format!("0b0e7a4c-93d1-4f5e-8a6b-7c8d9e0f1a2b-{serial}")
    }

    fn digest(number: u32) -> Digest {
        Digest::of(&number.to_le_bytes())
    }

    fn record() -> Value {
        json!({
            "digest": digest(1).to_string(),
            "keyPrefix": "keyw1_eVULq19j",
            "apiKey": { "namespace": "team-a", "name": "billing.v2", "uid": "b0e7" },
            "serial": 1,
            "owner": "jane@example.com",
            "scopes": ["orders:read", "orders:write"],
            "allowedIPs": ["10.0.0.0/8"],
            "notAfter": "2030-01-02T03:04:05Z",
            "suspended": true,
            "revoked": { "at": "2026-01-01T00:00:00Z", "reason": "Deleted" },
            "rotateRequest": "",
        })
    }

    #[test]
    fn a_prefetch_finds_the_slots_of_the_keys_that_there_are() {
        let (mut keyring, mut spec) = (Keyring::default(), record());
        for number in 0..100 {
            spec["digest"] = json!(digest(number).to_string());
            keyring.upsert(&record_name(number), &spec).unwrap();
        }
        let (digests, mut slots): (Vec<Digest>, _) = ((50..150).map(digest).collect(), Vec::new());
        keyring.prefetch(&digests, |slot| slots.push(slot));
        let expected = (50..100).map(|number| keyring.get(&digest(number)).unwrap().slot());
        assert_eq!(slots, expected.collect::<Vec<_>>());
    }

    #[test]
    fn a_record_is_read_whole() {
        let mut keyring = Keyring::default();
        keyring.upsert(&record_name(7), &record()).unwrap();
        let entry = keyring.get(&digest(1)).unwrap();
        assert_eq!((entry.namespace(), entry.name()), ("team-a", "billing.v2"));
        assert_eq!((entry.owner(), entry.scopes()), ("jane@example.com", "orders:read orders:write"));
        assert_eq!(entry.allowed_addresses(), Some(&AllowedAddresses::parse(&["10.0.0.0/8"]).unwrap()));
        assert_eq!(entry.not_after(), Some("2030-01-02T03:04:05Z".parse().unwrap()));
        assert!(entry.is_suspended() && entry.is_revoked());
        assert!(entry.has_scope("orders:read") && entry.has_scope("orders:write"));
        assert!(!entry.has_scope("orders") && !entry.has_scope("orders:read orders:write"));
        assert_eq!((entry.record_name().to_string(), entry.slot()), (record_name(7), 0));
        assert_eq!(keyring.get(&digest(2)), Err(Untrusted::Absent));
        assert_eq!(keyring.len(), 1);
    }

    #[test]
    fn a_serial_of_any_size_is_kept() {
        let mut keyring = Keyring::default();
        for (number, serial) in (0..).zip([0, 1, 255, 256, u32::MAX]) {
            for api_key in [json!({ "namespace": "a", "name": "b", "uid": "c" }), json!(7)] {
                let spec = json!({ "digest": digest(number).to_string(), "apiKey": api_key });
                drop(keyring.upsert(&record_name(serial), &spec));
                let names: Vec<_> = keyring.names_of(|slot| slot == number).collect();
                assert_eq!(names.iter().map(|(_, name)| name.to_string()).collect::<Vec<_>>(), [record_name(serial)]);
            }
        }
    }

    #[test]
    fn a_record_that_is_read_anew_keeps_its_slot() {
        let spec = |number| json!({ "digest": digest(number).to_string(), "apiKey": 7 });
        let mut before = Keyring::default();
        for number in 0..100 {
            drop(before.upsert(&record_name(number), &spec(number)));
        }
        let mut after = before.successor();
        assert!(after.is_empty() && after.slots() == 100);
        for number in (50..150).rev() {
            drop(after.carry_over(&before, &record_name(number), &spec(number)));
        }
        let slot = |keyring: &Keyring, number| keyring.slot_of(&record_name(number), &spec(number));
        assert!((50..100).all(|number| slot(&after, number) == Some(number) && slot(&before, number) == Some(number)));
        assert!((100..150).all(|number| slot(&after, number).unwrap() >= 100 && slot(&before, number).is_none()));
        assert_eq!((slot(&after, 7), after.slot_of(&record_name(60), &spec(61)), after.slots()), (None, None, 150));
        let mut named: Vec<_> = after.names_of(|slot| slot % 40 == 0).collect();
        named.sort_by_key(|(slot, _)| *slot);
        assert_eq!(named.iter().map(|(slot, _)| *slot).collect::<Vec<_>>(), [80, 120]);
        assert_eq!(named[0].1.to_string(), record_name(80));
    }

    /// A key never lives longer than its record says; and not noticeably shorter.
    #[test]
    fn an_end_is_kept_to_the_microsecond_and_cut_off_below() {
        let cases = [
            ("2030-01-02T03:04:05Z", "2030-01-02T03:04:05Z"),
            ("2030-01-02T03:04:05.123456Z", "2030-01-02T03:04:05.123456Z"),
            ("2030-01-02T03:04:05.123456999Z", "2030-01-02T03:04:05.123456Z"),
            ("2030-01-02T05:04:05+02:00", "2030-01-02T03:04:05Z"),
            ("1969-12-31T23:59:59.999999001Z", "1969-12-31T23:59:59.999999Z"),
            ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z"),
            ("0000-01-01T00:00:00Z", "0000-01-01T00:00:00Z"),
            ("9999-12-30T22:00:00Z", "9999-12-30T22:00:00Z"),
        ];
        for (said, kept) in cases {
            let mut spec = record();
            spec["notAfter"] = json!(said);
            let mut keyring = Keyring::default();
            keyring.upsert(&record_name(1), &spec).unwrap();
            assert_eq!(keyring.get(&digest(1)).unwrap().not_after(), Some(kept.parse().unwrap()), "{said}");
        }
    }

    #[test]
    fn what_may_be_absent_may_be_absent() {
        let mut keyring = Keyring::default();
        let spec = json!({
            "digest": digest(1).to_string(),
            "apiKey": { "namespace": "a", "name": "b", "uid": "c" },
            "fieldOfALaterVersion": { "any": "thing" },
        });
        keyring.upsert(&record_name(1), &spec).unwrap();
        let entry = keyring.get(&digest(1)).unwrap();
        assert_eq!((entry.owner(), entry.scopes()), ("", ""));
        assert_eq!((entry.not_after(), entry.is_suspended(), entry.is_revoked()), (None, false, false));
        assert!(entry.allowed_addresses().is_none() && !entry.has_scope(""));
    }

    /// One field changed to what it cannot be: that key is refused and told apart, and its neighbour stays good.
    #[test]
    fn a_record_that_cannot_be_read_refuses_its_own_key_alone() {
        let cases = [
            ("digest", json!(null), Untrusted::Absent),
            ("digest", json!(7), Untrusted::Absent),
            ("digest", json!("sha256:abc"), Untrusted::Absent),
            ("digest", json!(digest(1).to_string().to_uppercase()), Untrusted::Absent),
            ("apiKey", json!(null), Untrusted::Unreadable),
            ("apiKey", json!("a/b"), Untrusted::Unreadable),
            ("apiKey", json!({ "namespace": "a", "uid": "c" }), Untrusted::Unreadable),
            ("apiKey", json!({ "namespace": "", "name": "b", "uid": "c" }), Untrusted::Unreadable),
            ("apiKey", json!({ "namespace": "a", "name": "b\r\nx: y", "uid": "c" }), Untrusted::Unreadable),
            ("owner", json!("bob\r\nX-Admin: 1"), Untrusted::Unreadable),
            ("owner", json!("bob smith"), Untrusted::Unreadable),
            ("owner", json!("b\u{f6}b"), Untrusted::Unreadable),
            ("owner", json!(""), Untrusted::Unreadable),
            ("owner", json!("x".repeat(129)), Untrusted::Unreadable),
            ("owner", json!(["bob"]), Untrusted::Unreadable),
            ("scopes", json!("orders:read"), Untrusted::Unreadable),
            ("scopes", json!(["orders:read admin"]), Untrusted::Unreadable),
            ("scopes", json!(["a\u{0}"]), Untrusted::Unreadable),
            ("scopes", json!([""]), Untrusted::Unreadable),
            ("scopes", json!([1]), Untrusted::Unreadable),
            ("keyPrefix", json!("keyw1_eVULq19jg"), Untrusted::Unreadable),
            ("keyPrefix", json!(1), Untrusted::Unreadable),
            ("allowedIPs", json!([]), Untrusted::Unreadable),
            ("allowedIPs", json!(null), Untrusted::Unreadable),
            ("allowedIPs", json!("10.0.0.0/8"), Untrusted::Unreadable),
            ("allowedIPs", json!(["10.0.0.1/8"]), Untrusted::Unreadable),
            ("allowedIPs", json!(["10.0.0.0/8", "010.0.0.0/8"]), Untrusted::Unreadable),
            ("notAfter", json!("tomorrow"), Untrusted::Unreadable),
            ("notAfter", json!(1893553445), Untrusted::Unreadable),
            ("notAfter", json!(null), Untrusted::Unreadable),
            ("suspended", json!("false"), Untrusted::Unreadable),
            ("suspended", json!(null), Untrusted::Unreadable),
            ("revoked", json!(false), Untrusted::Unreadable),
            ("revoked", json!(null), Untrusted::Unreadable),
            ("revoked", json!({}), Untrusted::Unreadable),
        ];
        let mut neighbour = record();
        neighbour["digest"] = json!(digest(2).to_string());
        for (field, value, expected) in cases {
            let mut spec = record();
            spec[field] = value.clone();
            let mut keyring = Keyring::default();
            keyring.upsert(&record_name(2), &neighbour).unwrap();
            keyring.upsert(&record_name(1), &record()).unwrap();
            let distrust = keyring.replace(&record_name(1), &spec).unwrap_err();
            assert_eq!(distrust, Distrust::Unreadable(field), "{field}: {value}");
            assert_eq!(keyring.get(&digest(1)), Err(expected), "{field}: {value}");
            assert!(keyring.get(&digest(2)).is_ok(), "{field}: {value}");
        }
        for field in ["digest", "apiKey"] {
            let mut spec = record();
            spec.as_object_mut().unwrap().remove(field);
            assert_eq!(Keyring::default().upsert(&record_name(1), &spec), Err(Distrust::Missing(field)));
        }
        assert_eq!(Keyring::default().upsert(&record_name(1), &Value::Null), Err(Distrust::Missing("digest")));
    }

    #[test]
    fn the_second_claim_to_a_digest_is_told_with_the_first() {
        let mut keyring = Keyring::default();
        let mut spec = record();
        spec.as_object_mut().unwrap().remove("revoked");
        keyring.upsert(&record_name(1), &spec).unwrap();
        assert_eq!(keyring.upsert(&record_name(2), &spec), Err(Distrust::Ambiguous(record_name(1).parse().unwrap())));
        assert_eq!(keyring.get(&digest(1)), Err(Untrusted::Ambiguous));
        assert_eq!(keyring.upsert(&record_name(2), &record()), Ok(()));
        assert!(keyring.get(&digest(1)).is_ok_and(|entry| entry.is_revoked()));
    }

    #[test]
    fn a_record_that_is_not_named_like_one_counts_for_nothing() {
        let mut keyring = Keyring::default();
        keyring.upsert(&record_name(1), &record()).unwrap();
        for name in ["r-1", "", &record_name(1).to_uppercase()] {
            assert_eq!(keyring.upsert(name, &record()), Err(Distrust::Name));
            assert_eq!(keyring.replace(name, &record()), Err(Distrust::Name));
            keyring.remove(name, &record());
        }
        assert!(keyring.get(&digest(1)).is_ok());
        assert_eq!((keyring.len(), keyring.slots()), (1, 1));
    }

    #[test]
    fn a_record_keeps_its_slot_and_no_other_gets_it() {
        let mut keyring = Keyring::default();
        let spec = |number| {
            let mut spec = record();
            spec["digest"] = json!(digest(number).to_string());
            spec
        };
        for number in 0..100 {
            keyring.upsert(&record_name(number), &spec(number)).unwrap();
        }
        let mut changed = spec(7);
        changed["suspended"] = json!("?");
        keyring.replace(&record_name(7), &changed).unwrap_err();
        keyring.replace(&record_name(7), &spec(7)).unwrap();
        keyring.remove(&record_name(3), &spec(3));
        let mut clone = keyring.clone();
        keyring.upsert(&record_name(3), &spec(3)).unwrap();
        clone.upsert(&record_name(200), &spec(200)).unwrap();
        assert_eq!(keyring.get(&digest(7)).unwrap().slot(), 7);
        assert_eq!(keyring.get(&digest(3)).unwrap().slot(), 100);
        assert_eq!(clone.get(&digest(200)).unwrap().slot(), 101);
        assert_eq!(keyring.slots(), 102);
        let slots: BTreeSet<u32> = keyring.records().map(|(slot, ..)| slot).collect();
        assert_eq!(slots, (0..101).filter(|slot| *slot != 3).collect());
        for (slot, name, entry) in keyring.records() {
            let entry = entry.unwrap();
            assert_eq!((entry.slot(), entry.record_name()), (slot, name));
            let number = if slot == 100 { 3 } else { slot };
            assert_eq!((name.to_string(), keyring.get(&digest(number))), (record_name(number), Ok(entry)));
        }
    }

    /// What a record of the model says.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Kind {
        Good,
        Revoked,
        Unreadable,
        WithoutDigest,
    }

    /// A record's name, and its new digest and kind, or `None` if it is removed.
    type Change = (u32, Option<(usize, Kind)>);

    type Model = BTreeMap<u32, (usize, Kind)>;

    fn changes() -> impl Strategy<Value = Vec<Change>> {
        let kinds = [Kind::Good, Kind::Good, Kind::Revoked, Kind::Unreadable, Kind::WithoutDigest];
        let version = (0..4_usize, proptest::sample::select(kinds.to_vec()));
        proptest::collection::vec((0..6_u32, proptest::option::weighted(0.7, version)), 0..60)
    }

    /// A record with some of the fields that vary in length, other ones for each name and digest.
    fn version(digest: &Digest, name: u32, kind: Kind) -> Value {
        let mut spec = json!({
            "digest": digest.to_string(),
            "apiKey": { "namespace": "a", "name": "n".repeat(name as usize + 1), "uid": "c" },
        });
        if name.is_multiple_of(2) {
            spec["notAfter"] = json!(format!("203{name}-01-02T03:04:05Z"));
        }
        if name.is_multiple_of(3) {
            spec["allowedIPs"] = json!([format!("10.0.0.{name}")]);
        }
        match kind {
            Kind::Good => {}
            Kind::Revoked => spec["revoked"] = json!({ "at": "2026-01-01T00:00:00Z", "reason": "Deleted" }),
            Kind::Unreadable => spec["suspended"] = json!("?"),
            Kind::WithoutDigest => spec["digest"] = json!("?"),
        }
        spec
    }

    /// Makes a change as the API server tells it: ADDED, MODIFIED, or DELETED with the record's last version.
    fn make(keyring: &mut Keyring, model: &mut Model, digests: &[Digest], (name, new): Change) {
        let old = model.remove(&name).map(|(number, kind)| version(&digests[number], name, kind));
        let Some((number, kind)) = new else {
            return keyring.remove(&record_name(name), &old.unwrap_or(json!({})));
        };
        model.insert(name, (number, kind));
        let spec = version(&digests[number], name, kind);
        match old {
            None => keyring.upsert(&record_name(name), &spec).ok(),
            Some(_) => keyring.replace(&record_name(name), &spec).ok(),
        };
    }

    /// What is to be said of a digest, from all records at once. `Ok` names the record, which for several that are
    /// revoked may be any.
    fn expected(model: &Model, number: usize) -> Result<Vec<u32>, Untrusted> {
        let is_claim = |kind: Kind, claimed| kind != Kind::WithoutDigest && claimed == number;
        let claims: Vec<_> = model.iter().filter(|(_, (claimed, kind))| is_claim(*kind, *claimed)).collect();
        let named = |kind| claims.iter().filter(move |(_, (_, own))| *own == kind).map(|(name, _)| **name);
        let revoked: Vec<u32> = named(Kind::Revoked).collect();
        match claims.len() {
            0 => Err(Untrusted::Absent),
            _ if !revoked.is_empty() => Ok(revoked),
            1 => named(Kind::Good).next().map(|name| vec![name]).ok_or(Untrusted::Unreadable),
            _ => Err(Untrusted::Ambiguous),
        }
    }

    /// Whether the keyring says of each digest what the model says, in every detail.
    fn compare(keyring: &Keyring, model: &Model, digests: &[Digest]) -> Result<(), TestCaseError> {
        let with_digest: BTreeMap<String, Kind> = model
            .iter()
            .filter(|(_, (_, kind))| *kind != Kind::WithoutDigest)
            .map(|(name, (_, kind))| (record_name(*name), *kind))
            .collect();
        prop_assert_eq!(keyring.len(), with_digest.len());
        let records: BTreeMap<String, bool> =
            keyring.records().map(|(_, name, entry)| (name.to_string(), entry.is_some())).collect();
        let readable = with_digest.into_iter().map(|(name, kind)| (name, kind != Kind::Unreadable));
        prop_assert_eq!(records, readable.collect());
        for (number, digest) in digests.iter().enumerate() {
            match (keyring.get(digest), expected(model, number)) {
                (Ok(entry), Ok(names)) => {
                    let name = u32::try_from(entry.name().len()).unwrap() - 1;
                    prop_assert!(names.contains(&name));
                    prop_assert_eq!(entry.record_name().to_string(), record_name(name));
                    let not_after = format!("203{name}-01-02T03:04:05Z").parse().ok();
                    prop_assert_eq!(entry.not_after(), not_after.filter(|_| name.is_multiple_of(2)));
                    let list =
                        AllowedAddresses::parse(&[format!("10.0.0.{name}")]).ok().filter(|_| name.is_multiple_of(3));
                    prop_assert_eq!(entry.allowed_addresses(), list.as_ref());
                }
                (Err(untrusted), Err(expected)) => prop_assert_eq!(untrusted, expected),
                (got, expected) => prop_assert!(false, "{:?} instead of {:?}", got, expected),
            }
        }
        Ok(())
    }

    /// An empty keyring, and four digests that all stand in one bucket of it, in one run.
    static COLLIDING: LazyLock<(Keyring, Vec<Digest>)> = LazyLock::new(|| {
        let keyring = Keyring::default();
        let mut digests: HashMap<Place, Vec<Digest>> = HashMap::new();
        for digest in (0..).map(digest) {
            let place = keyring.place(&digest);
            let colliding = digests.entry(place).or_default();
            colliding.push(digest);
            if colliding.len() == 4 {
                return (keyring, digests.remove(&place).unwrap());
            }
        }
        unreachable!("there are more digests than places")
    });

    /// Follows `changes`, and compares all that came of it only then: what happens to the original must not reach its
    /// clones.
    fn follow(mut keyring: Keyring, digests: &[Digest], changes: Vec<Change>) -> Result<(), TestCaseError> {
        let (mut model, mut past) = (Model::new(), Vec::new());
        for change in changes {
            make(&mut keyring, &mut model, digests, change);
            past.push((keyring.clone(), model.clone()));
        }
        past.iter().try_for_each(|(keyring, model)| compare(keyring, model, digests))
    }

    proptest! {
        #[test]
        fn a_keyring_is_as_good_as_reading_all_records_anew(changes in changes()) {
            follow(Keyring::default(), &[0, 1, 2, 3].map(digest), changes)?;
        }

        #[test]
        fn so_is_one_whose_digests_cannot_be_told_apart_by_their_hashes(changes in changes()) {
            let (empty, digests) = &*COLLIDING;
            follow(empty.clone(), digests, changes)?;
        }
    }
}
