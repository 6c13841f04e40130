//! The edges between modules, and what pure files must not hold: one crate cannot have the compiler see to it. And the tests
//! that the documentation promises.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Who may use whom. Everything may use itself and its children.
const EDGES: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("key", &[]),
    ("address", &["key"]),
    ("duration", &[]),
    ("date_time", &[]),
    ("resource_version", &[]),
    ("clock", &[]),
    ("client", &[]),
    ("pages", &[]),
    ("telemetry", &[]),
    ("declaration", &["key", "address", "duration", "date_time"]),
    ("admission", &["api", "declaration", "address"]),
    ("lifecycle", &["api", "declaration", "key", "address", "duration"]),
    ("keyring", &["api", "key", "address"]),
    ("verify", &["keyring", "key", "address"]),
    ("usage", &["keyring"]),
    ("feed", &["api", "keyring", "pages", "resource_version", "telemetry", "usage"]),
    ("flush", &["api", "feed", "keyring", "usage", "client", "clock"]),
    ("authority", &[]),
    ("tls", &["authority", "clock"]),
    (
        "server",
        &["admission", "feed", "flush", "verify", "keyring", "key", "address", "clock", "telemetry", "tls", "usage"],
    ),
    ("webhook", &["authority", "tls", "server", "clock"]),
    ("certificates", &["api", "authority", "clock"]),
    (
        "controller",
        &[
            "api",
            "declaration",
            "key",
            "lifecycle",
            "server",
            "client",
            "clock",
            "pages",
            "resource_version",
            "telemetry",
        ],
    ),
    (
        "args",
        &[
            "address",
            "authority",
            "duration",
            "telemetry",
            "certificates",
            "controller",
            "server",
            "tls",
            "usage",
            "webhook",
        ],
    ),
];

/// Modules that take values and the time, and give values.
const PURE: &[&str] = &[
    "key",
    "address",
    "duration",
    "date_time",
    "resource_version",
    "declaration",
    "admission",
    "lifecycle",
    "keyring",
    "usage",
    "verify",
    "authority",
];

const NOT_PURE: &[&str] = &[
    "async ",
    ".await",
    "tokio::",
    "kube::",
    "hyper::",
    "hyper_util::",
    "http_body_util::",
    "http::",
    "h2::",
    "tonic::",
    "Timestamp::now",
    "Instant::now",
    "SystemTime::now",
    "rand::rng",
    "SysRng",
];

/// A module's production code: without the tests at its end, and without comments.
fn modules() -> Vec<(String, PathBuf, String)> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![source.clone()];
    let mut modules = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                if path.file_name().unwrap() != "tests" {
                    folders.push(path);
                }
                continue;
            }
            let relative = path.strip_prefix(&source).unwrap();
            let top = relative.components().next().unwrap().as_os_str().to_str().unwrap();
            let name = top.trim_end_matches(".rs").to_owned();
            if !["main", "lib"].contains(&&*name) && path.file_name().unwrap() != "tests.rs" {
                let text = fs::read_to_string(&path).unwrap();
                let code =
                    text.split("#[cfg(test)]\n#[allow").next().unwrap().split("#[cfg(test)]\nmod").next().unwrap();
                let code =
                    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
                modules.push((name, path, code));
            }
        }
    }
    assert!(modules.len() > 20, "the source is not where it was");
    modules
}

#[test]
fn edges_point_one_way() {
    let names: BTreeSet<&str> = EDGES.iter().map(|(name, _)| *name).collect();
    for (name, path, code) in modules() {
        let (_, allowed) =
            EDGES.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("{name} is new here"));
        for other in &names {
            let uses = code.contains(&format!("crate::{other}::"))
                || code.contains(&format!("crate::{other};"))
                || braced(&code).any(|used| used == *other);
            assert!(!uses || *other == name || allowed.contains(other), "{} must not use {other}", path.display());
        }
    }
}

/// The names in `use crate::{client, clock};` and the like.
fn braced(code: &str) -> impl Iterator<Item = &str> {
    code.split("use crate::{")
        .skip(1)
        .filter_map(|rest| rest.split('}').next())
        .flat_map(|names| names.split(',').map(|name| name.trim().split("::").next().unwrap()))
}

#[test]
fn pure_files_hold_no_clock_no_randomness_no_network_and_no_transport() {
    for (name, path, code) in modules().into_iter().filter(|(name, ..)| PURE.contains(&&**name)) {
        for word in NOT_PURE {
            assert!(!code.contains(word), "{word} in {} ({name} is pure)", path.display());
        }
    }
}

#[test]
fn the_verifier_never_reaches_secrets() {
    for (_, path, code) in modules()
        .into_iter()
        .filter(|(name, ..)| ["verify", "server", "feed", "flush", "keyring", "usage", "tls"].contains(&&**name))
    {
        assert!(!code.contains("core::v1::Secret"), "{}", path.display());
    }
}

/// A promise whose test was renamed is a promise without a test.
#[test]
fn tests_named_in_the_documentation_exist() {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = ["README.md", "SECURITY.md", "docs/proxies/README.md"].map(|page| project.join(page)).to_vec();
    pages.extend(fs::read_dir(project.join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    let mut named = 0;
    for page in pages.iter().filter(|page| page.extension().is_some_and(|extension| extension == "md")) {
        for quoted in fs::read_to_string(page).unwrap().split('`').skip(1).step_by(2) {
            let Some((module, test)) = quoted.rsplit_once("::") else { continue };
            let path = module.replace("::", "/");
            let unit = path.trim_end_matches("/tests");
            let files = match path.strip_prefix("e2e/") {
                Some(path) => vec![format!("tests/e2e/{path}.rs")],
                None => vec![format!("tests/it/{path}.rs"), format!("src/{path}.rs"), format!("src/{unit}.rs")],
            };
            let Some(code) = files.iter().find_map(|file| fs::read_to_string(project.join(file)).ok()) else {
                continue;
            };
            let exists = test == "*" || code.contains(&format!("fn {test}("));
            assert!(exists, "{} names {quoted}, which is not there", page.display());
            named += 1;
        }
    }
    assert!(named > 30, "the documentation is not where it was");
}

/// `make rights` in a page, or in a message of ours, helps nobody if there is no such target.
#[test]
fn make_targets_named_in_the_documentation_exist() {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let makefile = fs::read_to_string(project.join("Makefile")).unwrap();
    let mut pages: Vec<_> =
        ["README.md", "SECURITY.md", "CONTRIBUTING.md", "charts/keywright/README.md", "tests/rights.tsv"]
            .iter()
            .map(|page| project.join(page))
            .collect();
    pages.extend(fs::read_dir(project.join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    let mut named = 0;
    for page in pages.iter().filter(|page| page.is_file()) {
        let text = fs::read_to_string(page).unwrap();
        // As a command of its own line, or quoted.
        for command in text.split(['`', '\n']).filter_map(|words| words.trim_start().strip_prefix("make ")) {
            let target = command.split(|letter: char| !letter.is_ascii_lowercase() && letter != '-').next().unwrap();
            assert!(makefile.contains(&format!("\n{target}:")), "{} names make {target}", page.display());
            named += 1;
        }
    }
    assert!(named > 8, "the documentation is not where it was: {named}");
}

/// Another project may have a kind of that name: `kubectl get apikeys` then shows whichever kubectl finds first.
#[test]
fn commands_in_the_documentation_name_the_group() {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pages = ["README.md", "SECURITY.md", "charts/keywright/README.md", "charts/keywright/templates/NOTES.txt"];
    let mut pages = pages.map(|page| project.join(page)).to_vec();
    pages.extend(fs::read_dir(project.join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    let mut named = 0;
    for page in pages.iter().filter(|page| page.is_file()) {
        for line in fs::read_to_string(page).unwrap().lines() {
            // From the command's name to the end of the quotation or line.
            for command in line.split('`').filter_map(|part| Some(part.split_once("kubectl ")?.1)) {
                for word in command.split([' ', '/']).filter(|word| word.starts_with("apikey")) {
                    let is_whole = ["apikeys.keywright.dev", "apikeyrecords.keywright.dev"]
                        .iter()
                        .any(|kind| word.starts_with(kind));
                    assert!(is_whole || word.ends_with(".json"), "{}: {word} in: kubectl {command}", page.display());
                    named += 1;
                }
            }
        }
    }
    assert!(named > 20, "the documentation is not where it was: {named}");
}
