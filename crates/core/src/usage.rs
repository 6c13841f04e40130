//! When keys were last used: exact in memory, and written to the API server as often as the budget allows.
//!
//! ```text
//! decisions ──> last uses <── watch            each use, to the second; and the last use that the API server has
//!                   │
//!                survey, periodic ──> queue ──> writes, within the budget of all verifiers together
//! ```
//!
//! A key is due once the API server's time for it is about one granularity old, and it has been used since. So a key that
//! rested for longer is due at its first use. A key in steady use is due once per granularity. The last use before a rest
//! is written too. A use that another verifier has written is not due here.

mod granularity;
mod last_uses;
mod pace;

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::granularity::{Ages, Granularity};
use self::pace::WriteBudget;
use crate::keyring::Keyring;
use crate::record_name::RecordName;

pub use self::last_uses::{LastUses, Usage, second};
pub use self::pace::Budget;

/// How exact last uses in the API are, and how many writes they may cost.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// How late a last use in the API may be, if the budget allows. At least one second.
    pub granularity: Duration,
    /// The writes of all verifiers together.
    pub budget: Budget,
}

/// What the watch has shown so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeenWrites {
    /// Number of writes of a last use, by any verifier.
    pub writes: u64,
    /// Number of lists. A list may stand for any number of writes.
    pub lists: u64,
}

/// Decides for one verifier which records are written, and when.
pub struct Schedule {
    policy: Policy,
    /// A random number: verifiers should do the same work in different orders.
    salt: u64,
    budget: WriteBudget,
    planned: Granularity,
    /// The granularity at the last survey.
    planned_before: Duration,
    /// How long the oldest unwritten use had waited at the last survey, at most.
    lag: Duration,
    seen: SeenWrites,
    queue: VecDeque<Due>,
    /// The slots in the queue and under way.
    taken: HashSet<u32>,
    under_way: Vec<UnderWay>,
    /// Slots that were taken after the last survey and are free again, with the time since when uses may have waited.
    released: HashMap<u32, Instant>,
    /// When the last survey was that queued everything that was due.
    surveyed_at: Instant,
    failures: u32,
    resume_at: Instant,
}

/// A record whose last use is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// The record's slot in the keyring.
    pub slot: u32,
    /// The record's name.
    pub name: RecordName,
    /// No unwritten use is older.
    since: Instant,
}

/// A write that is under way, or not seen in the watch yet.
struct UnderWay {
    slot: u32,
    /// When the write was decided. It covers all uses until then, and perhaps later ones.
    began: Instant,
    /// Since when an unwritten use may have waited.
    since: Instant,
    /// Set when the request is over: the second that was written, and how long to wait for it in the watch.
    expected: Option<(u32, Instant)>,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Write the last use of this record, then call [`Schedule::finish`].
    Write(Due),
    /// Wait until this instant, or until the watch shows a write, a write is finished, or a survey was made.
    Wait(Instant),
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The API server has stored this second.
    Written(u32),
    /// Another verifier has written a newer use, or the record is gone.
    Unneeded,
    /// The record was changed in between: try again.
    Conflict,
    /// The API server refused the write.
    Refused,
    /// There was no answer: this second may be stored or not.
    Unknown(u32),
}

/// Maximum length of the queue. A later survey finds the other records.
const QUEUE: usize = 65_536;

/// A record is due after a part of the granularity between these two.
const DUE_AT_THE_EARLIEST: f64 = 0.8;
/// See [`DUE_AT_THE_EARLIEST`].
const DUE_AT_THE_LATEST: f64 = 0.95;

const LONGEST_SURVEY_INTERVAL: Duration = Duration::from_secs(10);

/// How long to wait for a write to appear in the watch. A lost event must not stop all writes.
const PATIENCE: Duration = Duration::from_secs(30);

/// The same for a write without an answer.
const PATIENCE_IN_DOUBT: Duration = Duration::from_secs(5);

const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

impl Schedule {
    /// A schedule that has seen nothing yet. `salt` is a random number.
    pub fn new(policy: Policy, salt: u64, now: Instant) -> Self {
        Self {
            policy,
            salt,
            budget: WriteBudget::new(policy.budget, now),
            planned: Granularity::new(policy.granularity, now),
            planned_before: policy.granularity,
            lag: Duration::ZERO,
            seen: SeenWrites::default(),
            queue: VecDeque::new(),
            taken: HashSet::new(),
            under_way: Vec::new(),
            released: HashMap::new(),
            surveyed_at: now,
            failures: 0,
            resume_at: now,
        }
    }

    /// How long to wait between two surveys. If keys are written once an hour, a survey every second is a waste.
    pub fn survey_interval(&self) -> Duration {
        let shortest = (self.policy.granularity / 16).clamp(Duration::from_millis(100), Duration::from_secs(1));
        (self.planned.in_force / 64).clamp(shortest, LONGEST_SURVEY_INTERVAL)
    }

    /// How late last uses in the API are, at most: as planned, or later if the writes do not keep up.
    pub fn granularity(&self) -> Duration {
        self.planned.in_force.max(self.lag)
    }

    /// Number of records in the queue.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Queues what has become due, and adjusts the granularity. `second` is the time of day.
    ///
    /// `newest` gives the newest keyring. It is called after the last uses were read, because a use may be of a new key.
    /// Takes some 10 ms for a million keys in use, and longer if new records are due.
    pub fn survey(&mut self, last_uses: &LastUses, newest: impl FnOnce() -> Arc<Keyring>, second: u32, now: Instant) {
        self.drop_undue(last_uses, second);
        // With enough work in the queue, there is no need to look for more.
        let has_room = self.queue.len() <= QUEUE / 2;
        let mut ages = Ages::new(self.policy.granularity);
        let mut due = Vec::new();
        let mut is_complete = has_room;
        for (slot, usage) in last_uses.all().filter(|(_, usage)| usage.last() > 0) {
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
            self.enqueue(&due, last_uses, &newest(), (second, now));
        }
        if is_complete {
            self.surveyed_at = now;
            self.released.clear();
        }
        self.lag = self.lag_at(last_uses, second, now);
        self.planned_before = self.planned.in_force;
        self.planned.adjust(ages.needed(self.policy.budget.rate()), now);
    }

    /// Queues records in this verifier's own order.
    fn enqueue(
        &mut self,
        due: &[(u32, u64, u32)],
        last_uses: &LastUses,
        keyring: &Keyring,
        (second, now): (u32, Instant),
    ) {
        let slots: HashSet<u32> = due.iter().map(|(_, _, slot)| *slot).collect();
        let mut found: Vec<Due> = keyring
            .names_of(|slot| slots.contains(&slot))
            .map(|(slot, name)| Due { slot, name, since: self.since(slot, last_uses.usage(slot), second, now) })
            .collect();
        found.sort_by_cached_key(|due| self.order(due.slot, last_uses.usage(due.slot)));
        self.taken.extend(found.iter().map(|due| due.slot));
        self.queue.extend(found);
        // A slot without a record never gets a record again.
        for gone in slots.difference(&self.taken) {
            last_uses.note_written(*gone, last_uses.usage(*gone).used);
        }
    }

    /// Removes from the queue what other verifiers have written.
    fn drop_undue(&mut self, last_uses: &LastUses, second: u32) {
        for due in mem::take(&mut self.queue) {
            if self.is_due(due.slot, last_uses.usage(due.slot), second) {
                self.queue.push_back(due);
            } else {
                self.taken.remove(&due.slot);
            }
        }
    }

    /// How long the oldest unwritten use has waited, at most: of the slots in the queue, and of the slots under way that
    /// were used again.
    fn lag_at(&self, last_uses: &LastUses, second: u32, now: Instant) -> Duration {
        // An unwritten use is later than the written one.
        let age = |slot| Duration::from_secs(second.saturating_sub(last_uses.usage(slot).written).into());
        let queued = self.queue.iter().map(|due| (due.slot, due.since));
        let under_way = self.under_way.iter().filter(|under_way| {
            under_way.expected.is_none_or(|(expected, _)| last_uses.usage(under_way.slot).used > expected)
        });
        let waiting = queued.chain(under_way.map(|under_way| (under_way.slot, under_way.since)));
        let lags = waiting.map(|(slot, since)| now.saturating_duration_since(since).min(age(slot)));
        lags.max().unwrap_or_default()
    }

    /// Since when a use that is due now may have waited. After a longer rest it came after the last survey, or it would
    /// have been due then.
    fn since(&self, slot: u32, usage: Usage, second: u32, now: Instant) -> Instant {
        let age = Duration::from_secs(second.saturating_sub(usage.written).into());
        if age <= self.planned.in_force.max(self.planned_before) {
            return now.checked_sub(age).unwrap_or(now);
        }
        self.released.get(&slot).copied().unwrap_or(self.surveyed_at)
    }

    /// The next write, or how long to wait. `second` is the time of day.
    ///
    /// `seen` must be read after everything else that the caller reads.
    pub fn next(&mut self, last_uses: &LastUses, seen: impl FnOnce() -> SeenWrites, second: u32, now: Instant) -> Next {
        self.dismiss_arrived(last_uses, now);
        self.pay_for(seen(), now);
        if self.under_way.len() >= self.policy.budget.at_once() as usize {
            return Next::Wait(now + PATIENCE);
        }
        let free_at = self.budget.free_at().max(self.resume_at);
        if now < free_at {
            return Next::Wait(free_at);
        }
        while let Some(due) = self.queue.pop_front() {
            if self.is_due(due.slot, last_uses.usage(due.slot), second) {
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
        // Verifiers draw different moments, so that usually one of them writes and the others see it in time.
        let drawn = || self.order(slot, usage) as f64 / u64::MAX as f64;
        age >= DUE_AT_THE_LATEST || age >= DUE_AT_THE_EARLIEST + (DUE_AT_THE_LATEST - DUE_AT_THE_EARLIEST) * drawn()
    }

    /// Takes the outcome of a write.
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

    /// Forgets the writes that this verifier's own watch has shown.
    fn dismiss_arrived(&mut self, last_uses: &LastUses, now: Instant) {
        let has_ended = |under_way: &UnderWay| {
            let expected = under_way.expected;
            expected.is_some_and(|(second, until)| last_uses.usage(under_way.slot).written >= second || now >= until)
        };
        let (ended, under_way): (Vec<_>, _) = mem::take(&mut self.under_way).into_iter().partition(has_ended);
        self.under_way = under_way;
        for UnderWay { slot, since, .. } in ended {
            self.release(slot, since);
        }
    }

    /// Lets a survey queue a slot again.
    fn release(&mut self, slot: u32, since: Instant) {
        self.taken.remove(&slot);
        self.released.insert(slot, since);
    }

    /// Pays for the writes that the watch has shown since the last call.
    fn pay_for(&mut self, seen: SeenWrites, now: Instant) {
        self.budget.pay_for(seen.writes.saturating_sub(self.seen.writes), now);
        if seen.lists != self.seen.lists {
            self.budget.wait_for_window(now);
        }
        self.seen = seen;
    }

    /// A pseudo-random number per verifier and slot, which changes with each write.
    fn order(&self, slot: u32, usage: Usage) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.salt, slot, usage.written).hash(&mut hasher);
        hasher.finish()
    }
}

/// Keeps the `count` smallest of (written time, order, slot). True if nothing was dropped.
fn keep_oldest(due: &mut Vec<(u32, u64, u32)>, count: usize) -> bool {
    let are_all = due.len() <= count;
    if !are_all {
        due.select_nth_unstable(count);
        due.truncate(count);
    }
    are_all
}

/// Every record with an unwritten use, due or not, the oldest written time first.
pub fn unwritten(last_uses: &LastUses, keyring: &Keyring) -> Vec<(u32, RecordName)> {
    let mut found: Vec<_> = keyring.names_of(|slot| last_uses.usage(slot).is_unwritten()).collect();
    found.sort_by_key(|(slot, _)| last_uses.usage(*slot).written);
    found
}

#[cfg(test)]
mod tests;
