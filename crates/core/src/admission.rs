//! PURE. What the API server asks about an ApiKey before it stores it: a review in, a verdict out.
//!
//! It asks twice. `/mutate` comes before its own schema and CEL checks: what is left out is filled in, and what is wrong
//! is refused there already, because the reasons and hints given here say more than a schema can. `/validate` comes
//! last, after every other admission webhook, and judges what is about to be stored.
//!
//! A spec is read by [`declaration::read`], as the controller reads it. What is judged here besides is what only the
//! moment of the request can tell: who asks, and what the object was before.
//!
//! An update is not refused for a field of `spec` that was as bad before and that it leaves as it is, so that an object
//! which is older than a rule can still be labelled, suspended, or mended one field at a time. The API server does the
//! same with a schema's rules ("ratcheting", KEP-4008).

mod completion;
pub mod review;
mod warnings;

use jiff::Timestamp;
use serde_json::Value;

use crate::address::{as_written, printable};
use crate::api::{CREATED_BY_ANNOTATION, GROUP, VERSION};
use crate::declaration::{self, DEFAULT_SECRET_KEY, OWNER_RULE, Problem};
use completion::Completion;
use review::{Object, Operation, PatchOperation, Request};

/// What the API server asks for, one path each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// What is to be filled in? `/mutate`.
    Mutating,
    /// May it be stored? `/validate`.
    Validating,
}

/// The answer to a review.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It goes on.
    Allowed {
        /// What is filled in; empty when validating.
        patch: Vec<PatchOperation>,
        /// For the person who asks, each with the object's name. At most 256 characters, or the API server cuts them.
        warnings: Vec<String>,
    },
    /// The object is wrong: everything that is, at once.
    Invalid(Vec<Problem>),
    /// Not a question for this webhook: whoever configured it has to be told.
    Misdirected(String),
}

/// An ApiKey as far as it is judged: as it will be, or as it was.
struct ApiKey<'a> {
    name: &'a str,
    created_by: Option<&'a str>,
    spec: Value,
}

/// Answers the question of `phase` about a request that is made at `now`.
pub fn judge(phase: Phase, request: &Request<'_>, now: Timestamp) -> Verdict {
    if (&*request.resource.group, &*request.resource.resource) != (GROUP, "apikeys")
        || request.resource.version != VERSION
    {
        return Verdict::Misdirected(format!(
            "this webhook judges apikeys.{VERSION}.{GROUP} and was asked about {}: correct the webhook configuration",
            request.resource
        ));
    }
    let nothing_to_say = Verdict::Allowed { patch: Vec::new(), warnings: Vec::new() };
    // A status is the controller's, and a deletion is never held up here.
    if request.sub_resource == "status" || request.operation == Operation::Delete {
        return nothing_to_say;
    }
    if !request.sub_resource.is_empty() || request.operation == Operation::Connect {
        return Verdict::Misdirected(format!(
            "this webhook judges the creation and update of ApiKeys and was asked about {:?} of {}/{}: correct the \
             webhook configuration",
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
    // Its keys are being revoked, and all that is left to come is the removal of the finalizer. The new object does
    // not tell: whoever sends it can leave the time out, or put one in.
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
    // An old spec that cannot be read is like none: nothing in the new one is as it was.
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

impl<'a> ApiKey<'a> {
    /// Without its spec.
    fn of(object: &'a Object<'_>) -> Self {
        let Object { metadata, .. } = object;
        Self { name: &metadata.name, created_by: metadata.created_by(), spec: Value::Null }
    }

    fn text(&self, field: &str) -> Option<&str> {
        self.spec.pointer(field).and_then(Value::as_str)
    }

    fn secret_name(&self) -> &str {
        self.text("/secret/name").unwrap_or(self.name)
    }

    fn secret_key(&self) -> &str {
        self.text("/secret/key").unwrap_or(DEFAULT_SECRET_KEY)
    }

    fn has_owner(&self) -> bool {
        self.spec.get("owner").is_some_and(|owner| !owner.is_null())
    }
}

/// What only the request can tell: who made the object, who owns it, and what must stay as it was.
fn identity_problems(new: &ApiKey<'_>, old: Option<&ApiKey<'_>>, user: &str) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut refuse = |path: &str, rule: String| problems.push(Problem { path: path.to_owned(), rule });
    let created_by = format!("metadata.annotations[{CREATED_BY_ANNOTATION}]");
    let Some(old) = old else {
        if new.created_by != Some(user) {
            refuse(
                &created_by,
                "must name the requesting user, as /mutate stamps it; does another webhook change it?".to_owned(),
            );
        }
        // A spec that is none is told as such.
        if !new.has_owner() && new.spec.is_object() {
            let hint = match declaration::is_owner(user) {
                true => "name the person of responsibility".to_owned(),
                false => format!("your user name \"{}\" will not do as one, which {OWNER_RULE}", as_written(user)),
            };
            refuse("spec.owner", format!("is missing: {hint}"));
        }
        return problems;
    };
    if new.created_by != old.created_by {
        refuse(&created_by, "must stay as /mutate stamped it; does another webhook change it?".to_owned());
    }
    if !new.has_owner() && old.has_owner() && new.spec.is_object() {
        refuse("spec.owner", "can be changed and not removed: name the new owner".to_owned());
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
    if new.text("/keyHash") != old.text("/keyHash") {
        refuse("spec.keyHash", "is immutable: create another ApiKey for another key".to_owned());
    }
    problems
}

/// Whether the field of `spec` that a problem is in stands as it stood before. A problem between fields, at `spec`
/// itself, is new whenever anything is.
fn is_unchanged(path: &str, new: &Value, old: &Value) -> bool {
    match path.strip_prefix("spec.").and_then(|rest| rest.split(['.', '[']).next()) {
        Some(field) => new.get(field) == old.get(field),
        None => new == old,
    }
}

#[cfg(test)]
mod tests;
