//! A list and the watch that goes on from it, without end, as events. kube's own `watcher` has whole pages of whole
//! objects in memory.

use std::io;
use std::time::{Duration, Instant};

use futures::stream::BoxStream;
use futures::{Stream, StreamExt, stream};
use kube::Client;
use kube::api::{WatchEvent, WatchParams};
use kube::core::Request;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::Event;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tracing::warn;

use super::heads::Versioned;
use crate::pages::Pages;
use crate::telemetry::WatchErrorKind;
use keywright_core::resource_version::is_older;

/// A watch ends after this time and is opened again, and one that is silent for a little longer is given up: a
/// connection that died without a word is noticed within 25 s.
const WATCH_SECONDS: u32 = 20;
const SILENCE: Duration = Duration::from_secs(25);

/// A watch that ends sooner than this and told nothing counts as a failure, or a server that ends them all at once would
/// be asked without pause.
const SHORTEST_WATCH: Duration = Duration::from_millis(500);

/// The pauses after failed lists and watches. Each is twice as long as the last one, up to the longest. kube's own reach 30 s,
/// and stay there until nothing has failed for two minutes: for so long nobody would hear of a deletion.
pub(super) struct Pauses {
    next: Duration,
}

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl Default for Pauses {
    fn default() -> Self {
        Self { next: FIRST_PAUSE }
    }
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.next;
        self.next = (pause * 2).min(LONGEST_PAUSE);
        // Spread, so that those who lost the API server together do not come back together.
        Some(pause.mul_f64(rand::random_range(0.5..=1.0)))
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        *self = Self::default();
    }
}

/// Which objects are followed, and how they are asked for.
pub(super) struct Source {
    /// For lists: every answer has a time limit.
    pub(super) requests: Client,
    /// For watches, whose answers have none.
    pub(super) watches: Client,
    /// Where the objects are: `/apis/keywright.dev/v1alpha1/apikeys`.
    pub(super) url_path: String,
    /// Whether the API server is to leave everything out but `metadata`.
    pub(super) metadata_only: bool,
}

#[expect(clippy::large_enum_variant, reason = "there is one for each kind that is followed")]
enum State<T> {
    /// Nothing is known, or what was known cannot be gone on from.
    Unlisted,
    Listing {
        pages: Pages,
        items: std::vec::IntoIter<T>,
        resource_version: String,
    },
    Listed {
        resource_version: String,
    },
    Watching {
        resource_version: String,
        events: Events<T>,
        opened: Instant,
    },
}

type Events<T> = BoxStream<'static, kube::Result<WatchEvent<T>>>;

/// Follows for ever. An error breaks nothing off: polled again, it goes on, so whoever polls has to pause.
pub(super) fn follow<T>(source: Source) -> impl Stream<Item = kube::Result<Event<T>>> + Send + 'static
where
    T: Versioned + DeserializeOwned + Clone + Send + 'static,
{
    stream::unfold((source, State::Unlisted), |(source, mut state)| async {
        loop {
            let said;
            (said, state) = source.step(state).await;
            if let Some(said) = said {
                return Some((said, (source, state)));
            }
        }
    })
}

impl Source {
    async fn step<T>(&self, state: State<T>) -> (Option<kube::Result<Event<T>>>, State<T>)
    where
        T: Versioned + DeserializeOwned + Clone + Send + 'static,
    {
        match state {
            State::Unlisted => {
                let pages = self.pages();
                let (items, resource_version) = (Vec::new().into_iter(), String::new());
                (Some(Ok(Event::Init)), State::Listing { pages, items, resource_version })
            }
            State::Listing { mut pages, mut items, resource_version } => match items.next() {
                Some(item) => (Some(Ok(Event::InitApply(item))), State::Listing { pages, items, resource_version }),
                None => match pages.next().await {
                    Ok(Some(page)) => {
                        let (items, resource_version) = (page.items.into_iter(), page.resource_version);
                        (None, State::Listing { pages, items, resource_version })
                    }
                    Ok(None) => (Some(Ok(Event::InitDone)), State::Listed { resource_version }),
                    Err(error) => (Some(Err(error)), State::Unlisted),
                },
            },
            State::Listed { resource_version } => match self.watch_on(&resource_version).await {
                Ok(Some(events)) => (None, State::Watching { resource_version, events, opened: Instant::now() }),
                Ok(None) => (None, State::Unlisted),
                Err(error) => interrupted(error, resource_version),
            },
            State::Watching { resource_version, mut events, opened } => match timeout(SILENCE, events.next()).await {
                Ok(Some(Ok(WatchEvent::Added(item) | WatchEvent::Modified(item)))) => {
                    let resource_version = item.resource_version().to_owned();
                    (Some(Ok(Event::Apply(item))), State::Watching { resource_version, events, opened })
                }
                Ok(Some(Ok(WatchEvent::Deleted(item)))) => {
                    let resource_version = item.resource_version().to_owned();
                    (Some(Ok(Event::Delete(item))), State::Watching { resource_version, events, opened })
                }
                Ok(Some(Ok(WatchEvent::Bookmark(bookmark)))) => {
                    (None, State::Watching { resource_version: bookmark.metadata.resource_version, events, opened })
                }
                Ok(Some(Ok(WatchEvent::Error(status)))) => interrupted(kube::Error::Api(status), resource_version),
                Ok(Some(Err(error))) => interrupted(error, resource_version),
                Ok(None) if opened.elapsed() < SHORTEST_WATCH => interrupted(
                    io_error(io::ErrorKind::UnexpectedEof, "the API server closed the watch at once"),
                    resource_version,
                ),
                Ok(None) => (None, State::Listed { resource_version }),
                Err(_) => interrupted(silence(), resource_version),
            },
        }
    }

    fn pages(&self) -> Pages {
        Pages::new(self.requests.clone(), &self.url_path).of_metadata(self.metadata_only)
    }

    /// A watch from this version on; `None` if the API server is at an older one: its etcd was restored from a backup. It
    /// takes a watch from the future without complaint and says nothing on it until the future is reached.
    async fn watch_on<T>(&self, version: &str) -> kube::Result<Option<Events<T>>>
    where
        T: DeserializeOwned + Clone + Send + 'static,
    {
        let newest = self.pages().newest_version().await?;
        if is_older(&newest, version) {
            warn!(
                version,
                newest,
                url_path = self.url_path,
                "the API server's version went backwards (a restored backup?): listing again"
            );
            return Ok(None);
        }
        self.watch(version).await.map(Some)
    }

    async fn watch<T>(&self, version: &str) -> kube::Result<Events<T>>
    where
        T: DeserializeOwned + Clone + Send + 'static,
    {
        let (request, parameters) = (Request::new(&*self.url_path), WatchParams::default().timeout(WATCH_SECONDS));
        let request = match self.metadata_only {
            true => request.watch_metadata(&parameters, version),
            false => request.watch(&parameters, version),
        };
        let events = self.watches.request_events(request.map_err(kube::Error::BuildRequest)?);
        let events = timeout(SILENCE, events).await.map_err(|_| silence())??;
        Ok(events.boxed())
    }
}

/// Goes on from the version that was reached; from a new list where that one is too old, or none at all.
fn interrupted<T>(error: kube::Error, resource_version: String) -> (Option<kube::Result<Event<T>>>, State<T>) {
    let is_void = WatchErrorKind::of(&error) == WatchErrorKind::Expired || resource_version.is_empty();
    let state = if is_void { State::Unlisted } else { State::Listed { resource_version } };
    (Some(Err(error)), state)
}

fn silence() -> kube::Error {
    io_error(io::ErrorKind::TimedOut, "nothing came in time")
}

fn io_error(kind: io::ErrorKind, told: &str) -> kube::Error {
    kube::Error::ReadEvents(io::Error::new(kind, told))
}

#[cfg(test)]
mod tests {
    use futures::pin_mut;
    use kube::Resource;
    use serde_json::json;

    use super::super::heads::RecordHead;
    use super::*;
    use crate::testing::script::{LIST, Reply, Script, list};
    use keywright_core::api::ApiKeyRecord;

    /// etcd was restored from a backup: a watch from the version of before would say nothing until that one is reached.
    #[tokio::test]
    async fn what_has_gone_back_in_time_is_listed_anew() {
        let record = |uid: &str, version: &str| {
            json!({
                "metadata": {"name": format!("{uid}-1"), "resourceVersion": version},
                "spec": {"apiKey": {"namespace": "n", "name": uid, "uid": uid}},
            })
        };
        let replies = vec![
            (LIST, list("100", "", &[record("before", "99")])),
            ("watch=true", Reply::Events(vec![])),
            ("limit=1&", list("50", "", &[])),
            (LIST, list("50", "", &[record("restored", "49")])),
            ("watch=true", Reply::Silence(vec![])),
        ];
        let script = Script::start(replies, |_| Reply::Answer(500, json!({})));
        let (requests, watches) = (script.client(), script.client());
        let url_path = ApiKeyRecord::url_path(&(), Some("keywright-system"));
        let events = follow::<RecordHead>(Source { requests, watches, url_path, metadata_only: false });
        let listed = events.filter_map(async |event| match event {
            Ok(Event::InitApply(record)) => Some(record.metadata.name),
            _ => None,
        });
        pin_mut!(listed);
        assert_eq!(listed.next().await.as_deref(), Some("before-1"));
        assert_eq!(listed.next().await.as_deref(), Some("restored-1"));
    }
}
