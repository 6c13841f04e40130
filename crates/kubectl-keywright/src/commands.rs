//! The commands: each reads, asks the pure part what to say, and prints.

mod completion;
mod create;
mod describe;
mod explain;
mod follow;
mod list;
mod man;
mod revoke;
mod rotate;
mod ui;
mod whose;

use keywright_core::api::ApiKey;
use kube::api::ListParams;

use crate::args::{Arguments, Command, Selection};
use crate::cluster::{Cluster, ClusterOptions};
use crate::failure::{Attempt, Failure};
use crate::terminal::Terminal;

/// The plural of ApiKeys, for sentences.
const APIKEYS: &str = "apikeys";

/// What every command works with.
pub struct Session {
    /// The user's cluster.
    pub cluster: Cluster,
    /// The person at the other end.
    pub terminal: Terminal,
}

/// Carries a command out.
///
/// # Errors
/// Why it was not done.
pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let options = &arguments.cluster;
    match arguments.command {
        Command::Create(asked) => create::run(options, &asked).await,
        Command::List(asked) => list::list(&Session::start(options).await?, &asked).await,
        Command::Unused(asked) => list::unused(&Session::start(options).await?, &asked).await,
        Command::Expiring(asked) => list::expiring(&Session::start(options).await?, &asked).await,
        Command::Describe(asked) => describe::run(&Session::start(options).await?, &asked).await,
        Command::Rotate(asked) => rotate::run(&Session::start(options).await?, &asked).await,
        Command::Revoke(asked) => revoke::run(&Session::start(options).await?, &asked).await,
        Command::Explain(asked) => explain::run(&Session::start(options).await?, &asked).await,
        Command::Whose(asked) => whose::run(&Session::start(options).await?, &asked).await,
        Command::Ui(asked) => ui::run(Session::start(options).await?, &asked).await,
        Command::Completion(asked) => completion::script(asked.shell),
        Command::Complete(asked) => completion::complete(options, &asked.words).await,
        Command::Man(asked) => man::write(&asked.directory),
    }
}

impl Session {
    /// Connects, without asking anything yet.
    ///
    /// # Errors
    /// A kubeconfig that cannot be used.
    pub async fn start(options: &ClusterOptions) -> Result<Self, Failure> {
        Ok(Self { cluster: Cluster::connect(options).await?, terminal: Terminal::detect() })
    }

    /// What is tried with an ApiKey of the session's namespace.
    fn attempt<'a>(&'a self, verb: &'a str, name: &'a str) -> Attempt<'a> {
        self.cluster.attempt(verb, APIKEYS, &self.cluster.namespace, name)
    }

    /// The ApiKey of this name.
    async fn apikey(&self, name: &str) -> Result<ApiKey, Failure> {
        let found = self.cluster.get(&self.cluster.namespace, name).await;
        found.map_err(|error| self.attempt("get", name).failed(&error))
    }

    /// The ApiKeys that a selection means.
    async fn apikeys(&self, selection: &Selection) -> Result<Vec<ApiKey>, Failure> {
        let namespace = (!selection.all_namespaces).then_some(&*self.cluster.namespace);
        let mut selected = ListParams::default();
        selected.label_selector.clone_from(&selection.selector);
        selected.field_selector = selection.owner.as_deref().map(|owner| field_selector("spec.owner", owner));
        let listed = self.cluster.list(namespace, &selected).await;
        listed.map_err(|error| self.cluster.attempt("list", APIKEYS, namespace.unwrap_or(""), "").failed(&error))
    }

    /// `team-a/ci on prod-eu`
    fn full_name(&self, name: &str) -> String {
        format!("{}/{name} on {}", self.cluster.namespace, self.cluster.name)
    }
}

/// Selects objects whose field has this value.
fn field_selector(field: &str, value: &str) -> String {
    let mut selector = format!("{field}=");
    for character in value.chars() {
        if matches!(character, '\\' | ',' | '=') {
            selector.push('\\');
        }
        selector.push(character);
    }
    selector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_stays_one_value() {
        assert_eq!(field_selector("spec.owner", "CN=ann,O=x\\y"), "spec.owner=CN\\=ann\\,O\\=x\\\\y");
    }
}
