//! How late last uses in the API may be: as configured, or later if the budget requires it.

use std::array;
use std::time::{Duration, Instant};

/// The granularity is this much longer than the budget requires, because keys are written a little early.
const SLACK: f64 = 1.25;

/// Number of doublings: 40 doublings of a second are longer than any time.
const STEPS: usize = 40;

/// How many keys there are, by the time since their last use.
pub(super) struct Ages {
    least: f64,
    /// Upper bounds in seconds, doubling from `least` on, with the number of keys between the bound before and this one.
    counts: [(f64, u64); STEPS],
}

impl Ages {
    pub(super) fn new(least: Duration) -> Self {
        let least = least.as_secs_f64();
        Self { least, counts: array::from_fn(|step| (least * 2_f64.powi(step as i32), 0)) }
    }

    pub(super) fn add(&mut self, age: u32) {
        let age = f64::from(age);
        if let Some((_, count)) = self.counts.iter_mut().find(|(bound, _)| age < *bound) {
            *count += 1;
        }
    }

    /// The shortest granularity, or a little more, at which `rate` writes per second suffice for every key that was used
    /// within it.
    pub(super) fn needed(&self, rate: f64) -> Duration {
        let (mut younger, mut last) = (0, self.least);
        for (bound, count) in self.counts {
            younger += count;
            let needed = SLACK * younger as f64 / rate;
            if needed <= bound {
                return Duration::from_secs_f64(if bound > self.least { needed.max(bound / 2.0) } else { bound });
            }
            last = bound * 2.0;
        }
        Duration::from_secs_f64(last)
    }
}

/// The planned granularity. It rises at once. It falls only when every use that was noted under it is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Granularity {
    pub(super) in_force: Duration,
    until: Instant,
}

impl Granularity {
    pub(super) fn new(least: Duration, now: Instant) -> Self {
        Self { in_force: least, until: now + least }
    }

    pub(super) fn adjust(&mut self, needed: Duration, now: Instant) {
        if needed >= self.in_force || now >= self.until {
            *self = Self::new(needed, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needed(least: u64, rate: f64, keys: impl IntoIterator<Item = (usize, u32)>) -> f64 {
        let mut ages = Ages::new(Duration::from_secs(least));
        for (count, age) in keys {
            (0..count).for_each(|_| ages.add(age));
        }
        ages.needed(rate).as_secs_f64()
    }

    #[test]
    fn it_is_as_small_as_asked_for_where_the_budget_allows_that() {
        assert_eq!(needed(60, 20.0, []), 60.0);
        assert_eq!(needed(60, 20.0, [(960, 0)]), 60.0);
        assert_eq!(needed(60, 20.0, [(960, 59), (1000, 10_000_000)]), 60.0, "who rests needs nothing");
        assert_eq!(needed(1, 20.0, [(16, 0)]), 1.0);
    }

    #[test]
    fn it_grows_with_the_keys_in_use() {
        assert_eq!(needed(60, 20.0, [(1920, 0)]), 120.0);
        assert_eq!(needed(60, 20.0, [(5000, 0)]), 312.5);
        assert_eq!(needed(60, 20.0, [(1_000_000, 0)]), 62_500.0);
        assert_eq!(needed(60, 20.0, [(1_000, 0), (1_000, 100)]), 125.0, "125 s take in the older ones too");
        assert_eq!(needed(60, 20.0, [(1_000, 0), (1_000, 130)]), 62.5);
        assert_eq!(needed(60, 0.5, [(u16::MAX.into(), u32::MAX)]), 60.0);
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "an Instant has no other beginning")]
    fn it_falls_only_when_all_uses_under_it_are_written() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut granularity = Granularity::new(Duration::from_secs(60), start);
        let mut adjust = |needed, at| {
            granularity.adjust(Duration::from_secs(needed), after(at));
            granularity.in_force.as_secs()
        };
        assert_eq!([adjust(300, 1), adjust(60, 2), adjust(60, 300), adjust(60, 301)], [300, 300, 300, 60]);
        assert_eq!([adjust(300, 400), adjust(300, 500), adjust(60, 799), adjust(60, 800)], [300, 300, 300, 60]);
    }
}
