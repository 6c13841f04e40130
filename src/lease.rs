//! I/O. A Lease (coordination.k8s.io/v1): created by POST, written under the version that was read, and watched for how
//! long it stands still by this process's own clock.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use keywright_core::fence::Precondition;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams, Preconditions};
use kube::{Client, ResourceExt};

/// A Lease by its name.
pub struct NamedLease {
    leases: Api<Lease>,
    name: &'static str,
    /// Its resource version, and since when it has been that one.
    seen: Option<(String, Instant)>,
}

impl NamedLease {
    /// The Lease of this name. Nothing is read yet.
    pub fn new(client: Client, namespace: &str, name: &'static str) -> Self {
        Self { leases: Api::namespaced(client, namespace), name, seen: None }
    }

    /// The Lease as it is stored, if there is one, and for how long this process has seen it so.
    ///
    /// # Errors
    /// If the API server does not answer, or refuses to.
    pub async fn read(&mut self) -> kube::Result<(Option<Lease>, Duration)> {
        let lease = self.leases.get_opt(self.name).await?;
        let unchanged = self.unchanged(lease.as_ref(), Instant::now());
        Ok((lease, unchanged))
    }

    fn unchanged(&mut self, lease: Option<&Lease>, now: Instant) -> Duration {
        let version = lease.and_then(ResourceExt::resource_version);
        match (&self.seen, version) {
            (Some((seen, since)), Some(version)) if *seen == version => now.duration_since(*since),
            (_, version) => {
                self.seen = version.map(|version| (version, now));
                Duration::ZERO
            }
        }
    }

    /// Creates it. `false`: somebody else was faster.
    ///
    /// # Errors
    /// If the API server does not answer, or refuses to.
    pub async fn create(&self, spec: LeaseSpec) -> kube::Result<bool> {
        let metadata = ObjectMeta { name: Some(self.name.to_owned()), ..ObjectMeta::default() };
        won(self.leases.create(&PostParams::default(), &Lease { metadata, spec: Some(spec) }).await)
    }

    /// Writes it, under the version that was read. `false`: somebody else was faster.
    ///
    /// # Errors
    /// If the API server does not answer, or refuses to.
    pub async fn replace(&self, read: Lease, spec: LeaseSpec) -> kube::Result<bool> {
        let lease = Lease { spec: Some(spec), ..read };
        won(self.leases.replace(self.name, &PostParams::default(), &lease).await)
    }
}

/// Deletes a Lease, if it still has this uid and version. `false`: a finalizer keeps it.
///
/// # Errors
/// If it is gone (404) or another one (409), or the API server does not answer, or refuses to.
pub async fn delete(leases: &Api<Lease>, name: &str, seen: &Precondition) -> kube::Result<bool> {
    let preconditions =
        Preconditions { uid: Some(seen.uid.to_string()), resource_version: Some(seen.version.to_string()) };
    Ok(leases.delete(name, &DeleteParams::default().preconditions(preconditions)).await?.is_right())
}

fn won(answer: kube::Result<Lease>) -> kube::Result<bool> {
    match answer {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}
