//! What went wrong, in a sentence, and the exit code that tells scripts.

use kube::core::Status;

use crate::view::escape::escape;

/// Why a command did not do what it was asked for. `Display` is for people, and safe for a terminal.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    code: Code,
    message: String,
}

/// The exit codes, as the documentation promises them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// It failed, or the person declined.
    Failed = 1,
    /// The command line is wrong, or the command was refused before it changed anything.
    Usage = 2,
    /// It was asked for, and is not in force by `--timeout`.
    Late = 3,
    /// Somebody pressed Ctrl-C.
    Interrupted = 130,
}

/// What was tried when the API server refused.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// `get`, `create` and so on.
    pub verb: &'a str,
    /// The resource's plural.
    pub resource: &'a str,
    /// The object's name; empty for a list.
    pub name: &'a str,
    /// The namespace; empty for all.
    pub namespace: &'a str,
    /// How people call the cluster.
    pub cluster: &'a str,
}

/// Why a request to the API server brought nothing.
#[derive(Debug)]
pub enum ApiError {
    /// The API server has answered: no.
    Refused(Box<Status>),
    /// The API server does not know the resource: Keywright is not installed.
    NotInstalled,
    /// There was no answer. Whether the request had an effect is unknown.
    Unreachable(String),
    /// The answer could not be read.
    Unreadable(String),
}

impl Failure {
    /// A failure with this code. What comes from objects in `message` is made safe for a terminal.
    pub fn new(code: Code, message: impl AsRef<str>) -> Self {
        let lines: Vec<_> = message.as_ref().lines().map(escape).collect();
        Self { code, message: lines.join("\n") }
    }

    /// The command line is wrong, or the command was refused before it changed anything.
    pub fn usage(message: impl AsRef<str>) -> Self {
        Self::new(Code::Usage, message)
    }

    /// It failed, or the person declined.
    pub fn failed(message: impl AsRef<str>) -> Self {
        Self::new(Code::Failed, message)
    }

    /// It was asked for, and is not in force by `--timeout`.
    pub fn late(message: impl AsRef<str>) -> Self {
        Self::new(Code::Late, message)
    }

    /// Somebody pressed Ctrl-C.
    pub fn interrupted(message: impl AsRef<str>) -> Self {
        Self::new(Code::Interrupted, message)
    }

    /// The same with more to say. What comes from objects in `more` is made safe for a terminal.
    #[must_use]
    pub fn adding(self, more: impl AsRef<str>) -> Self {
        let message = format!("{} {}", self.message, escape(more.as_ref())).trim_end().to_owned();
        Self { code: self.code, message }
    }

    /// The exit code.
    pub fn code(&self) -> Code {
        self.code
    }
}

impl Code {
    /// The number.
    pub fn number(self) -> u8 {
        self as u8
    }
}

impl Attempt<'_> {
    /// One sentence about why this brought nothing, and what to do.
    pub fn failed(&self, error: &ApiError) -> Failure {
        Failure::failed(self.sentence(error))
    }

    /// The sentence of [`Attempt::failed`].
    pub fn sentence(&self, error: &ApiError) -> String {
        let Self { resource, name, cluster, .. } = self;
        match error {
            ApiError::NotInstalled => format!("Keywright is not installed on {cluster}."),
            ApiError::Unreachable(why) => format!("{cluster} is unreachable: {why}."),
            ApiError::Unreadable(why) => format!("{cluster} has answered what cannot be read: {why}."),
            ApiError::Refused(status) if status.code == 401 => format!("{cluster} does not know you: log in again."),
            ApiError::Refused(status) if status.code == 429 => format!("{cluster} is busy: try again later."),
            ApiError::Refused(status) if (300..=399).contains(&status.code) => {
                format!("{cluster} answers with a redirect: name the API server itself in the kubeconfig.")
            }
            ApiError::Refused(status) if is_about_rights(status) => self.forbidden(status),
            ApiError::Refused(status) if status.code == 404 => {
                format!("There is no {} {name} {}.", singular(resource), self.place())
            }
            ApiError::Refused(status) if status.reason == "AlreadyExists" => {
                format!("There is already {} {name} {}.", with_article(resource), self.place())
            }
            ApiError::Refused(status) if status.message.is_empty() => {
                format!("{cluster} refuses it ({} {}).", status.code, status.reason)
            }
            ApiError::Refused(status) => format!("{cluster} refuses it: {}", status.message),
        }
    }

    fn forbidden(&self, status: &Status) -> String {
        let Self { verb, resource, .. } = self;
        let who = user_in(&status.message).unwrap_or("You");
        let remedy = match (*resource, *verb) {
            ("apikeys", "get" | "list" | "watch") => "keywright-view".to_owned(),
            ("apikeys", _) => "keywright-admin".to_owned(),
            _ => format!("the right to {verb} {resource}"),
        };
        format!("{who} may not {verb} {resource} {}. Ask for {remedy}.", self.place())
    }

    /// `in team-a on prod-eu`
    fn place(&self) -> String {
        let Self { namespace, cluster, .. } = self;
        if namespace.is_empty() {
            format!("in all namespaces on {cluster}")
        } else {
            format!("in {namespace} on {cluster}")
        }
    }
}

impl ApiError {
    /// Why the objects of a resource are not shown. Forbidden, unreachable and none differ.
    pub fn why_hidden(&self, resource: &str, namespace: &str) -> String {
        match self {
            _ if self.is_forbidden() => format!("you may not list {resource} in {namespace}"),
            Self::Unreachable(why) => format!("no answer ({why})"),
            Self::Refused(status) => status.message.clone(),
            Self::NotInstalled => format!("there are no {resource} here"),
            Self::Unreadable(why) => format!("the answer cannot be read ({why})"),
        }
    }

    /// Whether there is no object of that name.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code == 404)
    }

    /// Whether the request may have had an effect: no answer says that it had none.
    pub fn leaves_open(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Unreadable(_) => true,
            // A webhook that fails is asked before anything is stored.
            Self::Refused(status) => status.code >= 500 && !status.message.contains("failed calling webhook"),
            Self::NotInstalled => false,
        }
    }

    /// Whether the user lacks a right.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Refused(status) if is_about_rights(status))
    }

    /// Whether the object is another one than the request was about: another uid, or another version.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code == 409 && status.reason != "AlreadyExists")
    }
}

/// A quota's refusal has the same code.
fn is_about_rights(status: &Status) -> bool {
    status.code == 403 && status.message.contains(" cannot ") && status.message.contains(" resource ")
}

/// The user that a refusal of the API server names.
fn user_in(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once("User \"")?;
    rest.split_once("\" cannot ").map(|(user, _)| user)
}

fn with_article(resource: &str) -> String {
    let singular = singular(resource);
    if singular.starts_with('A') { format!("an {singular}") } else { format!("a {singular}") }
}

fn singular(resource: &str) -> &str {
    match resource {
        "apikeys" => "ApiKey",
        "secrets" => "Secret",
        "namespaces" => "namespace",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: u16, reason: &str, message: &str) -> ApiError {
        ApiError::Refused(Status::failure(message, reason).with_code(code).boxed())
    }

    #[test]
    fn each_refusal_is_one_sentence_that_says_what_to_do() {
        let by_rights =
            "apikeys.keywright.dev is forbidden: User \"ann@x\" cannot create resource \"apikeys\" in API group";
        let events =
            "events is forbidden: User \"ann@x\" cannot list resource \"events\" in API group \"events.k8s.io\"";
        let by_quota = "apikeys \"ci\" is forbidden: exceeded quota: few";
        for (verb, resource, error, sentence) in [
            (
                "create",
                "apikeys",
                refused(403, "Forbidden", by_rights),
                "ann@x may not create apikeys in team-a on prod-eu. Ask for keywright-admin.",
            ),
            (
                "list",
                "apikeys",
                refused(403, "Forbidden", by_rights),
                "ann@x may not list apikeys in team-a on prod-eu. Ask for keywright-view.",
            ),
            (
                "list",
                "events",
                refused(403, "Forbidden", events),
                "ann@x may not list events in team-a on prod-eu. Ask for the right to list events.",
            ),
            (
                "create",
                "apikeys",
                refused(403, "Forbidden", by_quota),
                "prod-eu refuses it: apikeys \"ci\" is forbidden: exceeded quota: few",
            ),
            ("get", "apikeys", refused(404, "NotFound", "not found"), "There is no ApiKey ci in team-a on prod-eu."),
            (
                "create",
                "apikeys",
                refused(409, "AlreadyExists", "it exists"),
                "There is already an ApiKey ci in team-a on prod-eu.",
            ),
            ("get", "apikeys", refused(401, "Unauthorized", "who"), "prod-eu does not know you: log in again."),
            ("get", "apikeys", refused(429, "", ""), "prod-eu is busy: try again later."),
            ("get", "apikeys", refused(429, "TooManyRequests", "slow down"), "prod-eu is busy: try again later."),
            (
                "get",
                "apikeys",
                refused(302, "", ""),
                "prod-eu answers with a redirect: name the API server itself in the kubeconfig.",
            ),
            ("get", "apikeys", ApiError::NotInstalled, "Keywright is not installed on prod-eu."),
            ("get", "apikeys", ApiError::Unreachable("refused".into()), "prod-eu is unreachable: refused."),
        ] {
            let attempt = Attempt { verb, resource, name: "ci", namespace: "team-a", cluster: "prod-eu" };
            assert_eq!(attempt.failed(&error).to_string(), sentence);
        }
    }

    #[test]
    fn only_an_answer_says_that_nothing_has_changed() {
        for (error, is_open) in [
            (ApiError::Unreachable("reset".into()), true),
            (ApiError::Unreadable("eof".into()), true),
            (refused(504, "Timeout", "request did not complete"), true),
            (refused(500, "InternalError", "etcdserver: request timed out"), true),
            (refused(500, "InternalError", "Internal error occurred: failed calling webhook"), false),
            (refused(403, "Forbidden", "no"), false),
            (refused(409, "AlreadyExists", "no"), false),
            (ApiError::NotInstalled, false),
        ] {
            assert_eq!(error.leaves_open(), is_open, "{error:?}");
        }
    }

    #[test]
    fn a_failure_is_safe_for_a_terminal() {
        assert_eq!(Failure::failed("a\u{1b}[2J\nb").to_string(), "a\\u{1b}[2J\nb");
        let late = Failure::late("Not yet.").adding("Look at \u{1b}ci.");
        assert_eq!((late.to_string().as_str(), late.code()), ("Not yet. Look at \\u{1b}ci.", Code::Late));
        assert_eq!(Failure::interrupted("x").code().number(), 130);
    }
}
