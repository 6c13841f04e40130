//! What is remembered of each ApiKey from one pass to the next, by its uid. Losing it costs requests and nothing else: a
//! pass that has nothing to go by observes everything anew.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use keywright_core::api::Reason;
use keywright_core::key::Digest;
use keywright_core::lifecycle::{Claim, SecretAttempt};

/// How long a refusal to write a Secret is taken as the answer: a little less than the time after which a pass comes back
/// for another try.
const REFUSAL_PAUSE: Duration = Duration::from_secs(25);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Memory(Mutex<HashMap<String, Remembered>>);

/// What is remembered of one ApiKey.
#[derive(Clone, Debug, Default)]
struct Remembered {
    /// Failed passes in a row.
    failures: u32,
    rest: Option<Rest>,
    /// Something has happened since the pass under way began that no version tells of.
    is_disturbed: bool,
    /// The version of the Secret that was last tried to be made to say the right things of its key.
    marked: Option<String>,
    /// The last try to make the Secret hold what is declared, when, and what came of it.
    attempt: Option<(Attempted, Instant, SecretAttempt)>,
    /// Whose the digest is that this ApiKey claims and does not own, and until when that is taken as the answer.
    owner: Option<(Digest, Claim, Instant)>,
}

/// What a try to write a Secret is about: its version, and the generation of the ApiKey that declares what it is to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attempted {
    pub(super) secret: String,
    pub(super) generation: i64,
}

/// An ApiKey for which there was nothing left to do.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rest {
    /// What was observed.
    pub(super) versions: Versions,
    /// When it is to be observed again, whatever the watches say.
    pub(super) until: Instant,
    /// The reason of `Active`.
    pub(super) reason: Option<Reason>,
    /// When it expires.
    pub(super) expires_at: Option<Timestamp>,
    /// Its namespace.
    pub(super) namespace: String,
}

/// The resource versions of an ApiKey and of the newest of its records; 0 where there is no record. The versions of one
/// kind are integers that rise (KEP-5504).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Versions {
    pub(super) api_key: u64,
    pub(super) records: u64,
}

impl Versions {
    /// Whether a watch that has come to `self` tells nothing that `observed` did not know.
    fn are_known_to(self, observed: Self) -> bool {
        self.api_key <= observed.api_key && self.records <= observed.records
    }
}

impl Memory {
    /// How long an ApiKey can still be left alone at `now`, if the watches have come to `told`; `None` where that is no
    /// number.
    pub(super) fn rest(&self, uid: &str, told: Option<Versions>, now: Instant) -> Option<Duration> {
        let memory = self.lock();
        let rest = memory.get(uid)?.rest.as_ref()?;
        let is_known = told.is_some_and(|told| told.are_known_to(rest.versions));
        let left = rest.until.checked_duration_since(now).filter(|left| !left.is_zero());
        left.filter(|_| is_known)
    }

    /// Remembers that a pass begins, which will observe everything.
    pub(super) fn begin(&self, uid: &str) {
        self.lock().entry(uid.to_owned()).or_default().is_disturbed = false;
    }

    /// Remembers that there is nothing left to do, unless the ApiKey was disturbed since the pass began.
    pub(super) fn settle(&self, uid: &str, rest: Rest) {
        let mut memory = self.lock();
        let remembered = memory.entry(uid.to_owned()).or_default();
        remembered.rest = Some(rest).filter(|_| !remembered.is_disturbed);
        remembered.failures = 0;
    }

    /// Remembers that a pass did not come to its end: the next one observes everything.
    pub(super) fn unsettle(&self, uid: &str) {
        if let Some(remembered) = self.lock().get_mut(uid) {
            (remembered.rest, remembered.failures) = (None, 0);
        }
    }

    /// Remembers that something has happened which no version tells of: the next pass observes everything.
    pub(super) fn disturb(&self, uid: &str) {
        if let Some(remembered) = self.lock().get_mut(uid) {
            (remembered.rest, remembered.is_disturbed, remembered.owner) = (None, true, None);
        }
    }

    /// Who else was found to own this digest. It may have changed since: that only delays a claim, and never grants one.
    pub(super) fn owner(&self, uid: &str, digest: Digest, now: Instant) -> Option<Claim> {
        let memory = self.lock();
        let (known, claim, until) = memory.get(uid)?.owner.as_ref()?;
        (*known == digest && now < *until).then(|| claim.clone())
    }

    /// Remembers who else owns a digest.
    pub(super) fn note_owner(&self, uid: &str, digest: Digest, claim: Claim, until: Instant) {
        self.lock().entry(uid.to_owned()).or_default().owner = Some((digest, claim, until));
    }

    /// Remembers that a pass has failed, and answers how many had failed before it, in a row.
    pub(super) fn fail(&self, uid: &str) -> u32 {
        let mut memory = self.lock();
        let remembered = memory.entry(uid.to_owned()).or_default();
        remembered.rest = None;
        let before = remembered.failures;
        remembered.failures = before.saturating_add(1);
        before
    }

    /// Whether this version of the Secret was already tried to be made to say the right things of its key.
    pub(super) fn is_marked(&self, uid: &str, version: &str) -> bool {
        self.lock().get(uid).is_some_and(|remembered| remembered.marked.as_deref() == Some(version))
    }

    /// Remembers the version of the Secret that was tried, or that came of it.
    pub(super) fn mark(&self, uid: &str, version: &str) {
        self.lock().entry(uid.to_owned()).or_default().marked = Some(version.to_owned());
    }

    /// What came of the last try about this; nothing if it was refused so long ago that it is time for another one.
    pub(super) fn attempt(&self, uid: &str, what: &Attempted, now: Instant) -> SecretAttempt {
        match self.lock().get(uid).and_then(|remembered| remembered.attempt.as_ref()) {
            Some((_, at, SecretAttempt::Refused(_))) if now.duration_since(*at) >= REFUSAL_PAUSE => SecretAttempt::None,
            Some((last, _, outcome)) if last == what => outcome.clone(),
            _ => SecretAttempt::None,
        }
    }

    /// Remembers what came of a try.
    pub(super) fn note_attempt(&self, uid: &str, what: Attempted, outcome: &SecretAttempt, now: Instant) {
        self.lock().entry(uid.to_owned()).or_default().attempt = Some((what, now, outcome.clone()));
    }

    /// Remembers that no version tells anything any more: the next pass over each ApiKey observes everything.
    pub(super) fn disturb_all(&self) {
        for remembered in self.lock().values_mut() {
            (remembered.rest, remembered.is_disturbed, remembered.owner) = (None, true, None);
        }
    }

    /// Forgets an ApiKey that is gone.
    pub(super) fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    /// Goes through all ApiKeys for which there was nothing left to do.
    pub(super) fn visit(&self, visit: impl FnMut(&Rest)) {
        self.lock().values().filter_map(|remembered| remembered.rest.as_ref()).for_each(visit);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Remembered>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest(until: Instant) -> Rest {
        let versions = Versions { api_key: 7, records: 5 };
        let (reason, namespace) = (Some(Reason::Active), "team-a".into());
        Rest { versions, until, reason, expires_at: None, namespace }
    }

    #[test]
    fn an_apikey_is_left_alone_until_its_time_or_a_change() {
        let (memory, now) = (Memory::default(), Instant::now());
        let minute = Duration::from_secs(60);
        let left = |api_key, records, at| memory.rest("a", Some(Versions { api_key, records }), at);
        assert_eq!(left(1, 1, now), None, "nothing is known of it");
        memory.settle("a", rest(now + minute));
        assert_eq!(left(7, 5, now), Some(minute));
        assert_eq!(left(6, 0, now + minute / 2), Some(minute / 2), "a watch that is late");
        assert_eq!(left(8, 5, now), None, "the ApiKey has changed");
        assert_eq!(left(7, 6, now), None, "a record has changed");
        assert_eq!(left(7, 5, now + minute), None, "its time has come");
        assert_eq!(memory.rest("b", Some(Versions::default()), now), None);
        assert_eq!(memory.rest("a", None, now), None, "what is told is no number");
        memory.unsettle("a");
        assert_eq!(left(7, 5, now), None);
        memory.settle("a", rest(now + minute));
        memory.fail("a");
        assert_eq!(left(7, 5, now), None, "after a failure everything is observed");
        memory.settle("a", rest(now + minute));
        memory.forget("a");
        assert_eq!(left(7, 5, now), None);
    }

    #[test]
    fn what_happens_during_a_pass_is_not_forgotten_at_its_end() {
        let (memory, now) = (Memory::default(), Instant::now());
        let left = || memory.rest("a", Some(Versions::default()), now);
        let until = now + Duration::from_secs(60);
        memory.begin("a");
        memory.disturb("a");
        memory.settle("a", rest(until));
        assert_eq!(left(), None);
        memory.begin("a");
        memory.settle("a", rest(until));
        assert!(left().is_some());
        memory.disturb("a");
        assert_eq!(left(), None, "nor afterwards");
    }

    #[test]
    fn who_else_owns_a_digest_is_known_for_a_while_and_for_that_digest_alone() {
        let (memory, now) = (Memory::default(), Instant::now());
        let (digest, other) = (Digest::of(b"a"), Digest::of(b"b"));
        let claim = Claim { created: Timestamp::UNIX_EPOCH, uid: "owner".into(), serial: 1, is_revoked: false };
        let note = || memory.note_owner("a", digest, claim.clone(), now + Duration::from_secs(30));
        note();
        assert_eq!(memory.owner("a", digest, now), Some(claim.clone()));
        assert_eq!(memory.owner("a", other, now), None);
        assert_eq!(memory.owner("b", digest, now), None);
        assert_eq!(memory.owner("a", digest, now + Duration::from_secs(30)), None);
        memory.disturb("a");
        assert_eq!(memory.owner("a", digest, now), None, "somebody else's claim is gone, say");
        note();
        memory.disturb_all();
        assert_eq!(memory.owner("a", digest, now), None);
    }

    #[test]
    fn failures_in_a_row_are_counted() {
        let memory = Memory::default();
        assert_eq!([memory.fail("a"), memory.fail("a"), memory.fail("b"), memory.fail("a")], [0, 1, 0, 2]);
        memory.settle("a", rest(Instant::now()));
        assert_eq!(memory.fail("a"), 0);
        memory.unsettle("a");
        assert_eq!(memory.fail("a"), 0, "progress is no failure");
    }

    #[test]
    fn a_version_of_a_secret_is_tried_once() {
        let memory = Memory::default();
        assert!(!memory.is_marked("a", "1"));
        memory.mark("a", "1");
        assert!(memory.is_marked("a", "1") && !memory.is_marked("a", "2") && !memory.is_marked("b", "1"));
        memory.mark("a", "2");
        assert!(!memory.is_marked("a", "1") && memory.is_marked("a", "2"));
    }

    #[test]
    fn a_try_is_remembered_for_one_secret_and_one_generation_and_a_refusal_for_a_while() {
        let (memory, now) = (Memory::default(), Instant::now());
        let what = |secret: &str, generation| Attempted { secret: secret.into(), generation };
        let refused = SecretAttempt::Refused("frozen".into());
        assert_eq!(memory.attempt("a", &what("1", 1), now), SecretAttempt::None);
        memory.note_attempt("a", what("1", 1), &refused, now);
        assert_eq!(memory.attempt("a", &what("1", 1), now), refused);
        for other in [what("2", 1), what("1", 2)] {
            assert_eq!(memory.attempt("a", &other, now), SecretAttempt::None, "{other:?}");
        }
        assert_eq!(memory.attempt("b", &what("1", 1), now), SecretAttempt::None);
        assert_eq!(memory.attempt("a", &what("1", 1), now + REFUSAL_PAUSE), SecretAttempt::None, "tried again");
        memory.note_attempt("a", what("2", 1), &SecretAttempt::Taken, now);
        assert_eq!(memory.attempt("a", &what("2", 1), now + 100 * REFUSAL_PAUSE), SecretAttempt::Taken);
    }
}
