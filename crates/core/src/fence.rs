//! When the deletion of an ApiKey completes, no verifier anywhere accepts its keys.
//!
//! Each [`Verifier`] holds a Lease, which says what its keyring has applied. The controller's [`Fence`] lets a deletion
//! complete when every Lease says enough, or is gone.
//!
//! ```text
//! verifier     Lease ──> list of the records ──> serves ──────── renews: "applied 812" ──> … ──> deletes its Lease
//! controller                      tombstone, version 812 ──> look at all Leases ──> every one has applied 812: passed
//!                                                            └─ silent for its duration ──> delete it, look again
//! ```
//!
//! The rules. `tests/model.rs` goes through all orders of events within bounds, and shows what happens to who breaks a rule:
//!
//! 1. A verifier has its Lease **before** it asks for the list, and both are consistent reads and writes.
//! 2. It relies on the Lease until the moment at which the last stored renewal was **sent**, plus the duration.
//! 3. It compares this with its clock **after** it has asked the keyring, before it answers.
//! 4. It acknowledges a version when its keyring is swapped and **no decision from an older one is under way**.
//! 5. A renewal has the uid and version of the Lease as its precondition. It never lands after the Lease was deleted.
//! 6. The controller looks at the Leases **after** it knows the tombstone's version.
//! 7. It ignores a silent Lease only once that **is deleted**, under the uid and version that it saw standing still.
//!
//! Why it holds. Take a verifier that answers at some moment, and a look that let a deletion pass.
//!
//! - Its Lease was in the look: it had applied the tombstone (4).
//! - Its Lease was created later: its list is later still (1), so it has the tombstone.
//! - Its Lease was deleted before as silent: the controller had seen that version a duration earlier, no renewal was stored
//!   since (5, 7), and each stored one was sent before it was seen. So the verifier had stopped by its own clock (2, 3). 5 % and
//!   a second are added for clocks that differ in speed. Moments of different machines are never compared.
//!
//! Once true this stays true. So a stale controller, or two at once, do no harm, and leader election is no part of it.
//!
//! The look is a list, and no watch: a verifier may have joined that the watch has not shown. Versions of Leases and records
//! cannot replace it, because Leases may lie in another etcd (`--etcd-servers-overrides`). One look serves any number of
//! deletions.
//!
//! A backup of etcd takes back what was written after it. Verifiers and controllers notice that versions go backwards. Then a
//! verifier joins anew. A controller lets nothing pass until no lost Lease is relied on any more. Neither can notice it if the
//! versions have passed again what it had seen, or if it was started afterwards: restore with `--bump-revision
//! --mark-compacted`, and restart the verifiers.
//!
//! Also not covered: a hypervisor that stops a machine with all its clocks, Leases that people delete, and two processes with
//! the same identity at the same time.

mod controller;
mod lease;
mod moment;
mod verifier;

pub use self::controller::{
    Awaited, DELIVERY_PATIENCE, ENFORCEMENT_PATIENCE, Eviction, Fence, Look, MOST_LEASES, Verdict, View, Wait,
};
pub use self::lease::{
    APPLIED_ANNOTATION, Content, ELECTION_LEASE, Holder, LONGEST_DURATION, LeaseVersion, Precondition, RecordVersion,
    STATE_ANNOTATION, State, Stored,
};
pub use self::moment::Moment;
pub use self::verifier::{Act, Answer, Operation, Progress, Request, Round, Verifier};

#[cfg(test)]
mod tests;
