//! The controller's side: what every verifier's Lease says, which Leases have run out, and whether a version is fenced.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;

use super::lease::{LeaseVersion, Precondition, RecordVersion, State, Stored};
use super::moment::Moment;

/// Leases beyond this number are not held in memory. Then nothing is fenced, until some are gone.
pub const MOST_LEASES: usize = 4096;

/// How long a new key waits for verifiers before it goes into its Secret.
pub const DELIVERY_PATIENCE: Duration = Duration::from_secs(10);

/// How long the report of a change waits for verifiers, so that one write tells of both.
pub const ENFORCEMENT_PATIENCE: Duration = Duration::from_secs(1);

/// How long a verifier may rely on a Lease that this controller has not seen: the default of `--lease-duration`.
const USUAL_DURATION: Duration = Duration::from_secs(600);

/// What one controller knows of the verifiers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Fence {
    /// The Leases of the last look, by uid.
    leases: BTreeMap<Arc<str>, Known>,
    /// Whether the last look showed more Leases than are held, or one that cannot be told apart.
    is_incomplete: bool,
    /// The number of the last look that was begun.
    begun: u64,
    /// The number of the last look that was completed. 0: none.
    completed: u64,
    /// The newest versions that were seen. Later reads show no older ones, unless etcd was restored.
    newest: Newest,
    /// The newest version of the records at the last look.
    records: Option<RecordVersion>,
    /// The last time that etcd was seen to be restored.
    restored: Option<Restored>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Known {
    stored: Stored,
    /// When this version was first seen.
    since: Moment,
    /// A look that did not show this Lease, though completed before this one was first seen. 0: there was none.
    absent_at: u64,
    /// It was waited for as long as this in vain, and has acknowledged nothing since.
    missed: Duration,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Newest {
    records: Option<RecordVersion>,
    leases: Option<LeaseVersion>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Restored {
    /// The number of looks by then. What was awaited before is void.
    begun: u64,
    /// From then on no Lease is valid that was lost.
    over_at: Moment,
}

/// A look at the Leases that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Look {
    number: u64,
    /// What was seen before it began.
    newest: Newest,
}

/// What a look has shown. Both reads are consistent (without `resourceVersion`), and begin after the look did.
#[derive(Clone, Copy, Debug)]
pub struct View<'v> {
    /// All Leases of the system namespace.
    pub leases: &'v [Lease],
    /// `metadata.resourceVersion` of their list.
    pub version: LeaseVersion,
    /// The newest version of the records, asked for **after** the Leases were there: the `resourceVersion` of a list of one.
    pub records: RecordVersion,
}

/// A version of a record that is to be fenced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Awaited {
    version: RecordVersion,
    /// The last look that had begun by then. Only a later one counts.
    begun: u64,
    /// When the version was known.
    since: Moment,
}

impl Awaited {
    /// When the version was known.
    pub fn since(&self) -> Moment {
        self.since
    }
}

/// Whether every verifier has applied a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No verifier decides from an older version, and none will.
    Passed {
        /// Verifiers that have acknowledged it. 0: there are none.
        verifiers: usize,
    },
    /// These verifiers have not acknowledged it.
    Waiting {
        /// Names of their Leases, with what to do about one that a finalizer keeps.
        on: Vec<Arc<str>>,
        /// If they stay silent, they hold it up until then, or until that finalizer is gone.
        latest: Moment,
    },
    /// A look is needed that begins now or later.
    Unlooked,
    /// There are more Leases than [`MOST_LEASES`], or one without uid or version.
    Incomplete,
    /// etcd was restored from a backup. Verifiers may rely on Leases that are lost, until then. Read the record again, and
    /// await the version that it has now.
    Restored {
        /// When no verifier relies on a lost Lease any more.
        until: Moment,
    },
}

/// Whether a version is waited for any longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// No: every verifier has applied it, but for those that have missed an earlier one.
    Over,
    /// Yes. Until this moment at the latest.
    Until(Moment),
    /// No: it was waited for long enough. These have missed it. Empty if the Leases could not be read.
    Missed(Vec<Arc<str>>),
}

/// A Lease to DELETE, under this uid and version: its verifier has let it run out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Eviction {
    /// The Lease's name.
    pub name: Arc<str>,
    /// What must still be so.
    pub precondition: Precondition,
}

impl Fence {
    /// Notes that a record has this version: the API server answered so to a write, or to a consistent read.
    pub fn awaited(&mut self, version: RecordVersion, now: Moment) -> Awaited {
        self.newest.records = self.newest.records.max(Some(version));
        Awaited { version, begun: self.begun, since: now }
    }

    /// Begins a look: call it before the requests. If they fail, drop it.
    pub fn look(&mut self) -> Look {
        self.begun += 1;
        Look { number: self.begun, newest: self.newest }
    }

    /// Takes in what a look has shown. An older look than the last one says nothing.
    pub fn looked(&mut self, look: &Look, view: &View<'_>, now: Moment) {
        if look.number <= self.completed {
            return;
        }
        let before = mem::take(&mut self.leases);
        if look.newest.records > Some(view.records) || look.newest.leases > Some(view.version) {
            self.note_restore(before.values(), now);
        } else {
            self.newest.records = self.newest.records.max(Some(view.records));
            self.newest.leases = self.newest.leases.max(Some(view.version));
            self.leases = before;
        }
        self.take_in(view.leases, now);
        self.records = Some(view.records);
        self.completed = look.number;
    }

    /// The Leases that have run out at `now`. Delete them, and look again: the answer to a DELETE proves nothing, because a
    /// finalizer may hold the Lease.
    pub fn overdue(&self, now: Moment) -> impl Iterator<Item = Eviction> {
        self.evictable()
            .filter(move |known| now >= known.overdue_at())
            .map(|known| Eviction { name: known.stored.name.clone(), precondition: known.stored.at.clone() })
    }

    /// When the next Lease runs out, unless it is renewed.
    pub fn next_overdue(&self) -> Option<Moment> {
        self.evictable().map(Known::overdue_at).min()
    }

    /// The Leases that a DELETE may remove. Only a person can remove one that is kept by a finalizer.
    fn evictable(&self) -> impl Iterator<Item = &Known> {
        self.leases.values().filter(|known| !known.stored.is_going)
    }

    /// Whether `awaited` is fenced, by the last look.
    pub fn judge(&self, awaited: &Awaited, now: Moment) -> Verdict {
        if let Some(Restored { begun, over_at }) = self.restored
            && (awaited.begun < begun || now < over_at)
        {
            return Verdict::Restored { until: over_at };
        }
        if self.completed <= awaited.begun {
            return Verdict::Unlooked;
        }
        if self.is_incomplete {
            return Verdict::Incomplete;
        }
        let (behind, done): (Vec<_>, Vec<_>) =
            self.concerned(awaited).partition(|known| !self.has_applied(known, awaited.version));
        match behind.iter().map(|known| known.overdue_at()).max() {
            None => Verdict::Passed { verifiers: done.len() },
            Some(latest) => Verdict::Waiting { on: names(behind), latest },
        }
    }

    /// Whether `awaited` is waited for any longer, if `patience` is the longest time since it was known. A verifier that was
    /// waited for as long as that in vain is not waited for again until it has acknowledged something.
    pub fn wait(&mut self, awaited: &Awaited, patience: Duration, now: Moment) -> Wait {
        let until = awaited.since + patience;
        let missing: Vec<_> = match self.judge(awaited, now) {
            Verdict::Passed { .. } => return Wait::Over,
            Verdict::Waiting { .. } => self
                .concerned(awaited)
                .filter(|known| known.missed < patience && !self.has_applied(known, awaited.version))
                .map(|known| known.stored.at.uid.clone())
                .collect(),
            _ if now < until => return Wait::Until(until),
            _ => return Wait::Missed(Vec::new()),
        };
        if missing.is_empty() {
            return Wait::Over;
        }
        if now < until {
            return Wait::Until(until);
        }
        let mut on = Vec::new();
        for uid in missing {
            if let Some(known) = self.leases.get_mut(&uid) {
                known.missed = patience;
                on.push(known.stored.name.clone());
            }
        }
        Wait::Missed(on)
    }

    /// The Leases of the last look.
    pub fn leases(&self) -> impl Iterator<Item = &Stored> {
        self.leases.values().map(|known| &known.stored)
    }

    /// What each verifier does at `now`, as far as its Lease tells. One that leaves removes its Lease.
    pub fn states(&self, now: Moment) -> impl Iterator<Item = State> {
        self.leases.values().map(move |known| match known.stored.applied {
            _ if now >= known.since + known.stored.duration => State::Lapsed,
            Some(_) => State::Serving,
            None => State::Joining,
        })
    }

    /// A verifier whose Lease was not there in a look that began after the version was written has listed the records later.
    fn concerned(&self, awaited: &Awaited) -> impl Iterator<Item = &Known> {
        let begun = awaited.begun;
        self.leases.values().filter(move |known| known.absent_at <= begun)
    }

    /// A version above the newest is from before etcd was restored, and says nothing.
    fn has_applied(&self, known: &Known, version: RecordVersion) -> bool {
        known.stored.applied.is_some_and(|applied| applied >= version && Some(applied) <= self.records)
    }

    /// From now on, the Leases that are there are new, and those that are not may still be relied on for a while.
    fn note_restore<'k>(&mut self, known: impl Iterator<Item = &'k Known>, now: Moment) {
        let longest = known.map(|known| known.stored.duration).fold(USUAL_DURATION, Duration::max);
        self.newest = Newest::default();
        self.begun += 1;
        self.restored = Some(Restored { begun: self.begun, over_at: now + patience(longest) });
    }

    fn take_in(&mut self, leases: &[Lease], now: Moment) {
        let mut before = mem::take(&mut self.leases);
        let was_incomplete = mem::take(&mut self.is_incomplete);
        let absent_at = if was_incomplete { 0 } else { self.completed };
        for lease in leases.iter().filter(|lease| Stored::is_of_verifier(lease)) {
            let stored = Stored::read(lease).filter(|_| self.leases.len() < MOST_LEASES);
            let Some(stored) = stored else {
                self.is_incomplete = true;
                continue;
            };
            let known = match before.remove(&stored.at.uid) {
                Some(known) => known.seen_as(stored, now),
                None => Known { stored, since: now, absent_at, missed: Duration::ZERO },
            };
            self.leases.insert(known.stored.at.uid.clone(), known);
        }
    }
}

#[cfg(test)]
impl Fence {
    /// Itself as it is some time later, without how long ago a Lease ran out.
    pub(super) fn aged(mut self, by: Duration, now: Moment) -> Self {
        for known in self.leases.values_mut() {
            known.since = known.since.aged(by);
            known.since = if now >= known.overdue_at() { Moment::default() } else { known.since };
        }
        if let Some(restored) = &mut self.restored {
            restored.over_at = restored.over_at.aged(by).or_long_ago(now);
        }
        self
    }
}

impl Known {
    fn seen_as(self, stored: Stored, now: Moment) -> Self {
        let since = if stored.at == self.stored.at { self.since } else { now };
        let missed = if stored.applied > self.stored.applied { Duration::ZERO } else { self.missed };
        Self { stored, since, missed, ..self }
    }

    /// When its verifier lets nobody in by its own clock, whatever it hears.
    fn overdue_at(&self) -> Moment {
        self.since + patience(self.stored.duration)
    }
}

/// The duration of a Lease by another clock, which may be 5 % slower, and a second.
fn patience(duration: Duration) -> Duration {
    duration + duration / 20 + Duration::from_secs(1)
}

fn names(known: Vec<&Known>) -> Vec<Arc<str>> {
    let name = |known: &Known| match known.stored.is_going {
        true => format!("{} (remove the finalizer of its Lease)", known.stored.name).into(),
        false => known.stored.name.clone(),
    };
    known.into_iter().map(name).collect()
}
