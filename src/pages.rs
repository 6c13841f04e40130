//! Lists of any length in little memory: page by page, each within a number of octets whatever tenants have put into
//! their objects, and of each object only what its type asks for. The rest is passed over as it is read.

use std::pin::pin;

use futures::{AsyncBufRead, AsyncBufReadExt};
use kube::Client;
use kube::api::ListParams;
use kube::core::{ListMeta, Request};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tracing::warn;

/// Objects in one page. Ordinary ones take one or two kB each.
const LARGEST_PAGE: u32 = 250;

/// Octets of one page. What is more than that is asked for again with fewer objects, down to a single one, which the API
/// server bounds: etcd takes 1.5 MiB. So this is the bound of what a list has in memory beside what is kept of it.
const PAGE_OCTETS: usize = 4 << 20;

/// A list that is under way. It is consistent: all of its pages show what there was at the first one, which is never
/// older than the moment at which it was asked for.
pub(super) struct Pages {
    client: Client,
    request: Request,
    parameters: ListParams,
    /// Whether the API server is to leave everything out but `metadata`.
    metadata_only: bool,
    is_at_end: bool,
}

/// Some objects of a list.
pub(super) struct Page<T> {
    pub(super) items: Vec<T>,
    /// The version that the list is of.
    pub(super) resource_version: String,
}

#[derive(Deserialize)]
struct RawPage<'a> {
    metadata: ListMeta,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

impl Pages {
    /// The list of what is at `url_path` and matches the field selector, if there is one.
    pub(super) fn new(client: Client, url_path: String, fields: Option<&str>) -> Self {
        let parameters = ListParams { field_selector: fields.map(str::to_owned), ..ListParams::default() };
        Self {
            client,
            request: Request::new(url_path),
            parameters: parameters.limit(LARGEST_PAGE),
            metadata_only: false,
            is_at_end: false,
        }
    }

    /// With one object at most: for the version that the API server is at.
    pub(super) fn of_one(mut self) -> Self {
        self.parameters.limit = Some(1);
        self
    }

    pub(super) fn metadata_only(mut self) -> Self {
        self.metadata_only = true;
        self
    }

    /// The next page; `None` after the last one. What cannot be read does not hide the rest, and is left out.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> kube::Result<Option<Page<T>>> {
        if self.is_at_end {
            return Ok(None);
        }
        let octets = self.octets().await?;
        let RawPage { metadata, items } = serde_json::from_slice(&octets).map_err(kube::Error::SerdeError)?;
        let items = items.unwrap_or_default().into_iter().filter_map(|item| {
            let read = serde_json::from_str(item.get());
            read.inspect_err(|error| warn!(%error, "passed over an object that cannot be read")).ok()
        });
        self.parameters.continue_token = metadata.continue_.filter(|token| !token.is_empty());
        self.is_at_end = self.parameters.continue_token.is_none();
        Ok(Some(Page { items: items.collect(), resource_version: metadata.resource_version.unwrap_or_default() }))
    }

    /// The next page as it came.
    async fn octets(&mut self) -> kube::Result<Vec<u8>> {
        let mut limit = self.parameters.limit.unwrap_or(LARGEST_PAGE);
        loop {
            // A continue token goes on from a name, so it goes together with any limit.
            self.parameters.limit = Some(limit);
            let request = match self.metadata_only {
                true => self.request.list_metadata(&self.parameters),
                false => self.request.list(&self.parameters),
            };
            let body = self.client.request_stream(request.map_err(kube::Error::BuildRequest)?).await?;
            let most = if limit == 1 { usize::MAX } else { PAGE_OCTETS };
            match read_up_to(most, body).await.map_err(kube::Error::ReadEvents)? {
                Some(octets) => {
                    self.parameters.limit = Some(limit_after(limit, octets.len()));
                    return Ok(octets);
                }
                None => limit = (limit / 4).max(1),
            }
        }
    }
}

/// The limit of the page that follows one of `octets` with this limit.
fn limit_after(limit: u32, octets: usize) -> u32 {
    if octets <= PAGE_OCTETS / 4 { limit.saturating_mul(2).min(LARGEST_PAGE) } else { limit }
}

/// All that the body holds; `None`, and the rest unread, where it is more than `most` octets.
async fn read_up_to(most: usize, body: impl AsyncBufRead) -> std::io::Result<Option<Vec<u8>>> {
    let mut body = pin!(body);
    let mut octets = Vec::new();
    loop {
        let part = body.fill_buf().await?;
        let length = part.len();
        if length == 0 {
            return Ok(Some(octets));
        }
        if octets.len() + length > most {
            return Ok(None);
        }
        octets.extend_from_slice(part);
        body.as_mut().consume(length);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_page_of_too_many_octets_is_left_unread() {
        let read = |most, octets: &[u8]| read_up_to(most, octets).now_or_never().unwrap().unwrap();
        assert_eq!(read(3, b"abc").as_deref(), Some(&b"abc"[..]));
        assert_eq!(read(2, b"abc"), None);
        assert_eq!(read(0, b"").as_deref(), Some(&b""[..]));
    }

    #[test]
    fn the_limit_comes_back_once_objects_are_small_again() {
        assert_eq!(limit_after(1, 3000), 2);
        assert_eq!(limit_after(1, PAGE_OCTETS), 1);
        assert_eq!(limit_after(200, 3000), LARGEST_PAGE);
        assert_eq!(limit_after(LARGEST_PAGE, 3000), LARGEST_PAGE);
    }

    #[test]
    fn a_page_may_have_no_items() {
        for text in [r#"{"metadata": {"continue": "x"}, "items": null}"#, r#"{"metadata": {"continue": "x"}}"#] {
            let page: RawPage<'_> = serde_json::from_str(text).unwrap();
            assert!(page.items.is_none() && page.metadata.continue_.is_some(), "{text}");
        }
    }
}
