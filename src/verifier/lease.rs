//! I/O. Holds the verifier's Lease: does what the [`Membership`] says, one request at a time.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use keywright_core::fence::{Act, Answer, Operation, State, Stored};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::error::Elapsed;
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::client::REQUEST_TIMEOUT;
use crate::verifier::membership::Membership;
use crate::{clock, lease};

/// Holds the Lease of one verifier.
pub struct LeaseKeeper {
    membership: Arc<Membership>,
    leases: Api<Lease>,
    /// How long an answer may take. A short Lease leaves time to try again.
    timeout: Duration,
    state: State,
    /// The kind of failure that was logged last, and when.
    logged: Option<(Option<u16>, Instant)>,
}

/// How often a failure that goes on is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Why a request failed, or has no known outcome.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Request(#[from] kube::Error),
    #[error("no answer in time")]
    Silence(#[from] Elapsed),
    #[error("a finalizer keeps the Lease: remove it, nobody else may hold a verifier's Lease")]
    Finalizer,
    #[error("the stored Lease has no uid, or no version that can be compared")]
    Unreadable,
}

impl LeaseKeeper {
    /// Holds the Lease of `membership` in `namespace`.
    pub fn new(membership: Arc<Membership>, client: Client, namespace: &str) -> Self {
        let timeout = REQUEST_TIMEOUT.min(membership.holder().duration() / 3);
        let leases = Api::namespaced(client, namespace);
        Self { membership, leases, timeout, state: State::Joining, logged: None }
    }

    /// Joins, renews and acknowledges, until the verifier has left and its Lease is gone.
    pub async fn run(mut self) {
        loop {
            match self.membership.next(clock::moment()) {
                Act::Send(request) => {
                    let answer = self.send(&request.operation).await;
                    self.membership.answered(request, answer, clock::moment());
                }
                Act::List(round) => {
                    let lease = &*self.membership.holder().identity;
                    info!(lease, "joined: this verifier has its Lease, and lists the records");
                    self.membership.order(round);
                }
                Act::Wait(until) => self.membership.wait(until).await,
                Act::Exit => return,
            }
            self.log_state();
        }
    }

    async fn send(&mut self, operation: &Operation) -> Answer {
        let answer = timeout(self.timeout, self.request(operation)).await.map_err(Failure::from).flatten();
        match answer {
            Ok(answer) => {
                self.logged = None;
                self.membership.note_failure(self.taken_by_another(&answer));
                answer
            }
            Err(failure) => {
                let code = failure.code();
                self.note(operation, &failure);
                match code {
                    Some(404) => Answer::Absent,
                    Some(409) => Answer::Conflict,
                    _ => Answer::Unknown,
                }
            }
        }
    }

    /// What to say if the Lease is that of another process, for as long as this is so.
    fn taken_by_another(&self, answer: &Answer) -> Option<String> {
        let Answer::Stored(stored) = answer else { return None };
        let holder = &stored.holder;
        let is_own = *holder == self.membership.holder().holder;
        (!is_own).then(|| format!("The Lease is held by {holder}. No two verifiers may have the same --identity"))
    }

    async fn request(&self, operation: &Operation) -> Result<Answer, Failure> {
        let holder = self.membership.holder();
        let (name, parameters) = (&*holder.identity, PostParams::default());
        let stored = match operation {
            Operation::Create(content) => {
                self.leases.create(&parameters, &content.object(holder, None, clock::now())).await?
            }
            Operation::Read => self.leases.get(name).await?,
            Operation::Renew(before, content) => {
                self.leases.replace(name, &parameters, &content.object(holder, Some(before), clock::now())).await?
            }
            Operation::Delete(before) => {
                let is_gone = lease::delete(&self.leases, name, before).await?;
                return is_gone.then_some(Answer::Absent).ok_or(Failure::Finalizer);
            }
        };
        Stored::read(&stored).map(Answer::Stored).ok_or(Failure::Unreadable)
    }

    /// Logs the first failure of each kind at once, and then one per minute. That a Lease is not there, or another one, is the
    /// normal course of things.
    fn note(&mut self, operation: &Operation, failure: &Failure) {
        let code = failure.code();
        if matches!(code, Some(404 | 409)) {
            return;
        }
        let lease = self.membership.holder().identity.clone();
        let remedy = remedy(code);
        self.membership.note_failure(Some(format!("{}: {failure}. {remedy}", Verb(operation))));
        let now = Instant::now();
        if self.logged.is_none_or(|(last, at)| last != code || now.duration_since(at) >= LOG_INTERVAL) {
            self.logged = Some((code, now));
            warn!(%lease, %failure, "{}: {remedy}", Verb(operation));
        }
    }

    fn log_state(&mut self) {
        let state = self.membership.state(clock::moment());
        let before = std::mem::replace(&mut self.state, state);
        match (before, state) {
            (State::Lapsed, State::Serving) => info!("answering requests again"),
            (State::Serving, State::Lapsed) => error!(
                "lapsed: answering 503, because the Lease was not renewed in time or the records are too old. Check that \
                 the API server is reachable"
            ),
            (State::Serving | State::Lapsed, State::Joining) => {
                warn!("the Lease is gone, or etcd was restored: answering 503 until this verifier has joined anew");
            }
            _ => {}
        }
    }
}

/// What to do about a failure.
fn remedy(code: Option<u16>) -> &'static str {
    match code {
        Some(401) => "Check that the token belongs to an existing ServiceAccount of this cluster",
        Some(403) => {
            "Check that --identity is the name of the verifier's own Pod, and that its ServiceAccount may get, create, \
             update and delete Leases (the chart's Role keywright-verifier)"
        }
        _ => "Check that the API server is reachable",
    }
}

impl Failure {
    /// The code of an answer that is an error.
    fn code(&self) -> Option<u16> {
        match self {
            Self::Request(kube::Error::Api(status)) => Some(status.code),
            _ => None,
        }
    }
}

/// What could not be done.
struct Verb<'o>(&'o Operation);

impl fmt::Display for Verb<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Operation::Create(_) => "cannot create the Lease",
            Operation::Read => "cannot read the Lease",
            Operation::Renew(..) => "cannot renew the Lease",
            Operation::Delete(_) => "cannot delete the Lease",
        })
    }
}
