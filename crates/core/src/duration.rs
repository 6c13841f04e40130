//! Durations of ApiKeys and flags: `90d`, `1d12h`, `10m`, `30s`.

mod spelling;

use std::fmt;

use jiff::SignedDuration;
use thiserror::Error;

/// The longest valid duration, 3650 days.
pub const LONGEST: SignedDuration = SignedDuration::from_hours(3650 * 24);

/// The shortest life of a key, and the shortest period of rotation: one minute.
pub const SHORTEST_LIFE: SignedDuration = SignedDuration::from_mins(1);

/// Why a text is not a duration.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum InvalidDuration {
    /// The text is not a sequence of numbers, each with a unit.
    #[error("must be numbers with the units d, h, m or s, such as 90d, 1d12h or 10m{}", hint(nearest.as_deref()))]
    Malformed {
        /// A valid duration that was probably meant.
        nearest: Option<String>,
    },
    /// The text is a number without a unit.
    #[error("must be numbers with the units d, h, m or s, such as 90d, 1d12h or 10m")]
    NoUnit,
    /// The duration is longer than [`LONGEST`].
    #[error("must be at most 3650d")]
    TooLong,
}

/// Reads `([0-9]+(d|h|m|s))+`, in any order of units, as the sum of its parts.
pub fn parse(text: &str) -> Result<SignedDuration, InvalidDuration> {
    let malformed = || {
        let nearest = spelling::nearest(text).filter(|nearest| *nearest <= LONGEST);
        InvalidDuration::Malformed { nearest: nearest.map(|nearest| Display(nearest).to_string()) }
    };
    if text.is_empty() {
        return Err(malformed());
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(InvalidDuration::NoUnit);
    }
    let mut seconds: i64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(malformed)?;
        let (digits, tail) = rest.split_at(end);
        let unit = match tail.as_bytes().first() {
            Some(b'd') => 86_400,
            Some(b'h') => 3_600,
            Some(b'm') => 60,
            Some(b's') => 1,
            _ => return Err(malformed()),
        };
        if digits.is_empty() {
            return Err(malformed());
        }
        let part = digits.parse::<i64>().ok().and_then(|number| number.checked_mul(unit));
        seconds = part.and_then(|part| seconds.checked_add(part)).ok_or(InvalidDuration::TooLong)?;
        rest = tail.split_at(1).1;
    }
    let duration = SignedDuration::from_secs(seconds);
    if duration > LONGEST { Err(InvalidDuration::TooLong) } else { Ok(duration) }
}

/// The end of a message about a refused text: the nearest valid spelling, if there is one.
pub fn hint(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |nearest| format!("; did you mean \"{nearest}\"?"))
}

/// Prints a duration as [`parse`] reads it, in the largest units that fit: 36 hours are `1d12h`.
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
    fn refuses_everything_else_and_says_what_was_meant() {
        for (text, nearest) in [
            ("", None),
            ("Never", None),
            ("d", None),
            ("-1d", None),
            ("1é", None),
            ("1x", None),
            ("30M", None),
            ("500ms", None),
            ("1d2", None),
            ("P", None),
            ("0w", None),
            ("11y", None),
            ("1.2.3h", None),
            ("1w", Some("7d")),
            ("2w", Some("14d")),
            ("1y", Some("365d")),
            ("3 months", Some("90d")),
            ("30 days", Some("30d")),
            ("30 Days", Some("30d")),
            ("30D", Some("30d")),
            ("90D", Some("90d")),
            (" 30d ", Some("30d")),
            ("\"30d\"", Some("30d")),
            ("1d ", Some("1d")),
            ("1d 12h", Some("1d12h")),
            ("1 week, 2 days", Some("9d")),
            ("1.5h", Some("1h30m")),
            ("+30d", Some("30d")),
            ("5minutes", Some("5m")),
            ("24hrs", Some("1d")),
            ("P30D", Some("30d")),
            ("P1M", Some("30d")),
            ("PT1M", Some("1m")),
            ("P1DT12H", Some("1d12h")),
            ("p1y", Some("365d")),
        ] {
            let nearest = nearest.map(str::to_owned);
            assert_eq!(parse(text), Err(InvalidDuration::Malformed { nearest }), "{text}");
        }
        for text in ["0", "10", "030", "99999999999999999999"] {
            assert_eq!(parse(text), Err(InvalidDuration::NoUnit), "{text}");
        }
        for text in ["3651d", "99999999999999999999s", "9223372036854775807d"] {
            assert_eq!(parse(text), Err(InvalidDuration::TooLong), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(seconds in 0i64..=3650 * 86_400) {
            let duration = SignedDuration::from_secs(seconds);
            prop_assert_eq!(parse(&Display(duration).to_string()), Ok(duration));
        }

        #[test]
        fn any_text_gets_an_answer_and_a_hint_is_good(text in "[Pp]?([0-9.]{0,9} ?[A-Za-z]{0,7} ?){0,4}|.*") {
            if let Err(InvalidDuration::Malformed { nearest: Some(nearest) }) = parse(&text) {
                parse(&nearest).unwrap();
            }
        }
    }
}
