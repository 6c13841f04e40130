//! PURE. The status that follows from what was observed, and the events that follow from its changes.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Cause, LEFTOVER_GRACE, Observed, Plan, Record, SECRET_RETRY, Secret, marks, whole_seconds};
use crate::api::{ApiKeyStatus, Condition, ConditionStatus, ConditionType, Reason, Retiring};
use crate::declaration::{Declaration, Delivery, Problem};

/// `ExpiringSoon` from this long before the end.
const SOON: SignedDuration = SignedDuration::from_hours(7 * 24);

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

/// A verdict about an ApiKey, for its conditions.
struct Verdict {
    reason: Reason,
    message: String,
}

/// The key in the Secret, or the submitted one, is the one that counts.
pub(super) fn in_force(observed: &Observed, declaration: &Declaration, current: &Record, now: Timestamp) -> Plan {
    let retiring: Vec<_> = observed
        .live_records()
        .filter(|record| record.spec.serial < current.spec.serial)
        .filter_map(|record| {
            let retires_at = record.not_after().filter(|not_after| *not_after > now)?;
            Some(Retiring {
                key_prefix: record.spec.key_prefix.clone(),
                serial: record.spec.serial,
                retires_at: Time(retires_at),
            })
        })
        .collect();
    let verdict = judge(declaration, &retiring, now);
    let wakes = retiring.iter().map(|retiring| retiring.retires_at.0).min();
    let status = ApiKeyStatus {
        key_prefix: current.spec.key_prefix.clone(),
        serial: Some(current.spec.serial),
        issued_at: Some(Time(current.created)),
        secret_name: secret_name(declaration),
        retiring,
        ..observed.status.clone()
    };
    let marks = match &observed.secret {
        Secret::Ours { marks: said, .. } if *said != marks(current) => Some(marks(current)),
        _ => None,
    };
    match settle(observed, Some(declaration), status, verdict, wakes, now) {
        Plan::Settled { status, wake, .. } => Plan::Settled { status, wake, marks },
        plan => plan,
    }
}

fn judge(declaration: &Declaration, retiring: &[Retiring], now: Timestamp) -> Verdict {
    let (reason, message) = match declaration.expires_at {
        _ if declaration.suspended => {
            (Reason::Suspended, "spec.suspended is true: the key is refused until it is false again".to_owned())
        }
        Some(expires_at) if now >= expires_at => (
            Reason::Expired,
            format!("the key is refused since {expires_at}; move the expiry into the future to let it in again"),
        ),
        _ if !retiring.is_empty() => {
            (Reason::Rotating, "the key is let in, and so are older ones until they retire".to_owned())
        }
        _ => (Reason::Active, "the key is let in".to_owned()),
    };
    Verdict { reason, message }
}

/// The spec cannot be acted on.
pub(super) fn invalid(observed: &Observed, problems: &[Problem], now: Timestamp) -> Plan {
    let message = problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("; ");
    let verdict = Verdict { reason: Reason::Invalid, message: cut(message) };
    settle(observed, observed.declared.as_ref().ok(), observed.status.clone(), verdict, None, now)
}

/// Another ApiKey owns the submitted key, or it was revoked. Whose it is, is nobody's business.
pub(super) fn not_ours(observed: &Observed, declaration: &Declaration, reason: Reason, now: Timestamp) -> Plan {
    let fact = match reason {
        Reason::DigestTaken => "spec.keyHash is the digest of a key that another ApiKey owns",
        _ => "spec.keyHash is the digest of a key that was revoked, and a revoked key is never accepted again",
    };
    let remedy = "generate another key, and declare its digest in another ApiKey";
    let status = ApiKeyStatus { key_prefix: None, serial: None, issued_at: None, ..observed.status.clone() };
    settle(observed, Some(declaration), status, Verdict { reason, message: format!("{fact}; {remedy}") }, None, now)
}

/// Something else owns the Secret of that name.
pub(super) fn name_taken(observed: &Observed, declaration: &Declaration, now: Timestamp) -> Plan {
    let name = secret_name(declaration).unwrap_or_default();
    let message = format!(
        "Secret {name:?} exists and does not belong to this ApiKey; it is left alone. Remove or rename it, or choose another name in spec.secret.name of a new ApiKey"
    );
    let verdict = Verdict { reason: Reason::SecretNameTaken, message };
    let wake = now.saturating_add(SECRET_RETRY).ok();
    settle(observed, Some(declaration), observed.status.clone(), verdict, wake, now)
}

/// The Secret of an earlier ApiKey of this name is still there. It is waited for, and is a person's business only once
/// the garbage collector has had its time.
pub(super) fn leftover(observed: &Observed, declaration: &Declaration, now: Timestamp) -> Plan {
    let age = now.duration_since(observed.created);
    if !(SignedDuration::ZERO..LEFTOVER_GRACE).contains(&age) {
        return name_taken(observed, declaration, now);
    }
    let name = secret_name(declaration).unwrap_or_default();
    let message =
        format!("waiting for the garbage collector to remove Secret {name:?} of an earlier ApiKey of this name");
    let verdict = Verdict { reason: Reason::Issuing, message };
    // 1, 3, 7, 15 and 30 s after the creation.
    let looks = (1..5).map(|power| SignedDuration::from_secs((1 << power) - 1)).chain([LEFTOVER_GRACE]);
    let wake = looks.filter(|look| *look > age).min().and_then(|look| observed.created.checked_add(look).ok());
    settle(observed, Some(declaration), observed.status.clone(), verdict, wake, now)
}

/// Another controller has announced a key and may be about to hand it out.
pub(super) fn issuing(observed: &Observed, declaration: &Declaration, until: Timestamp, now: Timestamp) -> Plan {
    let verdict = Verdict { reason: Reason::Issuing, message: "the key is not yet in its Secret".to_owned() };
    settle(observed, Some(declaration), observed.status.clone(), verdict, Some(until), now)
}

/// What stands in a message between a Secret's name and why it cannot be written.
const CANNOT_BE_WRITTEN: &str = " cannot be written: ";

/// There is no place to hand a key out in.
pub(super) fn obstructed(observed: &Observed, declaration: &Declaration, obstacle: &str, now: Timestamp) -> Plan {
    let name = secret_name(declaration).unwrap_or_default();
    let message = cut(format!("Secret {name:?}{CANNOT_BE_WRITTEN}{obstacle}"));
    let verdict = Verdict { reason: Reason::Issuing, message };
    let wake = now.saturating_add(SECRET_RETRY).ok();
    settle(observed, Some(declaration), observed.status.clone(), verdict, wake, now)
}

/// A key has to be made again, too soon after the last one.
pub(super) fn over_budget(observed: &Observed, declaration: &Declaration, until: Timestamp, now: Timestamp) -> Plan {
    let message = format!("the Secret or the record was changed again; the next key is issued at {until}");
    let verdict = Verdict { reason: Reason::MintBudget, message };
    settle(observed, Some(declaration), observed.status.clone(), verdict, Some(until), now)
}

/// Every key is revoked, and somebody else holds the deletion up. `None` if the status says so already.
pub(super) fn held_up(observed: &Observed, now: Timestamp) -> Option<ApiKeyStatus> {
    let others = cut(observed.other_finalizers.join(", "));
    let message = format!("every key is revoked; the object is held by finalizers of others: {others}");
    let verdict = Verdict { reason: Reason::Revoking, message };
    let status = ApiKeyStatus { retiring: Vec::new(), ..observed.status.clone() };
    match settle(observed, observed.declared.as_ref().ok(), status, verdict, None, now) {
        Plan::Settled { status, .. } if *status != observed.status => Some(*status),
        _ => None,
    }
}

/// Fills in what is the same for every verdict. `status` has the fields that are about the current key.
fn settle(
    observed: &Observed,
    declaration: Option<&Declaration>,
    mut status: ApiKeyStatus,
    verdict: Verdict,
    wake: Option<Timestamp>,
    now: Timestamp,
) -> Plan {
    status.observed_generation = Some(observed.generation);
    status.last_used_at = last_used(observed);
    let mut wakes: Vec<_> = wake.into_iter().collect();
    let mut expiring = Verdict { reason: Reason::NotExpiringSoon, message: "the key does not expire".to_owned() };
    if let Some(declaration) = declaration {
        status.expires_at = declaration.expires_at.map(Time);
        status.expires = Some(declaration.expires_at.map_or_else(|| "Never".to_owned(), |at| at.to_string()));
        if let Some(expires_at) = declaration.expires_at {
            let soon_at = soon(observed.created, expires_at);
            wakes.extend([soon_at, expires_at]);
            let (reason, verb) = match now {
                _ if now >= expires_at => (Reason::NotExpiringSoon, "expired"),
                _ if now >= soon_at => (Reason::ExpiringSoon, "expires"),
                _ => (Reason::NotExpiringSoon, "expires"),
            };
            expiring = Verdict { reason, message: format!("the key {verb} at {expires_at}") };
        }
    }
    status.conditions = conditions(observed, &verdict, &expiring, now);
    Plan::Settled { status: Box::new(status), wake: wakes.into_iter().filter(|wake| *wake > now).min(), marks: None }
}

fn conditions(observed: &Observed, verdict: &Verdict, expiring: &Verdict, now: Timestamp) -> Vec<Condition> {
    let (active, ready, stalled) = answers(&verdict.reason);
    let stalled_verdict = if stalled {
        Verdict { reason: verdict.reason.clone(), message: verdict.message.clone() }
    } else {
        let message = match obstacle(&verdict.message) {
            Some(_) => "the controller tries again by itself; Ready says what is in its way",
            None => "nothing needs your attention",
        };
        Verdict { reason: Reason::NotStalled, message: message.to_owned() }
    };
    let rows = [
        (ConditionType::Active, active, verdict),
        (ConditionType::Ready, ready, verdict),
        (ConditionType::Stalled, stalled, &stalled_verdict),
        (ConditionType::ExpiringSoon, expiring.reason == Reason::ExpiringSoon, expiring),
    ];
    rows.into_iter().map(|(type_, answer, verdict)| condition(observed, type_, answer, verdict, now)).collect()
}

/// The time of the last transition moves only with the answer, as API conventions have it.
fn condition(observed: &Observed, type_: ConditionType, answer: bool, verdict: &Verdict, now: Timestamp) -> Condition {
    let status = if answer { ConditionStatus::True } else { ConditionStatus::False };
    let before = observed.status.conditions.iter().find(|before| before.type_ == type_ && before.status == status);
    Condition {
        type_,
        status,
        reason: verdict.reason.clone(),
        message: verdict.message.clone(),
        last_transition_time: before.map_or(Time(now), |before| before.last_transition_time.clone()),
        observed_generation: Some(observed.generation),
    }
}

/// From when on the end is near: 7 days before it, or the last tenth of a shorter life.
fn soon(created: Timestamp, expires_at: Timestamp) -> Timestamp {
    let life = expires_at.duration_since(created);
    let notice = if life < SOON { life / 10 } else { SOON };
    whole_seconds(expires_at.saturating_sub(notice).unwrap_or(expires_at))
}

/// Never goes backwards: a record that was removed takes its time with it.
fn last_used(observed: &Observed) -> Option<Time> {
    let recorded = observed.records.iter().filter_map(|record| record.last_used_at);
    let shown = observed.status.last_used_at.as_ref().map(|time| time.0);
    recorded.chain(shown).max().map(Time)
}

fn secret_name(declaration: &Declaration) -> Option<String> {
    match &declaration.delivery {
        Delivery::Secret { name, .. } => Some(name.clone()),
        Delivery::Submitted(_) => None,
    }
}

/// Why a Secret cannot be written, where `message` says so.
fn obstacle(message: &str) -> Option<&str> {
    message.starts_with("Secret ").then(|| message.split_once(CANNOT_BE_WRITTEN))?.map(|(_, obstacle)| obstacle)
}

/// API conventions limit a condition's message to 32,768 octets.
fn cut(mut message: String) -> String {
    const LONGEST: usize = 4096;
    if message.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
        message.truncate(end);
        message.push_str(" ...");
    }
    message
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
        match cause.filter(|cause| cause.unrequested()) {
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
        messages.find(|message| obstacle(message).is_some()).cloned()
    };
    if let (Some(message), None) = (obstructed(after), obstructed(before)) {
        announce("SecretRefused", true, message);
    }
    announcements
}
