//! The one place where the time of day is read. Everything else takes it as an argument.

use jiff::Timestamp;

/// The time of day, UTC.
pub fn now() -> Timestamp {
    Timestamp::now()
}
