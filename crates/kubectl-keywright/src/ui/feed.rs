//! What happens to the ApiKeys of a namespace: a watch on the user's rights, as messages for the page.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use jiff::Zoned;
use keywright_core::api::ApiKey;
use keywright_core::declaration::is_dns_subdomain;
use kube::Api;
use kube::core::{ApiResource, DynamicObject};
use kube::runtime::watcher::{self, Event, watcher};
use serde::Serialize;
use tokio::sync::mpsc::Sender;

use super::row::Listed;
use crate::cluster::{Cluster, innermost, read};

/// Rows in one message of the first list.
const BATCH: usize = 500;
/// How often the clock changes a state or a hint.
const TICK: Duration = Duration::from_secs(10);
/// Seconds after which the API server ends a watch, and another one begins.
const WATCH: u32 = 30;
/// A connection that brings nothing for so long is given up: the end of a watch would have come.
const SILENCE: Duration = Duration::from_secs(40);
/// How long after a failure the API server is asked again: longer each time.
const PAUSES: [u64; 4] = [2, 5, 10, 30];

/// What the page is told.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Message {
    /// The API server's time, in seconds.
    Now(i64),
    /// The first rows.
    Rows(Vec<Listed>),
    /// The first rows are all in.
    Complete(bool),
    /// A new row, or one that has changed.
    Row(Box<Listed>),
    /// The uid of an ApiKey that is gone.
    Gone(String),
    /// The API server does not answer. What is shown is as old as `at`.
    Lost {
        /// When it was last heard, in seconds.
        at: i64,
        /// In how many seconds it is asked again.
        next: u64,
        /// Why.
        words: String,
    },
    /// The API server answers again.
    Found(bool),
    /// The list cannot be had: why. The last message.
    Refused(String),
}

/// The ApiKeys of a namespace, and what the page knows about them.
#[derive(Default)]
pub struct Store {
    keys: BTreeMap<String, (ApiKey, Listed)>,
    /// Uids that the list which is coming in has had so far.
    listed: BTreeSet<String>,
    /// Rows that are not yet told.
    batch: Vec<Listed>,
    is_complete: bool,
}

impl Store {
    /// What an event of the watch comes to.
    pub fn take(&mut self, event: Event<ApiKey>, now: &Zoned) -> Vec<Message> {
        match event {
            Event::Init => {
                self.listed.clear();
                Vec::new()
            }
            Event::InitApply(key) => {
                self.listed.extend(key.metadata.uid.clone());
                self.put(key, now)
            }
            Event::InitDone => self.complete(),
            Event::Apply(key) => self.put(key, now),
            Event::Delete(key) => self.remove(&key.metadata.uid.unwrap_or_default()).into_iter().collect(),
        }
    }

    /// What the clock has changed.
    pub fn tick(&mut self, now: &Zoned) -> Vec<Message> {
        let mut messages = vec![Message::Now(now.timestamp().as_second())];
        for (key, told) in self.keys.values_mut() {
            let listed = Listed::of(key, now);
            if *told != listed {
                *told = listed.clone();
                messages.push(Message::Row(Box::new(listed)));
            }
        }
        messages
    }

    /// Whether the first list is in.
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    fn put(&mut self, mut key: ApiKey, now: &Zoned) -> Vec<Message> {
        key.metadata.managed_fields = None;
        key.metadata.annotations = None;
        let listed = Listed::of(&key, now);
        let before = self.keys.insert(listed.uid.clone(), (key, listed.clone()));
        if before.is_some_and(|(_, told)| told == listed) {
            return Vec::new();
        }
        if self.is_complete {
            return vec![Message::Row(Box::new(listed))];
        }
        self.batch.push(listed);
        if self.batch.len() < BATCH { Vec::new() } else { vec![Message::Rows(std::mem::take(&mut self.batch))] }
    }

    fn remove(&mut self, uid: &str) -> Option<Message> {
        self.keys.remove(uid).map(|_| Message::Gone(uid.to_owned()))
    }

    fn complete(&mut self) -> Vec<Message> {
        let gone: Vec<_> = self.keys.keys().filter(|uid| !self.listed.contains(*uid)).cloned().collect();
        let mut messages: Vec<_> = gone.iter().filter_map(|uid| self.remove(uid)).collect();
        if !self.is_complete {
            messages.push(Message::Rows(std::mem::take(&mut self.batch)));
            messages.push(Message::Complete(true));
        }
        self.is_complete = true;
        self.listed.clear();
        messages
    }
}

/// Tells the page what happens in `namespace` (empty: in all), until it listens no longer.
pub async fn follow(cluster: Arc<Cluster>, namespace: String, page: Sender<Message>) {
    let listening = page.clone();
    tokio::select! {
        _ = tell(&cluster, &namespace, &page) => {}
        () = listening.closed() => {}
    }
}

async fn tell(cluster: &Cluster, namespace: &str, page: &Sender<Message>) -> Option<()> {
    let client = match cluster.watching(SILENCE) {
        Ok(client) => client,
        Err(failure) => return page.send(Message::Refused(failure.to_string())).await.ok(),
    };
    // It becomes a part of a path.
    if !namespace.is_empty() && !is_dns_subdomain(namespace) {
        return page
            .send(Message::Refused(format!("{namespace} is no DNS name: write a to z, 0 to 9 and hyphens.")))
            .await
            .ok();
    }
    let kind = ApiResource::erase::<ApiKey>(&());
    let api: Api<DynamicObject> = match namespace {
        "" => Api::all_with(client, &kind),
        namespace => Api::namespaced_with(client, namespace, &kind),
    };
    let mut store = Store::default();
    let mut tick = tokio::time::interval(TICK);
    let mut failures = 0;
    let mut heard = cluster.now();
    page.send(Message::Now(heard.timestamp().as_second())).await.ok()?;
    loop {
        // A new one after each failure: it begins with a list, and an old one would not say when it has found its place again.
        let mut events = pin!(watcher(api.clone(), watcher::Config::default().timeout(WATCH)));
        let error = loop {
            let messages = tokio::select! {
                event = events.next() => match event? {
                    // Told before anything is asked.
                    Ok(Event::Init) => store.take(Event::Init, &heard),
                    Ok(event) => {
                        let found = (failures > 0).then_some(Message::Found(true));
                        failures = 0;
                        heard = cluster.now();
                        let told = readable(event).map(|event| store.take(event, &heard)).unwrap_or_default();
                        found.into_iter().chain(told).collect()
                    }
                    Err(error) => break error,
                },
                _ = tick.tick() => store.tick(&cluster.now()),
            };
            for message in messages {
                page.send(message).await.ok()?;
            }
        };
        let words = in_words(&error, namespace);
        if !store.is_complete() && is_final(&error) {
            return page.send(Message::Refused(words)).await.ok();
        }
        let next = PAUSES.get(failures).or(PAUSES.last()).copied().unwrap_or(30);
        let at = last_heard(&heard, &cluster.now(), failures);
        if failures == 0 {
            heard = at.clone();
        }
        failures += 1;
        page.send(Message::Lost { at: at.timestamp().as_second(), next, words }).await.ok()?;
        tokio::time::sleep(Duration::from_secs(next)).await;
    }
}

/// An event as one of an ApiKey. One that nobody can read hides no other.
fn readable(event: Event<DynamicObject>) -> Option<Event<ApiKey>> {
    let key = |object: DynamicObject| read(serde_json::to_value(object).ok()?).ok();
    Some(match event {
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
        Event::InitApply(object) => Event::InitApply(key(object)?),
        Event::Apply(object) => Event::Apply(key(object)?),
        Event::Delete(object) => Event::Delete(key(object)?),
    })
}

/// Since when the list may be out of date. A watch without events is silent for [`SILENCE`] at most, and is no failure.
fn last_heard(event: &Zoned, now: &Zoned, failures: usize) -> Zoned {
    let quiet = now.checked_sub(SILENCE).unwrap_or_else(|_| now.clone());
    if failures == 0 { event.max(&quiet).clone() } else { event.clone() }
}

/// The code of the API server's refusal, if it has answered.
fn code(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => Some(status.code),
        watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}

fn is_final(error: &watcher::Error) -> bool {
    matches!(code(error), Some(401 | 403 | 404))
}

fn in_words(error: &watcher::Error, namespace: &str) -> String {
    match code(error) {
        Some(401) => "The API server does not know you: log in again.".to_owned(),
        Some(403) if namespace.is_empty() => {
            "You may not see API keys in all namespaces. Ask for keywright-view.".to_owned()
        }
        Some(403) => format!("You may not see API keys in {namespace}. Ask for keywright-view."),
        Some(404) => "Keywright is not installed here.".to_owned(),
        Some(_) => format!("{}.", innermost(error)),
        None => format!("The API server is unreachable: {}.", innermost(error)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::view::fixtures::{apikey, now};

    fn key(uid: &str, owner: &str) -> ApiKey {
        apikey(&json!({"metadata": {"uid": uid}, "spec": {"owner": owner}}))
    }

    #[test]
    fn a_list_is_as_old_as_what_was_heard_last() {
        let now = now();
        let ago = |seconds: i64| now.checked_sub(jiff::SignedDuration::from_secs(seconds)).unwrap();
        for (event, failures, expected) in [(0, 0, 0), (39, 0, 39), (3600, 0, 40), (3600, 1, 3600)] {
            assert_eq!(last_heard(&ago(event), &now, failures), ago(expected), "{event} s, {failures}");
        }
    }

    fn kinds(messages: &[Message]) -> String {
        let kinds = messages.iter().map(|message| match message {
            Message::Now(_) => "now".to_owned(),
            Message::Rows(rows) => format!("{} rows", rows.len()),
            Message::Complete(_) => "complete".to_owned(),
            Message::Row(row) => format!("row {}", row.uid),
            Message::Gone(uid) => format!("gone {uid}"),
            other => format!("{other:?}"),
        });
        kinds.collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn the_page_hears_of_each_change_once() {
        let mut store = Store::default();
        for (event, told) in [
            (Event::Init, ""),
            (Event::InitApply(key("a", "ann")), ""),
            (Event::InitApply(key("b", "ann")), ""),
            (Event::InitDone, "2 rows, complete"),
            (Event::Apply(key("a", "ann")), ""),
            (Event::Apply(key("a", "bob")), "row a"),
            (Event::Apply(key("c", "bob")), "row c"),
            (Event::Delete(key("b", "ann")), "gone b"),
            (Event::Delete(key("b", "ann")), ""),
            (Event::Init, ""),
            (Event::InitApply(key("a", "eve")), "row a"),
            (Event::InitApply(key("d", "eve")), "row d"),
            (Event::InitDone, "gone c"),
        ] {
            assert_eq!(kinds(&store.take(event.clone(), &now())), told, "{event:?}");
        }
    }

    #[test]
    fn a_key_whose_status_cannot_be_read_hides_no_other() {
        let with = |used: &str| -> Event<DynamicObject> {
            let mut object = serde_json::to_value(key("a", "ann")).unwrap();
            object["status"]["lastUsedAt"] = json!(used);
            Event::Apply(serde_json::from_value(object).unwrap())
        };
        for (used, has_status) in [("2026-11-29T13:00:00Z", true), ("9999-12-31T23:59:59Z", false)] {
            let Some(Event::Apply(read)) = readable(with(used)) else { panic!("{used}") };
            assert_eq!((read.spec.owner.as_deref(), read.status.is_some()), (Some("ann"), has_status), "{used}");
        }
    }

    #[test]
    fn an_expiry_goes_by_the_clock() {
        let mut store = Store::default();
        let ending = apikey(&json!({"metadata": {"uid": "a"}, "status": {"expiresAt": "2026-11-29T13:06:00Z"}}));
        for event in [Event::Init, Event::InitApply(ending), Event::InitDone] {
            store.take(event, &now());
        }
        let later = now().checked_add(jiff::SignedDuration::from_secs(60)).unwrap();
        assert_eq!(kinds(&store.tick(&now())), "now");
        assert_eq!(kinds(&store.tick(&later)), "now, row a");
        assert_eq!(kinds(&store.tick(&later)), "now");
    }

    #[test]
    fn many_rows_come_in_batches() {
        let mut store = Store::default();
        let messages: Vec<_> = (0..1200)
            .flat_map(|number| store.take(Event::InitApply(key(&number.to_string(), "ann")), &now()))
            .collect();
        assert_eq!(kinds(&messages), "500 rows, 500 rows");
        assert_eq!(kinds(&store.take(Event::InitDone, &now())), "200 rows, complete");
    }
}
