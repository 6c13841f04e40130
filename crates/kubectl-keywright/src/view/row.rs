//! What a list shows of a key, and its order.

use std::cmp::Ordering;

use jiff::{Timestamp, Zoned};
use keywright_core::api::ApiKey;
use keywright_core::key::Digest;

use super::hint::Hint;
use super::state::{State, ends_at, last_used_at};

/// What a list shows of a key.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `spec.displayName`, where it differs from the name.
    pub display_name: Option<String>,
    /// `spec.description`.
    pub description: Option<String>,
    /// `spec.owner`.
    pub owner: Option<String>,
    /// What people recognise the key by.
    pub key: Option<String>,
    /// When the ApiKey was made.
    pub created: Option<Timestamp>,
    /// When a verifier last allowed the key. `None`: never.
    pub last_used: Option<Timestamp>,
    /// When the key ends. `None`: never.
    pub expires: Option<Timestamp>,
    /// `status.secretName`.
    pub secret: Option<String>,
    /// `spec.allowedIPs`. Empty: any address.
    pub allowed_ips: Vec<String>,
    /// In what state it is.
    pub state: State,
    /// What about it a person should look at.
    pub hints: Vec<Hint>,
}

/// A column to sort by. Equals go by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum SortBy {
    /// The name: the displayed one, where there is one.
    #[default]
    Name,
    /// The creation, oldest first.
    Created,
    /// The last use, oldest first. No use is the oldest.
    LastUsed,
    /// The end, soonest first. No end is the latest.
    Expires,
}

impl Row {
    /// What a list shows of `key`.
    pub fn of(key: &ApiKey, now: &Zoned) -> Self {
        let (metadata, spec) = (&key.metadata, &key.spec);
        let name = metadata.name.clone().unwrap_or_default();
        Self {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            display_name: spec.display_name.clone().filter(|displayed| *displayed != name),
            name,
            description: spec.description.clone(),
            owner: spec.owner.clone(),
            key: shown(key),
            created: metadata.creation_timestamp.as_ref().map(|created| created.0),
            last_used: last_used_at(key),
            expires: ends_at(key),
            secret: key.status.as_ref().and_then(|status| status.secret_name.clone()),
            allowed_ips: spec.allowed_ips.clone().unwrap_or_default(),
            state: State::of(key, now),
            hints: Hint::of(key, now),
        }
    }

    /// What people call it.
    pub fn title(&self) -> &str {
        self.display_name.as_deref().unwrap_or(&self.name)
    }
}

impl SortBy {
    /// Which of two rows comes first.
    pub fn compare(self, left: &Row, right: &Row) -> Ordering {
        let by_column = match self {
            Self::Name => Ordering::Equal,
            Self::Created => left.created.cmp(&right.created),
            // `None` is the least, as no use is the oldest.
            Self::LastUsed => left.last_used.cmp(&right.last_used),
            Self::Expires => end(left).cmp(&end(right)),
        };
        by_column.then_with(|| by_name(left, right))
    }
}

fn by_name(left: &Row, right: &Row) -> Ordering {
    let named = |row: &Row| row.title().to_lowercase();
    let full = |row: &Row| (row.namespace.clone(), row.name.clone());
    named(left).cmp(&named(right)).then_with(|| full(left).cmp(&full(right)))
}

fn end(row: &Row) -> Timestamp {
    row.expires.unwrap_or(Timestamp::MAX)
}

/// What the status says; of a submitted key that has no status yet, what it will say.
fn shown(key: &ApiKey) -> Option<String> {
    let reported = key.status.as_ref().and_then(|status| status.key_prefix.clone());
    let submitted = || Some(key.spec.key_hash.as_ref()?.parse::<Digest>().ok()?.start().to_string());
    reported.or_else(submitted)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::view::fixtures::{apikey, now};

    fn row(change: &Value) -> Row {
        Row::of(&apikey(change), &now())
    }

    #[test]
    fn a_row_says_what_the_object_says() {
        let row = row(&json!({"spec": {"allowedIPs": ["10.0.0.0/8"]}}));
        assert_eq!((&*row.namespace, &*row.name, row.title()), ("team-a", "nightly-ci", "Nightly CI"));
        assert_eq!((row.owner.as_deref(), row.key.as_deref()), (Some("ann@x"), Some("keyw1_7Tq2mZx9")));
        assert_eq!((row.expires, row.allowed_ips), (None, vec!["10.0.0.0/8".to_owned()]));
    }

    #[test]
    fn a_submitted_key_is_shown_by_its_digest() {
        let hash = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
        let row = row(&json!({"reason": null, "spec": {"keyHash": hash}, "status": {"keyPrefix": null}}));
        assert_eq!(row.key.as_deref(), Some("sha256:9f86d081884c"));
    }

    #[test]
    fn never_is_the_oldest_use_and_the_latest_end() {
        let key = |name: &str, used: Option<&str>, end: Option<&str>| {
            row(&json!({"name": name, "spec": {"displayName": null}, "status": {"lastUsedAt": used, "expiresAt": end}}))
        };
        let (early, late) = (Some("2026-11-01T00:00:00Z"), Some("2027-11-02T00:00:00Z"));
        let rows = [key("d", None, None), key("b", late, late), key("a", None, None), key("c", early, early)];
        for (column, names) in [(SortBy::Name, "abcd"), (SortBy::LastUsed, "adcb"), (SortBy::Expires, "cbad")] {
            let mut rows = rows.clone();
            rows.sort_by(|left, right| column.compare(left, right));
            assert_eq!(rows.iter().map(|row| &*row.name).collect::<String>(), names, "{column:?}");
        }
    }

    proptest! {
        #[test]
        fn an_order_depends_on_what_the_rows_say_and_not_on_how_they_came(
            uses in proptest::collection::vec(proptest::option::of(0i64..3), 0..8), turn in 0usize..8,
        ) {
            let rows = uses.iter().enumerate().map(|(number, used)| Row {
                last_used: used.map(|second| Timestamp::from_second(second).unwrap()),
                ..row(&json!({"name": format!("key-{number}"), "spec": {"displayName": null}}))
            });
            let mut rows: Vec<_> = rows.collect();
            let mut turned = rows.clone();
            turned.rotate_left(turn.min(rows.len()));
            rows.sort_by(|left, right| SortBy::LastUsed.compare(left, right));
            turned.sort_by(|left, right| SortBy::LastUsed.compare(left, right));
            prop_assert_eq!(&rows, &turned);
            for pair in rows.windows(2) {
                prop_assert!(pair[0].last_used != pair[1].last_used || pair[0].name < pair[1].name);
            }
        }
    }
}
