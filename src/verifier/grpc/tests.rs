use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream as Socket};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

use futures::future::join_all;
use h2::client::SendRequest;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::super::decisions::{Decisions, Tally};
use super::super::protobuf::put;
use super::*;
use crate::serve::connections::Listener;
use crate::serve::listen::{Address, bind};
use crate::serve::room::Occupancy;
use crate::serve::workers::Workers;
use crate::testing::running::PATIENCE;
use crate::verifier::feed::Feed;
use keywright_core::client_address::ClientAddressSource;
use keywright_core::key::Key;
use keywright_core::keyring::Keyring;
use keywright_core::testing::{record_name, stored};

const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// A `CheckRequest` without a key: refused, which is an answer as good as any.
const NO_KEY: &[u8] = &[];

/// The client's connection preface, with its settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// `:method POST`, `:scheme http`, `:path /`, from HPACK's static table.
const HEAD: &[u8] = &[0x83, 0x86, 0x84];

/// A server on loopback, and how to end it.
struct Running {
    address: SocketAddr,
    leaving: Leaving,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

fn noon() -> jiff::Timestamp {
    "2026-11-23T12:00:00Z".parse().unwrap()
}

/// How a call ended: `grpc-status`, and the message without its prefix.
type Outcome = (u16, Vec<u8>);

impl Running {
    async fn start(limits: Limits) -> Self {
        Self::deciding_at(limits, noon).await
    }

    async fn deciding_at(limits: Limits, now: fn() -> jiff::Timestamp) -> Self {
        Self::knowing(&Keyring::default(), limits, now).await
    }

    async fn knowing(keyring: &Keyring, limits: Limits, now: fn() -> jiff::Timestamp) -> Self {
        Self::of(Arc::new(Feed::holding(keyring)), limits, now, || true).await
    }

    async fn of(
        feed: Arc<Feed>,
        limits: Limits,
        now: fn() -> jiff::Timestamp,
        is_ready: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Self {
        let tcp = bind(Address::Given("127.0.0.1:0".parse().unwrap()), "--grpc-address").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let decisions = Decisions::new(feed, now, Arc::new(Tally::new("grpc")));
        let authorization = Authorization::new(decisions, ClientAddressSource::Peer);
        let services = Services { authorization, is_ready: Box::new(is_ready) };
        let (workers, leaving) = (Workers::current(), Leaving::default());
        let server = Server {
            listener: Listener::plain(tcp),
            limits,
            workers,
            leaving: leaving.clone(),
            occupancy: Occupancy::default(),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(serve(server, services, async { stopped.await.unwrap_or_default() }));
        Self { address, leaving, stop, task }
    }

    async fn connect(&self) -> SendRequest<Bytes> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (client, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(async move { connection.await.ok() });
        client
    }

    fn connect_plain(&self) -> Socket {
        let socket = Socket::connect(self.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }
}

/// A frame of HTTP/2.
fn raw(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The type and the stream of the next frame.
fn read_frame(socket: &mut Socket) -> (u8, u32) {
    let mut head = [0; 9];
    socket.read_exact(&mut head).unwrap();
    let [a, b, c, kind, _, stream @ ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    socket.read_exact(&mut payload).unwrap();
    (kind, u32::from_be_bytes(stream))
}

fn frame(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0][..], &length, message].concat()
}

fn request(path: &str, content_type: &str) -> Request<()> {
    let request = Request::post(format!("http://verifier{path}")).header(CONTENT_TYPE, content_type);
    request.header("te", "trailers").body(()).unwrap()
}

/// Sends `parts` as DATA frames of one call.
async fn send(client: &SendRequest<Bytes>, path: &str, parts: &[Vec<u8>]) -> Outcome {
    let mut client = client.clone().ready().await.unwrap();
    let (response, mut stream) = client.send_request(request(path, "application/grpc"), parts.is_empty()).unwrap();
    for (index, part) in parts.iter().enumerate() {
        stream.send_data(part.clone().into(), index + 1 == parts.len()).unwrap();
    }
    outcome(response.await.unwrap()).await
}

async fn outcome(response: Response<RecvStream>) -> Outcome {
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()[CONTENT_TYPE], "application/grpc");
    let status = |headers: &HeaderMap| headers[GRPC_STATUS].to_str().unwrap().parse().unwrap();
    if response.headers().contains_key(GRPC_STATUS) {
        assert!(!response.headers()[GRPC_MESSAGE].is_empty());
        return (status(response.headers()), Vec::new());
    }
    let mut body = response.into_body();
    let mut whole = Vec::new();
    while let Some(data) = body.data().await {
        whole.extend_from_slice(&data.unwrap());
    }
    let trailers = body.trailers().await.unwrap().unwrap();
    (status(&trailers), unframe(&whole).unwrap().to_vec())
}

async fn check(client: &SendRequest<Bytes>) {
    let (status, response) = send(client, CHECK, &[frame(NO_KEY)]).await;
    assert_eq!(status, 0);
    let denied = fields(&response).any(|field| field.unwrap().number == 2);
    assert!(denied, "{response:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_answered_one_after_another_and_all_at_once() {
    let running = Running::start(LIMITS).await;
    let client = running.connect().await;
    for _ in 0..3 {
        check(&client).await;
    }
    join_all((0..500).map(|_| check(&client))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_call_gets_the_answer_to_its_own_question() {
    let mut random = StdRng::seed_from_u64(5);
    let keys: Vec<Key> = (0..400).map(|_| Key::mint(&mut random).unwrap()).collect();
    let mut keyring = Keyring::default();
    for (number, key) in (0..).zip(&keys).step_by(2) {
        let api_key = json!({ "namespace": "team-a", "name": format!("key-{number}."), "uid": "c" });
        let spec = json!({ "digest": key.digest().to_string(), "apiKey": api_key });
        keyring.upsert(&stored(&record_name(number + 1), &spec)).unwrap();
    }
    let running = Running::knowing(&keyring, LIMITS, noon).await;
    let client = running.connect().await;
    let ask = |(number, key): (usize, &Key)| {
        let mut header = Vec::new();
        put(&mut header, 1, b"x-api-key");
        put(&mut header, 2, key.reveal().as_bytes());
        // In headers, http, request and attributes.
        let message = [3, 2, 4, 1].into_iter().fold(header, |inner, field| {
            let mut outer = Vec::new();
            put(&mut outer, field, &inner);
            outer
        });
        let client = client.clone();
        async move {
            match number % 5 {
                3 => assert_eq!(send(&client, CHECK, &[frame(b"?")]).await.0, Failure::INVALID_ARGUMENT.code),
                4 => assert_eq!(send(&client, HEALTH, &[frame(&[])]).await, (0, vec![8, 1])),
                _ => {
                    let (status, response) = send(&client, CHECK, &[frame(&message)]).await;
                    let name = format!("key-{number}.");
                    let tells_name = response.windows(name.len()).any(|octets| octets == name.as_bytes());
                    let is_allowed = fields(&response).any(|field| field.unwrap().number == 3);
                    let is_known = number % 2 == 0;
                    assert_eq!((status, is_allowed, tells_name), (0, is_known, is_known), "{number}");
                }
            }
        }
    };
    join_all(keys.iter().enumerate().map(ask)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_may_come_in_pieces() {
    let running = Running::start(LIMITS).await;
    let client = running.connect().await;
    let mut large = Vec::new();
    put(&mut large, 9, &[b'x'; 100_000]);
    let framed = frame(&large);
    let (prefix, message) = framed.split_at(PREFIX);
    for parts in [
        vec![framed.clone(), vec![]],
        vec![prefix.to_vec(), message.to_vec()],
        vec![framed[..2].to_vec(), framed[2..5000].to_vec(), vec![], framed[5000..].to_vec(), vec![]],
    ] {
        assert_eq!(send(&client, CHECK, &parts).await.0, 0);
    }
}

/// As much as the connection's window holds, and no message of it whole: the client has to be let on.
#[tokio::test(flavor = "multi_thread")]
async fn messages_in_pieces_do_not_block_one_another() {
    let running = Running::start(LIMITS).await;
    let mut socket = running.connect_plain();
    socket.write_all(PREFACE).unwrap();
    let window_is_wider = |socket: &mut Socket| loop {
        let (kind, stream) = read_frame(socket);
        if (kind, stream) == (8, 0) {
            break;
        }
        assert!(matches!(kind, 4 | 8), "a frame of type {kind}");
    };
    window_is_wider(&mut socket);
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    // :method POST, :scheme http, and literal values for :path and content-type.
    let head = [&[0x83, 0x86, 0x04][..], &text(CHECK), &[0x0f, 0x10], &text("application/grpc")].concat();
    let beginning = &frame(&[0; 60_000])[..16_384];
    for stream in (1..).step_by(2).take(CONNECTION_WINDOW as usize / beginning.len()) {
        socket.write_all(&[raw(1, 4, stream, &head), raw(0, 0, stream, beginning)].concat()).unwrap();
    }
    window_is_wider(&mut socket);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_call_is_told_so_and_disturbs_no_other() {
    let running = Running::start(LIMITS).await;
    let client = running.connect().await;
    let compressed = [&[1][..], &frame(NO_KEY)[1..]].concat();
    let cases = [
        ("nothing", CHECK, vec![], 3),
        ("an empty frame", CHECK, vec![vec![]], 3),
        ("half a prefix", CHECK, vec![vec![0, 0]], 3),
        ("half a message", CHECK, vec![frame(b"abc")[..6].to_vec()], 3),
        ("two messages", CHECK, vec![frame(NO_KEY), frame(NO_KEY)], 3),
        ("compressed", CHECK, vec![compressed], 3),
        ("no CheckRequest", CHECK, vec![frame(b"?")], 3),
        ("too long", CHECK, vec![frame(&[0; MAX_MESSAGE + 1])], 8),
        ("another method", "/envoy.service.auth.v3.Authorization/Ask", vec![frame(NO_KEY)], 12),
        ("another version", "/envoy.service.auth.v2.Authorization/Check", vec![frame(NO_KEY)], 12),
        ("no path", "/", vec![frame(NO_KEY)], 12),
    ];
    for (case, path, parts, expected) in cases {
        assert_eq!(send(&client, path, &parts).await, (expected, vec![]), "{case}");
        check(&client).await;
    }
    for (method, content_type) in [
        ("POST", "application/json"),
        ("POST", ""),
        ("POST", "application/grpc-web"),
        ("POST", "application/grpcs"),
        ("GET", "application/grpc"),
    ] {
        let mut client = client.clone().ready().await.unwrap();
        let mut request = request(CHECK, content_type);
        *request.method_mut() = method.parse().unwrap();
        let (response, _) = client.send_request(request, true).unwrap();
        assert_eq!(response.await.unwrap().status(), 415, "{method} {content_type}");
    }
    for content_type in ["application/grpc+proto", "application/grpc; charset=utf-8"] {
        let mut client = client.clone().ready().await.unwrap();
        let (response, mut stream) = client.send_request(request(CHECK, content_type), false).unwrap();
        stream.send_data(frame(NO_KEY).into(), true).unwrap();
        assert_eq!(outcome(response.await.unwrap()).await.0, 0, "{content_type}");
    }
    let mut sender = client.clone().ready().await.unwrap();
    let mut request = request(CHECK, "application/grpc");
    request.headers_mut().insert("x", "x".repeat(LIMITS.head).parse().unwrap());
    let (response, _) = sender.send_request(request, true).unwrap();
    assert_eq!(response.await.unwrap().status(), 431);
    check(&client).await;
}

/// An Envoy takes back what was not answered in time. All that it had under way at once is no flood.
#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_all_taken_back_leave_the_connection_as_it_is() {
    let running = Running::start(LIMITS).await;
    let mut socket = running.connect_plain();
    let open = MAX_CONCURRENT_STREAMS - 1;
    let resets = (0..open).flat_map(|n| [raw(1, 4, 2 * n + 1, HEAD), raw(3, 0, 2 * n + 1, &[0, 0, 0, 8])].concat());
    let resets: Vec<u8> = resets.collect();
    let ping = raw(6, 0, 0, b"answered");
    socket.write_all(&[PREFACE, &resets, &ping].concat()).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"answered") {
        let mut octet = [0];
        assert_eq!(socket.read(&mut octet).unwrap(), 1, "the connection ended with {answer:?}");
        answer.extend(octet);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_told_as_grpc_has_it() {
    let is_ready = Arc::new(AtomicBool::new(true));
    let asked = Arc::clone(&is_ready);
    let feed = Arc::new(Feed::holding(&Keyring::default()));
    let running = Running::of(feed, LIMITS, noon, move || asked.load(Ordering::SeqCst)).await;
    let client = running.connect().await;
    let health = async |service: &str| {
        let mut message = Vec::new();
        put(&mut message, 1, service.as_bytes());
        send(&client, HEALTH, &[frame(&message)]).await
    };
    let (serving, not_serving) = ((0, vec![8, 1]), (0, vec![8, 2]));
    assert_eq!(send(&client, HEALTH, &[frame(&[])]).await, serving);
    assert_eq!(health("envoy.service.auth.v3.Authorization").await, serving);
    assert_eq!(health("another").await, (5, vec![]));
    assert_eq!(send(&client, HEALTH, &[frame(b"?")]).await.0, 3);
    assert_eq!(send(&client, "/grpc.health.v1.Health/Watch", &[frame(&[])]).await.0, 12);
    is_ready.store(false, Ordering::SeqCst);
    assert_eq!(health("").await, not_serving);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_fails_its_own_call_and_nothing_else() {
    static PANICS: AtomicBool = AtomicBool::new(true);
    let now = || {
        assert!(!PANICS.load(Ordering::SeqCst), "on purpose");
        noon()
    };
    let running = Running::deciding_at(LIMITS, now).await;
    let client = running.connect().await;
    assert_eq!(send(&client, CHECK, &[frame(NO_KEY)]).await, (13, vec![]));
    PANICS.store(false, Ordering::SeqCst);
    check(&client).await;
}

/// Envoy then answers as its `status_on_error` says, and what asks for health sends no calls here.
#[tokio::test(flavor = "multi_thread")]
async fn without_records_to_rely_on_a_check_is_unavailable_and_health_not_serving() {
    let feed = Arc::new(Feed::of_a_stranger());
    let known = Arc::clone(&feed);
    let running = Running::of(feed, LIMITS, noon, move || known.membership().read().until.is_some()).await;
    let client = running.connect().await;
    let unavailable = (14, vec![]);
    assert_eq!(send(&client, CHECK, &[frame(NO_KEY)]).await, unavailable);
    assert_eq!(send(&client, CHECK, &[frame(NO_KEY), vec![]]).await, unavailable, "in pieces");
    let message = [frame(NO_KEY)];
    let burst = join_all((0..20).map(|_| send(&client, CHECK, &message))).await;
    assert!(burst.iter().all(|outcome| *outcome == unavailable), "{burst:?}");
    assert_eq!(send(&client, HEALTH, &[frame(&[])]).await, (0, vec![8, 2]));
}

/// All of this runs on one thread, so that what the client sends without waiting arrives together.
#[tokio::test]
async fn a_panic_in_a_burst_fails_its_own_call_and_no_other_of_the_burst() {
    static DECISIONS: AtomicU32 = AtomicU32::new(0);
    static PROBES: AtomicU32 = AtomicU32::new(0);
    let now = || {
        assert_ne!(DECISIONS.fetch_add(1, Ordering::SeqCst), 1, "on purpose");
        noon()
    };
    let is_ready = || {
        assert_ne!(PROBES.fetch_add(1, Ordering::SeqCst), 1, "on purpose");
        true
    };
    let running = Running::of(Arc::new(Feed::holding(&Keyring::default())), LIMITS, now, is_ready).await;
    let client = running.connect().await;
    let (check, probe) = ((CHECK, frame(NO_KEY)), (HEALTH, frame(&[])));
    let calls = [&check, &check, &check, &probe, &probe, &probe];
    let outcomes = join_all(calls.map(|(path, message)| send(&client, path, std::slice::from_ref(message)))).await;
    assert_eq!(outcomes.iter().map(|(status, _)| *status).collect::<Vec<_>>(), [0, 13, 0, 0, 13, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_never_ends_is_ended_and_its_connection_goes_on() {
    let running = Running::start(Limits { read_timeout: Duration::from_millis(100), ..LIMITS }).await;
    let client = running.connect().await;
    let mut sender = client.clone().ready().await.unwrap();
    let (response, mut stream) = sender.send_request(request(CHECK, "application/grpc"), false).unwrap();
    stream.send_data(vec![0].into(), false).unwrap();
    assert_eq!(outcome(response.await.unwrap()).await, (4, vec![]));
    check(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_speaks_no_http_2_or_half_of_it_is_cut_off() {
    let running = Running::start(Limits { read_timeout: Duration::from_millis(100), ..LIMITS }).await;
    for beginning in [
        "",
        "PRI * HTTP/2.0\r\n",
        "GET / HTTP/1.1\r\nHost: v\r\n\r\n",
        "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
    ] {
        let mut socket = running.connect_plain();
        socket.write_all(beginning.as_bytes()).unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).ok();
        assert!(!answer.starts_with(b"HTTP"), "{beginning:?}");
    }
    check(&running.connect().await).await;
}

/// Octets that come without an end, one by one: what they are part of has no limit of its own, and they put nothing off.
#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_does_not_come_to_its_end_ends_its_connection() {
    let running = Running::start(Limits { idle_timeout: Duration::from_millis(100), ..LIMITS }).await;
    let unfinished = |kind| raw(kind, 0, 1, &[0; 16_384])[..9].to_vec();
    let continued = [raw(1, 0, 1, HEAD), unfinished(9)].concat();
    for (case, beginning) in [("half a HEADERS frame", unfinished(1)), ("half a CONTINUATION frame", continued)] {
        let mut socket = running.connect_plain();
        socket.write_all(&[PREFACE, &beginning].concat()).unwrap();
        let started = Instant::now();
        while socket.write_all(&[0]).is_ok() {
            assert!(started.elapsed() < PATIENCE, "{case}: the connection lives on");
            sleep(Duration::from_millis(5)).await;
        }
        println!("{case}: ended after {:?}", started.elapsed());
        check(&running.connect().await).await;
    }
}

/// One place, and each that holds it has nothing in flight, whatever it does beside that.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_calls_makes_room_and_is_told() {
    const GOAWAY: u8 = 7;
    let running = Running::start(Limits { connections: 1, ..LIMITS }).await;
    let ping = raw(6, 0, 0, &[0; 8]);
    for (case, beginning, is_told) in [
        ("nothing", vec![], false),
        ("half a preface", PREFACE[..10].to_vec(), false),
        ("settings", PREFACE.to_vec(), true),
        ("pings", [PREFACE, &ping].concat(), true),
        ("half a head", [PREFACE, &ping, &raw(1, 0, 1, HEAD)].concat(), true),
        ("half a frame", [PREFACE, &ping, &raw(1, 0, 1, &[0; 100])[..9]].concat(), true),
    ] {
        let mut socket = running.connect_plain();
        socket.write_all(&beginning).unwrap();
        if is_told {
            assert_eq!(read_frame(&mut socket), (4, 0), "{case}: settings");
        }
        check(&running.connect().await).await;
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).ok();
        let kinds = rest.split_at_checked(rest.len().saturating_sub(17)).map(|(_, last)| last.get(3).copied());
        assert_eq!(kinds.flatten() == Some(GOAWAY), is_told, "{case}: {rest:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_in_flight_is_not_cut_off_for_a_new_connection() {
    let running = Running::start(Limits { connections: 2, ..LIMITS }).await;
    let busy = running.connect().await;
    let mut sender = busy.clone().ready().await.unwrap();
    let (response, mut stream) = sender.send_request(request(CHECK, "application/grpc"), false).unwrap();
    stream.send_data(vec![0].into(), false).unwrap();
    check(&busy).await;
    for _ in 0..5 {
        check(&running.connect().await).await;
    }
    stream.send_data(frame(NO_KEY)[1..].to_vec().into(), true).unwrap();
    assert_eq!(outcome(response.await.unwrap()).await.0, 0);
    check(&busy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_is_told_before_it_is_closed() {
    let running = Running::start(Limits { idle_timeout: Duration::from_millis(100), ..LIMITS }).await;
    // On a busy machine, a client may come to its answer to the GOAWAY when the connection is closed already.
    for _ in 0..10 {
        let stream = TcpStream::connect(running.address).await.unwrap();
        let (client, connection) = h2::client::handshake(stream).await.unwrap();
        let connection = tokio::spawn(connection);
        check(&client).await;
        // A GOAWAY without an error is an orderly end, also for a client that still holds on to the connection.
        if timeout(PATIENCE, connection).await.unwrap().unwrap().is_ok() {
            return;
        }
        drop(client);
    }
    panic!("no connection came to an orderly end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_loses_no_call() {
    let running = Running::start(Limits { leave_taking: Duration::from_millis(300), ..LIMITS }).await;
    let (busy, idle) = (running.connect().await, running.connect().await);
    check(&busy).await;
    check(&idle).await;
    // A call that is under way, and comes to its end only after the server has closed its doors.
    let mut sender = idle.clone().ready().await.unwrap();
    let (late, mut stream) = sender.send_request(request(CHECK, "application/grpc"), false).unwrap();
    check(&idle).await;
    running.stop.send(()).unwrap();
    while !running.leaving.has_begun() {
        sleep(Duration::from_millis(1)).await;
    }
    check(&busy).await;
    let told = async {
        while busy.clone().ready().await.is_ok() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, told).await.expect("a client hears with an answer that it should open another connection");
    let closed = async {
        while TcpStream::connect(running.address).await.is_ok() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, closed).await.unwrap();
    stream.send_data(frame(NO_KEY).into(), true).unwrap();
    assert_eq!(outcome(late.await.unwrap()).await.0, 0);
    let started = Instant::now();
    drop((busy, idle, sender));
    running.task.await.unwrap();
    assert!(started.elapsed() < LIMITS.drain);
}

/// What is no more than a nuisance one by one. The connection has to end before long, and others go on.
#[tokio::test(flavor = "multi_thread")]
async fn floods_end_their_own_connection() {
    let running = Running::start(LIMITS).await;
    let reset: Vec<u8> =
        (0..2000).flat_map(|n| [raw(1, 4, 2 * n + 1, HEAD), raw(3, 0, 2 * n + 1, &[0, 0, 0, 8])].concat()).collect();
    let continuation: Vec<u8> =
        [raw(1, 0, 1, HEAD), raw(9, 0, 1, &[0x00, 0x01, b'a', 0x01, b'b'].repeat(1000)).repeat(2000)].concat();
    let zero_window: Vec<u8> = raw(8, 0, 0, &[0, 0, 0, 0]);
    let oversized = raw(0, 0, 1, &[0; 16_385]);
    let too_many: Vec<u8> = (0..1000).flat_map(|n| raw(1, 4, 2 * n + 1, HEAD)).collect();
    for (flood, octets) in [
        ("resets", reset),
        ("continuations", continuation),
        ("no window", zero_window),
        ("an oversized frame", oversized),
        ("streams without an end", too_many.repeat(2)),
    ] {
        let mut socket = running.connect_plain();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(PREFACE).unwrap();
        // Refused in the middle, most likely.
        socket.write_all(&octets).ok();
        let mut answer = Vec::new();
        match socket.read_to_end(&mut answer) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("{flood}: the connection lives on"),
            _ => {}
        }
        check(&running.connect().await).await;
    }
}
