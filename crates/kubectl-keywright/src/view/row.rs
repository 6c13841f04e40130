//! What a list shows of a key; its order, its filters, its search.

use std::cmp::Ordering;

use jiff::{Timestamp, Zoned};
use keywright_core::api::ApiKey;
use keywright_core::key::Digest;
use serde::{Deserialize, Serialize};

use super::hint::Hint;
use super::state::{State, ends_at, last_used_at};

/// What a list shows of a key.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `spec.displayName`, where it differs from the name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    /// `spec.description`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// `spec.owner`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// What people recognise the key by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// When the ApiKey was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
    /// When a verifier last allowed the key. `None`: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used: Option<Timestamp>,
    /// When the key ends. `None`: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// `status.secretName`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// `spec.allowedIPs`. Empty: any address.
    #[serde(rename = "allowedIPs", skip_serializing_if = "Vec::is_empty")]
    pub allowed_ips: Vec<String>,
    /// In what state it is.
    pub state: State,
    /// What about it a person should look at.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<Hint>,
}

/// A column to sort by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Column {
    /// Both names: the displayed one, where there is one.
    #[default]
    Name,
    /// The owner. No owner comes first.
    Owner,
    /// What people recognise the key by.
    Key,
    /// The creation, oldest first.
    Created,
    /// The last use, oldest first. No use is the oldest.
    LastUsed,
    /// The end, soonest first. No end is the latest.
    Expires,
    /// The word of the state.
    Status,
    /// The namespace.
    Namespace,
}

/// An order of rows: by a column, and among equals by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// The column.
    pub column: Column,
    /// Whether the column goes down. Names never do, except where they are the column.
    pub is_descending: bool,
}

/// Which rows are shown. The default shows all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Filter {
    /// The word of the state.
    pub state: Option<String>,
    /// The owner.
    pub owner: Option<String>,
    /// Words that must all be somewhere in the row, in any letter case.
    pub search: String,
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

    fn holds(&self, word: &str) -> bool {
        let single = [&self.display_name, &self.description, &self.owner, &self.key];
        let texts = single.into_iter().flatten().chain([&self.name, &self.state.word]).chain(&self.allowed_ips);
        texts.into_iter().any(|text| text.to_lowercase().contains(word))
    }
}

impl Filter {
    /// Whether `row` is shown.
    pub fn takes(&self, row: &Row) -> bool {
        self.state.as_ref().is_none_or(|state| *state == row.state.word)
            && self.owner.as_ref().is_none_or(|owner| row.owner.as_ref() == Some(owner))
            && self.search.to_lowercase().split_whitespace().all(|word| row.holds(word))
    }
}

impl Order {
    /// Puts rows into this order.
    pub fn sort(self, rows: &mut [Row]) {
        rows.sort_by(|left, right| self.compare(left, right));
    }

    /// Which of two rows comes first.
    pub fn compare(self, left: &Row, right: &Row) -> Ordering {
        let by_column = self.column.compare(left, right);
        let by_column = if self.is_descending { by_column.reverse() } else { by_column };
        by_column.then_with(|| by_name(left, right))
    }
}

impl Column {
    fn compare(self, left: &Row, right: &Row) -> Ordering {
        match self {
            Self::Name => by_name(left, right),
            Self::Owner => left.owner.cmp(&right.owner),
            Self::Key => left.key.cmp(&right.key),
            Self::Created => left.created.cmp(&right.created),
            // `None` is the least, as no use is the oldest.
            Self::LastUsed => left.last_used.cmp(&right.last_used),
            Self::Expires => end(left).cmp(&end(right)),
            Self::Status => left.state.word.cmp(&right.state.word),
            Self::Namespace => left.namespace.cmp(&right.namespace),
        }
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
        for (column, is_descending, names) in [
            (Column::Name, false, "abcd"),
            (Column::Name, true, "dcba"),
            (Column::LastUsed, false, "adcb"),
            (Column::LastUsed, true, "bcad"),
            (Column::Expires, false, "cbad"),
            (Column::Expires, true, "adbc"),
        ] {
            let mut rows = rows.clone();
            Order { column, is_descending }.sort(&mut rows);
            assert_eq!(rows.iter().map(|row| &*row.name).collect::<String>(), names, "{column:?} {is_descending}");
        }
    }

    #[test]
    fn every_word_of_a_search_must_be_somewhere() {
        let row = row(&json!({"spec": {"description": "Builds at night", "allowedIPs": ["10.0.0.0/8"]}}));
        for (search, is_found) in [
            ("", true),
            ("  ", true),
            ("NIGHTLY-CI", true),
            ("nightly ci ann", true),
            ("builds 10.0.0", true),
            ("7tq2", true),
            ("active", true),
            ("nightly bob", false),
        ] {
            let filter = Filter { search: search.to_owned(), ..Filter::default() };
            assert_eq!(filter.takes(&row), is_found, "{search:?}");
        }
        let by = |state: &str, owner: &str| Filter {
            state: Some(state.to_owned()),
            owner: Some(owner.to_owned()),
            search: String::new(),
        };
        assert!(by("Active", "ann@x").takes(&row));
        assert!(!by("Expired", "ann@x").takes(&row) && !by("Active", "bob@x").takes(&row));
    }

    proptest! {
        #[test]
        fn an_order_depends_on_what_the_rows_say_and_not_on_how_they_came(
            uses in proptest::collection::vec(proptest::option::of(0i64..3), 0..8), is_descending: bool, turn in 0usize..8,
        ) {
            let rows = uses.iter().enumerate().map(|(number, used)| Row {
                last_used: used.map(|second| Timestamp::from_second(second).unwrap()),
                ..row(&json!({"name": format!("key-{number}"), "spec": {"displayName": null}}))
            });
            let mut rows: Vec<_> = rows.collect();
            let order = Order { column: Column::LastUsed, is_descending };
            let mut turned = rows.clone();
            turned.rotate_left(turn.min(rows.len()));
            order.sort(&mut rows);
            order.sort(&mut turned);
            prop_assert_eq!(&rows, &turned);
            for pair in rows.windows(2) {
                prop_assert!(pair[0].last_used != pair[1].last_used || pair[0].name < pair[1].name);
            }
        }
    }
}
