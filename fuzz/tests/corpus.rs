//! Every saved input through its function, on the project's own toolchain and in a few seconds.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use keywright_core::key::Digest;
use keywright_fuzz::TARGETS;

fn corpus(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

#[test]
fn what_must_hold_holds_for_every_saved_input() {
    for (target, check) in TARGETS {
        let folder = fs::read_dir(corpus(target)).unwrap_or_else(|error| panic!("no corpus for {target}: {error}"));
        let inputs: Vec<PathBuf> = folder.map(|entry| entry.unwrap().path()).collect();
        for input in &inputs {
            // The last line before a panic names the input.
            println!("{}", input.display());
            check(&fs::read(input).unwrap());
        }
        assert!(inputs.len() > 3, "{target} has hardly a corpus");
    }
}

#[test]
fn every_target_has_a_binary_and_every_corpus_a_target() {
    let project = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let names = |folder: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(project.join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    };
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names("fuzz_targets"), targets);
    assert_eq!(names("corpus"), targets);
    let manifest = fs::read_to_string(project.join("Cargo.toml")).unwrap();
    for target in targets {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{target}.rs\"")), "{target} is not in Cargo.toml");
    }
}

/// The verdicts of `tests/cases` are where the fuzzer starts from. `WRITE=1` saves what is new there.
#[test]
fn the_corpus_holds_the_cases() {
    let cases = [
        ("address_entry", entries()),
        ("client_address", client_addresses()),
        ("credential", credentials()),
        ("secret_text", secret_texts()),
        ("key", rows("keys.tsv").map(|row| unescaped(&row[0]).into_bytes()).collect()),
    ];
    for (target, inputs) in cases {
        for input in inputs {
            let name = &Digest::of(&input).to_string()[7..23];
            let file = corpus(target).join(name);
            if std::env::var_os("WRITE").is_some() {
                fs::create_dir_all(corpus(target)).unwrap();
                fs::write(&file, &input).unwrap();
            }
            let saved = fs::read(&file).ok();
            assert!(saved == Some(input), "{} is missing: WRITE=1 make corpus", file.display());
        }
    }
}

fn rows(file: &str) -> impl Iterator<Item = Vec<String>> {
    let cases = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/cases").join(file);
    let text = fs::read_to_string(cases).unwrap();
    let rows: Vec<Vec<String>> = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split('\t').map(str::to_owned).collect())
        .collect();
    rows.into_iter()
}

fn unescaped(column: &str) -> String {
    serde_json::from_str(&format!("\"{column}\"")).unwrap()
}

/// One list for each verdict and rule.
fn entries() -> Vec<Vec<u8>> {
    let rows: Vec<(String, String)> = rows("allowed-ips.tsv")
        .map(|row| (if row[1] == "accept" { row[1].clone() } else { row[2].clone() }, unescaped(&row[0])))
        .collect();
    let kinds: BTreeSet<&String> = rows.iter().map(|(kind, _)| kind).collect();
    let of = |kind: &String| rows.iter().filter(|row| row.0 == *kind).map(|(_, entry)| &**entry).collect::<Vec<_>>();
    kinds.into_iter().map(|kind| of(kind).join("\n").into_bytes()).collect()
}

fn client_addresses() -> Vec<Vec<u8>> {
    let input = |row: Vec<String>| {
        let source = match row[0].split_once(':') {
            None => row[0].clone(),
            Some((kind, value)) => format!("xff-{kind}={value}"),
        };
        let start = format!("{source}\n{}", row[1].split('%').next().unwrap()).into_bytes();
        let lines = header_lines(&row[2]).into_iter().filter(|(name, _)| name == "x-forwarded-for");
        lines.fold(start, |input, (_, value)| [input, b"\n".to_vec(), value].concat())
    };
    rows("client-ip.tsv").map(input).filter(|input| input.len() < 1000).collect()
}

fn credentials() -> Vec<Vec<u8>> {
    let input = |row: Vec<String>| {
        let lines = header_lines(&row[0]).into_iter().map(|(name, value)| match &*name {
            "authorization" => [b"A".to_vec(), value].concat(),
            "x-api-key" => [b"X".to_vec(), value].concat(),
            name => name.as_bytes().to_vec(),
        });
        lines.collect::<Vec<_>>().join(&b'\n')
    };
    rows("credentials.tsv").map(input).collect()
}

/// Each beside what it becomes.
fn secret_texts() -> Vec<Vec<u8>> {
    let input = |row: Vec<String>| {
        let rendered = if row[1] == "accept" { unescaped(&row[2]) } else { String::new() };
        format!("{rendered}\n{}", unescaped(&row[0])).into_bytes()
    };
    rows("secret-texts.tsv").map(input).collect()
}

/// Names in lower case; each character of a value is one octet.
fn header_lines(column: &str) -> Vec<(String, Vec<u8>)> {
    let headers: Vec<[String; 2]> = serde_json::from_str(column).unwrap();
    let octets = |value: &str| value.chars().map(|octet| u8::try_from(u32::from(octet)).unwrap()).collect();
    headers.iter().map(|[name, value]| (name.to_ascii_lowercase(), octets(value))).collect()
}
