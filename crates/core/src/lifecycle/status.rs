//! The status that shows a finding: its conditions and fields.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::enforcement::Enforcement;
use super::messages::{Finding, obstacle_in, shown, soon};
use super::observed::{Observed, SecretAttempt};
use super::record::{Record, whole_seconds};
use super::secret::{SecretAnnotations, SecretState, SecretUpdate};
use crate::api::{ApiKeyStatus, Condition, ConditionStatus, ConditionType, Reason, Retiring};
use crate::declaration::Delivery;

/// The answers of `Active`, `Ready` and `Stalled` that belong to a reason.
fn answers(reason: &Reason) -> (bool, bool, bool) {
    match reason {
        Reason::Suspended | Reason::Expired => (false, true, false),
        Reason::Invalid | Reason::SecretNameTaken | Reason::SourceUnusable => (false, false, true),
        Reason::DigestTaken | Reason::DigestRevoked => (false, false, true),
        Reason::Issuing | Reason::Revoking | Reason::MintBudget => (false, false, false),
        Reason::Active | Reason::Rotating => (true, true, false),
        Reason::NotExpiringSoon | Reason::ExpiringSoon | Reason::NotStalled => (false, false, false),
        Reason::OldKeyStillInUse | Reason::OldKeyNotInUse | Reason::Other(_) => (false, false, false),
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
        _ if finding.reason == Reason::Revoking => {
            status.retiring.clear();
            status.next_rotation_at = None;
        }
        _ if observed.has_source() && !finding.is_in_force() => status.retiring = observed.retiring_beside(None, now),
        _ if finding.owns_nothing() => (status.key_prefix, status.serial, status.issued_at) = (None, None, None),
        Some(current) if finding.is_in_force() => {
            status.key_prefix = current.shown();
            status.serial = Some(current.spec.serial);
            status.issued_at = Some(Time(current.created()));
            status.secret_name = secret_name(observed);
            status.retiring = observed.retiring_beside(Some(current), now);
            status.rotate_request = rotate_request(observed, current);
            status.next_rotation_at = next_rotation_at(observed, current, now).map(Time);
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
    if observed.declared.is_ok() && matches!(observed.enforcement, Enforcement::Complete { .. }) {
        status.enforced_generation = Some(observed.generation);
    }
    status.conditions = conditions(observed, finding, expiring, now);
    status
}

/// What puts right what the Secret says of its key, where that is wrong: for a key that is in force. To be written after
/// the status and tried once for each version of the Secret, so that nobody is fought over it. What refuses a change of the
/// template refuses this, too.
pub fn annotations_due(observed: &Observed, finding: &Finding) -> Option<SecretUpdate> {
    let SecretState::Ours { metadata, .. } = &observed.secret else { return None };
    let right = SecretAnnotations::of(observed.in_force().filter(|_| finding.is_in_force())?);
    let is_refused = matches!(observed.secret_attempt, SecretAttempt::Refused(_));
    if is_refused || observed.secret.annotations().as_ref() == Some(&right) {
        return None;
    }
    let mut corrected = ObjectMeta::clone(metadata);
    right.write(&mut corrected);
    Some(SecretUpdate::of_annotations(corrected))
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
    let mut rows = vec![
        (ConditionType::Active, active, found()),
        (ConditionType::Ready, ready, found()),
        (ConditionType::Stalled, stalled, stalling),
        (ConditionType::ExpiringSoon, expiring.0 == Reason::ExpiringSoon, expiring),
    ];
    if let Some(why) = use_of_older_keys(observed, finding, now) {
        rows.push((ConditionType::OldKeyStillInUse, why.0 == Reason::OldKeyStillInUse, why));
    }
    rows.into_iter().map(|(type_, answer, why)| condition(observed, type_, answer, why, now)).collect()
}

/// Whether older keys are still used, while there are any.
fn use_of_older_keys(observed: &Observed, finding: &Finding, now: Timestamp) -> Option<(Reason, String)> {
    let current = observed.in_force().filter(|_| finding.is_in_force())?;
    let retiring = observed.retiring_beside(Some(current), now);
    let in_use = observed.older_in_use(observed.declared.as_ref().ok()?, current, now);
    let words = |old: &Retiring| {
        let used =
            old.last_used_at.as_ref().filter(|_| in_use.iter().any(|(record, _)| record.spec.serial == old.serial))?;
        Some(format!("{} was used at {} and ends at {}", shown(old), used.0, old.retires_at.0))
    };
    let used: Vec<_> = retiring.iter().filter_map(words).collect();
    match used.is_empty() {
        _ if retiring.is_empty() => None,
        true => Some((Reason::OldKeyNotInUse, "no older key is in use".to_owned())),
        false => Some((Reason::OldKeyStillInUse, format!("{}; have its users read the Secret again", used.join(", ")))),
    }
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

/// The request that was last carried out. A record knows its request by the digest alone.
fn rotate_request(observed: &Observed, current: &Record) -> Option<String> {
    let before = observed.status.rotate_request.clone();
    match &observed.rotate_request {
        // The source was read after the request.
        Some(request) if observed.has_source() => Some(request.shown.clone()),
        Some(request) if observed.asks_to_replace(current) => before.filter(|before| *before != request.shown),
        Some(request) => Some(request.shown.clone()),
        None => before,
    }
}

/// None after the key's end.
fn next_rotation_at(observed: &Observed, current: &Record, now: Timestamp) -> Option<Timestamp> {
    let declaration = observed.declared.as_ref().ok()?;
    let due = observed.rotation_due_at(declaration, current, now)?;
    declaration.expires_at.is_none_or(|expires_at| due < expires_at).then_some(due)
}

fn secret_name(observed: &Observed) -> Option<String> {
    match &observed.declared.as_ref().ok()?.delivery {
        Delivery::Secret { name, .. } | Delivery::Source { name, .. } => Some(name.clone()),
        Delivery::Submitted(_) => None,
    }
}
