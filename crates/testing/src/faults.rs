//! Faults between a client and the real API server: a reverse proxy on loopback that fails on demand.
//!
//! It passes requests and their credentials through untouched, watches event by event, until a rule applies.

mod link;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{future, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode, Uri};
use kube::client::Body;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use self::link::Link;
use super::control_plane::ControlPlane;
use super::wait::DEADLINE;

/// What goes wrong. The first four happen to a request, the others to an event of a watch.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// The API server never hears of the request.
    Before(Outcome),
    /// The API server does what it is asked, and the client does not hear of it.
    After(Outcome),
    /// The request reaches the API server this much later, also if the client has gone meanwhile.
    Delay(Duration),
    /// The request reaches the API server once the fault is lifted.
    Hold,
    /// The event is missing, the watch goes on.
    DropEvent,
    /// The watch breaks off (FIN, in the middle of its body) instead of delivering the event.
    CutWatch,
    /// From this event on the watch is silent, and its connection stays open.
    HangWatch,
}

/// What the client gets instead of the API server's answer.
#[derive(Debug, Clone, Copy)]
pub enum Outcome {
    /// A Kubernetes `Status` with this code.
    Status(u16),
    /// 429, to be tried again after this many seconds.
    TooManyRequests(u16),
    /// The connection is reset (RST).
    Reset,
    /// Nothing, on a connection that stays open.
    Hang,
}

/// Which of the requests, or events, that a rule matches from now on it applies to.
#[derive(Debug, Clone, Copy)]
pub enum Occurrence {
    /// 1 for the next one.
    Nth(usize),
    Every,
}

/// A request to the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiRequest {
    pub method: Method,
    /// As RBAC writes it: `secrets`, `apikeys/status`.
    pub resource: String,
    pub namespace: Option<String>,
    /// Absent for a list, a watch and a creation.
    pub name: Option<String>,
    pub watch: bool,
    /// Of a list: how many objects it asks for at most.
    pub limit: Option<u32>,
}

/// The proxy. Its connections end when it is dropped.
pub struct FaultProxy {
    address: SocketAddr,
    proxy: Arc<Proxy>,
    link: watch::Sender<Link>,
    _serving: JoinSet<()>,
}

struct Proxy {
    upstream: kube::Client,
    rules: Mutex<Vec<Rule>>,
    requests: Mutex<Vec<ApiRequest>>,
    /// Told whenever a rule goes.
    lifted: watch::Sender<()>,
}

struct Rule {
    fault: Fault,
    occurrence: Occurrence,
    matches: Box<dyn Fn(&ApiRequest) -> bool + Send>,
    matched: usize,
    applied: Applied,
}

type Applied = watch::Sender<usize>;
type AnswerBody = UnsyncBoxBody<Bytes, std::io::Error>;

/// A fault that waits for its occasion.
pub struct Injection {
    applied: Applied,
    proxy: Arc<Proxy>,
}

impl FaultProxy {
    /// A proxy to this API server, without faults.
    pub async fn start(control_plane: &ControlPlane) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port on loopback");
        let address = listener.local_addr().expect("a listener has an address");
        let upstream = control_plane.client_without_credentials().await;
        let proxy = Arc::new(Proxy {
            upstream,
            rules: Mutex::default(),
            requests: Mutex::default(),
            lifted: Default::default(),
        });
        let link = watch::Sender::new(Link::default());
        let mut serving = JoinSet::new();
        serving.spawn(link::serve(listener, link.subscribe(), proxy.clone()));
        Self { address, proxy, link, _serving: serving }
    }

    /// The server that a kubeconfig has to name.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Lets the fault happen to the requests, or events of watches, that match. Of several rules the oldest applies.
    pub fn inject(
        &self,
        fault: Fault,
        occurrence: Occurrence,
        matches: impl Fn(&ApiRequest) -> bool + Send + 'static,
    ) -> Injection {
        let applied = Applied::default();
        let rule = Rule { fault, occurrence, matches: Box::new(matches), matched: 0, applied: applied.clone() };
        self.proxy.rules.lock().unwrap().push(rule);
        Injection { applied, proxy: self.proxy.clone() }
    }

    /// Closes every connection now (FIN); new ones are welcome.
    pub fn sever(&self) {
        self.link.send_modify(|link| link.severed += 1);
    }

    /// From now on no byte passes in either direction, on old connections and new, and none is closed.
    pub fn partition(&self) {
        self.link.send_modify(|link| link.partitioned = true);
    }

    /// Ends the partition; what was on its way arrives.
    pub fn heal(&self) {
        self.link.send_modify(|link| link.partitioned = false);
    }

    /// Every request so far, in the order of arrival, whatever became of it.
    pub fn requests(&self) -> Vec<ApiRequest> {
        self.proxy.requests.lock().unwrap().clone()
    }

    /// How many requests of a method there were to a resource.
    pub fn count(&self, method: &str, resource: &str) -> usize {
        self.requests().iter().filter(|request| request.is(method, resource)).count()
    }
}

impl Injection {
    /// Waits until the fault happened (for [`Fault::After`]: until the API server has answered).
    pub async fn hit(&self) {
        let mut applied = self.applied.subscribe();
        let hit = timeout(DEADLINE, applied.wait_for(|count| *count > 0)).await;
        assert!(hit.is_ok(), "the fault had no occasion within {DEADLINE:?}");
    }

    /// How many times it happened.
    pub fn hits(&self) -> usize {
        *self.applied.borrow()
    }

    /// Lets it happen no more.
    pub fn lift(self) {
        let mut rules = self.proxy.rules.lock().unwrap();
        rules.retain(|rule| !rule.applied.same_channel(&self.applied));
        self.proxy.lifted.send_replace(());
    }
}

impl ApiRequest {
    /// Whether it is of this method and to this resource: `PATCH`, `apikeys/status`.
    pub fn is(&self, method: &str, resource: &str) -> bool {
        self.method == method && self.resource == resource
    }

    /// As [`is`](Self::is), and not of another ApiKey: of one that is at rest, the status gets its last use at any moment.
    pub fn is_about(&self, method: &str, resource: &str, api_key: &str) -> bool {
        let names_another = || self.resource.starts_with("apikeys") && self.name.as_deref() != Some(api_key);
        self.is(method, resource) && !names_another()
    }

    /// Whether it changes anything.
    pub fn is_write(&self) -> bool {
        self.method != Method::GET
    }

    fn new(method: &Method, uri: &Uri) -> Self {
        let mut path = uri.path().split('/').filter(|segment| !segment.is_empty()).map(str::to_owned).peekable();
        match path.next().as_deref() {
            Some("api") => drop(path.next()),
            _ => drop((path.next(), path.next())),
        }
        let mut resource = path.next().unwrap_or_default();
        let mut name = path.next();
        let mut namespace = None;
        if resource == "namespaces" && path.peek().is_some() {
            (namespace, resource, name) = (name, path.next().unwrap_or_default(), path.next());
        }
        if let Some(subresource) = path.next() {
            resource = format!("{resource}/{subresource}");
        }
        let parameters = || uri.query().unwrap_or_default().split('&');
        let watch = parameters().any(|part| part == "watch=true");
        let limit = parameters().find_map(|part| part.strip_prefix("limit=")?.parse().ok());
        Self { method: method.clone(), resource, namespace, name, watch, limit }
    }
}

impl Rule {
    /// Counts one more occurrence; is it one that the rule applies to?
    fn applies(&mut self) -> bool {
        self.matched += 1;
        match self.occurrence {
            Occurrence::Nth(nth) => self.matched == nth,
            Occurrence::Every => true,
        }
    }
}

impl Proxy {
    /// The fault, if any, of a request (`event`: of an event of the watch that it started).
    fn fault(&self, request: &ApiRequest, event: bool) -> Option<(Fault, Applied)> {
        let mut due = None;
        for rule in self.rules.lock().unwrap().iter_mut() {
            let of_event = matches!(rule.fault, Fault::DropEvent | Fault::CutWatch | Fault::HangWatch);
            if of_event == event && (rule.matches)(request) && rule.applies() && due.is_none() {
                due = Some((rule.fault, rule.applied.clone()));
            }
        }
        due
    }

    /// Answers one request; `reset` resets its connection.
    async fn answer(self: Arc<Self>, request: Request<Incoming>, reset: &link::Reset) -> Response<AnswerBody> {
        let described = ApiRequest::new(request.method(), request.uri());
        self.requests.lock().unwrap().push(described.clone());
        match self.fault(&described, false) {
            Some((Fault::Before(outcome), applied)) => {
                applied.send_modify(|count| *count += 1);
                outcome.answer(&described, reset).await
            }
            Some((Fault::After(outcome), applied)) => {
                let answer = self.forward(request, described.clone()).await;
                applied.send_modify(|count| *count += 1);
                drop(answer);
                outcome.answer(&described, reset).await
            }
            Some((Fault::Delay(delay), applied)) => {
                applied.send_modify(|count| *count += 1);
                let Ok(request) = whole(request).await else {
                    return status(&described, StatusCode::BAD_REQUEST);
                };
                let late = tokio::spawn(async move {
                    sleep(delay).await;
                    self.send(request, described).await
                });
                late.await.expect("nothing panics there")
            }
            Some((Fault::Hold, applied)) => {
                let mut lifted = self.lifted.subscribe();
                applied.send_modify(|count| *count += 1);
                lifted.wait_for(|()| !self.has_rule(&applied)).await.expect("the proxy outlives its connections");
                self.forward(request, described).await
            }
            _ => self.forward(request, described).await,
        }
    }

    fn has_rule(&self, applied: &Applied) -> bool {
        self.rules.lock().unwrap().iter().any(|rule| rule.applied.same_channel(applied))
    }

    async fn forward(self: Arc<Self>, request: Request<Incoming>, described: ApiRequest) -> Response<AnswerBody> {
        match whole(request).await {
            Ok(request) => self.send(request, described).await,
            Err(_) => status(&described, StatusCode::BAD_REQUEST),
        }
    }

    async fn send(self: Arc<Self>, request: Request<Body>, described: ApiRequest) -> Response<AnswerBody> {
        match self.upstream.send(request).await {
            Ok(answer) if described.watch && answer.status().is_success() => {
                answer.map(|body| watched(self, described, body))
            }
            Ok(answer) => answer.map(|body| body.map_err(std::io::Error::other).boxed_unsync()),
            Err(_) => status(&described, StatusCode::BAD_GATEWAY),
        }
    }
}

/// The request with its whole body, as it goes to the API server.
async fn whole(request: Request<Incoming>) -> hyper::Result<Request<Body>> {
    let (mut head, body) = request.into_parts();
    head.uri = head.uri.path_and_query().map(|path| Uri::from(path.clone())).unwrap_or_default();
    head.headers.remove(HOST);
    head.headers.remove(CONNECTION);
    let body = body.collect().await?.to_bytes();
    Ok(Request::from_parts(head, Body::from(body.to_vec())))
}

/// A watch's body, one event (a line of JSON) a frame.
fn watched(proxy: Arc<Proxy>, request: ApiRequest, body: Body) -> AnswerBody {
    let frames = stream::unfold((body, Vec::new()), move |(mut body, mut pending)| {
        let (proxy, request) = (proxy.clone(), request.clone());
        async move {
            loop {
                if let Some(end) = pending.iter().position(|octet| *octet == b'\n') {
                    let event: Vec<u8> = pending.drain(..=end).collect();
                    // Bookmarks come when the API server likes, so they must not count.
                    let bookmark = event.starts_with(br#"{"type":"BOOKMARK""#);
                    let fault = if bookmark { None } else { proxy.fault(&request, true) };
                    if let Some((_, applied)) = &fault {
                        applied.send_modify(|count| *count += 1);
                    }
                    match fault.map(|(fault, _)| fault) {
                        Some(Fault::DropEvent) => continue,
                        Some(Fault::CutWatch) => return Some((Err(std::io::Error::other("cut")), (body, pending))),
                        Some(Fault::HangWatch) => future::pending().await,
                        _ => return Some((Ok(Frame::data(Bytes::from(event))), (body, pending))),
                    }
                }
                match body.frame().await? {
                    Ok(frame) => pending.extend_from_slice(&frame.into_data().unwrap_or_default()),
                    Err(error) => return Some((Err(std::io::Error::other(error)), (body, pending))),
                }
            }
        }
    });
    StreamBody::new(frames).boxed_unsync()
}

impl Outcome {
    async fn answer(self, request: &ApiRequest, reset: &link::Reset) -> Response<AnswerBody> {
        match self {
            Self::Status(code) => status(request, StatusCode::from_u16(code).expect("a status code")),
            Self::TooManyRequests(seconds) => {
                let mut answer = status(request, StatusCode::TOO_MANY_REQUESTS);
                answer.headers_mut().insert(RETRY_AFTER, seconds.into());
                answer
            }
            Self::Reset => {
                reset.notify_one();
                future::pending().await
            }
            Self::Hang => future::pending().await,
        }
    }
}

/// An error as the API server words it.
fn status(request: &ApiRequest, code: StatusCode) -> Response<AnswerBody> {
    let reason = match code {
        StatusCode::CONFLICT if request.method == Method::POST => "AlreadyExists",
        StatusCode::CONFLICT => "Conflict",
        StatusCode::TOO_MANY_REQUESTS => "TooManyRequests",
        StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailable",
        StatusCode::GATEWAY_TIMEOUT => "Timeout",
        _ => "Unknown",
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "injected by the test", "reason": reason, "code": code.as_u16(),
    });
    let body = Full::from(status.to_string()).map_err(|never| match never {}).boxed_unsync();
    let answer = Response::builder().status(code).header(CONTENT_TYPE, "application/json").body(body);
    answer.expect("a valid answer")
}
