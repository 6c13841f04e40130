//! The only place that reads the time of day. Everything else takes the time as an argument.

use jiff::Timestamp;

/// The time of day, UTC.
pub fn now() -> Timestamp {
    Timestamp::now()
}
