//! How long tombstones stay, and what they hold.
//!
//! One stays for the retention and for as long as an ApiKey declares its digest: whether one does is asked after what is
//! decided here, so that whoever declared a digest while its retention lasted is seen. Those of generated keys, which
//! tenants can make any number of, are bounded in each namespace as well. Without its tombstone a generated key is unknown
//! instead of revoked, and refused just so.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use jiff::{SignedDuration, Timestamp};

use crate::api::ApiKeyRecordSpec;

/// The bound does not hold for younger ones: whoever looks for why a key has just stopped to work finds its tombstone.
pub const FREE_OF_BOUND: SignedDuration = SignedDuration::from_hours(1);

/// What decides how long a tombstone stays.
#[derive(Clone, Copy, Debug)]
pub struct Tombstone<'a> {
    /// Its record's name.
    pub name: &'a str,
    /// Its ApiKey's namespace.
    pub namespace: &'a str,
    /// When its key was revoked.
    pub revoked_at: Timestamp,
    /// Whether its key was generated here; otherwise its digest was submitted.
    pub is_generated: bool,
}

impl Tombstone<'_> {
    /// Whether its retention is over.
    pub fn is_over(&self, retention: SignedDuration, now: Timestamp) -> bool {
        now.duration_since(self.revoked_at) >= retention
    }

    /// Whether it is one of those whose number is bounded.
    fn counts(&self, now: Timestamp) -> bool {
        self.is_generated && now.duration_since(self.revoked_at) > FREE_OF_BOUND
    }

    fn rank(&self) -> Rank {
        let mut hasher = DefaultHasher::new();
        self.name.hash(&mut hasher);
        (self.revoked_at.as_second(), hasher.finish())
    }
}

/// Older ones first; the name tells those of one second apart.
type Rank = (i64, u64);

/// The tombstones of each namespace whose number is bounded: 16 octets each.
#[derive(Debug, Default)]
pub struct Census(HashMap<String, Vec<Rank>>);

/// Which tombstones are beyond the bound.
#[derive(Debug, Default, PartialEq)]
pub struct Excess(HashMap<String, Rank>);

impl Census {
    /// Counts a tombstone, where it is one of those that are bounded.
    pub fn count(&mut self, tombstone: &Tombstone<'_>, now: Timestamp) {
        if !tombstone.counts(now) {
            return;
        }
        match self.0.get_mut(tombstone.namespace) {
            Some(ranks) => ranks.push(tombstone.rank()),
            None => drop(self.0.insert(tombstone.namespace.to_owned(), vec![tombstone.rank()])),
        }
    }

    /// The oldest ones of each namespace that has more than `most`.
    pub fn excess(self, most: usize) -> Excess {
        let oldest_to_stay = |(namespace, mut ranks): (String, Vec<Rank>)| {
            let beyond = ranks.len().checked_sub(most).filter(|beyond| *beyond > 0)?;
            let (_, newest_to_go, _) = ranks.select_nth_unstable(beyond - 1);
            Some((namespace, *newest_to_go))
        };
        Excess(self.0.into_iter().filter_map(oldest_to_stay).collect())
    }
}

impl Excess {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this tombstone is beyond the bound.
    pub fn contains(&self, tombstone: &Tombstone<'_>, now: Timestamp) -> bool {
        let newest_to_go = self.0.get(tombstone.namespace);
        tombstone.counts(now) && newest_to_go.is_some_and(|newest| tombstone.rank() <= *newest)
    }
}

/// The spec of a tombstone with nothing in it but what refuses and explains; `None` where it holds no more than that, or
/// is no tombstone.
pub fn slim(spec: &ApiKeyRecordSpec) -> Option<ApiKeyRecordSpec> {
    spec.revoked.as_ref()?;
    let slim = ApiKeyRecordSpec {
        digest: spec.digest.clone(),
        key_prefix: spec.key_prefix.clone(),
        api_key: spec.api_key.clone(),
        serial: spec.serial,
        revoked: spec.revoked.clone(),
        owner: None,
        scopes: Vec::new(),
        allowed_ips: None,
        not_after: None,
        suspended: false,
        rotate_request: None,
    };
    (slim != *spec).then_some(slim)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use proptest::prelude::*;

    use super::*;
    use crate::api::{ApiKeyReference, Revocation};

    const NOW: Timestamp = Timestamp::constant(1_764_460_800, 0);

    fn tombstone<'a>(name: &'a str, namespace: &'a str, age_seconds: i64, is_generated: bool) -> Tombstone<'a> {
        let revoked_at = NOW - SignedDuration::from_secs(age_seconds);
        Tombstone { name, namespace, revoked_at, is_generated }
    }

    #[test]
    fn the_retention_is_over_to_the_second() {
        let retention = SignedDuration::from_hours(24);
        let day = 24 * 3600;
        for (age, expected) in [(0, false), (day - 1, false), (day, true), (day + 1, true), (-5, false)] {
            assert_eq!(tombstone("a-1", "n", age, true).is_over(retention, NOW), expected, "{age}");
        }
        assert!(tombstone("a-1", "n", 0, false).is_over(SignedDuration::ZERO, NOW));
    }

    #[test]
    fn beyond_the_bound_the_oldest_generated_ones_go() {
        let hours = |hours: i64| hours * 3600;
        let all = [
            tombstone("a-1", "n", hours(5), true),
            tombstone("b-1", "n", hours(4), true),
            tombstone("c-1", "n", hours(3), true),
            tombstone("d-1", "n", hours(1), true), // not older than an hour
            tombstone("e-1", "n", hours(9), false),
            tombstone("f-1", "m", hours(9), true),
        ];
        let gone = |most| {
            let mut census = Census::default();
            all.iter().for_each(|one| census.count(one, NOW));
            let excess = census.excess(most);
            all.iter().filter(|one| excess.contains(one, NOW)).map(|one| one.name).collect::<Vec<_>>()
        };
        assert_eq!(gone(3), [""; 0]);
        assert_eq!(gone(2), ["a-1"]);
        assert_eq!(gone(1), ["a-1", "b-1"]);
        assert_eq!(gone(0), ["a-1", "b-1", "c-1", "f-1"]);
    }

    proptest! {
        #[test]
        fn as_many_stay_as_the_bound_says_and_none_that_stays_is_older_than_one_that_goes(
            ages in proptest::collection::vec((0_i64..3, 0_i64..40, any::<bool>()), 0..60),
            most in 0_usize..20,
        ) {
            let names: Vec<(String, String)> =
                ages.iter().enumerate().map(|(number, (namespace, ..))| (format!("u{number}-1"), format!("n{namespace}"))).collect();
            let all: Vec<Tombstone<'_>> = ages
                .iter()
                .zip(&names)
                .map(|((_, minutes, generated), (name, namespace))| tombstone(name, namespace, (minutes + 50) * 60, *generated))
                .collect();
            let mut census = Census::default();
            all.iter().for_each(|one| census.count(one, NOW));
            let excess = census.excess(most);
            for namespace in ["n0", "n1", "n2"] {
                let bounded: Vec<_> = all.iter().filter(|one| one.namespace == namespace && one.counts(NOW)).collect();
                let (gone, stay): (Vec<&Tombstone<'_>>, Vec<&Tombstone<'_>>) = bounded.iter().partition(|one| excess.contains(one, NOW));
                prop_assert_eq!(stay.len(), bounded.len().min(most));
                let newest_gone = gone.iter().map(|one| one.revoked_at).max();
                prop_assert!(newest_gone.is_none_or(|newest| stay.iter().all(|one| one.revoked_at >= newest)));
            }
            for one in all.iter().filter(|one| !one.counts(NOW)) {
                prop_assert!(!excess.contains(one, NOW));
            }
        }
    }

    fn fat() -> ApiKeyRecordSpec {
        ApiKeyRecordSpec {
            digest: format!("sha256:{}", "0".repeat(64)),
            key_prefix: Some("keyw1_abcdefgh".into()),
            api_key: ApiKeyReference { namespace: "n".into(), name: "a".into(), uid: "u".into() },
            serial: 3,
            owner: Some("a@example.org".into()),
            scopes: vec!["a".into()],
            allowed_ips: Some(vec!["192.0.2.0/24".into()]),
            not_after: Some(Time(NOW)),
            suspended: true,
            revoked: Some(Revocation { at: Time(NOW), reason: "Deleted".into() }),
            rotate_request: Some("x".repeat(262_144)),
        }
    }

    #[test]
    fn a_tombstone_keeps_what_refuses_and_explains() {
        let slim = slim(&fat()).unwrap();
        let kept = serde_json::to_value(&slim).unwrap();
        let names: Vec<_> = kept.as_object().unwrap().keys().collect();
        assert_eq!(names, ["apiKey", "digest", "keyPrefix", "revoked", "serial"]);
        assert_eq!(super::slim(&slim), None, "once is enough");
    }

    #[test]
    fn a_record_of_a_live_key_keeps_everything() {
        assert_eq!(slim(&ApiKeyRecordSpec { revoked: None, ..fat() }), None);
    }
}
