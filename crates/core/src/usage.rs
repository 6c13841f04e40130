//! PURE. When keys were last used: exact in memory, and written to the API server so often as the budget allows.
//!
//! ```text
//! decisions ──> marks <── watch                each use, to the second; and what the API server has of it
//!                 │
//!               survey, now and then ──> queue ──> one write after the other, at the pace of all verifiers together
//! ```
//!
//! A key is due once the API server's time for it is about a granularity old and it has been used since. So a key that
//! was not used for longer is due at its first use, one in steady use once in a granularity, and the last use of one
//! that goes to rest is written too. What another verifier has written is not due here.

mod granularity;
mod marks;
mod pace;

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::granularity::{Ages, Granularity};
use self::pace::Pace;
use crate::keyring::{Keyring, RecordName};

pub use self::marks::{Marks, Usage, second};
pub use self::pace::Budget;

/// How exact and how costly the API server's knowledge is to be.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// How far it may be behind at best; at least a second.
    pub granularity: Duration,
    /// What all verifiers together may write.
    pub budget: Budget,
}

/// What the watch has told so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Writes of a last use, by any verifier.
    pub writes: u64,
    /// How often records were read anew, so that some writes may not have been told of one by one.
    pub lists: u64,
}

/// Which records are to be written when. Decides for one verifier.
pub struct Schedule {
    policy: Policy,
    /// Different for any two verifiers: they are to take up the same work in different order.
    salt: u64,
    pace: Pace,
    planned: Granularity,
    /// What was planned when the last survey was made.
    planned_before: Duration,
    /// How long the first use that is not written has waited, at most, as of the last survey.
    lag: Duration,
    told: Told,
    queue: VecDeque<Due>,
    /// The slots in the queue, and those under way.
    taken: HashSet<u32>,
    under_way: Vec<UnderWay>,
    /// Since when uses may have waited of slots that were taken after the last survey, and are free again.
    released: HashMap<u32, Instant>,
    /// When the last survey was made that queued all that was due.
    surveyed_at: Instant,
    failures: u32,
    resume_at: Instant,
}

/// A record whose last use is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// Its slot in the keyring.
    pub slot: u32,
    /// Its name.
    pub name: RecordName,
    /// Its first use that is not written was not before.
    since: Instant,
}

/// A write that is made or about to be.
struct UnderWay {
    slot: u32,
    /// When it was decided on: what is written is all that was used until then, and perhaps more.
    began: Instant,
    /// Since when a use may have waited that is not written.
    since: Instant,
    /// What was written, once the request is over, and until when that is waited for.
    expected: Option<(u32, Instant)>,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Write the last use of this record, and tell [`Schedule::finish`].
    Write(Due),
    /// Nothing before this instant, unless the watch tells something, a write is finished or a survey finds something.
    Wait(Instant),
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The API server has this second now.
    Written(u32),
    /// Someone else has written it, or the record is gone.
    Unneeded,
    /// The record was changed in between.
    Conflict,
    /// It was refused.
    Refused,
    /// There was no answer: this second may have been written.
    Unknown(u32),
}

/// Records that wait to be written, at most. More of them are found by a later survey.
const QUEUE: usize = 65_536;

/// The part of the granularity after which a record is due.
const DUE_AT_THE_EARLIEST: f64 = 0.8;
const DUE_AT_THE_LATEST: f64 = 0.95;

const LONGEST_SURVEY_INTERVAL: Duration = Duration::from_secs(10);

/// For how long a write is waited for in the watch. An event that is lost must not end all writing.
const PATIENCE: Duration = Duration::from_secs(30);

/// The same for one that may not have been made.
const PATIENCE_IN_DOUBT: Duration = Duration::from_secs(5);

const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

impl Schedule {
    /// Knows of nothing yet. `salt` is a random number.
    pub fn new(policy: Policy, salt: u64, now: Instant) -> Self {
        Self {
            policy,
            salt,
            pace: Pace::new(policy.budget, now),
            planned: Granularity::new(policy.granularity, now),
            planned_before: policy.granularity,
            lag: Duration::ZERO,
            told: Told::default(),
            queue: VecDeque::new(),
            taken: HashSet::new(),
            under_way: Vec::new(),
            released: HashMap::new(),
            surveyed_at: now,
            failures: 0,
            resume_at: now,
        }
    }

    /// How long to wait from one survey to the next. Where keys are written once in an hour, they need not be looked at every
    /// second.
    pub fn survey_interval(&self) -> Duration {
        let shortest = (self.policy.granularity / 16).clamp(Duration::from_millis(100), Duration::from_secs(1));
        (self.planned.in_force / 64).clamp(shortest, LONGEST_SURVEY_INTERVAL)
    }

    /// How far the API server is behind at most: as planned, or further where it cannot keep up.
    pub fn granularity(&self) -> Duration {
        self.planned.in_force.max(self.lag)
    }

    /// Number of records that wait to be written.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Queues what has become due, and adjusts the granularity. `second` is the time of day.
    ///
    /// `newest` gives the newest keyring, and is asked only after the marks were read: a use may be of a key that was not
    /// there a moment ago. Costs some 10 ms for a million keys in use, and more where a record is due that was not before.
    pub fn survey(&mut self, marks: &Marks, newest: impl FnOnce() -> Arc<Keyring>, second: u32, now: Instant) {
        self.drop_undue(marks, second);
        // Where there is work for minutes, it need not be looked for every second.
        let has_room = self.queue.len() <= QUEUE / 2;
        let mut ages = Ages::new(self.policy.granularity);
        let mut due = Vec::new();
        let mut is_complete = has_room;
        for (slot, usage) in marks.all().filter(|(_, usage)| usage.last() > 0) {
            ages.add(second.saturating_sub(usage.last()));
            if has_room && self.is_due(slot, usage, second) && !self.taken.contains(&slot) {
                due.push((usage.written, self.order(slot, usage), slot));
                if due.len() >= 2 * QUEUE {
                    is_complete &= keep_oldest(&mut due, QUEUE);
                }
            }
        }
        if !due.is_empty() {
            is_complete &= keep_oldest(&mut due, QUEUE - self.queue.len());
            self.enqueue(&due, marks, &newest(), (second, now));
        }
        if is_complete {
            self.surveyed_at = now;
            self.released.clear();
        }
        self.lag = self.lag_at(marks, second, now);
        self.planned_before = self.planned.in_force;
        self.planned.adjust(ages.needed(self.policy.budget.rate()), now);
    }

    /// In an order of its own.
    fn enqueue(&mut self, due: &[(u32, u64, u32)], marks: &Marks, keyring: &Keyring, (second, now): (u32, Instant)) {
        let slots: HashSet<u32> = due.iter().map(|(_, _, slot)| *slot).collect();
        let mut found: Vec<Due> = keyring
            .names_of(|slot| slots.contains(&slot))
            .map(|(slot, name)| Due { slot, name, since: self.since(slot, marks.usage(slot), second, now) })
            .collect();
        found.sort_by_cached_key(|due| self.order(due.slot, marks.usage(due.slot)));
        self.taken.extend(found.iter().map(|due| due.slot));
        self.queue.extend(found);
        // A slot without a record never gets one again.
        for gone in slots.difference(&self.taken) {
            marks.note_written(*gone, marks.usage(*gone).used);
        }
    }

    /// Takes out of the queue what others have written.
    fn drop_undue(&mut self, marks: &Marks, second: u32) {
        for due in mem::take(&mut self.queue) {
            if self.is_due(due.slot, marks.usage(due.slot), second) {
                self.queue.push_back(due);
            } else {
                self.taken.remove(&due.slot);
            }
        }
    }

    /// For how long a use that is not written has waited at most, of those in the queue and of those that came while their
    /// slot was under way.
    fn lag_at(&self, marks: &Marks, second: u32, now: Instant) -> Duration {
        // It is later than what is written.
        let age = |slot| Duration::from_secs(second.saturating_sub(marks.usage(slot).written).into());
        let queued = self.queue.iter().map(|due| (due.slot, due.since));
        let under_way = self.under_way.iter().filter(|under_way| {
            under_way.expected.is_none_or(|(expected, _)| marks.usage(under_way.slot).used > expected)
        });
        let waiting = queued.chain(under_way.map(|under_way| (under_way.slot, under_way.since)));
        let lags = waiting.map(|(slot, since)| now.saturating_duration_since(since).min(age(slot)));
        lags.max().unwrap_or_default()
    }

    /// Since when a use may have waited that is due now. After a longer rest, it would have been due at the last survey if
    /// it had been there.
    fn since(&self, slot: u32, usage: Usage, second: u32, now: Instant) -> Instant {
        let age = Duration::from_secs(second.saturating_sub(usage.written).into());
        if age <= self.planned.in_force.max(self.planned_before) {
            return now.checked_sub(age).unwrap_or(now);
        }
        self.released.get(&slot).copied().unwrap_or(self.surveyed_at)
    }

    /// The next write, or until when there is none. `second` is the time of day.
    ///
    /// `told` has to be read after the caller has learnt of anything else.
    pub fn next(&mut self, marks: &Marks, told: impl FnOnce() -> Told, second: u32, now: Instant) -> Next {
        self.dismiss_arrived(marks, now);
        self.settle_accounts(told(), now);
        if self.under_way.len() >= self.policy.budget.at_once() as usize {
            return Next::Wait(now + PATIENCE);
        }
        let free_at = self.pace.free_at().max(self.resume_at);
        if now < free_at {
            return Next::Wait(free_at);
        }
        while let Some(due) = self.queue.pop_front() {
            if self.is_due(due.slot, marks.usage(due.slot), second) {
                self.under_way.push(UnderWay { slot: due.slot, began: now, since: due.since, expected: None });
                return Next::Write(due);
            }
            self.taken.remove(&due.slot);
        }
        Next::Wait(now + PATIENCE)
    }

    fn is_due(&self, slot: u32, usage: Usage, second: u32) -> bool {
        let age = f64::from(second.saturating_sub(usage.written)) / self.planned.in_force.as_secs_f64();
        if !usage.is_unwritten() || age < DUE_AT_THE_EARLIEST {
            return false;
        }
        // Verifiers draw different moments, so that as a rule one of them writes and the others see it.
        let drawn = || self.order(slot, usage) as f64 / u64::MAX as f64;
        age >= DUE_AT_THE_LATEST || age >= DUE_AT_THE_EARLIEST + (DUE_AT_THE_LATEST - DUE_AT_THE_EARLIEST) * drawn()
    }

    /// Tells how a write ended.
    pub fn finish(&mut self, due: Due, outcome: Outcome, now: Instant) {
        match outcome {
            Outcome::Written(_) | Outcome::Unneeded | Outcome::Conflict => self.failures = 0,
            Outcome::Refused | Outcome::Unknown(_) => {
                let pause = SHORTEST_PAUSE.saturating_mul(1 << self.failures.min(16)).min(LONGEST_PAUSE);
                self.failures += 1;
                self.resume_at = now + pause;
            }
        }
        let position = self.under_way.iter().position(|under_way| under_way.slot == due.slot);
        match (outcome, position.and_then(|position| self.under_way.get_mut(position))) {
            (Outcome::Written(second), Some(under_way)) => {
                under_way.since = under_way.began;
                under_way.expected = Some((second, now + PATIENCE));
            }
            (Outcome::Unknown(second), Some(under_way)) => under_way.expected = Some((second, now + PATIENCE_IN_DOUBT)),
            _ => {
                position.map(|position| self.under_way.swap_remove(position));
                match outcome {
                    Outcome::Conflict => self.queue.push_front(due),
                    Outcome::Refused => self.queue.push_back(due),
                    _ => self.release(due.slot, due.since),
                }
            }
        }
    }

    /// Forgets the writes that this verifier's own watch has told of by now.
    fn dismiss_arrived(&mut self, marks: &Marks, now: Instant) {
        let has_ended = |under_way: &UnderWay| {
            let expected = under_way.expected;
            expected.is_some_and(|(second, until)| marks.usage(under_way.slot).written >= second || now >= until)
        };
        let (ended, under_way): (Vec<_>, _) = mem::take(&mut self.under_way).into_iter().partition(has_ended);
        self.under_way = under_way;
        for UnderWay { slot, since, .. } in ended {
            self.release(slot, since);
        }
    }

    /// Lets a survey take up a slot again.
    fn release(&mut self, slot: u32, since: Instant) {
        self.taken.remove(&slot);
        self.released.insert(slot, since);
    }

    fn settle_accounts(&mut self, told: Told, now: Instant) {
        self.pace.pay_for(told.writes.saturating_sub(self.told.writes), now);
        if told.lists != self.told.lists {
            self.pace.wait_for_window(now);
        }
        self.told = told;
    }

    /// A number that is this verifier's own, and another one after each write.
    fn order(&self, slot: u32, usage: Usage) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.salt, slot, usage.written).hash(&mut hasher);
        hasher.finish()
    }
}

/// Of records with their times, an order among equal ones and their slots. True if that was all of them.
fn keep_oldest(due: &mut Vec<(u32, u64, u32)>, count: usize) -> bool {
    let are_all = due.len() <= count;
    if !are_all {
        due.select_nth_unstable(count);
        due.truncate(count);
    }
    are_all
}

/// Every record with a use that the API server does not have, whether due or not, the oldest times first.
pub fn unwritten(marks: &Marks, keyring: &Keyring) -> Vec<(u32, RecordName)> {
    let mut found: Vec<_> = keyring.names_of(|slot| marks.usage(slot).is_unwritten()).collect();
    found.sort_by_key(|(slot, _)| marks.usage(*slot).written);
    found
}

#[cfg(test)]
mod tests;
