//! `revoke`: says what will stop working, asks, deletes, and waits until no verifier accepts the keys.

use std::time::Duration;

use jiff::Zoned;
use keywright_core::api::ApiKey;

use super::follow::{Outcome, follow};
use crate::args::{Revoke, Selection};
use crate::change::{self, NotWritten};
use crate::failure::Failure;
use crate::interrupt::unless_pressed;
use crate::session::Session;
use crate::terminal::is_yes;
use crate::view::escape::escape;
use crate::view::hint::is_idle;
use crate::view::state::last_used_at;
use crate::view::time::{self, Form};
use crate::view::wait::{Progress, revoked, seconds};
use crate::workloads::Workloads;

/// As many keys are named.
const FEW: usize = 10;

/// An ApiKey that is to be revoked.
struct Target {
    name: String,
    uid: String,
}

/// What a person has to type.
#[derive(Debug, PartialEq, Eq)]
enum Question {
    /// Yes or no: nobody will miss it.
    YesOrNo(String),
    /// Exactly this.
    Typed { question: String, answer: String },
}

/// Revokes keys.
pub async fn run(session: &Session, asked: &Revoke) -> Result<(), Failure> {
    let keys = selected(session, asked).await?;
    if keys.is_empty() {
        session.terminal.say(&format!("No API key in {} matches. Nothing was revoked.", session.cluster.namespace));
        return Ok(());
    }
    if !asked.yes && !session.terminal.can_ask {
        return Err(Failure::usage("Add --yes to revoke unasked. Nothing was revoked."));
    }
    tell(session, &keys).await;
    if !asked.yes {
        session.terminal.say("Refused at once and for good.");
        let question = question(&keys, &session.cluster.now());
        if !question.is_answered_by(session.terminal.ask(question.text())?.as_deref()) {
            return Err(Failure::failed("Nothing was revoked."));
        }
    }
    let targets = delete(session, &keys).await?;
    wait(session, targets, asked.timeout).await
}

async fn selected(session: &Session, asked: &Revoke) -> Result<Vec<ApiKey>, Failure> {
    if asked.names.is_empty() {
        if asked.selector.is_none() && asked.owner.is_none() {
            return Err(Failure::usage("Say which keys: by NAME, --selector, or --owner. Nothing was revoked."));
        }
        let selection =
            Selection { all_namespaces: false, selector: asked.selector.clone(), owner: asked.owner.clone() };
        return session.apikeys(&selection).await;
    }
    let mut names = asked.names.clone();
    names.sort_unstable();
    names.dedup();
    let mut keys = Vec::new();
    for name in &names {
        keys.push(session.apikey(name).await?);
    }
    Ok(keys)
}

/// Says of each key what will stop working.
async fn tell(session: &Session, keys: &[ApiKey]) {
    let has_secrets = keys.iter().any(|key| secret_of(key).is_some());
    let workloads = match has_secrets {
        true => session.patiently(Workloads::read(&session.cluster, &session.cluster.namespace)).await,
        false => Workloads::default(),
    };
    let now = session.cluster.now();
    for key in keys {
        let name = key.metadata.name.as_deref().unwrap_or_default();
        let users = secret_of(key).map(|secret| workloads.using(secret)).unwrap_or_default();
        let place = format!("{name} in {} on {}", session.cluster.namespace, session.cluster.name);
        session.terminal.say(&format!("{place}: {}.", losses(key, &users, &now)));
    }
    if let Some(gaps) = workloads.gaps(&session.cluster.namespace) {
        session.terminal.say(&gaps);
    }
}

fn secret_of(key: &ApiKey) -> Option<&str> {
    key.status.as_ref()?.secret_name.as_deref()
}

/// What stops working: `used 4m ago, mounted by Deployment runner, 1 old key goes too`.
fn losses(key: &ApiKey, users: &[&str], now: &Zoned) -> String {
    let used = match last_used_at(key) {
        None => "never used".to_owned(),
        Some(at) => format!("used {}", time::ago(at, now, Form::Short)),
    };
    let mounted = (!users.is_empty()).then(|| format!("mounted by {}", users.join(", ")));
    let retiring = key.status.as_ref().map_or(0, |status| status.retiring.len());
    let old = match retiring {
        0 => None,
        1 => Some("1 old key goes too".to_owned()),
        number => Some(format!("{number} old keys go too")),
    };
    [Some(used), mounted, old].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Friction follows damage.
fn question(keys: &[ApiKey], now: &Zoned) -> Question {
    match keys {
        [key] => {
            let name = key.metadata.name.clone().unwrap_or_default();
            if is_idle(key, now) {
                Question::YesOrNo(format!("Revoke {name}? [y/N] "))
            } else {
                Question::Typed { question: format!("Type {name} to revoke: "), answer: name }
            }
        }
        many => {
            let number = many.len();
            Question::Typed { question: format!("Type {number} to revoke {number} keys: "), answer: number.to_string() }
        }
    }
}

impl Question {
    fn text(&self) -> &str {
        match self {
            Self::YesOrNo(question) | Self::Typed { question, .. } => question,
        }
    }

    /// No answer, an empty one and a wrong one change nothing.
    fn is_answered_by(&self, answer: Option<&str>) -> bool {
        match self {
            Self::YesOrNo(_) => is_yes(answer),
            Self::Typed { answer: right, .. } => answer == Some(right),
        }
    }
}

/// Deletes each as it was shown: not one that was made again under its name.
async fn delete(session: &Session, keys: &[ApiKey]) -> Result<Vec<Target>, Failure> {
    let mut line = session.terminal.progress();
    let mut targets = Vec::new();
    for key in keys {
        let name = key.metadata.name.clone().unwrap_or_default();
        let uid = key.metadata.uid.clone().unwrap_or_default();
        if keys.len() > 1 {
            line.count("Revoking", targets.len(), keys.len());
        }
        let deleted = change::delete(&session.cluster, (&session.cluster.namespace, &name), &uid);
        match unless_pressed(session.patiently(deleted)).await {
            Some(Ok(warnings)) => {
                if !warnings.is_empty() {
                    line.clear();
                    session.terminal.warn(&warnings);
                }
                targets.push(Target { name, uid });
            }
            stopped => return Err(stopped_at(session, stopped.and_then(Result::err), keys, targets.len())),
        }
    }
    Ok(targets)
}

/// What is to be said if it ended with the key after so many. Without a reason, somebody has pressed Ctrl-C.
fn stopped_at(session: &Session, reason: Option<NotWritten>, keys: &[ApiKey], done: usize) -> Failure {
    let rest = names(keys.iter().skip(done));
    let (name, left) = rest.split_first().map_or(("", &[][..]), |(name, left)| (*name, left));
    let Some(reason) = reason else {
        return Failure::interrupted(unknown(name)).adding(reached(done, left));
    };
    let failure = session.not_written("delete", name, &reason, &unknown(name));
    match reason {
        NotWritten::Unknown(_) => failure.adding(reached(done, left)),
        NotWritten::Refused(_) | NotWritten::Replaced if done == 0 => failure.adding("Nothing was revoked."),
        NotWritten::Refused(_) | NotWritten::Replaced => {
            failure.adding(format!("{name} was not revoked.")).adding(reached(done, left))
        }
    }
}

fn unknown(name: &str) -> String {
    format!("Whether {name} is being revoked is not known: look at it, and revoke it again.")
}

fn names<'a>(keys: impl Iterator<Item = &'a ApiKey>) -> Vec<&'a str> {
    keys.map(|key| key.metadata.name.as_deref().unwrap_or_default()).collect()
}

/// What has come of the others: `2 are being revoked. Not reached: ci, cd.`
fn reached(done: usize, left: &[&str]) -> String {
    let done = match done {
        0 => None,
        1 => Some("1 before it is being revoked.".to_owned()),
        done => Some(format!("{done} before it are being revoked.")),
    };
    let left = match left {
        [] => None,
        few if few.len() <= FEW => Some(format!("Not reached, and not revoked: {}.", few.join(", "))),
        many => Some(format!("Not reached, and not revoked: {} keys.", many.len())),
    };
    [done, left].into_iter().flatten().collect::<Vec<_>>().join(" ")
}

async fn wait(session: &Session, targets: Vec<Target>, timeout: Duration) -> Result<(), Failure> {
    let number = targets.len();
    let first = targets.first().map(|target| target.name.clone()).unwrap_or_default();
    let mut left = targets;
    let outcome = follow(session.waits(), session.attempt("get", &first), timeout, async |waited| {
        let mut last = Progress::Waiting("Waiting for the controller".to_owned());
        while let Some(target) = left.last() {
            let key = session.cluster.find::<ApiKey>(&session.cluster.namespace, &target.name).await?;
            last = revoked(key.as_ref(), &target.uid, waited, &session.cluster.now());
            if !matches!(last, Progress::Done(_)) {
                break;
            }
            left.pop();
        }
        Ok(match (last, left.len()) {
            (Progress::Waiting(what), 2..) => Progress::Waiting(format!("{} keys left. {what}", left.len())),
            (Progress::Done(_), _) if number > 1 => Progress::Done(all_done(number, waited)),
            (progress, _) => progress,
        })
    });
    let still = "Still being revoked; cannot be undone.";
    match outcome.await {
        Outcome::Done(done) => session.terminal.print(&format!("{}\n", escape(&done))),
        Outcome::Failed(why) => Err(Failure::failed(format!("{why} {still}"))),
        Outcome::Late(late) => Err(Failure::late(format!("{late} {still}"))),
        Outcome::Interrupted => Err(Failure::interrupted(still)),
    }
}

fn all_done(number: usize, waited: Duration) -> String {
    format!("Revoked {number} keys in {}. No verifier accepts them any more.", seconds(waited))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::view::fixtures::{apikey, now};

    #[test]
    fn what_stops_working_is_told_as_far_as_it_is_known() {
        let retiring = json!([{"serial": 1, "retiresAt": "2026-11-29T14:02:00Z"}]);
        for (key, users, said) in [
            (json!({}), vec!["Deployment runner"], "used 4m ago, mounted by Deployment runner"),
            (json!({"status": {"retiring": retiring}}), vec![], "used 4m ago, 1 old key goes too"),
            (json!({"status": {"lastUsedAt": null}}), vec![], "never used"),
        ] {
            assert_eq!(losses(&apikey(&key), &users, &now()), said);
        }
    }

    #[test]
    fn what_was_not_reached_is_named_or_counted() {
        let many = ["x"; 11];
        for (done, left, said) in [
            (0, &[][..], ""),
            (1, &[], "1 before it is being revoked."),
            (0, &["ci", "cd"], "Not reached, and not revoked: ci, cd."),
            (68, &many, "68 before it are being revoked. Not reached, and not revoked: 11 keys."),
        ] {
            assert_eq!(reached(done, left), said);
        }
    }

    #[test]
    fn a_key_in_use_is_revoked_by_its_name_and_an_idle_one_by_a_yes() {
        let in_use = question(&[apikey(&json!({}))], &now());
        assert_eq!(in_use.text(), "Type nightly-ci to revoke: ");
        let idle = question(&[apikey(&json!({"status": {"lastUsedAt": null}}))], &now());
        assert_eq!(idle.text(), "Revoke nightly-ci? [y/N] ");
        let many = question(&[apikey(&json!({})), apikey(&json!({}))], &now());
        assert_eq!(many.text(), "Type 2 to revoke 2 keys: ");
        for (question, answer, is_yes) in [
            (&in_use, Some("nightly-ci"), true),
            (&in_use, Some("y"), false),
            (&in_use, Some("Nightly-ci"), false),
            (&in_use, Some(""), false),
            (&in_use, None, false),
            (&idle, Some("y"), true),
            (&idle, Some("Yes"), true),
            (&idle, Some(""), false),
            (&idle, Some("n"), false),
            (&idle, None, false),
            (&many, Some("2"), true),
            (&many, Some("y"), false),
        ] {
            assert_eq!(question.is_answered_by(answer), is_yes, "{question:?} {answer:?}");
        }
    }
}
