//! The chart's README: its table of values is made from `values.yaml`, where people read the same words.

use std::fmt::Write;
use std::path::PathBuf;

use serde_json::Value;

use keywright_testing::project;

const START: &str = "<!-- The table is made from values.yaml by `make chart-readme`. -->\n";

/// One value that a user may set.
struct Documented {
    /// `controller.replicas`.
    path: Vec<String>,
    comment: String,
    default: Value,
}

fn file(name: &str) -> PathBuf {
    project().join("charts/keywright").join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(file(name)).unwrap()
}

pub(super) fn values() -> Value {
    serde_yaml::from_str(&read("values.yaml")).unwrap()
}

/// Every value of `values.yaml`. A key with a comment above or behind it is one; a key without holds others.
fn documented() -> Vec<Documented> {
    let defaults = values();
    let mut found: Vec<Documented> = Vec::new();
    let (mut path, mut comment) = (Vec::<(usize, String)>::new(), String::new());
    for line in read("values.yaml").lines() {
        let words = line.trim_start();
        let indent = line.len() - words.len();
        if let Some(words) = words.strip_prefix("# ") {
            comment = format!("{comment} {words}");
            continue;
        }
        let inside = |outer: &Documented| path_of(&path, indent).starts_with(&outer.path);
        let Some((key, rest)) = words.split_once(':').filter(|_| !found.last().is_some_and(inside)) else {
            comment.clear(); // a blank line, or a line of a value that is known already
            continue;
        };
        path.retain(|(outer, _)| *outer < indent);
        path.push((indent, key.to_owned()));
        if let Some((_, behind)) = rest.split_once(" # ") {
            comment = behind.to_owned();
        }
        if comment.is_empty() {
            assert!(rest.is_empty(), "values.yaml: {key} has no comment: {line}");
            continue;
        }
        let path: Vec<_> = path.iter().map(|(_, key)| key.clone()).collect();
        let default = defaults.pointer(&format!("/{}", path.join("/"))).unwrap().clone();
        found.push(Documented { path, comment: std::mem::take(&mut comment).trim().to_owned(), default });
    }
    found
}

/// The paths of every value that a user may set.
pub(super) fn paths() -> Vec<Vec<String>> {
    documented().into_iter().map(|value| value.path).collect()
}

fn path_of(path: &[(usize, String)], indent: usize) -> Vec<String> {
    path.iter().filter(|(outer, _)| *outer < indent).map(|(_, key)| key.clone()).collect()
}

#[test]
fn the_table_of_values_is_that_of_the_values() {
    let mut table = String::from("| value | default | |\n|---|---|---|\n");
    for Documented { path, comment, default } in documented() {
        let default = if default == "" { "empty".to_owned() } else { format!("`{default}`") };
        let comment = comment[..1].to_uppercase() + &comment[1..];
        writeln!(table, "| `{}` | {default} | {} |", path.join("."), comment.trim_end_matches('.')).unwrap();
    }
    let readme = read("README.md");
    let (prose, present) = readme.split_once(START).expect("README.md marks where its table starts");
    if std::env::var_os("WRITE").is_some() {
        std::fs::write(file("README.md"), format!("{prose}{START}\n{table}")).unwrap();
    } else {
        assert_eq!(present.trim_start(), table, "charts/keywright/README.md is out of date: run make chart-readme");
    }
}

#[test]
fn the_schema_knows_every_value_and_no_other() {
    let schema: Value = serde_json::from_str(&read("values.schema.json")).unwrap();
    let mut paths: Vec<_> = documented().into_iter().map(|value| value.path.join(".")).collect();
    let mut known = Vec::new();
    leaves(&schema, "", &mut known);
    known.retain(|path| path != "global"); // helm's own
    paths.sort();
    known.sort();
    assert_eq!(known, paths);
}

/// The paths at which a schema ends, or leaves the rest to Kubernetes.
fn leaves(schema: &Value, path: &str, found: &mut Vec<String>) {
    let Some(properties) = schema["properties"].as_object() else {
        found.push(path.to_owned());
        return;
    };
    assert_eq!(schema["additionalProperties"], false, "{path} lets typos in");
    for (name, property) in properties {
        leaves(property, format!("{path}.{name}").trim_start_matches('.'), found);
    }
}
