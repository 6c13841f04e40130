//! PURE. What `/mutate` fills in: the owner, who created the object, and the finalizer that holds it until its keys are
//! revoked.
//!
//! | left out | at creation | in an update |
//! |---|---|---|
//! | `spec.owner` | the requesting user | the owner it had |
//! | annotation `created-by` | the requesting user, whatever was given | the value it had |
//! | finalizer | added | put back |

use serde_json::{Value, json};

use super::ApiKey;
use super::review::{Object, PatchOperation};
use crate::api::{CREATED_BY_ANNOTATION, FINALIZER};
use crate::declaration;

/// What was filled in.
#[derive(Default)]
pub(super) struct Completion {
    /// What makes the object that was sent the object that is judged.
    pub(super) patch: Vec<PatchOperation>,
}

impl Completion {
    /// Fills in what `new`, which was sent as `object`, leaves out. An `old` one makes it an update.
    pub(super) fn complete<'a>(
        &mut self,
        new: &mut ApiKey<'a>,
        object: &Object<'_>,
        old: Option<&ApiKey<'a>>,
        user: &'a str,
    ) {
        let owner = match old {
            None => declaration::is_owner(user).then_some(user),
            // Not the editor: who changes a line does not take over the responsibility.
            Some(old) => old.text("/owner"),
        };
        if let (false, Some(owner), Some(spec)) = (new.has_owner(), owner, new.spec.as_object_mut()) {
            spec.insert("owner".to_owned(), owner.into());
            self.add("/spec/owner".to_owned(), owner.into());
        }

        let created_by = match old {
            None => Some(user),
            Some(old) => new.created_by.or(old.created_by),
        };
        if let Some(created_by) = created_by.filter(|_| created_by != new.created_by) {
            new.created_by = Some(created_by);
            if object.metadata.annotations.is_some() {
                self.add(format!("/metadata/annotations/{}", escaped(CREATED_BY_ANNOTATION)), created_by.into());
            } else {
                self.add("/metadata/annotations".to_owned(), json!({ CREATED_BY_ANNOTATION: created_by }));
            }
        }

        match &object.metadata.finalizers {
            Some(finalizers) if finalizers.hold_ours => {}
            Some(_) => self.add("/metadata/finalizers/-".to_owned(), FINALIZER.into()),
            None => self.add("/metadata/finalizers".to_owned(), json!([FINALIZER])),
        }
    }

    fn add(&mut self, path: String, value: Value) {
        self.patch.push(PatchOperation { op: "add", path, value });
    }
}

/// A name as a part of a JSON pointer (RFC 6901, 3).
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}
