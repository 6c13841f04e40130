//! What is written: a new ApiKey, a change of one, its deletion.

use std::time::Duration;

use jiff::Timestamp;
use keywright_core::api::{ApiKey, ROTATE_ANNOTATION};
use keywright_core::key::Key;
use rand::rngs::SysRng;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::form::{Deliver, NewKey, Problem, snippet};
use crate::cluster::Cluster;
use crate::failure::ApiError;

/// How often a change is looked at again because somebody else was faster.
const TRIES: usize = 4;

/// Seconds before each look for what may have come of a request without an answer.
const LOOKS: [u64; 4] = [0, 1, 3, 6];

/// Why nothing was changed.
#[derive(Debug)]
pub enum NotChanged {
    /// The API server said no, or nothing.
    Api(ApiError),
    /// What was typed has problems.
    Problems(Vec<Problem>),
    /// Another reason, in a sentence.
    Words(String),
}

/// A key that was created.
#[derive(Serialize)]
pub struct Created {
    uid: Option<String>,
    namespace: String,
    name: String,
    display: String,
    manifest: String,
    /// The key itself, if it is shown once.
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

impl From<ApiError> for NotChanged {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
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
    let created = match cluster.create::<ApiKey>(&form.namespace, &object, false).await {
        Ok(created) => created.value,
        Err(error) if error.leaves_open() => {
            let digest = key.as_ref().map(|key| key.digest().to_string());
            find_created(cluster, &form.namespace, &checked.name, digest).await.ok_or(error)?
        }
        Err(error) => return Err(error.into()),
    };
    let display = created.spec.display_name.clone().unwrap_or_else(|| checked.name.clone());
    let delivery = match key {
        Some(key) => Delivery::Once { prefix: key.prefix().to_string(), key },
        None => Delivery::Secret { secret: checked.name.clone(), entry: "api-key", snippet: snippet(&checked.name) },
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

/// The ApiKey whose creation had no answer, if it is there: its digest is nobody else's. Without it the key would be lost, and
/// stay valid.
async fn find_created(cluster: &Cluster, namespace: &str, name: &str, digest: Option<String>) -> Option<ApiKey> {
    let digest = digest?;
    for pause in LOOKS {
        tokio::time::sleep(Duration::from_secs(pause)).await;
        if let Ok(found) = cluster.find::<ApiKey>(namespace, name).await {
            return found.filter(|found| found.spec.key_hash.as_ref() == Some(&digest));
        }
    }
    None
}

/// Changes the spec of the ApiKey with this uid.
///
/// # Errors
/// See [`NotChanged`].
pub async fn edit(cluster: &Cluster, namespace: &str, name: &str, uid: &str, spec: &Value) -> Result<(), NotChanged> {
    write(cluster, namespace, name, uid, |version| json!({"metadata": {"resourceVersion": version}, "spec": spec}))
        .await
}

/// Asks for a new key. Two requests never have the same value.
///
/// # Errors
/// See [`NotChanged`].
pub async fn rotate(cluster: &Cluster, namespace: &str, name: &str, uid: &str) -> Result<(), NotChanged> {
    let request = format!("{}-{:08x}", cluster.now().timestamp().strftime("%Y-%m-%dT%H:%M:%SZ"), rand::random::<u32>());
    let change = |version: Option<String>| {
        let annotations = json!({ROTATE_ANNOTATION: request});
        json!({"metadata": {"resourceVersion": version, "annotations": annotations}})
    };
    write(cluster, namespace, name, uid, change).await
}

/// Has the keys of the ApiKey with this uid revoked.
///
/// # Errors
/// See [`NotChanged`].
pub async fn revoke(cluster: &Cluster, namespace: &str, name: &str, uid: &str) -> Result<(), NotChanged> {
    match cluster.delete::<ApiKey>(namespace, name, uid).await {
        Ok(_) => Ok(()),
        // Somebody else was faster: what was asked for is so.
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) if error.is_conflict() => Err(gone(name)),
        Err(error) => Err(error.into()),
    }
}

async fn write(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    uid: &str,
    change: impl Fn(Option<String>) -> Value,
) -> Result<(), NotChanged> {
    let mut tries = 0;
    loop {
        let seen: ApiKey = cluster.get(namespace, name).await?;
        if seen.metadata.uid.as_deref() != Some(uid) {
            return Err(gone(name));
        }
        let patch = change(seen.metadata.resource_version);
        tries += 1;
        match cluster.patch::<ApiKey>(namespace, name, &patch).await {
            Ok(_) => return Ok(()),
            Err(error) if error.is_conflict() && tries < TRIES => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn gone(name: &str) -> NotChanged {
    NotChanged::Words(format!("{name} was revoked, and is another key now. Look at it again."))
}
