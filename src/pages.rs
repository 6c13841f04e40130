//! I/O. Lists of any length in little memory: page by page, each within a number of octets whatever tenants have put into
//! their objects, and of each object only what its type asks for. The rest is passed over as it is read.

use futures::{AsyncRead, AsyncReadExt};
use kube::Client;
use kube::api::ListParams;
use kube::core::{ListMeta, Request};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::value::RawValue;
use tracing::warn;

/// Objects in the first page of a list, and in any.
const FIRST_PAGE: u32 = 50;
const LARGEST_PAGE: u32 = 500;

/// What a page should have, in octets; and with how many it is dropped, and asked for again with fewer objects, down to a
/// single one, which etcd bounds: it takes 1.5 MiB, unless told otherwise. The latter is the bound of what a list has in
/// memory beside what is read of it.
const PAGE_OCTETS: usize = 2 << 20;
pub(crate) const PAGE_OCTETS_AT_MOST: usize = 4 << 20;

/// A list that is under way. It is consistent: all of its pages show what there was at the first one, which is never
/// older than the moment at which it was asked for.
pub struct Pages {
    client: Client,
    request: Request,
    parameters: ListParams,
    /// Objects to ask for in the next page.
    size: u32,
    /// Whether the API server is to leave everything out but `metadata`.
    is_of_metadata: bool,
    is_at_end: bool,
}

/// Some objects of a list.
pub struct Page<T> {
    /// What was read of them.
    pub items: Vec<T>,
    /// The version that the list is of; empty where the API server does not say.
    pub resource_version: String,
}

#[derive(Deserialize)]
struct RawPage<'t> {
    #[serde(default)]
    metadata: ListMeta,
    #[serde(borrow, default)]
    items: Option<Vec<&'t RawValue>>,
}

impl Pages {
    /// The list of what is at `url_path`.
    pub fn new(client: Client, url_path: &str) -> Self {
        Self {
            client,
            request: Request::new(url_path),
            parameters: ListParams::default(),
            size: FIRST_PAGE,
            is_of_metadata: false,
            is_at_end: false,
        }
    }

    /// Only what matches the field selector.
    #[must_use]
    pub fn matching(mut self, fields: &str) -> Self {
        self.parameters.field_selector = Some(fields.to_owned());
        self
    }

    /// Only the metadata, where `is_of_metadata`.
    #[must_use]
    pub fn of_metadata(mut self, is_of_metadata: bool) -> Self {
        self.is_of_metadata = is_of_metadata;
        self
    }

    /// The newest version that there is; empty where the API server does not say.
    ///
    /// # Errors
    /// If the API server does not answer, or not with a list.
    pub async fn newest_version(mut self) -> kube::Result<String> {
        self.size = 1;
        Ok(self.next::<IgnoredAny>().await?.map(|page| page.resource_version).unwrap_or_default())
    }

    /// The next page; `None` after the last one. What cannot be read does not hide the rest, and is left out.
    ///
    /// # Errors
    /// If the API server does not answer, or not with a list. The list is then to be begun anew.
    pub async fn next<T: DeserializeOwned>(&mut self) -> kube::Result<Option<Page<T>>> {
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
        loop {
            // A continue token goes on from a name, so it goes together with any limit.
            self.parameters.limit = Some(self.size);
            let request = match self.is_of_metadata {
                true => self.request.list_metadata(&self.parameters),
                false => self.request.list(&self.parameters),
            };
            let body = self.client.request_stream(request.map_err(kube::Error::BuildRequest)?).await?;
            let most = if self.size == 1 { usize::MAX } else { PAGE_OCTETS_AT_MOST };
            match read_up_to(most, body).await.map_err(kube::Error::ReadEvents)? {
                Some(octets) => {
                    self.size = next_size(self.size, octets.len());
                    return Ok(octets);
                }
                None => self.size = (self.size / 8).max(1),
            }
        }
    }
}

/// How many objects to ask for after a page that had `size` of them in so many octets.
fn next_size(size: u32, octets: usize) -> u32 {
    let fitting = u64::from(size) * PAGE_OCTETS as u64 / octets.max(1) as u64;
    u32::try_from(fitting).unwrap_or(u32::MAX).clamp(1, LARGEST_PAGE.min(size.saturating_mul(4)))
}

/// All that the body holds; `None`, and the rest unread, where it is more than `most` octets.
async fn read_up_to(most: usize, body: impl AsyncRead + Unpin) -> std::io::Result<Option<Vec<u8>>> {
    let mut octets = Vec::new();
    let one_more = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
    body.take(one_more).read_to_end(&mut octets).await?;
    Ok(Some(octets).filter(|octets| octets.len() <= most))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_page_of_too_many_octets_is_left_unread() {
        let read = |most, octets: &[u8]| read_up_to(most, octets).now_or_never().unwrap().unwrap();
        assert_eq!(read(3, b"abc").as_deref(), Some(&b"abc"[..]));
        assert_eq!(read(2, b"abc"), None);
        assert_eq!(read(0, b"").as_deref(), Some(&b""[..]));
        assert_eq!(read(usize::MAX, b"abc").as_deref(), Some(&b"abc"[..]));
    }

    #[test]
    fn a_page_has_so_many_objects_that_its_octets_are_few() {
        let cases = [
            (50, 50_000, 200),
            (200, 200_000, 500),
            (500, 500_000, 500),
            (50, 12_500_000, 8),
            (1, 250_000, 4),
            (2, 9 << 20, 1),
        ];
        for (size, octets, next) in cases {
            assert_eq!(next_size(size, octets), next, "{size} objects in {octets} octets");
        }
        assert_eq!(next_size(1, 0), 4);
    }

    #[test]
    fn a_page_may_have_no_items() {
        for text in [r#"{"metadata": {"continue": "x"}, "items": null}"#, r#"{"metadata": {"continue": "x"}}"#] {
            let page: RawPage<'_> = serde_json::from_str(text).unwrap();
            assert!(page.items.is_none() && page.metadata.continue_.is_some(), "{text}");
        }
    }
}
