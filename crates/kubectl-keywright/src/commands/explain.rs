//! `explain`: whether a key would be let in, and by which rule.

use keywright_core::api::ApiKey;
use keywright_core::key::{Digest, Key, Presented};
use rand::rngs::SysRng;

use super::whose::{Found, Wanted, resemblance, search};
use crate::args::Explain;
use crate::decision::{Demand, Explanation, KnownRecord, explain};
use crate::failure::Failure;
use crate::session::Session;
use crate::view::escape::escape;

/// Where the decision is by what is declared, and a verifier may not know that yet.
const PENDING: &str = "Not yet everywhere: a verifier may still decide by what was declared before.";

/// Explains a decision.
pub async fn run(session: &Session, asked: &Explain) -> Result<(), Failure> {
    let demand = Demand { namespaces: asked.namespace_required.clone(), scopes: asked.scope.clone(), from: asked.from };
    let explanation = match &asked.name {
        Some(name) => by_name(session, name, &demand).await?,
        None => by_key(session, asked, &demand).await?,
    };
    session.terminal.print(&format!("{}\n{}\n", escape(&explanation.verdict), escape(&explanation.rules.join(", "))))
}

/// Decides about the current key of an ApiKey. A key that is made for the occasion stands in for it: the rules do not depend
/// on which key it is.
async fn by_name(session: &Session, name: &str, demand: &Demand) -> Result<Explanation, Failure> {
    let apikey: ApiKey = session.apikey(name).await?;
    let Some(serial) = apikey.status.as_ref().and_then(|status| status.serial) else {
        return Err(Failure::failed(format!("{} has no key yet.", session.full_name(name))));
    };
    if is_pending(&apikey) {
        session.terminal.say(PENDING);
    }
    let stand_in = Key::mint(&mut SysRng).map_err(|error| Failure::failed(format!("No random numbers: {error}.")))?;
    let record = KnownRecord::of(&apikey, stand_in.digest(), serial, None);
    explain(stand_in.reveal().as_bytes(), &[record], demand, &session.cluster.now()).map_err(Failure::usage)
}

async fn by_key(session: &Session, asked: &Explain, demand: &Demand) -> Result<Explanation, Failure> {
    let key = session.terminal.read_key("Key (not echoed): ").await?;
    let mut basis = Basis::default();
    if let Ok(presented) = Presented::parse(key.as_bytes()) {
        let wanted = Wanted { digest: presented.digest(), shown: presented.shown(&presented.digest()).to_string() };
        let search = search(session, &wanted, asked.all_namespaces, &asked.system_namespace).await?;
        session.terminal.say(&format!("{}{}", resemblance(&search.resembling), search.scope));
        basis = Basis::of(&search.found, wanted.digest);
        if search.found.iter().any(|found| found.record.is_none() && found.apikey.as_ref().is_some_and(is_pending)) {
            session.terminal.say(PENDING);
        }
    }
    let explanation =
        explain(key.as_bytes(), &basis.records, demand, &session.cluster.now()).map_err(Failure::usage)?;
    Ok(basis.qualified(explanation))
}

/// Whether no verifier, or not every one, is known to enforce what is declared.
fn is_pending(key: &ApiKey) -> bool {
    let enforced = key.status.as_ref().and_then(|status| status.enforced_generation);
    enforced < key.metadata.generation
}

/// What a decision about a key rests on.
#[derive(Default)]
struct Basis {
    records: Vec<KnownRecord>,
    /// The ApiKey that the key is taken for, because the key begins like its.
    taken_for: Option<String>,
}

impl Basis {
    /// The stored records where there are any: they say more. Then what was declared for this digest, and at last the ApiKey
    /// whose key begins in the same way.
    fn of(found: &[Found], digest: Digest) -> Self {
        let stored: Vec<_> = found.iter().filter_map(|found| found.record.as_ref().map(KnownRecord::stored)).collect();
        if !stored.is_empty() {
            return Self { records: stored, taken_for: None };
        }
        let Some(found) = found.iter().find(|found| found.by.is_sure()).or(found.first()) else {
            return Self::default();
        };
        // Without a serial, no verifier has heard of the key.
        let declared = found.apikey.as_ref().zip(found.serial);
        let records = declared.map(|(key, serial)| KnownRecord::of(key, digest, serial, found.retires_at));
        let taken_for = (!found.by.is_sure()).then(|| found.full_name());
        Self { records: records.into_iter().collect(), taken_for }
    }

    fn qualified(&self, explanation: Explanation) -> Explanation {
        let Some(name) = &self.taken_for else { return explanation };
        let verdict = format!("{}, if this is the key of {name}: only its prefix was compared", explanation.verdict);
        Explanation { verdict, ..explanation }
    }
}

#[cfg(test)]
mod tests {
    use keywright_core::testing::KEY;
    use serde_json::json;

    use super::*;
    use crate::commands::whose::By;
    use crate::view::fixtures::{apikey, now};

    #[test]
    fn what_is_declared_is_pending_until_every_verifier_enforces_it() {
        for (enforced, is_so) in [(json!(3), false), (json!(4), false), (json!(2), true), (json!(null), true)] {
            let key = apikey(&json!({"generation": 3, "status": {"enforcedGeneration": enforced}}));
            assert_eq!(is_pending(&key), is_so, "{enforced}");
        }
    }

    #[test]
    fn a_decision_says_whose_key_it_only_may_be() {
        let issued = json!({});
        let pending = json!({"status": {"serial": null}});
        let digest = Digest::of(KEY.as_bytes());
        for (key, by, verdict) in [
            (&issued, By::KeyHash, "allowed"),
            (&pending, By::KeyHash, "refused: unknown"),
            (&issued, By::Prefix, "allowed, if this is the key of team-a/nightly-ci: only its prefix was compared"),
        ] {
            let apikey = apikey(key);
            let serial = apikey.status.as_ref().and_then(|status| status.serial);
            let basis =
                Basis::of(&[Found { apikey: Some(apikey), record: None, serial, retires_at: None, by }], digest);
            let explanation = explain(KEY.as_bytes(), &basis.records, &Demand::default(), &now()).unwrap();
            assert_eq!(basis.qualified(explanation).verdict, verdict, "{by:?}");
        }
    }
}
