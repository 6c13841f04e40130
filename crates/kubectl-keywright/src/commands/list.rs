//! `list`, `unused`, `expiring`: tables of keys.

use jiff::{SignedDuration, Zoned};
use keywright_core::api::ApiKey;

use crate::args::{Expiring, List, Selection, Unused};
use crate::failure::Failure;
use crate::output::{Cell, Column, Format, Table, document_of, list as list_of};
use crate::session::Session;
use crate::view::hint::is_unused_for;
use crate::view::row::{Row, SortBy};
use crate::view::state::{ends_at, is_let_in};
use crate::view::time::{self, Form};

/// Lists keys.
pub async fn list(session: &Session, asked: &List) -> Result<(), Failure> {
    let keys = session.apikeys(&asked.selection).await?;
    let none = "No API keys".to_owned();
    print(session, keys, asked.sort_by, asked.output, &asked.selection, &none)
}

/// Lists active keys that nobody has used for a while.
pub async fn unused(session: &Session, asked: &Unused) -> Result<(), Failure> {
    let mut keys = session.apikeys(&asked.selection).await?;
    let (now, time) = (session.cluster.now(), signed(asked.time));
    keys.retain(|key| is_let_in(key, &now) && is_unused_for(key, time, &now));
    let none = format!("No active API key was unused for {}", keywright_core::duration::Display(time));
    print(session, keys, SortBy::LastUsed, asked.output, &asked.selection, &none)
}

/// Lists active keys that end soon.
pub async fn expiring(session: &Session, asked: &Expiring) -> Result<(), Failure> {
    let mut keys = session.apikeys(&asked.selection).await?;
    let (now, time) = (session.cluster.now(), signed(asked.within));
    let ends_soon = |key: &ApiKey| ends_at(key).is_some_and(|end| end.duration_since(now.timestamp()) <= time);
    keys.retain(|key| is_let_in(key, &now) && ends_soon(key));
    let none = format!("No active API key ends within {}", keywright_core::duration::Display(time));
    print(session, keys, SortBy::Expires, asked.output, &asked.selection, &none)
}

fn print(
    session: &Session,
    keys: Vec<ApiKey>,
    order: SortBy,
    format: Format,
    selection: &Selection,
    none: &str,
) -> Result<(), Failure> {
    let now = session.cluster.now();
    let mut rows: Vec<_> = keys.iter().map(|key| (Row::of(key, &now), key)).collect();
    rows.sort_by(|(left, _), (right, _)| order.compare(left, right));
    let documents = list_of(rows.iter().map(|(_, key)| document_of(key)).collect());
    if let Some(document) = format.document(&documents)? {
        return session.terminal.print(&document);
    }
    if rows.is_empty() {
        let place = if selection.all_namespaces { "any namespace" } else { &session.cluster.namespace };
        session.terminal.say(&format!("{none} in {place}."));
        return Ok(());
    }
    let rows: Vec<_> = rows.into_iter().map(|(row, _)| row).collect();
    let table = table(&rows, format == Format::Wide, selection.all_namespaces, &now);
    let (text, dropped) = table.render(session.terminal.width);
    session.terminal.print(&text)?;
    if !dropped.is_empty() {
        session.terminal.say(&format!("Too narrow for {}: widen the terminal, or use -o json.", dropped.join(", ")));
    }
    Ok(())
}

/// The table of these rows, in their order.
fn table(rows: &[Row], is_wide: bool, with_namespaces: bool, now: &Zoned) -> Table {
    let columns = [
        with_namespaces.then_some(Column::new("NAMESPACE")),
        Some(Column::new("NAME")),
        Some(Column::giving_way("OWNER", 1)),
        Some(Column::new("KEY")),
        Some(Column::giving_way("CREATED", 0)),
        Some(Column::new("LAST USED")),
        Some(Column::giving_way("EXPIRES", 2)),
        Some(Column::new("STATUS")),
        is_wide.then_some(Column::new("SECRET")),
        is_wide.then_some(Column::new("ALLOWED IPS")),
        is_wide.then_some(Column::new("DISPLAY NAME")),
        is_wide.then_some(Column::new("HINTS")),
    ];
    let cells = |row: &Row| {
        let hints: Vec<_> = row.hints.iter().map(|hint| hint.word()).collect();
        let optional = |text: &Option<String>| Cell::new(text.as_deref().unwrap_or(""));
        let cells = [
            with_namespaces.then(|| Cell::new(&row.namespace)),
            Some(Cell::new(&row.name)),
            Some(optional(&row.owner)),
            Some(optional(&row.key)),
            Some(Cell::new(row.created.map_or_else(String::new, |at| time::age(at, now, Form::Short)))),
            Some(Cell::new(time::last_use(row.last_used, now, Form::Short))),
            Some(Cell::new(time::expiry(row.expires, now, Form::Short))),
            Some(Cell::toned(row.state.label(), row.state.tone)),
            is_wide.then(|| optional(&row.secret)),
            is_wide.then(|| Cell::new(row.allowed_ips.join(","))),
            is_wide.then(|| optional(&row.display_name)),
            is_wide.then(|| Cell::new(hints.join(", "))),
        ];
        cells.into_iter().flatten().collect()
    };
    Table { columns: columns.into_iter().flatten().collect(), rows: rows.iter().map(cells).collect() }
}

fn signed(time: std::time::Duration) -> SignedDuration {
    SignedDuration::try_from(time).unwrap_or(SignedDuration::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::view::fixtures::{apikey, now};

    #[test]
    fn a_list_has_the_columns_that_kubectl_prints() {
        let key = json!({
            "spec": {"owner": "ann@x", "displayName": "Nightly CI", "allowedIPs": ["10.0.0.0/8", "2001:db8::1"]},
            "status": {"expiresAt": "2027-02-24T13:05:00Z"},
        });
        let rows = [Row::of(&apikey(&key), &now())];
        let words = |table: &Table| {
            table
                .render(None)
                .0
                .lines()
                .map(|line| {
                    line.split("  ")
                        .filter(|word| !word.is_empty())
                        .map(|word| word.trim().to_owned())
                        .collect::<Vec<_>>()
                })
                .collect::<Vec<_>>()
        };
        let narrow = words(&table(&rows, false, false, &now()));
        assert_eq!(narrow[0], ["NAME", "OWNER", "KEY", "CREATED", "LAST USED", "EXPIRES", "STATUS"]);
        assert_eq!(
            narrow[1],
            ["nightly-ci", "ann@x", "keyw1_7Tq2mZx9", "3d", "4m ago", "in 87d", "\u{1b}[32mActive\u{1b}[0m"]
        );
        let wide = words(&table(&rows, true, true, &now()));
        assert_eq!(wide[0][0], "NAMESPACE");
        assert_eq!(wide[1][8..], ["nightly-ci", "10.0.0.0/8,2001:db8::1", "Nightly CI", "-"]);
    }
}
