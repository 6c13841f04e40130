//! `rotate`: asks for a new key, and waits until it is in its Secret.

use jiff::Zoned;
use keywright_core::api::{ApiKey, ROTATE_ANNOTATION};
use serde_json::json;

use super::follow::{Outcome, follow};
use crate::args::Rotate;
use crate::change;
use crate::failure::Failure;
use crate::interrupt::unless_pressed;
use crate::session::Session;
use crate::terminal::is_yes;
use crate::view::escape::escape;
use crate::view::rotation::{OlderKey, Rotation, ends_early, loss, new_request, obstacle, refusal};
use crate::view::wait::{Change, Wanted, in_force};

/// How often a change is tried again that somebody else was faster than.
const ATTEMPTS: usize = 5;

/// Rotates a key.
pub async fn run(session: &Session, asked: &Rotate) -> Result<(), Failure> {
    let (key, request) = ask(session, asked).await?;
    let name = session.full_name(&asked.name);
    match (obstacle(&key), asked.wait) {
        (Some(obstacle), false) => session.terminal.say(&format!("{name} {obstacle}.")),
        (Some(obstacle), true) => return Err(Failure::late(format!("{name} {obstacle}."))),
        (None, false) => session.terminal.say(&format!("{name}: a new key is on its way.")),
        (None, true) => return wait(session, asked, &key, &request).await,
    }
    Ok(())
}

async fn wait(session: &Session, asked: &Rotate, key: &ApiKey, request: &str) -> Result<(), Failure> {
    let name = session.full_name(&asked.name);
    let wanted = Wanted::of(key, Change::Rotated(Rotation::asked_of(key, request)));
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
    let unknown = format!("Whether {name} is being rotated is not known.");
    let mut conflicts = 0;
    let mut agreed = None;
    loop {
        let key = session.apikey(name).await?;
        if let Some(why) = refusal(&key) {
            return Err(Failure::usage(format!("{} {why}.", session.full_name(name))));
        }
        let now = session.cluster.now();
        if let Some(old) = ends_early(&key, &now).filter(|old| agreed != Some(old.serial)) {
            agree(session, asked, &old, &now)?;
            agreed = Some(old.serial);
        }
        let request = new_request(&key, &session.cluster.now());
        let change = json!({"metadata": {"annotations": {ROTATE_ANNOTATION: request}}});
        let sent = session.patiently(change::patch(&session.cluster, &key, &change));
        let Some(answer) = unless_pressed(sent).await else {
            return Err(Failure::interrupted(unknown));
        };
        match answer {
            Ok(changed) => {
                session.terminal.warn(&changed.warnings);
                return Ok((changed.value, request));
            }
            Err(error) if error.is_conflict() && conflicts < ATTEMPTS => conflicts += 1,
            Err(error) => return Err(session.not_written("patch", name, &error, &unknown)),
        }
    }
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
    if is_yes(answer.as_deref()) { Ok(()) } else { Err(Failure::failed("Nothing was rotated.")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::fixtures::apikey;

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
}
