//! Decides an admission review of an ApiKey: a review in, a verdict out.
//!
//! The API server asks twice. `/mutate` comes before the schema and CEL checks. It fills in what is left out, and it
//! already refuses what is wrong, because its messages say more than a schema can. `/validate` comes last, after every
//! other admission webhook, and decides on the object that is about to be stored.
//!
//! [`declaration::read`] reads the spec, as in the controller. This module adds the checks that need the request: who
//! asks, and what the object was before.
//!
//! An update is not refused for a bad field of `spec` that it does not change. So an object that is older than a rule can
//! still be labelled, suspended, or corrected one field at a time. The API server does the same with a schema's rules
//! ("ratcheting", KEP-4008).

mod completion;
pub mod review;
mod reviewed;
mod warnings;

use jiff::Timestamp;
use serde_json::Value;

use self::completion::Completion;
pub use self::review::Verdict;
use self::review::{Object, Operation, Request};
use self::reviewed::ApiKey;
use crate::address::{as_written, printable};
use crate::api::{CREATED_BY_ANNOTATION, GROUP, VERSION};
use crate::declaration::{self, Problem};
use crate::words::Owner;

/// The two questions of the API server, one path each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// `/mutate`: fill in what is left out.
    Mutating,
    /// `/validate`: decide whether the object may be stored.
    Validating,
}

/// Decides on a request that was made at `now`.
pub fn judge(phase: Phase, request: &Request<'_>, now: Timestamp) -> Verdict {
    if (&*request.resource.group, &*request.resource.resource) != (GROUP, "apikeys")
        || request.resource.version != VERSION
    {
        return Verdict::Misdirected(format!(
            "this webhook handles apikeys.{VERSION}.{GROUP}, not {}: correct the rules of the webhook configuration",
            request.resource
        ));
    }
    let nothing_to_say = Verdict::Allowed { patch: Vec::new(), warnings: Vec::new() };
    // The controller writes the status, and a deletion is never refused here.
    if request.sub_resource == "status" || request.operation == Operation::Delete {
        return nothing_to_say;
    }
    if !request.sub_resource.is_empty() || request.operation == Operation::Connect {
        return Verdict::Misdirected(format!(
            "this webhook handles CREATE and UPDATE of ApiKeys, not {:?} of {}/{}: correct the rules of the webhook \
             configuration",
            request.operation, request.resource, request.sub_resource
        ));
    }
    let Some(object) = &request.object else {
        return Verdict::Misdirected(format!("request.object is missing in a review of {:?}", request.operation));
    };
    let old = match request.operation {
        Operation::Create => None,
        _ if request.old_object.is_none() => {
            return Verdict::Misdirected("request.oldObject is missing in a review of UPDATE".to_owned());
        }
        _ => request.old_object.as_ref(),
    };
    // The object is being deleted: only the removal of the finalizer is still to come. The new object does not prove it,
    // because a client can set or omit `deletionTimestamp`.
    if old.is_some_and(|old| old.metadata.is_being_deleted()) {
        return nothing_to_say;
    }
    judge_object(phase, request, object, old, now)
}

fn judge_object(
    phase: Phase,
    request: &Request<'_>,
    object: &Object<'_>,
    old: Option<&Object<'_>>,
    now: Timestamp,
) -> Verdict {
    let spec = match object.spec() {
        Ok(spec) => spec,
        Err(problem) => return Verdict::Invalid(vec![problem]),
    };
    // An old spec that cannot be read counts as empty: every field of the new one has changed.
    let old = old.map(|old| ApiKey { spec: old.spec().unwrap_or_default(), ..ApiKey::of(old) });
    let mut new = ApiKey { spec, ..ApiKey::of(object) };
    let mut completion = Completion::default();
    if phase == Phase::Mutating {
        completion.complete(&mut new, object, old.as_ref(), &request.user);
    }

    let mut problems = Vec::new();
    let created = object.metadata.created().unwrap_or(now);
    let read = declaration::read(&new.spec, new.name, created);
    let mut warnings = completion.warnings;
    match &read {
        Ok(declaration) if phase == Phase::Validating && old.as_ref().is_none_or(|old| old.spec != new.spec) => {
            warnings = warnings::about(declaration, &new.spec, now);
        }
        Ok(_) => {}
        Err(found) => {
            let (tolerated, refused) = found.iter().cloned().partition::<Vec<_>, _>(|problem| {
                old.as_ref().is_some_and(|old| is_unchanged(&problem.path, &new.spec, &old.spec))
            });
            problems.extend(refused);
            if phase == Phase::Validating {
                warnings = warnings::about_tolerated(&tolerated);
            }
        }
    }
    problems.extend(identity_problems(&new, old.as_ref(), &request.user));
    if problems.is_empty() {
        let warnings = warnings::about_object(&request.namespace, &request.object_name(), warnings);
        Verdict::Allowed { patch: completion.patch, warnings }
    } else {
        Verdict::Invalid(problems)
    }
}

/// Problems that need the request or the old object: creator, owner, and fields that must not change.
fn identity_problems(new: &ApiKey<'_>, old: Option<&ApiKey<'_>>, user: &str) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut refuse = |path: &str, rule: String| problems.push(Problem { path: path.to_owned(), rule });
    let created_by = format!("metadata.annotations[{CREATED_BY_ANNOTATION}]");
    let Some(old) = old else {
        if new.created_by != Some(user) {
            refuse(
                &created_by,
                "must name the requesting user, as /mutate sets it: check whether another webhook changes it"
                    .to_owned(),
            );
        }
        // A missing spec has its own message.
        if !new.has_owner() && new.spec.is_object() {
            let hint = match Owner::parse(user) {
                Some(_) => "name the responsible person".to_owned(),
                None => format!(
                    "name the person; your user name \"{}\" is not a valid owner: it {}",
                    as_written(user),
                    Owner::RULE
                ),
            };
            refuse("spec.owner", format!("is missing: {hint}"));
        }
        return problems;
    };
    if new.created_by != old.created_by {
        refuse(&created_by, "must stay as /mutate set it: check whether another webhook changes it".to_owned());
    }
    if !new.has_owner() && old.has_owner() && new.spec.is_object() {
        refuse("spec.owner", "cannot be removed: name the new owner".to_owned());
    }
    if new.secret_name() != old.secret_name() {
        let stays = printable(old.secret_name());
        refuse(
            "spec.secret.name",
            format!("is immutable, and is \"{stays}\": create another ApiKey for another Secret"),
        );
    }
    if new.secret_key() != old.secret_key() {
        let stays = printable(old.secret_key());
        refuse(
            "spec.secret.key",
            format!("is immutable, and is \"{stays}\": create another ApiKey for another data key"),
        );
    }
    if new.spec.get("keyFrom") != old.spec.get("keyFrom") {
        refuse("spec.keyFrom", "is immutable: create another ApiKey for another source".to_owned());
    }
    if new.secret_type() != old.secret_type() {
        let stays = printable(old.secret_type());
        refuse(
            "spec.secret.template.type",
            format!("is immutable, and is \"{stays}\": create another ApiKey for another type"),
        );
    }
    if new.text("/keyHash") != old.text("/keyHash") {
        refuse("spec.keyHash", "is immutable: create another ApiKey for another key".to_owned());
    }
    problems
}

/// Whether the field of `spec` that a problem is about has not changed. A problem at `spec` itself is about all fields.
fn is_unchanged(path: &str, new: &Value, old: &Value) -> bool {
    match path.strip_prefix("spec.").and_then(|rest| rest.split(['.', '[']).next()) {
        Some(field) => new.get(field) == old.get(field),
        None => new == old,
    }
}

#[cfg(test)]
mod tests;
