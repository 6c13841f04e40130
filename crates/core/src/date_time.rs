//! Times of ApiKeys: RFC 3339, as far as the API server stores it (`format: date-time`).

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};

/// Bytes of the longest text that is read. A time with all its digits has 35.
const LONGEST: usize = 64;

/// The time in `text`, rounded down to the second.
///
/// Leap seconds are refused, as by the API server. The last days of the year 9999, beyond any [`Timestamp`], all become
/// [`Timestamp::MAX`]: `9999-12-31T23:59:59Z` means "for ever".
pub fn parse(text: &str) -> Option<Timestamp> {
    let (date, rest) = text.split_at_checked(10).filter(|_| text.len() <= LONGEST)?;
    let (time, rest) = rest.strip_prefix(['T', 't'])?.split_at_checked(8)?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(time, ':', [2, 2, 2])?;
    let zone = match rest.strip_prefix('.') {
        Some(fraction) => {
            Some(fraction.trim_start_matches(|c: char| c.is_ascii_digit())).filter(|zone| *zone != fraction)?
        }
        None => rest,
    };
    let offset = match zone {
        "Z" | "z" => 0,
        _ => {
            let sign = if zone.starts_with('-') { -1 } else { 1 };
            let [hours, minutes] = numbers(zone.strip_prefix(['+', '-'])?, ':', [2, 2])?;
            sign * i64::from((hours <= 23 && minutes <= 59).then_some(hours * 3600 + minutes * 60)?)
        }
    };
    let small = |number: i32| i8::try_from(number).ok();
    let date = Date::new(i16::try_from(year).ok()?, small(month)?, small(day)?).ok()?;
    let local =
        DateTime::from_parts(date, jiff::civil::Time::new(small(hour)?, small(minute)?, small(second)?, 0).ok()?);
    let epoch = Date::constant(1970, 1, 1).to_datetime(jiff::civil::Time::midnight());
    let second = local.duration_since(epoch).as_secs().saturating_sub(offset);
    Timestamp::from_second(second.min(Timestamp::MAX.as_second())).ok()
}

/// The numbers in `text`, with exactly these widths and `separator` between them.
fn numbers<const N: usize>(text: &str, separator: char, widths: [usize; N]) -> Option<[i32; N]> {
    let mut numbers = [0; N];
    let mut parts = text.split(separator);
    for (number, width) in numbers.iter_mut().zip(widths) {
        let part = parts.next().filter(|part| part.len() == width && part.bytes().all(|byte| byte.is_ascii_digit()))?;
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

/// The time that a refused text probably means: a guess for a person. Without a zone, UTC.
pub fn nearest(text: &str) -> Option<String> {
    const FORMAT: &str = "%Y-%m-%dT%H:%M:%SZ";
    let text = text.trim_matches(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`'));
    if text.len() > LONGEST {
        return None;
    }
    let unix = || text.parse().ok().filter(|_| text.len() == 10).and_then(|second| Timestamp::from_second(second).ok());
    let guess = if parse(text).is_some() {
        text.to_owned()
    } else if let Some(instant) = text.parse::<Timestamp>().ok().or_else(unix) {
        instant.strftime(FORMAT).to_string()
    } else {
        text.parse::<DateTime>().ok()?.strftime(FORMAT).to_string()
    };
    parse(&guess).is_some().then_some(guess)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_case_has_its_verdict_and_its_instant() {
        let mut rows = 0;
        for row in include_str!("../../../tests/cases/date-times.tsv").lines().filter(|line| !line.starts_with("# ")) {
            let [text, verdict, expected, ..] = row.split('\t').collect::<Vec<_>>()[..] else {
                panic!("fewer than three columns: {row}")
            };
            let read = parse(text).map(|instant| instant.to_string());
            assert_eq!(read.is_some(), verdict == "accept", "{row}");
            let said = if verdict == "accept" { read } else { nearest(text) };
            assert_eq!(said.unwrap_or_default(), expected, "{row}");
            rows += 1;
        }
        assert_eq!(rows, 56);
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(second in -62_000_000_000i64..=253_000_000_000) {
            let instant = Timestamp::from_second(second).unwrap();
            prop_assert_eq!(parse(&instant.to_string()), Some(instant));
        }

        #[test]
        fn what_is_taken_is_what_jiff_reads(
            text in "[0-9]{4}-[01][0-9]-[0-3][0-9][Tt][0-2][0-9]:[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?(Z|z|[+-][012][0-9]:[0-5][0-9])",
        ) {
            if let (Some(ours), Ok(theirs)) = (parse(&text), text.parse::<Timestamp>()) {
                prop_assert!(theirs.duration_since(ours).as_secs() == 0, "{ours} {theirs}");
            }
        }

        #[test]
        fn any_text_gets_an_answer(text in ".*") {
            let _ = (parse(&text), nearest(&text));
        }
    }
}
