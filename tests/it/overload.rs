//! The real verifier under abuse: what it takes up stays below what its limits add up to, and whoever behaves is served.
//!
//! Bounds are made of the program's own constants. Whether a good request is answered counts, not how soon.

use std::fs;
use std::future::Future;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream as Socket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::join_all;
use futures::stream::iter;
use h2::client::SendRequest;
use hyper::Request;
use hyper::body::Bytes;
use keywright::serve::limits::{BODIES_AT_ONCE, Limits};
use keywright::verifier::grpc;
use keywright::verifier::protobuf::{fields, put, put_message};
use keywright::webhook::reviews::LIMITS;
use keywright_core::api::ApiKey;
use keywright_core::key::Key;
use kube::api::PostParams;
use rand::rngs::SysRng;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::verifier::{Bench, answers, get};
use keywright_testing::{ApiRequest, Fault, Installation, Occurrence::Nth, Program, wait};

/// How long a good request may take: as long as whoever sent it would wait on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the program may take up meanwhile that belongs to no connection: a metrics page, what the feed reads, pages that
/// the allocator keeps for each thread.
const UNRELATED: usize = 8 << 20;

/// Octets that a connection of HTTP/1.1 may take up: a head that is read, half as much for an answer, and as much again for
/// what waits for them.
fn http_connection() -> usize {
    2 * Limits::default().head
}

/// The same while a body comes in: up to four of its pieces, each as long as a head, are on the way from the socket to where
/// they are thrown away.
fn http_connection_with_body() -> usize {
    http_connection() + 4 * Limits::default().head
}

/// Octets that a connection of HTTP/2 may hold: what is in flight, and something for each call.
fn grpc_connection() -> usize {
    let (window, calls) = (grpc::CONNECTION_WINDOW, grpc::MAX_CONCURRENT_STREAMS);
    usize::try_from(window).unwrap() + usize::try_from(calls).unwrap() * (2 << 10)
}

/// The same where answers are held that its client does not take in, each as long as there is one.
fn grpc_connection_unheard() -> usize {
    let (window, calls) = (grpc::CONNECTION_WINDOW, grpc::MAX_CONCURRENT_STREAMS);
    usize::try_from(window).unwrap() + usize::try_from(calls).unwrap() * (10 << 10)
}

/// The same while what comes on it is read: the heads of all calls, and of as many that were taken back.
fn grpc_connection_being_read() -> usize {
    let (window, calls) = (grpc::CONNECTION_WINDOW, grpc::MAX_CONCURRENT_STREAMS);
    usize::try_from(window).unwrap() + 2 * usize::try_from(calls).unwrap() * grpc::LIMITS.head
}

/// Octets of messages in pieces that count against no connection's window.
const IN_PIECES: usize = grpc::PLACES * grpc::MAX_MESSAGE;

/// What a program takes up of the machine's memory, in octets: the line of `/proc/<pid>/status`.
fn memory(program: &Program, line: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", program.id())).unwrap();
    let value = status.lines().find_map(|found| found.strip_prefix(line)).unwrap();
    value.trim_start_matches(':').trim_end_matches("kB").trim().parse::<usize>().unwrap() * 1024
}

fn resident(program: &Program) -> usize {
    memory(program, "VmRSS")
}

/// The most that it ever took up.
fn peak(program: &Program) -> usize {
    memory(program, "VmHWM")
}

/// Fails unless the program's peak has grown by no more than that since `before`.
fn assert_peak(program: &Program, before: usize, allowed: usize, during: &str) {
    let grown = peak(program).saturating_sub(before);
    println!("{during}: the peak grew by {} KiB of {} KiB", grown / 1024, allowed / 1024);
    assert!(grown <= allowed, "{during}: {grown} octets more, where {allowed} are allowed");
}

/// Files that it may have open or not at any time: connections of whoever asks good requests, or for metrics.
const COMING_AND_GOING: usize = 8;

/// How many files it has open.
fn open_files(program: &Program) -> usize {
    fs::read_dir(format!("/proc/{}/fd", program.id())).unwrap().count()
}

/// Waits until it has as many files open as are wanted.
async fn until_open_files(program: &Program, is_wanted: impl Fn(usize) -> bool) {
    let started = Instant::now();
    while !is_wanted(open_files(program)) {
        assert!(started.elapsed() < wait::DEADLINE, "{} files are open", open_files(program));
        sleep(Duration::from_millis(10)).await;
    }
}

/// Sets how many files a process may have open.
fn allow_files(id: u32, count: usize) {
    let set = Command::new("prlimit").args([format!("--pid={id}"), format!("--nofile={count}:")]).status();
    assert!(set.unwrap().success(), "{count} files have to be allowed: see `ulimit -Hn`");
}

/// As many files as thousands of connections need, here and in every program that is started here.
fn allow_many_files() {
    allow_files(std::process::id(), 16_384);
}

/// Somebody who behaves, and asks again and again.
struct Good {
    enough: Arc<AtomicBool>,
    asking: JoinHandle<usize>,
}

impl Good {
    fn asking<F: Future<Output = ()> + Send + 'static>(mut ask: impl FnMut() -> F + Send + 'static) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&enough);
        let asking = tokio::spawn(async move {
            let mut answered = 0;
            while !told.load(Ordering::Relaxed) {
                timeout(PATIENCE, ask()).await.expect("a good request is answered");
                answered += 1;
                sleep(Duration::from_millis(10)).await;
            }
            answered
        });
        Self { enough, asking }
    }

    /// Over a connection of its own for each request.
    fn over_http(verifier: &Program, key: &str) -> Self {
        let (address, key) = (verifier.address("http"), key.to_owned());
        Self::asking(move || {
            let key = key.clone();
            async move { assert_eq!(get(address, "/verify", &key).await.0, 200) }
        })
    }

    /// Over one connection.
    async fn over_grpc(verifier: &Program, key: &str) -> Self {
        let (client, request) = (h2_client(verifier.address("grpc")).await, check_request(key));
        Self::asking(move || {
            let (client, request) = (client.clone(), request.clone());
            async move { assert!(is_allowed(&call(&client, request).await.unwrap())) }
        })
    }

    /// Ends it. Returns how many requests were answered.
    async fn end(self) -> usize {
        self.enough.store(true, Ordering::Relaxed);
        let answered = self.asking.await.unwrap();
        assert!(answered > 0);
        answered
    }
}

const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// A `CheckRequest` with this key, in its frame.
fn check_request(key: &str) -> Bytes {
    check_request_with("x-api-key", key)
}

/// A `CheckRequest` with this header, in its frame.
fn check_request_with(name: &str, value: &str) -> Bytes {
    let mut message = Vec::new();
    put_message(&mut message, 1, |attributes| {
        put_message(attributes, 4, |request| {
            put_message(request, 2, |http| {
                put_message(http, 3, |header| {
                    put(header, 1, name.as_bytes());
                    put(header, 2, value.as_bytes());
                });
            });
        });
    });
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0][..], &length, &message].concat().into()
}

/// Whether a framed `CheckResponse` has an `ok_response`.
fn is_allowed(response: &[u8]) -> bool {
    fields(&response[5..]).any(|field| field.unwrap().number == 3)
}

pub(super) async fn h2_client(address: SocketAddr) -> SendRequest<Bytes> {
    let (client, connection) = h2::client::handshake(TcpStream::connect(address).await.unwrap()).await.unwrap();
    tokio::spawn(async move { connection.await.ok() });
    client
}

/// The framed response to a call. An error if the call could not be begun, or was not answered.
async fn call(client: &SendRequest<Bytes>, message: Bytes) -> Result<Vec<u8>, h2::Error> {
    send(client.clone().ready().await?, message).await
}

async fn send(client: SendRequest<Bytes>, message: Bytes) -> Result<Vec<u8>, h2::Error> {
    let (status, response) = outcome(client, CHECK, message).await?;
    assert_eq!(status, "0", "an answer, not a failure");
    Ok(response)
}

/// How a call of `path` ends: `grpc-status`, and the framed response if there is one.
async fn outcome(mut client: SendRequest<Bytes>, path: &str, message: Bytes) -> Result<(String, Vec<u8>), h2::Error> {
    let request = Request::post(format!("http://verifier{path}")).header("content-type", "application/grpc");
    let (response, mut stream) = client.send_request(request.body(()).unwrap(), false)?;
    stream.send_data(message, true)?;
    let (head, mut body) = response.await?.into_parts();
    let mut whole = Vec::new();
    while let Some(data) = body.data().await {
        whole.extend_from_slice(&data?);
    }
    let trailers = body.trailers().await?.unwrap_or(head.headers);
    Ok((trailers["grpc-status"].to_str().unwrap().to_owned(), whole))
}

/// Whether a verifier's gRPC lets a request with this header pass, and the texts of its answer.
pub(super) async fn check_over_grpc(verifier: &Program, name: &str, value: &str) -> (bool, String) {
    let client = h2_client(verifier.address("grpc")).await;
    let response = call(&client, check_request_with(name, value)).await.unwrap();
    (is_allowed(&response), String::from_utf8_lossy(&response).into_owned())
}

/// Whether the key is let in by a call on this connection. A call that fails lets nobody in.
pub(super) async fn lets_in(client: &SendRequest<Bytes>, key: &str) -> Result<bool, h2::Error> {
    let (status, response) = outcome(client.clone().ready().await?, CHECK, check_request(key)).await?;
    Ok(status == "0" && is_allowed(&response))
}

/// How a verifier's gRPC stands: the status of a `Check` with this key, and what the health service says as it is encoded.
pub(super) async fn ask_over_grpc(verifier: &Program, key: &str) -> (String, Vec<u8>) {
    let client = h2_client(verifier.address("grpc")).await.ready().await.unwrap();
    let (status, _) = outcome(client.clone(), CHECK, check_request(key)).await.unwrap();
    let client = client.ready().await.unwrap();
    let health = outcome(client, "/grpc.health.v1.Health/Check", Bytes::from_static(&[0; 5])).await.unwrap();
    assert_eq!(health.0, "0");
    (status, health.1[5..].to_vec())
}

/// What `/metrics` counts of one protocol's decisions.
pub(super) async fn count(verifier: &Program, decision: &str, reason: &str, protocol: &str) -> usize {
    let start = format!(
        "keywright_verify_decisions_total{{decision=\"{decision}\",reason=\"{reason}\",protocol=\"{protocol}\"}} "
    );
    let metrics = verifier.metrics().await;
    metrics.lines().find_map(|line| line.strip_prefix(&start)).unwrap().parse().unwrap()
}

/// A connection that is kept.
struct Kept(TcpStream);

impl Kept {
    async fn open(address: SocketAddr) -> Self {
        Self(TcpStream::connect(address).await.unwrap())
    }

    /// Sends a request and reads the answer's head; an answer that allows has no more.
    async fn ask(&mut self, key: &str) -> String {
        self.write(&good_request(key)).await;
        self.answer().await
    }

    async fn write(&mut self, octets: &str) {
        self.0.write_all(octets.as_bytes()).await.unwrap();
    }

    async fn answer(&mut self) -> String {
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let read = timeout(PATIENCE, self.0.read_buf(&mut answer)).await.expect("an answer").unwrap();
            assert!(read > 0, "a request was sent and not answered: {:?}", String::from_utf8_lossy(&answer));
        }
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        answer
    }

    /// Whether there is nothing more to come.
    async fn is_closed(&mut self) -> bool {
        timeout(PATIENCE, self.0.read(&mut [0; 64])).await.is_ok_and(|read| read.is_ok_and(|length| length == 0))
    }
}

fn good_request(key: &str) -> String {
    format!("GET /verify HTTP/1.1\r\nHost: verifier\r\nX-API-Key: {key}\r\n\r\n")
}

fn says_close(answer: &str) -> bool {
    answer.to_ascii_lowercase().contains("\r\nconnection: close\r\n")
}

/// One octet of a head each second, until the connection is closed by the other side.
async fn dribble(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    for octet in b"GET /verify HTTP/1.1\r\nX-Slow: ".iter().chain([b'a'; 1024].iter()) {
        if stream.write_all(&[*octet]).await.is_err() {
            return;
        }
        if timeout(Duration::from_secs(1), stream.read(&mut [0; 512])).await.is_ok() {
            return;
        }
    }
    panic!("a head may take for ever");
}

/// Sends all of it, or as much as is taken. Returns the status of the answer, if there is one left to be read.
async fn send_much(address: SocketAddr, octets: Arc<[u8]>) -> Option<u16> {
    let (mut reader, mut writer) = TcpStream::connect(address).await.unwrap().into_split();
    let exchange = async {
        let mut answer = Vec::new();
        let _ = tokio::join!(writer.write_all(&octets), reader.read_to_end(&mut answer));
        answer
    };
    let answer = timeout(PATIENCE, exchange).await.expect("an answer, or the end");
    String::from_utf8_lossy(&answer).split(' ').nth(1).map(|status| status.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_connections_and_oversized_requests_take_up_no_more_than_they_may() {
    const IDLE: usize = 5000;
    const SLOW: usize = 2000;
    const LARGE: usize = 200;
    const BODIES: usize = BODIES_AT_ONCE + LARGE;
    allow_many_files();
    let bench = Bench::new("connections").await;
    let verifier = bench.verifier(&["--connections-per-client=100%"]).await;
    let (key, address) = (bench.issue(1).await, verifier.address("http"));
    answers(&verifier, &key, 200).await;
    let good = Good::over_http(&verifier, &key);
    let (before, files_before) = (resident(&verifier), open_files(&verifier));

    let keep = |_| async {
        let mut connection = Kept::open(address).await;
        connection.ask(&key).await;
        connection
    };
    let idle: Vec<Kept> = iter(0..IDLE).map(keep).buffer_unordered(64).collect().await;
    println!("an idle connection takes up {} octets", resident(&verifier).saturating_sub(before) / IDLE);
    assert_peak(&verifier, before, IDLE * http_connection() + UNRELATED, "idle connections");

    let started = Instant::now();
    let slow: Vec<_> = (0..SLOW).map(|_| tokio::spawn(dribble(address))).collect();
    // Else those that are late would count as what comes after them.
    until_open_files(&verifier, |count| count + COMING_AND_GOING >= files_before + IDLE + SLOW).await;
    let oversized: Arc<[u8]> =
        [b"GET /verify HTTP/1.1\r\nHost: v\r\nX-Large: ".to_vec(), vec![b'a'; 64 << 10]].concat().into();
    let heads = join_all((0..LARGE).map(|_| send_much(address, Arc::clone(&oversized)))).await;
    assert!(heads.iter().flatten().all(|status| *status == 431), "{heads:?}");
    assert_peak(&verifier, before, (IDLE + SLOW + LARGE) * http_connection() + UNRELATED, "slow and oversized heads");

    let body = |length: usize| -> Arc<[u8]> {
        let head = format!(
            "POST /verify HTTP/1.1\r\nHost: v\r\nX-API-Key: {key}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        [head.into_bytes(), vec![b'a'; length]].concat().into()
    };
    let (allowed, too_long) = (body(Limits::default().body), body(4 * Limits::default().body));
    let peak_before = peak(&verifier);
    let bodies = (0..BODIES).map(|index| {
        let (octets, is_allowed) = if index % 2 == 0 { (&allowed, true) } else { (&too_long, false) };
        let sending = send_much(address, Arc::clone(octets));
        async move { (is_allowed, sending.await) }
    });
    for (is_allowed, status) in join_all(bodies).await {
        assert!(status == Some(200) || (!is_allowed && status.is_none()), "{status:?}");
    }
    let allowed = BODIES_AT_ONCE * http_connection_with_body() + LARGE * http_connection();
    assert_peak(&verifier, peak_before, allowed + UNRELATED, "large bodies");

    timeout(2 * Limits::default().read_timeout + PATIENCE, join_all(slow)).await.expect("all are closed in the end");
    println!("the slow ones were closed after {:?}", started.elapsed());
    for mut connection in idle.into_iter().step_by(50) {
        connection.ask(&key).await;
    }
    println!(
        "{} good requests; {} KiB before, {} KiB after",
        good.end().await,
        before / 1024,
        resident(&verifier) / 1024
    );

    // All ends are noticed: none takes up a place for ever.
    until_open_files(&verifier, |count| count <= files_before + COMING_AND_GOING).await;
}

/// A connection from another address of loopback, by its last octet.
async fn connect_from(host: u8, address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, host], 0))).unwrap();
    socket.connect(address).await.unwrap()
}

/// What `/metrics` says of a listener: the places that are held, and those closed for each cause.
async fn places(program: &Program, listener: &str) -> [usize; 4] {
    let metrics = program.metrics().await;
    let value = |start: String| metrics.lines().find_map(|line| line.strip_prefix(&start)).unwrap().parse().unwrap();
    let closed = ["listener_full", "client_full", "client_refused"].map(|cause| {
        value(format!("keywright_connections_closed_total{{listener=\"{listener}\",cause=\"{cause}\"}} "))
    });
    let [listener_full, client_full, refused] = closed;
    let held = value(format!("keywright_connections{{listener=\"{listener}\"}} "));
    [held, listener_full, client_full, refused]
}

/// One client that opens as many as there are places, and then three more of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_ask_nothing_keep_nobody_waiting() {
    allow_many_files();
    let bench = Bench::new("idle").await;
    let verifier = bench.verifier(&[]).await;
    let (key, grpc) = (bench.issue(1).await, verifier.address("grpc"));
    answers(&verifier, &key, 200).await;
    let good = async |host| {
        let connection = async {
            let (client, connection) = h2::client::handshake(connect_from(host, grpc).await).await.unwrap();
            tokio::spawn(async move { connection.await.ok() });
            assert!(is_allowed(&call(&client, check_request(&key)).await.unwrap()));
            client
        };
        timeout(PATIENCE, connection).await.expect("a good request is answered")
    };
    let is_ready = async || get(verifier.address("admin"), "/readyz", "").await.0 == 200;

    let mut idle = Vec::new();
    for (clients, host) in (1..).zip([1, 3, 4, 5, 6]) {
        // One that is in the middle of a call is there before all of them.
        let message = check_request(&key);
        let request = Request::post(format!("http://verifier{CHECK}")).header("content-type", "application/grpc");
        let mut busy = good(host).await.ready().await.unwrap();
        let (response, mut stream) = busy.send_request(request.body(()).unwrap(), false).unwrap();
        stream.send_data(message.slice(..10), false).unwrap();
        for _ in 0..grpc::LIMITS.connections {
            idle.push(raw_connection_from(host, grpc).await);
        }
        stream.send_data(message.slice(10..), true).expect("a call that was not cut off");
        let response = timeout(PATIENCE, response).await.expect("an answer").expect("a call that was not cut off");
        assert!(is_allowed(&response.into_body().data().await.unwrap().unwrap()));

        let [held, _, for_their_own, _] = places(&verifier, "grpc").await;
        assert!(
            held <= clients * grpc::LIMITS.connections_per_client + COMING_AND_GOING,
            "{held} of {clients} clients"
        );
        assert!(for_their_own >= clients * (grpc::LIMITS.connections - grpc::LIMITS.connections_per_client));
        good(2).await;
        good(host).await;
        assert!(is_ready().await);
    }
    let [held, for_others, _, refused] = places(&verifier, "grpc").await;
    assert!(held <= grpc::LIMITS.connections, "{held}");
    assert!(for_others > 0 && refused == 0, "{for_others} {refused}");
}

/// A connection on which settings have been exchanged, from that address of loopback.
async fn raw_connection_from(host: u8, address: SocketAddr) -> TcpStream {
    let mut socket = connect_from(host, address).await;
    let beginning = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &frame(SETTINGS, 0, 0, &[])[..]].concat();
    socket.write_all(&beginning).await.unwrap();
    let mut head = [0; 9];
    timeout(PATIENCE, socket.read_exact(&mut head)).await.expect("settings").unwrap();
    assert_eq!(head[3], SETTINGS);
    socket.write_all(&frame(SETTINGS, ACK, 0, &[])).await.unwrap();
    socket
}

/// The real API server asks meanwhile, from the very address that takes up the places and from another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_and_silence_at_the_webhook_hold_up_no_review() {
    allow_many_files();
    let installation = Installation::new("idle-webhook").await;
    let webhook = installation.webhook().await;
    let program = webhook.program.as_ref().unwrap();
    let address = program.address("https");
    let create = async |name: &str| {
        let spec = json!({ "owner": "ada", "expiresIn": "1d" });
        let object = json!({ "metadata": { "name": name }, "spec": spec });
        let object: ApiKey = serde_json::from_value(object).unwrap();
        let (api_keys, parameters) = (installation.tenant(), PostParams::default());
        let created = timeout(PATIENCE, api_keys.create(&parameters, &object)).await;
        created.expect("an answer").expect("a review that is answered");
    };
    let beginning = [0x16, 3, 1, 2, 0, 1, 0];
    let mut idle = Vec::new();
    for host in [1, 2, 3, 4, 5] {
        for number in 0..LIMITS.connections {
            let mut socket = connect_from(host, address).await;
            // The one half says nothing, the other half begins a handshake.
            socket.write_all(&beginning[..beginning.len() * (number % 2)]).await.unwrap();
            idle.push(socket);
        }
        // A review that is sent into a connection which is just being closed is lost: that may happen, and is nothing to try.
        let started = Instant::now();
        while places(program, "https").await.iter().sum::<usize>() < idle.len() {
            assert!(started.elapsed() < PATIENCE, "not all connections have come in");
        }
        create(&format!("meanwhile-{host}")).await;
        assert_eq!(get(program.address("admin"), "/readyz", "").await.0, 200);
    }
    let [held, for_others, for_their_own, refused] = places(program, "https").await;
    assert!(held <= LIMITS.connections && for_others > 0 && for_their_own > 0, "{held} {for_others} {for_their_own}");
    assert_eq!(refused, 0);
}

/// Sends the requests over and over, many at a time, and reads all answers. Returns how many there were.
fn pipeline(address: SocketAddr, requests: &[String], rounds: usize) -> usize {
    let mut socket = Socket::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = vec![0; 64 << 10];
    for _ in 0..rounds {
        socket.write_all(requests.concat().as_bytes()).unwrap();
        let (mut answered, mut tail) = (0, Vec::new());
        while answered < requests.len() {
            let length = socket.read(&mut buffer).unwrap();
            assert!(length > 0);
            tail.extend_from_slice(&buffer[..length]);
            const END: &[u8] = b"API-Key: <key>\\\".\"}";
            while let Some(at) = tail.windows(END.len()).position(|window| window == END) {
                tail.drain(..at + END.len());
                answered += 1;
            }
        }
    }
    rounds * requests.len()
}

/// What the log tells of denials: in lines, and as a number of those that have none.
fn denials_told(verifier: &Program) -> (usize, usize) {
    let printed = verifier.printed();
    let lines: Vec<serde_json::Value> =
        printed.lines().filter_map(|line| serde_json::from_str(line).ok()).filter(is_denial).collect();
    let held_back = lines.iter().filter_map(|line| find(line, "not_logged")?.as_u64()).sum::<u64>();
    (lines.len(), usize::try_from(held_back).unwrap())
}

fn is_denial(line: &serde_json::Value) -> bool {
    find(line, "message").is_some_and(|message| message == "denied")
}

/// A field of a log line, at its top or among its fields.
fn find<'l>(line: &'l serde_json::Value, name: &str) -> Option<&'l serde_json::Value> {
    line.get(name).or_else(|| line.get("fields")?.get(name))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn junk_credentials_at_full_rate_are_counted_and_drown_neither_log_nor_requests() {
    const CONNECTIONS: usize = 4;
    const AT_ONCE: usize = 32;
    const HTTP_ROUNDS: usize = 100;
    const GRPC_ROUNDS: usize = 60;
    let bench = Bench::new("junk").await;
    let verifier = bench.verifier(&[]).await;
    let key = bench.issue(1).await;
    answers(&verifier, &key, 200).await;
    let grpc_client = h2_client(verifier.address("grpc")).await;
    let counts = async || {
        let mut all = Vec::new();
        for protocol in ["http", "grpc"] {
            for (decision, reason) in [("allow", "allowed"), ("deny", "malformed"), ("deny", "unknown")] {
                all.push(count(&verifier, decision, reason, protocol).await);
            }
        }
        all
    };
    let (before, told_before, peak_before) = (counts().await, denials_told(&verifier), peak(&verifier));
    let good = (Good::over_http(&verifier, &key), Good::over_grpc(&verifier, &key).await);

    // By turns one that is no key, and one that looks like a key to the last octet.
    let junk: Vec<String> = (0..AT_ONCE)
        .map(|index| match index % 2 {
            0 => format!("keyw1_{index:049}"),
            _ => Key::mint(&mut SysRng).unwrap().reveal().to_owned(),
        })
        .collect();
    let requests: Vec<String> = junk.iter().map(|key| good_request(key)).collect();
    let messages: Vec<Bytes> = junk.iter().map(|key| check_request(key)).collect();
    let address = verifier.address("http");
    let started = Instant::now();
    let over_http: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let requests = requests.clone();
            thread::spawn(move || pipeline(address, &requests, HTTP_ROUNDS))
        })
        .collect();
    let over_grpc = join_all((0..CONNECTIONS).map(|_| async {
        let client = h2_client(verifier.address("grpc")).await;
        for _ in 0..GRPC_ROUNDS {
            for answer in join_all(messages.iter().map(|message| call(&client, message.clone()))).await {
                assert!(!is_allowed(&answer.unwrap()));
            }
        }
    }));
    over_grpc.await;
    for flood in over_http {
        let sent = tokio::task::spawn_blocking(|| flood.join().unwrap()).await.unwrap();
        assert_eq!(sent, HTTP_ROUNDS * AT_ONCE);
    }
    let took = started.elapsed();
    let good = (good.0.end().await, good.1.end().await);
    let counted: Vec<usize> = counts().await.iter().zip(&before).map(|(after, before)| after - before).collect();
    let half = |rounds| CONNECTIONS * rounds * AT_ONCE / 2;
    let (http, grpc) = (half(HTTP_ROUNDS), half(GRPC_ROUNDS));
    assert_eq!(counted, [good.0, http, http, good.1, grpc, grpc]);
    println!("{} denials within {took:?}, and {good:?} good requests", 2 * (http + grpc));

    let (lines, _) = denials_told(&verifier);
    let seconds = usize::try_from(took.as_secs()).unwrap() + 2;
    // Two protocols, a hundred lines each.
    assert!(lines <= seconds * 2 * 100, "{lines} lines in {took:?}");
    let allowed = CONNECTIONS * (http_connection() + grpc_connection()) + UNRELATED;
    assert_peak(&verifier, peak_before, allowed, "junk credentials");

    // The next line tells of those that had none.
    let mut denied = 2 * (http + grpc) + told_before.0 + told_before.1;
    let started = Instant::now();
    loop {
        assert_eq!(get(address, "/verify", "junk").await.0, 401);
        assert!(!is_allowed(&call(&grpc_client, check_request("junk")).await.unwrap()));
        denied += 2;
        sleep(Duration::from_millis(100)).await;
        let told = denials_told(&verifier);
        if told.0 + told.1 == denied {
            break;
        }
        assert!(started.elapsed() < wait::DEADLINE, "{told:?} of {denied}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_file_descriptors_it_waits_and_then_goes_on() {
    let bench = Bench::new("files").await;
    let verifier = bench.verifier(&[]).await;
    let (key, revoked) = (bench.issue(1).await, bench.issue(2).await);
    answers(&verifier, &key, 200).await;
    answers(&verifier, &revoked, 200).await;
    let address = verifier.address("http");
    let mut kept = Kept::open(address).await;
    kept.ask(&key).await;

    let open = open_files(&verifier);
    allow_files(verifier.id(), open + 8);
    let mut waiting = join_all((0..64).map(|_| Kept::open(address))).await;
    verifier.says("cannot accept a connection").await;
    kept.ask(&key).await;

    // Not even a connection to the API server can be had.
    allow_files(verifier.id(), 1);
    let cut = bench.faults.inject(Fault::CutWatch, Nth(1), |request: &ApiRequest| request.watch);
    bench.revoke(2).await;
    cut.hit().await;
    verifier.says("cannot follow apikeyrecords").await;
    kept.ask(&key).await;

    allow_files(verifier.id(), open + 256);
    for connection in &mut waiting {
        connection.ask(&key).await;
    }
    answers(&verifier, &revoked, 401).await;
    answers(&verifier, &key, 200).await;
    kept.ask(&key).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verifier_that_is_ended_under_load_leaves_no_request_without_its_answer() {
    const CLIENTS: usize = 16;
    let bench = Bench::new("sigterm").await;
    let verifier = bench.verifier(&[]).await;
    let key = bench.issue(1).await;
    answers(&verifier, &key, 200).await;
    let (address, admin) = (verifier.address("http"), verifier.address("admin"));
    let answered = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (key, answered) = (key.clone(), Arc::clone(&answered));
            tokio::spawn(async move {
                let mut connection = Kept::open(address).await;
                while !says_close(&connection.ask(&key).await) {
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                assert!(connection.is_closed().await);
            })
        })
        .collect();
    let (client, message) = (h2_client(verifier.address("grpc")).await, check_request(&key));
    let over_grpc = tokio::spawn(async move {
        // An error here is the server's word that no more calls are taken: nothing was sent.
        while let Ok(ready) = client.clone().ready().await {
            assert!(is_allowed(&send(ready, message.clone()).await.expect("a call that was sent is answered")));
        }
    });
    let mut half_sent = Kept::open(address).await;
    let request = good_request(&key);
    let (beginning, rest) = request.split_at(request.len() / 2);
    half_sent.write(beginning).await;
    while answered.load(Ordering::Relaxed) < 20 * CLIENTS {
        sleep(Duration::from_millis(5)).await;
    }

    let signal = Command::new("kill").args(["-TERM", &verifier.id().to_string()]).status();
    assert!(signal.unwrap().success());
    let waited = Instant::now();
    while get(admin, "/readyz", "").await.0 != 503 {
        assert!(waited.elapsed() < wait::DEADLINE, "it is Ready for ever");
    }
    // Proxies have yet to hear of that: they open connections, and are answered.
    let mut late = Kept::open(address).await;
    assert!(says_close(&late.ask(&key).await) && late.is_closed().await);
    half_sent.write(rest).await;
    assert!(says_close(&half_sent.answer().await));
    for client in clients {
        timeout(PATIENCE, client).await.expect("every client is told to close").unwrap();
    }
    timeout(PATIENCE, over_grpc).await.expect("it is told over gRPC, too").unwrap();
    assert_eq!(verifier.exited().await.code(), Some(0));
    println!("{} requests, all answered", answered.load(Ordering::Relaxed));
}

/// A frame of HTTP/2 (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// The head of a call of `Check` in HPACK, without any state.
fn call_head() -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    // :method POST, :scheme http; :path and content-type by the number of their name.
    [vec![0x83, 0x86, 0x04], text(CHECK), vec![0x0f, 0x10], text("application/grpc")].concat()
}

/// The same, with as many octets as a head may have, nearly.
fn long_call_head() -> Vec<u8> {
    let field = [&[0, 1, b'a', 120], &[b'b'; 120][..]].concat();
    [call_head(), field.repeat(50)].concat()
}

/// A call that goes on for so many octets, and does not end.
fn endless_call(stream: u32, octets: usize) -> Vec<u8> {
    let parts = vec![b'a'; octets];
    let data = parts.chunks(16_384).flat_map(|part| frame(DATA, 0, stream, part));
    frame(HEADERS, END_HEADERS, stream, &call_head()).into_iter().chain(data).collect()
}

/// A connection on which settings have been exchanged.
fn raw_connection(address: SocketAddr) -> Socket {
    let mut socket = Socket::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    socket.write_all(&frame(SETTINGS, 0, 0, &[])).unwrap();
    let mut head = [0; 9];
    socket.read_exact(&mut head).unwrap();
    assert_eq!(head[3], SETTINGS);
    socket.write_all(&frame(SETTINGS, ACK, 0, &[])).unwrap();
    socket
}

/// Sends `start`, and then what `next` makes of a number that counts up, as fast as it is taken in, for a second.
/// Whoever does not listen leaves the answers to pile up on the other side. Returns how many octets were sent.
fn flood(address: SocketAddr, start: &[u8], next: &dyn Fn(u32) -> Vec<u8>, listens: bool) -> usize {
    let mut socket = raw_connection(address);
    socket.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut answers = socket.try_clone().unwrap();
    let listening = listens.then(|| {
        thread::spawn(move || {
            let mut buffer = [0; 16_384];
            while answers.read(&mut buffer).is_ok_and(|length| length > 0) {}
        })
    });
    let started = Instant::now();
    let mut sent = socket.write_all(start);
    let (mut numbers, mut length) = (0.., start.len());
    while sent.is_ok() && started.elapsed() < Duration::from_secs(1) {
        let octets: Vec<u8> = numbers.by_ref().take(64).flat_map(next).collect();
        sent = socket.write_all(&octets);
        length += octets.len();
    }
    if let Err(error) = sent {
        let refused = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset, ErrorKind::WouldBlock, ErrorKind::TimedOut];
        assert!(refused.contains(&error.kind()), "{error}");
    }
    socket.shutdown(std::net::Shutdown::Both).ok();
    if let Some(listening) = listening {
        listening.join().unwrap();
    }
    length
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_http_2_take_up_no_more_than_their_connections_may() {
    const FLOODING: usize = 6;
    const HOLDING: usize = 40;
    type Next = Box<dyn Fn(u32) -> Vec<u8> + Send + Sync>;
    let bench = Bench::new("floods").await;
    let verifier = bench.verifier(&[]).await;
    let (key, address) = (bench.issue(1).await, verifier.address("grpc"));
    answers(&verifier, &key, 200).await;
    let good = (Good::over_http(&verifier, &key), Good::over_grpc(&verifier, &key).await);

    let begun = frame(HEADERS, END_HEADERS, 1, &call_head());
    let unfinished = frame(HEADERS, 0, 1, &call_head());
    // A head that goes on: no name in the table, one octet each of name and value.
    let more_head = frame(CONTINUATION, 0, 1, &[0, 1, b'a', 1, b'b'].repeat(100));
    let open = |number: u32| frame(HEADERS, END_HEADERS, 2 * number + 1, &call_head());
    let reset = move |number: u32| [open(number), frame(RST_STREAM, 0, 2 * number + 1, &[0, 0, 0, 8])].concat();
    let constant = |octets: Vec<u8>| -> Next { Box::new(move |_| octets.clone()) };
    let floods: [(&str, Vec<u8>, Next); 9] = [
        ("streams that are reset at once", vec![], Box::new(reset)),
        ("a head without an end", unfinished, constant(more_head)),
        ("pings", vec![], constant(frame(PING, 0, 0, &[0; 8]))),
        ("settings", vec![], constant(frame(SETTINGS, 0, 0, &[]))),
        ("priorities", vec![], constant(frame(PRIORITY, 0, 1, &[0; 5]))),
        ("window updates", vec![], constant(frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]))),
        ("empty data", begun, constant(frame(DATA, 0, 1, &[]))),
        ("streams without an end", vec![], Box::new(open)),
        ("more data than there is a window for", vec![], Box::new(|number| endless_call(2 * number + 1, 100 << 10))),
    ];
    for (name, start, next) in floods {
        let before = peak(&verifier);
        let (start, next) = (Arc::new(start), Arc::new(next));
        let all = (0..FLOODING).map(|index| {
            let (start, next) = (Arc::clone(&start), Arc::clone(&next));
            tokio::task::spawn_blocking(move || flood(address, &start, &**next, index % 2 == 0))
        });
        let sent: usize = join_all(all).await.into_iter().map(Result::unwrap).sum();
        println!("{name}: {} KiB were sent", sent / 1024);
        let in_pieces = if name == "more data than there is a window for" { IN_PIECES } else { 0 };
        assert_peak(&verifier, before, FLOODING * grpc_connection_being_read() + in_pieces + UNRELATED, name);
    }

    // Within the window: these are held until they are told that they took too long.
    let (before, peak_before) = (resident(&verifier), peak(&verifier));
    let held: Vec<Socket> = (0..HOLDING)
        .map(|_| {
            let mut socket = raw_connection(address);
            let calls = [endless_call(1, 100 << 10), endless_call(3, 100 << 10), endless_call(5, 50 << 10)].concat();
            let others = (3..100).flat_map(|number| frame(HEADERS, END_HEADERS, 2 * number + 1, &long_call_head()));
            let others: Vec<u8> = others.collect();
            socket.write_all(&[calls, others].concat()).unwrap();
            socket
        })
        .collect();
    let started = Instant::now();
    while resident(&verifier) < before + HOLDING * (100 << 10) {
        assert!(started.elapsed() < grpc::LIMITS.read_timeout, "nothing is held, which is no flood");
        sleep(Duration::from_millis(10)).await;
    }
    assert_peak(&verifier, peak_before, HOLDING * grpc_connection() + IN_PIECES + UNRELATED, "calls without an end");
    drop(held);
    println!("{} over HTTP, {} over gRPC were answered meanwhile", good.0.end().await, good.1.end().await);
}

/// The longest there are, for clients that give no window to send them in.
#[tokio::test]
async fn answers_that_nobody_takes_in_take_up_no_more_than_they_may() {
    const CONNECTIONS: usize = 40;
    let bench = Bench::new("unheard").await;
    let verifier = bench.verifier(&[]).await;
    let scopes: Vec<String> = (10..42).map(|number| format!("{number}{}", "s".repeat(62))).collect();
    let key = bench.issue(1).await;
    bench.change(1, json!({ "scopes": scopes, "owner": "o".repeat(128) })).await;
    let started = Instant::now();
    while get(verifier.address("http"), &format!("/verify?scope={}", scopes[31]), &key).await.0 != 200 {
        assert!(started.elapsed() < wait::DEADLINE, "its scopes are not known");
    }
    let calls: Vec<u8> = (1..129)
        .flat_map(|number| {
            let head = frame(HEADERS, END_HEADERS, 2 * number + 1, &call_head());
            [head, frame(DATA, END_STREAM, 2 * number + 1, &check_request(&key))].concat()
        })
        .collect();
    let peak_before = peak(&verifier);
    let unheard: Vec<Socket> = (0..CONNECTIONS)
        .map(|_| {
            let mut socket = raw_connection(verifier.address("grpc"));
            socket.write_all(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).unwrap();
            socket.write_all(&calls).unwrap();
            socket
        })
        .collect();
    let started = Instant::now();
    while count(&verifier, "allow", "allowed", "grpc").await < CONNECTIONS * 128 {
        assert!(started.elapsed() < wait::DEADLINE, "not all of them are answered");
    }
    let may = CONNECTIONS * grpc_connection_unheard() + UNRELATED;
    assert_peak(&verifier, peak_before, may, "answers that nobody takes in");
    drop(unheard);
}
