//! How many ApiKeys there are by state, and when the next of a namespace expires: counted when somebody asks.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use super::memory::{Memory, Rest};
use super::verifiers::Verifiers;
use crate::clock;
use keywright_core::api::Reason;
use keywright_core::fence::State;

/// The gauges of one controller. An ApiKey counts once a pass over it has come to its end.
#[derive(Debug)]
pub(super) struct ApiKeyGauges(pub(super) Arc<Memory>);

/// Every reason of `Active`, so that each is there from the start.
const REASONS: [Reason; 12] = [
    Reason::Active,
    Reason::Rotating,
    Reason::Suspended,
    Reason::Expired,
    Reason::Issuing,
    Reason::Revoking,
    Reason::MintBudget,
    Reason::Invalid,
    Reason::SecretNameTaken,
    Reason::DigestTaken,
    Reason::DigestRevoked,
    Reason::SourceUnusable,
];

impl Collector for ApiKeyGauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut tally = Tally::default();
        let now = clock::now();
        self.0.visit(|rest| tally.count(rest, now));
        let help = "ApiKeys by the reason of their condition Active";
        let mut family = encoder.encode_descriptor("apikeys", help, None, MetricType::Gauge)?;
        for reason in &REASONS {
            let number = tally.reasons.get(reason.as_str()).copied().unwrap_or_default();
            ConstGauge::new(number).encode(family.encode_family(&[("reason", reason.as_str())])?)?;
        }
        let help = "When the next ApiKey of the namespace expires, in seconds since 1970";
        let name = "soonest_expiry_timestamp_seconds";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (namespace, expiry) in &tally.expiries {
            ConstGauge::new(expiry.as_second()).encode(family.encode_family(&[("namespace", namespace.as_str())])?)?;
        }
        Ok(())
    }
}

/// The gauges of the verifiers, as the last look has shown them.
#[derive(Debug)]
pub(super) struct VerifierGauges(pub(super) Arc<Verifiers>);

impl Collector for VerifierGauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let now = clock::moment();
        let (states, lag) = self.0.visit(|fence, oldest| {
            let states: Vec<_> = fence.states(now).collect();
            (states, oldest.map_or(Duration::ZERO, |oldest| now.since(oldest)))
        });
        let help = "Verifiers by what their Leases say, as this controller sees them while it leads";
        let mut family = encoder.encode_descriptor("verifiers", help, None, MetricType::Gauge)?;
        for state in State::ALL {
            let number = states.iter().filter(|found| **found == state).count();
            let number = i64::try_from(number).unwrap_or(i64::MAX);
            ConstGauge::new(number).encode(family.encode_family(&[("state", state.as_str())])?)?;
        }
        let help = "For how long the oldest write of a record waits to be acknowledged by every verifier";
        let lag = ConstGauge::new(lag.as_secs_f64());
        lag.encode(encoder.encode_descriptor("verifier_applied_lag_seconds", help, None, lag.metric_type())?)
    }
}

/// PURE.
#[derive(Debug, Default, PartialEq)]
struct Tally {
    /// Number of ApiKeys by the reason of `Active`.
    reasons: BTreeMap<String, i64>,
    /// The soonest expiry that is still to come, by namespace.
    expiries: BTreeMap<String, Timestamp>,
}

impl Tally {
    fn count(&mut self, rest: &Rest, now: Timestamp) {
        if let Some(reason) = &rest.reason {
            *self.reasons.entry(reason.as_str().to_owned()).or_default() += 1;
        }
        if let Some(expiry) = rest.expires_at.filter(|expiry| *expiry > now) {
            let soonest = self.expiries.entry(rest.namespace.clone()).or_insert(expiry);
            *soonest = expiry.min(*soonest);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::memory::Versions;
    use super::*;

    #[test]
    fn apikeys_are_counted_by_reason_and_the_soonest_expiry_is_told_by_namespace() {
        let now: Timestamp = "2026-11-30T00:00:00Z".parse().unwrap();
        let hours = |hours| now + jiff::SignedDuration::from_hours(hours);
        let mut tally = Tally::default();
        for (namespace, reason, expires_at) in [
            ("one", Reason::Active, Some(hours(5))),
            ("one", Reason::Active, Some(hours(3))),
            ("two", Reason::Expired, Some(hours(-1))),
            ("two", Reason::Active, None),
            ("three", Reason::Invalid, Some(hours(9))),
        ] {
            let (versions, until, namespace) = (Versions::default(), Instant::now(), namespace.to_owned());
            tally.count(&Rest { versions, until, reason: Some(reason), expires_at, namespace }, now);
        }
        let reasons = [("Active", 3), ("Expired", 1), ("Invalid", 1)].map(|(reason, n)| (reason.to_owned(), n));
        let expiries = [("one", hours(3)), ("three", hours(9))].map(|(name, at)| (name.to_owned(), at));
        assert_eq!(tally, Tally { reasons: reasons.into(), expiries: expiries.into() });
    }
}
