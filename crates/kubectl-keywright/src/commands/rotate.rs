//! `rotate`: asks for a new key, and waits until it is in its Secret.

use jiff::Timestamp;
use keywright_core::api::{ApiKey, ROTATE_ANNOTATION, Reason};
use keywright_core::lifecycle::RotateRequest;
use serde_json::json;

use super::follow::{Outcome, follow};
use crate::args::Rotate;
use crate::failure::Failure;
use crate::session::Session;
use crate::view::escape::escape;
use crate::view::state::{condition, is_going};
use crate::view::wait::{Change, Wanted, in_force};

/// How often a change is tried again that somebody else was faster than.
const ATTEMPTS: usize = 5;

/// Rotates a key.
pub async fn run(session: &Session, asked: &Rotate) -> Result<(), Failure> {
    let (key, request) = ask(session, &asked.name).await?;
    let name = session.full_name(&asked.name);
    if !asked.wait {
        session.terminal.say(&format!("{name}: a new key is on its way."));
        return Ok(());
    }
    if let Some(obstacle) = obstacle(&key) {
        return Err(Failure::late(format!("{name} {obstacle}.")));
    }
    let wanted = Wanted {
        uid: key.metadata.uid.clone().unwrap_or_default(),
        generation: key.metadata.generation.unwrap_or(1),
        change: Change::Rotated(RotateRequest::read(&request).shown),
    };
    let outcome = follow(session.waits(), session.attempt("get", &asked.name), asked.timeout, async |waited| {
        let key = session.cluster.find::<ApiKey>(&session.cluster.namespace, &asked.name).await?;
        Ok(in_force(key.as_ref(), &wanted, waited, &session.cluster.now()))
    });
    match outcome.await {
        Outcome::Done(done) => session.terminal.print(&format!("{}\n", escape(&done))),
        Outcome::Failed(why) => Err(Failure::failed(format!("{name}: {why}"))),
        Outcome::Late(still) => Err(Failure::late(format!("{name}: not rotated yet. {still} It goes on by itself."))),
        Outcome::Interrupted => Err(Failure::interrupted(format!("{name}: the rotation goes on by itself."))),
    }
}

/// Sets the annotation to a new value; the ApiKey afterwards, and the value.
async fn ask(session: &Session, name: &str) -> Result<(ApiKey, String), Failure> {
    let mut conflicts = 0;
    loop {
        let key = session.apikey(name).await?;
        if let Some(why) = refusal(&key) {
            return Err(Failure::usage(format!("{} {why}.", session.full_name(name))));
        }
        let request = request(&key, session.cluster.now().timestamp());
        let metadata = json!({
            "resourceVersion": key.metadata.resource_version, "annotations": {ROTATE_ANNOTATION: request},
        });
        match session.cluster.patch::<ApiKey>(&session.cluster.namespace, name, &json!({"metadata": metadata})).await {
            Ok(changed) => {
                session.terminal.warn(&changed.warnings);
                return Ok((changed.value, request));
            }
            Err(error) if error.is_conflict() && conflicts < ATTEMPTS => conflicts += 1,
            Err(error) => return Err(session.attempt("patch", name).failed(&error)),
        }
    }
}

/// Another value than the one before: only a change is a request.
fn request(key: &ApiKey, now: Timestamp) -> String {
    let before = key.metadata.annotations.as_ref().and_then(|annotations| annotations.get(ROTATE_ANNOTATION));
    let request = now.to_string();
    if before == Some(&request) { format!("{request} again") } else { request }
}

/// Why no rotation can be asked for.
fn refusal(key: &ApiKey) -> Option<&'static str> {
    if is_going(key) {
        return Some("is being revoked");
    }
    let made_elsewhere = "has a key that was made elsewhere: declare the digest of another key in another ApiKey";
    key.spec.key_hash.is_some().then_some(made_elsewhere)
}

/// Why a rotation that was asked for waits for a person.
fn obstacle(key: &ApiKey) -> Option<&'static str> {
    match condition(key, &keywright_core::api::ConditionType::Active).map(|active| &active.reason) {
        Some(Reason::Suspended) => Some("is suspended: its rotation waits until it is resumed"),
        Some(Reason::Expired) => Some("has expired: its rotation waits until its end is moved"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::fixtures::{apikey, now};

    #[test]
    fn every_request_is_a_new_one() {
        let now = now().timestamp();
        let first = request(&apikey(&json!({})), now);
        let annotated = apikey(&json!({"metadata": {"annotations": {ROTATE_ANNOTATION: first}}}));
        assert_ne!(request(&annotated, now), first);
    }

    #[test]
    fn what_cannot_be_rotated_is_told() {
        for (key, is_refused, waits) in [
            (json!({}), false, false),
            (json!({"deleted": true}), true, false),
            (json!({"spec": {"keyHash": "sha256:0"}}), true, false),
            (json!({"reason": "Suspended"}), false, true),
            (json!({"reason": "Expired"}), false, true),
        ] {
            let object = apikey(&key);
            assert_eq!((refusal(&object).is_some(), obstacle(&object).is_some()), (is_refused, waits), "{key}");
        }
    }
}
