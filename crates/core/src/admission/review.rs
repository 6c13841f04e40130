//! The wire format of a review: `AdmissionReview` of `admission.k8s.io/v1`.
//! <https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/>
//!
//! Only the fields that are checked are kept. Others are skipped, so that 3 MB of annotations cost no memory besides the
//! body. A spec is parsed only if it is not too large.

use std::borrow::Cow;
use std::fmt;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Status, StatusCause, StatusDetails, Time};
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::address::printable;
use crate::api::{FINALIZER, GROUP};
use crate::declaration::Problem;

/// The one version of reviews that is read and written.
const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";

/// Bytes of the largest spec that is parsed. A valid one has less, unless most of a large template is beyond ASCII.
const MAX_SPEC: usize = 256 * 1024;

/// Problems in the summary of a refusal. All of them are in the causes.
const MAX_SUMMARISED: usize = 8;

/// The answer to a review.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// The request may go on.
    Allowed {
        /// What to change in the object. Empty for [`crate::admission::Phase::Validating`].
        patch: Vec<PatchOperation>,
        /// For the person who asks, each with the object's name. At most 256 bytes: the API server cuts longer ones.
        warnings: Vec<String>,
    },
    /// The object is wrong: all its problems.
    Invalid(Vec<Problem>),
    /// This webhook does not handle such a review: the webhook configuration is wrong.
    Misdirected(String),
}

/// The request of a review.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request<'a> {
    /// The review's uid, repeated in the answer.
    pub uid: String,
    /// The resource of the object.
    pub resource: Resource,
    /// The subresource, such as `status`. Empty for the object itself.
    #[serde(default)]
    pub sub_resource: String,
    /// The operation on the object.
    pub operation: Operation,
    /// The object's name. Empty if the API server is still to generate it.
    #[serde(default)]
    pub name: String,
    /// The object's namespace.
    #[serde(default)]
    pub namespace: String,
    /// The name of the requesting user.
    #[serde(rename = "userInfo", deserialize_with = "user_name")]
    pub user: String,
    /// The object as it is to be stored.
    #[serde(borrow, default)]
    pub object: Option<Object<'a>>,
    /// The object before an update or a deletion.
    #[serde(borrow, default)]
    pub old_object: Option<Object<'a>>,
}

/// A resource, by its group, version and plural name.
#[derive(Debug, Deserialize)]
pub struct Resource {
    /// The API group, such as `keywright.dev`.
    #[serde(default)]
    pub group: String,
    /// The version, such as `v1alpha1`.
    pub version: String,
    /// The plural name, such as `apikeys`.
    pub resource: String,
}

/// The operation on an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Operation {
    /// `CREATE`: the object is new.
    Create,
    /// `UPDATE`: the object exists.
    Update,
    /// `DELETE`: the object is removed.
    Delete,
    /// `CONNECT`: a connection through the object, which no ApiKey has.
    Connect,
}

/// The parts of an object that are checked.
#[derive(Debug, Deserialize)]
pub struct Object<'a> {
    /// The object's metadata.
    pub metadata: Metadata,
    /// The spec, not parsed yet.
    #[serde(borrow, default)]
    spec: Option<&'a RawValue>,
}

/// The parts of `metadata` that are checked.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// The object's name. Empty at `/mutate` if `generateName` is set.
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    generate_name: String,
    #[serde(default)]
    creation_timestamp: Option<Time>,
    #[serde(default)]
    deletion_timestamp: Option<IgnoredAny>,
    /// The annotations; `None` if the object has none.
    #[serde(default)]
    pub annotations: Option<Annotations>,
    /// The finalizers; `None` if the object has none.
    #[serde(default)]
    pub finalizers: Option<Finalizers>,
}

/// The parts of `metadata.annotations` that are checked.
#[derive(Debug, Deserialize)]
pub struct Annotations {
    #[serde(rename = "keywright.dev/created-by", default)]
    created_by: Option<String>,
}

/// The part of `metadata.finalizers` that is checked.
#[derive(Debug)]
pub struct Finalizers {
    /// Whether [`FINALIZER`] is among them.
    pub hold_ours: bool,
}

/// One change of an object (RFC 6902).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PatchOperation {
    /// `add`, which also replaces, or `remove`.
    pub op: &'static str,
    /// The field to change: a JSON pointer (RFC 6901).
    pub path: String,
    /// The value to add.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
}

/// Why a body is not a review that can be answered: an answer needs the review's uid.
#[derive(Debug, thiserror::Error)]
pub enum MalformedReview {
    /// Not JSON, or not an AdmissionReview.
    #[error("not an AdmissionReview: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// Another kind, or another version.
    #[error("expected {KIND} of {API_VERSION}, not {0}")]
    OtherKind(String),
    /// A review without `request`.
    #[error("the AdmissionReview holds no request")]
    NoRequest,
    /// A review without `request.uid`.
    #[error("request.uid is empty")]
    NoUid,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", expecting = "an AdmissionReview")]
struct TypeMeta {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
}

#[derive(Deserialize)]
struct RawReview<'a> {
    #[serde(borrow, default)]
    request: Option<Request<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    api_version: &'static str,
    kind: &'static str,
    response: Response<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    /// In Base64, as all binary data in Kubernetes.
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<ByteString>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    warnings: &'a [String],
}

impl<'a> Request<'a> {
    /// Reads the body of a request to the webhook.
    ///
    /// # Errors
    /// If it is not a review, or cannot be answered.
    pub fn read(body: &'a [u8]) -> Result<Self, MalformedReview> {
        // The kind first: an object of another kind most likely has another shape too.
        let TypeMeta { api_version, kind } = serde_json::from_slice(body)?;
        if (&*api_version, &*kind) != (API_VERSION, KIND) {
            let shown = |text: &str| if text.is_empty() { "(none)".to_owned() } else { printable(text) };
            return Err(MalformedReview::OtherKind(format!("{} of {}", shown(&kind), shown(&api_version))));
        }
        let review: RawReview<'a> = serde_json::from_slice(body)?;
        let request = review.request.ok_or(MalformedReview::NoRequest)?;
        if request.uid.is_empty() { Err(MalformedReview::NoUid) } else { Ok(request) }
    }

    /// The object's name for people: `ci`, or `ci-*` if the API server is still to generate it.
    pub fn object_name(&self) -> Cow<'_, str> {
        match &self.object {
            Some(Object { metadata, .. }) if metadata.name.is_empty() && !metadata.generate_name.is_empty() => {
                format!("{}*", metadata.generate_name).into()
            }
            Some(Object { metadata, .. }) if !metadata.name.is_empty() => (&*metadata.name).into(),
            _ => (&*self.name).into(),
        }
    }

    /// The body of the answer.
    ///
    /// # Errors
    /// Does not happen: everything in the answer can be written as JSON.
    pub fn answer(&self, verdict: &Verdict) -> serde_json::Result<Vec<u8>> {
        let mut response = Response {
            uid: &self.uid,
            allowed: matches!(verdict, Verdict::Allowed { .. }),
            status: None,
            patch_type: None,
            patch: None,
            warnings: &[],
        };
        match verdict {
            Verdict::Allowed { patch, warnings } => {
                response.warnings = warnings;
                if !patch.is_empty() {
                    response.patch_type = Some("JSONPatch");
                    response.patch = Some(ByteString(serde_json::to_vec(patch)?));
                }
            }
            Verdict::Invalid(problems) => response.status = Some(self.invalid(problems)),
            Verdict::Misdirected(message) => {
                response.status = Some(Status {
                    status: Some("Failure".to_owned()),
                    reason: Some("BadRequest".to_owned()),
                    code: Some(400),
                    message: Some(message.clone()),
                    ..Status::default()
                });
            }
        }
        serde_json::to_vec(&Answer { api_version: API_VERSION, kind: KIND, response })
    }

    /// A refusal in the form of the API server's own. kubectl prints the causes, one per line. Other clients show the
    /// message, which has the first of them.
    fn invalid(&self, problems: &[Problem]) -> Status {
        let name = self.object_name();
        let summary: Vec<String> = problems.iter().take(MAX_SUMMARISED).map(Problem::to_string).collect();
        let more = match problems.len().checked_sub(MAX_SUMMARISED) {
            Some(more @ 1..) => format!("; and {more} more"),
            _ => String::new(),
        };
        let causes = problems.iter().map(|problem| StatusCause {
            field: Some(problem.path.clone()),
            message: Some(problem.rule.clone()),
            reason: Some("FieldValueInvalid".to_owned()),
        });
        Status {
            status: Some("Failure".to_owned()),
            reason: Some("Invalid".to_owned()),
            code: Some(422),
            message: Some(format!("ApiKey.{GROUP} \"{name}\" is invalid: {}{more}", summary.join("; "))),
            details: Some(StatusDetails {
                group: Some(GROUP.to_owned()),
                kind: Some("ApiKey".to_owned()),
                name: Some(name.into_owned()),
                causes: Some(causes.collect()),
                ..StatusDetails::default()
            }),
            ..Status::default()
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, version, resource } = self;
        if group.is_empty() { write!(f, "{resource}.{version}") } else { write!(f, "{resource}.{version}.{group}") }
    }
}

impl Object<'_> {
    /// Parses the spec. An absent spec is null.
    ///
    /// # Errors
    /// If it is too large or nested too deeply.
    pub(super) fn spec(&self) -> Result<Value, Problem> {
        let text = self.spec.map_or("null", RawValue::get);
        let problem = |rule| Problem { path: "spec".to_owned(), rule };
        if text.len() > MAX_SPEC {
            return Err(problem(format!("is {} bytes long; at most {MAX_SPEC} are read", text.len())));
        }
        serde_json::from_str(text).map_err(|error| problem(format!("cannot be read: {error}")))
    }
}

impl Metadata {
    /// Whether the object is being deleted.
    pub fn is_being_deleted(&self) -> bool {
        self.deletion_timestamp.is_some()
    }

    /// When the object was created; `None` before it is stored.
    pub fn created(&self) -> Option<Timestamp> {
        self.creation_timestamp.as_ref().map(|time| time.0)
    }

    /// The annotation [`crate::api::CREATED_BY_ANNOTATION`].
    pub fn created_by(&self) -> Option<&str> {
        self.annotations.as_ref().and_then(|annotations| annotations.created_by.as_deref())
    }
}

impl<'de> Deserialize<'de> for Finalizers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = Finalizers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of finalizers")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<Finalizers, A::Error> {
                let mut hold_ours = false;
                while let Some(name) = names.next_element::<Cow<'de, str>>()? {
                    hold_ours |= name == FINALIZER;
                }
                Ok(Finalizers { hold_ours })
            }
        }
        deserializer.deserialize_seq(Names)
    }
}

fn user_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    struct UserInfo {
        #[serde(default)]
        username: String,
    }
    UserInfo::deserialize(deserializer).map(|user| user.username)
}
