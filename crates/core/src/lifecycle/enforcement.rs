//! Whether the verifiers decide by what the records say.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::date_time;
use crate::fence::{DELIVERY_PATIENCE, ENFORCEMENT_PATIENCE};

/// How long after the latest moment of a wait it is looked at again.
const MARGIN: SignedDuration = SignedDuration::from_secs(1);

/// What stands in a message before the latest moment of a wait, and between that and who is waited for.
const UNTIL: &str = ", until ";
const AT_THE_LATEST: &str = " at the latest: ";

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
                format!("waiting for the verifiers' acknowledgement{UNTIL}{latest}{AT_THE_LATEST}{}", names(on))
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

/// Whom a message of an ApiKey waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Awaited<'m> {
    /// If they stay silent, they let nobody in from then on.
    pub latest: Timestamp,
    /// Names of the verifiers' Leases, for people.
    pub verifiers: &'m str,
}

/// Whom `message` says that it waits for: a condition's message, as [`Pending`] has it.
pub fn awaited_in(message: &str) -> Option<Awaited<'_>> {
    let (_, rest) = message.split_once(UNTIL)?;
    let (latest, verifiers) = rest.split_once(AT_THE_LATEST)?;
    Some(Awaited { latest: date_time::parse(latest)?, verifiers })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_whom_it_waits_for() {
        let latest: Timestamp = "2026-11-29T14:32:10Z".parse().unwrap();
        let pending = |on: &[&str]| Pending::Verifiers { on: on.iter().map(|name| Arc::from(*name)).collect(), latest };
        for (on, verifiers) in [(&["a"][..], "a"), (&["a", "b", "c", "d", "e", "f"], "a, b, c, d, e and 1 more")] {
            let message = format!("all keys are revoked; {}", pending(on).message());
            assert_eq!(awaited_in(&message), Some(Awaited { latest, verifiers }));
        }
        for other in [Pending::TooManyLeases, Pending::Restored { until: latest }, Pending::Unread] {
            assert_eq!(awaited_in(&other.message()), None);
        }
    }
}
