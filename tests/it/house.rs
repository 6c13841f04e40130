//! What the compiler does not see to: the arrows between the rooms of the program, and that the documentation names what
//! is there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One for each role of the program. None uses another.
const ROLES: [&str; 4] = ["certificates", "controller", "verifier", "webhook"];

/// A file of the program: its room, its path, and its code without comments.
#[derive(Clone)]
struct Source {
    room: String,
    path: PathBuf,
    code: String,
}

/// Tests apart: they stand in files of their own, or at the end of one.
fn sources_in(folder: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut folders = vec![root.clone()];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let name = path.file_stem().unwrap().to_str().unwrap();
            if path.is_dir() {
                folders.push(path);
            } else if name != "tests" && path.extension().is_some_and(|extension| extension == "rs") {
                let relative = path.strip_prefix(&root).unwrap();
                let room = relative.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned();
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]\nmod").next().unwrap().lines();
                let code = code.filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
                sources.push(Source { room, path, code });
            }
        }
    }
    assert!(sources.len() > 20, "the source is not where it was");
    sources
}

fn sources() -> Vec<Source> {
    sources_in("src")
}

impl Source {
    fn uses(&self, room: &str) -> bool {
        let braced = self.code.split("use crate::{").skip(1).filter_map(|rest| rest.split('}').next());
        let mut names = braced.flat_map(|names| names.split(',').filter_map(|name| name.trim().split("::").next()));
        self.code.contains(&format!("crate::{room}::"))
            || self.code.contains(&format!("crate::{room};"))
            || names.any(|name| name == room)
    }
}

#[test]
fn no_role_uses_another_and_what_they_share_knows_none() {
    for source in sources().iter().filter(|source| !["args", "lib", "main"].contains(&&*source.room)) {
        for role in ROLES.iter().filter(|role| **role != source.room) {
            assert!(!source.uses(role), "{} must not use {role}", source.path.display());
        }
    }
}

/// What the roles share is in layers, too: each of these uses only what stands before it.
#[test]
fn what_roles_share_points_one_way() {
    let layers = ["clock", "x509", "pages", "lease", "telemetry", "client", "authority", "serve"];
    for source in sources() {
        let Some(layer) = layers.iter().position(|layer| *layer == source.room) else { continue };
        for above in &layers[layer + 1..] {
            assert!(!source.uses(above), "{} must not use {above}", source.path.display());
        }
    }
}

#[test]
fn children_do_not_use_their_parent() {
    let sources = [sources(), sources_in("crates/core/src"), sources_in("crates/kubectl-keywright/src")].concat();
    for source in sources.iter().filter(|source| !["lib", "main"].contains(&&*source.room)) {
        let items = source.code.split("use super::").skip(1).chain(source.code.split("super::super::").skip(1));
        for item in items {
            let first = item.trim_start_matches('{').chars().next().unwrap();
            assert!(
                first.is_lowercase() || first == '*',
                "{} uses an item of its parent: {item:.40}",
                source.path.display()
            );
        }
    }
}

#[test]
fn the_verifier_never_reaches_secrets() {
    for source in sources().iter().filter(|source| ["verifier", "serve"].contains(&&*source.room)) {
        assert!(!source.code.contains("core::v1::Secret"), "{}", source.path.display());
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
                None => vec![
                    format!("tests/it/{path}.rs"),
                    format!("src/{path}.rs"),
                    format!("src/{unit}.rs"),
                    format!("crates/core/src/{path}.rs"),
                    format!("crates/core/src/{unit}.rs"),
                ],
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
fn every_mutant_still_fits_the_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mutants = fs::read_dir(root.join("tests/mutants")).unwrap().map(|entry| entry.unwrap().path());
    for mutant in mutants {
        let change = fs::File::open(&mutant).unwrap();
        let mut patch = Command::new("patch");
        patch.args(["--dry-run", "--strip", "1", "--fuzz", "0"]).current_dir(root).stdin(change);
        let tried = patch.output().unwrap();
        assert!(tried.status.success(), "{}: {}", mutant.display(), String::from_utf8_lossy(&tried.stdout));
    }
}

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
