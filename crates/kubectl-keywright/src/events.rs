//! What has happened to an ApiKey, as its Events tell.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::api::ListParams;

use crate::cluster::Cluster;
use crate::failure::ApiError;
use crate::session::field_selector;

/// Events that are read: the newest.
const MOST: usize = 20;

/// An Event about an ApiKey.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Happening {
    /// When it last happened.
    pub at: Option<Timestamp>,
    /// In one word.
    pub reason: String,
    /// In a sentence.
    pub note: String,
    /// Whether somebody should look.
    pub is_warning: bool,
}

/// What has happened to the ApiKey with this uid, the newest first.
///
/// # Errors
/// See [`ApiError`].
pub async fn about(cluster: &Cluster, namespace: &str, uid: &str) -> Result<Vec<Happening>, ApiError> {
    let selected = ListParams::default().fields(&field_selector("involvedObject.uid", uid));
    let events = cluster.list::<Event>(Some(namespace), &selected).await?;
    let mut happenings: Vec<_> = events.into_iter().map(Happening::from).collect();
    happenings.sort_by_key(|happening| std::cmp::Reverse(happening.at));
    happenings.truncate(MOST);
    Ok(happenings)
}

impl From<Event> for Happening {
    fn from(event: Event) -> Self {
        Self {
            at: happened_at(&event),
            reason: event.reason.unwrap_or_default(),
            note: event.message.unwrap_or_default(),
            is_warning: event.type_.as_deref() == Some("Warning"),
        }
    }
}

/// Who wrote the Event decides which of its times there are.
fn happened_at(event: &Event) -> Option<Timestamp> {
    let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0);
    let last = event.last_timestamp.as_ref().map(|time| time.0);
    let once = event.event_time.as_ref().map(|time| time.0);
    series.or(last).or(once).or(event.metadata.creation_timestamp.as_ref().map(|time| time.0))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_has_happened_when_it_last_did() {
        let (created, once, again) = ("2026-11-29T13:00:00Z", "2026-11-29T13:01:00.000000Z", "2026-11-29T13:02:00Z");
        for (event, at) in [
            (json!({}), created),
            (json!({"eventTime": once}), once),
            (json!({"lastTimestamp": again}), again),
            (
                json!({"eventTime": once, "series": {"count": 2, "lastObservedTime": "2026-11-29T13:02:00.000000Z"}}),
                again,
            ),
        ] {
            let mut object =
                json!({"metadata": {"creationTimestamp": created}, "involvedObject": {}, "type": "Warning"});
            object.as_object_mut().unwrap().extend(event.as_object().unwrap().clone());
            let happening = Happening::from(serde_json::from_value::<Event>(object).unwrap());
            assert_eq!(happening.at, Some(at.parse().unwrap()), "{event}");
            assert!(happening.is_warning);
        }
    }
}
