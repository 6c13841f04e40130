//! What `/mutate` fills in: the owner, who created the object, and the finalizer that holds it until its keys are
//! revoked.
//!
//! | field | at creation | in an update |
//! |---|---|---|
//! | `spec.owner`, left out | the requesting user | the owner it had |
//! | annotation `created-by`, whatever was given | the requesting user | what it was |
//! | finalizer, left out | added | put back |
//!
//! So an exported manifest can be applied again, by anybody.

use serde_json::{Value, json};

use super::review::{Object, PatchOperation};
use super::reviewed::ApiKey;
use crate::address::printable;
use crate::api::{CREATED_BY_ANNOTATION, FINALIZER};
use crate::words::Owner;

/// What was filled in.
#[derive(Default)]
pub(super) struct Completion {
    /// The changes to the object that was sent.
    pub(super) patch: Vec<PatchOperation>,
    /// What differs from what the user sent.
    pub(super) warnings: Vec<String>,
}

impl Completion {
    /// Fills in what `new`, sent as `object`, leaves out. With an `old` object, the request is an update.
    pub(super) fn complete<'a>(
        &mut self,
        new: &mut ApiKey<'a>,
        object: &Object<'_>,
        old: Option<&ApiKey<'a>>,
        user: &'a str,
    ) {
        let owner = match old {
            None => Owner::parse(user).map(Owner::as_str),
            // Not the editor: changing a line does not make a user the owner.
            Some(old) => old.text("/owner"),
        };
        if let (false, Some(owner), Some(spec)) = (new.has_owner(), owner, new.spec.as_object_mut()) {
            spec.insert("owner".to_owned(), owner.into());
            self.add("/spec/owner".to_owned(), owner.into());
            if old.is_none() && owner.starts_with("system:") {
                let who = match owner.starts_with("system:serviceaccount:") {
                    true => "the pipeline's ServiceAccount",
                    false => "the requesting user",
                };
                self.warnings.push(format!("spec.owner was filled in with {who} {owner}; name a person"));
            }
        }

        let created_by = old.map_or(Some(user), |old| old.created_by);
        self.put_back_created_by(new, object, created_by, old.is_some());

        match &object.metadata.finalizers {
            Some(finalizers) if finalizers.hold_ours => {}
            Some(_) => self.add("/metadata/finalizers/-".to_owned(), FINALIZER.into()),
            None => self.add("/metadata/finalizers".to_owned(), json!([FINALIZER])),
        }
    }

    fn put_back_created_by<'a>(
        &mut self,
        new: &mut ApiKey<'a>,
        object: &Object<'_>,
        created_by: Option<&'a str>,
        is_update: bool,
    ) {
        let given = std::mem::replace(&mut new.created_by, created_by);
        if given == created_by {
            return;
        }
        let path = format!("/metadata/annotations/{}", escaped(CREATED_BY_ANNOTATION));
        match created_by {
            None => self.patch.push(PatchOperation { op: "remove", path, value: None }),
            Some(created_by) if object.metadata.annotations.is_some() => self.add(path, created_by.into()),
            Some(created_by) => {
                self.add("/metadata/annotations".to_owned(), json!({ CREATED_BY_ANNOTATION: created_by }));
            }
        }
        if given.is_some() {
            let what = match (is_update, created_by) {
                (false, _) => "names the creator of the object: it was set to",
                (true, Some(_)) => "names the creator of the object: it was put back to",
                (true, None) => "was removed: the creator of this object is not known",
            };
            let shown = created_by.map(|user| format!(" \"{}\"", printable(user))).unwrap_or_default();
            self.warnings.push(format!("metadata.annotations[{CREATED_BY_ANNOTATION}] {what}{shown}"));
        }
    }

    fn add(&mut self, path: String, value: Value) {
        self.patch.push(PatchOperation { op: "add", path, value: Some(value) });
    }
}

/// A name, escaped as a part of a JSON pointer (RFC 6901, 3).
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}
