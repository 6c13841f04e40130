//! Whether the verifiers decide by what the records say.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::fence::{DELIVERY_PATIENCE, ENFORCEMENT_PATIENCE};

/// How long after the latest moment of a wait it is looked at again.
const MARGIN: SignedDuration = SignedDuration::from_secs(1);

/// Whether every verifier decides by what the records of one ApiKey say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Enforcement {
    /// It was not asked since the records were last written.
    #[default]
    Unasked,
    /// Every verifier does.
    Complete {
        /// How many there are. 0: no verifier runs.
        verifiers: usize,
    },
    /// Not every verifier does, as far as is known.
    Pending(Pending),
}

/// What enforcement waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pending {
    /// These verifiers have not acknowledged the newest record.
    Verifiers {
        /// Names of their Leases.
        on: Vec<Arc<str>>,
        /// If they stay silent, they let nobody in from then on.
        latest: Timestamp,
    },
    /// There are too many Leases to look through, or one that cannot be told apart.
    TooManyLeases,
    /// etcd was restored from a backup, and verifiers may rely on Leases that are lost.
    Restored {
        /// Until then.
        until: Timestamp,
    },
    /// The Leases could not be read.
    Unread,
}

/// What the verifiers' acknowledgement is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A new key is to go into its Secret, and is to work there. It goes there all the same after a while.
    Delivery,
    /// What is declared or revoked is to be reported as enforced. That can also be done later.
    Enforcement,
}

impl Purpose {
    /// How long the acknowledgement is waited for in place.
    pub fn patience(self) -> Duration {
        match self {
            Self::Delivery => DELIVERY_PATIENCE,
            Self::Enforcement => ENFORCEMENT_PATIENCE,
        }
    }
}

impl Pending {
    /// What is waited for, for people.
    pub(super) fn message(&self) -> String {
        match self {
            Self::Verifiers { on, latest } => {
                format!("waiting for the verifiers' acknowledgement, until {latest} at the latest: {}", names(on))
            }
            Self::TooManyLeases => {
                "waiting: the system namespace has too many Leases of verifiers; remove those of verifiers that are gone"
                    .to_owned()
            }
            Self::Restored { until } => format!(
                "waiting until {until}: etcd was restored from a backup, and verifiers may rely on Leases that are lost"
            ),
            Self::Unread => {
                "waiting: the controller cannot read the verifiers' Leases; its log has the API server's answer"
                    .to_owned()
            }
        }
    }

    /// When it is over if nothing is heard.
    pub(super) fn wake(&self) -> Option<Timestamp> {
        match self {
            Self::Verifiers { latest: until, .. } | Self::Restored { until } => until.checked_add(MARGIN).ok(),
            Self::TooManyLeases | Self::Unread => None,
        }
    }
}

/// A few of them, and how many more there are.
pub(super) fn names(leases: &[Arc<str>]) -> String {
    const SHOWN: usize = 5;
    let shown = leases.iter().take(SHOWN).map(|name| &**name).collect::<Vec<_>>().join(", ");
    match leases.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
