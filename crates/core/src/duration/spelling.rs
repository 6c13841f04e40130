//! The nearest valid spelling of a refused duration: a guess for a person.
//!
//! It is lenient on purpose, and so stays apart from the parser. A guess decides nothing.

use jiff::SignedDuration;

/// Bytes of the longest text that is guessed at. Longer ones are not one mistyped duration.
const MAX_LENGTH: usize = 64;

const MINUTE: u32 = 60;
const HOUR: u32 = 60 * MINUTE;
const DAY: u32 = 24 * HOUR;

/// The duration that `text` probably means: other units, full words, capitals, spaces, fractions, ISO 8601.
pub(super) fn nearest(text: &str) -> Option<SignedDuration> {
    if text.len() > MAX_LENGTH {
        return None;
    }
    let text = text.trim_matches(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`'));
    let text = text.strip_prefix('+').unwrap_or(text);
    let seconds = match text.strip_prefix(['P', 'p']) {
        Some(iso) => {
            let (date, time) = iso.split_once(['T', 't']).unwrap_or((iso, ""));
            sum(date, |unit| if matches!(unit, "M" | "m") { Some(30 * DAY) } else { self::unit(unit) })?
                + sum(time, |word| unit(&word.to_ascii_lowercase()))?
        }
        None => sum(text, unit)?,
    };
    (seconds > 0.0).then(|| SignedDuration::from_secs(seconds.round() as i64))
}

/// The seconds of all numbers with their units.
fn sum(text: &str, unit: impl Fn(&str) -> Option<u32>) -> Option<f64> {
    let mut seconds = 0.0;
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len()));
        let tail = tail.trim_start();
        let (word, tail) = tail.split_at(tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len()));
        seconds += number.parse::<f64>().ok()? * f64::from(unit(word)?);
        rest = tail.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
    }
    Some(seconds)
}

/// The seconds of a unit. `M` alone may be minutes or months.
fn unit(word: &str) -> Option<u32> {
    if word == "M" {
        return None;
    }
    Some(match &*word.to_ascii_lowercase() {
        "s" | "sec" | "secs" | "second" | "seconds" => 1,
        "m" | "min" | "mins" | "minute" | "minutes" => MINUTE,
        "h" | "hr" | "hrs" | "hour" | "hours" => HOUR,
        "d" | "day" | "days" => DAY,
        "w" | "wk" | "wks" | "week" | "weeks" => 7 * DAY,
        "mo" | "month" | "months" => 30 * DAY,
        "y" | "yr" | "yrs" | "year" | "years" => 365 * DAY,
        _ => return None,
    })
}
