//! The only place that reads the time of day, and the time since the boot. Everything else takes the time as an argument.

use jiff::Timestamp;
use keywright_core::fence::Moment;
use rustix::time::{ClockId, clock_gettime};

/// The time of day, UTC.
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// The time since the boot. It goes on while the machine is suspended, and nobody can set it (CLOCK_BOOTTIME).
pub fn since_boot() -> Moment {
    let time = clock_gettime(ClockId::Boottime);
    let (seconds, nanoseconds) = (time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0));
    Moment::since_boot(std::time::Duration::new(seconds, nanoseconds))
}
