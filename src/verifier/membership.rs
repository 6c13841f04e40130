//! Whether this verifier may let keys in: [`fence::Verifier`](keywright_core::fence::Verifier), shared.
//!
//! ```text
//! lease.rs  requests and answers ──┐
//! feed.rs   what it has reached ───┤ the machine ──> until when keys may be let in ──> decisions.rs
//!           a new list <───────────┘
//! ```

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use keywright_core::fence::{Act, Answer, Holder, Moment, Progress, RecordVersion, Request, Round, State, Verifier};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::clock;

/// The membership of this verifier, shared by the Lease's task, the feed, and the threads that decide.
pub struct Membership {
    holder: Holder,
    verifier: Mutex<Verifier>,
    /// What the machine says, in nanoseconds since the boot. 0: not now.
    answers_until: AtomicU64,
    /// The newest round that the feed should list the records for.
    ordered: watch::Sender<Option<Round>>,
    /// Wakes the Lease's task.
    changed: Notify,
    /// Why the last request about the Lease failed.
    failure: Mutex<Option<String>>,
}

/// A reading of the clock, compared with the Lease.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// The moment of it.
    pub now: Moment,
    /// Until when a key may be let in that was good in the keyring. `None`: it must not.
    pub until: Option<Moment>,
}

/// Why nobody is let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unready {
    /// It has no Lease.
    #[error("not joined: there is no Lease {identity}. {failure}")]
    NoLease {
        /// The Lease's name.
        identity: String,
        /// Why, and what to do.
        failure: String,
    },
    /// The list of records is not complete, or the writes during it are not seen yet.
    #[error(
        "not synced: waiting for the API server's list and watch of apikeyrecords. If this lasts, the log says what to do"
    )]
    Syncing,
    /// The Lease was not renewed for its duration, or the records are as old as that.
    #[error(
        "lapsed {} s ago: the Lease was not renewed in time, or the records became too old. Check that the API server is \
         reachable; the log has its answers", .0.as_secs()
    )]
    Lapsed(Duration),
    /// It gives its Lease up.
    #[error("shutting down")]
    Leaving,
}

impl Membership {
    /// The membership of `holder`, which has no Lease yet.
    pub fn new(holder: Holder) -> Self {
        Self {
            verifier: Mutex::new(Verifier::new(holder.clone())),
            holder,
            answers_until: AtomicU64::new(0),
            ordered: watch::Sender::default(),
            changed: Notify::new(),
            failure: Mutex::default(),
        }
    }

    /// The holder of the Lease.
    pub fn holder(&self) -> &Holder {
        &self.holder
    }

    /// Reads the clock. Call it after the keyring was asked, while the keyring is held, and before the answer is made.
    pub fn read(&self) -> Reading {
        let until = self.answers_until.load(Ordering::Acquire);
        let now = clock::moment();
        // Again, after the clock: the Lease may have been given up in between, and may be gone. It cannot have been lost and
        // gained anew, because that waits until nobody holds this keyring.
        let is_held = self.answers_until.load(Ordering::Acquire) != 0;
        let is_valid = is_held && nanoseconds(now) < until;
        Reading { now, until: is_valid.then(|| Moment::since_boot(Duration::from_nanos(until))) }
    }

    /// How long keys may be let in from `now` on, if nothing is heard any more.
    pub fn remaining(&self, now: Moment) -> Duration {
        Moment::since_boot(Duration::from_nanos(self.answers_until.load(Ordering::Acquire))).since(now)
    }

    /// Whether keys are let in at `now`.
    ///
    /// # Errors
    /// Why not, and what to do.
    pub fn readiness(&self, now: Moment) -> Result<(), Unready> {
        let (state, has_lease, until) =
            self.change(|verifier| (verifier.state(now), verifier.has_lease(), verifier.answers_until()));
        match state {
            State::Serving => Ok(()),
            State::Leaving => Err(Unready::Leaving),
            State::Lapsed => Err(Unready::Lapsed(now.since(until.unwrap_or(now)))),
            State::Joining if has_lease => Err(Unready::Syncing),
            State::Joining => {
                let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let failure = failure.unwrap_or_else(|| "Waiting for the API server's answer".to_owned());
                Err(Unready::NoLease { identity: self.holder.identity.to_string(), failure })
            }
        }
    }

    /// What the verifier does at `now`, as far as its Lease is concerned.
    pub fn state(&self, now: Moment) -> State {
        self.change(|verifier| verifier.state(now))
    }

    /// See [`Verifier::next`].
    pub fn next(&self, now: Moment) -> Act {
        self.change(|verifier| verifier.next(now))
    }

    /// See [`Verifier::answered`].
    pub fn answered(&self, request: Request, answer: Answer, now: Moment) {
        self.change(|verifier| verifier.answered(request, answer, now));
    }

    /// Notes why a request about the Lease failed, or that none did.
    pub fn note_failure(&self, failure: Option<String>) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
    }

    /// Has the feed list all records for this round.
    pub fn order(&self, round: Round) {
        self.ordered.send_replace(Some(round));
    }

    /// The newest round that was ordered.
    pub fn ordered(&self) -> watch::Receiver<Option<Round>> {
        self.ordered.subscribe()
    }

    /// See [`Verifier::reached`].
    pub fn reached(&self, round: Round, progress: Progress, now: Moment) {
        self.change(|verifier| verifier.reached(round, progress, now));
        if progress.is_awaited || progress.asked != Moment::default() {
            self.changed.notify_one();
        }
    }

    /// See [`Verifier::listed_page`].
    pub fn listed_page(&self, round: Round, now: Moment) {
        self.change(|verifier| verifier.listed_page(round, now));
    }

    /// See [`Verifier::saw_newest`].
    pub fn saw_newest(&self, round: Round, newest: RecordVersion, now: Moment) {
        self.change(|verifier| verifier.saw_newest(round, newest, now));
        self.changed.notify_one();
    }

    /// See [`Verifier::leave`].
    pub fn leave(&self) {
        self.change(Verifier::leave);
        self.changed.notify_one();
    }

    /// Waits until the moment, or until the feed has told something.
    pub async fn wait(&self, until: Moment) {
        timeout(until.since(clock::moment()), self.changed.notified()).await.ok();
    }

    /// The threads that decide see each change at once, in the order of the changes.
    fn change<T>(&self, change: impl FnOnce(&mut Verifier) -> T) -> T {
        let mut verifier = self.verifier.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut verifier);
        let until = verifier.answers_until().map_or(0, nanoseconds);
        // Most changes change nothing here, and every decision reads it.
        if until != self.answers_until.load(Ordering::Relaxed) {
            self.answers_until.store(until, Ordering::Release);
        }
        result
    }
}

fn nanoseconds(moment: Moment) -> u64 {
    u64::try_from(moment.time().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
impl Membership {
    /// One that lets keys in.
    pub(crate) fn serving(lease_duration: Duration) -> Self {
        let membership = Self::new(Holder::new("verifier-0", 1, lease_duration));
        let now = clock::moment();
        let round = tests::join(&membership, now);
        membership.reached(round, Progress { version: "1".parse().unwrap(), asked: now, is_awaited: true }, now);
        membership
    }
}

#[cfg(test)]
mod tests {
    use keywright_core::testing::stored_lease;

    use super::*;

    /// Has the Lease stored.
    pub(super) fn join(membership: &Membership, now: Moment) -> Round {
        let Act::Send(create) = membership.next(now) else { panic!("it begins with its Lease") };
        membership.answered(create, Answer::Stored(stored_lease(membership.holder())), now);
        let Act::List(round) = membership.next(now) else { panic!("the list comes next") };
        round
    }

    #[test]
    fn it_says_why_nobody_is_let_in_and_what_to_do() {
        let membership = Membership::new(Holder::new("verifier-0", 1, Duration::from_secs(600)));
        let start = clock::moment();
        let said = |seconds| membership.readiness(start + Duration::from_secs(seconds)).map_err(|why| why.to_string());
        assert_eq!(
            said(0).unwrap_err(),
            "not joined: there is no Lease verifier-0. Waiting for the API server's answer"
        );
        membership.note_failure(Some("cannot create the Lease: 403. Check that".to_owned()));
        assert!(said(0).unwrap_err().ends_with("no Lease verifier-0. cannot create the Lease: 403. Check that"));
        let round = join(&membership, start);
        assert!(said(0).unwrap_err().starts_with("not synced: "));
        assert!(membership.read().until.is_none());
        let asked = start + Duration::from_secs(10);
        membership.reached(round, Progress { version: "1".parse().unwrap(), asked, is_awaited: true }, asked);
        assert!(membership.read().until.is_some());
        assert_eq!(said(599), Ok(()));
        assert!(said(604).unwrap_err().starts_with("lapsed 4 s ago: "));
        assert_eq!(membership.remaining(start + Duration::from_secs(590)), Duration::from_secs(10));
        membership.leave();
        assert_eq!(said(0).unwrap_err(), "shutting down");
        assert!(membership.read().until.is_none());
    }

    #[test]
    fn the_clock_ends_a_lease_by_itself() {
        let membership = Membership::serving(Duration::from_secs(1));
        let reading = membership.read();
        let until = reading.until.unwrap();
        assert!(reading.now < until);
        while clock::moment() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(membership.read().until.is_none());
    }
}
