//! Error responses: problem documents (RFC 9457).

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};

/// An error response. There is a constant for each one that a caller may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProblemDocument {
    /// The HTTP status.
    pub status: StatusCode,
    /// The value of `WWW-Authenticate`, if any.
    pub challenge: Option<&'static str>,
    /// The problem document, as JSON.
    pub body: &'static str,
}

/// 500: a bug here.
pub const INTERNAL_SERVER_ERROR: ProblemDocument = ProblemDocument {
    status: StatusCode::INTERNAL_SERVER_ERROR,
    challenge: None,
    body: r#"{"status":500,"title":"Internal Server Error"}"#,
};

impl ProblemDocument {
    /// A 403 with this body.
    pub const fn forbidden(body: &'static str) -> Self {
        Self { status: StatusCode::FORBIDDEN, challenge: None, body }
    }

    /// The HTTP response.
    pub fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::from(self.body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(challenge) = self.challenge {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        response
    }
}
