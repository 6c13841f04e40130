//! The status that shows a finding, and the Events that follow from its changes.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::finding::{Finding, obstacle_in, soon};
use super::observed::Observed;
use super::record::{Cause, whole_seconds};
use super::secret::{SecretAnnotations, SecretState};
use crate::api::{ApiKeyStatus, Condition, ConditionStatus, ConditionType, Reason};
use crate::declaration::Delivery;

/// The answers of `Active`, `Ready` and `Stalled` that belong to a reason.
fn answers(reason: &Reason) -> (bool, bool, bool) {
    match reason {
        Reason::Suspended | Reason::Expired => (false, true, false),
        Reason::Invalid | Reason::SecretNameTaken | Reason::DigestTaken | Reason::DigestRevoked => (false, false, true),
        Reason::Issuing | Reason::Revoking | Reason::MintBudget => (false, false, false),
        Reason::Active | Reason::Rotating => (true, true, false),
        Reason::NotExpiringSoon | Reason::ExpiringSoon | Reason::NotStalled | Reason::Other(_) => (false, false, false),
    }
}

/// The status that shows `finding`.
pub fn render(observed: &Observed, finding: &Finding, now: Timestamp) -> ApiKeyStatus {
    let now = whole_seconds(now);
    let mut status = ApiKeyStatus {
        observed_generation: Some(observed.generation),
        last_used_at: last_used(observed),
        ..observed.status.clone()
    };
    match observed.in_force() {
        _ if finding.reason == Reason::Revoking => status.retiring.clear(),
        _ if finding.owns_nothing() => (status.key_prefix, status.serial, status.issued_at) = (None, None, None),
        Some(current) if finding.is_in_force() => {
            status.key_prefix.clone_from(&current.spec.key_prefix);
            status.serial = Some(current.spec.serial);
            status.issued_at = Some(Time(current.created()));
            status.secret_name = secret_name(observed);
            status.retiring = observed.retiring_before(current, now);
        }
        _ => {}
    }
    let mut expiring = (Reason::NotExpiringSoon, "the key does not expire".to_owned());
    if let Ok(declaration) = &observed.declared {
        status.expires_at = declaration.expires_at.map(Time);
        status.expires = Some(declaration.expires_at.map_or_else(|| "Never".to_owned(), |at| at.to_string()));
        if let Some(expires_at) = declaration.expires_at {
            let (reason, verb) = match now {
                _ if now >= expires_at => (Reason::NotExpiringSoon, "expired"),
                _ if now >= soon(observed.created, expires_at) => (Reason::ExpiringSoon, "expires"),
                _ => (Reason::NotExpiringSoon, "expires"),
            };
            expiring = (reason, format!("the key {verb} at {expires_at}"));
        }
    }
    status.conditions = conditions(observed, finding, expiring, now);
    status
}

/// The Secret's metadata as it should be, where it says something else of its key than is right: for a key that is in
/// force. To be written after the status and tried once for each version of the Secret, so that nobody is fought over it.
pub fn annotations_due(observed: &Observed, finding: &Finding) -> Option<ObjectMeta> {
    let SecretState::Ours { metadata, .. } = &observed.secret else { return None };
    let right = SecretAnnotations::of(observed.in_force().filter(|_| finding.is_in_force())?);
    let mut corrected = ObjectMeta::clone(metadata);
    right.write(&mut corrected);
    (observed.secret.annotations().as_ref() != Some(&right)).then_some(corrected)
}

fn conditions(observed: &Observed, finding: &Finding, expiring: (Reason, String), now: Timestamp) -> Vec<Condition> {
    let (active, ready, stalled) = answers(&finding.reason);
    let found = || (finding.reason.clone(), finding.message.clone());
    let stalling = if stalled {
        found()
    } else {
        let message = match obstacle_in(&finding.message) {
            Some(_) => "the controller retries every 30 s; see the message of Ready",
            None => "nothing needs your attention",
        };
        (Reason::NotStalled, message.to_owned())
    };
    let rows = [
        (ConditionType::Active, active, found()),
        (ConditionType::Ready, ready, found()),
        (ConditionType::Stalled, stalled, stalling),
        (ConditionType::ExpiringSoon, expiring.0 == Reason::ExpiringSoon, expiring),
    ];
    rows.into_iter().map(|(type_, answer, why)| condition(observed, type_, answer, why, now)).collect()
}

/// The time of the last transition moves only with the answer, as API conventions have it.
fn condition(
    observed: &Observed,
    type_: ConditionType,
    answer: bool,
    (reason, message): (Reason, String),
    now: Timestamp,
) -> Condition {
    let status = if answer { ConditionStatus::True } else { ConditionStatus::False };
    let before = observed.status.conditions.iter().find(|before| before.type_ == type_ && before.status == status);
    let last_transition_time = before.map_or(Time(now), |before| before.last_transition_time.clone());
    Condition { type_, status, reason, message, last_transition_time, observed_generation: Some(observed.generation) }
}

/// Never goes backwards: a record that was removed takes its time with it.
fn last_used(observed: &Observed) -> Option<Time> {
    let recorded = observed.records.iter().filter_map(|record| record.last_used_at);
    let shown = observed.status.last_used_at.as_ref().map(|time| time.0);
    recorded.chain(shown).max().map(Time)
}

fn secret_name(observed: &Observed) -> Option<String> {
    match &observed.declared.as_ref().ok()?.delivery {
        Delivery::Secret { name, .. } => Some(name.clone()),
        Delivery::Submitted(_) => None,
    }
}

/// Something to tell people about an ApiKey, as an Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The Event's reason.
    pub reason: &'static str,
    /// Whether it is of type Warning.
    pub warning: bool,
    /// The Event's note.
    pub note: String,
}

/// What is worth an Event in the change of a status. `cause` is why the current key was issued.
pub fn announcements(before: &ApiKeyStatus, after: &ApiKeyStatus, cause: Option<Cause>) -> Vec<Announcement> {
    let mut announcements = Vec::new();
    let mut announce = |reason, warning, note| announcements.push(Announcement { reason, warning, note });
    let prefix = after.key_prefix.as_deref().unwrap_or("a submitted key");
    if after.serial > before.serial {
        match cause.filter(|cause| cause.is_unrequested()) {
            Some(Cause::RecordLost) => {
                announce(
                    "SecretRecreated",
                    true,
                    format!("the record of the last key was revoked or removed: issued {prefix}"),
                );
            }
            Some(_) => announce(
                "SecretRecreated",
                true,
                format!("the Secret was missing or changed: issued {prefix}; the last key stays valid for the overlap"),
            ),
            None => announce("Issued", false, format!("issued {prefix}")),
        }
    }
    for (type_, word, warning) in [
        (ConditionType::Active, "Expired", true),
        (ConditionType::Active, "Suspended", false),
        (ConditionType::Active, "Invalid", true),
        (ConditionType::Active, "SecretNameTaken", true),
        (ConditionType::Active, "DigestTaken", true),
        (ConditionType::Active, "DigestRevoked", true),
        (ConditionType::ExpiringSoon, "ExpiringSoon", true),
    ] {
        let speaks = |status: &ApiKeyStatus| {
            let mut conditions = status.conditions.iter();
            conditions.find(|condition| condition.type_ == type_ && condition.reason.as_str() == word).cloned()
        };
        if let (Some(condition), None) = (speaks(after), speaks(before)) {
            announce(word, warning, condition.message);
        }
    }
    let obstructed = |status: &ApiKeyStatus| {
        let mut messages = status.conditions.iter().map(|condition| &condition.message);
        messages.find(|message| obstacle_in(message).is_some()).cloned()
    };
    if let (Some(message), None) = (obstructed(after), obstructed(before)) {
        announce("SecretRefused", true, message);
    }
    announcements
}
