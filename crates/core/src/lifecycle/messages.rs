//! Why there is nothing to write, in a reason and a message: one value for conditions, Events, logs, and whoever explains
//! an ApiKey.

use jiff::{SignedDuration, Timestamp};

use super::enforcement::Pending;
use super::observed::Observed;
use super::record::{Cause, whole_seconds};
use super::source::SourceProblem;
use crate::api::{ROTATE_ANNOTATION, Reason, Retiring};
use crate::declaration::{Declaration, Delivery, Problem};

/// How soon a Secret that cannot be written is tried again; there is no watch on Secrets.
pub(super) const SECRET_RETRY: SignedDuration = SignedDuration::from_secs(30);

/// How long after an ApiKey's creation a Secret of its namesake may still be there: the garbage collector needs a moment.
const LEFTOVER_GRACE: SignedDuration = SignedDuration::from_secs(30);

/// `ExpiringSoon` from this long before the end.
const SOON: SignedDuration = SignedDuration::from_hours(7 * 24);

/// What stands in a message between a Secret's name and why it cannot be written.
const CANNOT_BE_WRITTEN: &str = " cannot be written: ";

/// What is said of a deletion that nobody had to acknowledge.
const NO_VERIFIER: &str = ", and no verifier runs";

/// A rotation that the annotation asks for.
const ASKED_FOR: &str = "the rotation that was asked for";

/// Why there is nothing to write for an ApiKey.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The reason of `Active` and `Ready`.
    pub reason: Reason,
    /// What it is about, and what to do, for people.
    pub message: String,
    /// When time alone will change the answer.
    pub wake: Option<Timestamp>,
}

impl Finding {
    fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: cut(message.into()), wake: None }
    }

    fn until(self, wake: impl Into<Option<Timestamp>>) -> Self {
        Self { wake: wake.into(), ..self }
    }

    /// The key in the Secret, or the submitted one, is the one that counts.
    pub(super) fn in_force(declaration: &Declaration, retiring: &[Retiring], now: Timestamp) -> Self {
        let finding = match declaration.expires_at {
            _ if declaration.suspended => {
                Self::new(Reason::Suspended, "spec.suspended is true: the key is refused until it is false again")
            }
            Some(expires_at) if now >= expires_at => Self::new(
                Reason::Expired,
                format!("the key is refused since {expires_at}; move the expiry into the future to let it in again"),
            ),
            _ if !retiring.is_empty() => {
                Self::new(Reason::Rotating, "the key is let in, and so are older ones until they retire")
            }
            _ => Self::new(Reason::Active, "the key is let in"),
        };
        finding.until(retiring.iter().map(|retiring| retiring.retires_at.0).min())
    }

    /// The same, of a key that is not let in, and that a newer one is to replace once it is.
    pub(super) fn with_a_rotation_to_come(self, cause: Cause) -> Self {
        let rotation = match cause {
            Cause::RotationScheduled => "the scheduled rotation",
            _ => ASKED_FOR,
        };
        self.and(&format!("{rotation} waits until then"))
    }

    /// The same, of a key that nothing here can replace.
    pub(super) fn with_a_rotation_in_vain(self) -> Self {
        self.and(&format!(
            "{ROTATE_ANNOTATION} cannot replace a key that was made elsewhere; declare the digest of another key in \
             another ApiKey"
        ))
    }

    /// The same, of a key that is to be replaced and cannot be.
    pub(super) fn with_an_obstructed_rotation(self, declaration: &Declaration, obstacle: &str, now: Timestamp) -> Self {
        self.obstructed_beside(declaration, obstacle, "the key in it is let in, and its rotation waits", now)
    }

    /// The same, of a key whose Secret is to hold something else beside it and cannot be written.
    pub(super) fn with_an_obstructed_update(self, declaration: &Declaration, obstacle: &str, now: Timestamp) -> Self {
        let fact = format!("what spec.secret.template declares waits; {}", self.message);
        self.obstructed_beside(declaration, obstacle, &fact, now)
    }

    /// The same reason, with what keeps the Secret from being written.
    fn obstructed_beside(self, declaration: &Declaration, obstacle: &str, fact: &str, now: Timestamp) -> Self {
        let message = format!("Secret {:?}{CANNOT_BE_WRITTEN}{obstacle}; {fact}", secret_name(declaration));
        let finding = Self { message: cut(message), ..self };
        finding.or_at(now.saturating_add(SECRET_RETRY).unwrap_or(now))
    }

    /// The same, while the last key is still let in.
    pub(super) fn while_let_in(self, last: &str) -> Self {
        self.and(&format!("{last} is let in until a new key takes its place"))
    }

    fn and(self, fact: &str) -> Self {
        Self { message: cut(format!("{}; {fact}", self.message)), ..self }
    }

    /// The same, which also ends at `time`.
    pub(super) fn or_at(self, time: Timestamp) -> Self {
        Self { wake: self.wake.into_iter().chain([time]).min(), ..self }
    }

    /// The spec cannot be acted on.
    pub(super) fn invalid(problems: &[Problem], is_asked_to_rotate: bool) -> Self {
        let problems = problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("; ");
        let finding = Self::new(Reason::Invalid, problems);
        if is_asked_to_rotate { finding.and(&format!("{ASKED_FOR} waits until the spec is valid")) } else { finding }
    }

    /// Another ApiKey owns the submitted key, or it was revoked. Whose it is, is nobody's business.
    pub(super) fn not_ours(reason: Reason, declaration: &Declaration) -> Self {
        let (what, remedy) = match &declaration.delivery {
            Delivery::Source { name, key } => {
                (format!("entry {key:?} of Secret {name:?} holds"), "write another key into it")
            }
            _ => (
                "spec.keyHash is the digest of".to_owned(),
                "generate another key, and declare its digest in another ApiKey",
            ),
        };
        let fact = match reason {
            Reason::DigestTaken => "a key that another ApiKey owns",
            _ => "a key that was revoked, and a revoked key is never accepted again",
        };
        Self::new(reason, format!("{what} {fact}; {remedy}"))
    }

    /// The source holds no key. It is looked at again soon, as there is no watch on Secrets.
    pub(super) fn source_unusable(
        declaration: &Declaration,
        problem: SourceProblem,
        retiring: &[Retiring],
        now: Timestamp,
    ) -> Self {
        let Delivery::Source { name, key } = &declaration.delivery else {
            return Self::new(Reason::SourceUnusable, problem.to_string());
        };
        let place = match problem {
            SourceProblem::Missing | SourceProblem::Unlabelled => format!("Secret {name:?}"),
            SourceProblem::NoEntry | SourceProblem::Unfit(_) => format!("entry {key:?} of Secret {name:?}"),
        };
        let finding = Self::new(Reason::SourceUnusable, format!("{place} {problem}")).until_retired(retiring);
        finding.or_at(now.saturating_add(SECRET_RETRY).unwrap_or(now))
    }

    /// The same, while keys are still let in that the source held before.
    pub(super) fn until_retired(self, retiring: &[Retiring]) -> Self {
        let Some(first) = retiring.iter().map(|retiring| retiring.retires_at.0).min() else { return self };
        self.and("what it held before is let in until it retires").or_at(first)
    }

    /// Something else owns the Secret of that name.
    pub(super) fn name_taken(declaration: &Declaration, now: Timestamp) -> Self {
        let message = format!(
            "Secret {:?} exists and does not belong to this ApiKey; it is left alone. Remove or rename it, or choose another \
             name in spec.secret.name of a new ApiKey",
            secret_name(declaration)
        );
        Self::new(Reason::SecretNameTaken, message).until(now.saturating_add(SECRET_RETRY).ok())
    }

    /// The Secret of an earlier ApiKey of this name is still there. It is waited for, and is a person's business only once
    /// the garbage collector has had its time.
    pub(super) fn leftover(created: Timestamp, declaration: &Declaration, now: Timestamp) -> Self {
        let age = now.duration_since(created);
        if !(SignedDuration::ZERO..LEFTOVER_GRACE).contains(&age) {
            return Self::name_taken(declaration, now);
        }
        let name = secret_name(declaration);
        // 1, 3, 7, 15 and 30 s after the creation.
        let looks = (1..5).map(|power| SignedDuration::from_secs((1 << power) - 1)).chain([LEFTOVER_GRACE]);
        let next = looks.filter(|look| *look > age).min().and_then(|look| created.checked_add(look).ok());
        let message =
            format!("waiting for the garbage collector to remove Secret {name:?} of an earlier ApiKey of this name");
        Self::new(Reason::Issuing, message).until(next)
    }

    /// Another controller has announced a key and may be about to hand it out.
    pub(super) fn issuing(until: Timestamp) -> Self {
        Self::new(Reason::Issuing, "waiting: another controller may be issuing the key").until(until)
    }

    /// There is no place to hand a key out in.
    pub(super) fn obstructed(declaration: &Declaration, obstacle: &str, now: Timestamp) -> Self {
        let message = format!("Secret {:?}{CANNOT_BE_WRITTEN}{obstacle}", secret_name(declaration));
        Self::new(Reason::Issuing, message).until(now.saturating_add(SECRET_RETRY).ok())
    }

    /// A key has to be made again, too soon after the last one.
    pub(super) fn over_budget(until: Timestamp) -> Self {
        let message = format!("the Secret or the record was changed again; the next key is issued at {until}");
        Self::new(Reason::MintBudget, message).until(until)
    }

    /// Every key is revoked, and finalizers of others hold the deletion up.
    pub(super) fn revoking(others: &[String], is_without_verifiers: bool, is_asked_to_rotate: bool) -> Self {
        let whom = if is_without_verifiers { NO_VERIFIER } else { "" };
        let message = format!(
            "all keys are revoked{whom}; the ApiKey goes once others have removed their finalizers: {}",
            others.join(", ")
        );
        Self::new(Reason::Revoking, message).without_rotation(is_asked_to_rotate)
    }

    /// Every key is revoked, and a verifier may not know it yet.
    pub(super) fn unacknowledged(pending: &Pending, is_asked_to_rotate: bool) -> Self {
        let finding = Self::new(Reason::Revoking, format!("all keys are revoked; {}", pending.message()));
        finding.until(pending.wake()).without_rotation(is_asked_to_rotate)
    }

    fn without_rotation(self, is_asked_to_rotate: bool) -> Self {
        if is_asked_to_rotate { self.and(&format!("{ASKED_FOR} is not carried out")) } else { self }
    }

    /// The submitted key is declared, and a verifier may not know it yet.
    pub(super) fn unknown_to_verifiers(pending: &Pending) -> Self {
        Self::new(Reason::Issuing, pending.message()).until(pending.wake())
    }

    /// The same, while a verifier may decide by what was declared before.
    pub(super) fn with_older_rules(self, pending: &Pending) -> Self {
        let finding = self.and(&format!("this generation is not enforced everywhere: {}", pending.message()));
        match pending.wake() {
            Some(wake) => finding.or_at(wake),
            None => finding,
        }
    }

    /// The same, which also ends when the declared expiry draws near or comes.
    pub(super) fn or_expiry_of(self, observed: &Observed, now: Timestamp) -> Self {
        let declared = observed.declared.as_ref().ok().and_then(|declaration| declaration.expires_at);
        let expiry = declared.map(|expires_at| [soon(observed.created, expires_at), expires_at]);
        let wakes = expiry.into_iter().flatten().chain(self.wake).filter(|wake| *wake > now);
        Self { wake: wakes.min(), ..self }
    }

    /// Whether the reason is about a key that is where it belongs.
    pub(super) fn is_in_force(&self) -> bool {
        matches!(self.reason, Reason::Active | Reason::Rotating | Reason::Suspended | Reason::Expired)
    }

    /// Whether the ApiKey's digest is another one's, or revoked.
    pub fn owns_nothing(&self) -> bool {
        matches!(self.reason, Reason::DigestTaken | Reason::DigestRevoked)
    }
}

/// From when on the end is near: 7 days before it, or the last tenth of a shorter life.
pub(super) fn soon(created: Timestamp, expires_at: Timestamp) -> Timestamp {
    let life = expires_at.duration_since(created);
    let notice = if life < SOON { life / 10 } else { SOON };
    whole_seconds(expires_at.saturating_sub(notice).unwrap_or(expires_at))
}

/// Whether `message` says that no verifier runs.
pub(super) fn says_no_verifier(message: &str) -> bool {
    message.contains(NO_VERIFIER)
}

/// Why a Secret cannot be written, where `message` says so.
pub(super) fn obstacle_in(message: &str) -> Option<&str> {
    message.starts_with("Secret ").then(|| message.split_once(CANNOT_BE_WRITTEN))?.map(|(_, obstacle)| obstacle)
}

fn secret_name(declaration: &Declaration) -> &str {
    match &declaration.delivery {
        Delivery::Secret { name, .. } | Delivery::Source { name, .. } => name,
        Delivery::Submitted(_) => "",
    }
}

/// API conventions limit a condition's message to 32,768 octets.
fn cut(mut message: String) -> String {
    const LONGEST: usize = 4096;
    if message.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
        message.truncate(end);
        message.push_str(" ...");
    }
    message
}

/// How people recognise an older key.
pub(super) fn shown(old: &Retiring) -> &str {
    old.key_prefix.as_deref().unwrap_or("the older key")
}
