//! The response to a denied request.

use hyper::StatusCode;
use keywright_core::verify::Denial;

use crate::serve::problem::ProblemDocument;

impl From<Denial> for ProblemDocument {
    /// The one place that decides what a caller learns. All keys that are not valid get the same answer, so that a caller
    /// cannot tell whether a key has ever been valid.
    fn from(denial: Denial) -> Self {
        match denial {
            Denial::Missing
            | Denial::Malformed
            | Denial::Unknown(_)
            | Denial::Revoked
            | Denial::Suspended
            | Denial::Expired => Self {
                status: StatusCode::UNAUTHORIZED,
                challenge: Some("Bearer"),
                body: r#"{"status":401,"title":"Unauthorized","detail":"Send a valid API key, once, as \"Authorization: Bearer <key>\" or \"X-API-Key: <key>\"."}"#,
            },
            Denial::Namespace => Self::forbidden(
                r#"{"status":403,"title":"Forbidden","detail":"The API key belongs to a namespace that is not accepted here."}"#,
            ),
            Denial::Scope => Self::forbidden(
                r#"{"status":403,"title":"Forbidden","detail":"The API key lacks a scope that is required here."}"#,
            ),
            Denial::Address(_) => Self::forbidden(
                r#"{"status":403,"title":"Forbidden","detail":"The API key must not be used from this address."}"#,
            ),
            Denial::Route(_) => Self::forbidden(
                r#"{"status":403,"title":"Forbidden","detail":"The proxy's parameters are wrong. Ask with namespace and scope only. The verifier's log says what to write."}"#,
            ),
            Denial::Stale => Self {
                status: StatusCode::SERVICE_UNAVAILABLE,
                challenge: None,
                body: r#"{"status":503,"title":"Service Unavailable","detail":"API keys cannot be verified at the moment. Try again later."}"#,
            },
        }
    }
}
