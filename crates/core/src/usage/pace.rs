//! How often all verifiers together may write, and how each keeps to that without knowing the others.
//!
//! Every write is an event of the watch that every verifier follows. So each verifier counts all writes, its own and the
//! others', and pays for them: each write puts the next one off by the time that the budget has for one. The watch may be
//! late, though. So a verifier has only a few writes under way, and a write is under way until this verifier has seen it
//! *in its own watch*. All watches have the same order. A verifier that has seen its own write has seen every write before
//! it, and can miss no more than its own last few, however late its watch is.
//!
//! This is what [`WriteBudget`] guarantees. Take the writes of N verifiers within any `WINDOW`, in the watch's order. The
//! last [`Budget::at_once`] writes of each verifier are at most N * `at_once`. Take the newest of the others. Its author
//! had seen it when it began its last write, still within the window. So it had seen, and paid for, all older ones: at
//! most `rate * (WINDOW + CREDIT)`. No two clocks are compared, and no delay matters.

use std::time::{Duration, Instant};

/// The time over which the budget is kept. A verifier that begins to watch does not know earlier writes, and waits this
/// long.
pub(super) const WINDOW: Duration = Duration::from_secs(10);

/// Up to this number of verifiers, the budget is kept over each window. With more, it is kept over a longer time.
const VERIFIERS: f64 = 8.0;

/// The writes of all verifiers together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Writes per second. 0: last uses are never written.
    pub writes_per_second: u32,
}

impl Budget {
    /// Writes that one verifier may have under way: enough that waiting for the watch costs no speed.
    pub(super) fn at_once(self) -> u32 {
        self.writes_per_second.div_ceil(25).max(2)
    }

    /// Writes per second that are paid for: the budget, without the credit and what verifiers may write unseen.
    pub(super) fn rate(self) -> f64 {
        let budget = f64::from(self.writes_per_second);
        let reserve = f64::from(self.at_once()) * (VERIFIERS + 1.0) / WINDOW.as_secs_f64();
        (budget - reserve).max(budget / 2.0)
    }
}

/// One verifier's count of the writes of all, against the budget.
#[derive(Clone, Copy, Debug)]
pub(super) struct WriteBudget {
    interval: Duration,
    /// Unused time up to this much may be used later. Otherwise every pause between two writes would be lost.
    credit: Duration,
    free_at: Instant,
}

impl WriteBudget {
    /// A full window to wait. `budget` must not be 0.
    pub(super) fn new(budget: Budget, now: Instant) -> Self {
        let interval = Duration::try_from_secs_f64(1.0 / budget.rate()).unwrap_or(WINDOW);
        Self { interval, credit: interval * budget.at_once(), free_at: now + WINDOW }
    }

    /// When the next write is allowed.
    pub(super) fn free_at(&self) -> Instant {
        self.free_at
    }

    /// Pays for writes that the watch has shown. A debt beyond the window is dropped: the window is over by then.
    pub(super) fn pay_for(&mut self, writes: u64, now: Instant) {
        let time = self.interval.saturating_mul(u32::try_from(writes).unwrap_or(u32::MAX)).min(WINDOW * 2);
        let earliest = now.checked_sub(self.credit).unwrap_or(now);
        if writes > 0 {
            self.free_at = (self.free_at.max(earliest) + time).min(now + WINDOW);
        }
    }

    /// Waits a whole window, because there may have been writes that the watch did not show.
    pub(super) fn wait_for_window(&mut self, now: Instant) {
        self.free_at = now + WINDOW;
    }
}
