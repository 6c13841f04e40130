use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream as Socket};

use http_body_util::Full;
use hyper::Response;
use keywright_core::key::Digest;
use keywright_core::keyring::Keyring;
use keywright_core::testing::{KEY, OTHER_KEY, record_name, stored};
use keywright_core::verify::Denial;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::*;
use crate::serve::connections::Answer;
use crate::serve::problem::ProblemDocument;
use crate::serve::room::Occupancy;
use crate::testing::running::{PATIENCE, Running, connect, connect_from, one_answer, rest, server, statuses};
use crate::testing::script::{LIST, Reply, Script, event, list, record};

const REVOKED: &str = OTHER_KEY;
const SUSPENDED: &str = "keyw1_5LdvPPYbsFuXItWtxeRYxNSM0lFE7WG6AJPOloe336t3XOvuE";
const EXPIRED: &str = "keyw1_GIJjCtps9VfyK3QoUQexN2DvsoQN4YWslJWRPo4m4Ex4LtC2d";
const UNKNOWN: &str = "keyw1_00000000000000000000000000000000000000000003dznj0";

fn spec(key: &str, name: &str) -> Value {
    let api_key = json!({ "namespace": "team-a", "name": name, "uid": "c" });
    json!({ "digest": Digest::of(key.as_bytes()).to_string(), "apiKey": api_key })
}

fn feed() -> Feed {
    let mut suspended = spec(SUSPENDED, "suspended");
    suspended["suspended"] = json!(true);
    let mut revoked = spec(REVOKED, "revoked");
    revoked["revoked"] = json!({ "at": "2026-01-01T00:00:00Z", "reason": "Deleted" });
    let mut expired = spec(EXPIRED, "expired");
    expired["notAfter"] = json!("2026-01-01T00:00:00Z");
    let mut keyring = Keyring::default();
    for (number, spec) in (1..).zip([spec(KEY, "good"), suspended, revoked, expired]) {
        keyring.upsert(&stored(&record_name(number), &spec)).unwrap();
    }
    Feed::holding(&keyring)
}

async fn verifier(limits: Limits) -> Running {
    let now = || "2026-11-23T12:00:00Z".parse().unwrap();
    let decisions = Decisions::new(Arc::new(feed()), now, Arc::new(Tally::new("http")));
    let verifier = ForwardAuth::new(decisions, ClientAddressSource::Peer);
    Running::serving(limits, move |request: &Request<()>, peer: IpAddr| verifier.answer(request, peer)).await
}

fn good_request() -> String {
    format!("GET /verify HTTP/1.1\r\nHost: v\r\nX-API-Key: {KEY}\r\n\r\n")
}

fn last_request(key: &str) -> String {
    format!("GET /verify HTTP/1.1\r\nHost: v\r\nX-API-Key: {key}\r\nConnection: close\r\n\r\n")
}

/// Requests that HTTP forbids. A good one follows each, which must not be answered: what begins where is in doubt.
#[tokio::test(flavor = "multi_thread")]
async fn what_http_forbids_is_refused_and_the_connection_closed() {
    let running = verifier(Limits::default()).await;
    let smuggled = good_request();
    let with = |line: &str| format!("GET /verify HTTP/1.1\r\nHost: v\r\nX-API-Key: {KEY}\r\n{line}\r\n\r\n");
    let post = |lines: &str| format!("POST /verify HTTP/1.1\r\nHost: v\r\nX-API-Key: {KEY}\r\n{lines}\r\n\r\n");
    let forbidden = [
        with("A: b\0c"),
        with("A: b\rc"),
        with("A: b\x1bc"),
        with("A: b\x7fc"),
        with("A: b\r\n folded"),
        with("A: b\r\n\tfolded"),
        with(" A: b"),
        with("A : b"),
        with("A\t: b"),
        with("no colon"),
        with(": no name"),
        with("A\0: b"),
        with("A(b): c"),
        with("Host: second"),
        post("Content-Length: 1\r\nContent-Length: 2"),
        post("Content-Length: 1, 1"),
        post("Content-Length: +1"),
        post("Content-Length: -1"),
        post("Content-Length: 0x1"),
        post("Content-Length: 99999999999999999999"),
        post("Transfer-Encoding: gzip"),
        post("Transfer-Encoding: chunked, identity"),
        post("Transfer-Encoding: xchunked"),
        good_request().replace("Host: v\r\n", ""),
        good_request().replace("HTTP/1.1", "HTTP/1.0").replace("Host: v", "Transfer-Encoding: chunked"),
        good_request().replace("HTTP/1.1", "HTTP/2.0"),
        good_request().replace("HTTP/1.1", "HTTP/1.1 x"),
        good_request().replace("/verify", "/veri\0fy"),
        good_request().replace("/verify", "/verify /verify"),
        good_request().replace("GET", "G@T"),
        "\0\0\0\0\r\n\r\n".to_owned(),
    ];
    for request in forbidden {
        assert_eq!(statuses(&running.exchange(request.clone() + &smuggled)), [400], "{request:?}");
    }
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned();
    assert_eq!(statuses(&running.exchange(preface + &smuggled)), [0; 0], "no HTTP/2: closed without a word");
}

/// With both lengths, the chunks count, and nothing after them is read as a request (RFC 9112, 6.1).
#[tokio::test(flavor = "multi_thread")]
async fn a_request_with_two_ideas_of_its_length_is_the_last_of_its_connection() {
    let running = verifier(Limits::default()).await;
    for lines in ["Content-Length: 4\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 4"]
    {
        let request = format!("POST /verify HTTP/1.1\r\nHost: v\r\nX-API-Key: {UNKNOWN}\r\n{lines}\r\n\r\n0\r\n\r\n");
        assert_eq!(statuses(&running.exchange(request + &good_request())), [401], "{lines:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_may_have_16_kib_and_100_lines() {
    let running = verifier(Limits::default()).await;
    let padded = |octets: usize| {
        let request = last_request(KEY);
        let padding = octets - request.len() - "Padding: \r\n".len();
        request.replace("Host:", &format!("Padding: {}\r\nHost:", "x".repeat(padding)))
    };
    assert_eq!(statuses(&running.exchange(padded(16 * 1024))), [200]);
    assert_eq!(statuses(&running.exchange(padded(16 * 1024 + 1))), [431]);
    assert_eq!(statuses(&running.exchange("GET /verify?".to_owned() + &"x".repeat(20_000))), [431], "without an end");
    let lines = |count: usize| last_request(KEY).replace("Host:", &("A: b\r\n".repeat(count - 3) + "Host:"));
    assert_eq!(statuses(&running.exchange(lines(100))), [200]);
    assert_eq!(statuses(&running.exchange(lines(101))), [431]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_too_slow_is_cut_off() {
    let running = verifier(Limits { read_timeout: Duration::from_millis(100), ..Limits::default() }).await;
    for beginning in ["G", "GET /ver", "GET /verify HTTP/1.1\r\nHost: v\r\nX-A"] {
        assert_eq!(running.exchange(beginning), "", "{beginning:?}");
        let mut socket = running.connect();
        socket.write_all(good_request().as_bytes()).unwrap();
        one_answer(&mut socket);
        socket.write_all(beginning.as_bytes()).unwrap();
        assert_eq!(rest(&mut socket), "", "{beginning:?} after a request");
    }
    let body = format!("POST /verify HTTP/1.1\r\nHost: v\r\nX-API-Key: {KEY}\r\nContent-Length: 2\r\n\r\nx");
    assert_eq!(statuses(&running.exchange(body)), [200], "a body does not matter");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_may_lie_idle_for_longer_than_a_request_may_take() {
    let milliseconds = Duration::from_millis;
    let (idle_timeout, read_timeout) = (milliseconds(1000), milliseconds(50));
    let running = verifier(Limits { idle_timeout, read_timeout, ..Limits::default() }).await;
    let mut socket = running.connect();
    for _ in 0..3 {
        sleep(milliseconds(300)).await;
        socket.write_all(good_request().as_bytes()).unwrap();
        one_answer(&mut socket);
    }
    assert_eq!(rest(&mut socket), "", "not for ever");
    assert_eq!(running.exchange(""), "", "nor before the first request");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_in_no_answers_is_cut_off() {
    let read_timeout = Duration::from_millis(100);
    let running = verifier(Limits { connections: 1, read_timeout, ..Limits::default() }).await;
    let mut deaf = running.connect();
    deaf.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let requests = good_request().repeat(1000);
    while deaf.write_all(requests.as_bytes()).is_ok() {}
    assert_eq!(statuses(&running.exchange(last_request(KEY))), [200], "its place is free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_gets_the_same_decision_and_no_path_but_one_gets_any() {
    let running = verifier(Limits::default()).await;
    let methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "X-Y"];
    for method in methods {
        let ask = |key| statuses(&running.exchange(last_request(key).replace("GET", method)));
        assert_eq!((ask(KEY), ask(UNKNOWN)), (vec![200], vec![401]), "{method}");
    }
    let paths = [
        "/",
        "/verify/",
        "//verify",
        "/verify;x",
        "/%76erify",
        "/verify%20",
        "/verify/../verify",
        "/x/../verify",
        "/VERIFY",
        "/verify/healthz",
        "/healthz",
        "/readyz",
        "/metrics",
        "*",
        "http://v/",
        "http://v/verify/",
    ];
    for path in paths {
        let answer = running.exchange(last_request(KEY).replace("/verify", path));
        assert_eq!(statuses(&answer), [404], "{path}");
    }
    let absolute = last_request(KEY).replace("/verify", "http://elsewhere.example/verify?namespace=team-b");
    assert_eq!(statuses(&running.exchange(absolute)), [403], "absolute form (RFC 9112, 3.2.2)");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_read_and_ignored_and_the_connection_goes_on() {
    let running = verifier(Limits::default()).await;
    let body = "x".repeat(200_000);
    let head = format!("POST /verify HTTP/1.1\r\nHost: v\r\nX-API-Key: {KEY}\r\n");
    let counted = format!("{head}Content-Length: 200000\r\n\r\n{body}");
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n30d40\r\n{body}\r\n0\r\n\r\n");
    assert_eq!(statuses(&running.exchange(counted + &chunked + &last_request(UNKNOWN))), [200, 200, 401]);
    let expecting = format!("{head}Content-Length: 200000\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(statuses(&running.exchange(expecting)), [200], "nobody asks for the body");
}

/// Whoever tries keys learns nothing about which were ever good.
#[tokio::test(flavor = "multi_thread")]
async fn all_refusals_of_a_key_are_the_same_to_the_octet() {
    let running = verifier(Limits::default()).await;
    let malformed = last_request("keyw1_x");
    let missing = last_request("x").replace("X-API-Key", "X-API-Keys");
    let both = last_request(KEY).replace("Host", &format!("Authorization: Bearer {KEY}\r\nHost"));
    let requests = [UNKNOWN, REVOKED, SUSPENDED, EXPIRED].map(last_request).into_iter();
    let answers = requests.chain([malformed, missing, both]).map(|request| {
        let answer = running.exchange(request);
        let lines = answer.split_inclusive("\r\n").filter(|line| !line.starts_with("date: "));
        lines.collect::<String>()
    });
    let answers: Vec<String> = answers.collect();
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:#?}");
    for part in [
        "HTTP/1.1 401 Unauthorized\r\n",
        "www-authenticate: Bearer\r\n",
        "cache-control: no-store\r\n",
        "content-type: application/problem+json\r\n",
    ] {
        assert!(answers[0].contains(part), "{part}");
    }
}

#[test]
fn every_answer_is_a_problem_document_that_is_not_to_be_stored() {
    use keywright_core::client_address::Unresolved;
    use keywright_core::keyring::Untrusted;
    use keywright_core::verify::{AddressDenial, InvalidRoute, Parameter};

    let denials = [
        (Denial::Missing, 401),
        (Denial::Malformed, 401),
        (Denial::Unknown(Untrusted::Unreadable), 401),
        (Denial::Revoked, 401),
        (Denial::Suspended, 401),
        (Denial::Expired, 401),
        (Denial::Namespace, 403),
        (Denial::Scope, 403),
        (Denial::Address(AddressDenial::Unresolved(Unresolved::Missing)), 403),
        (Denial::Route(InvalidRoute::InvalidValue(Parameter::Scope)), 403),
        (Denial::Stale, 503),
    ];
    for (denial, status) in denials {
        let answer = ProblemDocument::from(denial);
        let document: Value = serde_json::from_str(answer.body).unwrap();
        assert_eq!((answer.status.as_u16(), &document["status"]), (status, &json!(status)), "{denial:?}");
        assert_eq!(document["title"].as_str(), answer.status.canonical_reason());
        assert_eq!(answer.challenge, (status == 401).then_some("Bearer"));
        let response = answer.into_response();
        assert_eq!(response.headers()["cache-control"], "no-store");
        assert_eq!(response.headers()["content-type"], "application/problem+json");
    }
    let unresolved = Denial::Address(AddressDenial::Unresolved(Unresolved::Missing));
    let not_allowed = Denial::Address(AddressDenial::NotAllowed([127, 0, 0, 1].into()));
    assert_eq!(ProblemDocument::from(unresolved), ProblemDocument::from(not_allowed), "one body for each cause");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_fails_its_own_request_and_nothing_else() {
    let handler = |request: &Request<()>, _: IpAddr| {
        assert_ne!(request.uri().path(), "/panic");
        Response::new(Full::default())
    };
    let running = Running::serving(Limits { connections: 1, ..Limits::default() }, handler).await;
    let panics = good_request().replace("/verify", "/panic");
    let answers =
        running.exchange(panics.repeat(3) + &good_request() + &last_request(KEY).replace("/verify", "/panic"));
    assert_eq!(statuses(&answers), [500, 500, 500, 200, 500]);
}

/// On one thread, so that what a client has heard of is over on the other side before the next connection is looked at.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_connection_that_has_been_idle_longest_makes_room() {
    let running = verifier(Limits { connections: 3, ..Limits::default() }).await;
    let ask = |socket: &mut Socket| {
        socket.write_all(good_request().as_bytes()).unwrap();
        one_answer(socket);
    };
    let mut open = [running.connect(), running.connect(), running.connect()];
    // The order in which they were last asked is not that in which they came.
    for index in [0, 1, 2, 1, 0] {
        ask(&mut open[index]);
    }
    assert_eq!(statuses(&running.exchange(last_request(KEY))), [200]);
    let [mut one, mut other, mut longest] = open;
    assert_eq!(rest(&mut longest), "", "closed");
    let mut newcomer = running.connect();
    ask(&mut newcomer);
    let mut second = running.connect();
    ask(&mut second);
    assert_eq!(rest(&mut other), "", "the next one");
    for socket in [&mut one, &mut newcomer, &mut second] {
        ask(socket);
    }
}

/// By what they do: not the kind of silence, but its length counts.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_has_not_come_to_its_end_is_idle() {
    for beginning in ["", "G", "GET /verify HTTP/1.1\r\nHost: v\r\nX-A"] {
        let running = verifier(Limits { connections: 1, ..Limits::default() }).await;
        let mut socket = running.connect();
        socket.write_all(beginning.as_bytes()).unwrap();
        assert_eq!(statuses(&running.exchange(last_request(KEY))), [200], "{beginning:?}");
        assert_eq!(rest(&mut socket), "", "{beginning:?}");
        let mut socket = running.connect();
        socket.write_all((good_request() + beginning).as_bytes()).unwrap();
        one_answer(&mut socket);
        assert_eq!(statuses(&running.exchange(last_request(KEY))), [200], "{beginning:?} after a request");
        assert_eq!(rest(&mut socket), "", "{beginning:?} after a request");
    }
}

/// On one thread, so that what a client has heard of is over on the other side before the next connection is looked at.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_connection_too_many_waits_while_all_others_are_busy() {
    let running = verifier(Limits { connections: 2, ..Limits::default() }).await;
    let mut busy = [running.connect(), running.connect()];
    let head = format!("POST /verify HTTP/1.1\r\nHost: v\r\nX-API-Key: {KEY}\r\nContent-Length: 2\r\n\r\nx");
    for socket in &mut busy {
        socket.write_all((good_request() + &head).as_bytes()).unwrap();
        one_answer(socket);
    }
    let mut waiting = running.connect();
    waiting.write_all(last_request(KEY).as_bytes()).unwrap();
    waiting.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(waiting.read(&mut [0]).is_err(), "no slot, no answer");
    assert!(running.occupancy.readiness(Instant::now()).is_ok(), "not for a moment");
    let not_ready = running.occupancy.readiness(Instant::now() + Duration::from_secs(6)).unwrap_err();
    assert!(not_ready.contains("have been busy for 6 s"), "{not_ready}");
    let [mut one, mut other] = busy;
    one.write_all(b"x").unwrap();
    one_answer(&mut one);
    waiting.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(statuses(&rest(&mut waiting)), [200]);
    assert!(running.occupancy.readiness(Instant::now() + Duration::from_secs(6)).is_ok());
    other.write_all(b"x").unwrap();
    assert!(one_answer(&mut other).starts_with("HTTP/1.1 200 "), "it was busy, and is answered");
}

/// On one thread, so that what a client has heard of is over on the other side before the next connection is looked at.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_client_makes_room_for_itself_and_for_nobody_else() {
    let limits = Limits { connections: 100, connections_per_client: 2, ..Limits::default() };
    let running = verifier(limits).await;
    let from = |host: u8| {
        let mut socket = connect_from(host, running.address);
        socket.write_all(good_request().as_bytes()).unwrap();
        one_answer(&mut socket);
        socket
    };
    let (mut other, mut longest, mut one, mut two) = (from(2), from(3), from(3), from(3));
    assert_eq!(rest(&mut longest), "");
    let head = format!("POST /verify HTTP/1.1\r\nHost: v\r\nX-API-Key: {KEY}\r\nContent-Length: 1\r\n\r\n");
    for socket in [&mut one, &mut two] {
        socket.write_all((good_request() + &head).as_bytes()).unwrap();
        one_answer(socket);
    }
    let mut refused = connect_from(3, running.address);
    assert_eq!(rest(&mut refused), "", "its own are busy");
    for socket in [&mut one, &mut two] {
        socket.write_all(b"x").unwrap();
        one_answer(socket);
    }
    other.write_all(good_request().as_bytes()).unwrap();
    one_answer(&mut other);
    let mut metrics = String::new();
    prometheus_client::encoding::text::encode(&mut metrics, &running.registry).unwrap();
    for (cause, count) in [("listener_full", 0), ("client_full", 1), ("client_refused", 1)] {
        let line = format!("connections_closed_total{{listener=\"http\",cause=\"{cause}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
    assert!(metrics.contains("connections{listener=\"http\"} 3\n"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_takes_leave_of_every_connection_before_it_closes_any() {
    let running = verifier(Limits { leave_taking: PATIENCE, ..Limits::default() }).await;
    let mut idle = running.connect();
    idle.write_all(good_request().as_bytes()).unwrap();
    assert!(!one_answer(&mut idle).contains("connection: close"));
    running.stop.send(()).unwrap();
    // Until the server has heard of it; a proxy has not, and goes on.
    while !running.leaving.has_begun() {
        sleep(Duration::from_millis(1)).await;
    }
    for mut socket in [idle, connect(running.address)] {
        socket.write_all(good_request().as_bytes()).unwrap();
        let answer = rest(&mut socket);
        assert_eq!(statuses(&answer), [200]);
        assert!(answer.contains("connection: close"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_finishes_what_is_in_flight_and_closes_the_rest() {
    let running = verifier(Limits { leave_taking: Duration::ZERO, ..Limits::default() }).await;
    let (mut idle, mut busy) = (running.connect(), running.connect());
    idle.write_all(good_request().as_bytes()).unwrap();
    one_answer(&mut idle);
    let head = format!("POST /verify HTTP/1.1\r\nHost: v\r\nX-API-Key: {KEY}\r\nContent-Length: 2\r\n\r\nx");
    busy.write_all((good_request() + &head).as_bytes()).unwrap();
    one_answer(&mut busy);
    running.stop.send(()).unwrap();
    assert_eq!(rest(&mut idle), "");
    assert!(Socket::connect(running.address).is_err(), "nobody listens any more");
    sleep(Duration::from_millis(100)).await;
    assert!(!running.task.is_finished(), "it waits for the request in flight");
    busy.write_all(b"x").unwrap();
    assert_eq!(statuses(&rest(&mut busy)), [200]);
    timeout(PATIENCE, running.task).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_does_not_wait_for_ever() {
    let running =
        verifier(Limits { leave_taking: Duration::ZERO, drain: Duration::from_millis(50), ..Limits::default() }).await;
    let mut busy = running.connect();
    busy.write_all(b"POST /verify HTTP/1.1\r\nHost: v\r\nContent-Length: 2\r\n\r\nx").unwrap();
    assert_eq!(statuses(&running.exchange(last_request(KEY))), [200]);
    running.stop.send(()).unwrap();
    timeout(PATIENCE, running.task).await.unwrap().unwrap();
}

/// What this test prints when it runs in a child process of its own, after `limit`; `None` in that child.
fn in_a_child(test: &str, limit: &str) -> Option<String> {
    const CHILD: &str = "KEYWRIGHT_TEST_FEW_DESCRIPTORS";
    if std::env::var_os(CHILD).is_some() {
        return None;
    }
    let program = std::env::current_exe().unwrap();
    let command = format!("{limit}; exec '{}' --exact verifier::tests::{test} --nocapture", program.display());
    let output = std::process::Command::new("sh").args(["-c", &command]).env(CHILD, "1").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    Some(String::from_utf8(output.stdout).unwrap())
}

/// A child process of this test has few file descriptors, and more clients than that.
#[test]
fn running_out_of_file_descriptors_passes() {
    if let Some(printed) = in_a_child("running_out_of_file_descriptors_passes", "ulimit -n 40") {
        assert!(printed.contains("descriptors ran out"), "{printed}");
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let running = verifier(Limits::default()).await;
        let mut open = Vec::new();
        while let Ok(socket) = Socket::connect(running.address) {
            open.push(socket);
        }
        println!("descriptors ran out after {} connections", open.len());
        // Until the server has tried to accept one more; nothing outside tells when.
        std::thread::sleep(Duration::from_millis(300));
        drop(open);
        assert_eq!(statuses(&running.exchange(last_request(KEY))), [200]);
    });
}

/// A child process of this test begins with few file descriptors, as a container may.
#[test]
fn as_many_files_may_be_open_as_connections_need() {
    if in_a_child("as_many_files_may_be_open_as_connections_need", "ulimit -Sn 40").is_some() {
        return;
    }
    allow_open_files();
    let files: Vec<_> = (0..16_000).map_while(|_| std::fs::File::open("/dev/null").ok()).collect();
    assert_eq!(files.len(), 16_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_and_metrics_are_answered() {
    let listener = bind(Address::Given("127.0.0.1:0".parse().unwrap()), "--admin-address").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut registry = Registry::with_prefix("keywright");
    registry.register_collector(Box::new(FeedMetrics(Arc::new(feed()))));
    let is_ready = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let asked = Arc::clone(&is_ready);
    let readiness = move || match asked.load(std::sync::atomic::Ordering::SeqCst) {
        true => Ok(()),
        false => Err("waiting for the records".to_owned()),
    };
    tokio::spawn(admin::serve(listener, readiness, Arc::new(registry), Occupancy::default(), pending()));
    let get = |path| {
        let mut socket = connect(address);
        socket.write_all(last_request("x").replace("/verify", path).as_bytes()).unwrap();
        rest(&mut socket)
    };
    assert_eq!(statuses(&get("/healthz")), [200]);
    let unready = get("/readyz");
    assert_eq!(statuses(&unready), [503]);
    assert!(unready.ends_with("\r\n\r\nwaiting for the records\n"), "{unready}");
    is_ready.store(true, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(statuses(&get("/readyz")), [200]);
    assert_eq!(statuses(&get("/verify")), [404]);
    let metrics = get("/metrics");
    assert!(metrics.contains("content-type: application/openmetrics-text; version=1.0.0"), "{metrics}");
    assert!(metrics.contains("\nkeywright_records 4"), "{metrics}");
    assert!(metrics.contains("\nkeywright_record_version_lag_seconds "), "{metrics}");
    assert!(metrics.contains("\nkeywright_lease_remaining_seconds 5"), "{metrics}");
}

/// The whole of it, but for Kubernetes: not ready, ready, allowed, revoked, shut down.
#[tokio::test(flavor = "multi_thread")]
async fn a_verifier_follows_the_records_and_answers() {
    let mut revoked = spec(KEY, "good");
    revoked["revoked"] = json!({ "at": "2026-01-01T00:00:00Z", "reason": "Deleted" });
    let script = Script::start(
        vec![
            (LIST, Reply::Answer(503, json!({}))),
            (LIST, list("100", "", &[record(1, "7", &spec(KEY, "good"))])),
            ("watch=true", Reply::Held(vec![event("MODIFIED", record(1, "101", &revoked))])),
        ],
        |_| Reply::NoAnswer,
    );
    let [http_address, grpc_address, admin_address] = [(); 3].map(|()| {
        // A port that was free a moment ago.
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    });
    let options = Options {
        namespace: "keywright-system".to_owned(),
        identity: "verifier-0".to_owned(),
        http_address: Address::Given(http_address),
        grpc_address: Address::Given(grpc_address),
        admin_address: Address::Given(admin_address),
        http_client_address_source: "xff-hops=1".parse().unwrap(),
        grpc_client_address_source: ClientAddressSource::Peer,
        lease_duration: Duration::from_secs(600),
        connections_per_client: Share::DEFAULT,
        // The script has no place for writes, and the end would wait for them.
        last_used: usage::Policy {
            granularity: Duration::from_secs(60),
            budget: usage::Budget { writes_per_second: 0 },
        },
        tls: None,
        tls_required: true,
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async { stopped.await.unwrap_or_default() };
    let config = script.config();
    let task = tokio::spawn(async move { run(&config, options, shutdown).await });
    let ask = |address, path: &str| {
        let mut socket = Socket::connect(address).ok()?;
        socket.write_all(last_request(KEY).replace("/verify", path).as_bytes()).unwrap();
        statuses(&rest(&mut socket)).first().copied()
    };
    let until = async |address, path, status| {
        let wait = async {
            while ask(address, path) != Some(status) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{path} is never {status}"));
    };
    until(admin_address, "/readyz", 200).await;
    assert_eq!(ask(http_address, "/verify"), Some(200));
    script.release();
    until(http_address, "/verify", 401).await;
    stop.send(()).unwrap();
    timeout(PATIENCE, task).await.unwrap().unwrap().unwrap();
    assert!(ask(http_address, "/verify").is_none());
}

/// The process may be stopped between a decision and its answer.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_not_true_any_more_is_not_sent() {
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let handler = move |_: &Request<()>, _| {
        let number = asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let now = clock::moment();
        let until = [Some(now + PATIENCE), None, Some(now)].get(number).copied().flatten();
        Answer { response: Response::new(Full::from(format!("answer {number}"))), until }
    };
    let running = Running::serving(Limits::default(), handler).await;
    let mut socket = connect(running.address);
    let mut said = String::new();
    for number in 0..2 {
        socket.write_all(good_request().as_bytes()).unwrap();
        let mut octets = [0; 1024];
        while !said.ends_with(&format!("answer {number}")) {
            let read = socket.read(&mut octets).unwrap();
            said.push_str(str::from_utf8(&octets[..read]).unwrap());
        }
    }
    socket.write_all(good_request().as_bytes()).unwrap();
    assert_eq!(rest(&mut socket), "", "closed without a word");
}

/// Where the listener is one for IPv6 too, the system writes `::ffff:127.0.0.1`.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_with_an_ipv4_address_is_seen_as_one() {
    let listener = bind(Address::All(0), "--http-address").await.unwrap();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, listener.local_addr().unwrap().port()));
    let server = server(listener, Limits::default(), &mut Registry::default());
    let handler = |_: &Request<()>, peer: IpAddr| Response::new(Full::from(peer.to_string()));
    tokio::spawn(server.serve(handler, pending()));
    let mut socket = connect(address);
    socket.write_all(last_request(KEY).as_bytes()).unwrap();
    assert!(rest(&mut socket).ends_with("\r\n\r\n127.0.0.1"));
}

#[tokio::test]
async fn an_address_that_is_taken_is_named_with_its_flag() {
    let taken = bind(Address::Given("127.0.0.1:0".parse().unwrap()), "--http-address").await.unwrap();
    let error = bind(Address::Given(taken.local_addr().unwrap()), "--http-address").await.unwrap_err();
    assert!(error.to_string().starts_with("--http-address 127.0.0.1:"), "{error}");
}
