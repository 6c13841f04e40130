//! What is refused before anything is sent.

use std::process::{Command, Output};

use keywright_core::key::Key;
use rand::rngs::SysRng;

/// The plugin on a machine without a cluster: whatever it asks one fails.
fn run(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-keywright"));
    command.args(words).env_clear().env("HOME", "/nonexistent").output().unwrap()
}

#[test]
fn a_key_among_the_arguments_is_not_repeated() {
    let key = Key::mint(&mut SysRng).unwrap();
    let key = key.reveal();
    let (selector, print, url) = (format!("a={key}"), format!("--print={key}"), format!("http://127.0.0.1/{key}"));
    for words in [
        &[key][..],
        &["explain", key],
        &["describe", key],
        &["revoke", key, "--yes"],
        &["rotate", key],
        &["create", key],
        &["create", "ci", &print],
        &["list", "--owner", key],
        &["list", "-l", &selector],
        &["list", "-n", key],
        &["list", key],
        &["whose", key],
        &["explain", "ci", "--scope", key],
        &["explain", "ci", "--from", key],
        &["rotate", "ci", "--wait", "--timeout", key],
        &["list", "--context", key],
        &["list", "--kubeconfig", key],
        &["check-route", &url],
        &["--version", key],
    ] {
        let ran = run(words);
        let said = String::from_utf8([ran.stdout, ran.stderr].concat()).unwrap();
        let said_at = words.iter().position(|word| word.contains(key));
        assert_eq!(ran.status.code(), Some(2), "key at {said_at:?}: {}", said.replace(key, "KEY"));
        assert!(said.contains("An argument looks like a key; treat it as leaked"), "{}", said.replace(key, "KEY"));
        assert!(!said.contains(&key[..20]), "{}", said.replace(key, "KEY"));
    }
}

#[test]
fn an_empty_selection_asks_nobody() {
    for words in [&["revoke", "-l", "", "--yes"][..], &["revoke", "--owner", "", "--yes"], &["revoke", "", "--yes"]] {
        let ran = run(words);
        let said = String::from_utf8(ran.stderr).unwrap();
        assert_eq!(ran.status.code(), Some(2), "{words:?}: {said}");
        assert!(said.contains("it is empty"), "{words:?}: {said}");
    }
}

#[test]
fn what_is_no_dns_name_gets_into_no_manifest() {
    for (words, is_good) in [
        (["ci", "-n", "team-a"], true),
        (["ci", "-n", ""], false),
        (["ci", "-n", "x/../team-c"], false),
        (["team-c/apikeys?dryRun=All&x=", "-n", "team-a"], false),
    ] {
        let ran = run(&[&["create", "--dry-run=client"][..], &words].concat());
        assert_eq!(ran.status.code(), Some(if is_good { 0 } else { 2 }), "{words:?}: {ran:?}");
    }
}
