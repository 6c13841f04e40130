//! The records trusted now: from a key's digest to what a decision needs to know of the key.
//!
//! ```text
//! digest ── seeded hash ──> root ──> branch ──> shard ──> hash table ──> the claim that rules the digest
//!                           64       64         4,096 in all
//! ```
//!
//! A [`Keyring`] is a persistent value: a clone shares everything with its original, and a change copies the way from the
//! root to one shard. So the feed keeps a working copy, publishes clones of it, and no reader ever waits.
//!
//! Of all records that claim a digest the oldest rules alone, whatever it says: a digest is no secret, and to claim one
//! is not to own it. The others change nothing, and stand aside, where no lookup comes by: the next oldest rules once
//! the oldest is gone. So the keyring depends on which records there are, and not on the order in which they came.
//!
//! Every doubt about a record closes the key that it rules, and no other.

mod entry;
mod interner;
mod shard;
mod stored_record;
mod terms;

use std::array;
use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use self::interner::Interner;
use self::shard::{Claim, Detached, Rank, Shard};
use crate::address::AllowedAddresses;
use crate::key::Digest;
use crate::record_name::RecordName;

pub use self::entry::Entry;
pub use self::stored_record::StoredRecord;
pub use self::terms::RecordError;

/// The records trusted now.
#[derive(Clone)]
pub struct Keyring {
    root: Arc<Root>,
    /// Claims that do not rule. Copied when one of them changes; there are hardly any.
    aside: Arc<BTreeMap<Standing, Arc<Detached>>>,
    /// Seeded, because the digest of a key made elsewhere is its maker's choice; and over the whole of it, for the same
    /// reason.
    hasher: RandomState,
    len: usize,
    /// How many of these are of keys that were made elsewhere, and can be read.
    submitted: usize,
    /// See [`Keyring::changes`].
    changes: u64,
    common: Arc<Common>,
}

/// A digest and the rank of a claim to it: of the claims to one digest, the one that rules comes first.
type Standing = (Digest, Rank);

/// Two records that claim one digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contest {
    /// The older one. It rules, or an even older one does.
    pub older: RecordName,
    /// The one that counts for nothing.
    pub younger: RecordName,
}

/// What a keyring and all its clones have in common. A lookup does not touch it.
#[derive(Default)]
struct Common {
    lists: Interner<AllowedAddresses>,
    /// Number of slots handed out.
    slots: AtomicU32,
}

/// Two levels, as a copy counts one user more of each of its children, most of which are in no cache.
type Root = [Arc<Branch>; 1 << ROOT_BITS];
type Branch = [Arc<Shard>; 1 << BRANCH_BITS];

/// Bits of the hash that say which branch of the root.
const ROOT_BITS: u32 = 6;
/// Bits of the hash that say which shard of the branch.
const BRANCH_BITS: u32 = 6;
/// Bits below those. A shard's table takes from these where a row is, and tells rows apart by the highest.
const TABLE_BITS: u32 = 32;

/// Why the keyring vouches for no key with a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untrusted {
    /// No record claims it.
    Absent,
    /// The record that rules it cannot be read.
    Unreadable,
}

impl Keyring {
    /// An empty one. Nobody must be able to guess the seed of `hasher`.
    pub fn new(hasher: RandomState) -> Self {
        let shard = Arc::<Shard>::default();
        let branch: Arc<Branch> = Arc::new(array::from_fn(|_| Arc::clone(&shard)));
        let root = Arc::new(array::from_fn(|_| Arc::clone(&branch)));
        Self { root, aside: Arc::default(), hasher, len: 0, submitted: 0, changes: 0, common: Arc::default() }
    }

    /// Takes in a record that is new, or has changed in anything but its digest and when it was made. Answers with whom it
    /// contests its digest, if with anyone.
    ///
    /// # Errors
    /// Why the record's key is refused for now. The keyring has taken that in.
    pub fn upsert(&mut self, record: &StoredRecord<'_>) -> Result<Option<Contest>, RecordError> {
        self.enter(record, None)
    }

    /// An empty keyring that can take the place of this one, for all records to be read anew.
    pub fn successor(&self) -> Self {
        Self { common: Arc::clone(&self.common), ..Self::new(self.hasher.clone()) }
    }

    /// Takes in a record as [`Keyring::upsert`] does, into a [`Keyring::successor`] of `before`: a record that was there
    /// keeps its slot.
    ///
    /// # Errors
    /// Why the record's key is refused for now. The keyring has taken that in.
    pub fn carry_over(&mut self, before: &Self, record: &StoredRecord<'_>) -> Result<Option<Contest>, RecordError> {
        self.enter(record, before.slot_of(record))
    }

    /// Takes in a record that was there before, whatever has changed in it.
    ///
    /// Digests are immutable, and a record is found by its own. Where one has changed all the same, or can no longer
    /// be read, this looks through all records for the old one, lest its key stay trusted: some 20 ms for a million.
    ///
    /// # Errors
    /// Why the record's key is refused for now. The keyring has taken that in.
    pub fn replace(&mut self, record: &StoredRecord<'_>) -> Result<Option<Contest>, RecordError> {
        if record.digest().and_then(|digest| self.claim_of(digest, record.rank)).is_none() {
            self.search_and_remove(record.rank.1);
        }
        self.upsert(record)
    }

    /// Forgets a record that is gone; `record` is the last that was known of it. Where that does not lead to the record,
    /// this looks through all of them, as [`Keyring::replace`] does.
    pub fn remove(&mut self, record: &StoredRecord<'_>) {
        let withdrawn = record.digest().and_then(|digest| self.withdraw(digest, record.rank));
        match withdrawn {
            Some(_) => self.changes += 1,
            None => self.search_and_remove(record.rank.1),
        }
    }

    /// What there is to know of the key with this digest, as the oldest record that claims it has it.
    ///
    /// # Errors
    /// If no entry can be relied on; the key is then to be refused.
    pub fn get(&self, digest: &Digest) -> Result<Entry<'_>, Untrusted> {
        let claim = self.ruling_claim(digest).ok_or(Untrusted::Absent)?;
        Entry::of(claim).ok_or(Untrusted::Unreadable)
    }

    /// Number of records with a name and a digest that can be read, whether they rule or not.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no such records.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many times a record came, went, or said something else of its key than before. A record whose status alone was
    /// written changes nothing.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Whether any record that can be read is of a key that was made elsewhere, live or revoked, and whether it rules or not:
    /// it has no `keyPrefix`.
    pub fn has_submitted(&self) -> bool {
        self.submitted > 0
    }

    /// Number of slots handed out: every [`Entry::slot`] of this keyring is below it. Rises when records come, and
    /// never falls when they go.
    pub fn slots(&self) -> u32 {
        self.common.slots.load(Ordering::Acquire)
    }

    /// The slot of a record, with the last that was known of it; `None` if it is not there.
    pub fn slot_of(&self, record: &StoredRecord<'_>) -> Option<u32> {
        Some(self.claim_of(record.digest()?, record.rank)?.slot())
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

    /// Puts a record's claim in the place of the one it had, or adds it.
    fn enter(&mut self, record: &StoredRecord<'_>, slot_before: Option<u32>) -> Result<Option<Contest>, RecordError> {
        let (rank, (digest, terms)) = (record.rank, record.claim.as_ref().map_err(RecordError::clone)?);
        let before = self.withdraw(digest, rank);
        let before = before.as_ref().map(Detached::claim);
        let slot = before.map(Claim::slot).or(slot_before).unwrap_or_else(|| self.next_slot());
        let list = terms.as_ref().ok().and_then(|terms| terms.allowed_addresses.clone());
        let list = list.map(|list| self.common.lists.share(list));
        let claim = Detached::new(*digest, rank, slot, terms.as_ref().ok(), list);
        self.changes += u64::from(before != Some(claim.claim()));
        self.len += 1;
        self.submitted += usize::from(claim.claim().is_submitted());
        match self.ruling_claim(digest).map(Claim::rank) {
            Some(ruling) if ruling < rank => {
                self.put_aside(claim);
                Ok(Some(Contest { older: ruling.1, younger: rank.1 }))
            }
            displaced => {
                if let Some(displaced) = self.take_ruling(digest) {
                    self.put_aside(displaced);
                }
                self.put_ruling(claim);
                terms.as_ref().map_err(RecordError::clone)?;
                Ok(displaced.map(|displaced| Contest { older: rank.1, younger: displaced.1 }))
            }
        }
    }

    fn ruling_claim(&self, digest: &Digest) -> Option<Claim<'_>> {
        let hash = hash(&self.hasher, digest);
        let (branch, shard) = place(hash);
        self.root.get(branch)?.get(shard)?.claim_to(hash, digest)
    }

    /// Of the claims to this digest that stand aside, the oldest.
    fn first_aside(&self, digest: &Digest) -> Option<Standing> {
        let (standing, _) = self.aside.range((*digest, (0, RecordName::FIRST))..).next()?;
        Some(*standing).filter(|(claimed, _)| claimed == digest)
    }

    fn claim_of(&self, digest: &Digest, rank: Rank) -> Option<Claim<'_>> {
        let aside = || Some(self.aside.get(&(*digest, rank))?.claim());
        self.ruling_claim(digest).filter(|claim| claim.rank() == rank).or_else(aside)
    }

    fn all_claims(&self) -> impl Iterator<Item = Claim<'_>> {
        let shards = self.root.iter().flat_map(|branch| branch.iter());
        shards.flat_map(|shard| shard.claims()).chain(self.aside.values().map(|claim| claim.claim()))
    }

    /// Takes out a record's claim to `digest`, if there is one. Where it ruled, the next oldest does.
    fn withdraw(&mut self, digest: &Digest, rank: Rank) -> Option<Detached> {
        self.claim_of(digest, rank)?;
        let withdrawn = match self.take_from_aside(&(*digest, rank)) {
            Some(aside) => aside,
            None => {
                let ruling = self.take_ruling(digest)?;
                if let Some(next) = self.first_aside(digest).and_then(|next| self.take_from_aside(&next)) {
                    self.put_ruling(next);
                }
                ruling
            }
        };
        self.len -= 1;
        self.submitted -= usize::from(withdrawn.claim().is_submitted());
        Some(withdrawn)
    }

    fn search_and_remove(&mut self, record_name: RecordName) {
        let found = self.all_claims().find(|claim| claim.record_name() == record_name);
        if let Some((digest, rank)) = found.map(|claim| (claim.digest(), claim.rank())) {
            self.withdraw(&digest, rank);
            self.changes += 1;
        }
    }

    fn take_ruling(&mut self, digest: &Digest) -> Option<Detached> {
        self.change_shard(digest, |shard, hash| shard.remove(digest, hash))?
    }

    fn put_ruling(&mut self, claim: Detached) {
        let digest = claim.claim().digest();
        self.change_shard(&digest, |shard, hash| shard.insert(claim, hash));
    }

    fn put_aside(&mut self, claim: Detached) {
        let standing = (claim.claim().digest(), claim.claim().rank());
        Arc::make_mut(&mut self.aside).insert(standing, Arc::new(claim));
    }

    fn take_from_aside(&mut self, standing: &Standing) -> Option<Detached> {
        if !self.aside.contains_key(standing) {
            return None;
        }
        Arc::make_mut(&mut self.aside).remove(standing).map(Arc::unwrap_or_clone)
    }

    fn next_slot(&self) -> u32 {
        self.common.slots.fetch_add(1, Ordering::AcqRel)
    }

    /// Changes the shard of `digest`. Copies what clones share of the way to it, and the shard.
    fn change_shard<T>(
        &mut self,
        digest: &Digest,
        change: impl FnOnce(&mut Shard, &dyn Fn(&Digest) -> u64) -> T,
    ) -> Option<T> {
        let (branch, shard) = place(hash(&self.hasher, digest));
        let branch = Arc::make_mut(Arc::make_mut(&mut self.root).get_mut(branch)?);
        let shard = Arc::make_mut(branch.get_mut(shard)?);
        Some(change(shard, &|digest| hash(&self.hasher, digest)))
    }
}

fn hash(hasher: &RandomState, digest: &Digest) -> u64 {
    let mut hasher = hasher.build_hasher();
    hasher.write(digest.as_bytes());
    hasher.finish()
}

/// Which branch of the root a hash leads to, and which shard of that.
fn place(hash: u64) -> (usize, usize) {
    let bits = |first: u32, count: u32| (hash >> first) as usize % (1 << count);
    (bits(TABLE_BITS, ROOT_BITS), bits(TABLE_BITS + ROOT_BITS, BRANCH_BITS))
}

#[cfg(any(test, feature = "testing"))]
impl Default for Keyring {
    #[allow(clippy::disallowed_methods, reason = "no test depends on the seed")]
    fn default() -> Self {
        Self::new(RandomState::new())
    }
}

impl Untrusted {
    /// The word that stands in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Unreadable => "unreadable",
        }
    }
}

#[cfg(test)]
mod tests;
