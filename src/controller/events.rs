//! Events about ApiKeys (events.k8s.io/v1). They are told once, when something changes, so that there is nothing to count
//! and nothing to remember: kube's recorder keeps each Event for minutes, and looks through all of them for each new one.

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

/// Publishes an Event.
///
/// # Errors
/// If the API server does not take it: in a namespace that is going, for one.
pub(super) async fn publish(
    cluster: &Cluster,
    instance: &str,
    regarding: ObjectReference,
    announcement: Announcement,
    now: Timestamp,
) -> Result<(), Error> {
    let namespace = regarding.namespace.clone().unwrap_or_default();
    let event = event(instance, regarding, announcement, now);
    cluster.events(&namespace).create(&PostParams::default(), &event).await?;
    Ok(())
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
