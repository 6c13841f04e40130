//! Reads durations and times.

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::reader::{Reader, given, quotes_for};
use crate::address::as_written;
use crate::date_time;
use crate::duration::{self, InvalidDuration, hint};

const LIFE_RULE: &str = "must be Never or a duration such as 1d, 30d, 90d or 1d12h, from 1m to 3650d";

impl Reader {
    /// The duration in a field. `unit` is suggested for a number without one.
    pub(super) fn duration(
        &mut self,
        within: &Value,
        (path, name): (&str, &str),
        at_least: SignedDuration,
        unit: char,
    ) -> Option<SignedDuration> {
        let path = format!("{path}.{name}");
        let (text, duration) = self.written_duration(within, &path, name, unit)?;
        let rule = match duration {
            Ok(duration) if duration >= at_least => return Some(duration),
            Ok(_) => format!("must be at least {}, not \"{}\"", duration::Display(at_least), as_written(&text)),
            Err(_) if name == "every" && is_never(&text) => {
                format!("must be a duration, not \"{}\": leave the field out for no rotation", as_written(&text))
            }
            Err(InvalidDuration::Malformed { nearest }) => {
                let rule = InvalidDuration::Malformed { nearest: None };
                format!("{rule}, not \"{}\"{}", as_written(&text), hint(nearest.as_deref()))
            }
            Err(problem) => format!("{problem}, not \"{}\"", as_written(&text)),
        };
        self.refuse(path, rule);
        None
    }

    /// The text in a field, and its duration. A number without a unit is refused here.
    fn written_duration(
        &mut self,
        within: &Value,
        path: &str,
        name: &str,
        unit: char,
    ) -> Option<(String, Result<SignedDuration, InvalidDuration>)> {
        let text = match given(within, name)? {
            Value::String(text) => text.clone(),
            Value::Number(number) if number.is_u64() => number.to_string(),
            other => {
                self.refuse(path, format!("must be a string{}", quotes_for(other)));
                return None;
            }
        };
        match duration::parse(&text) {
            Err(InvalidDuration::NoUnit) => {
                let guess = format!("{text}{unit}");
                let good = duration::parse(&guess).is_ok();
                self.refuse(path, format!("needs a unit: d, h, m or s{}", hint(good.then_some(&*guess))));
                None
            }
            duration => Some((text, duration)),
        }
    }

    /// The duration in `expiresIn`, if it is not `Never`.
    fn life(&mut self, spec: &Value) -> Option<SignedDuration> {
        let (path, name) = ("spec.expiresIn", "expiresIn");
        let (text, duration) = self.written_duration(spec, path, name, 'd')?;
        let rule = match duration {
            Ok(life) if life >= duration::SHORTEST_LIFE => return Some(life),
            Err(_) if is_never(&text) => {
                format!("{LIFE_RULE}, not \"{}\"{}", as_written(&text), hint(Some("Never")))
            }
            Err(InvalidDuration::Malformed { nearest: Some(nearest) }) => {
                format!("{LIFE_RULE}, not \"{}\"{}", as_written(&text), hint(Some(&nearest)))
            }
            Err(_) if let Some(time) = date_time::nearest(&text) => {
                format!("is a time and not a duration: write expiresAt: \"{time}\"")
            }
            _ => format!("{LIFE_RULE}, not \"{}\"", as_written(&text)),
        };
        self.refuse(path, rule);
        None
    }

    fn instant(&mut self, spec: &Value) -> Option<Timestamp> {
        let text = match given(spec, "expiresAt")? {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => String::new(),
        };
        let rule = match date_time::parse(&text) {
            Some(instant) => return Some(instant),
            None if is_never(&text) => "must be a time: write expiresIn: Never".to_owned(),
            None => match (date_time::nearest(&text), duration::parse(&text)) {
                (Some(time), _) => format!("must be an RFC 3339 time: quote it; did you mean \"{time}\"?"),
                (None, Ok(_)) => format!("must be a time, and this is a duration: write expiresIn: {text}"),
                (None, Err(InvalidDuration::Malformed { nearest: Some(life) })) => {
                    format!("must be a time, and this looks like a duration: write expiresIn: {life}")
                }
                _ => "must be an RFC 3339 time such as 2027-01-31T00:00:00Z".to_owned(),
            },
        };
        self.refuse("spec.expiresAt", rule);
        None
    }

    /// When the keys expire. Rounded down to whole seconds: a key must not live a fraction of a second too long.
    pub(super) fn expiry(&mut self, spec: &Value, created: Timestamp) -> Option<Timestamp> {
        let at = self.instant(spec);
        let never = spec.get("expiresIn").and_then(Value::as_str) == Some("Never");
        let life = if never { None } else { self.life(spec) };
        if at.is_some() && (never || life.is_some()) {
            self.refuse("spec", "expiresIn and expiresAt exclude each other: keep one");
        }
        let instant = at.or_else(|| created.checked_add(life?).ok())?;
        Timestamp::from_second(instant.as_second()).ok()
    }
}

/// Whether a text is one of the words that people write for "never".
fn is_never(text: &str) -> bool {
    let word = text.trim().to_ascii_lowercase();
    ["never", "none", "no", "off", "forever", "infinite", "infinity", "unlimited"].contains(&&*word)
}
