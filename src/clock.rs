//! The only place that reads the clocks that decisions depend on. Everything else takes the time as an argument.

use std::time::Duration;

use jiff::Timestamp;
use keywright_core::fence::Moment;
use rustix::time::{ClockId, clock_gettime};

/// The time of day, UTC.
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// The time since the boot, with the time that the machine was suspended: a Lease runs out meanwhile.
pub fn moment() -> Moment {
    let time = clock_gettime(ClockId::Boottime);
    // Neither is ever negative.
    let (seconds, nanoseconds) = (time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs());
    Moment::since_boot(Duration::new(seconds, nanoseconds.try_into().unwrap_or_default()))
}
