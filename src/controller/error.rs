//! What goes wrong in a pass, and what follows from it.

use std::time::Duration;

use crate::telemetry::WatchErrorKind;

/// What went wrong in a pass over one ApiKey. Never holds a key: a refusal does not repeat a Secret's data, and of an
/// answer that cannot be read only the place is told.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The API server refused.
    #[error("the API server refused with {} {}: {}", .0.code, .0.reason, .0.message)]
    Refused(Box<kube::core::Status>),
    /// No answer, or none that can be read; a write may have taken effect.
    #[error("no usable answer from the API server: {0}")]
    Unanswered(kube::Error),
    /// An answer that is not what it should be.
    #[error("the API server's answer cannot be read at line {line}, column {column}")]
    Unreadable {
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
    },
    /// The operating system gave no random octets. There is nothing to fall back to.
    #[error("the operating system gave no random octets: {0}")]
    Random(String),
    /// Somebody has put another key into the Secret, or removed it, since it was observed.
    #[error("the Secret has changed since it was observed")]
    SecretChanged,
    /// The ApiKey was deleted while a record was made for it. The record is revoked, or will be.
    #[error("the ApiKey was deleted while a key was issued")]
    ApiKeyGone,
    /// A plan that hands a key out without one in memory.
    #[error("no key is held that could be handed out")]
    NothingHeld,
    /// A list that cannot be told from an older one.
    #[error("the API server's list has no resourceVersion that can be compared")]
    NoVersion,
    /// The status could not be written as JSON.
    #[error("cannot write the status as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl Error {
    /// Every [`Error::kind`].
    pub(super) const KINDS: [&'static str; 6] =
        ["conflict", "forbidden", "refused", "unanswered", "random", "internal"];

    pub(super) fn random(error: impl std::fmt::Display) -> Self {
        Self::Random(error.to_string())
    }

    /// The label in metrics.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Refused(status) if status.code == 409 => "conflict",
            Self::SecretChanged | Self::ApiKeyGone => "conflict",
            Self::Refused(status) if status.code == 403 => "forbidden",
            Self::Refused(_) => "refused",
            Self::Unanswered(_) | Self::Unreadable { .. } => "unanswered",
            Self::Random(_) => "random",
            Self::NothingHeld | Self::NoVersion | Self::Json(_) => "internal",
        }
    }

    /// What kind of failure it is of a request that is repeated for ever.
    pub(super) fn watch_kind(&self) -> WatchErrorKind {
        match self {
            Self::Refused(status) => WatchErrorKind::of_status(status),
            Self::Unanswered(error) => WatchErrorKind::of(error),
            _ => WatchErrorKind::Other,
        }
    }

    /// Whether observing again at once may show another world: the write lost against another one, or may have taken
    /// effect although its answer was lost.
    pub(super) fn is_worth_another_look(&self) -> bool {
        match self {
            Self::Refused(status) => status.code == 409 || status.code >= 500,
            Self::Unanswered(_) | Self::Unreadable { .. } | Self::SecretChanged | Self::ApiKeyGone => true,
            _ => false,
        }
    }

    /// The HTTP status that the API server refused with.
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            Self::Refused(status) => Some(status.code),
            _ => None,
        }
    }

    /// What the API server asked to wait, with 429 say.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let Self::Refused(status) = self else { return None };
        let seconds = status.details.as_ref()?.retry_after_seconds;
        (seconds > 0).then(|| Duration::from_secs(seconds.into()))
    }
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Refused(status),
            // Its text may quote the value that it stumbled over.
            kube::Error::SerdeError(error) => Self::Unreadable { line: error.line(), column: error.column() },
            other => Self::Unanswered(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_cannot_be_read_is_not_repeated() {
        let answer = r#"{"immutable": "the key"}"#;
        let stumbled = serde_json::from_str::<k8s_openapi::api::core::v1::Secret>(answer);
        let said = stumbled.map_err(|error| format!("{0} {0:?}", Error::from(kube::Error::SerdeError(error))));
        assert_eq!(
            said.map(drop),
            Err("the API server's answer cannot be read at line 1, column 23 Unreadable { line: 1, column: 23 }"
                .to_owned())
        );
    }
}
