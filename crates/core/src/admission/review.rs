//! PURE. The wire format of a review: `AdmissionReview` of `admission.k8s.io/v1`.
//! <https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/>
//!
//! Only what is judged is taken in. Everything else is skipped without being stored, so that three million octets of
//! annotations cost no more than the octets; and a spec is only parsed once it is known to be of a sensible size.

use std::borrow::Cow;
use std::fmt;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Status, StatusCause, StatusDetails, Time};
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::Verdict;
use crate::address::printable;
use crate::api::{FINALIZER, GROUP};
use crate::declaration::Problem;

/// The version of reviews that is spoken.
const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";

/// Octets of the largest spec that is looked into. A good one has less than 64 KiB.
const MAX_SPEC: usize = 256 * 1024;

/// Problems that are repeated in the summary. All of them are in the causes.
const MAX_SUMMARISED: usize = 8;

/// What the API server asks.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request<'a> {
    /// Comes back in the answer.
    pub uid: String,
    /// What it is about.
    pub resource: Resource,
    /// `status`, or empty.
    #[serde(default)]
    pub sub_resource: String,
    /// What is done to it.
    pub operation: Operation,
    /// Empty where the API server is still to choose it.
    #[serde(default)]
    pub name: String,
    /// Where the object is.
    #[serde(default)]
    pub namespace: String,
    /// The name of whoever asks.
    #[serde(rename = "userInfo", deserialize_with = "user_name")]
    pub user: String,
    /// As it is to be stored.
    #[serde(borrow, default)]
    pub object: Option<Object<'a>>,
    /// As it was.
    #[serde(borrow, default)]
    pub old_object: Option<Object<'a>>,
}

/// A resource, by its group, version and plural name.
#[derive(Debug, Deserialize)]
pub struct Resource {
    /// `keywright.dev`, say.
    #[serde(default)]
    pub group: String,
    /// `v1alpha1`, say.
    pub version: String,
    /// `apikeys`, say.
    pub resource: String,
}

/// What is done to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Operation {
    /// It is new.
    Create,
    /// It exists.
    Update,
    /// It goes.
    Delete,
    /// Something is opened through it.
    Connect,
}

/// An object, as far as it is judged.
#[derive(Debug, Deserialize)]
pub struct Object<'a> {
    /// Who and what it is.
    pub metadata: Metadata,
    /// Not parsed yet.
    #[serde(borrow, default)]
    spec: Option<&'a RawValue>,
}

/// `metadata`, as far as it is judged.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Empty where `generateName` is given and `/mutate` is asked.
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    generate_name: String,
    #[serde(default)]
    creation_timestamp: Option<Time>,
    #[serde(default)]
    deletion_timestamp: Option<IgnoredAny>,
    /// `None` where there are none at all.
    #[serde(default)]
    pub annotations: Option<Annotations>,
    /// `None` where there are none at all.
    #[serde(default)]
    pub finalizers: Option<Finalizers>,
}

/// `metadata.annotations`, as far as they are judged.
#[derive(Debug, Deserialize)]
pub struct Annotations {
    #[serde(rename = "keywright.dev/created-by", default)]
    created_by: Option<String>,
}

/// `metadata.finalizers`.
#[derive(Debug)]
pub struct Finalizers {
    /// Whether [`FINALIZER`] is among them.
    pub hold_ours: bool,
}

/// One change of an object (RFC 6902).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PatchOperation {
    /// `add`, which replaces what is there, or `remove`.
    pub op: &'static str,
    /// Where: a JSON pointer.
    pub path: String,
    /// What to add.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
}

/// The octets are no review that can be answered: it has no uid that an answer could carry.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// Not JSON, or not of this shape.
    #[error("not an AdmissionReview: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// Something else, or another version.
    #[error("expected {KIND} of {API_VERSION}, not {0}")]
    OtherKind(String),
    /// A review without its question.
    #[error("the AdmissionReview holds no request")]
    NoRequest,
    /// The answer would belong to no question.
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
struct Question<'a> {
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
    /// In Base64, as every octet string in Kubernetes.
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<ByteString>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    warnings: &'a [String],
}

impl<'a> Request<'a> {
    /// Reads the body of a request to the webhook.
    ///
    /// # Errors
    /// If it is no review, or none that can be answered.
    pub fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        // First of all, as another kind is most likely of another shape too.
        let TypeMeta { api_version, kind } = serde_json::from_slice(body)?;
        if (&*api_version, &*kind) != (API_VERSION, KIND) {
            let shown = |text: &str| if text.is_empty() { "(none)".to_owned() } else { printable(text) };
            return Err(Malformed::OtherKind(format!("{} of {}", shown(&kind), shown(&api_version))));
        }
        let question: Question<'a> = serde_json::from_slice(body)?;
        let request = question.request.ok_or(Malformed::NoRequest)?;
        if request.uid.is_empty() { Err(Malformed::NoUid) } else { Ok(request) }
    }

    /// The name that people know the object by: `ci`, or `ci-*` where the API server is still to choose one.
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
    /// Never, as far as is known: everything in it can be written as JSON.
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

    /// As the API server says it of its own checks. kubectl prints the causes, one a line, and not the message; what
    /// shows only the message still has the first of them.
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
    /// Parses the spec; absent and null are the same.
    ///
    /// # Errors
    /// If it is too large to be one, or nested too deeply.
    pub(super) fn spec(&self) -> Result<Value, Problem> {
        let text = self.spec.map_or("null", RawValue::get);
        let problem = |rule| Problem { path: "spec".to_owned(), rule };
        if text.len() > MAX_SPEC {
            return Err(problem(format!("is {} octets long; at most {MAX_SPEC} are read", text.len())));
        }
        serde_json::from_str(text).map_err(|error| problem(format!("cannot be read: {error}")))
    }
}

impl Metadata {
    /// Whether the object is on its way out.
    pub fn is_being_deleted(&self) -> bool {
        self.deletion_timestamp.is_some()
    }

    /// When the object was made; `None` where that is still to come.
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
