//! What people are told as Events when a status changes.

use std::sync::Arc;

use super::enforcement::{Enforcement, Pending, names};
use super::messages::{obstacle_in, shown};
use super::record::Cause;
use super::rotation::MAX_OLDER_KEYS;
use crate::api::{ApiKeyStatus, ConditionType, Retiring};

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
    if after.serial > before.serial {
        announcements.push(new_key(after, cause));
        announcements.extend(retired_early(before, after));
    }
    announcements.extend(new_conditions(before, after));
    announcements.extend(extended_overlaps(before, after));
    let obstructed = |status: &ApiKeyStatus| {
        let mut messages = status.conditions.iter().map(|condition| &condition.message);
        messages.find(|message| obstacle_in(message).is_some()).cloned()
    };
    if let (Some(note), None) = (obstructed(after), obstructed(before)) {
        announcements.push(Announcement { reason: "SecretRefused", warning: true, note });
    }
    announcements
}

/// A key went into its Secret although verifiers may not know it yet. `missing`: those that were waited for in vain.
pub fn handed_out_early(serial: u32, missing: &[Arc<str>], pending: &Pending) -> Announcement {
    let whom = match missing {
        [] => pending.message(),
        missing => format!("these verifiers did not acknowledge it in time: {}; check them", names(missing)),
    };
    let note = format!("key {serial} goes into its Secret and may be refused for a while: {whom}");
    Announcement { reason: "NotAcknowledged", warning: true, note }
}

/// Every key of a deleted ApiKey is revoked, and every verifier enforces it.
pub fn revoked_for_good(enforcement: &Enforcement) -> Announcement {
    let whom = match enforcement {
        Enforcement::Complete { verifiers: 0 } => "no verifier runs",
        _ => "no verifier lets any of them in",
    };
    let note = format!("every key of this ApiKey is revoked for good: {whom}");
    Announcement { reason: "Revoked", warning: false, note }
}

fn new_key(status: &ApiKeyStatus, cause: Option<Cause>) -> Announcement {
    let prefix = status.key_prefix.as_deref().unwrap_or("a submitted key");
    let (reason, warning, note) = match cause {
        Some(Cause::RecordLost) => {
            ("SecretRecreated", true, format!("the record of the last key was revoked or removed: issued {prefix}"))
        }
        Some(Cause::SecretMissing | Cause::SecretChanged) => (
            "SecretRecreated",
            true,
            format!("the Secret was missing or changed: issued {prefix}; the last key stays valid for the overlap"),
        ),
        Some(Cause::RotationRequested | Cause::RotationScheduled | Cause::SourceChanged) => {
            let last = status.retiring.last().map_or_else(
                || "the last key has ended".to_owned(),
                |last| format!("{} stays valid until {}", shown(last), last.retires_at.0),
            );
            let what = if cause == Some(Cause::SourceChanged) { "the source holds" } else { "issued" };
            ("Rotated", false, format!("{what} {prefix}; {last}"))
        }
        Some(Cause::First) | None => ("Issued", false, format!("issued {prefix}")),
    };
    Announcement { reason, warning, note }
}

/// The older keys that a new one has ended before their time.
fn retired_early(before: &ApiKeyStatus, after: &ApiKeyStatus) -> impl Iterator<Item = Announcement> {
    let has_ended = |old: &&Retiring| after.retiring.iter().all(|left| left.serial != old.serial);
    let was_to_live = |old: &&Retiring| after.issued_at.as_ref().is_some_and(|issued| old.retires_at.0 > issued.0);
    before.retiring.iter().filter(has_ended).filter(was_to_live).map(|old| Announcement {
        reason: "RetiredEarly",
        warning: true,
        note: format!(
            "{} ended before its overlap was over, because at most {MAX_OLDER_KEYS} older keys stay valid; wait for the \
             end of an overlap before you ask for another rotation",
            shown(old)
        ),
    })
}

/// The conditions that have come to say what people should know at once.
fn new_conditions(before: &ApiKeyStatus, after: &ApiKeyStatus) -> impl Iterator<Item = Announcement> {
    let worth_it = [
        (ConditionType::Active, "Expired", true),
        (ConditionType::Active, "Suspended", false),
        (ConditionType::Active, "Invalid", true),
        (ConditionType::Active, "SecretNameTaken", true),
        (ConditionType::Active, "DigestTaken", true),
        (ConditionType::Active, "DigestRevoked", true),
        (ConditionType::Active, "SourceUnusable", true),
        (ConditionType::ExpiringSoon, "ExpiringSoon", true),
        (ConditionType::OldKeyStillInUse, "OldKeyStillInUse", true),
    ];
    worth_it.into_iter().filter_map(move |(type_, reason, warning)| {
        let says = |status: &ApiKeyStatus| {
            let mut conditions = status.conditions.iter();
            conditions.find(|condition| condition.type_ == type_ && condition.reason.as_str() == reason).cloned()
        };
        let condition = says(after).filter(|_| says(before).is_none())?;
        Some(Announcement { reason, warning, note: condition.message })
    })
}

/// The older keys whose end was moved because they are still used.
fn extended_overlaps(before: &ApiKeyStatus, after: &ApiKeyStatus) -> impl Iterator<Item = Announcement> {
    let was_to_end_sooner = |old: &&Retiring| {
        before.retiring.iter().any(|before| before.serial == old.serial && before.retires_at.0 < old.retires_at.0)
    };
    after.retiring.iter().filter(was_to_end_sooner).map(|old| Announcement {
        reason: "OverlapExtended",
        warning: true,
        note: format!(
            "{} is still used and now ends at {}; have its users read the Secret again",
            shown(old),
            old.retires_at.0
        ),
    })
}
