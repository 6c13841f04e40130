//! Waiting for what a user would see: through watches, with a deadline, and saying what was last seen instead.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::panic::Location;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// How long anything may take that normally takes a second or two.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Asks again and again until the answer is yes, for what no watch tells.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !is_so().await {
        assert!(started.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until the object of that name satisfies the condition.
#[track_caller]
pub fn for_object<K>(api: &Api<K>, name: &str, condition: impl Fn(&K) -> bool) -> impl Future<Output = K>
where
    K: Resource<DynamicType: Default> + Clone + Debug + Serialize + DeserializeOwned + Send + 'static,
{
    let found = for_objects(api, named(name), DEADLINE, move |objects: &[K]| objects.iter().any(&condition));
    async { found.await.remove(0) }
}

/// Waits until there is no object of that name.
#[track_caller]
pub fn for_absence<K>(api: &Api<K>, name: &str) -> impl Future<Output = ()>
where
    K: Resource<DynamicType: Default> + Clone + Debug + Serialize + DeserializeOwned + Send + 'static,
{
    let gone = for_objects(api, named(name), DEADLINE, |objects: &[K]| objects.is_empty());
    async { drop(gone.await) }
}

/// Waits until the objects that the watch selects, in order of their names, satisfy the condition.
#[track_caller]
pub fn for_objects<K>(
    api: &Api<K>,
    selected: Config,
    deadline: Duration,
    condition: impl Fn(&[K]) -> bool,
) -> impl Future<Output = Vec<K>>
where
    K: Resource<DynamicType: Default> + Clone + Debug + Serialize + DeserializeOwned + Send + 'static,
{
    let (api, caller) = (api.clone(), Location::caller());
    async move {
        let mut seen = Seen { objects: BTreeMap::new(), complete: false, error: None };
        let waited = tokio::time::timeout(deadline, seen.until(api, selected, condition)).await;
        waited.unwrap_or_else(|_| panic!("{caller}: not within {deadline:?}. {}", seen.describe()))
    }
}

fn named(name: &str) -> Config {
    Config::default().fields(&format!("metadata.name={name}"))
}

struct Seen<K> {
    objects: BTreeMap<(Option<String>, String), K>,
    /// The first list is in: what is not there is absent and not merely unknown.
    complete: bool,
    error: Option<String>,
}

impl<K> Seen<K>
where
    K: Resource<DynamicType: Default> + Clone + Debug + Serialize + DeserializeOwned + Send + 'static,
{
    async fn until(&mut self, api: Api<K>, selected: Config, condition: impl Fn(&[K]) -> bool) -> Vec<K> {
        let mut events = pin!(watcher(api, selected).default_backoff());
        loop {
            match events.next().await.expect("a watch is renewed for ever") {
                Ok(Event::Init) => (self.objects, self.complete) = (BTreeMap::new(), false),
                Ok(Event::InitDone) => self.complete = true,
                Ok(Event::Apply(object) | Event::InitApply(object)) => drop(self.objects.insert(key(&object), object)),
                Ok(Event::Delete(object)) => drop(self.objects.remove(&key(&object))),
                Err(error) => self.error = Some(error.to_string()),
            }
            let objects: Vec<K> = self.objects.values().cloned().collect();
            if self.complete && condition(&objects) {
                return objects;
            }
        }
    }

    fn describe(&self) -> String {
        let error = self.error.iter().map(|error| format!("The watch's last error: {error}\n")).collect::<String>();
        let objects = serde_json::to_value(self.objects.values().collect::<Vec<_>>()).unwrap_or_default();
        let objects = serde_yaml::to_string(&without_secrets(objects)).unwrap_or_default();
        format!("Last seen:\n{objects}{error}")
    }
}

fn key<K: Resource>(object: &K) -> (Option<String>, String) {
    (object.namespace(), object.name_any())
}

/// The same, without what must not be in any output: Secrets' data, and kubectl's copies of whole objects. Without
/// `managedFields` too, which nobody reads.
pub(crate) fn without_secrets(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(without_secrets).collect(),
        Value::Object(fields) => {
            let secret = fields.get("kind").is_some_and(|kind| kind == "Secret");
            let hidden = ["kubectl.kubernetes.io/last-applied-configuration", "managedFields"];
            let shown = |name: &str| !(hidden.contains(&name) || secret && (name == "data" || name == "stringData"));
            let fields = fields.into_iter().filter(|(name, _)| shown(name));
            fields.map(|(name, value)| (name, without_secrets(value))).collect()
        }
        scalar => scalar,
    }
}
