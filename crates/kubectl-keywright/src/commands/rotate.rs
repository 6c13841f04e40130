//! `rotate`: asks for a new key, and waits until it is in its Secret.

use jiff::{Timestamp, Zoned};
use keywright_core::api::{ApiKey, ROTATE_ANNOTATION, Reason};
use keywright_core::lifecycle::MAX_OLDER_KEYS;
use serde_json::json;

use super::follow::{Outcome, follow};
use crate::args::Rotate;
use crate::failure::{ApiError, Failure};
use crate::interrupt::unless_pressed;
use crate::session::Session;
use crate::view::escape::escape;
use crate::view::state::{condition, is_going};
use crate::view::time::{self, Form};
use crate::view::wait::{Change, OlderKey, Rotation, Wanted, in_force, older_keys};

/// How often a change is tried again that somebody else was faster than.
const ATTEMPTS: usize = 5;

/// Rotates a key.
pub async fn run(session: &Session, asked: &Rotate) -> Result<(), Failure> {
    let (key, request) = ask(session, asked).await?;
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
        change: Change::Rotated(Rotation::asked_of(&key, &request)),
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
async fn ask(session: &Session, asked: &Rotate) -> Result<(ApiKey, String), Failure> {
    let name = &*asked.name;
    let mut conflicts = 0;
    let mut agreed = None;
    loop {
        let key = session.apikey(name).await?;
        if let Some(why) = refusal(&key) {
            return Err(Failure::usage(format!("{} {why}.", session.full_name(name))));
        }
        let now = session.cluster.now();
        let ending = ends_early(&key, &now);
        if let Some(old) = ending.filter(|old| agreed != Some(old.serial)) {
            agree(session, asked, &old, &now)?;
            agreed = Some(old.serial);
        }
        let request = request(&key, session.cluster.now().timestamp());
        let metadata = json!({
            "resourceVersion": key.metadata.resource_version, "annotations": {ROTATE_ANNOTATION: request},
        });
        let patch = json!({"metadata": metadata});
        let sent = session.cluster.patch::<ApiKey>(&session.cluster.namespace, name, &patch);
        let Some(answer) = unless_pressed(session.patiently(sent)).await else {
            return Err(Failure::interrupted(unknown(name)));
        };
        match answer {
            Ok(changed) => {
                session.terminal.warn(&changed.warnings);
                return Ok((changed.value, request));
            }
            Err(error) if error.is_conflict() && conflicts < ATTEMPTS => conflicts += 1,
            Err(error) if error.leaves_open() => return looked_up(session, &key, request, &error).await,
            Err(error) => return Err(session.attempt("patch", name).failed(&error)),
        }
    }
}

/// No answer is no refusal: whether the request is there tells the ApiKey itself.
async fn looked_up(
    session: &Session,
    asked_of: &ApiKey,
    request: String,
    error: &ApiError,
) -> Result<(ApiKey, String), Failure> {
    let name = asked_of.metadata.name.as_deref().unwrap_or_default();
    let stored = session.cluster.find::<ApiKey>(&session.cluster.namespace, name).await.ok().flatten();
    match stored.filter(|stored| stored.metadata.uid == asked_of.metadata.uid && annotation(stored) == Some(&request)) {
        Some(stored) => Ok((stored, request)),
        None => {
            let sentence = session.attempt("patch", name).sentence(error);
            Err(Failure::failed(format!("{sentence} {}", unknown(name))))
        }
    }
}

fn unknown(name: &str) -> String {
    format!("Whether {name} is being rotated is not known.")
}

/// The old key that another rotation would end at once.
fn ends_early(key: &ApiKey, now: &Zoned) -> Option<OlderKey> {
    let mut older = older_keys(key);
    older.retain(|old| old.ends > now.timestamp());
    (older.len() >= MAX_OLDER_KEYS).then(|| older.into_iter().next()).flatten()
}

/// Has somebody agree that an old key ends.
fn agree(session: &Session, asked: &Rotate, old: &OlderKey, now: &Zoned) -> Result<(), Failure> {
    session.terminal.say(&format!("{}: {}", session.full_name(&asked.name), loss(old, now)));
    if asked.yes {
        return Ok(());
    }
    if !session.terminal.can_ask {
        return Err(Failure::usage("Add --yes to rotate nevertheless. Nothing was rotated."));
    }
    let answer = session.terminal.ask(&format!("Rotate {}? [y/N] ", asked.name))?;
    let is_yes = answer.is_some_and(|answer| ["y", "yes"].contains(&&*answer.to_lowercase()));
    if is_yes { Ok(()) } else { Err(Failure::failed("Nothing was rotated.")) }
}

fn loss(old: &OlderKey, now: &Zoned) -> String {
    let used = match old.last_used_at {
        None => "never used since".to_owned(),
        Some(at) => format!("used {}", time::ago(at, now, Form::Short)),
    };
    let end = time::clock(old.ends, now);
    format!("old key {}, {used}, ends at once and not {end}: at most {MAX_OLDER_KEYS} old keys are let in.", old.shown)
}

/// Another value than the one before: only a change is a request.
fn request(key: &ApiKey, now: Timestamp) -> String {
    let request = now.to_string();
    if annotation(key) == Some(&request) { format!("{request} again") } else { request }
}

fn annotation(key: &ApiKey) -> Option<&String> {
    key.metadata.annotations.as_ref().and_then(|annotations| annotations.get(ROTATE_ANNOTATION))
}

/// Why no rotation can be asked for.
fn refusal(key: &ApiKey) -> Option<&'static str> {
    if is_going(key) {
        return Some("is being revoked");
    }
    let made_elsewhere = "has a key that was made elsewhere: declare the digest of another key in another ApiKey";
    let in_a_source = "takes its key from a Secret of somebody else: write another key into that Secret";
    let has_source = key.spec.key_from.is_some();
    key.spec.key_hash.is_some().then_some(made_elsewhere).or(has_source.then_some(in_a_source))
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
            (json!({"spec": {"keyFrom": {"secretRef": {"name": "x", "key": "y"}}}}), true, false),
            (json!({"reason": "Suspended"}), false, true),
            (json!({"reason": "Expired"}), false, true),
        ] {
            let object = apikey(&key);
            assert_eq!((refusal(&object).is_some(), obstacle(&object).is_some()), (is_refused, waits), "{key}");
        }
    }

    #[test]
    fn the_key_that_a_rotation_ends_is_the_oldest_of_two_that_are_let_in() {
        let (over, later) = ("2026-11-29T13:04:00Z", "2026-11-29T14:02:00Z");
        for (ends, serial) in [
            (vec![], None),
            (vec![(2, later)], None),
            (vec![(2, later), (3, later)], Some(2)),
            (vec![(3, later), (2, later)], Some(2)),
            (vec![(2, over), (3, later)], None),
        ] {
            let retiring: Vec<_> =
                ends.iter().map(|(serial, end)| json!({"serial": serial, "retiresAt": end})).collect();
            let key = apikey(&json!({"status": {"retiring": retiring}}));
            assert_eq!(ends_early(&key, &now()).map(|old| old.serial), serial, "{ends:?}");
        }
        let old = OlderKey {
            serial: 2,
            shown: "keyw1_Aa11bb22".to_owned(),
            ends: later.parse().unwrap(),
            last_used_at: Some("2026-11-29T13:01:00Z".parse().unwrap()),
        };
        let said = "old key keyw1_Aa11bb22, used 4m ago, ends at once and not 15:02: at most 2 old keys are let in.";
        assert_eq!(loss(&old, &now()), said);
    }
}
