//! The verifier's side: joins, renews, acknowledges, leaves. Says until when it may let keys in.

use std::time::Duration;

use super::lease::{Content, Holder, Precondition, RecordVersion, State, Stored};
use super::moment::Moment;

/// One start of a verifier.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Verifier {
    holder: Holder,
    timings: Timings,
    place: Place,
    /// Whether it had a Lease since its start. Before that, a Lease of its name is that of an earlier start.
    has_joined: bool,
    is_leaving: bool,
    /// The newest round.
    round: Round,
    /// Requests that failed, in a row.
    failures: u32,
    /// The next act comes at this moment or later.
    resume_at: Moment,
}

/// Where it stands with the Lease of its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Place {
    /// There is none.
    Free,
    /// There may be one.
    Unknown,
    /// One is in the way, and may be removed.
    Taken(Precondition),
    /// It is this verifier's.
    Held(Tenure),
}

/// The time with one Lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Tenure {
    lease: Precondition,
    /// Whether the Lease may have another version by now.
    is_unsure: bool,
    /// Until when the verifier relies on it.
    valid_until: Moment,
    /// Whether the list of the records was ordered.
    is_list_ordered: bool,
    applied: Option<RecordVersion>,
    /// The newest version that somebody may be waiting for, and that the Lease does not say yet.
    awaited: Option<RecordVersion>,
    /// When the last renewal was sent.
    sent: Moment,
    /// When the newest version that was reached had been asked for. Before that, when the list last made progress.
    known: Moment,
}

/// A membership from its Lease on. What was read of the records for one round says nothing for another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Round(u32);

/// How often, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Timings {
    /// Between two renewals at rest.
    pub(super) renewal: Duration,
    /// Between two renewals that acknowledge something. Each acknowledges everything before it.
    pub(super) acknowledgement: Duration,
    /// After the first failure. Doubles with each further one.
    pub(super) first_retry: Duration,
    /// The longest pause after a failure.
    pub(super) longest_retry: Duration,
    /// A verifier whose records are older does not renew. Otherwise it could hold up deletions for ever.
    pub(super) longest_behind: Duration,
}

impl Timings {
    fn within(lease_duration: Duration) -> Self {
        Self {
            renewal: (lease_duration / 3).min(Duration::from_secs(10)),
            acknowledgement: Duration::from_millis(100),
            first_retry: Duration::from_millis(100),
            longest_retry: (lease_duration / 6).min(Duration::from_secs(5)),
            longest_behind: lease_duration.min(Duration::from_secs(120)),
        }
    }
}

/// What the verifier does next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// Send this, wait for the answer, and call [`Verifier::answered`].
    Send(Request),
    /// Forget every version of the records, and list all of them anew, with a request that begins after this. Call
    /// [`Verifier::reached`] with this round when the keyring has them, and each time that it has more. The next act does not
    /// wait for it.
    List(Round),
    /// Wait until this moment, or until something is told.
    Wait(Moment),
    /// Its Lease is gone: exit.
    Exit,
}

/// A request about the Lease of the verifier's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// The verb and the body.
    pub operation: Operation,
    /// A moment before it is sent.
    pub(super) sent: Moment,
}

/// What a [`Request`] asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// POST.
    Create(Content),
    /// GET, without a resource version.
    Read,
    /// PUT, under uid and version.
    Renew(Precondition, Content),
    /// DELETE, under uid and version.
    Delete(Precondition),
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// The Lease is stored like this: to POST, GET and PUT.
    Stored(Stored),
    /// There is no such Lease: 404; and to DELETE also 200 without an object.
    Absent,
    /// 409: it is there already, or has another uid or version.
    Conflict,
    /// Everything else: no answer in time, an error, a DELETE that is not done. The request may still be carried out.
    Unknown,
}

/// What the keyring has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Progress {
    /// The keyring has every write of a record up to this version.
    pub version: RecordVersion,
    /// Just before the request that proves it: for a list, or for the goal that the watch has reached. The default, which is
    /// long ago, for what proves nothing: an event. The first progress of a round needs a proof.
    pub asked: Moment,
    /// Whether the keyring decides otherwise than before: a record is new, revoked, or has other rules. True if in doubt.
    pub is_awaited: bool,
}

impl Verifier {
    /// A verifier that has not done anything yet.
    pub fn new(holder: Holder) -> Self {
        let timings = Timings::within(holder.duration());
        Self::with_timings(holder, timings)
    }

    pub(super) fn with_timings(holder: Holder, timings: Timings) -> Self {
        Self {
            holder,
            timings,
            place: Place::Free,
            has_joined: false,
            is_leaving: false,
            round: Round::default(),
            failures: 0,
            resume_at: Moment::default(),
        }
    }

    /// Until when keys may be let in: while the Lease is valid, and the records are no older than its duration. `None`: not
    /// now. Read the clock **after** the keyring was asked and **before** the answer is given, and compare it with this.
    pub fn answers_until(&self) -> Option<Moment> {
        match &self.place {
            Place::Held(tenure) if tenure.applied.is_some() && !self.is_leaving => {
                Some(tenure.valid_until.min(tenure.known + self.holder.duration()))
            }
            _ => None,
        }
    }

    /// Whether keys may be let in at `now`.
    pub fn may_answer(&self, now: Moment) -> bool {
        self.answers_until().is_some_and(|until| now < until)
    }

    /// What it does at `now`.
    pub fn state(&self, now: Moment) -> State {
        match self.answers_until() {
            _ if self.is_leaving => State::Leaving,
            None => State::Joining,
            Some(until) if now < until => State::Serving,
            Some(_) => State::Lapsed,
        }
    }

    /// Whether it has its Lease, as far as it knows.
    pub fn has_lease(&self) -> bool {
        matches!(self.place, Place::Held(_))
    }

    /// The holder of its Lease.
    pub fn holder(&self) -> &Holder {
        &self.holder
    }

    /// What to do. `now` is read just before.
    pub fn next(&mut self, now: Moment) -> Act {
        if now < self.resume_at {
            return Act::Wait(self.resume_at);
        }
        let operation = match &mut self.place {
            Place::Free if self.is_leaving => return Act::Exit,
            Place::Free => Operation::Create(Content { state: State::Joining, applied: None }),
            Place::Unknown => Operation::Read,
            Place::Taken(lease) => Operation::Delete(lease.clone()),
            Place::Held(tenure) if tenure.is_unsure => Operation::Read,
            Place::Held(tenure) if self.is_leaving => Operation::Delete(tenure.lease.clone()),
            Place::Held(tenure) if !tenure.is_list_ordered => {
                tenure.is_list_ordered = true;
                return Act::List(self.round);
            }
            Place::Held(tenure) if now.since(tenure.known) >= self.timings.longest_behind => {
                if tenure.applied.is_some() {
                    return Act::Wait(now + self.timings.renewal);
                }
                let lease = tenure.lease.clone();
                self.rejoin(Place::Taken(lease), now);
                return Act::Wait(self.resume_at);
            }
            Place::Held(tenure) => match tenure.renewal_due(&self.timings) {
                due if now < due => return Act::Wait(due),
                _ => Operation::Renew(tenure.lease.clone(), tenure.content()),
            },
        };
        Act::Send(Request { operation, sent: now })
    }

    /// Takes in the answer to `request`.
    pub fn answered(&mut self, request: Request, answer: Answer, now: Moment) {
        let Request { operation, sent } = request;
        match (operation, answer) {
            (Operation::Create(_), Answer::Stored(stored)) if self.place == Place::Free && !stored.is_going => {
                self.join(stored.at, sent);
            }
            (Operation::Create(_), _) => self.doubt(now),
            (Operation::Renew(before, content), Answer::Stored(stored)) => {
                self.renewed(&before, content, stored, sent, now)
            }
            (Operation::Renew(before, _), Answer::Absent) if self.holds(&before) => self.rejoin(Place::Free, now),
            (Operation::Renew(before, _), _) if self.holds(&before) => self.doubt(now),
            (Operation::Renew(..), _) => {}
            (Operation::Read, Answer::Stored(stored)) => self.found(stored, now),
            (Operation::Read | Operation::Delete(_), Answer::Absent) => self.vacate(now),
            (Operation::Read | Operation::Delete(_), _) => self.doubt(now),
        }
    }

    /// Takes in what the keyring has reached for `round`. Call it when the keyring is swapped **and** no decision from an
    /// older keyring is under way. A version below an earlier one says that etcd was restored.
    pub fn reached(&mut self, round: Round, progress: Progress, now: Moment) {
        if round != self.round {
            return;
        }
        let Place::Held(tenure) = &mut self.place else { return };
        if tenure.applied.is_some_and(|applied| progress.version < applied) {
            let lease = tenure.lease.clone();
            return self.rejoin(Place::Taken(lease), now);
        }
        let is_first = tenure.applied.is_none();
        if progress.is_awaited || is_first {
            tenure.awaited = Some(progress.version);
        }
        tenure.applied = Some(progress.version);
        // Until the list was complete, this was when its last page came. What the pages say is as old as the first one.
        tenure.known = if is_first { progress.asked } else { tenure.known.max(progress.asked) };
    }

    /// Takes in a page of the list for `round`, which may take long. Without one for two minutes, the verifier gives its Lease
    /// up and joins anew: it lets nobody in, so it need not hold anybody up.
    pub fn listed_page(&mut self, round: Round, now: Moment) {
        if let Place::Held(tenure) = &mut self.place
            && round == self.round
            && tenure.applied.is_none()
        {
            tenure.known = tenure.known.max(now);
        }
    }

    /// Takes in that a consistent read showed this as the newest version of the records. One below what was reached says
    /// that etcd was restored: everything is dropped, and the verifier joins anew.
    pub fn saw_newest(&mut self, round: Round, newest: RecordVersion, now: Moment) {
        let Place::Held(tenure) = &self.place else { return };
        if round == self.round && tenure.applied.is_some_and(|applied| newest < applied) {
            let lease = tenure.lease.clone();
            self.rejoin(Place::Taken(lease), now);
        }
    }

    /// Lets nobody in any more, and removes the Lease. Call it after SIGTERM and the drain.
    pub fn leave(&mut self) {
        self.is_leaving = true;
        self.resume_at = Moment::default();
    }

    fn join(&mut self, lease: Precondition, sent: Moment) {
        self.round = Round(self.round.0.wrapping_add(1));
        self.has_joined = true;
        self.place = Place::Held(Tenure {
            lease,
            is_unsure: false,
            valid_until: sent + self.holder.duration(),
            is_list_ordered: false,
            applied: None,
            awaited: None,
            sent,
            known: sent,
        });
    }

    /// Lets nobody in from now on, until it has a new Lease and a new list.
    fn rejoin(&mut self, place: Place, now: Moment) {
        self.round = Round(self.round.0.wrapping_add(1));
        self.place = place;
        self.pause(now);
    }

    fn renewed(&mut self, before: &Precondition, content: Content, stored: Stored, sent: Moment, now: Moment) {
        let duration = self.holder.duration();
        let Place::Held(tenure) = &mut self.place else { return };
        if tenure.lease.uid != before.uid {
            return;
        }
        // Versions of Leases went backwards: etcd was restored.
        if stored.at.uid != before.uid || stored.at.version <= before.version {
            return self.rejoin(Place::Unknown, now);
        }
        tenure.lease = stored.at;
        // Not from the answer: the Lease may have been stored at any time in between.
        tenure.valid_until = tenure.valid_until.max(sent + duration);
        tenure.awaited = tenure.awaited.filter(|awaited| content.applied.is_none_or(|applied| applied < *awaited));
        tenure.sent = sent;
        self.failures = 0;
    }

    /// Takes in the Lease of this name as it stands.
    fn found(&mut self, stored: Stored, now: Moment) {
        if let Place::Held(tenure) = &mut self.place
            && tenure.lease.uid == stored.at.uid
            && stored.at.version >= tenure.lease.version
            && !stored.is_going
        {
            tenure.lease = stored.at;
            tenure.is_unsure = false;
            return;
        }
        // An earlier start of this identity is gone. Whoever takes the name later may be running.
        let is_own = stored.holder == self.holder.holder || !self.has_joined;
        let place = if is_own && !stored.is_going { Place::Taken(stored.at) } else { Place::Unknown };
        let is_stuck = place == Place::Unknown;
        self.rejoin_unless_outside(place, now);
        if is_stuck && self.is_leaving {
            self.place = Place::Free;
        } else if is_stuck {
            self.resume_at = self.resume_at.max(now + self.timings.renewal);
        }
    }

    /// There is no Lease of this name.
    fn vacate(&mut self, now: Moment) {
        self.rejoin_unless_outside(Place::Free, now);
    }

    fn rejoin_unless_outside(&mut self, place: Place, now: Moment) {
        match self.place {
            Place::Held(_) if !self.is_leaving => self.rejoin(place, now),
            _ => self.place = place,
        }
    }

    /// Reads the Lease before the next write, after a pause.
    fn doubt(&mut self, now: Moment) {
        match &mut self.place {
            Place::Held(tenure) => tenure.is_unsure = true,
            place => *place = Place::Unknown,
        }
        self.pause(now);
    }

    fn pause(&mut self, now: Moment) {
        let pause = self.timings.first_retry.saturating_mul(1 << self.failures.min(16));
        self.resume_at = now + pause.min(self.timings.longest_retry);
        self.failures = self.failures.saturating_add(1);
    }

    fn holds(&self, lease: &Precondition) -> bool {
        matches!(&self.place, Place::Held(tenure) if tenure.lease.uid == lease.uid)
    }
}

#[cfg(test)]
impl Verifier {
    /// Itself as it is some time later, without what makes no difference from `now` on if it never waits between two tries.
    pub(super) fn aged(mut self, by: Duration, now: Moment) -> Self {
        (self.failures, self.resume_at) = (0, Moment::default());
        if let Place::Held(tenure) = &mut self.place {
            tenure.known = now;
            tenure.valid_until = tenure.valid_until.aged(by).or_long_ago(now);
            tenure.sent = tenure.sent.aged(by);
            tenure.sent = if now >= tenure.sent + self.timings.renewal { Moment::default() } else { tenure.sent };
        }
        self
    }
}

#[cfg(test)]
impl Request {
    /// Itself as it is some time later, without how long ago it was sent if that is longer than `duration`.
    pub(super) fn aged(mut self, by: Duration, duration: Duration, now: Moment) -> Self {
        self.sent = self.sent.aged(by);
        self.sent = if now >= self.sent + duration { Moment::default() } else { self.sent };
        self
    }
}

impl Tenure {
    fn content(&self) -> Content {
        let state = if self.applied.is_some() { State::Serving } else { State::Joining };
        Content { state, applied: self.applied }
    }

    /// At once if somebody waits, though not too often.
    fn renewal_due(&self, timings: &Timings) -> Moment {
        self.sent + if self.awaited.is_some() { timings.acknowledgement } else { timings.renewal }
    }
}
