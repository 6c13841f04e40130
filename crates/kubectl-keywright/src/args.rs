//! The commands and their flags.

use std::ffi::OsStr;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use keywright_core::duration;
use keywright_core::key::may_hold_a_key;

use crate::cluster::ClusterOptions;
use crate::failure::Failure;
use crate::output::Format;
use crate::view::row::SortBy;

/// API keys in your namespaces: create, list, explain, rotate and revoke them
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-keywright",
    bin_name = "kubectl keywright",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = "Exit codes: 0 done; 1 failed, or declined; 2 wrong usage, or refused before any change; 3 asked for, and not in \
        force by --timeout; 130 interrupted."
)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Which cluster, and as whom.
    #[command(flatten)]
    pub cluster: ClusterOptions,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a key, and show it once
    ///
    /// Waits until every verifier knows the key, then prints it once. The key is in a Secret of the ApiKey's name; with
    /// --local it is in none, and the cluster gets only its digest.
    #[command(after_help = "Examples:
  kubectl keywright create ci --expires 90d --allow-ip 10.0.0.0/8,2001:db8::1
  kubectl keywright create ci --expires Never --no-print      # into Secret ci, and not shown
  kubectl keywright create laptop --local --expires 30d       # shown once, and in no Secret
  kubectl keywright create ci --local --output-file ci.key    # into a file that only you can read
  kubectl keywright create ci --expires 90d --dry-run=client -o yaml > ci.yaml")]
    Create(Create),
    /// List keys: who owns them, when they were used, when they end
    #[command(
        visible_alias = "ls",
        after_help = "Examples:
  kubectl keywright list
  kubectl keywright list -A --sort-by last-used
  kubectl keywright list --owner ann@example.org -o wide
  kubectl keywright list -l team=build -o json"
    )]
    List(List),
    /// Show all about one key
    #[command(after_help = "Examples:
  kubectl keywright describe ci
  kubectl keywright describe ci -n team-a -o json")]
    Describe(Describe),
    /// Replace a key: the old one stays valid for the overlap
    #[command(after_help = "Examples:
  kubectl keywright rotate ci
  kubectl keywright rotate ci --wait")]
    Rotate(Rotate),
    /// Revoke keys, at once and for good
    ///
    /// Deletes the ApiKeys, and waits until no verifier anywhere accepts their keys.
    #[command(after_help = "Examples:
  kubectl keywright revoke ci
  kubectl keywright revoke ci cd --yes
  kubectl keywright revoke --owner bob@example.org
  kubectl keywright revoke -l team=build")]
    Revoke(Revoke),
    /// List active keys that nobody has used for a while
    #[command(after_help = "Examples:
  kubectl keywright unused --for 90d
  kubectl keywright unused -A --for 30d -o name")]
    Unused(Unused),
    /// List active keys that end soon
    #[command(after_help = "Examples:
  kubectl keywright expiring --within 30d
  kubectl keywright expiring -A --within 7d -o json")]
    Expiring(Expiring),
    /// Say whether a key would be let in, and by which rule
    ///
    /// The rules are the verifier's own. With a NAME they decide as for its current key; without, a key is read from standard
    /// input.
    #[command(after_help = "Examples:
  kubectl keywright explain ci --from 192.0.2.7
  kubectl keywright explain ci --from 192.0.2.7 --scope read --namespace-required team-a
  kubectl keywright explain --from 192.0.2.7 < leaked.key")]
    Explain(Explain),
    /// Find whose key this is
    ///
    /// Reads a key, or its digest (sha256:...), from standard input, without echo.
    #[command(after_help = "Examples:
  kubectl keywright whose
  kubectl keywright whose -A < leaked.key")]
    Whose(Whose),
    /// Send a canary key through a route, and tell what the verifier saw
    ///
    /// Makes a key that ends in 10 minutes, uses it at the URL, and deletes it. Tells whether the route asks for keys, accepts
    /// the namespace, demands a scope, and which address it takes for yours.
    #[command(after_help = "Examples:
  kubectl keywright check-route https://api.example.org/health
  kubectl keywright check-route https://api.example.org/health --scope read --bearer")]
    CheckRoute(CheckRoute),
    /// Open a page with your keys in the browser
    ///
    /// It listens on 127.0.0.1 only, and acts with your rights. From afar, bring the port here: ssh -L PORT:127.0.0.1:PORT
    #[command(after_help = "Examples:
  kubectl keywright ui
  kubectl keywright ui --port 8077 --no-browser")]
    Ui(Ui),
    /// Print a completion script for a shell
    #[command(after_help = "Examples:
  source <(kubectl keywright completion bash)
  kubectl keywright completion kubectl > ~/.local/bin/kubectl_complete-keywright   # then chmod +x it")]
    Completion(Completion),
    /// Write the man pages
    #[command(after_help = "Examples:
  kubectl keywright man --directory ~/.local/share/man/man1")]
    Man(Man),
    /// What kubectl asks for when somebody presses Tab
    #[command(name = "__complete", hide = true, disable_help_flag = true)]
    Complete(Complete),
}

/// `create`
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Create {
    /// The ApiKey's name
    #[arg(value_parser = given)]
    pub name: String,
    /// A name for people
    #[arg(long, value_name = "TEXT")]
    pub display_name: Option<String>,
    /// What the key is for
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
    /// Who answers for the key. Default: you
    #[arg(long, value_name = "WHO", value_parser = given)]
    pub owner: Option<String>,
    /// When the key ends: a duration (1d, 30d, 90d), a day, an RFC 3339 time, or Never. Default: never
    #[arg(long, value_name = "WHEN")]
    pub expires: Option<String>,
    /// Addresses and networks that may use the key. Default: any
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    pub allow_ip: Vec<String>,
    /// What the key may be used for: separated by commas, or repeated
    #[arg(long, value_name = "SCOPE", value_delimiter = ',')]
    pub scope: Vec<String>,
    /// Replace the key at this age
    #[arg(long, value_name = "DURATION", conflicts_with = "local")]
    pub rotate_every: Option<String>,
    /// How long a replaced key stays valid. Default: 24h
    #[arg(long, value_name = "DURATION", conflicts_with = "local")]
    pub overlap: Option<String>,
    /// The Secret that gets the key. Default: the ApiKey's name
    #[arg(long, value_name = "NAME", conflicts_with = "local")]
    pub secret_name: Option<String>,
    /// The entry in that Secret. Default: api-key
    #[arg(long, value_name = "ENTRY", conflicts_with = "local")]
    pub secret_key: Option<String>,
    /// Make the key here: the cluster gets its digest, and no Secret
    #[arg(long)]
    pub local: bool,
    /// Leave the key in its Secret, and do not show it
    #[arg(long, conflicts_with_all = ["local", "print", "output_file"])]
    pub no_print: bool,
    /// Print the key even into a pipe
    #[arg(long)]
    pub print: bool,
    /// Write the key into a new file that only you can read
    #[arg(long, value_name = "FILE", conflicts_with = "print")]
    pub output_file: Option<PathBuf>,
    /// How long to wait until every verifier knows the key
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = time)]
    pub timeout: Duration,
    /// Change nothing: print what would be sent (client), or what the API server would store (server)
    #[arg(long, value_name = "WHERE", value_enum, require_equals = true)]
    pub dry_run: Option<DryRun>,
    /// How a dry run is printed
    #[arg(short, long, value_name = "FORMAT", value_enum, requires = "dry_run")]
    pub output: Option<Format>,
}

/// Where a dry run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DryRun {
    /// Here: nothing is sent.
    Client,
    /// At the API server: nothing is stored.
    Server,
}

/// Which ApiKeys.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Selection {
    /// Of all namespaces
    #[arg(long, short = 'A')]
    pub all_namespaces: bool,
    /// Only with these labels, as kubectl takes them
    #[arg(long, short = 'l', value_name = "LABELS", value_parser = given)]
    pub selector: Option<String>,
    /// Only of this owner
    #[arg(long, value_name = "WHO", value_parser = given)]
    pub owner: Option<String>,
}

/// `list`
#[derive(Clone, Debug, Default, clap::Args)]
pub struct List {
    /// Which ApiKeys.
    #[command(flatten)]
    pub selection: Selection,
    /// What to sort by. Never used is the oldest use; never ends is the latest end
    #[arg(long, value_name = "COLUMN", value_enum, default_value = "name")]
    pub sort_by: SortBy,
    /// How to print
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "table")]
    pub output: Format,
}

/// `describe`
#[derive(Clone, Debug, clap::Args)]
pub struct Describe {
    /// The ApiKey's name
    #[arg(value_parser = given)]
    pub name: String,
    /// The system namespace, for who may read the verifiers' Leases
    #[arg(long, value_name = "NAME", default_value = "keywright-system", value_parser = given)]
    pub system_namespace: String,
    /// How to print
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "table")]
    pub output: Format,
}

/// `rotate`
#[derive(Clone, Debug, clap::Args)]
pub struct Rotate {
    /// The ApiKey's name
    #[arg(value_parser = given)]
    pub name: String,
    /// Wait until the new key is in its Secret, and every verifier knows it
    #[arg(long)]
    pub wait: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = time, requires = "wait")]
    pub timeout: Duration,
    /// Rotate also if an old key ends at once by it
    #[arg(long, short)]
    pub yes: bool,
}

/// `revoke`
#[derive(Clone, Debug, clap::Args)]
pub struct Revoke {
    /// The ApiKeys' names
    #[arg(
        value_name = "NAME",
        required_unless_present_any = ["selector", "owner"],
        conflicts_with_all = ["selector", "owner"],
        value_parser = given
    )]
    pub names: Vec<String>,
    /// All with these labels, as kubectl takes them
    #[arg(long, short = 'l', value_name = "LABELS", value_parser = given)]
    pub selector: Option<String>,
    /// All of this owner
    #[arg(long, value_name = "WHO", value_parser = given)]
    pub owner: Option<String>,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
    /// How long to wait until no verifier accepts the keys. Their leases end after 10m at the latest, unless set otherwise
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = time)]
    pub timeout: Duration,
}

/// `unused`
#[derive(Clone, Debug, clap::Args)]
pub struct Unused {
    /// For how long
    #[arg(long = "for", value_name = "DURATION", default_value = "90d", value_parser = time)]
    pub time: Duration,
    /// Which ApiKeys.
    #[command(flatten)]
    pub selection: Selection,
    /// How to print
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "table")]
    pub output: Format,
}

/// `expiring`
#[derive(Clone, Debug, clap::Args)]
pub struct Expiring {
    /// How soon
    #[arg(long, value_name = "DURATION", default_value = "30d", value_parser = time)]
    pub within: Duration,
    /// Which ApiKeys.
    #[command(flatten)]
    pub selection: Selection,
    /// How to print
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "table")]
    pub output: Format,
}

/// `explain`
#[derive(Clone, Debug, clap::Args)]
pub struct Explain {
    /// The ApiKey's name. Without: a key is read from standard input
    #[arg(value_parser = given)]
    pub name: Option<String>,
    /// The client's address, as the verifier sees it
    #[arg(long, value_name = "ADDRESS")]
    pub from: Option<IpAddr>,
    /// The scopes that the route demands: separated by commas, or repeated
    #[arg(long, value_name = "SCOPE", value_delimiter = ',', value_parser = given)]
    pub scope: Vec<String>,
    /// The namespaces that the route accepts: separated by commas, or repeated
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = given)]
    pub namespace_required: Vec<String>,
    /// Look for the key in all namespaces
    #[arg(long, short = 'A', conflicts_with = "name")]
    pub all_namespaces: bool,
    /// The system namespace, for who may read records
    #[arg(long, value_name = "NAME", default_value = "keywright-system", value_parser = given)]
    pub system_namespace: String,
}

/// `whose`
#[derive(Clone, Debug, clap::Args)]
pub struct Whose {
    /// Look in all namespaces
    #[arg(long, short = 'A')]
    pub all_namespaces: bool,
    /// The system namespace, for who may read records
    #[arg(long, value_name = "NAME", default_value = "keywright-system", value_parser = given)]
    pub system_namespace: String,
}

/// `check-route`
#[derive(Clone, Debug, clap::Args)]
pub struct CheckRoute {
    /// Where to send the canary: a GET that does no harm
    pub url: String,
    /// The scopes that the canary has: separated by commas, or repeated
    #[arg(long, value_name = "SCOPE", value_delimiter = ',')]
    pub scope: Vec<String>,
    /// Send the key as Authorization: Bearer, and not as X-API-Key
    #[arg(long)]
    pub bearer: bool,
    /// How long to wait, each time, until every verifier knows the canary
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = time)]
    pub timeout: Duration,
}

/// `ui`
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Ui {
    /// The port on 127.0.0.1. Default: any that is free
    #[arg(long, value_name = "PORT", default_value_t = 0, hide_default_value = true)]
    pub port: u16,
    /// Only print the address, and open no browser
    #[arg(long)]
    pub no_browser: bool,
}

/// `completion`
#[derive(Clone, Debug, clap::Args)]
pub struct Completion {
    /// bash, zsh, fish; or kubectl, for what kubectl itself looks for
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Whom a completion script is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Shell {
    /// bash, for `kubectl-keywright`.
    Bash,
    /// zsh, for `kubectl-keywright`.
    Zsh,
    /// fish, for `kubectl-keywright`.
    Fish,
    /// `kubectl_complete-keywright`, for `kubectl keywright`.
    Kubectl,
}

/// `man`
#[derive(Clone, Debug, clap::Args)]
pub struct Man {
    /// Where to. The directory must exist
    #[arg(long, value_name = "DIRECTORY")]
    pub directory: PathBuf,
}

/// `__complete`
#[derive(Clone, Debug, clap::Args)]
pub struct Complete {
    /// The words after `kubectl keywright`; the last is unfinished
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub words: Vec<String>,
}

/// Refuses arguments of which one may hold a key. Before they are read: what is wrong with them would be told with the key.
///
/// # Errors
/// If one does. The message holds none.
pub fn refuse_keys(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<(), Failure> {
    let has_key = arguments.into_iter().any(|argument| may_hold_a_key(&argument.as_ref().to_string_lossy()));
    if has_key {
        let leaked = "An argument looks like a key; treat it as leaked, and revoke it. Give keys on standard input. \
                      Nothing was sent.";
        return Err(Failure::usage(leaked));
    }
    Ok(())
}

/// A text with something in it. An empty selector selects all, and is most often a variable that is not set.
pub(crate) fn given(text: &str) -> Result<String, &'static str> {
    if text.trim().is_empty() { Err("it is empty") } else { Ok(text.to_owned()) }
}

/// A duration as everywhere in Keywright.
fn time(text: &str) -> Result<Duration, String> {
    let read = duration::parse(text).map_err(|error| error.to_string())?;
    Ok(read.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_shows_examples() {
        for command in Arguments::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let example = format!("kubectl keywright {}", command.get_name());
            assert!(help.contains(&example), "{}: {help}", command.get_name());
        }
    }

    #[test]
    fn an_empty_value_selects_nothing() {
        for line in [
            "revoke -l EMPTY --yes",
            "revoke --owner EMPTY --yes",
            "revoke EMPTY --yes",
            "revoke ci EMPTY --yes",
            "list -l EMPTY",
            "list --owner EMPTY",
            "unused --owner EMPTY",
            "expiring -l EMPTY",
            "create EMPTY",
            "create ci --owner EMPTY",
            "describe EMPTY",
            "describe ci --system-namespace EMPTY",
            "rotate EMPTY",
            "explain EMPTY",
            "explain ci --scope EMPTY",
            "explain ci --namespace-required EMPTY",
        ] {
            for empty in ["", " ", "\t"] {
                let words = line.split(' ').map(|word| if word == "EMPTY" { empty } else { word });
                let read = Arguments::try_parse_from(["kubectl-keywright"].into_iter().chain(words));
                assert_eq!(read.err().map(|error| error.exit_code()), Some(2), "{line}: {empty:?}");
            }
        }
    }

    #[test]
    fn no_argument_holds_a_key() {
        let key = format!("keyw1_{}", "x".repeat(49));
        for (argument, is_refused) in [
            (key.clone(), true),
            (format!("--owner={key}"), true),
            (format!("https://example.org/?key={}", key.to_uppercase()), true),
            (key.chars().take(20).collect(), true),
            (key.chars().take(14).collect(), false),
            ("keywright-system".to_owned(), false),
        ] {
            let refused = refuse_keys(["list", &argument]).err().map(|failure| failure.to_string());
            assert_eq!(refused.is_some(), is_refused, "{argument}");
            assert!(refused.is_none_or(|said| !said.contains("keyw1_")));
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for (line, is_good) in [
            ("create ci", true),
            ("create ci --local --rotate-every 30d", false),
            ("create ci --local --secret-name x", false),
            ("create ci --no-print --print", false),
            ("create ci -o yaml", false),
            ("create ci --dry-run=client -o yaml", true),
            ("create ci --timeout soon", false),
            ("revoke", false),
            ("revoke ci cd --yes", true),
            ("revoke ci -l a=b", false),
            ("revoke --owner bob@x", true),
            ("list -A --sort-by last-used -o wide", true),
            ("unused --for 30d -n team-a", true),
            ("explain ci --from 192.0.2.7", true),
            ("explain ci --from home", false),
        ] {
            let words = ["kubectl-keywright"].into_iter().chain(line.split(' '));
            assert_eq!(Arguments::try_parse_from(words).is_ok(), is_good, "{line}");
        }
    }
}
