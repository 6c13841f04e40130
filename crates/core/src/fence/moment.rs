//! A reading of a clock that never jumps.

use std::ops::Add;
use std::time::Duration;

/// A moment of one machine: the time since it booted, with the time that it was suspended (CLOCK_BOOTTIME). Moments of
/// different machines are never compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(Duration);

impl Moment {
    /// The moment this long after the boot.
    pub const fn since_boot(time: Duration) -> Self {
        Self(time)
    }

    /// The time since the boot.
    pub const fn time(self) -> Duration {
        self.0
    }

    /// How long ago `earlier` was. Zero if it is in the future.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

#[cfg(test)]
impl Moment {
    /// Itself, for a clock that stands still while this time passes.
    pub(super) fn aged(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(by))
    }

    /// Itself, or the boot if it is not after `now`.
    pub(super) fn or_long_ago(self, now: Self) -> Self {
        if self > now { self } else { Self::default() }
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }
}
