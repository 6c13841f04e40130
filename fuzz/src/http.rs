use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, pending};
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, HOST, HeaderMap};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::TokioIo;
use keywright::clock;
use keywright::serve::limits::Limits;
use keywright::verifier::decisions::{Decisions, Tally};
use keywright::verifier::feed::Feed;
use keywright::verifier::forward_auth::ForwardAuth;
use keywright::verifier::membership::Membership;
use keywright_core::client_address::ClientAddressSource;
use keywright_core::fence::{Act, Answer, Holder, LONGEST_DURATION};
use keywright_core::testing::stored_lease;
use kube::client::{Body, Client};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::runtime::{Builder, Runtime};
use tower::service_fn as tower_service_fn;

use crate::{client, credential, keys, now, record};

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 5));

/// Where the key with a list may be used from.
const ALLOWED: &str = "203.0.113.0/24";

/// The input is all that a client sends on one connection; hyper reads it, and a verifier answers.
pub fn http_head(data: &[u8]) {
    thread_local!(static VERIFIER: (Runtime, Rc<ForwardAuth>) = verifier());
    VERIFIER.with(|(runtime, verifier)| {
        let allowed = Rc::new(Cell::new(0));
        let answered = Rc::new(Cell::new(0));
        let said = runtime.block_on(converse(data, verifier, &allowed, &answered));
        check(&said, allowed.get(), answered.get());
    });
}

/// Whatever stands on the wire for one request is ours: a constant, or the identity of a key.
fn check(said: &[u8], allowed: usize, answered: usize) {
    // hyper says no by itself to what it cannot read, once, and says go on to a body that asks.
    assert!(said.len() <= (answered + 1) * 600, "{} octets for {answered} requests", said.len());
    let ok = |version: &str| count(said, format!("{version} 200").as_bytes());
    let text = || String::from_utf8_lossy(said);
    assert_eq!(ok("HTTP/1.1") + ok("HTTP/1.0"), allowed, "{}", text());
    for key in [keys::OPEN, keys::FOREIGN, keys::LISTED, keys::REVOKED, keys::EXPIRED, keys::UNKNOWN] {
        assert!(!crate::key::shows(said, key), "{}", text());
    }
}

fn count(text: &[u8], part: &[u8]) -> usize {
    text.windows(part.len()).filter(|window| *window == part).count()
}

/// The connection as the server holds it, without clock and sockets. Answers with all that was sent to the client.
async fn converse(
    data: &[u8],
    verifier: &Rc<ForwardAuth>,
    allowed: &Rc<Cell<usize>>,
    answered: &Rc<Cell<usize>>,
) -> Vec<u8> {
    let limits = Limits::default();
    let service = service_fn(|request: Request<Incoming>| {
        let (verifier, allowed, answered) = (Rc::clone(verifier), Rc::clone(allowed), Rc::clone(answered));
        async move {
            let (head, body) = request.into_parts();
            body.collect().await.ok();
            let request = Request::from_parts(head, ());
            let response = verifier.answer(&request, PEER).response;
            let expected = is_good(&request);
            assert_eq!(response.status() == 200, expected, "{} for {request:?}", response.status());
            assert_headers(&response);
            answered.set(answered.get() + 1);
            allowed.set(allowed.get() + usize::from(expected));
            Ok::<_, Infallible>(response)
        }
    });
    let (mut client, server) = duplex(data.len().max(1));
    let connection = http1::Builder::new()
        .header_read_timeout(None)
        .max_header_size(limits.head)
        .max_buf_size(limits.head)
        .serve_connection(TokioIo::new(server), service);
    let talk = async {
        client.write_all(data).await.ok();
        client.shutdown().await.ok();
        let mut said = Vec::new();
        client.read_to_end(&mut said).await.ok();
        said
    };
    tokio::join!(connection, talk).1
}

fn assert_headers(response: &Response<Full<Bytes>>) {
    let identity = ["key", "namespace", "name", "owner", "scopes"].map(|name| format!("x-keywright-{name}"));
    let present = identity.iter().filter(|name| response.headers().get_all(*name).iter().count() == 1).count();
    assert_eq!(present, if response.status() == 200 { identity.len() } else { 0 }, "{response:?}");
}

/// The second reading of a request: may it pass?
fn is_good(request: &Request<()>) -> bool {
    let headers = request.headers();
    let hosts = lines(headers, HOST.as_str()).len();
    let has_host = hosts == 1 || hosts == 0 && request.version() == Version::HTTP_10;
    let query = request.uri().query().unwrap_or_default();
    let parameters: Vec<_> = form_urlencoded::parse(query.as_bytes()).collect();
    let route_fits = is_a_good_route(&parameters);
    let authorization = lines(headers, AUTHORIZATION.as_str());
    let found = credential::read(&authorization, &lines(headers, "x-api-key"));
    let key_fits =
        found.is_ok_and(|(key, _)| is_open(key) || key == keys::LISTED.as_bytes() && is_from_the_list(headers));
    has_host && request.uri().path() == "/verify" && route_fits && key_fits
}

/// Whether the key is good from anywhere.
pub(crate) fn is_open(key: &[u8]) -> bool {
    [keys::OPEN, keys::FOREIGN].iter().any(|open| open.as_bytes() == key)
}

/// Whether the open key is good enough for these parameters.
pub(crate) fn is_a_good_route<S: AsRef<str>>(parameters: &[(S, S)]) -> bool {
    let parameters: Vec<(&str, &str)> =
        parameters.iter().map(|(name, value)| (name.as_ref(), value.as_ref())).collect();
    let is_word = |text: &str| {
        (1..=64).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || "._:/-".contains(c))
    };
    let is_usable = |(name, value): &(&str, &str)| {
        is_word(value) && (*name == "namespace" || *name == "scope" && ["orders:read", "orders:write"].contains(value))
    };
    let mut namespaces = parameters.iter().filter(|(name, _)| *name == "namespace").peekable();
    let is_ours = namespaces.peek().is_none() || namespaces.any(|(_, namespace)| *namespace == "team-a");
    is_ours && parameters.iter().all(is_usable)
}

fn is_from_the_list(headers: &HeaderMap) -> bool {
    let client = client::read(&source(), PEER, &lines(headers, "x-forwarded-for"));
    client.is_ok_and(is_in_the_list)
}

/// See [`ALLOWED`].
pub(crate) fn is_in_the_list(client: IpAddr) -> bool {
    matches!(client, IpAddr::V4(client) if client.octets()[..3] == [203, 0, 113])
}

fn lines<'h>(headers: &'h HeaderMap, name: &str) -> Vec<&'h [u8]> {
    headers.get_all(name).into_iter().map(|value| value.as_bytes()).collect()
}

fn source() -> ClientAddressSource {
    "xff-hops=1".parse().unwrap_or(ClientAddressSource::Peer)
}

fn verifier() -> (Runtime, Rc<ForwardAuth>) {
    let (runtime, decisions) = decisions();
    (runtime, Rc::new(ForwardAuth::new(decisions, source())))
}

/// What decides from a record for each of [`keys`] but the last.
pub(crate) fn decisions() -> (Runtime, Decisions) {
    let mut listed = record::spec(keys::LISTED);
    listed["allowedIPs"] = json!([ALLOWED]);
    let mut revoked = record::spec(keys::REVOKED);
    revoked["revoked"] = json!({ "at": "2026-01-01T00:00:00Z", "reason": "Deleted" });
    let mut expired = record::spec(keys::EXPIRED);
    expired["notAfter"] = json!(now().to_string());
    let specs = [record::spec(keys::OPEN), record::spec(keys::FOREIGN), listed, revoked, expired];
    let items: Vec<_> = specs
        .iter()
        .enumerate()
        .map(|(number, spec)| json!({ "metadata": { "name": record::name(number) }, "spec": spec }))
        .collect();
    let list = json!({
        "apiVersion": "keywright.dev/v1alpha1",
        "kind": "ApiKeyRecordList",
        "metadata": { "resourceVersion": "1" },
        "items": items,
    });
    let runtime = Builder::new_current_thread().enable_all().build().unwrap_or_else(|error| panic!("{error}"));
    let feed = Arc::new(runtime.block_on(feed_of(list.to_string(), specs.len())));
    (runtime, Decisions::new(feed, now, Arc::new(Tally::new("fuzz"))))
}

/// A membership that has its Lease, and waits for the records.
fn joined() -> Membership {
    let membership = Membership::new(Holder::new("keywright-verifier-0", 1, LONGEST_DURATION));
    let now = clock::moment();
    let Act::Send(create) = membership.next(now) else { panic!("it begins with its Lease") };
    membership.answered(create, Answer::Stored(stored_lease(membership.holder())), now);
    let Act::List(round) = membership.next(now) else { panic!("the list comes next") };
    membership.order(round);
    membership
}

/// A feed that has read `list` and will hear nothing more.
async fn feed_of(list: String, records: usize) -> Feed {
    type Answer = Pin<Box<dyn Future<Output = Result<Response<Full<Bytes>>, Infallible>> + Send>>;
    let api_server = tower_service_fn(move |request: Request<Body>| -> Answer {
        let is_watch = request.uri().query().unwrap_or_default().contains("watch=");
        let list = list.clone();
        if is_watch { Box::pin(pending()) } else { Box::pin(async { Ok(Response::new(Full::from(list))) }) }
    });
    let membership = Arc::new(joined());
    let feed = Feed::new(Arc::clone(&membership), clock::moment());
    let read = async {
        while membership.read().until.is_none() {
            tokio::task::yield_now().await;
        }
        assert_eq!(feed.records(), records);
    };
    tokio::select! {
        _ = feed.follow(Client::new(api_server, "default"), "default") => {}
        () = read => {}
    }
    feed
}
