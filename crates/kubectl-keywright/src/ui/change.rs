//! What is written: a new ApiKey, a change of one, its deletion.

use jiff::{Timestamp, Zoned};
use keywright_core::api::{ApiKey, ROTATE_ANNOTATION};
use keywright_core::declaration::DEFAULT_SECRET_KEY;
use keywright_core::key::Key;
use rand::rngs::SysRng;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::form::{Deliver, Edit, NewKey, Problem, snippet};
use crate::change::{self, NotWritten};
use crate::cluster::Cluster;
use crate::view::rotation::{ends_early, is_pending, loss, new_request, obstacle, refusal};
use crate::view::state::capital;

/// Why nothing was changed.
#[derive(Debug)]
pub enum NotChanged {
    /// It was not written, as far as is known.
    NotWritten(NotWritten),
    /// What was typed has problems.
    Problems(Vec<Problem>),
    /// Another reason, in a sentence.
    Words(String),
    /// Somebody has asked for the same just now.
    AlreadyAsked,
    /// It is not as the page has shown it.
    Outdated,
}

/// A key that was created.
#[derive(Serialize)]
pub struct Created {
    uid: Option<String>,
    namespace: String,
    name: String,
    display: String,
    manifest: String,
    /// Where the key is, or the key itself, if it is shown once.
    #[serde(flatten)]
    delivery: Delivery,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Delivery {
    Secret {
        secret: String,
        entry: &'static str,
        snippet: String,
    },
    Once {
        prefix: String,
        #[serde(serialize_with = "revealed")]
        key: Key,
    },
}

fn revealed<S: Serializer>(key: &Key, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(key.reveal())
}

impl From<NotWritten> for NotChanged {
    fn from(error: NotWritten) -> Self {
        Self::NotWritten(error)
    }
}

/// Creates a key.
///
/// # Errors
/// See [`NotChanged`].
pub async fn create(cluster: &Cluster, form: &NewKey, now: Timestamp) -> Result<Created, NotChanged> {
    let key =
        match form.deliver {
            Deliver::Secret => None,
            Deliver::Once => Some(Key::mint(&mut SysRng).map_err(|error| {
                NotChanged::Words(format!("The operating system gives no random numbers: {error}."))
            })?),
        };
    let checked = form.check(key.as_ref().map(Key::digest).as_ref(), now);
    if !checked.problems.is_empty() {
        return Err(NotChanged::Problems(checked.problems));
    }
    let object = form.object(&checked.name, &checked.spec);
    let created = change::create(cluster, &form.namespace, &object).await?.value;
    let display = created.spec.display_name.clone().unwrap_or_else(|| checked.name.clone());
    let delivery = match key {
        Some(key) => Delivery::Once { prefix: key.prefix().to_string(), key },
        None => Delivery::Secret {
            secret: checked.name.clone(),
            entry: DEFAULT_SECRET_KEY,
            snippet: snippet(&checked.name),
        },
    };
    Ok(Created {
        uid: created.metadata.uid,
        namespace: form.namespace.clone(),
        name: checked.name,
        display,
        manifest: checked.manifest,
        delivery,
    })
}

/// Changes the spec of the ApiKey with this uid: of this generation, if one is given, and not what somebody else has declared since.
///
/// # Errors
/// See [`NotChanged`].
pub async fn edit(cluster: &Cluster, place: (&str, &str), form: &Edit, spec: &Value) -> Result<(), NotChanged> {
    let change = |seen: &ApiKey| match form.generation {
        Some(generation) if seen.metadata.generation != Some(generation) => Err(NotChanged::Outdated),
        _ => Ok(json!({ "spec": spec })),
    };
    change::edit(cluster, place, &form.uid, change).await.map(drop)
}

/// Asks for a new key.
///
/// # Errors
/// See [`NotChanged`]. An old key would end before its time: whoever agrees to that says so to the command.
pub async fn rotate(cluster: &Cluster, place: (&str, &str), uid: &str) -> Result<(), NotChanged> {
    match change::edit(cluster, place, uid, |seen| rotation(seen, place.1, &cluster.now())).await {
        Err(NotChanged::AlreadyAsked) => Ok(()),
        done => done.map(drop),
    }
}

/// The change that asks for a rotation, unless it would end an old key before its time.
fn rotation(seen: &ApiKey, name: &str, now: &Zoned) -> Result<Value, NotChanged> {
    if let Some(why) = refusal(seen) {
        return Err(NotChanged::Words(format!("{name} {why}.")));
    }
    if let Some(why) = obstacle(seen) {
        return Err(NotChanged::Words(format!("{name} {why}.")));
    }
    // A second click, or another tab: nobody wants two new keys.
    if is_pending(seen) {
        return Err(NotChanged::AlreadyAsked);
    }
    if let Some(old) = ends_early(seen, now) {
        let loss = loss(&old, now);
        let namespace = seen.metadata.namespace.as_deref().unwrap_or_default();
        let way = format!("Wait for its end, or run kubectl keywright rotate {name} -n {namespace}.");
        return Err(NotChanged::Words(format!("{} {way}", capital(&loss))));
    }
    Ok(json!({"metadata": {"annotations": {ROTATE_ANNOTATION: new_request(seen, now)}}}))
}

/// Has the keys of the ApiKey with this uid revoked.
///
/// # Errors
/// See [`NotChanged`].
pub async fn revoke(cluster: &Cluster, place: (&str, &str), uid: &str) -> Result<(), NotChanged> {
    change::delete(cluster, place, uid).await?;
    Ok(())
}
