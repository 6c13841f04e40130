//! In what state a key is, in a word and a sentence.

use jiff::{Timestamp, Zoned};
use keywright_core::api::{ApiKey, Condition, ConditionStatus, ConditionType, Reason};
use keywright_core::date_time;
use keywright_core::lifecycle::awaited_in;
use serde::Serialize;

use super::time;

/// How long a key may be on its way before its message is worth reading, in seconds.
const PATIENCE: i64 = 30;

/// In what state a key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// One word, as the column STATUS has it.
    pub word: String,
    /// How good that is.
    pub tone: Tone,
    /// What it means, and what to do.
    pub sentence: String,
    /// Whether every verifier enforces what is declared, as far as is known.
    pub everywhere: bool,
}

/// How good a state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tone {
    /// Callers are let in.
    Good,
    /// Nothing is to be done.
    Quiet,
    /// It will pass.
    Info,
    /// Somebody should look.
    Warn,
    /// Only a person can help.
    Bad,
}

impl State {
    /// The state of `key`. An expiry goes by the clock: no controller needs to have written it.
    pub fn of(key: &ApiKey, now: &Zoned) -> Self {
        let active = condition(key, &ConditionType::Active);
        let (tone, sentence) = match active.map(|active| &active.reason) {
            _ if is_going(key) => (Tone::Info, revoking(active, now)),
            Some(Reason::Active | Reason::Rotating) if has_expired(key, now) => (Tone::Quiet, expired(key, now)),
            Some(reason) => described(key, reason, active.map_or("", |active| &active.message), now),
            None => (Tone::Quiet, "Not looked at yet.".to_owned()),
        };
        Self { word: word(key, now), tone, sentence, everywhere: is_enforced_everywhere(key) }
    }

    /// The word, and whether that is not yet so everywhere.
    pub fn label(&self) -> String {
        if self.everywhere { self.word.clone() } else { format!("{}, not yet everywhere", self.word) }
    }
}

/// Whether callers with the key are let in.
pub fn is_let_in(key: &ApiKey, now: &Zoned) -> bool {
    let reason = condition(key, &ConditionType::Active).map(|active| &active.reason);
    matches!(reason, Some(Reason::Active | Reason::Rotating)) && !is_going(key) && !has_expired(key, now)
}

/// A condition of `key`.
pub fn condition<'k>(key: &'k ApiKey, type_: &ConditionType) -> Option<&'k Condition> {
    key.status.as_ref()?.conditions.iter().find(|condition| condition.type_ == *type_)
}

/// Whether a condition of `key` is true.
pub fn is_true(key: &ApiKey, type_: &ConditionType) -> bool {
    condition(key, type_).is_some_and(|condition| condition.status == ConditionStatus::True)
}

/// Whether `key` is being deleted.
pub fn is_going(key: &ApiKey) -> bool {
    key.metadata.deletion_timestamp.is_some()
}

/// When the keys of `key` end, as the controller has told the verifiers.
pub fn ends_at(key: &ApiKey) -> Option<Timestamp> {
    Some(key.status.as_ref()?.expires_at.as_ref()?.0)
}

/// When a verifier last allowed any key of `key`.
pub fn last_used_at(key: &ApiKey) -> Option<Timestamp> {
    Some(key.status.as_ref()?.last_used_at.as_ref()?.0)
}

/// Whether the end of `key` has come.
pub fn has_expired(key: &ApiKey, now: &Zoned) -> bool {
    ends_at(key).is_some_and(|end| now.timestamp() >= end)
}

fn word(key: &ApiKey, now: &Zoned) -> String {
    let active = condition(key, &ConditionType::Active);
    match active.map(|active| &active.reason) {
        _ if is_going(key) => Reason::Revoking.to_string(),
        Some(Reason::Active | Reason::Rotating) if has_expired(key, now) => Reason::Expired.to_string(),
        Some(reason) => reason.to_string(),
        None => "New".to_owned(),
    }
}

/// Only of a state that is in force: before that, and while a key is revoked, nobody claims that it is.
fn is_enforced_everywhere(key: &ApiKey) -> bool {
    let is_in_force = is_true(key, &ConditionType::Ready) && !is_going(key);
    let enforced = key.status.as_ref().and_then(|status| status.enforced_generation);
    !is_in_force || enforced.is_some_and(|enforced| key.metadata.generation.is_none_or(|newest| enforced >= newest))
}

fn described(key: &ApiKey, reason: &Reason, message: &str, now: &Zoned) -> (Tone, String) {
    match reason {
        Reason::Active => (Tone::Good, "Callers are let in.".to_owned()),
        Reason::Rotating => (Tone::Good, rotating(key, now)),
        Reason::Suspended => (Tone::Quiet, "Refused on purpose. Resume it to let callers in.".to_owned()),
        Reason::Expired => (Tone::Quiet, expired(key, now)),
        Reason::Issuing => (Tone::Info, issuing(key, message, now)),
        Reason::MintBudget => (Tone::Warn, over_budget(message, now)),
        Reason::Invalid => (Tone::Bad, format!("{} is wrong; nothing is issued.", field_in(message))),
        Reason::SecretNameTaken => {
            (Tone::Bad, format!("Secret {} is not ours. Remove it; retried in 30 s.", secret_name(key)))
        }
        Reason::DigestTaken => (Tone::Bad, "Another ApiKey has this key. Revoke this one, use a new key.".to_owned()),
        Reason::DigestRevoked => (Tone::Bad, "A revoked key never returns. Make a new one.".to_owned()),
        Reason::SourceUnusable => (Tone::Bad, format!("Source Secret: {message}. Mend it, press Rotate.")),
        Reason::Revoking => (Tone::Info, format!("{}.", capital(message))),
        other => (Tone::Quiet, format!("{other}: {message}")),
    }
}

fn rotating(key: &ApiKey, now: &Zoned) -> String {
    let retiring = key.status.iter().flat_map(|status| &status.retiring);
    match retiring.map(|retiring| retiring.retires_at.0).max() {
        Some(end) => format!("Let in; old key until {}. Reload workloads.", time::clock(end, now)),
        None => "Let in. Reload workloads.".to_owned(),
    }
}

fn expired(key: &ApiKey, now: &Zoned) -> String {
    match ends_at(key) {
        Some(end) => format!("Refused since {}. Move the end, or revoke it.", time::clock(end, now)),
        None => "Refused. Move the end, or revoke it.".to_owned(),
    }
}

fn issuing(key: &ApiKey, message: &str, now: &Zoned) -> String {
    let since = key.metadata.creation_timestamp.as_ref().map_or(now.timestamp(), |created| created.0);
    let is_slow = now.timestamp().duration_since(since).as_secs() > PATIENCE;
    if is_slow { format!("Not valid yet: {message}.") } else { "Not valid yet.".to_owned() }
}

fn revoking(active: Option<&Condition>, now: &Zoned) -> String {
    let Some(active) = active.filter(|active| active.reason == Reason::Revoking) else {
        return "May still pass.".to_owned();
    };
    match awaited_in(&active.message) {
        Some(awaited) => format!("May pass until {} at most.", time::exact_clock(awaited.latest, now)),
        None => format!("{}.", capital(&active.message)),
    }
}

fn over_budget(message: &str, now: &Zoned) -> String {
    let next = message.split_whitespace().rev().find_map(date_time::parse);
    let next = next.map_or_else(|| "later".to_owned(), |next| time::clock(next, now));
    format!("Secret lost again; next key {next}. Find who changes it.")
}

/// The field that the message of `Invalid` names first.
fn field_in(message: &str) -> &str {
    message.split_once(": ").map_or("spec", |(field, _)| field)
}

fn secret_name(key: &ApiKey) -> &str {
    let declared = key.spec.secret.as_ref().and_then(|secret| secret.name.as_deref());
    declared.or(key.metadata.name.as_deref()).unwrap_or_default()
}

/// A sentence with a capital at its beginning.
pub fn capital(sentence: &str) -> String {
    let mut characters = sentence.chars();
    let first = characters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    first + characters.as_str()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::view::fixtures::{apikey, now};

    #[test]
    fn each_state_has_its_tone_and_its_sentence() {
        use Tone::{Bad, Good, Info, Quiet, Warn};
        let pending = "all keys are revoked; waiting for the verifiers' acknowledgement, until 2026-11-29T13:32:10Z at the latest: verifier-1";
        for (change, word, tone, sentence) in [
            (json!({}), "Active", Good, "Callers are let in."),
            (
                json!({"reason": "Rotating", "status": {"retiring": [{"serial": 1, "retiresAt": "2026-11-29T14:02:00Z"}]}}),
                "Rotating",
                Good,
                "Let in; old key until 15:02. Reload workloads.",
            ),
            (json!({"reason": "Suspended"}), "Suspended", Quiet, "Refused on purpose. Resume it to let callers in."),
            (
                json!({"reason": "Expired", "status": {"expiresAt": "2026-11-28T13:00:00Z"}}),
                "Expired",
                Quiet,
                "Refused since 28 Nov 2026, 14:00. Move the end, or revoke it.",
            ),
            (
                json!({"status": {"expiresAt": "2026-11-29T13:05:00Z"}}),
                "Expired",
                Quiet,
                "Refused since 14:05. Move the end, or revoke it.",
            ),
            (
                json!({"reason": "Issuing", "message": "wait", "created": "2026-11-29T13:04:31Z"}),
                "Issuing",
                Info,
                "Not valid yet.",
            ),
            (
                json!({"reason": "Issuing", "message": "wait", "created": "2026-11-29T13:04:29Z"}),
                "Issuing",
                Info,
                "Not valid yet: wait.",
            ),
            (
                json!({"reason": "Revoking", "message": pending, "deleted": true}),
                "Revoking",
                Info,
                "May pass until 14:32:10 at most.",
            ),
            (json!({"deleted": true}), "Revoking", Info, "May still pass."),
            (
                json!({"reason": "MintBudget", "message": "changed again; the next key is issued at 2026-11-29T13:32:00Z"}),
                "MintBudget",
                Warn,
                "Secret lost again; next key 14:32. Find who changes it.",
            ),
            (
                json!({"reason": "Invalid", "message": "spec.allowedIPs[2]: \"x\" is no address; spec.owner: is odd"}),
                "Invalid",
                Bad,
                "spec.allowedIPs[2] is wrong; nothing is issued.",
            ),
            (
                json!({"reason": "SecretNameTaken"}),
                "SecretNameTaken",
                Bad,
                "Secret nightly-ci is not ours. Remove it; retried in 30 s.",
            ),
            (
                json!({"reason": "DigestTaken"}),
                "DigestTaken",
                Bad,
                "Another ApiKey has this key. Revoke this one, use a new key.",
            ),
            (json!({"reason": "DigestRevoked"}), "DigestRevoked", Bad, "A revoked key never returns. Make a new one."),
            (
                json!({"reason": "SourceUnusable", "message": "Secret \"x\" is missing"}),
                "SourceUnusable",
                Bad,
                "Source Secret: Secret \"x\" is missing. Mend it, press Rotate.",
            ),
            (
                json!({"reason": "Shielded", "message": "by another version"}),
                "Shielded",
                Quiet,
                "Shielded: by another version",
            ),
            (json!({"reason": null}), "New", Quiet, "Not looked at yet."),
        ] {
            let state = State::of(&apikey(&change), &now());
            assert_eq!((&*state.word, state.tone, &*state.sentence), (word, tone, sentence), "{change}");
        }
    }

    #[test]
    fn a_state_in_force_is_not_yet_everywhere_until_every_verifier_has_its_generation() {
        for (change, is_everywhere) in [
            (json!({"generation": 7, "status": {"enforcedGeneration": 7}}), true),
            (json!({"generation": 7, "status": {"enforcedGeneration": 6}}), false),
            (json!({"generation": 7, "status": {"enforcedGeneration": null}}), false),
            (json!({"reason": "Suspended", "generation": 7, "status": {"enforcedGeneration": 6}}), false),
            (json!({"reason": "Issuing", "generation": 7, "status": {"enforcedGeneration": 6}}), true),
            (json!({"deleted": true, "generation": 7, "status": {"enforcedGeneration": 6}}), true),
        ] {
            let state = State::of(&apikey(&change), &now());
            assert_eq!(state.everywhere, is_everywhere, "{change}");
            assert_eq!(state.label().ends_with(", not yet everywhere"), !is_everywhere, "{change}");
        }
    }
}
