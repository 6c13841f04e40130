//! The one next write for one ApiKey, or why there is none.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::enforcement::{Enforcement, Purpose};
use super::messages::{Finding, says_no_verifier};
use super::observed::{Held, IS_IMMUTABLE, Observed, Ownership, SecretAttempt};
use super::record::{
    Cause, NewKey, NewRecord, Record, RecordUpdate, RevocationReason, declared, revoked, whole_seconds,
};
use super::rotation::{MAX_OLDER_KEYS, hold, latest_end};
use super::secret::{SecretAnnotations, SecretContents, SecretDraft, SecretState, SecretUpdate};
use super::status;
use crate::api::{ApiKeyRecordSpec, ApiKeyStatus, FINALIZER, Reason};
use crate::declaration::{Declaration, Delivery, Problem};
use crate::key::{Digest, Prefix};

/// How long another controller's unfinished issue is left alone. With two controllers at work each would otherwise
/// revoke the other's record in the moment between its creation and the Secret's, again and again.
pub(super) const DELIVERY_GRACE: SignedDuration = SignedDuration::from_secs(3);

/// Live keys of one ApiKey. Beyond it the oldest retired key ends before its overlap does.
pub(super) const MAX_LIVE_KEYS: usize = 16;

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// One write, after which the world is observed again.
    Write(Write),
    /// Learn whether the verifiers decide by what the records say, and plan again with that: [`Observed::enforcement`].
    AskVerifiers(Purpose),
    /// Nothing to write but the status, where it does not show this yet.
    Rest(Finding),
    /// The ApiKey is going and needs nothing more from us.
    Done,
}

/// One write: the whole object, with its precondition.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// Put the finalizer on the ApiKey, before anything exists that it guards.
    AddFinalizer(Finalizers),
    /// Say that every key is revoked while others hold the deletion up.
    UpdateStatus(Box<ApiKeyStatus>),
    /// Take the finalizer off: every key is revoked.
    RemoveFinalizer(Finalizers),
    /// Announce a key. Where it is made here, minting it is part of this write.
    CreateRecord(Box<NewRecord>),
    /// Make a record say what is declared, or revoke it.
    UpdateRecord(Box<RecordUpdate>),
    /// Take back a claim to a digest that has another owner. It leaves no tombstone: it never counted.
    RemoveRecord(Removal),
    /// Hand the held key out in a new Secret.
    CreateSecret(Box<SecretDraft>),
    /// Hand the held key out in the Secret that is there.
    ReplaceSecret(Box<SecretDraft>),
    /// Make the Secret hold what is declared beside the key that is in it.
    UpdateSecret(Box<SecretUpdate>),
}

/// An ApiKey's finalizers as they are to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Finalizers {
    /// All of them.
    pub finalizers: Vec<String>,
    /// Only this version of the ApiKey.
    pub resource_version: String,
}

/// A record that is to be deleted.
#[derive(Clone, Debug, PartialEq)]
pub struct Removal {
    /// Its name.
    pub name: String,
    /// Only the object with this uid.
    pub uid: Option<String>,
    /// Only this version of it.
    pub resource_version: Option<String>,
}

impl Write {
    /// The word for it in the log. The write itself holds a digest.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::AddFinalizer(_) => "AddFinalizer",
            Self::UpdateStatus(_) => "UpdateStatus",
            Self::RemoveFinalizer(_) => "RemoveFinalizer",
            Self::CreateRecord(_) => "CreateRecord",
            Self::UpdateRecord(_) => "UpdateRecord",
            Self::RemoveRecord(_) => "RemoveRecord",
            Self::CreateSecret(_) => "CreateSecret",
            Self::ReplaceSecret(_) => "ReplaceSecret",
            Self::UpdateSecret(_) => "UpdateSecret",
        }
    }
}

/// What to do next for one ApiKey.
pub fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let now = whole_seconds(now);
    match next(observed, now) {
        Plan::Rest(_) if !observed.is_deleting && observed.needs_to_know_enforcement() => {
            Plan::AskVerifiers(Purpose::Enforcement)
        }
        Plan::Rest(finding) => Plan::Rest(finding.or_expiry_of(observed, now)),
        plan => plan,
    }
}

fn next(observed: &Observed, now: Timestamp) -> Plan {
    if observed.is_deleting {
        return plan_deletion(observed, now);
    }
    if let Some(stray) = observed.live_records().find(|record| !observed.made(record)) {
        return revoke(stray, RevocationReason::Tampered, now);
    }
    let declaration = match &observed.declared {
        Ok(declaration) => declaration,
        Err(problems) => return plan_invalid(observed, problems),
    };
    if !observed.has_finalizer() {
        return Plan::Write(Write::AddFinalizer(finalizers(observed, true)));
    }
    // What is declared reaches the keys that are out before anything new is made: a narrowing never waits.
    if let Some(update) = observed.live_records().find_map(|record| align(observed, declaration, record, now)) {
        return update_record(update);
    }
    match &declaration.delivery {
        Delivery::Submitted(digest) => plan_submitted(observed, declaration, *digest, now),
        Delivery::Source { .. } => plan_source(observed, declaration, now),
        Delivery::Secret { .. } => plan_delivered(observed, declaration, now),
    }
}

fn plan_deletion(observed: &Observed, now: Timestamp) -> Plan {
    if let Some(record) = observed.live_records().next() {
        return revoke(record, RevocationReason::Deleted, now);
    }
    let others = observed.other_finalizers();
    let done = observed.status.rotate_request.as_ref();
    let is_asked_to_rotate = observed.rotate_request.as_ref().is_some_and(|request| done != Some(&request.shown));
    match &observed.enforcement {
        _ if !observed.has_finalizer() => {}
        Enforcement::Unasked => return Plan::AskVerifiers(Purpose::Enforcement),
        Enforcement::Pending(pending) => return Plan::Rest(Finding::unacknowledged(pending, is_asked_to_rotate)),
        Enforcement::Complete { .. } => {}
    }
    // The last chance to say so: without our finalizer, the object may be gone at any moment.
    if !others.is_empty() {
        let finding = Finding::revoking(&others, is_without_verifiers(observed), is_asked_to_rotate);
        let status = status::render(observed, &finding, now);
        if status != observed.status {
            return Plan::Write(Write::UpdateStatus(Box::new(status)));
        }
    }
    if observed.has_finalizer() { Plan::Write(Write::RemoveFinalizer(finalizers(observed, false))) } else { Plan::Done }
}

/// Whether no verifier had to acknowledge the revocation. The status remembers it once our finalizer is gone.
fn is_without_verifiers(observed: &Observed) -> bool {
    match &observed.enforcement {
        Enforcement::Complete { verifiers } => *verifiers == 0,
        Enforcement::Unasked | Enforcement::Pending(_) => {
            observed.status.conditions.iter().any(|condition| says_no_verifier(&condition.message))
        }
    }
}

/// Rules that cannot be read must not be replaced by the last ones that could: the keys are refused until a person has
/// mended the spec, and work again then.
fn plan_invalid(observed: &Observed, problems: &[Problem]) -> Plan {
    match observed.live_records().find(|record| !record.spec.suspended) {
        Some(record) => update_record(record.with(ApiKeyRecordSpec { suspended: true, ..record.spec.clone() })),
        None => {
            let is_asked_to_rotate = observed.live_records().last().is_some_and(|key| observed.asks_to_replace(key));
            Plan::Rest(Finding::invalid(problems, is_asked_to_rotate))
        }
    }
}

/// The write that makes a live record say what is declared, where it says something else.
fn align(observed: &Observed, declaration: &Declaration, record: &Record, now: Timestamp) -> Option<RecordUpdate> {
    let mut aligned = declared(declaration, record.spec.clone());
    let current = observed.current();
    if !is_on_its_way_out(observed, record) {
        return match record.replaced_at {
            // Its source holds it again, too late: another key has taken its place.
            Some(at) if has_ended(record, now) && !observed.was_last_in_force(record) => {
                Some(record.replaced(revoked(&record.spec, RevocationReason::Replaced, now), at))
            }
            Some(_) => Some(record.reinstated(aligned)),
            None => (aligned != record.spec).then(|| record.with(aligned)),
        };
    }
    // Only the newest key follows the declared expiry into the future. An older one can end sooner and never later, or a
    // longer overlap would bring back a key that was already refused.
    let is_replaced = current.is_some() || observed.has_lost_its_source();
    let replaced_at = record.replaced_at.or(is_replaced.then_some(now));
    // Not after now: the clock may have been set back since.
    let overlap_ends = replaced_at.and_then(|at| latest_end(declaration.rotation, at.min(now), record.held_until));
    let end = [declaration.expires_at, record.not_after(), overlap_ends].into_iter().flatten().min();
    aligned.not_after = end.map(Time);
    match replaced_at {
        // A source that is lost may come back, with the same key in it.
        Some(at) if end.is_some_and(|end| now >= end) && !(current.is_none() && observed.was_last_in_force(record)) => {
            Some(record.replaced(revoked(&record.spec, RevocationReason::Replaced, now), at))
        }
        Some(at) if aligned != record.spec || record.replaced_at != replaced_at => Some(record.replaced(aligned, at)),
        _ => (aligned != record.spec).then(|| record.with(aligned)),
    }
}

fn has_ended(record: &Record, now: Timestamp) -> bool {
    record.not_after().is_some_and(|end| now >= end)
}

/// Whether a live record is of a key that has had its time: another one has taken its place, or will.
fn is_on_its_way_out(observed: &Observed, record: &Record) -> bool {
    match observed.current() {
        Some(current) => observed.older_than(Some(current)).any(|older| older.spec.serial == record.spec.serial),
        None => {
            let is_newest = record.spec.serial >= observed.newest_serial();
            !is_newest || record.replaced_at.is_some() || observed.has_lost_its_source()
        }
    }
}

fn plan_submitted(observed: &Observed, declaration: &Declaration, digest: Digest, now: Timestamp) -> Plan {
    let wanted = digest.to_string();
    if let Some(stray) = observed.live_records().find(|record| record.spec.digest != wanted) {
        return revoke(stray, RevocationReason::Tampered, now);
    }
    match claim(observed, digest, observed.live_records().next()) {
        Claimed::InForce(own) => {
            if let (None, Enforcement::Pending(pending)) = (observed.status.serial, &observed.enforcement) {
                return Plan::Rest(Finding::unknown_to_verifiers(pending));
            }
            let finding = in_force(observed, declaration, own, now);
            let is_in_vain = observed.asks_to_replace(own);
            Plan::Rest(if is_in_vain { finding.with_a_rotation_in_vain() } else { finding })
        }
        Claimed::Lost(own) => remove_record(own),
        Claimed::Refused(reason) => Plan::Rest(Finding::not_ours(reason, declaration)),
        // Whatever record there was, it had this serial.
        Claimed::Free if !observed.records.is_empty() => {
            Plan::Rest(Finding::not_ours(Reason::DigestRevoked, declaration))
        }
        Claimed::Free => create_record(observed, declaration, NewKey::Submitted(digest), Cause::First, now),
        Claimed::Unknown => Plan::Rest(Finding::issuing(now + SignedDuration::from_secs(1))),
    }
}

fn plan_source(observed: &Observed, declaration: &Declaration, now: Timestamp) -> Plan {
    let retiring = || observed.retiring_beside(None, now);
    let digest = match observed.source {
        Ok(digest) => digest,
        Err(problem) => return Plan::Rest(Finding::source_unusable(declaration, problem, &retiring(), now)),
    };
    match claim(observed, digest, observed.current()) {
        Claimed::InForce(own) => match held_longer(observed, declaration, own, now) {
            Some(held) => update_record(held),
            None => Plan::Rest(in_force(observed, declaration, own, now)),
        },
        Claimed::Lost(own) => remove_record(own),
        Claimed::Refused(reason) => Plan::Rest(Finding::not_ours(reason, declaration).until_retired(&retiring())),
        Claimed::Free => match observed.live_records().next() {
            Some(oldest) if observed.live_records().count() > MAX_OLDER_KEYS => {
                revoke(oldest, RevocationReason::Replaced, now)
            }
            _ => {
                let cause = if observed.newest_serial() == 0 { Cause::First } else { Cause::SourceChanged };
                create_record(observed, declaration, NewKey::Submitted(digest), cause, now)
            }
        },
        Claimed::Unknown => Plan::Rest(Finding::issuing(now + SignedDuration::from_secs(1))),
    }
}

/// What has come of an ApiKey's claim to a digest.
enum Claimed<'o> {
    /// This record is the oldest that has it.
    InForce(&'o Record),
    /// Another one is older than this record.
    Lost(&'o Record),
    /// Another ApiKey's, or revoked.
    Refused(Reason),
    /// Nobody has it.
    Free,
    /// It was not asked.
    Unknown,
}

/// `own` is this ApiKey's live record with the digest.
fn claim<'o>(observed: &Observed, digest: Digest, own: Option<&'o Record>) -> Claimed<'o> {
    let digest = digest.to_string();
    match (&observed.ownership, own) {
        (Ownership::Owned(owner), Some(own)) if !owner.is_of(own.name()) => Claimed::Lost(own),
        (_, Some(own)) => Claimed::InForce(own),
        (Ownership::Owned(owner), None) if !owner.is_revoked => Claimed::Refused(Reason::DigestTaken),
        (Ownership::Owned(_), None) => Claimed::Refused(Reason::DigestRevoked),
        (_, None) if observed.records.iter().any(|record| record.spec.digest == digest) => {
            Claimed::Refused(Reason::DigestRevoked)
        }
        (Ownership::Free, None) => Claimed::Free,
        (Ownership::Unasked, None) => Claimed::Unknown,
    }
}

fn plan_delivered(observed: &Observed, declaration: &Declaration, now: Timestamp) -> Plan {
    if let Some(record) = observed.undelivered() {
        return plan_undelivered(observed, declaration, record, now);
    }
    match &observed.secret {
        SecretState::Foreign => return without_delivery(observed, Finding::name_taken(declaration, now), now),
        SecretState::Leftover => {
            return without_delivery(observed, Finding::leftover(observed.created, declaration, now), now);
        }
        SecretState::Absent | SecretState::Ours { .. } => {}
    }
    if let Some(current) = observed.current() {
        return plan_current(observed, declaration, current, now);
    }
    // Nothing is minted that has no place to go: every try would leave a tombstone.
    if let Some(obstacle) = observed.obstacle_at(now) {
        return without_delivery(observed, Finding::obstructed(declaration, &obstacle, now), now);
    }
    let cause = observed.cause_of_next();
    if let Some(until) = observed.budget_until(now).filter(|_| cause.is_unrequested()) {
        return without_delivery(observed, Finding::over_budget(until), now);
    }
    if observed.live_records().count() >= MAX_LIVE_KEYS
        && let Some(oldest) = observed.live_records().next()
    {
        return revoke(oldest, RevocationReason::Replaced, now);
    }
    create_record(observed, declaration, NewKey::Minted, cause, now)
}

/// No key can be put into the Secret. One that was there before is let in until a new one takes its place.
fn without_delivery(observed: &Observed, finding: Finding, now: Timestamp) -> Plan {
    let is_let_in = |record: &&Record| !record.spec.suspended && !has_ended(record, now);
    Plan::Rest(match observed.live_records().filter(is_let_in).last().and_then(Record::shown) {
        Some(last) => finding.while_let_in(&last),
        None => finding,
    })
}

/// A record whose key has not reached the Secret.
fn plan_undelivered(observed: &Observed, declaration: &Declaration, record: &Record, now: Timestamp) -> Plan {
    let is_of_it = |held: &&Held| held.serial == record.spec.serial && held.digest.to_string() == record.spec.digest;
    let held = observed.held.as_ref().filter(is_of_it);
    let secret = || secret_with(observed, declaration, &SecretAnnotations::of(record)).map(Box::new);
    let write = match (held, &observed.secret) {
        (Some(Held { is_refused: true, .. }), _) => return revoke(record, RevocationReason::DeliveryRefused, now),
        (Some(_), SecretState::Absent | SecretState::Ours { .. }) if observed.enforcement == Enforcement::Unasked => {
            return Plan::AskVerifiers(Purpose::Delivery);
        }
        (Some(_), SecretState::Absent) => secret().map(Write::CreateSecret),
        (Some(_), SecretState::Ours { .. }) => secret().map(Write::ReplaceSecret),
        (None, _) if (SignedDuration::ZERO..DELIVERY_GRACE).contains(&now.duration_since(record.created())) => {
            let until = record.created().saturating_add(DELIVERY_GRACE).unwrap_or(now);
            // Another controller is replacing a key, which works meanwhile.
            return Plan::Rest(observed.current().map_or_else(
                || Finding::issuing(until),
                |current| {
                    Finding::in_force(declaration, &observed.retiring_beside(Some(current), now), now).or_at(until)
                },
            ));
        }
        _ => None,
    };
    write.map_or_else(|| revoke(record, RevocationReason::NotDelivered, now), Plan::Write)
}

/// The key in the Secret is in force; what is left is to tidy up around it.
fn plan_current(observed: &Observed, declaration: &Declaration, current: &Record, now: Timestamp) -> Plan {
    if let Some(held) = held_longer(observed, declaration, current, now) {
        return update_record(held);
    }
    let finding = in_force(observed, declaration, current, now);
    match observed.cause_of_rotation(declaration, current, now) {
        Some(cause) if declaration.lets_in_at(now) => {
            plan_rotation(observed, declaration, current, cause, finding, now)
        }
        Some(cause) => plan_secret(observed, declaration, current, finding.with_a_rotation_to_come(cause), now),
        None => {
            let finding = match observed.rotation_due_at(declaration, current, now) {
                Some(due) => finding.or_at(due),
                None => finding,
            };
            plan_secret(observed, declaration, current, finding, now)
        }
    }
}

/// An older key that is to be valid for longer, as it is used.
fn held_longer(
    observed: &Observed,
    declaration: &Declaration,
    current: &Record,
    now: Timestamp,
) -> Option<RecordUpdate> {
    let mut older = observed.older_than(Some(current));
    older.find_map(|record| Some(record.held(hold(declaration, record, now)?)))
}

/// What there is to say of the key that is in force.
fn in_force(observed: &Observed, declaration: &Declaration, current: &Record, now: Timestamp) -> Finding {
    let finding = Finding::in_force(declaration, &observed.retiring_beside(Some(current), now), now);
    let in_use = observed.older_in_use(declaration, current, now);
    let finding = in_use.into_iter().fold(finding, |finding, (_, until)| finding.or_at(until));
    match &observed.enforcement {
        Enforcement::Pending(pending) => finding.with_older_rules(pending),
        Enforcement::Unasked | Enforcement::Complete { .. } => finding,
    }
}

/// The key in the Secret stays, and what else is in it may have to change. A rotation would write all of it anyway.
fn plan_secret(
    observed: &Observed,
    declaration: &Declaration,
    current: &Record,
    finding: Finding,
    now: Timestamp,
) -> Plan {
    let contents = SecretContents::declared(&observed.reference, declaration);
    let annotations = SecretAnnotations::of(current);
    let update = contents.and_then(|contents| SecretUpdate::to_declared(&observed.secret, contents, &annotations));
    let Some(update) = update else { return Plan::Rest(finding) };
    let is_immutable = matches!(observed.secret, SecretState::Ours { is_immutable: true, .. });
    let obstacle = match &observed.secret_attempt {
        _ if is_immutable && update.changes_entries() => IS_IMMUTABLE,
        SecretAttempt::None => return Plan::Write(Write::UpdateSecret(Box::new(update))),
        SecretAttempt::Taken => return Plan::Rest(finding),
        SecretAttempt::Refused(words) => words,
    };
    Plan::Rest(finding.with_an_obstructed_update(declaration, obstacle, now))
}

/// The key in the Secret works, and another one is to take its place.
fn plan_rotation(
    observed: &Observed,
    declaration: &Declaration,
    current: &Record,
    cause: Cause,
    finding: Finding,
    now: Timestamp,
) -> Plan {
    if let Some(obstacle) = observed.obstacle_at(now) {
        return Plan::Rest(finding.with_an_obstructed_rotation(declaration, &obstacle, now));
    }
    if observed.older_than(Some(current)).count() >= MAX_OLDER_KEYS
        && let Some(oldest) = observed.older_than(Some(current)).next()
    {
        return revoke(oldest, RevocationReason::Replaced, now);
    }
    create_record(observed, declaration, NewKey::Minted, cause, now)
}

fn revoke(record: &Record, reason: RevocationReason, now: Timestamp) -> Plan {
    update_record(record.revoked(reason, now))
}

/// A claim that never counted leaves no tombstone.
fn remove_record(record: &Record) -> Plan {
    Plan::Write(Write::RemoveRecord(Removal {
        name: record.name().to_owned(),
        uid: record.metadata.uid.clone(),
        resource_version: record.metadata.resource_version.clone(),
    }))
}

fn update_record(update: RecordUpdate) -> Plan {
    Plan::Write(Write::UpdateRecord(Box::new(update)))
}

fn create_record(observed: &Observed, declaration: &Declaration, key: NewKey, cause: Cause, now: Timestamp) -> Plan {
    let serial = match declaration.delivery {
        Delivery::Submitted(_) => 1,
        Delivery::Secret { .. } | Delivery::Source { .. } => observed.newest_serial().saturating_add(1),
    };
    let request = observed.rotate_request.as_ref();
    let record = NewRecord::new(&observed.reference, serial, key, cause, request, declaration, now);
    Plan::Write(Write::CreateRecord(Box::new(record)))
}

fn finalizers(observed: &Observed, with_ours: bool) -> Finalizers {
    let others = observed.other_finalizers().into_iter();
    let finalizers = others.chain(with_ours.then(|| FINALIZER.to_owned())).collect();
    Finalizers { finalizers, resource_version: observed.resource_version.clone() }
}

/// The Secret that the ApiKey names, with what it is to say of its key.
fn secret_with(observed: &Observed, declaration: &Declaration, annotations: &SecretAnnotations) -> Option<SecretDraft> {
    let Delivery::Secret { name, .. } = &declaration.delivery else { return None };
    let contents = SecretContents::declared(&observed.reference, declaration)?;
    Some(SecretDraft::new(&observed.reference, name, contents, &observed.secret, annotations))
}

/// The Secret that hands out the key after the next one, for a dry run: what would refuse it refuses every key. `None`
/// where none is wanted.
pub fn secret_to_probe(observed: &Observed, prefix: Prefix) -> Option<SecretDraft> {
    let annotations = SecretAnnotations {
        key_prefix: Some(prefix.to_string()),
        serial: Some(observed.newest_serial().saturating_add(1)),
        expires_at: None,
        is_managed: true,
    };
    secret_with(observed, observed.declared.as_ref().ok()?, &annotations)
}
