use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, Response};
use jiff::SignedDuration;
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use rcgen::KeyPair;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ALL_VERSIONS, ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::authority::Authority;
use crate::clock;
use crate::serve::connections::{Leaving, Listener, Server};
use crate::serve::limits::Limits;
use crate::serve::listen::{Address, bind};
use crate::serve::room::Occupancy;
use crate::serve::workers::Workers;

pub(super) const NAME: &str = "keywright-webhook.keywright-system.svc";
const PATIENCE: Duration = Duration::from_secs(10);
const DAY: SignedDuration = SignedDuration::from_hours(24);

/// A listener on loopback that answers 200 to everything, after TLS.
pub(super) struct Running {
    pub(super) address: SocketAddr,
    served: Arc<Served>,
    registry: Registry,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Running {
    async fn start(limits: Limits) -> Self {
        let mut registry = Registry::default();
        let served = Served::new(&mut registry).unwrap();
        Self::serve(limits, served, registry).await
    }

    pub(super) async fn serve(limits: Limits, served: Arc<Served>, registry: Registry) -> Self {
        Self::serve_requiring(true, limits, served, registry).await
    }

    async fn serve_requiring(is_required: bool, limits: Limits, served: Arc<Served>, registry: Registry) -> Self {
        let tls = Some(Acceptor::new(Arc::clone(&served), HTTP_1, "mend it").required(is_required));
        let tcp = bind(Address::Given("127.0.0.1:0".parse().unwrap()), "--https-address").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let handler = |_: &Request<()>, _| Response::new(Full::<Bytes>::from("ok"));
        let shutdown = async { stopped.await.unwrap_or_default() };
        let (workers, leaving) = (Workers::current(), Leaving::default());
        let server =
            Server { listener: Listener { tcp, tls }, limits, workers, leaving, occupancy: Occupancy::default() };
        let task = tokio::spawn(server.serve(handler, shutdown));
        Self { address, served, registry, stop, task }
    }

    /// Waits until this many handshakes failed for that reason.
    pub(super) async fn failed(&self, reason: &str, count: u32) {
        let line = format!("tls_handshake_failures_total{{reason=\"{reason}\"}} {count}");
        let mut metrics = String::new();
        let waited = timeout(PATIENCE, async {
            while !metrics.lines().any(|seen| seen == line) {
                tokio::time::sleep(Duration::from_millis(5)).await;
                metrics.clear();
                text::encode(&mut metrics, &self.registry).unwrap();
            }
        });
        assert!(waited.await.is_ok(), "{line} in {metrics}");
    }
}

fn authority() -> Authority {
    Authority::establish(KeyPair::generate().unwrap(), DAY, clock::now()).unwrap()
}

fn certificate(authority: &Authority, lifetime: SignedDuration) -> Certificate {
    let key = KeyPair::generate().unwrap();
    let leaf = authority.issue(key, &[NAME.to_owned()], lifetime, clock::now()).unwrap();
    Certificate::new(vec![leaf.certificate], leaf.key).unwrap()
}

fn trusting(authority: &Authority, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authority.bundle().to_vec());
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    builder.with_protocol_versions(versions).unwrap().with_root_certificates(roots).with_no_client_auth()
}

pub(super) fn connect(address: SocketAddr, config: &Arc<ClientConfig>) -> StreamOwned<ClientConnection, TcpStream> {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let client = ClientConnection::new(Arc::clone(config), ServerName::try_from(NAME).unwrap()).unwrap();
    StreamOwned::new(client, socket)
}

/// The status of one request on a new connection, or why there is none.
pub(super) fn ask(address: SocketAddr, config: &Arc<ClientConfig>) -> std::io::Result<String> {
    let mut stream = connect(address, config);
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.lines().next().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_connection_gets_the_certificate_of_its_moment() {
    let running = Running::start(Limits::default()).await;
    let (first, second) = (authority(), authority());
    running.served.replace(certificate(&first, DAY));
    let (trusts_first, trusts_second) =
        (Arc::new(trusting(&first, ALL_VERSIONS)), Arc::new(trusting(&second, ALL_VERSIONS)));
    let mut open = connect(running.address, &trusts_first);
    assert_eq!(ask(running.address, &trusts_first).unwrap(), "HTTP/1.1 200 OK");
    assert!(ask(running.address, &trusts_second).is_err());
    running.failed("distrusted", 1).await;
    open.write_all(b"GET / HTTP/1.1\r\nHost: w\r\n\r\n").unwrap();
    let mut octet = [0];
    open.read_exact(&mut octet).unwrap();

    running.served.replace(certificate(&second, DAY));
    assert_eq!(ask(running.address, &trusts_second).unwrap(), "HTTP/1.1 200 OK");
    assert!(ask(running.address, &trusts_first).is_err(), "no session of before is resumed");
    open.write_all(b"GET / HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n").unwrap();
    let mut rest = String::new();
    open.read_to_string(&mut rest).unwrap();
    assert_eq!(rest.matches("200 OK").count(), 2, "an open connection goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_replacements_disturb_nobody() {
    let running = Running::start(Limits::default()).await;
    let authority = authority();
    running.served.replace(certificate(&authority, DAY));
    let config = Arc::new(trusting(&authority, ALL_VERSIONS));
    let (address, served) = (running.address, Arc::clone(&running.served));
    let replacing = tokio::task::spawn_blocking(move || {
        (0..1000).for_each(|_| served.replace(certificate(&authority, DAY)));
    });
    let mut asked = 0;
    while !replacing.is_finished() || asked == 0 {
        assert_eq!(ask(address, &config).unwrap(), "HTTP/1.1 200 OK");
        asked += 1;
    }
    println!("{asked} connections in a thousand replacements");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_served_before_the_first_certificate_and_after_the_last() {
    let running = Running::start(Limits::default()).await;
    let authority = authority();
    let config = Arc::new(trusting(&authority, ALL_VERSIONS));
    assert!(ask(running.address, &config).is_err());
    running.failed("no_certificate", 1).await;
    let brief = certificate(&authority, SignedDuration::from_secs(1));
    let end = brief.not_after();
    running.served.replace(brief);
    assert_eq!(ask(running.address, &config).unwrap(), "HTTP/1.1 200 OK");
    // Without the expiry's check, the client would be the one to refuse it, a second later.
    while clock::now() < end {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(ask(running.address, &config).is_err());
    running.failed("no_certificate", 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_fails_the_handshake_or_dawdles_disturbs_nobody() {
    let soon = Duration::from_millis(200);
    let limits = Limits { read_timeout: soon, idle_timeout: soon, connections: 2, ..Limits::default() };
    let running = Running::start(limits).await;
    let authority = authority();
    running.served.replace(certificate(&authority, DAY));
    let config = Arc::new(trusting(&authority, ALL_VERSIONS));
    let closed = |octets: &[u8]| {
        let mut socket = TcpStream::connect(running.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(octets).unwrap();
        let mut answer = Vec::new();
        match socket.read_to_end(&mut answer) {
            Ok(_) => answer,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => answer,
            Err(error) => panic!("it is not closed: {error}"),
        }
    };
    let answer = closed(b"GET / HTTP/1.1\r\nHost: w\r\n\r\n");
    assert!(!answer.starts_with(b"HTTP"), "no plain text: {answer:?}");
    running.failed("protocol", 1).await;
    // As many as there are slots: the beginning of a ClientHello, and no more of it.
    for _ in 0..2 {
        assert!(closed(&[0x16, 3, 1, 2, 0, 1, 0]).is_empty());
    }
    running.failed("timeout", 2).await;
    drop(TcpStream::connect(running.address).unwrap());
    assert_eq!(ask(running.address, &config).unwrap(), "HTTP/1.1 200 OK");
    let started = Instant::now();
    let mut idle = connect(running.address, &config);
    idle.conn.complete_io(&mut idle.sock).unwrap();
    assert_eq!(idle.read(&mut [0]).unwrap_or(0), 0, "closed for silence");
    assert!(started.elapsed() < PATIENCE);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_tls_is_not_required_each_connection_says_by_its_first_octet_what_it_speaks() {
    let mut registry = Registry::default();
    let served = Served::new(&mut registry).unwrap();
    let limits = Limits { idle_timeout: Duration::from_secs(1), ..Limits::default() };
    let running = Running::serve_requiring(false, limits, served, registry).await;
    let authority = authority();
    running.served.replace(certificate(&authority, DAY));
    let config = Arc::new(trusting(&authority, ALL_VERSIONS));
    let plain = |beginning: &[u8]| {
        let mut socket = TcpStream::connect(running.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let (first, rest) = beginning.split_at(beginning.len().min(1));
        socket.write_all(first).unwrap();
        socket.write_all(rest).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).map(|_| answer)
    };
    for _ in 0..2 {
        assert_eq!(ask(running.address, &config).unwrap(), "HTTP/1.1 200 OK");
        let answer = plain(b"GET / HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n").unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    }
    assert_eq!(plain(b"").unwrap(), "", "closed for silence");
    let mut metrics = String::new();
    text::encode(&mut metrics, &running.registry).unwrap();
    assert!(metrics.contains("plain_text_connections_total 2\n"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_does_not_come_to_its_end_makes_room() {
    let running = Running::start(Limits { connections: 1, ..Limits::default() }).await;
    let authority = authority();
    running.served.replace(certificate(&authority, DAY));
    let config = Arc::new(trusting(&authority, ALL_VERSIONS));
    for beginning in [&[][..], &[0x16, 3, 1, 2, 0, 1, 0]] {
        let mut socket = TcpStream::connect(running.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(beginning).unwrap();
        assert_eq!(ask(running.address, &config).unwrap(), "HTTP/1.1 200 OK");
        assert_eq!(socket.read(&mut [0]).unwrap_or(0), 0, "closed");
    }
    let mut idle = connect(running.address, &config);
    idle.conn.complete_io(&mut idle.sock).unwrap();
    assert_eq!(ask(running.address, &config).unwrap(), "HTTP/1.1 200 OK");
    assert_eq!(idle.read(&mut [0]).expect("a close_notify"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_good_versions_and_http_1_are_spoken() {
    let running = Running::start(Limits::default()).await;
    let authority = authority();
    running.served.replace(certificate(&authority, DAY));
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut config = trusting(&authority, &[version]);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let mut stream = connect(running.address, &Arc::new(config));
        stream.conn.complete_io(&mut stream.sock).unwrap();
        assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]), "as a Go client offers it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_ends_idle_connections_with_a_close_notify() {
    let running = Running::start(Limits::default()).await;
    let authority = authority();
    running.served.replace(certificate(&authority, DAY));
    let mut idle = connect(running.address, &Arc::new(trusting(&authority, ALL_VERSIONS)));
    idle.conn.complete_io(&mut idle.sock).unwrap();
    // One that never gets through its handshake must not hold the end up for longer than that may take.
    idle.write_all(b"GET / HTTP/1.1\r\nHost: w\r\n\r\n").unwrap();
    idle.read_exact(&mut [0; 15]).unwrap();
    running.stop.send(()).unwrap();
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).expect("a close_notify, and not just an end");
    timeout(PATIENCE, running.task).await.unwrap().unwrap();
}

#[test]
fn each_listener_speaks_its_own_protocol() {
    let served = Served::new(&mut Registry::default()).unwrap();
    for protocol in [HTTP_1, HTTP_2] {
        let acceptor = Acceptor::new(Arc::clone(&served), protocol, "").acceptor();
        assert_eq!(acceptor.config().alpn_protocols, [protocol.as_bytes()]);
    }
}
