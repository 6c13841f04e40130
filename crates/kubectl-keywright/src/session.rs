//! What every command works with: the user's cluster, and the person at the other end.

use std::pin::pin;
use std::time::Duration;

use keywright_core::api::ApiKey;
use kube::api::ListParams;
use tokio::time::sleep;

use crate::args::Selection;
use crate::change::NotWritten;
use crate::cluster::{Cluster, ClusterOptions};
use crate::failure::{Attempt, Failure};
use crate::terminal::Terminal;

/// The plural of ApiKeys, for sentences.
pub const APIKEYS: &str = "apikeys";

/// How long nobody wonders whether anything happens.
const PATIENCE: Duration = Duration::from_millis(80);

/// What every command works with.
pub struct Session {
    /// The user's cluster.
    pub cluster: Cluster,
    /// The person at the other end.
    pub terminal: Terminal,
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
    pub fn attempt<'a>(&'a self, verb: &'a str, name: &'a str) -> Attempt<'a> {
        self.cluster.attempt(verb, APIKEYS, &self.cluster.namespace, name)
    }

    /// Awaits an answer of the API server. If it takes its time, a word says so.
    pub async fn patiently<T>(&self, answer: impl Future<Output = T>) -> T {
        let mut answer = pin!(answer);
        tokio::select! {
            biased;
            answer = &mut answer => return answer,
            () = sleep(PATIENCE) => {}
        }
        let mut line = self.terminal.progress();
        line.show(&format!("Asking {}...", self.cluster.name));
        answer.await
    }

    /// The failure of a write to the ApiKey of this name. `unknown` says what is not known if nobody knows.
    pub fn not_written(&self, verb: &str, name: &str, error: &NotWritten, unknown: &str) -> Failure {
        let attempt = self.attempt(verb, name);
        match error {
            NotWritten::Refused(error) => attempt.failed(error),
            NotWritten::Unknown(error) => Failure::failed(format!("{} {unknown}", attempt.sentence(error))),
            NotWritten::Replaced => Failure::failed(replaced(name)),
        }
    }

    /// The ApiKey of this name.
    ///
    /// # Errors
    /// Why it cannot be had.
    pub async fn apikey(&self, name: &str) -> Result<ApiKey, Failure> {
        let found = self.patiently(self.cluster.get(&self.cluster.namespace, name)).await;
        found.map_err(|error| self.attempt("get", name).failed(&error))
    }

    /// The ApiKeys that a selection means.
    ///
    /// # Errors
    /// Why they cannot be had.
    pub async fn apikeys(&self, selection: &Selection) -> Result<Vec<ApiKey>, Failure> {
        let namespace = (!selection.all_namespaces).then_some(&*self.cluster.namespace);
        let mut selected = ListParams::default();
        selected.label_selector.clone_from(&selection.selector);
        selected.field_selector = selection.owner.as_deref().map(|owner| field_selector("spec.owner", owner));
        let listed = self.patiently(self.cluster.list(namespace, &selected)).await;
        listed.map_err(|error| self.cluster.attempt("list", APIKEYS, namespace.unwrap_or(""), "").failed(&error))
    }

    /// Where waits look, and what they tell.
    pub fn waits(&self) -> (&Cluster, Terminal) {
        (&self.cluster, self.terminal)
    }

    /// `team-a/ci on prod-eu`
    pub fn full_name(&self, name: &str) -> String {
        format!("{}/{name} on {}", self.cluster.namespace, self.cluster.name)
    }
}

/// That somebody has made another ApiKey of this name, in a sentence.
pub fn replaced(name: &str) -> String {
    format!("{name} was made again meanwhile: look at it, and try again.")
}

/// Selects objects whose field has this value.
pub fn field_selector(field: &str, value: &str) -> String {
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
