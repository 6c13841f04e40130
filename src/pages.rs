//! I/O. Lists of any length in little memory. Each page has a limited size in bytes, however large the objects are, and of
//! each object only the fields of its type are kept.

use futures::{AsyncRead, AsyncReadExt};
use kube::Client;
use kube::api::ListParams;
use kube::core::{ListMeta, Request};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::value::RawValue;
use tracing::warn;

/// Objects in the first page of a list.
const FIRST_PAGE: u32 = 50;
/// Objects in any page, at most.
const LARGEST_PAGE: u32 = 500;

/// The planned size of a page, in bytes.
const PAGE_BYTES: usize = 2 << 20;
/// The largest size of a page, in bytes. A larger page is dropped, and requested again with fewer objects, down to one. One
/// object is limited by etcd: 1.5 MiB by default. This limits the memory of a list, besides what is kept of its objects.
pub(crate) const MAX_PAGE_BYTES: usize = 4 << 20;

/// A list that is under way. It is consistent: all pages show the state at the first one, which is not older than the
/// request for it.
pub struct Pages {
    client: Client,
    request: Request,
    parameters: ListParams,
    /// Objects to request in the next page.
    size: u32,
    /// Whether to request `metadata` only.
    is_of_metadata: bool,
    is_at_end: bool,
}

/// One page of a list.
pub struct Page<T> {
    /// The objects. Those that cannot be read are left out.
    pub items: Vec<T>,
    /// The resource version of the list. Empty if the API server does not send one.
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
    /// A list of the objects at `url_path`.
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

    /// Lists only objects that match the field selector.
    #[must_use]
    pub fn matching(mut self, fields: &str) -> Self {
        self.parameters.field_selector = Some(fields.to_owned());
        self
    }

    /// Requests `metadata` only, if `is_of_metadata`.
    #[must_use]
    pub fn of_metadata(mut self, is_of_metadata: bool) -> Self {
        self.is_of_metadata = is_of_metadata;
        self
    }

    /// The newest resource version. Empty if the API server does not send one.
    ///
    /// # Errors
    /// If the API server does not answer, or not with a list.
    pub async fn newest_version(mut self) -> kube::Result<String> {
        self.size = 1;
        Ok(self.next::<IgnoredAny>().await?.map(|page| page.resource_version).unwrap_or_default())
    }

    /// The next page. `None` after the last one. An object that cannot be read is logged and left out.
    ///
    /// # Errors
    /// If the API server does not answer, or not with a list. Then begin a new list.
    pub async fn next<T: DeserializeOwned>(&mut self) -> kube::Result<Option<Page<T>>> {
        if self.is_at_end {
            return Ok(None);
        }
        let bytes = self.bytes().await?;
        let RawPage { metadata, items } = serde_json::from_slice(&bytes).map_err(kube::Error::SerdeError)?;
        let items = items.unwrap_or_default().into_iter().filter_map(|item| {
            let read = serde_json::from_str(item.get());
            read.inspect_err(|error| warn!(%error, "ignoring an object that cannot be read")).ok()
        });
        self.parameters.continue_token = metadata.continue_.filter(|token| !token.is_empty());
        self.is_at_end = self.parameters.continue_token.is_none();
        Ok(Some(Page { items: items.collect(), resource_version: metadata.resource_version.unwrap_or_default() }))
    }

    /// The next page, not parsed.
    async fn bytes(&mut self) -> kube::Result<Vec<u8>> {
        loop {
            // A continue token holds a name, so the limit may change.
            self.parameters.limit = Some(self.size);
            let request = match self.is_of_metadata {
                true => self.request.list_metadata(&self.parameters),
                false => self.request.list(&self.parameters),
            };
            let body = self.client.request_stream(request.map_err(kube::Error::BuildRequest)?).await?;
            let most = if self.size == 1 { usize::MAX } else { MAX_PAGE_BYTES };
            match read_up_to(most, body).await.map_err(kube::Error::ReadEvents)? {
                Some(bytes) => {
                    self.size = next_size(self.size, bytes.len());
                    return Ok(bytes);
                }
                None => self.size = (self.size / 8).max(1),
            }
        }
    }
}

/// How many objects to request after a page with `size` objects and so many bytes.
fn next_size(size: u32, bytes: usize) -> u32 {
    let fitting = u64::from(size) * PAGE_BYTES as u64 / bytes.max(1) as u64;
    u32::try_from(fitting).unwrap_or(u32::MAX).clamp(1, LARGEST_PAGE.min(size.saturating_mul(4)))
}

/// The whole body. `None` if it has more than `most` bytes, and the rest stays unread.
async fn read_up_to(most: usize, body: impl AsyncRead + Unpin) -> std::io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let one_more = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
    body.take(one_more).read_to_end(&mut bytes).await?;
    Ok(Some(bytes).filter(|bytes| bytes.len() <= most))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_page_of_too_many_octets_is_left_unread() {
        let read = |most, bytes: &[u8]| read_up_to(most, bytes).now_or_never().unwrap().unwrap();
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
        for (size, bytes, next) in cases {
            assert_eq!(next_size(size, bytes), next, "{size} objects in {bytes} bytes");
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
