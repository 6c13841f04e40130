//! What to do next for one ApiKey: everything observed and the time go in, a [`Plan`] comes out.
//!
//! A plan holds at most one write. After it the world is observed again, so that "crashed after this write" and "came
//! this far" are the same input, and nothing has to remember how far it came.
//!
//! One thing cannot be observed: a key between its record and its Secret exists in memory alone ([`Observed::held`]).
//! When that memory is lost, the record is of a key that nobody holds; it is revoked and the next serial is issued.
//!
//! - `observed.rs`: what there is, and the facts that follow from it.
//! - `rotation.rs`: when a key is replaced on request (`rotate_request.rs`) or by schedule.
//! - `plan.rs`: the one next [`Write`], or why there is none: a [`Finding`] (`messages.rs`).
//! - `enforcement.rs`: whether the verifiers decide by what the records say.
//! - `record.rs`, `secret.rs`: the objects that are read and written. `source.rs`: the Secret that is only read.
//! - `status.rs`: the status that shows a finding. `events.rs`: what people are told when it changes.

mod enforcement;
mod events;
mod messages;
mod observed;
mod plan;
mod record;
mod rotate_request;
mod rotation;
mod secret;
mod source;
mod status;
pub mod tombstones;

pub use self::enforcement::{Awaited, Enforcement, Pending, Purpose, awaited_in};
pub use self::events::{Announcement, announcements, handed_out_early, revoked_for_good};
pub use self::messages::Finding;
pub use self::observed::{Claim, Held, Observed, Obstacle, Ownership, SecretAttempt};
pub use self::plan::{Finalizers, Plan, Removal, Write, plan, secret_to_probe};
pub use self::record::{Cause, NewKey, NewRecord, Record, RecordUpdate, RevocationReason};
pub use self::rotate_request::RotateRequest;
pub use self::rotation::MAX_OLDER_KEYS;
pub use self::secret::{SecretAnnotations, SecretContents, SecretDraft, SecretState, SecretUpdate};
pub use self::source::{SourceProblem, read_source};
pub use self::status::{annotations_due, render};

#[cfg(test)]
mod tests;
