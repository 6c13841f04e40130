//! When a key is replaced by the next one because somebody asked for it, or because its time has come.

use jiff::{SignedDuration, Timestamp};

use super::observed::Observed;
use super::record::{Cause, Record};
use crate::declaration::{Declaration, Rotation};
use crate::key::Digest;

/// Older keys that are valid beside the current one after a rotation. Beyond it the oldest ends before its overlap does.
pub const MAX_OLDER_KEYS: usize = 2;

/// A replaced key is held for at most this many overlaps in all.
const LONGEST_HOLD: i32 = 4;

/// The longest time after which a use of an older key is worth a word.
const LONGEST_NOTICE: SignedDuration = SignedDuration::from_hours(1);

/// The longest spread of scheduled rotations.
const LONGEST_SPREAD: SignedDuration = SignedDuration::from_hours(1);

impl Observed {
    /// Whether a rotation was asked for since this key was issued.
    pub(super) fn asks_to_replace(&self, record: &Record) -> bool {
        self.rotate_request.as_ref().is_some_and(|request| !request.is(record.spec.rotate_request.as_deref()))
    }

    /// When the schedule replaces this key.
    pub(super) fn rotation_due_at(
        &self,
        declaration: &Declaration,
        record: &Record,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let every = declaration.rotation.every?;
        let due = record.created().checked_add(every).ok()?.checked_add(spread(&self.reference.uid, every)).ok()?;
        // Where this clock is ahead of the API server's by a whole period, every key would be overdue when it is issued.
        let recently = record.issued_at.filter(|issued_at| now.duration_since(*issued_at).abs() < every / 2);
        let earliest = recently.and_then(|issued_at| issued_at.checked_add(every / 2).ok());
        Some(earliest.map_or(due, |earliest| due.max(earliest)))
    }

    /// The older keys whose use is worth a word at `now`, each with the time at which it no longer is.
    pub(super) fn older_in_use(
        &self,
        declaration: &Declaration,
        current: &Record,
        now: Timestamp,
    ) -> Vec<(&Record, Timestamp)> {
        let notice = (declaration.rotation.overlap / 2).min(LONGEST_NOTICE);
        let in_use = self.older_than(Some(current)).filter_map(|record| {
            let (used, ends) = (record.last_used_at?, record.not_after()?);
            let (told_from, until) = (record.replaced_at?.checked_add(notice).ok()?, used.checked_add(notice).ok()?);
            (used >= told_from && now < until && now < ends).then_some((record, until))
        });
        in_use.collect()
    }

    /// Why this key is to be replaced, if it is.
    pub(super) fn cause_of_rotation(
        &self,
        declaration: &Declaration,
        record: &Record,
        now: Timestamp,
    ) -> Option<Cause> {
        if self.asks_to_replace(record) {
            return Some(Cause::RotationRequested);
        }
        self.rotation_due_at(declaration, record, now).filter(|due| now >= *due).map(|_| Cause::RotationScheduled)
    }
}

/// When a key that was replaced ends at the latest.
pub(super) fn latest_end(
    rotation: Rotation,
    replaced_at: Timestamp,
    held_until: Option<Timestamp>,
) -> Option<Timestamp> {
    let end = replaced_at.checked_add(rotation.overlap).ok()?;
    let held_until = held_until.filter(|_| rotation.hold_while_in_use).zip(longest_hold(rotation, replaced_at));
    Some(held_until.map_or(end, |(until, longest)| until.min(longest).max(end)))
}

fn longest_hold(rotation: Rotation, replaced_at: Timestamp) -> Option<Timestamp> {
    replaced_at.checked_add(rotation.overlap * LONGEST_HOLD).ok()
}

/// Until when a replaced key is held, because it was used in the last quarter of its time. Nothing brings back a key that
/// has ended.
pub(super) fn hold(declaration: &Declaration, record: &Record, now: Timestamp) -> Option<Timestamp> {
    let rotation = declaration.rotation;
    let (end, used) = (record.not_after().filter(|end| now < *end)?, record.last_used_at?);
    let quarter = SignedDuration::from_secs(rotation.overlap.as_secs() / 4);
    let is_used = used >= end.checked_sub(quarter).ok()?;
    let latest = [longest_hold(rotation, record.replaced_at?), declaration.expires_at].into_iter().flatten().min()?;
    let until = end.checked_add(quarter).ok()?.min(latest);
    (rotation.hold_while_in_use && declaration.lets_in_at(now) && is_used && until > end).then_some(until)
}

/// How much later than at the age of `every` the keys of this ApiKey are replaced: always the same, so that keys that were
/// issued together are not replaced together, and a restart changes nothing.
fn spread(uid: &str, every: SignedDuration) -> SignedDuration {
    let longest = (every / 10).min(LONGEST_SPREAD).as_secs();
    let [first, second, third, fourth, ..] = *Digest::of(uid.as_bytes()).as_bytes();
    let share = u32::from_be_bytes([first, second, third, fourth]);
    SignedDuration::from_secs(longest * i64::from(share) / (i64::from(u32::MAX) + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotations_are_spread_over_a_tenth_of_the_period_and_at_most_an_hour() {
        let hours = SignedDuration::from_hours;
        for (every, longest) in
            [(SignedDuration::from_mins(1), 6), (hours(2), 720), (hours(10), 3600), (hours(900), 3600)]
        {
            let spreads = (0..1000).map(|number| spread(&format!("uid-{number}"), every).as_secs());
            let mut tenths = [0; 10];
            for spread in spreads {
                assert!((0..longest).contains(&spread), "{every}: {spread}");
                tenths[(spread * 10 / longest) as usize] += 1;
            }
            if longest > 10 {
                assert!(tenths.iter().all(|number| (60..140).contains(number)), "{every}: {tenths:?}");
            }
        }
        assert_eq!(spread("uid-1", hours(900)), spread("uid-1", hours(900)), "a restart does not choose anew");
    }
}
