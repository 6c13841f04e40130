//! Whether a key would be let in, and by which rule: the verifier's own check, over a keyring of what the user may see.

use std::borrow::Cow;
use std::hash::RandomState;
use std::net::IpAddr;

use jiff::{Timestamp, Zoned};
use keywright_core::address::{AllowedAddresses, canonical};
use keywright_core::api::{ApiKey, ApiKeyRecord};
use keywright_core::client_address::Unresolved;
use keywright_core::credential::{Carrier, Credential, CredentialError};
use keywright_core::key::{Digest, Presented};
use keywright_core::keyring::{Entry, Keyring, StoredRecord};
use keywright_core::record_name::record_name;
use keywright_core::verify::{self, AddressDenial, Denial, InvalidRoute, Request, Route};
use serde_json::{Value, json};

use crate::view::time;

/// What a route demands, and where a client is.
#[derive(Clone, Debug, Default)]
pub struct Demand {
    /// The namespaces that the route accepts. Empty: any.
    pub namespaces: Vec<String>,
    /// The scopes that the key must have.
    pub scopes: Vec<String>,
    /// The client's address.
    pub from: Option<IpAddr>,
}

/// A decision, and how it came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// `allowed`, or `refused: REASON`.
    pub verdict: String,
    /// Each rule in its order, with the value that decided it, up to the one that refused.
    pub rules: Vec<String>,
}

/// A record of a key, as the controller would have written it.
#[derive(Clone, Debug)]
pub struct KnownRecord {
    name: String,
    created: Option<Timestamp>,
    spec: Value,
}

impl KnownRecord {
    /// What the records of `key` say of the key with this serial: of the current one, or of one that ends at `retires_at`.
    pub fn of(key: &ApiKey, digest: Digest, serial: u32, retires_at: Option<Timestamp>) -> Self {
        let (metadata, spec) = (&key.metadata, &key.spec);
        let uid = metadata.uid.clone().unwrap_or_default();
        let end = key.status.as_ref().and_then(|status| status.expires_at.as_ref()).map(|end| end.0);
        let end = retires_at.into_iter().chain(end).min();
        let entries = spec.allowed_ips.as_deref().map(|entries| {
            AllowedAddresses::parse(entries).map_or_else(|_| entries.to_vec(), |allowed| allowed.canonical_entries())
        });
        let mut record = json!({
            "digest": digest.to_string(),
            "apiKey": {"namespace": metadata.namespace, "name": metadata.name, "uid": uid},
            "serial": serial,
            "scopes": spec.scopes,
            "suspended": spec.suspended,
        });
        let optional = [
            ("owner", spec.owner.as_ref().map(|owner| json!(owner))),
            ("allowedIPs", entries.map(|entries| json!(entries))),
            ("notAfter", end.map(|end| json!(end.to_string()))),
            ("revoked", metadata.deletion_timestamp.as_ref().map(|at| json!({"at": at, "reason": "Deleted"}))),
        ];
        for (name, value) in optional.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            if let Some(fields) = record.as_object_mut() {
                fields.insert(name.to_owned(), value);
            }
        }
        let created = metadata.creation_timestamp.as_ref().map(|created| created.0);
        Self { name: record_name(&uid, serial), created, spec: record }
    }

    /// A record as it is stored.
    pub fn stored(record: &ApiKeyRecord) -> Self {
        Self {
            name: record.metadata.name.clone().unwrap_or_default(),
            created: record.metadata.creation_timestamp.as_ref().map(|created| created.0),
            spec: serde_json::to_value(&record.spec).unwrap_or_default(),
        }
    }
}

/// Decides about `key` as a verifier would that has these records and no other.
///
/// # Errors
/// What is missing for a decision.
pub fn explain(key: &[u8], records: &[KnownRecord], demand: &Demand, now: &Zoned) -> Result<Explanation, String> {
    let mut keyring = Keyring::new(RandomState::new());
    for record in records {
        // One that cannot be read closes its key, as at the verifier.
        if let Ok(stored) = StoredRecord::read(&record.name, record.created, &record.spec) {
            let _ = keyring.upsert(&stored);
        }
    }
    let presented = Presented::parse(key);
    let entry = presented.ok().and_then(|key| keyring.get(&key.digest()).ok());
    let from = match (entry.and_then(|entry| entry.allowed_addresses()), demand.from) {
        (Some(_), None) => return Err("The key may be used from some addresses only: add --from ADDRESS.".to_owned()),
        (_, from) => from.map(canonical),
    };
    let client_address = || from.ok_or(Unresolved::TooShort);
    let credential = presented.map(|key| Credential { key, carrier: Carrier::XApiKey });
    let request = Request {
        credential: credential.map_err(|_| CredentialError::Malformed),
        route: route(demand),
        client_address: &client_address,
    };
    let decision = verify::check(&keyring, &request, now.timestamp());
    let verdict = match &decision {
        Ok(_) => "allowed".to_owned(),
        Err(denial) => format!("refused: {}", denial.reason()),
    };
    let denial = decision.err();
    Ok(Explanation { verdict, rules: rules(presented.is_ok(), entry, denial, demand, now) })
}

fn route(demand: &Demand) -> Result<Route<'_>, InvalidRoute> {
    let namespaces = demand.namespaces.iter().map(|namespace| ("namespace", namespace));
    let parameters = namespaces.chain(demand.scopes.iter().map(|scope| ("scope", scope)));
    Route::read(parameters.map(|(name, value)| (Cow::Borrowed(name), Cow::Borrowed(&**value))))
}

/// The rules in the verifier's order, up to the one that refused.
fn rules(
    is_a_key: bool,
    entry: Option<Entry<'_>>,
    denial: Option<Denial>,
    demand: &Demand,
    now: &Zoned,
) -> Vec<String> {
    if let Some(Denial::Route(_)) = denial {
        let remedy = denial.and_then(Denial::remedy).unwrap_or("the route's demands are wrong");
        return vec![remedy.to_owned()];
    }
    if !is_a_key {
        return vec!["it is not a well-formed key".to_owned()];
    }
    let Some(entry) = entry else { return vec!["no ApiKey that you may see has it".to_owned()] };
    let all = [
        ("revoked", yes_or_no("revoked", entry.is_revoked())),
        ("suspended", yes_or_no("suspended", entry.is_suspended())),
        ("expired", expiry(entry, now)),
        ("namespace", namespaces(entry, demand)),
        ("scope", scopes(entry, demand)),
        ("address", address(entry, denial, demand)),
    ];
    let refused_by = denial.map(Denial::reason);
    let decided = all.iter().position(|(rule, _)| refused_by == Some(*rule)).unwrap_or(all.len());
    all.into_iter().take(decided + 1).filter_map(|(_, said)| said).collect()
}

fn yes_or_no(rule: &str, is_so: bool) -> Option<String> {
    Some(format!("{rule} {}", if is_so { "yes" } else { "no" }))
}

fn expiry(entry: Entry<'_>, now: &Zoned) -> Option<String> {
    Some(match entry.not_after() {
        Some(end) if now.timestamp() >= end => format!("expired {}", time::exact(end, now)),
        _ => "expired no".to_owned(),
    })
}

fn namespaces(entry: Entry<'_>, demand: &Demand) -> Option<String> {
    let (own, accepted) = (entry.namespace(), &demand.namespaces);
    let is_in = accepted.iter().any(|namespace| namespace == own);
    let verb = if is_in { "in" } else { "not in" };
    (!accepted.is_empty()).then(|| format!("namespace {own} {verb} {}", accepted.join(", ")))
}

fn scopes(entry: Entry<'_>, demand: &Demand) -> Option<String> {
    let missing: Vec<_> = demand.scopes.iter().filter(|scope| !entry.has_scope(scope)).map(String::as_str).collect();
    match (demand.scopes.is_empty(), missing.is_empty()) {
        (true, _) => None,
        (false, true) => Some(format!("scope {} yes", demand.scopes.join(", "))),
        (false, false) => Some(format!("scope {} missing", missing.join(", "))),
    }
}

fn address(entry: Entry<'_>, denial: Option<Denial>, demand: &Demand) -> Option<String> {
    let Some(allowed) = entry.allowed_addresses() else { return Some("address any".to_owned()) };
    let list = allowed.canonical_entries().join(", ");
    Some(match (denial, demand.from.map(canonical)) {
        (Some(Denial::Address(AddressDenial::NotAllowed(address))), _) => format!("address {address} not in {list}"),
        (_, Some(address)) => format!("address {address} in {list}"),
        (_, None) => format!("address unknown, not in {list}"),
    })
}

#[cfg(test)]
mod tests {
    use keywright_core::testing::KEY;

    use super::*;
    use crate::view::fixtures::{apikey, now};

    fn explained(change: &Value, demand: &Demand) -> (String, String) {
        let digest = Digest::of(KEY.as_bytes());
        let record = KnownRecord::of(&apikey(change), digest, 1, None);
        let explanation = explain(KEY.as_bytes(), &[record], demand, &now()).unwrap();
        (explanation.verdict, explanation.rules.join(", "))
    }

    fn from(address: &str) -> Demand {
        Demand { from: Some(address.parse().unwrap()), ..Demand::default() }
    }

    #[test]
    fn each_rule_is_told_with_its_value_up_to_the_one_that_refused() {
        let listed = json!({"spec": {"allowedIPs": ["10.0.0.0/8"], "scopes": ["read"]}});
        let demanding = |namespace: &str, scope: &str| Demand {
            namespaces: vec![namespace.to_owned()],
            scopes: vec![scope.to_owned()],
            ..from("10.1.2.3")
        };
        for (key, demand, verdict, rules) in [
            (json!({}), Demand::default(), "allowed", "revoked no, suspended no, expired no, address any"),
            (
                listed.clone(),
                from("10.1.2.3"),
                "allowed",
                "revoked no, suspended no, expired no, address 10.1.2.3 in 10.0.0.0/8",
            ),
            (
                listed.clone(),
                from("192.0.2.7"),
                "refused: address",
                "revoked no, suspended no, expired no, address 192.0.2.7 not in 10.0.0.0/8",
            ),
            (
                listed.clone(),
                from("::ffff:10.1.2.3"),
                "allowed",
                "revoked no, suspended no, expired no, address 10.1.2.3 in 10.0.0.0/8",
            ),
            (
                listed.clone(),
                demanding("team-a", "read"),
                "allowed",
                "revoked no, suspended no, expired no, namespace team-a in team-a, scope read yes, address 10.1.2.3 in 10.0.0.0/8",
            ),
            (
                listed.clone(),
                demanding("team-b", "read"),
                "refused: namespace",
                "revoked no, suspended no, expired no, namespace team-a not in team-b",
            ),
            (
                listed.clone(),
                demanding("team-a", "write"),
                "refused: scope",
                "revoked no, suspended no, expired no, namespace team-a in team-a, scope write missing",
            ),
            (json!({"deleted": true}), Demand::default(), "refused: revoked", "revoked yes"),
            (
                json!({"spec": {"suspended": true}}),
                Demand::default(),
                "refused: suspended",
                "revoked no, suspended yes",
            ),
            (
                json!({"status": {"expiresAt": "2026-11-29T13:05:00Z"}}),
                Demand::default(),
                "refused: expired",
                "revoked no, suspended no, expired 2026-11-29T14:05:00+01:00",
            ),
            (
                json!({}),
                demanding("team-a", "read,write"),
                "refused: route",
                "scope: repeat the parameter instead of a comma",
            ),
        ] {
            assert_eq!(explained(&key, &demand), (verdict.to_owned(), rules.to_owned()), "{key}");
        }
    }

    #[test]
    fn a_retiring_key_ends_when_it_retires() {
        let ended = "2026-11-29T13:05:00Z".parse().unwrap();
        let key = apikey(&json!({"status": {"expiresAt": "2027-11-29T13:05:00Z"}}));
        let record = KnownRecord::of(&key, Digest::of(KEY.as_bytes()), 1, Some(ended));
        let explanation = explain(KEY.as_bytes(), &[record], &Demand::default(), &now()).unwrap();
        assert_eq!(explanation.verdict, "refused: expired");
    }

    #[test]
    fn what_is_unknown_or_no_key_is_refused_as_the_verifier_refuses_it() {
        let said = |key: &str| explain(key.as_bytes(), &[], &Demand::default(), &now()).unwrap().verdict;
        assert_eq!((said(KEY), said("keyw1_short")), ("refused: unknown".to_owned(), "refused: malformed".to_owned()));
        let record = KnownRecord::of(
            &apikey(&json!({"spec": {"allowedIPs": ["10.0.0.0/8"]}})),
            Digest::of(KEY.as_bytes()),
            1,
            None,
        );
        assert!(explain(KEY.as_bytes(), &[record], &Demand::default(), &now()).unwrap_err().contains("--from"));
    }
}
