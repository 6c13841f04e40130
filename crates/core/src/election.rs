//! Who leads, from a Lease as it stands. Other holders are judged by how long their Lease has not changed, as this process
//! has measured it; clocks of different machines are never compared.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::LeaseSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

/// What a candidate does about the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is none: create it.
    Create,
    /// It is this candidate's: renew it.
    Renew,
    /// It was released, or its holder is silent: take it over.
    TakeOver,
    /// Somebody else leads.
    Wait,
}

/// What to do about `lease`, which this process has seen unchanged for that long. `default_duration` counts where the
/// Lease does not say how long its holder may be silent.
pub fn step(lease: Option<&LeaseSpec>, identity: &str, unchanged: Duration, default_duration: Duration) -> Step {
    let Some(lease) = lease else { return Step::Create };
    let stated = lease.lease_duration_seconds.and_then(|seconds| seconds.try_into().ok()).map(Duration::from_secs);
    match lease.holder_identity.as_deref().unwrap_or_default() {
        holder if holder == identity => Step::Renew,
        "" => Step::TakeOver,
        _ if unchanged >= stated.unwrap_or(default_duration) => Step::TakeOver,
        _ => Step::Wait,
    }
}

/// What the Lease says once `holder` has created, renewed or taken it; an empty `holder` releases it.
pub fn held_by(holder: &str, before: Option<&LeaseSpec>, duration: Duration, now: Timestamp) -> LeaseSpec {
    let same = before.filter(|before| before.holder_identity.as_deref() == Some(holder));
    let transitions = before.and_then(|before| before.lease_transitions).unwrap_or(0);
    LeaseSpec {
        holder_identity: Some(holder.to_owned()),
        lease_duration_seconds: Some(duration.as_secs().try_into().unwrap_or(i32::MAX)),
        acquire_time: same.map_or(Some(MicroTime(now)), |same| same.acquire_time.clone()),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(if same.is_some() { transitions } else { transitions.saturating_add(1) }),
        ..LeaseSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DURATION: Duration = Duration::from_secs(15);

    fn lease(holder: &str) -> LeaseSpec {
        held_by(holder, None, DURATION, "2026-11-30T00:00:00Z".parse().unwrap())
    }

    #[test]
    fn a_lease_is_taken_when_it_is_free_or_has_stood_still() {
        let step = |holder: Option<&str>, unchanged| {
            step(holder.map(lease).as_ref(), "a", Duration::from_secs(unchanged), Duration::from_secs(1))
        };
        assert_eq!(step(None, 0), Step::Create);
        assert_eq!(step(Some("a"), 0), Step::Renew);
        assert_eq!(step(Some("a"), 100), Step::Renew);
        assert_eq!(step(Some(""), 0), Step::TakeOver);
        assert_eq!(step(Some("b"), 0), Step::Wait);
        assert_eq!(step(Some("b"), 14), Step::Wait, "the Lease says how long its holder may be silent");
        assert_eq!(step(Some("b"), 15), Step::TakeOver);
    }

    #[test]
    fn a_lease_without_a_usable_duration_has_the_default_one() {
        for seconds in [None, Some(-1)] {
            let lease = LeaseSpec { lease_duration_seconds: seconds, ..lease("b") };
            assert_eq!(step(Some(&lease), "a", Duration::from_secs(14), DURATION), Step::Wait);
            assert_eq!(step(Some(&lease), "a", DURATION, DURATION), Step::TakeOver);
        }
    }

    #[test]
    fn a_new_holder_counts_as_a_transition_and_a_renewal_does_not() {
        let later = "2026-11-30T00:00:02Z".parse().unwrap();
        let first = lease("a");
        let renewed = held_by("a", Some(&first), DURATION, later);
        assert_eq!((first.lease_transitions, renewed.lease_transitions), (Some(1), Some(1)));
        assert_eq!((&renewed.acquire_time, &renewed.renew_time), (&first.acquire_time, &Some(MicroTime(later))));
        let taken = held_by("b", Some(&renewed), DURATION, later);
        assert_eq!((taken.lease_transitions, &taken.acquire_time), (Some(2), &Some(MicroTime(later))));
    }
}
