//! PURE. Durations as ApiKeys and flags write them: `90d`, `1d12h`, `10m`, `30s`.

use std::fmt;

use jiff::SignedDuration;
use thiserror::Error;

/// The longest duration that is taken, 3650 days.
pub const LONGEST: SignedDuration = SignedDuration::from_hours(3650 * 24);

/// The shortest life of a key, and the shortest period of rotation: one minute.
pub const SHORTEST_LIFE: SignedDuration = SignedDuration::from_mins(1);

/// What is wrong with a text that should have been a duration.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum InvalidDuration {
    /// Something else than numbers, each with a unit.
    #[error("must be numbers with the units d, h, m or s, such as 90d, 1d12h or 10m")]
    Malformed,
    /// Longer than [`LONGEST`].
    #[error("must be at most 3650d")]
    TooLong,
}

/// Reads `([0-9]+(d|h|m|s))+`, in any order of units, as the sum of its parts.
pub fn parse(text: &str) -> Result<SignedDuration, InvalidDuration> {
    let mut seconds: i64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).ok_or(InvalidDuration::Malformed)?;
        let (digits, tail) = rest.split_at(end);
        let unit = match tail.as_bytes().first() {
            Some(b'd') => 86_400,
            Some(b'h') => 3_600,
            Some(b'm') => 60,
            Some(b's') => 1,
            _ => return Err(InvalidDuration::Malformed),
        };
        if digits.is_empty() {
            return Err(InvalidDuration::Malformed);
        }
        let part = digits.parse::<i64>().ok().and_then(|number| number.checked_mul(unit));
        seconds = part.and_then(|part| seconds.checked_add(part)).ok_or(InvalidDuration::TooLong)?;
        rest = tail.split_at(1).1;
    }
    match SignedDuration::from_secs(seconds) {
        _ if text.is_empty() => Err(InvalidDuration::Malformed),
        duration if duration > LONGEST => Err(InvalidDuration::TooLong),
        duration => Ok(duration),
    }
}

/// A duration as [`parse`] reads it, in the largest units that fit: `36h` is shown as `1d12h`.
pub struct Display(pub SignedDuration);

impl fmt::Display for Display {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut seconds = self.0.as_secs().max(0);
        if seconds == 0 {
            return f.write_str("0s");
        }
        for (unit, length) in [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)] {
            if seconds >= length {
                write!(f, "{}{unit}", seconds / length)?;
                seconds %= length;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_the_contract_shows() {
        for (text, seconds) in [
            ("1d", 86_400),
            ("90d", 7_776_000),
            ("1d12h", 129_600),
            ("12h1d", 129_600),
            ("10m", 600),
            ("0s", 0),
            ("1m1m", 120),
        ] {
            assert_eq!(parse(text), Ok(SignedDuration::from_secs(seconds)), "{text}");
        }
    }

    #[test]
    fn refuses_everything_else() {
        use InvalidDuration::{Malformed, TooLong};
        for (text, problem) in [
            ("", Malformed),
            ("Never", Malformed),
            ("10", Malformed),
            ("d", Malformed),
            ("1w", Malformed),
            ("-1d", Malformed),
            ("1d ", Malformed),
            ("1.5h", Malformed),
            ("1é", Malformed),
            ("3651d", TooLong),
            ("99999999999999999999s", TooLong),
            ("9223372036854775807d", TooLong),
        ] {
            assert_eq!(parse(text), Err(problem), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(seconds in 0i64..=3650 * 86_400) {
            let duration = SignedDuration::from_secs(seconds);
            prop_assert_eq!(parse(&Display(duration).to_string()), Ok(duration));
        }

        #[test]
        fn any_text_gets_an_answer(text in ".*") {
            let _ = parse(&text);
        }
    }
}
