//! `/healthz`, `/readyz` and `/metrics`, for every role.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode};
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use super::connections::{Leaving, Listener, Server};
use super::limits::Limits;
use super::room::Occupancy;
use super::workers::Workers;

/// The format that prometheus-client writes.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN_TEXT: &str = "text/plain; charset=utf-8";

/// Answers probes and scrapes on `listener` until `shutdown`.
///
/// `readiness` is called for each `/readyz`. Its error is the answer, one line for people. `occupancy` is this listener's.
pub async fn serve(
    listener: TcpListener,
    readiness: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    registry: Arc<Registry>,
    occupancy: Occupancy,
    shutdown: impl Future<Output = ()>,
) {
    let handler = move |request: &Request<()>, _: IpAddr| answer(request.uri().path(), &readiness, &registry);
    let server = Server {
        listener: Listener::plain(listener),
        limits: Limits::default(),
        workers: Workers::current(),
        leaving: Leaving::default(),
        occupancy,
    };
    server.serve(handler, shutdown).await;
}

fn answer(path: &str, readiness: impl Fn() -> Result<(), String>, registry: &Registry) -> Response<Full<Bytes>> {
    match path {
        "/healthz" => respond(StatusCode::OK, PLAIN_TEXT, "ok\n".to_owned()),
        "/readyz" => match readiness() {
            Ok(()) => respond(StatusCode::OK, PLAIN_TEXT, "ok\n".to_owned()),
            Err(reason) => respond(StatusCode::SERVICE_UNAVAILABLE, PLAIN_TEXT, format!("{reason}\n")),
        },
        "/metrics" => {
            let mut metrics = String::new();
            match text::encode(&mut metrics, registry) {
                Ok(()) => respond(StatusCode::OK, OPEN_METRICS, metrics),
                Err(error) => respond(StatusCode::INTERNAL_SERVER_ERROR, PLAIN_TEXT, format!("{error}\n")),
            }
        }
        _ => respond(StatusCode::NOT_FOUND, PLAIN_TEXT, "ask at /healthz, /readyz or /metrics\n".to_owned()),
    }
}

fn respond(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
