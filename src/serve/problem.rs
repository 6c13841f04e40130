//! What a caller is told where a request is not served: a problem document (RFC 9457).

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};

/// A status and what is said with it: a constant for each thing that a caller may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProblemDocument {
    /// The status.
    pub status: StatusCode,
    /// The value of `WWW-Authenticate`, if there is one.
    pub challenge: Option<&'static str>,
    /// JSON.
    pub body: &'static str,
}

/// We are at fault.
pub const INTERNAL_SERVER_ERROR: ProblemDocument = ProblemDocument {
    status: StatusCode::INTERNAL_SERVER_ERROR,
    challenge: None,
    body: r#"{"status":500,"title":"Internal Server Error"}"#,
};

impl ProblemDocument {
    /// 403 with this body.
    pub const fn forbidden(body: &'static str) -> Self {
        Self { status: StatusCode::FORBIDDEN, challenge: None, body }
    }

    /// The answer over HTTP.
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
