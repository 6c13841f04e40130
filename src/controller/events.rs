//! Events about ApiKeys (events.k8s.io/v1). They are told once, when something changes, so that there is nothing to count
//! and nothing to remember: kube's recorder keeps each Event for minutes, and looks through all of them for each new one.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};

use super::cluster::Cluster;
use super::error::Error;
use keywright_core::lifecycle::Announcement;

const CONTROLLER: &str = "keywright-controller";

/// The longest note that the API server takes, in octets.
const LONGEST_NOTE: usize = 1024;

/// The longest name of an object, in octets.
const LONGEST_NAME: usize = 253;

/// How long a namespace is left alone that has said that it is going. It may be created again.
const GOING: Duration = Duration::from_secs(60);

/// Namespaces that are remembered as going, at most.
const MOST_GOING: usize = 1000;

/// Publishes Events. A namespace that is going takes none: each of its ApiKeys would cost a request that is refused.
pub(super) struct Events {
    cluster: Cluster,
    /// Which controller this is.
    instance: String,
    going: Mutex<Going>,
}

/// Namespaces that are going, and when they said so.
#[derive(Debug, Default)]
struct Going(HashMap<String, Instant>);

impl Events {
    pub(super) fn new(cluster: Cluster, instance: String) -> Self {
        Self { cluster, instance, going: Mutex::default() }
    }

    /// Publishes an Event.
    ///
    /// # Errors
    /// If the API server does not take it.
    pub(super) async fn publish(
        &self,
        regarding: ObjectReference,
        announcement: Announcement,
        now: Timestamp,
    ) -> Result<(), Error> {
        let namespace = regarding.namespace.clone().unwrap_or_default();
        let going = || self.going.lock().unwrap_or_else(PoisonError::into_inner);
        if going().has(&namespace, Instant::now()) {
            return Ok(());
        }
        let event = event(&self.instance, regarding, announcement, now);
        let refusal = self.cluster.events(&namespace).create(&PostParams::default(), &event).await.err();
        if refusal.as_ref().is_some_and(is_of_a_namespace_that_is_going) {
            going().note(namespace, Instant::now());
        }
        refusal.map_or(Ok(()), |error| Err(error.into()))
    }
}

impl Going {
    fn has(&self, namespace: &str, now: Instant) -> bool {
        self.0.get(namespace).is_some_and(|at| now.saturating_duration_since(*at) < GOING)
    }

    fn note(&mut self, namespace: String, now: Instant) {
        if self.0.len() >= MOST_GOING {
            self.0.retain(|_, at| now.saturating_duration_since(*at) < GOING);
        }
        if self.0.len() < MOST_GOING {
            self.0.insert(namespace, now);
        }
    }
}

fn is_of_a_namespace_that_is_going(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

/// PURE.
fn event(instance: &str, regarding: ObjectReference, announcement: Announcement, now: Timestamp) -> Event {
    let name = name(regarding.name.as_deref().unwrap_or_default(), now);
    Event {
        metadata: ObjectMeta { namespace: regarding.namespace.clone(), name: Some(name), ..ObjectMeta::default() },
        action: Some(announcement.reason.to_owned()),
        reason: Some(announcement.reason.to_owned()),
        note: Some(cut(announcement.note, LONGEST_NOTE)),
        type_: Some(if announcement.warning { "Warning" } else { "Normal" }.to_owned()),
        event_time: Some(MicroTime(now)),
        regarding: Some(regarding),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(instance.chars().take(128).collect()),
        ..Event::default()
    }
}

/// The object's name, as much of it as there is room for, and the time: as client-go names them.
fn name(object: &str, now: Timestamp) -> String {
    let time = format!(".{:x}", now.as_nanosecond());
    let object = cut(object.to_owned(), LONGEST_NAME - time.len());
    format!("{}{time}", object.trim_end_matches(['.', '-']))
}

fn cut(mut text: String, longest: usize) -> String {
    if text.len() > longest {
        let end = (0..=longest).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bounded_number_of_namespaces_is_left_alone_for_a_while() {
        let (mut going, now) = (Going::default(), Instant::now());
        for number in 0..2 * MOST_GOING {
            going.note(format!("team-{number}"), now);
        }
        assert_eq!(going.0.len(), MOST_GOING);
        assert!(going.has("team-0", now + GOING / 2) && !going.has("team-0", now + GOING));
        going.note("team-new".to_owned(), now + GOING);
        assert!(going.has("team-new", now + GOING) && going.0.len() == 1);
    }

    #[test]
    fn an_event_of_any_object_has_a_name_and_a_note_that_fit() {
        let now = "2026-11-30T00:00:00Z".parse().unwrap();
        for (object, length) in [("ci".to_owned(), 19), ("a".repeat(237), 253), ("a".repeat(253), 253)] {
            let regarding = ObjectReference { name: Some(object.clone()), ..ObjectReference::default() };
            let announcement = Announcement { reason: "Issued", warning: false, note: "\u{e9}".repeat(600) };
            let event = event("a", regarding, announcement, now);
            let metadata = event.metadata.name.unwrap();
            assert_eq!(metadata.len(), length, "{metadata}");
            assert!(metadata.starts_with(&object[..object.len().min(200)]));
            assert_eq!(event.note.unwrap().len(), 1024);
        }
        assert!(!name(&format!("{}.b", "a".repeat(235)), now).contains(".."));
    }
}
