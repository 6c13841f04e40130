//! A verifier's Lease as the API server stores it: written, and read with limits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};

use crate::resource_version::{InvalidResourceVersion, ResourceVersion};

/// Annotation of a verifier's Lease: its keyring has every write of a record up to this resource version.
pub const APPLIED_ANNOTATION: &str = "keywright.dev/applied";

/// Annotation of a verifier's Lease: [`State`] as the verifier wrote it. Its value is for people. A Lease without it is
/// somebody else's: a verifier writes it from the start.
pub const STATE_ANNOTATION: &str = "keywright.dev/state";

/// The Lease of the leader election, in the same namespace.
pub const ELECTION_LEASE: &str = "keywright-controller";

/// A verifier relies on its Lease for at most this long. A Lease that does not say how long counts for this long.
pub const LONGEST_DURATION: Duration = Duration::from_secs(24 * 3600);

/// A resource version of the records: of one of them, or of a list. Never one of a Lease, which may lie in another etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordVersion(ResourceVersion);

/// A resource version of the Leases: of one of them, or of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseVersion(ResourceVersion);

macro_rules! text_of_version {
    ($($version:ident)+) => {$(
        impl std::str::FromStr for $version {
            type Err = InvalidResourceVersion;

            fn from_str(text: &str) -> Result<Self, InvalidResourceVersion> {
                text.parse().map(Self)
            }
        }

        impl std::fmt::Display for $version {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    )+};
}

text_of_version! { RecordVersion LeaseVersion }

/// One Lease at one version: the precondition of a write.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Precondition {
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// `metadata.resourceVersion`.
    pub version: LeaseVersion,
}

/// What a verifier does, as far as its Lease is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// It has no list of the records yet, and lets nobody in.
    Joining,
    /// It lets keys in.
    Serving,
    /// It has not renewed its Lease in time, and lets nobody in until it has.
    Lapsed,
    /// It lets nobody in any more, and removes its Lease.
    Leaving,
}

impl State {
    /// All of them, for metrics.
    pub const ALL: [Self; 4] = [Self::Joining, Self::Serving, Self::Lapsed, Self::Leaving];

    /// Its name in annotations and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Serving => "serving",
            Self::Lapsed => "lapsed",
            Self::Leaving => "leaving",
        }
    }
}

/// A verifier, for as long as its process runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    /// The Lease's name: the Pod's. No two running processes may have the same.
    pub identity: Arc<str>,
    /// `spec.holderIdentity`: the identity, and a random part of this start.
    pub holder: Arc<str>,
    duration: Duration,
}

impl Holder {
    /// A start of `identity`, told from others by a random number. It relies on its Lease for `lease_duration` in whole
    /// seconds, at least one of them and at most a day.
    pub fn new(identity: &str, random: u64, lease_duration: Duration) -> Self {
        let seconds = lease_duration.min(LONGEST_DURATION).as_secs().max(1);
        let holder = format!("{identity}_{random:016x}").into();
        Self { identity: identity.into(), holder, duration: Duration::from_secs(seconds) }
    }

    /// How long the verifier relies on its Lease after each renewal.
    pub fn duration(&self) -> Duration {
        self.duration
    }
}

/// What a verifier writes into its Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Content {
    /// What it does.
    pub state: State,
    /// The version that its keyring has reached.
    pub applied: Option<RecordVersion>,
}

impl Content {
    /// The object to POST without `precondition`, and to PUT with it. It has no owner: the Lease of a Pod that is gone from
    /// the API server must stay, because its process may still run. `now` is for people only.
    pub fn object(&self, holder: &Holder, precondition: Option<&Precondition>, now: Timestamp) -> Lease {
        let state = Some((STATE_ANNOTATION.to_owned(), self.state.as_str().to_owned()));
        let applied = self.applied.map(|version| (APPLIED_ANNOTATION.to_owned(), version.to_string()));
        Lease {
            metadata: ObjectMeta {
                name: Some(holder.identity.to_string()),
                uid: precondition.map(|precondition| precondition.uid.to_string()),
                resource_version: precondition.map(|precondition| precondition.version.to_string()),
                annotations: Some(state.into_iter().chain(applied).collect::<BTreeMap<_, _>>()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.holder.to_string()),
                lease_duration_seconds: Some(holder.duration.as_secs().try_into().unwrap_or(i32::MAX)),
                renew_time: Some(MicroTime(now)),
                ..LeaseSpec::default()
            }),
        }
    }
}

/// What matters of a stored Lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Stored {
    /// Its name.
    pub name: Arc<str>,
    /// Which one it is, at which version.
    pub at: Precondition,
    /// `spec.holderIdentity`.
    pub holder: Arc<str>,
    /// How long its verifier relies on it after each renewal. A day if it does not say, or says more.
    pub duration: Duration,
    /// What its verifier has applied. `None` if it does not say, or says what cannot be read.
    pub applied: Option<RecordVersion>,
    /// Whether it is being deleted, and a finalizer holds it.
    pub is_going: bool,
}

impl Stored {
    /// Whether a Lease is a verifier's.
    pub fn is_of_verifier(lease: &Lease) -> bool {
        lease.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(STATE_ANNOTATION))
    }

    /// Reads a Lease. `None` without a uid or a version that can be compared: the API server gives both.
    pub fn read(lease: &Lease) -> Option<Self> {
        let Lease { metadata, spec } = lease;
        let uid = metadata.uid.as_deref().filter(|uid| !uid.is_empty())?;
        let version = metadata.resource_version.as_deref()?.parse().ok()?;
        let spec = spec.as_ref();
        let seconds = spec.and_then(|spec| spec.lease_duration_seconds).and_then(|seconds| seconds.try_into().ok());
        let duration = seconds.filter(|seconds| *seconds > 0).map_or(LONGEST_DURATION, Duration::from_secs);
        let applied = metadata.annotations.as_ref().and_then(|annotations| annotations.get(APPLIED_ANNOTATION));
        Some(Self {
            name: metadata.name.as_deref().unwrap_or_default().into(),
            at: Precondition { uid: uid.into(), version },
            holder: spec.and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default().into(),
            duration: duration.min(LONGEST_DURATION),
            applied: applied.and_then(|version| version.parse().ok()),
            is_going: metadata.deletion_timestamp.is_some(),
        })
    }
}
