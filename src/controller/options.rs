//! What the controller's flags say.

use std::time::Duration;

use jiff::SignedDuration;

use crate::serve::listen::Address;

/// What the controller is told at its start.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where records and the leader's Lease are.
    pub system_namespace: String,
    /// Look after the ApiKeys of this namespace only.
    pub watched_namespace: Option<String>,
    /// Where probes and metrics are answered.
    pub admin_address: Address,
    /// Who this process is; different for any two processes.
    pub identity: String,
    /// Whether to work only while leading.
    pub leader_elect: bool,
    /// How long a revoked record stays.
    pub tombstone_retention: SignedDuration,
    /// How many revoked records of generated keys stay for each namespace once they are an hour old.
    pub tombstones_per_namespace: u32,
    /// How many ApiKeys are worked on at a time.
    pub concurrency: u16,
    /// At the latest after this time every ApiKey is looked at again.
    pub resync: Duration,
}
