//! How often all verifiers together may write, and how each keeps to that without knowing the others.
//!
//! Every write is an event of the watch that every verifier follows. So each counts them all, its own and the others',
//! and none writes before they have been paid for: each puts the next one off by the time that the budget has for one.
//! The watch may be late, though. Therefore no verifier has more than a few writes under way, and one is under way until
//! this verifier has seen it *in its own watch*. Events come in one order for all, so whoever has seen its own write has
//! seen every one before it: a verifier can be ignorant of no more than its own last few, however late its watch is.
//!
//! From this follows what [`Pace`] promises. Take the writes of N verifiers within any `WINDOW`, in the watch's order, and
//! of each verifier the last [`Budget::at_once`] of them: at most N * `at_once`. Of the others take the newest. Its author
//! has seen it when it began its last one, still within the window, and so has seen, and paid for, all the older ones:
//! at most `rate * (WINDOW + CREDIT)`. No clock is compared with another's, and no delay matters.

use std::time::{Duration, Instant};

/// The time over which the budget is kept. Whoever has just begun to follow the watch does not know what came before,
/// and waits for so long.
pub(super) const WINDOW: Duration = Duration::from_secs(10);

/// With so many verifiers the budget is kept over each window; each one more takes a little longer to even out.
const VERIFIERS: f64 = 8.0;

/// What all verifiers together may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Writes in a second; 0: nothing is ever written.
    pub writes_per_second: u32,
}

impl Budget {
    /// Writes that one verifier may have under way: enough of them that waiting for the watch costs no speed.
    pub(super) fn at_once(self) -> u32 {
        self.writes_per_second.div_ceil(25).max(2)
    }

    /// Writes in a second that are paid for: the budget, less what verifiers may write in ignorance and the credit.
    pub(super) fn rate(self) -> f64 {
        let budget = f64::from(self.writes_per_second);
        let reserve = f64::from(self.at_once()) * (VERIFIERS + 1.0) / WINDOW.as_secs_f64();
        (budget - reserve).max(budget / 2.0)
    }
}

/// One verifier's account of what all have written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    interval: Duration,
    /// So much that was not used in time may be used later, or every moment between two writes would be lost.
    credit: Duration,
    free_at: Instant,
}

impl Pace {
    /// `budget` is not 0.
    pub(super) fn new(budget: Budget, now: Instant) -> Self {
        let interval = Duration::try_from_secs_f64(1.0 / budget.rate()).unwrap_or(WINDOW);
        Self { interval, credit: interval * budget.at_once(), free_at: now + WINDOW }
    }

    /// From when on the next write is paid for.
    pub(super) fn free_at(&self) -> Instant {
        self.free_at
    }

    /// Pays for writes that the watch has told of. A debt beyond the window is forgotten: the window is over by then.
    pub(super) fn pay_for(&mut self, writes: u64, now: Instant) {
        let time = self.interval.saturating_mul(u32::try_from(writes).unwrap_or(u32::MAX)).min(WINDOW * 2);
        let earliest = now.checked_sub(self.credit).unwrap_or(now);
        if writes > 0 {
            self.free_at = (self.free_at.max(earliest) + time).min(now + WINDOW);
        }
    }

    /// Waits for as long as anything may have been written that was not told of.
    pub(super) fn wait_for_window(&mut self, now: Instant) {
        self.free_at = now + WINDOW;
    }
}
