//! Finds what no ApiKey leads to: records whose ApiKey is gone although nobody revoked them (a finalizer stripped by
//! hand, a namespace forced away), and tombstones that have stood long enough, or hold more than they need.
//!
//! It goes through the records page by page and keeps only what it is about to remove. What a page shows is where to look;
//! every write goes by the uid and the resource version that were seen.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::runtime::reflector::{ObjectRef, Store};
use serde::Deserialize;
use tracing::{debug, info, warn};

use super::apply::update_record;
use super::cluster::Cluster;
use super::error::Error;
use super::heads::{RecordHead, Watched};
use crate::clock;
use crate::telemetry::ControllerMetrics;
use keywright_core::api::{ApiKeyRecord, ApiKeyReference, KeySource};
use keywright_core::key::Digest;
use keywright_core::lifecycle::tombstones::{Census, Excess, Tombstone, slim};
use keywright_core::lifecycle::{RecordUpdate, RevocationReason, read_source};

/// Tombstones that are removed after one look at what ApiKeys declare. The look goes through all ApiKeys.
const BATCH: usize = 1000;

/// Writes at a time.
const PARALLEL_WRITES: usize = 8;

/// Sources that are read at a time.
const PARALLEL_READS: usize = 8;

/// Tombstones that one sweep makes smaller.
const SLIMMED_PER_SWEEP: usize = 500;

/// How often it is said that nothing can be removed.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

/// What sweeps need.
pub(super) struct Sweeper {
    pub(super) cluster: Cluster,
    /// The ApiKeys that there are, as far as the watch tells.
    pub(super) store: Store<Watched>,
    pub(super) metrics: ControllerMetrics,
    /// How long tombstones stay.
    pub(super) retention: SignedDuration,
    /// How many tombstones of generated keys stay for each namespace.
    pub(super) most_per_namespace: usize,
    pub(super) complained: Mutex<Option<Instant>>,
}

/// A tombstone that is to go, unless an ApiKey declares its digest.
struct Candidate {
    name: String,
    preconditions: Preconditions,
    digest: Digest,
    /// Before its retention is over.
    early: bool,
}

/// What one sweep has come to.
#[derive(Default)]
struct Progress {
    census: Census,
    candidates: Vec<Candidate>,
    slimmed: usize,
    /// Nothing more is removed: it cannot be told which digests are declared.
    removes_nothing: bool,
}

/// What is read of an ApiKey to know which digest it declares.
#[derive(Deserialize)]
struct Declaring {
    metadata: Place,
    spec: Declared,
}

#[derive(Deserialize)]
struct Place {
    #[serde(default)]
    namespace: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Declared {
    key_hash: Option<String>,
    key_from: Option<KeySource>,
}

impl Sweeper {
    /// Looks at every record once; twice, where some namespace has left too many behind.
    pub(super) async fn sweep(&self) -> Result<(), Error> {
        let mut progress = Progress::default();
        let mut pages = self.cluster.record_pages();
        while let Some(page) = pages.next::<RecordHead>().await? {
            for record in page.items {
                if let Err(error) = self.look_at(&record, &mut progress).await {
                    let record = record.metadata.name;
                    warn!(record, %error, "cannot tidy up a record; the next sweep tries again");
                }
            }
        }
        let excess = std::mem::take(&mut progress.census).excess(self.most_per_namespace);
        if !excess.is_empty() {
            self.collect(&excess, &mut progress).await?;
        }
        self.remove(&mut progress).await
    }

    async fn look_at(&self, record: &RecordHead, progress: &mut Progress) -> Result<(), Error> {
        let now = clock::now();
        if !self.cluster.watches(&record.spec.api_key.namespace) {
            return Ok(());
        }
        let Some(tombstone) = tombstone(record) else {
            return match record.spec.revoked {
                None if self.seems_orphaned(&record.spec.api_key) => {
                    self.revoke_if_orphaned(&record.metadata.name, &record.spec.api_key, now).await
                }
                _ => Ok(()),
            };
        };
        if tombstone.is_over(self.retention, now) {
            return self.choose(record, false, progress).await;
        }
        progress.census.count(&tombstone, now);
        if record.spec.has_rules() && progress.slimmed < SLIMMED_PER_SWEEP {
            progress.slimmed += 1;
            match self.slim(&record.metadata.name).await {
                // Definitions of an earlier version hold on to what a record was made with.
                Err(Error::Refused(status)) if status.code == 422 => {
                    debug!(record = record.metadata.name, status.message, "a tombstone stays as large as it is");
                    progress.slimmed = SLIMMED_PER_SWEEP;
                }
                done => done?,
            }
        }
        Ok(())
    }

    /// Goes through the records once more, for those that are beyond the bound.
    async fn collect(&self, excess: &Excess, progress: &mut Progress) -> Result<(), Error> {
        let mut pages = self.cluster.record_pages();
        while let Some(page) = pages.next::<RecordHead>().await? {
            for record in page.items {
                let is_ours = self.cluster.watches(&record.spec.api_key.namespace);
                let is_beyond = |tombstone: Tombstone<'_>| excess.contains(&tombstone, clock::now());
                if is_ours && tombstone(&record).is_some_and(is_beyond) {
                    self.choose(&record, true, progress).await?;
                }
            }
        }
        Ok(())
    }

    async fn choose(&self, record: &RecordHead, early: bool, progress: &mut Progress) -> Result<(), Error> {
        // One whose digest cannot be read stays, as nobody can tell whether it is declared.
        let (Ok(digest), Some(uid)) = (record.spec.digest.parse(), record.metadata.uid.clone()) else { return Ok(()) };
        if progress.removes_nothing {
            return Ok(());
        }
        let resource_version = Some(record.metadata.resource_version.clone());
        let preconditions = Preconditions { uid: Some(uid), resource_version };
        progress.candidates.push(Candidate { name: record.metadata.name.clone(), preconditions, digest, early });
        if progress.candidates.len() >= BATCH { self.remove(progress).await } else { Ok(()) }
    }

    /// Removes the candidates that no ApiKey declares. That is asked once their retention is known to be over, so that
    /// whoever declared one before then is among the answers.
    async fn remove(&self, progress: &mut Progress) -> Result<(), Error> {
        let candidates = std::mem::take(&mut progress.candidates);
        if candidates.is_empty() {
            return Ok(());
        }
        let declared = match self.declared().await {
            Err(Error::Refused(status)) if [400, 403].contains(&status.code) => {
                progress.removes_nothing = true;
                self.complain(&status.message);
                return Ok(());
            }
            declared => declared?,
        };
        let removals = candidates.iter().filter(|candidate| !declared.contains(candidate.digest.as_bytes()));
        stream::iter(removals).for_each_concurrent(PARALLEL_WRITES, |candidate| self.remove_one(candidate)).await;
        Ok(())
    }

    async fn remove_one(&self, candidate: &Candidate) {
        let parameters = DeleteParams::default().preconditions(candidate.preconditions.clone());
        match self.cluster.records().delete(&candidate.name, &parameters).await.map_err(Error::from) {
            Ok(_) if candidate.early => drop(self.metrics.tombstones_removed_early.inc()),
            Ok(_) => {}
            // It is gone, or was changed since it was seen.
            Err(Error::Refused(status)) if [404, 409].contains(&status.code) => {}
            Err(error) => {
                warn!(record = candidate.name, %error, "cannot remove a tombstone; the next sweep tries again");
            }
        }
    }

    /// The digests that ApiKeys declare: in their specs, or in their sources.
    async fn declared(&self) -> Result<HashSet<[u8; 32]>, Error> {
        let mut declared = HashSet::new();
        for fields in ["spec.keyHash!=", "spec.keyFrom.secretRef.name!="] {
            let mut pages = self.cluster.api_keys_matching(fields);
            while let Some(page) = pages.next::<Declaring>().await? {
                let digests = stream::iter(page.items).map(|api_key| self.digest_of(api_key)).buffered(PARALLEL_READS);
                let digests: Vec<Option<Digest>> = digests.try_collect().await?;
                declared.extend(digests.into_iter().flatten().map(|digest| *digest.as_bytes()));
            }
        }
        Ok(declared)
    }

    async fn digest_of(&self, api_key: Declaring) -> Result<Option<Digest>, Error> {
        let Declared { key_hash, key_from } = api_key.spec;
        let Some(KeySource { secret_ref: entry }) = key_from else {
            return Ok(key_hash.and_then(|digest| digest.parse().ok()));
        };
        let secret = self.cluster.secret(&api_key.metadata.namespace, &entry.name).await?;
        Ok(read_source(secret, &entry.key).ok())
    }

    fn complain(&self, message: &str) {
        let mut complained = self.complained.lock().unwrap_or_else(PoisonError::into_inner);
        if complained.is_none_or(|at| at.elapsed() >= COMPLAINT_INTERVAL) {
            *complained = Some(Instant::now());
            warn!(
                error = message,
                "the records of revoked keys all stay, as the API server cannot tell which digests are still declared: \
                 install the definitions of this version (keywright crds), and let the controller list the ApiKeys of all namespaces"
            );
        }
    }

    /// Rewrites a tombstone with only what it needs.
    async fn slim(&self, name: &str) -> Result<(), Error> {
        let Some(record) = self.cluster.records().get_opt(name).await? else { return Ok(()) };
        match slim(&record.spec) {
            Some(spec) => self.replace(ApiKeyRecord { spec, ..record }).await,
            None => Ok(()),
        }
    }

    fn seems_orphaned(&self, owner: &ApiKeyReference) -> bool {
        let known = self.store.get(&ObjectRef::new(&owner.name).within(&owner.namespace));
        let is_present = known.is_some_and(|known| known.metadata.uid.as_ref() == Some(&owner.uid));
        !is_present && self.cluster.watches(&owner.namespace)
    }

    /// Revokes the live records of an ApiKey that is said to be gone, after making sure that it is.
    pub(super) async fn revoke_orphans_of(&self, owner: &ApiKeyReference) -> Result<(), Error> {
        let mut pages = self.cluster.record_pages().matching(&format!("spec.apiKey.uid={}", owner.uid));
        while let Some(page) = pages.next::<RecordHead>().await? {
            for record in page.items.iter().filter(|record| record.spec.revoked.is_none()) {
                self.revoke_if_orphaned(&record.metadata.name, owner, clock::now()).await?;
            }
        }
        Ok(())
    }

    /// The record was seen before the ApiKey is looked for. An ApiKey is older than its records, so one that is missing now
    /// is gone for good.
    async fn revoke_if_orphaned(&self, record: &str, owner: &ApiKeyReference, now: Timestamp) -> Result<(), Error> {
        let present = self.cluster.api_keys(&owner.namespace).get_metadata_opt(&owner.name).await?;
        if present.is_some_and(|present| present.metadata.uid.as_ref() == Some(&owner.uid)) {
            return Ok(());
        }
        let Some(record) = self.cluster.records().get_opt(record).await? else { return Ok(()) };
        if record.spec.revoked.is_some() || record.spec.api_key.uid != owner.uid {
            return Ok(());
        }
        update_record(&self.cluster, &RecordUpdate::revocation(record, RevocationReason::Orphaned, now)).await?;
        info!(api_key = format!("{}/{}", owner.namespace, owner.name), "revoked the key of an ApiKey that is gone");
        Ok(())
    }

    /// Writes the record under the version that was read.
    async fn replace(&self, record: ApiKeyRecord) -> Result<(), Error> {
        let name = record.metadata.name.clone().unwrap_or_default();
        self.cluster.records().replace(&name, &PostParams::default(), &record).await?;
        Ok(())
    }
}

/// What decides how long the record stays, where its key is revoked and the time of that can be read.
fn tombstone(record: &RecordHead) -> Option<Tombstone<'_>> {
    Some(Tombstone {
        name: &record.metadata.name,
        namespace: &record.spec.api_key.namespace,
        revoked_at: record.spec.revoked.as_ref()?.at?,
        is_generated: record.spec.is_generated(),
    })
}
