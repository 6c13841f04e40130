//! Leader election with a Lease, so that one controller works and the others stand by.
//!
//! It saves work, and carries no part of the safety: every write has a precondition, and two controllers that both
//! believe they lead do no harm. Hand-written, as the libraries for it compare clocks of different machines, and as revoking
//! needs the same Leases.

use std::time::{Duration, Instant};

use keywright_core::election::{Step, held_by, step};
use keywright_core::fence::ELECTION_LEASE;
use kube::Client;
use tracing::{info, warn};

use crate::clock;
use crate::lease::NamedLease;

/// How long a Lease must stand unchanged before somebody else takes it.
const DURATION: Duration = Duration::from_secs(15);

/// A leader that could not renew for this long stops: well before anybody else may start.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);

/// How often the Lease is renewed, or looked at.
const PERIOD: Duration = Duration::from_secs(2);

/// One candidate.
pub(super) struct Candidate {
    lease: NamedLease,
    identity: String,
}

impl Candidate {
    /// `identity` must differ between any two processes, also two lives of one Pod.
    pub(super) fn new(client: Client, namespace: &str, identity: String) -> Self {
        Self { lease: NamedLease::new(client, namespace, ELECTION_LEASE), identity }
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
                    warn!("another controller took the Lease");
                    return;
                }
                Ok(Err(error)) => warn!(%error, "cannot renew the Lease; trying again"),
                Err(_) => warn!("the API server did not answer to the renewal of the Lease; trying again"),
            }
            if renewed.elapsed() >= RENEW_DEADLINE {
                return;
            }
        }
    }

    /// Gives the Lease back, so that another one need not wait for it to run out. Best effort.
    pub(super) async fn release(&mut self) {
        let released = async {
            let (Some(lease), _) = self.lease.read().await? else { return Ok(false) };
            let spec = lease.spec.clone().unwrap_or_default();
            if spec.holder_identity.as_ref() != Some(&self.identity) {
                return Ok(false);
            }
            self.lease.replace(lease, held_by("", Some(&spec), DURATION, clock::now())).await
        };
        if let Err(error) = released.await {
            let error: kube::Error = error;
            info!(%error, "the Lease was not released; it runs out by itself");
        }
    }

    /// Whether this candidate holds the Lease now.
    async fn attempt(&mut self) -> kube::Result<bool> {
        let (lease, unchanged) = self.lease.read().await?;
        let spec = lease.as_ref().map(|lease| lease.spec.clone().unwrap_or_default());
        let step = step(spec.as_ref(), &self.identity, unchanged, DURATION);
        let held = held_by(&self.identity, spec.as_ref(), DURATION, clock::now());
        match (step, lease) {
            (Step::Create, _) => self.lease.create(held).await,
            (Step::Renew | Step::TakeOver, Some(lease)) => self.lease.replace(lease, held).await,
            _ => Ok(false),
        }
    }
}
