//! Completion: scripts for shells, and the answers that kubectl itself asks for.

use std::ffi::OsString;

use clap::CommandFactory;
use clap_complete::engine::complete as candidates;
use clap_complete::{aot, generate};
use keywright_core::api::ApiKey;
use kube::api::ListParams;

use crate::args::{Arguments, Shell};
use crate::cluster::ClusterOptions;
use crate::failure::Failure;
use crate::session::Session;
use crate::terminal::Terminal;

/// What kubectl runs for the words after `kubectl keywright`.
const FOR_KUBECTL: &str = "#!/bin/sh\nexec kubectl keywright __complete \"$@\"\n";
/// The last line of an answer: complete no files (cobra's ShellCompDirectiveNoFileComp).
const NO_FILES: &str = ":4\n";
/// The commands that take the name of an ApiKey.
const BY_NAME: [&str; 4] = ["describe", "rotate", "revoke", "explain"];

/// Prints the script for a shell.
pub fn script(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    let mut command = Arguments::command().bin_name("kubectl-keywright");
    let shell = match shell {
        Shell::Kubectl => return Terminal::detect().print(FOR_KUBECTL),
        Shell::Bash => aot::Shell::Bash,
        Shell::Zsh => aot::Shell::Zsh,
        Shell::Fish => aot::Shell::Fish,
    };
    generate(shell, &mut command, "kubectl-keywright", &mut script);
    Terminal::detect().print(&String::from_utf8_lossy(&script))
}

/// Prints what the last of the words may become. Whatever goes wrong, the person who pressed Tab gets fewer candidates.
pub async fn complete(options: &ClusterOptions, words: &[String]) -> Result<(), Failure> {
    let mut answer: String = flags_and_commands(words).into_iter().map(|candidate| candidate + "\n").collect();
    if takes_a_name(words) {
        for name in names(options).await {
            answer.push_str(&name);
            answer.push('\n');
        }
    }
    Terminal::detect().print(&(answer + NO_FILES))
}

fn flags_and_commands(words: &[String]) -> Vec<String> {
    let line: Vec<OsString> =
        std::iter::once("kubectl-keywright").chain(words.iter().map(String::as_str)).map(OsString::from).collect();
    let last = line.len().saturating_sub(1);
    let found = candidates(&mut Arguments::command(), line, last, None).unwrap_or_default();
    found
        .iter()
        .filter(|candidate| !candidate.is_hide_set())
        .map(|it| it.get_value().to_string_lossy().into_owned())
        .collect()
}

fn takes_a_name(words: &[String]) -> bool {
    let command = words.iter().find(|word| !word.starts_with('-'));
    words.len() > 1
        && command.is_some_and(|command| BY_NAME.contains(&&**command))
        && words.last().is_some_and(|word| !word.starts_with('-'))
}

async fn names(options: &ClusterOptions) -> Vec<String> {
    let Ok(session) = Session::start(options).await else { return Vec::new() };
    let keys = session.cluster.list::<ApiKey>(Some(&session.cluster.namespace), &ListParams::default()).await;
    keys.unwrap_or_default().into_iter().filter_map(|key| key.metadata.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn commands_and_flags_are_offered_and_hidden_ones_are_not() {
        let offered = flags_and_commands(&words(""));
        assert!(offered.contains(&"revoke".to_owned()) && !offered.contains(&"__complete".to_owned()), "{offered:?}");
        assert!(flags_and_commands(&words("list --so")).contains(&"--sort-by".to_owned()));
        let columns = flags_and_commands(&words("list --sort-by "));
        assert!(columns.contains(&"last-used".to_owned()), "{columns:?}");
    }

    #[test]
    fn names_are_asked_for_where_one_belongs() {
        for (line, is_so) in [
            ("describe ", true),
            ("revoke a b", true),
            ("describe", false),
            ("describe --o", false),
            ("create ", false),
        ] {
            assert_eq!(takes_a_name(&words(line)), is_so, "{line}");
        }
    }
}
