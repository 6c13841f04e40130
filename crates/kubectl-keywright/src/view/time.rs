//! Times for people: rounded down, and never in seconds.

use jiff::{Timestamp, Zoned};

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
/// Beyond this many days a date says more.
const MOST_DAYS: i64 = 365;

/// How much room there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// For sentences: `4 min`.
    Long,
    /// For tables: `4m`.
    Short,
}

/// How long ago `then` was: `just now`, `4 min ago`, `94 days ago`, `2 Nov 2025`.
pub fn ago(then: Timestamp, now: &Zoned, form: Form) -> String {
    match Span::of(then, now.timestamp()) {
        Span::Moment => "just now".to_owned(),
        Span::Long => date(then, now),
        span => format!("{} ago", span.text(form)),
    }
}

/// How old something is: `just now`, `4 min`, `94 days`, `2 Nov 2025`.
pub fn age(then: Timestamp, now: &Zoned, form: Form) -> String {
    match Span::of(then, now.timestamp()) {
        Span::Moment => "just now".to_owned(),
        Span::Long => date(then, now),
        span => span.text(form),
    }
}

/// When `then` will be: `in 87 days`, or `27 Feb 2029`.
pub fn until(then: Timestamp, now: &Zoned, form: Form) -> String {
    match (Span::of(now.timestamp(), then), form) {
        (Span::Moment, Form::Long) => "in under 1 min".to_owned(),
        (Span::Moment, Form::Short) => "in <1m".to_owned(),
        (Span::Long, _) => date(then, now),
        (span, form) => format!("in {}", span.text(form)),
    }
}

/// When a key was last used; `never` if it was not.
pub fn last_use(at: Option<Timestamp>, now: &Zoned, form: Form) -> String {
    at.map_or_else(|| "never".to_owned(), |at| ago(at, now, form))
}

/// When a key ends, or has ended; `Never` if it does not.
pub fn expiry(at: Option<Timestamp>, now: &Zoned, form: Form) -> String {
    match at {
        None => "Never".to_owned(),
        Some(at) if at <= now.timestamp() => ago(at, now, form),
        Some(at) => until(at, now, form),
    }
}

/// The day of `then` in the zone of `now`: `2 Nov 2025`.
pub fn date(then: Timestamp, now: &Zoned) -> String {
    in_zone(then, now).strftime("%-d %b %Y").to_string()
}

/// The time of `then` in the zone of `now`, with its day if that is another one: `15:02`, `27 Feb 2027, 14:05`.
pub fn clock(then: Timestamp, now: &Zoned) -> String {
    on_its_day(then, now, "%H:%M")
}

/// As [`clock`], to the second: for what a person waits for.
pub fn exact_clock(then: Timestamp, now: &Zoned) -> String {
    on_its_day(then, now, "%H:%M:%S")
}

/// `then` with nothing left out, in the zone of `now`: RFC 3339.
pub fn exact(then: Timestamp, now: &Zoned) -> String {
    in_zone(then, now).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

fn on_its_day(then: Timestamp, now: &Zoned, format: &str) -> String {
    let then = in_zone(then, now);
    let time = then.strftime(format);
    if then.date() == now.date() { time.to_string() } else { format!("{}, {time}", then.strftime("%-d %b %Y")) }
}

fn in_zone(then: Timestamp, now: &Zoned) -> Zoned {
    then.to_zoned(now.time_zone().clone())
}

/// The time between two moments, in the unit that people would use.
#[derive(Clone, Copy)]
enum Span {
    /// Less than a minute, or less than nothing: no two clocks agree.
    Moment,
    Minutes(i64),
    Hours(i64),
    Days(i64),
    /// So long that a date says more.
    Long,
}

impl Span {
    fn of(from: Timestamp, to: Timestamp) -> Self {
        match to.duration_since(from).as_secs() {
            ..MINUTE => Self::Moment,
            seconds @ ..HOUR => Self::Minutes(seconds / MINUTE),
            seconds @ ..DAY => Self::Hours(seconds / HOUR),
            seconds if seconds / DAY <= MOST_DAYS => Self::Days(seconds / DAY),
            _ => Self::Long,
        }
    }

    fn text(self, form: Form) -> String {
        let (number, long, short) = match self {
            Self::Moment | Self::Long => return String::new(),
            Self::Minutes(number) => (number, "min", "m"),
            Self::Hours(number) => (number, "h", "h"),
            Self::Days(1) => (1, "day", "d"),
            Self::Days(number) => (number, "days", "d"),
        };
        match form {
            Form::Long => format!("{number} {long}"),
            Form::Short => format!("{number}{short}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    fn now() -> Zoned {
        "2026-11-29T14:05:00+01:00[Europe/Berlin]".parse().unwrap()
    }

    #[test]
    fn the_past_is_rounded_down() {
        let (second, minute, hour, day) = (1, 60, 3600, 86_400);
        for (seconds, long, short, age_long) in [
            (-90, "just now", "just now", "just now"),
            (59 * second, "just now", "just now", "just now"),
            (minute, "1 min ago", "1m ago", "1 min"),
            (hour - 1, "59 min ago", "59m ago", "59 min"),
            (hour, "1 h ago", "1h ago", "1 h"),
            (day - 1, "23 h ago", "23h ago", "23 h"),
            (day, "1 day ago", "1d ago", "1 day"),
            (94 * day + hour, "94 days ago", "94d ago", "94 days"),
            (366 * day - 1, "365 days ago", "365d ago", "365 days"),
            (366 * day, "28 Nov 2025", "28 Nov 2025", "28 Nov 2025"),
        ] {
            let then = now().timestamp() - SignedDuration::from_secs(seconds);
            assert_eq!(ago(then, &now(), Form::Long), long);
            assert_eq!(ago(then, &now(), Form::Short), short);
            assert_eq!(age(then, &now(), Form::Long), age_long);
        }
    }

    #[test]
    fn an_end_is_ahead_or_past_or_never() {
        let (minute, day) = (60, 86_400);
        for (seconds, long, short) in [
            (30, "in under 1 min", "in <1m"),
            (90 * minute, "in 1 h", "in 1h"),
            (88 * day - 1, "in 87 days", "in 87d"),
            (400 * day, "3 Jan 2028", "3 Jan 2028"),
            (0, "just now", "just now"),
            (-2 * day, "2 days ago", "2d ago"),
        ] {
            let at = now().timestamp() + SignedDuration::from_secs(seconds);
            assert_eq!(expiry(Some(at), &now(), Form::Long), long);
            assert_eq!(expiry(Some(at), &now(), Form::Short), short);
        }
        assert_eq!(expiry(None, &now(), Form::Short), "Never");
        assert_eq!(last_use(None, &now(), Form::Long), "never");
    }

    #[test]
    fn clocks_are_the_reader_s() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert_eq!(clock(at("2026-11-29T14:02:10Z"), &now()), "15:02");
        assert_eq!(exact_clock(at("2026-11-29T14:02:10Z"), &now()), "15:02:10");
        assert_eq!(clock(at("2027-02-27T13:05:00Z"), &now()), "27 Feb 2027, 14:05");
        assert_eq!(exact(at("2027-02-27T13:05:00Z"), &now()), "2027-02-27T14:05:00+01:00");
        assert_eq!(date(at("2025-11-01T23:30:00Z"), &now()), "2 Nov 2025");
    }
}
