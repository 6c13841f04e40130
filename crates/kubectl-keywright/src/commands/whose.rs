//! `whose`: from a leaked key, or its digest, to its ApiKey.

use futures::future::join;
use jiff::Timestamp;
use keywright_core::api::{ApiKey, ApiKeyRecord};
use keywright_core::key::{Digest, Presented};
use keywright_core::record_name::record_name;
use kube::api::ListParams;

use crate::args::Whose;
use crate::failure::{ApiError, Failure};
use crate::interrupt;
use crate::session::{APIKEYS, Session, field_selector};
use crate::view::escape::escape;
use crate::view::state::{State, last_used_at};
use crate::view::time::{self, Form};

/// What a key is recognised by.
pub struct Wanted {
    /// Its digest.
    pub digest: Digest,
    /// What a status shows of it. Of a digest alone, that of a key that was made elsewhere.
    pub shown: String,
}

/// An ApiKey or a record that has the key.
pub struct Found {
    /// The ApiKey, if it may be seen and is still there.
    pub apikey: Option<ApiKey>,
    /// The record, if it may be seen.
    pub record: Option<ApiKeyRecord>,
    /// The key's serial.
    pub serial: Option<u32>,
    /// When an older key ends.
    pub retires_at: Option<Timestamp>,
    /// By what it was found.
    pub by: By,
}

/// By what a key was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// By its digest, in a record.
    Record,
    /// By its digest, in the declaration.
    KeyHash,
    /// By what a status shows of the current key. Another key may begin with the same characters.
    Prefix,
    /// The same, of an old key.
    OldPrefix,
}

/// What a search has brought, and how far it went.
pub struct Search {
    /// What was found, the surest first.
    pub found: Vec<Found>,
    /// The ApiKeys whose key begins like this one, and is another: their records say so.
    pub resembling: Vec<String>,
    /// Where was looked, in a sentence.
    pub scope: String,
}

/// Finds whose key it is.
pub async fn run(session: &Session, asked: &Whose) -> Result<(), Failure> {
    let input = session.terminal.read_key("Key or digest (not echoed): ").await?;
    let wanted = wanted(&input)?;
    drop(input);
    let search = search(session, &wanted, asked.all_namespaces, &asked.system_namespace).await?;
    if search.found.is_empty() {
        return Err(Failure::failed(format!("No ApiKey has it. {}{}", resemblance(&search.resembling), search.scope)));
    }
    let lines: String = search.found.iter().map(|found| format!("{}\n", line(found, session))).collect();
    session.terminal.print(&lines)?;
    session.terminal.say(&search.scope);
    Ok(())
}

/// That another key only begins in the same way, with a space behind it.
pub fn resemblance(resembling: &[String]) -> String {
    match resembling {
        [] => String::new(),
        names => format!("It begins like the key of {}, and is another. ", names.join(", ")),
    }
}

/// Reads a digest, with or without its `sha256:`, or a key.
fn wanted(input: &str) -> Result<Wanted, Failure> {
    let lower = input.to_ascii_lowercase();
    let digest = lower.parse::<Digest>().or_else(|_| format!("sha256:{lower}").parse());
    if let Ok(digest) = digest {
        return Ok(Wanted { digest, shown: digest.start().to_string() });
    }
    match Presented::parse(input.as_bytes()) {
        Ok(key) => {
            let digest = key.digest();
            Ok(Wanted { digest, shown: key.shown(&digest).to_string() })
        }
        Err(problem) => Err(Failure::usage(format!("This is neither a digest nor a key: {problem}."))),
    }
}

/// Looks through what the user may see: ApiKeys by what their status shows and by their digest, and records.
pub async fn search(
    session: &Session,
    wanted: &Wanted,
    all_namespaces: bool,
    system_namespace: &str,
) -> Result<Search, Failure> {
    // Since a key was asked for, no signal ends the program by itself.
    let stopped = interrupt::stopped()?;
    tokio::select! {
        searched = look(session, wanted, all_namespaces, system_namespace) => searched,
        () = stopped => Err(Failure::interrupted("Interrupted. Nothing was found by then.")),
    }
}

async fn look(
    session: &Session,
    wanted: &Wanted,
    all_namespaces: bool,
    system_namespace: &str,
) -> Result<Search, Failure> {
    let namespace = (!all_namespaces).then_some(&*session.cluster.namespace);
    let by_digest = ListParams::default().fields(&field_selector("spec.digest", &wanted.digest.to_string()));
    let everything = ListParams::default();
    let (keys, records) = session
        .patiently(join(
            session.cluster.list::<ApiKey>(namespace, &everything),
            session.cluster.list::<ApiKeyRecord>(Some(system_namespace), &by_digest),
        ))
        .await;
    let keys =
        keys.map_err(|error| session.cluster.attempt("list", APIKEYS, namespace.unwrap_or(""), "").failed(&error))?;
    let records_say_all = records.is_ok();
    let why_not = records.as_ref().err().map(|error| why_no_records(error, system_namespace));
    let mut found = matches(keys, records.unwrap_or_default(), wanted);
    let mut resembling = Vec::new();
    let mut is_settled = records_say_all;
    if records_say_all {
        let unsure: Vec<_> = found.extract_if(.., |found| !found.by.is_sure()).collect();
        for candidate in unsure {
            // No record has this digest. But they may be in another namespace than this one, so the candidate's own is asked for.
            if !found.is_empty() || has_record(session, &candidate, system_namespace).await {
                resembling.push(candidate.full_name());
            } else {
                is_settled = false;
                found.push(candidate);
            }
        }
    }
    let place = namespace.unwrap_or("all namespaces");
    let how_far = match why_not {
        None if is_settled => format!(", and the records in {system_namespace}."),
        None => format!(". Not by digest: the records are not in {system_namespace}: add --system-namespace NAME."),
        Some(why) => format!(". {why}"),
    };
    Ok(Search { found, resembling, scope: format!("Searched: ApiKeys in {place}{how_far}") })
}

/// Whether the key that was found by its prefix has a record there.
async fn has_record(session: &Session, found: &Found, system_namespace: &str) -> bool {
    let uid = found.apikey.as_ref().and_then(uid_of);
    let Some((uid, serial)) = uid.zip(found.serial) else { return false };
    let by_name = ListParams::default().fields(&field_selector("metadata.name", &record_name(&uid, serial)));
    let records = session.patiently(session.cluster.list::<ApiKeyRecord>(Some(system_namespace), &by_name)).await;
    records.is_ok_and(|records| !records.is_empty())
}

fn why_no_records(error: &ApiError, system_namespace: &str) -> String {
    match error.is_forbidden() {
        true => format!("Not by digest: you may not list apikeyrecords in {system_namespace}."),
        false => format!("Records in {system_namespace} could not be read."),
    }
}

fn matches(keys: Vec<ApiKey>, records: Vec<ApiKeyRecord>, wanted: &Wanted) -> Vec<Found> {
    let mut found: Vec<_> = records.into_iter().map(|record| of_record(record, &keys)).collect();
    let known: Vec<_> = found.iter().filter_map(|found| uid_of(found.apikey.as_ref()?)).collect();
    found.extend(
        keys.into_iter()
            .filter(|key| !uid_of(key).is_some_and(|uid| known.contains(&uid)))
            .filter_map(|key| of_key(key, wanted)),
    );
    found
}

fn uid_of(key: &ApiKey) -> Option<String> {
    key.metadata.uid.clone()
}

fn of_record(record: ApiKeyRecord, keys: &[ApiKey]) -> Found {
    let apikey = keys.iter().find(|key| key.metadata.uid.as_ref() == Some(&record.spec.api_key.uid)).cloned();
    Found { apikey, serial: Some(record.spec.serial), retires_at: None, by: By::Record, record: Some(record) }
}

fn of_key(key: ApiKey, wanted: &Wanted) -> Option<Found> {
    let status = key.status.as_ref();
    let found = |by: By, serial: Option<u32>, retires_at: Option<Timestamp>| Some((by, serial, retires_at));
    let current = status.and_then(|status| status.key_prefix.as_ref()) == Some(&wanted.shown);
    let retiring =
        status.and_then(|status| status.retiring.iter().find(|old| old.key_prefix.as_ref() == Some(&wanted.shown)));
    let (by, serial, retires_at) = match (&key.spec.key_hash, retiring) {
        (Some(hash), _) if *hash == wanted.digest.to_string() => found(By::KeyHash, status?.serial, None),
        // Twelve digits may be those of another digest.
        (Some(_), _) => None,
        (None, _) if current => found(By::Prefix, status?.serial, None),
        (None, Some(old)) => found(By::OldPrefix, Some(old.serial), Some(old.retires_at.0)),
        (None, None) => None,
    }?;
    Some(Found { apikey: Some(key), record: None, serial, retires_at, by })
}

impl Found {
    /// `team-a/ci`
    pub fn full_name(&self) -> String {
        match (&self.apikey, &self.record) {
            (Some(key), _) => format!("{}/{}", text(&key.metadata.namespace), text(&key.metadata.name)),
            (None, Some(record)) => format!("{}/{}", record.spec.api_key.namespace, record.spec.api_key.name),
            (None, None) => String::new(),
        }
    }
}

impl By {
    /// Whether the digests are equal, and not only the first characters.
    pub fn is_sure(self) -> bool {
        matches!(self, Self::Record | Self::KeyHash)
    }

    fn words(self) -> &'static str {
        match self {
            Self::Record => "by its record",
            Self::KeyHash => "by keyHash",
            Self::Prefix => "by prefix",
            Self::OldPrefix => "by the prefix of an old key",
        }
    }
}

/// `team-a/ci, owner ann@x, Active, used 4m ago (by prefix)`
fn line(found: &Found, session: &Session) -> String {
    let now = session.cluster.now();
    let revoked = found.record.as_ref().and_then(|record| record.spec.revoked.as_ref());
    let state = revoked.map(|revoked| format!("revoked {}", time::ago(revoked.at.0, &now, Form::Short)));
    let (owner, state, used) = match (&found.apikey, &found.record) {
        (Some(key), _) => {
            (key.spec.owner.clone(), state.unwrap_or_else(|| State::of(key, &now).word), last_used_at(key))
        }
        (None, Some(record)) => (
            record.spec.owner.clone(),
            state.unwrap_or_else(|| "live".to_owned()),
            record.status.as_ref().and_then(|status| status.last_used_at.as_ref()).map(|at| at.0),
        ),
        (None, None) => return String::new(),
    };
    let full_name = found.full_name();
    let owner = owner.map(|owner| format!(", owner {owner}")).unwrap_or_default();
    let used = used.map_or_else(|| "never used".to_owned(), |at| format!("used {}", time::ago(at, &now, Form::Short)));
    escape(&format!("{full_name}{owner}, {state}, {used} ({})", found.by.words())).into_owned()
}

fn text(text: &Option<String>) -> &str {
    text.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use keywright_core::testing::KEY;
    use serde_json::{Value, json};

    use super::*;
    use crate::view::fixtures::apikey;

    fn found(change: &Value, input: &str) -> Option<(By, Option<u32>)> {
        let found = matches(vec![apikey(change)], vec![], &wanted(input).unwrap());
        found.first().map(|found| (found.by, found.serial))
    }

    #[test]
    fn a_key_is_found_by_what_a_status_shows_and_a_digest_by_what_was_declared() {
        let digest = Digest::of(KEY.as_bytes()).to_string();
        let prefix = &KEY[..14];
        let current = json!({"status": {"keyPrefix": prefix, "serial": 4}});
        let retiring = json!([{"keyPrefix": prefix, "serial": 3, "retiresAt": "2026-11-30T00:00:00Z"}]);
        let declared = json!({"spec": {"keyHash": digest}, "status": {"keyPrefix": &digest[..19]}});
        let resembling =
            json!({"spec": {"keyHash": Digest::of(b"x").to_string()}, "status": {"keyPrefix": &digest[..19]}});
        let hex = digest.trim_start_matches("sha256:").to_uppercase();
        for (key, input, by) in [
            (&current, KEY, Some((By::Prefix, Some(4)))),
            (&current, &*digest, None),
            (&json!({"status": {"retiring": retiring}}), KEY, Some((By::OldPrefix, Some(3)))),
            (&declared, KEY, Some((By::KeyHash, Some(1)))),
            (&declared, &*digest, Some((By::KeyHash, Some(1)))),
            (&declared, &*hex, Some((By::KeyHash, Some(1)))),
            (&resembling, &*digest, None),
            (&json!({}), KEY, None),
        ] {
            assert_eq!(found(key, input), by, "{key}");
        }
    }

    #[test]
    fn what_is_no_key_is_not_repeated() {
        let said = wanted("keyw1_secret-and-long-enough").err().unwrap().to_string();
        assert!(said.starts_with("This is neither") && !said.contains("secret-and"), "{said}");
    }
}
