//! `explain`: whether a key would be let in, and by which rule.

use keywright_core::api::ApiKey;
use keywright_core::key::{Digest, Key, Presented};
use rand::rngs::SysRng;

use super::whose::{Found, Wanted, search};
use crate::args::Explain;
use crate::decision::{Demand, Explanation, KnownRecord, explain};
use crate::failure::Failure;
use crate::session::Session;
use crate::view::escape::escape;

/// Explains a decision.
pub async fn run(session: &Session, asked: &Explain) -> Result<(), Failure> {
    let demand = Demand { namespaces: asked.namespace_required.clone(), scopes: asked.scope.clone(), from: asked.from };
    let explanation = match &asked.name {
        Some(name) => by_name(session, name, &demand).await?,
        None => by_key(session, asked, &demand).await?,
    };
    session.terminal.print(&format!("{}\n{}\n", explanation.verdict, escape(&explanation.rules.join(", "))))
}

/// Decides about the current key of an ApiKey. A key that is made for the occasion stands in for it: the rules do not depend
/// on which key it is.
async fn by_name(session: &Session, name: &str, demand: &Demand) -> Result<Explanation, Failure> {
    let apikey: ApiKey = session.apikey(name).await?;
    let Some(serial) = apikey.status.as_ref().and_then(|status| status.serial) else {
        return Err(Failure::failed(format!("{} has no key yet.", session.full_name(name))));
    };
    let stand_in = Key::mint(&mut SysRng).map_err(|error| Failure::failed(format!("No random numbers: {error}.")))?;
    let record = KnownRecord::of(&apikey, stand_in.digest(), serial, None);
    explain(stand_in.reveal().as_bytes(), &[record], demand, &session.cluster.now()).map_err(Failure::usage)
}

async fn by_key(session: &Session, asked: &Explain, demand: &Demand) -> Result<Explanation, Failure> {
    let key = session.terminal.read_key("Key (not echoed): ")?;
    let mut records = Vec::new();
    if let Ok(presented) = Presented::parse(key.as_bytes()) {
        let wanted = Wanted { digest: presented.digest(), shown: presented.shown(&presented.digest()).to_string() };
        let found = search(session, &wanted, asked.all_namespaces, &asked.system_namespace).await?;
        session.terminal.say(&found.scope);
        records = records_of(&found.found, wanted.digest);
    }
    explain(key.as_bytes(), &records, demand, &session.cluster.now()).map_err(Failure::usage)
}

/// The stored records where they may be read: they say more.
fn records_of(found: &[Found], digest: Digest) -> Vec<KnownRecord> {
    let stored: Vec<_> = found.iter().filter_map(|found| found.record.as_ref().map(KnownRecord::stored)).collect();
    if !stored.is_empty() {
        return stored;
    }
    let declared = found.iter().filter_map(|found| {
        let key = found.apikey.as_ref()?;
        Some(KnownRecord::of(key, digest, found.serial.unwrap_or(1), found.retires_at))
    });
    declared.collect()
}
