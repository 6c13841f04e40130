//! `describe`: all about one key.

use futures::future;
use jiff::{Timestamp, Zoned};
use k8s_openapi::api::coordination::v1::Lease;
use keywright_core::api::{ApiKey, ConditionStatus, Retiring};
use keywright_core::fence::{APPLIED_ANNOTATION, STATE_ANNOTATION, Stored};
use kube::api::ListParams;

use crate::args::Describe;
use crate::events::{self, Happening};
use crate::failure::{ApiError, Failure};
use crate::output::{coloured, document_of};
use crate::session::Session;
use crate::view::escape::escape;
use crate::view::hint::Hint;
use crate::view::rotation::schedule;
use crate::view::row::Row;
use crate::view::state::{State, Tone, ends_at, last_used_at};
use crate::view::time::{self, Form};

/// Columns of the longest label.
const LABEL_WIDTH: usize = 9;
/// Events that are shown.
const MOST_EVENTS: usize = 10;

/// A label, and what there is to say; made safe for a terminal when it is printed.
struct Line {
    label: &'static str,
    text: String,
    tone: Option<Tone>,
}

/// Describes a key.
pub async fn run(session: &Session, asked: &Describe) -> Result<(), Failure> {
    let key = session.apikey(&asked.name).await?;
    if let Some(document) = asked.output.document(&document_of(&key))? {
        return session.terminal.print(&document);
    }
    let uid = key.metadata.uid.as_deref().unwrap_or_default();
    let events = events::about(&session.cluster, &session.cluster.namespace, uid);
    let (events, leases) = session.patiently(future::join(events, leases(session, &asked.system_namespace))).await;
    let now = session.cluster.now();
    let mut lines = about(&key, session, &now);
    lines.push(match leases {
        Ok(leases) => Line::new("Verifiers", verifiers(&leases)),
        Err(error) => Line::new("Verifiers", not_shown(&error, "leases", &asked.system_namespace)),
    });
    lines.extend(conditions(&key));
    match events {
        Ok(events) => lines.extend(told(&events, &now)),
        Err(error) => lines.push(Line::new("Events", not_shown(&error, "events", &session.cluster.namespace))),
    }
    let text: String = lines.iter().map(Line::printed).collect();
    session.terminal.print(&text)
}

impl Line {
    fn new(label: &'static str, text: impl Into<String>) -> Self {
        Self { label, text: text.into(), tone: None }
    }

    fn printed(&self) -> String {
        let Self { label, text, tone } = self;
        format!("{label:LABEL_WIDTH$} {}\n", coloured(&escape(text), *tone))
    }
}

/// What the object itself says.
fn about(key: &ApiKey, session: &Session, now: &Zoned) -> Vec<Line> {
    let row = Row::of(key, now);
    let (cluster, namespace) = (&session.cluster.name, &row.namespace);
    let mut lines = vec![Line::new("Name", format!("{} in {namespace} on {cluster}", row.name))];
    lines.extend(row.display_name.iter().map(|name| Line::new("Called", name)));
    for (index, line) in row.description.iter().flat_map(|text| text.lines()).enumerate() {
        lines.push(Line::new(if index == 0 { "For" } else { "" }, line));
    }
    lines.extend(row.owner.iter().map(|owner| Line::new("Owner", owner)));
    lines.push(Line { tone: Some(row.state.tone), ..Line::new("Status", status(&row.state)) });
    lines.push(Line::new("In force", in_force(key)));
    lines.push(Line::new("Key", current(key, now)));
    lines.push(Line::new("Used", used(key, now)));
    lines.push(Line::new("Expires", expires(key, now)));
    let from = if row.allowed_ips.is_empty() { "any address".to_owned() } else { row.allowed_ips.join(", ") };
    lines.push(Line::new("From", from));
    if !key.spec.scopes.is_empty() {
        lines.push(Line::new("Scopes", key.spec.scopes.join(", ")));
    }
    lines.extend(row.secret.iter().map(|secret| Line::new("Secret", secret)));
    lines.extend(schedule(key, now).map(|text| Line::new("Rotation", text)));
    let retiring = key.status.iter().flat_map(|status| &status.retiring);
    lines.extend(retiring.map(|old| Line::new("Old key", older(old, now))));
    lines.extend(row.hints.iter().map(|hint| hinted(*hint)));
    lines
}

fn status(state: &State) -> String {
    let mut sentence = state.sentence.chars();
    let first = sentence.next().map(|first| first.to_lowercase().to_string()).unwrap_or_default();
    format!("{}: {first}{}", state.word, sentence.as_str().trim_end_matches('.'))
}

fn in_force(key: &ApiKey) -> String {
    let newest = key.metadata.generation.unwrap_or_default();
    match key.status.as_ref().and_then(|status| status.enforced_generation) {
        Some(enforced) if enforced >= newest => format!("every verifier enforces generation {newest}"),
        Some(enforced) => {
            format!("not yet everywhere: every verifier enforces generation {enforced}, and the newest is {newest}")
        }
        None => format!("not known: no generation up to {newest} has been acknowledged"),
    }
}

fn current(key: &ApiKey, now: &Zoned) -> String {
    let Some(status) = &key.status else { return "none yet".to_owned() };
    let Some(shown) = &status.key_prefix else { return "none yet".to_owned() };
    let serial = status.serial.map_or_else(String::new, |serial| format!(", no. {serial}"));
    let issued = status.issued_at.as_ref().map(|at| format!(", issued {}", moment(at.0, now)));
    format!("{shown}{serial}{}", issued.unwrap_or_default())
}

fn used(key: &ApiKey, now: &Zoned) -> String {
    last_used_at(key).map_or_else(|| "never".to_owned(), |at| moment(at, now))
}

fn expires(key: &ApiKey, now: &Zoned) -> String {
    match ends_at(key) {
        None => "Never".to_owned(),
        Some(end) => format!("{} ({})", time::expiry(Some(end), now, Form::Long), time::exact(end, now)),
    }
}

fn older(old: &Retiring, now: &Zoned) -> String {
    let shown = old.key_prefix.as_deref().unwrap_or("of another maker");
    let end = time::until(old.retires_at.0, now, Form::Long);
    let used = match &old.last_used_at {
        Some(at) => format!("used {}", time::ago(at.0, now, Form::Long)),
        None => "not used".to_owned(),
    };
    format!("{shown}, no. {}, ends {end}: {used}", old.serial)
}

fn hinted(hint: Hint) -> Line {
    Line { tone: Some(Tone::Warn), ..Line::new("Look at", format!("{}. {}", hint.word(), hint.why())) }
}

fn moment(at: Timestamp, now: &Zoned) -> String {
    format!("{} ({})", time::ago(at, now, Form::Long), time::exact(at, now))
}

fn conditions(key: &ApiKey) -> Vec<Line> {
    let conditions = key.status.iter().flat_map(|status| &status.conditions);
    let lines = conditions.enumerate().map(|(index, condition)| {
        let word = match condition.status {
            ConditionStatus::True => "is true",
            ConditionStatus::False => "is false",
            ConditionStatus::Unknown => "is unknown",
        };
        let type_ = serde_json::to_value(&condition.type_).ok();
        let type_ = type_.as_ref().and_then(|value| value.as_str()).unwrap_or_default().to_owned();
        let label = if index == 0 { "Says" } else { "" };
        Line::new(label, format!("{type_} {word}, {}: {}", condition.reason, condition.message))
    });
    lines.collect()
}

/// The newest ones, oldest first.
fn told(events: &[Happening], now: &Zoned) -> Vec<Line> {
    if events.is_empty() {
        return vec![Line::new("Events", "none")];
    }
    let oldest_first = events.iter().take(MOST_EVENTS).rev().enumerate();
    let lines = oldest_first.map(|(index, Happening { at, reason, note, .. })| {
        let at = at.map(|at| format!("{}, ", time::ago(at, now, Form::Long))).unwrap_or_default();
        Line::new(if index == 0 { "Events" } else { "" }, format!("{at}{reason}: {note}"))
    });
    lines.collect()
}

async fn leases(session: &Session, system_namespace: &str) -> Result<Vec<Lease>, ApiError> {
    let leases: Vec<Lease> = session.cluster.list(Some(system_namespace), &ListParams::default()).await?;
    Ok(leases.into_iter().filter(Stored::is_of_verifier).collect())
}

fn verifiers(leases: &[Lease]) -> String {
    let annotation = |lease: &Lease, name: &str| lease.metadata.annotations.as_ref()?.get(name).cloned();
    let lines = leases.iter().map(|lease| {
        let name = lease.metadata.name.as_deref().unwrap_or_default();
        let state = annotation(lease, STATE_ANNOTATION).unwrap_or_default();
        match annotation(lease, APPLIED_ANNOTATION) {
            Some(version) => format!("{name} is {state}, with all records up to version {version}"),
            None => format!("{name} is {state}"),
        }
    });
    let lines: Vec<_> = lines.collect();
    if lines.is_empty() { "none runs".to_owned() } else { lines.join("; ") }
}

fn not_shown(error: &ApiError, resource: &str, namespace: &str) -> String {
    format!("not shown: {}", error.why_hidden(resource, namespace))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::view::fixtures::{apikey, now};

    #[test]
    fn a_status_is_a_word_and_what_it_means() {
        let state = State::of(&apikey(&json!({})), &now());
        assert_eq!(status(&state), "Active: callers are let in");
    }

    #[test]
    fn who_enforces_what_is_told_as_far_as_it_is_known() {
        for (enforced, said) in [
            (json!(7), "every verifier enforces generation 7"),
            (json!(6), "not yet everywhere: every verifier enforces generation 6, and the newest is 7"),
            (json!(null), "not known: no generation up to 7 has been acknowledged"),
        ] {
            let key = apikey(&json!({"generation": 7, "status": {"enforcedGeneration": enforced}}));
            assert_eq!(in_force(&key), said);
        }
    }

    #[test]
    fn an_old_key_is_shown_with_its_end_and_its_last_use() {
        let retiring = json!([{"keyPrefix": "keyw1_Aa00bB11", "serial": 2, "retiresAt": "2026-11-30T10:05:00Z", "lastUsedAt": "2026-11-29T13:01:00Z"}]);
        let key = apikey(&json!({"status": {"retiring": retiring}}));
        let old = &key.status.as_ref().unwrap().retiring[0];
        assert_eq!(older(old, &now()), "keyw1_Aa00bB11, no. 2, ends in 21 h: used 4 min ago");
    }

    #[test]
    fn a_hostile_text_stays_in_its_line() {
        let line = Line::new("For", "a\u{1b}[2J\u{202e}\nName  other");
        assert_eq!(line.printed(), "For       a\\u{1b}[2J\\u{202e}\\nName  other\n");
    }
}
