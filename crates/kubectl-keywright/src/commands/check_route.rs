//! `check-route`: sends a canary key through a route, and tells what the verifier saw.

use std::io::ErrorKind;
use std::time::Duration;

use http::{Request, Uri};
use http_body_util::BodyExt;
use keywright_core::api::ApiKey;
use keywright_core::key::Key;
use kube::client::Body;
use kube::{Client, Config};
use rand::rngs::SysRng;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::follow::{Outcome, follow};
use crate::args::CheckRoute;
use crate::canary::{Reason, Search, Verdict};
use crate::change::{self, NotWritten};
use crate::cluster::innermost;
use crate::failure::Failure;
use crate::interrupt;
use crate::session::Session;
use crate::terminal::ProgressLine;
use crate::view::escape::escape;
use crate::view::wait::{Change, Wanted, in_force};

/// How long the route may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Octets of an answer that are read: a verifier's reason is far shorter.
const LONGEST_BODY: usize = 64 << 10;
/// No client has it: what is sent there is discarded (RFC 6666).
const NOWHERE: &str = "100::1";
/// How a request is told from the first one.
const WITH_THE_CANARY: &str = "with the canary";
/// A canary that nobody could delete ends by itself.
const LIFE: &str = "10m";

/// A key for the route alone, and the way there.
struct Canary<'a> {
    session: &'a Session,
    asked: &'a CheckRoute,
    key: Key,
    name: String,
    created: ApiKey,
    client: Client,
    target: Uri,
}

/// Checks a route.
pub async fn run(session: &Session, asked: &CheckRoute) -> Result<(), Failure> {
    let target = target(&asked.url)?;
    let client = client(&target)?;
    let mut line = session.terminal.progress();
    line.show("Asking the route...");
    let bare = ask(&client, &target, None).await?;
    line.clear();
    told(session, "without a key", &bare.words())?;
    if let Some(remedy) = bare.remedy("without a key") {
        return Err(Failure::failed(remedy));
    }
    if bare.is_let_in() {
        return Err(Failure::failed("Nothing on this route asks for a key: no canary was sent."));
    }
    // From here on nothing ends the program while there is a canary, and nobody waits for an answer that says its uid in vain.
    let stopped = interrupt::stopped()?;
    let canary = Canary::create(session, asked, client, target).await?;
    let checked = tokio::select! {
        checked = canary.check() => checked,
        () = stopped => Err(Failure::interrupted("Interrupted. The canary goes.")),
    };
    // Whatever has come of it.
    let deleted = change::delete(&session.cluster, (&session.cluster.namespace, &canary.name), canary.uid()).await;
    if let Err(error) = deleted {
        let failure = session.not_written("delete", &canary.name, &error, "Whether it goes is not known.");
        session.terminal.say(&format!("Revoke {} yourself; it ends in {LIFE}. {failure}", canary.name));
    }
    checked
}

impl<'a> Canary<'a> {
    async fn create(session: &'a Session, asked: &'a CheckRoute, client: Client, target: Uri) -> Result<Self, Failure> {
        let key = Key::mint(&mut SysRng).map_err(|error| Failure::failed(format!("No random numbers: {error}.")))?;
        let name = format!("check-route-{:08x}", rand::random::<u32>());
        let spec = json!({
            "description": "A canary of kubectl keywright check-route, to be deleted when that ends",
            "keyHash": key.digest().to_string(), "expiresIn": LIFE, "scopes": asked.scope,
        });
        let namespace = &session.cluster.namespace;
        let object = json!({
            "apiVersion": "keywright.dev/v1alpha1", "kind": "ApiKey", "spec": spec,
            "metadata": {"name": name, "namespace": namespace},
        });
        let unknown = format!("Whether {name} was created is not known; it ends in {LIFE}.");
        let created = change::create(&session.cluster, namespace, &object).await;
        let created = created.map_err(|error| session.not_written("create", &name, &error, &unknown))?;
        Ok(Self { session, asked, key, name, created: created.value, client, target })
    }

    fn uid(&self) -> &str {
        self.created.metadata.uid.as_deref().unwrap_or_default()
    }

    async fn check(&self) -> Result<(), Failure> {
        self.wait(&self.created, Change::Created).await?;
        let verdict = self.ask().await?;
        told(self.session, WITH_THE_CANARY, &verdict.words())?;
        if let Some(remedy) = verdict.remedy(WITH_THE_CANARY) {
            return Err(Failure::failed(remedy));
        }
        let namespace = &self.session.cluster.namespace;
        match verdict {
            Verdict::LetIn(_) => {}
            Verdict::Refused(Reason::Scope) => return told(self.session, "scope", "add --scope SCOPE, and try again"),
            Verdict::Refused(Reason::Namespace) => {
                return told(self.session, "namespace", &format!("{namespace} is not accepted: try -n NAMESPACE"));
            }
            Verdict::NoKey => {
                let cause = "the key did not arrive in this header, or another installation of Keywright is asked";
                return told(self.session, "key", cause);
            }
            Verdict::Forbidden => {
                let cause = format!("the route may not accept {namespace}, or may demand a scope");
                return told(self.session, "cause", &cause);
            }
            Verdict::Refused(_) | Verdict::Unavailable | Verdict::Undecided(_) => return Ok(()),
        }
        self.control().await?;
        told(self.session, "namespace", &format!("{namespace} is accepted"))?;
        told(self.session, "scope", &self.demanded_scopes().await?)?;
        told(self.session, "address", &self.seen_address().await?)
    }

    /// A route that lets the canary in from nowhere says nothing of what a verifier sees.
    async fn control(&self) -> Result<(), Failure> {
        let control = self.verdict_with(json!({"allowedIPs": [NOWHERE]})).await?;
        told(self.session, "from elsewhere", &control.words())?;
        match control.passes() {
            Some(false) => Ok(()),
            Some(true) => Err(Failure::failed(format!(
                "The canary may be used from {NOWHERE} alone, and is let in: this route asks no verifier, or remembers its answers."
            ))),
            None => Err(changed_its_mind(control)),
        }
    }

    /// Which of the scopes that the canary has it cannot do without.
    async fn demanded_scopes(&self) -> Result<String, Failure> {
        let mut demanded = Vec::new();
        for scope in &self.asked.scope {
            let others: Vec<_> = self.asked.scope.iter().filter(|other| *other != scope).collect();
            if !self.passes_with(json!({"scopes": others, "allowedIPs": null})).await? {
                demanded.push(&**scope);
            }
        }
        self.edit(json!({"scopes": self.asked.scope})).await?;
        Ok(if demanded.is_empty() {
            "none is demanded".to_owned()
        } else {
            format!("{} is demanded", demanded.join(", "))
        })
    }

    /// The address that the verifier takes for the client's: found by limiting the canary to half of what is left, again
    /// and again.
    async fn seen_address(&self) -> Result<String, Failure> {
        let mut line = self.session.terminal.progress();
        let mut left = None;
        for family in [Search::IPV4, Search::IPV6] {
            if left.is_none() && self.passes_from(&family.network(), &mut line).await? {
                left = Some(family);
            }
        }
        let Some(mut search) = left else {
            return Ok(
                "the verifier cannot tell the client's: see its --http-client-ip and --grpc-client-ip".to_owned()
            );
        };
        while let Some(half) = search.half() {
            let is_in = self.passes_from(&half.network, &mut line).await?;
            search = search.answered(&half, is_in);
        }
        let network = search.network();
        let is_steady = self.passes_from(&network, &mut line).await?;
        line.clear();
        let seen = network.strip_suffix("/32").unwrap_or(&network);
        Ok(match is_steady {
            true => format!("{seen} is what the verifier sees as the client"),
            false => "another one with each request: allow the whole network of your way out".to_owned(),
        })
    }

    async fn passes_from(&self, network: &str, line: &mut ProgressLine) -> Result<bool, Failure> {
        line.show(&format!("Is it in {network}?"));
        self.passes_with(json!({"allowedIPs": [network]})).await
    }

    /// Whether the canary is let in once it is declared so.
    async fn passes_with(&self, spec: Value) -> Result<bool, Failure> {
        let verdict = self.verdict_with(spec).await?;
        verdict.passes().ok_or_else(|| changed_its_mind(verdict))
    }

    async fn verdict_with(&self, spec: Value) -> Result<Verdict, Failure> {
        self.edit(spec).await?;
        self.ask().await
    }

    async fn edit(&self, spec: Value) -> Result<(), Failure> {
        let Self { session, name, .. } = self;
        let place = (&*session.cluster.namespace, &**name);
        let narrowed = |_: &ApiKey| Ok::<_, NotWritten>(json!({"spec": spec}));
        let changed = change::edit(&session.cluster, place, self.uid(), narrowed).await;
        let unknown = "Whether the canary was changed is not known.";
        let changed = changed.map_err(|error| session.not_written("patch", name, &error, unknown))?;
        self.wait(&changed.value, Change::Edited).await
    }

    async fn wait(&self, written: &ApiKey, change: Change) -> Result<(), Failure> {
        let Self { session, name, .. } = self;
        let wanted = Wanted::of(written, change);
        let quiet = (&session.cluster, session.terminal.quiet());
        let outcome = follow(quiet, session.attempt("get", name), self.asked.timeout, async |waited| {
            let key = session.cluster.find::<ApiKey>(&session.cluster.namespace, name).await?;
            Ok(in_force(key.as_ref(), &wanted, waited, &session.cluster.now()))
        });
        match outcome.await {
            Outcome::Done(_) => Ok(()),
            Outcome::Failed(why) => Err(Failure::failed(format!("The canary is of no use: {why}"))),
            Outcome::Late(late) => Err(Failure::late(format!("The canary is not known everywhere. {late}"))),
            Outcome::Interrupted => Err(Failure::interrupted("Interrupted. The canary goes.")),
        }
    }

    async fn ask(&self) -> Result<Verdict, Failure> {
        let header = if self.asked.bearer { "authorization" } else { "x-api-key" };
        ask(&self.client, &self.target, Some((header, &self.key, self.asked.bearer))).await
    }
}

fn changed_its_mind(verdict: Verdict) -> Failure {
    let remedy = verdict.remedy(WITH_THE_CANARY);
    Failure::failed(remedy.unwrap_or_else(|| format!("The route has changed its mind: {}.", verdict.words())))
}

fn told(session: &Session, label: &str, text: &str) -> Result<(), Failure> {
    session.terminal.print(&format!("{label:15} {}\n", escape(text)))
}

fn target(url: &str) -> Result<Uri, Failure> {
    let target: Option<Uri> = url.parse().ok();
    let is_whole =
        |target: &Uri| target.authority().is_some() && ["http", "https"].contains(&target.scheme_str().unwrap_or(""));
    target.filter(is_whole).ok_or_else(|| Failure::usage("Write the URL as http://HOST/PATH or https://HOST/PATH."))
}

/// Kube's client speaks HTTP and TLS to anybody.
fn client(target: &Uri) -> Result<Client, Failure> {
    let mut origin = target.clone().into_parts();
    origin.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
    let origin =
        Uri::from_parts(origin).map_err(|error| Failure::usage(format!("The URL cannot be used: {error}.")))?;
    let mut config = Config::new(origin);
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // `ask` counts, and says so.
    config.read_timeout = None;
    Client::try_from(config).map_err(|error| Failure::failed(format!("No connection can be made: {error}.")))
}

async fn ask(client: &Client, target: &Uri, key: Option<(&str, &Key, bool)>) -> Result<Verdict, Failure> {
    let path = target.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::get(path);
    if let Some((header, key, is_bearer)) = key {
        let scheme = if is_bearer { "Bearer " } else { "" };
        request = request.header(header, format!("{scheme}{}", key.reveal()));
    }
    let request =
        request.body(Body::empty()).map_err(|error| Failure::usage(format!("The URL cannot be used: {error}.")))?;
    let unreachable =
        |why: String| Failure::failed(format!("{} is unreachable: {why}.", target.host().unwrap_or("It")));
    let deadline = Instant::now() + PATIENCE;
    let answered =
        timeout_at(deadline, client.send(request)).await.map_err(|_| unreachable("no answer in 10 s".to_owned()))?;
    let answer = answered.map_err(|error| unreachable(why_no_answer(&error)))?;
    let status = answer.status().as_u16();
    let mut body = Vec::new();
    if status == 403 {
        // What has come by then is enough, or it is not the verifier's.
        let _ = timeout_at(deadline, read_into(&mut body, answer.into_body())).await;
    }
    Ok(Verdict::of(status, &body))
}

/// Reads as much of a body as a reason may need. Whoever answers for the route may never end.
async fn read_into(read: &mut Vec<u8>, mut body: Body) {
    while let Some(Ok(frame)) = body.frame().await {
        let data = frame.into_data().unwrap_or_default();
        let room = LONGEST_BODY.saturating_sub(read.len());
        read.extend(data.iter().take(room));
        if data.len() >= room {
            return;
        }
    }
}

fn why_no_answer(error: &kube::Error) -> String {
    let cause = innermost(error);
    let io = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    match io {
        Some(ErrorKind::TimedOut) => format!("no connection in {} s", CONNECT_TIMEOUT.as_secs()),
        _ => cause.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_more_of_an_answer_is_read_than_a_reason_needs() {
        for (octets, kept) in [(0, 0), (10, 10), (LONGEST_BODY, LONGEST_BODY), (LONGEST_BODY + 1, LONGEST_BODY)] {
            let mut read = Vec::new();
            read_into(&mut read, Body::from(vec![b'x'; octets])).await;
            assert_eq!(read.len(), kept);
        }
    }
}
