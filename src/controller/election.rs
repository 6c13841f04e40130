//! Leader election with a Lease, so that one controller works and the others stand by.
//!
//! It saves work, and carries no part of the safety: every write has a precondition, and two controllers that both
//! believe they lead do no harm. Other holders are judged by how long their Lease has not changed, measured here; clocks
//! of different machines are never compared.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, ResourceExt};
use tracing::{info, warn};

use crate::clock;

/// The Lease's name.
const LEASE: &str = "keywright-controller";

/// How long a Lease must stand unchanged before somebody else takes it.
const DURATION: Duration = Duration::from_secs(15);

/// A leader that could not renew for this long stops: well before anybody else may start.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);

/// How often the Lease is renewed, or looked at.
const PERIOD: Duration = Duration::from_secs(2);

/// What to do about the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Create,
    Renew,
    TakeOver,
    Wait,
}

/// PURE. `holder` is `None` where there is no Lease, and empty where it was released; `unchanged` is how long this
/// process has seen the Lease as it is.
fn step(holder: Option<&str>, identity: &str, unchanged: Duration, duration: Duration) -> Step {
    match holder {
        None => Step::Create,
        Some(holder) if holder == identity => Step::Renew,
        Some("") => Step::TakeOver,
        Some(_) if unchanged >= duration => Step::TakeOver,
        Some(_) => Step::Wait,
    }
}

/// One candidate.
pub(super) struct Candidate {
    leases: Api<Lease>,
    identity: String,
    /// The Lease's resource version, and since when it has been that one.
    seen: Option<(String, Instant)>,
}

impl Candidate {
    /// `identity` must differ between any two processes, also two lives of one Pod.
    pub(super) fn new(client: Client, namespace: &str, identity: String) -> Self {
        Self { leases: Api::namespaced(client, namespace), identity, seen: None }
    }

    /// Returns once this candidate leads.
    pub(super) async fn lead(&mut self) {
        loop {
            match self.attempt().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => warn!(%error, "cannot take part in the leader election; trying again"),
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// Renews for as long as it can, and returns once this process must no longer act as the leader.
    pub(super) async fn keep(&mut self) {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(PERIOD).await;
            let sent = Instant::now();
            let left = RENEW_DEADLINE.saturating_sub(renewed.elapsed());
            match tokio::time::timeout(left, self.attempt()).await {
                Ok(Ok(true)) => renewed = sent,
                Ok(Ok(false)) => {
                    warn!("another controller took the lease");
                    return;
                }
                Ok(Err(error)) => warn!(%error, "cannot renew the lease"),
                Err(_) => warn!("no answer to the renewal of the lease"),
            }
            if renewed.elapsed() >= RENEW_DEADLINE {
                return;
            }
        }
    }

    /// Gives the Lease back, so that another one need not wait for it to run out. Best effort.
    pub(super) async fn release(&mut self) {
        let released = async {
            let lease = self.leases.get(LEASE).await?;
            if holder(&lease) == self.identity {
                self.write(&lease, "").await?;
            }
            Ok::<_, kube::Error>(())
        };
        if let Err(error) = released.await {
            info!(%error, "the lease was not given back; it runs out by itself");
        }
    }

    /// Whether this candidate holds the Lease now.
    async fn attempt(&mut self) -> kube::Result<bool> {
        let lease = self.leases.get_opt(LEASE).await?;
        let unchanged = self.unchanged(lease.as_ref());
        let duration = lease.as_ref().and_then(|lease| lease.spec.as_ref()?.lease_duration_seconds);
        let duration = duration.and_then(|seconds| seconds.try_into().ok()).map_or(DURATION, Duration::from_secs);
        let holder = lease.as_ref().map(holder);
        let done = match (step(holder.as_deref(), &self.identity, unchanged, duration), &lease) {
            (Step::Create, _) => self.create().await,
            (Step::Renew | Step::TakeOver, Some(lease)) => self.write(lease, &self.identity).await,
            _ => return Ok(false),
        };
        match done {
            Ok(()) => Ok(true),
            // Somebody else was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn unchanged(&mut self, lease: Option<&Lease>) -> Duration {
        let Some(version) = lease.and_then(ResourceExt::resource_version) else {
            return Duration::ZERO;
        };
        match &self.seen {
            Some((seen, since)) if *seen == version => since.elapsed(),
            _ => {
                self.seen = Some((version, Instant::now()));
                Duration::ZERO
            }
        }
    }

    async fn create(&self) -> kube::Result<()> {
        let lease = Lease {
            metadata: ObjectMeta { name: Some(LEASE.into()), ..ObjectMeta::default() },
            spec: Some(self.spec(&self.identity, None, clock::now())),
        };
        self.leases.create(&PostParams::default(), &lease).await.map(drop)
    }

    /// A PUT under the resource version that was read.
    async fn write(&self, read: &Lease, holder: &str) -> kube::Result<()> {
        let mut lease = read.clone();
        lease.spec = Some(self.spec(holder, read.spec.as_ref(), clock::now()));
        self.leases.replace(LEASE, &PostParams::default(), &lease).await.map(drop)
    }

    fn spec(&self, holder: &str, before: Option<&LeaseSpec>, now: Timestamp) -> LeaseSpec {
        let same = before.filter(|before| before.holder_identity.as_deref() == Some(holder));
        let transitions = before.and_then(|before| before.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(DURATION.as_secs().try_into().unwrap_or(i32::MAX)),
            acquire_time: same.map_or(Some(MicroTime(now)), |same| same.acquire_time.clone()),
            renew_time: Some(MicroTime(now)),
            lease_transitions: Some(if same.is_some() { transitions } else { transitions.saturating_add(1) }),
            ..LeaseSpec::default()
        }
    }
}

fn holder(lease: &Lease) -> String {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_only_when_free_or_long_unchanged() {
        let (short, long) = (DURATION - Duration::from_millis(1), DURATION);
        for (holder, unchanged, expected) in [
            (None, short, Step::Create),
            (Some("me"), short, Step::Renew),
            (Some("me"), long, Step::Renew),
            (Some(""), short, Step::TakeOver),
            (Some("other"), short, Step::Wait),
            (Some("other"), long, Step::TakeOver),
        ] {
            assert_eq!(step(holder, "me", unchanged, DURATION), expected, "{holder:?} {unchanged:?}");
        }
    }
}
