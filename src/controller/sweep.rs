//! Finds what no ApiKey leads to: records whose ApiKey is gone although nobody revoked them (a finalizer stripped by
//! hand, a namespace forced away), and tombstones that have stood long enough.

use std::collections::HashSet;

use jiff::SignedDuration;
use kube::ResourceExt;
use kube::api::{DynamicObject, ListParams};
use tracing::{info, warn};

use super::apply::{delete_record, update_record};
use super::cluster::Cluster;
use super::index::reference;
use super::observe::known;
use super::{Error, record_of};
use crate::api::{ApiKeyRecordSpec, ApiKeyReference};
use crate::clock;
use crate::lifecycle::{RevocationReason, revoked, tombstone_is_over};

/// Objects a page. A list without a resource version is consistent, whatever its paging.
const PAGE: u32 = 500;

/// Looks at every record once.
pub(super) async fn sweep(cluster: &Cluster, retention: SignedDuration) -> Result<(), Error> {
    // Records first: an ApiKey is older than its records, so one that is missing from the later list is gone for good.
    let records = list_records(cluster).await?;
    let present = list_uids(cluster).await?;
    for record in &records {
        let done = match reference(record) {
            Some(owner) if !present.contains(&owner.uid) && cluster.watches(&owner.namespace) => {
                revoke_if_orphaned(cluster, &record.name_any(), &owner).await
            }
            _ => Ok(()),
        };
        let done = match done {
            Ok(()) => remove_if_over(cluster, record, retention).await,
            failed => failed,
        };
        if let Err(error) = done {
            warn!(record = record.name_any(), %error, "cannot tidy up a record; the next sweep tries again");
        }
    }
    Ok(())
}

/// Revokes the live records of an ApiKey that is said to be gone, after making sure that it is.
pub(super) async fn revoke_orphans_of(cluster: &Cluster, owner: &ApiKeyReference) -> Result<(), Error> {
    let of_owner = ListParams::default().fields(&format!("spec.apiKey.uid={}", owner.uid));
    for record in cluster.stored_records().list(&of_owner).await? {
        revoke_if_orphaned(cluster, &record.name_any(), owner).await?;
    }
    Ok(())
}

async fn revoke_if_orphaned(cluster: &Cluster, record: &str, owner: &ApiKeyReference) -> Result<(), Error> {
    let present = cluster.api_keys(&owner.namespace).get_metadata_opt(&owner.name).await?;
    if present.is_some_and(|present| present.metadata.uid.as_ref() == Some(&owner.uid)) {
        return Ok(());
    }
    let Some((record, metadata)) = cluster.records().get_opt(record).await?.map(known) else {
        return Ok(());
    };
    if record.spec.revoked.is_some() || record.spec.api_key.uid != owner.uid {
        return Ok(());
    }
    let spec = revoked(&record.spec, RevocationReason::Orphaned, clock::now());
    update_record(cluster, metadata, &record.resource_version, spec, Some(&record.spec)).await?;
    info!(record = record.name, api_key = %record_of(owner), "revoked the key of an ApiKey that is gone");
    Ok(())
}

async fn remove_if_over(cluster: &Cluster, record: &DynamicObject, retention: SignedDuration) -> Result<(), Error> {
    let spec = record.data.get("spec").cloned().unwrap_or_default();
    let over = serde_json::from_value::<ApiKeyRecordSpec>(spec)
        .is_ok_and(|spec| tombstone_is_over(&spec, retention, clock::now()));
    if !over {
        return Ok(());
    }
    delete_record(&cluster.stored_records(), &record.name_any(), record.uid(), record.resource_version()).await
}

async fn list_records(cluster: &Cluster) -> Result<Vec<DynamicObject>, Error> {
    let mut records = Vec::new();
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let list = cluster.stored_records().list(&page).await?;
        records.extend(list.items);
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(records),
        }
    }
}

async fn list_uids(cluster: &Cluster) -> Result<HashSet<String>, Error> {
    let mut uids = HashSet::new();
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let list = cluster.watched_api_keys().list(&page).await?;
        uids.extend(list.items.into_iter().filter_map(|api_key| api_key.metadata.uid));
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(uids),
        }
    }
}
