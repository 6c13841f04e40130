//! One pass over one ApiKey: observe, plan, write, until nothing is left to write; the status comes last, and only if it
//! changed. An ApiKey at rest that neither it nor its records have changed since costs no request until its time comes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::channel::mpsc::UnboundedSender;
use jiff::Timestamp;
use keywright_core::api::{ApiKey, ApiKeyStatus};
use keywright_core::lifecycle::{
    self, Announcement, Enforcement, Finding, Observed, Ownership, Plan, Purpose, SecretState, SecretUpdate, Write,
};
use kube::api::{ApiResource, DynamicObject};
use kube::runtime::controller::Action;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Resource, ResourceExt};
use rand::RngExt;
use tracing::{Instrument, debug, info, info_span, warn};

use super::apply::{Effect, HeldKey, apply, update_secret, write_status};
use super::cluster::Cluster;
use super::error::Error;
use super::events::Events;
use super::fairness::{Errand, Fairness};
use super::heads::Watched;
use super::index::RecordIndex;
use super::memory::{Attempted, Memory, Rest, Versions};
use super::observe::{Look, Observation, observe};
use super::obstacle::ask_obstacle;
use super::verifiers::{Answer, Verifiers};
use crate::clock;
use crate::telemetry::ControllerMetrics;

/// Writes after which other ApiKeys get their turn. Nothing is wrong with one that takes more.
const WRITES_PER_PASS: u32 = 64;

/// Writes that fail and are looked at again at once, in one pass.
const SECOND_LOOKS: u32 = 3;

/// How long it is remembered who else owns a digest, however often the ApiKey that claims it is edited: to ask makes the API
/// server go through all records.
const OWNERSHIP_PAUSE: Duration = Duration::from_secs(30);

/// When an ApiKey is looked at again, at the latest, whose namespace has all the passes that it may have.
const TURN: Duration = Duration::from_secs(20);

/// The first pause after a failed pass; it doubles up to [`LONGEST_PAUSE`].
pub(super) const SHORTEST_PAUSE: Duration = Duration::from_millis(200);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// All resyncs together cost at most this many reads a second; above it, they take longer.
const RESYNC_READS_PER_SECOND: u32 = 50;
const READS_PER_PASS: u32 = 4;

/// What a pass needs beside the name.
pub(super) struct Context {
    pub(super) cluster: Cluster,
    pub(super) index: Arc<RecordIndex>,
    pub(super) store: Store<Watched>,
    pub(super) memory: Arc<Memory>,
    pub(super) verifiers: Arc<Verifiers>,
    pub(super) fairness: Arc<Fairness>,
    /// Where other ApiKeys are woken that a pass has found something about.
    pub(super) waking: UnboundedSender<ObjectRef<Watched>>,
    pub(super) metrics: ControllerMetrics,
    pub(super) events: Events,
    /// At the latest after this time every ApiKey is observed again.
    pub(super) resync: Duration,
}

/// How a pass ends.
enum End {
    /// There is no such ApiKey, or it needs nothing more from us.
    Gone,
    /// Nothing is left to write.
    Rest { observation: Box<Observation>, finding: Finding },
    /// It is to go on, after others had their turn.
    Unfinished,
}

/// One pass over one ApiKey, if there is anything that a pass could find.
pub(super) async fn pass(api_key: Arc<Watched>, context: Arc<Context>) -> Result<Action, Error> {
    let (namespace, name) = (api_key.namespace().unwrap_or_default(), api_key.name_any());
    let uid = api_key.uid().unwrap_or_default();
    context.index.until_complete().await;
    let is_deleting = api_key.metadata.deletion_timestamp.is_some();
    let records = context.index.newest_version(&uid);
    let told = version(api_key.resource_version().as_deref()).zip(records);
    let told = told.map(|(api_key, records)| Versions { api_key, records });
    if let Some(left) = context.memory.rest(&uid, told, Instant::now()).filter(|_| !is_deleting) {
        return Ok(Action::requeue(left));
    }
    let errand = match is_deleting {
        true => Errand::Deletion,
        false if context.index.may_be_live(&uid) => Errand::Change,
        false => Errand::Issue,
    };
    let Some(_place) = context.fairness.enter((&namespace, &name), errand, Instant::now()) else {
        return Ok(Action::requeue(TURN.mul_f64(rand::rng().random_range(0.5..1.0))));
    };
    context.memory.begin(&uid);
    let started = Instant::now();
    let span = info_span!("pass", api_key = format!("{namespace}/{name}"));
    let done = reconcile(&context, &namespace, &name).instrument(span).await;
    context.metrics.observe_pass(started.elapsed(), done.as_ref().err().map(Error::kind));
    Ok(match done? {
        End::Gone => {
            context.memory.forget(&uid);
            context.verifiers.forget(&uid);
            Action::await_change()
        }
        End::Unfinished => {
            context.memory.unsettle(&uid);
            Action::requeue(Duration::ZERO)
        }
        End::Rest { observation, finding } => {
            if !matches!(observation.observed.enforcement, Enforcement::Pending(_)) {
                context.verifiers.forget(&uid);
            }
            let left = context.until(finding.wake);
            context.memory.settle(&observation.observed.reference.uid, rest(&observation, &finding, records, left));
            Action::requeue(left)
        }
    })
}

/// The pause doubles with every failure in a row, is spread so that many failures do not come back at once, and is never
/// shorter than what the API server asked for.
pub(super) fn pause_after_failure(api_key: Arc<Watched>, error: &Error, context: Arc<Context>) -> Action {
    let attempt = context.memory.fail(&api_key.uid().unwrap_or_default());
    let pause = SHORTEST_PAUSE.saturating_mul(1 << attempt.min(16)).min(LONGEST_PAUSE);
    let pause = pause.mul_f64(rand::rng().random_range(0.75..1.25)).max(error.retry_after().unwrap_or_default());
    let (namespace, name) = (api_key.namespace(), api_key.name_any());
    warn!(namespace, name, %error, attempt = attempt + 1, pause_ms = pause.as_millis(), "a pass failed");
    Action::requeue(pause)
}

async fn reconcile(context: &Context, namespace: &str, name: &str) -> Result<End, Error> {
    let started = clock::now();
    let mut held: Option<HeldKey> = None;
    let mut observation: Option<Observation> = None;
    let mut second_looks = 0;
    for _ in 0..WRITES_PER_PASS {
        let mut seen = match observation.take() {
            Some(seen) => seen,
            None => {
                let facts = held.as_ref().map(HeldKey::facts);
                let look = if second_looks == 0 { Look::First } else { Look::Again };
                match observe(&context.cluster, &context.index, (namespace, name), facts, look).await? {
                    Some(seen) => seen,
                    None => return Ok(End::Gone),
                }
            }
        };
        context.settle_ownership(&mut seen).await?;
        context.recall_secret_attempt(&mut seen);
        ask_obstacle(&context.cluster, &mut seen).await?;
        context.wake_losers(&mut seen);
        let done = match lifecycle::plan(&seen.observed, clock::now()) {
            Plan::Done => return Ok(End::Gone),
            Plan::AskVerifiers(purpose) => {
                context.ask_verifiers(&mut seen, purpose).await;
                Ok(())
            }
            Plan::Rest(finding) => {
                let status = lifecycle::render(&seen.observed, &finding, clock::now());
                match update_status(context, &mut seen, &status).await {
                    Ok(()) if seen.is_outdated => return Ok(End::Unfinished),
                    Ok(()) => {
                        if let Some(corrected) = lifecycle::annotations_due(&seen.observed, &finding) {
                            correct_annotations(context, &seen, corrected).await;
                        }
                        return Ok(End::Rest { observation: Box::new(seen), finding });
                    }
                    Err(error) => Err(error),
                }
            }
            Plan::Write(write) => carry_out(context, &mut seen, write, &mut held, started).await,
        };
        match done {
            Ok(()) => observation = Some(seen).filter(|seen| !seen.is_outdated),
            Err(error) if second_looks < SECOND_LOOKS && error.is_worth_another_look() => {
                debug!(%error, "looking again");
                second_looks += 1;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(End::Unfinished)
}

async fn carry_out(
    context: &Context,
    observation: &mut Observation,
    write: Write,
    held: &mut Option<HeldKey>,
    started: Timestamp,
) -> Result<(), Error> {
    debug!(write = write.as_str(), "writing");
    match apply(&context.cluster, observation, write, held).await? {
        Effect::None => {}
        Effect::KeyDelivered => {
            // From what the key was made for: the ApiKey, or the pass that found a key missing.
            let observed = &observation.observed;
            let since = if observed.is_new() { observed.created } else { started };
            context.metrics.observe_issue(clock::now().duration_since(since));
        }
        Effect::SecretAttempted => {
            let observed = &observation.observed;
            if let Some(what) = attempted(observed) {
                context.memory.note_attempt(&observed.reference.uid, what, &observed.secret_attempt, Instant::now());
            }
        }
        Effect::KeysRevoked => {
            let announcement = lifecycle::revoked_for_good(&observation.observed.enforcement);
            publish(context, &observation.object, announcement).await;
        }
        Effect::StatusChanged(before) => {
            publish_changes(context, observation, &before, &observation.observed.status).await;
        }
    }
    Ok(())
}

/// Writes the status where it differs, and tells people what changed.
async fn update_status(context: &Context, observation: &mut Observation, status: &ApiKeyStatus) -> Result<(), Error> {
    if *status == observation.observed.status {
        return Ok(());
    }
    let before = observation.observed.status.clone();
    write_status(&context.cluster, observation, status).await?;
    publish_changes(context, observation, &before, status).await;
    Ok(())
}

async fn publish_changes(context: &Context, observation: &Observation, before: &ApiKeyStatus, after: &ApiKeyStatus) {
    let current = observation.observed.records.iter().find(|record| Some(record.spec.serial) == after.serial);
    for announcement in lifecycle::announcements(before, after, current.map(|record| record.cause)) {
        let api_key = format!("{}/{}", observation.observed.reference.namespace, observation.observed.reference.name);
        info!(api_key, reason = announcement.reason, note = announcement.note, "changed");
        publish(context, &observation.object, announcement).await;
    }
}

/// Has the Secret say the right things of its key, once for each version of the Secret. Whoever wants it otherwise is not
/// fought, and whatever refuses it holds nothing up.
async fn correct_annotations(context: &Context, observation: &Observation, corrected: SecretUpdate) {
    let reference = &observation.observed.reference;
    let Some(seen) = corrected.metadata.resource_version.clone() else { return };
    if context.memory.is_marked(&reference.uid, &seen) {
        return;
    }
    context.memory.mark(&reference.uid, &seen);
    match update_secret(&context.cluster, &reference.namespace, &corrected).await {
        Ok(stored) => {
            context.memory.mark(&reference.uid, stored.metadata.resource_version.as_deref().unwrap_or(&seen));
        }
        Err(error) => {
            // Not in its own words, which may repeat the key.
            let (kind, code) = (error.kind(), error.code());
            warn!(
                kind,
                code,
                "cannot update the Secret's labels and annotations; its key is not affected. Check policies on Secrets"
            )
        }
    }
}

/// Events are for people and best effort: they are refused in a namespace that is going, for one.
async fn publish(context: &Context, object: &DynamicObject, announcement: Announcement) {
    let regarding = object.object_ref(&ApiResource::erase::<ApiKey>(&()));
    let reason = announcement.reason;
    let published = context.events.publish(regarding, announcement, clock::now()).await;
    if let Err(error) = published {
        debug!(%error, reason, "the event was not taken");
    }
}

/// What to remember of an ApiKey for which there was nothing left to do. `seen` is how far the watch of records had come
/// when the pass began: everything up to there is known.
fn rest(observation: &Observation, finding: &Finding, seen: Option<u64>, left: Duration) -> Rest {
    let records = &observation.observed.records;
    let records = records.iter().filter_map(|record| version(record.metadata.resource_version.as_deref()));
    Rest {
        versions: Versions {
            api_key: version(Some(&observation.observed.resource_version)).unwrap_or_default(),
            records: records.chain(seen).max().unwrap_or_default(),
        },
        until: Instant::now() + left,
        reason: Some(finding.reason.clone()),
        expires_at: observation.observed.status.expires_at.as_ref().map(|time| time.0),
        namespace: observation.observed.reference.namespace.clone(),
    }
}

/// What a try to write the Secret is about.
fn attempted(observed: &Observed) -> Option<Attempted> {
    let SecretState::Ours { metadata, .. } = &observed.secret else { return None };
    Some(Attempted { secret: metadata.resource_version.clone()?, generation: observed.generation })
}

/// A resource version as a number.
fn version(text: Option<&str>) -> Option<u64> {
    text?.parse().ok()
}

impl Context {
    /// Has the observation say who owns the digest that the ApiKey claims. Where it is somebody else, the answer of a while
    /// ago will do for a claim that is still to be made.
    async fn settle_ownership(&self, observation: &mut Observation) -> Result<(), Error> {
        let Some(digest) = observation.contested_digest(&self.index) else { return Ok(()) };
        let (uid, now) = (observation.observed.reference.uid.clone(), Instant::now());
        if observation.own_record(digest).is_none()
            && let Some(claim) = self.memory.owner(&uid, digest, now)
        {
            observation.observed.ownership = Ownership::Owned(claim);
            return Ok(());
        }
        observation.ask_ownership(&self.cluster, digest).await?;
        if let Ownership::Owned(claim) = &observation.observed.ownership
            && (claim.is_revoked || claim.uid != uid)
        {
            self.memory.note_owner(&uid, digest, claim.clone(), now + OWNERSHIP_PAUSE);
        }
        Ok(())
    }

    /// Has the observation say whether the verifiers decide by what the records say.
    async fn ask_verifiers(&self, observation: &mut Observation, purpose: Purpose) {
        let Answer { enforcement, missed } = self.verifiers.ask(&observation.observed, purpose).await;
        if let (Purpose::Delivery, Some(missed), Enforcement::Pending(pending), Some(held)) =
            (purpose, missed, &enforcement, &observation.observed.held)
        {
            let announcement = lifecycle::handed_out_early(held.serial, &missed, pending);
            warn!(serial = held.serial, note = announcement.note, "a new key was not acknowledged");
            publish(self, &observation.object, announcement).await;
        }
        observation.observed.enforcement = enforcement;
    }

    /// Has those look again who have a younger claim to this ApiKey's digest: they may have been told that it is theirs.
    fn wake_losers(&self, observation: &mut Observation) {
        for loser in observation.losers.drain(..) {
            self.memory.disturb(&loser.uid);
            // The receiver is gone only while the controller stops.
            let _ = self.waking.unbounded_send(ObjectRef::new(&loser.name).within(&loser.namespace));
        }
    }

    /// Has an observation show what came of the last try to write the Secret.
    fn recall_secret_attempt(&self, observation: &mut Observation) {
        let observed = &mut observation.observed;
        if let Some(what) = attempted(observed) {
            observed.secret_attempt = self.memory.attempt(&observed.reference.uid, &what, Instant::now());
        }
    }

    /// How long until the next pass: at `wake`, or at the resync, whichever is first. Timers stand still while a machine
    /// sleeps, so that a distant `wake` is reached in several steps, each of which reads the clock anew.
    fn until(&self, wake: Option<Timestamp>) -> Duration {
        let objects = u32::try_from(self.store.len()).unwrap_or(u32::MAX);
        let reads = objects.saturating_mul(READS_PER_PASS);
        let longest = self.resync.max(Duration::from_secs((reads / RESYNC_READS_PER_SECOND).into()));
        let spread = longest.mul_f64(rand::rng().random_range(0.5..1.0));
        let awaited = wake.map(|wake| Duration::try_from(wake.duration_since(clock::now())).unwrap_or_default());
        // A moment later, as a status in whole seconds must not be derived just before its second begins.
        awaited.map_or(spread, |awaited| (awaited + Duration::from_millis(20)).min(spread))
    }
}
