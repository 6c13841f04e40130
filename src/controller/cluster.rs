//! The objects that the controller may touch, and where they are.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::events::v1::Event;
use kube::api::{ApiResource, DynamicObject};
use kube::{Api, Client, Resource};

use super::error::Error;
use crate::pages::Pages;
use keywright_core::api::{ApiKey, ApiKeyRecord};

/// Typed access for requests that are answered within [`crate::client::REQUEST_TIMEOUT`].
#[derive(Clone)]
pub(super) struct Cluster {
    client: Client,
    system_namespace: String,
    watched_namespace: Option<String>,
}

impl Cluster {
    pub(super) fn new(client: Client, system_namespace: &str, watched_namespace: Option<&str>) -> Self {
        Self {
            client,
            system_namespace: system_namespace.to_owned(),
            watched_namespace: watched_namespace.map(str::to_owned),
        }
    }

    /// ApiKeys as they are stored: one that cannot be read must be answered with a condition, not with an error.
    pub(super) fn api_keys(&self, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &ApiResource::erase::<ApiKey>(&()))
    }

    /// Every ApiKey that matches the field selector, whoever looks after it, page by page.
    pub(super) fn api_keys_matching(&self, fields: &str) -> Pages {
        Pages::new(self.client.clone(), &ApiKey::url_path(&(), None)).matching(fields)
    }

    /// Whether ApiKeys of this namespace are looked after.
    pub(super) fn watches(&self, namespace: &str) -> bool {
        self.watched_namespace.as_deref().is_none_or(|watched| watched == namespace)
    }

    pub(super) fn secrets(&self, namespace: &str) -> Api<Secret> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// A Secret as it is stored, if there is one.
    pub(super) async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, Error> {
        Ok(self.secrets(namespace).get_opt(name).await?)
    }

    pub(super) fn records(&self) -> Api<ApiKeyRecord> {
        Api::namespaced(self.client.clone(), &self.system_namespace)
    }

    /// The records, page by page.
    pub(super) fn record_pages(&self) -> Pages {
        Pages::new(self.client.clone(), &ApiKeyRecord::url_path(&(), Some(&self.system_namespace)))
    }

    /// The Leases of the system namespace: of the leader election and of the verifiers.
    pub(super) fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), &self.system_namespace)
    }

    pub(super) fn events(&self, namespace: &str) -> Api<Event> {
        Api::namespaced(self.client.clone(), namespace)
    }
}
