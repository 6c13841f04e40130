//! The verifier's TLS: the real program, as a proxy sees it, with files as a kubelet mounts them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::poll_fn;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ALL_VERSIONS, ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::overload::ask_over_grpc;
use super::verifier::Bench;
use keywright_testing::{Installation, Program, wait};

const NAME: &str = "keywright-verifier.keywright-system.svc";

/// An authority.
pub(super) struct Ca(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, PEM.
pub(super) struct Pair {
    certificate: String,
    key: String,
}

impl Ca {
    pub(super) fn new() -> Self {
        let mut parameters = CertificateParams::default();
        // Not the name of what it signs, which OpenSSL would take for signed by itself.
        parameters.distinguished_name.push(DnType::CommonName, "authority");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap())
    }

    pub(super) fn pem(&self) -> String {
        encode("CERTIFICATE", self.0.der())
    }

    fn issue(&self, usage: ExtendedKeyUsagePurpose) -> Pair {
        self.issue_for(NAME, usage)
    }

    fn issue_for(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> Pair {
        let mut parameters = CertificateParams::new([name.to_owned()]).unwrap();
        parameters.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.0).unwrap();
        let key = encode("PRIVATE KEY", &key.serialize_der());
        Pair { certificate: encode("CERTIFICATE", certificate.der()), key }
    }

    pub(super) fn server(&self) -> Pair {
        self.issue(ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// For another name than the verifier's.
    pub(super) fn other_server(&self) -> Pair {
        self.issue_for("other.keywright-system.svc", ExtendedKeyUsagePurpose::ServerAuth)
    }

    pub(super) fn client(&self) -> Pair {
        self.issue(ExtendedKeyUsagePurpose::ClientAuth)
    }
}

fn encode(tag: &str, der: &[u8]) -> String {
    pem::encode(&pem::Pem::new(tag, der))
}

fn first(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

/// A folder as a kubelet mounts a Secret.
pub(super) struct Mounted(PathBuf);

impl Mounted {
    pub(super) fn new(installation: &Installation) -> Self {
        Self(installation.control_plane.folder())
    }

    /// Where the files are.
    pub(super) fn files(&self) -> PathBuf {
        self.0.join("..data")
    }

    /// All of them at once: the folder's link is replaced.
    pub(super) fn write(&self, pair: &Pair, client_authorities: &str) {
        let written = self.0.join(format!("..{:08x}", rand::random::<u32>()));
        std::fs::create_dir(&written).unwrap();
        let files = [("tls.crt", &*pair.certificate), ("tls.key", &pair.key), ("ca.crt", client_authorities)];
        files.iter().for_each(|(name, text)| std::fs::write(written.join(name), text).unwrap());
        let link = self.0.join("..data_tmp");
        std::os::unix::fs::symlink(&written, &link).unwrap();
        std::fs::rename(link, self.0.join("..data")).unwrap();
    }

    fn flags(&self) -> [String; 3] {
        let file = |name| self.files().join(name).display().to_string();
        [("certificate", "tls.crt"), ("key", "tls.key"), ("client-ca", "ca.crt")]
            .map(|(flag, name)| format!("--tls-{flag}={}", file(name)))
    }
}

/// What a proxy is configured with.
struct Proxy<'a> {
    key: &'a str,
    config: ClientConfig,
}

impl<'a> Proxy<'a> {
    fn new(trusted: &Ca, shown: &Pair, key: &'a str) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(trusted.0.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(ALL_VERSIONS).unwrap();
        let private_key = PrivateKeyDer::from_pem_slice(shown.key.as_bytes()).unwrap();
        let chain = vec![first(&shown.certificate)];
        let config = builder.with_root_certificates(roots).with_client_auth_cert(chain, private_key).unwrap();
        Self { key, config }
    }

    /// A connection with this protocol.
    async fn connect(&self, verifier: &Program, listener: &str, protocol: &str) -> TlsStream<TcpStream> {
        self.connect_to(verifier.address(listener), protocol).await
    }

    async fn connect_to(&self, address: SocketAddr, protocol: &str) -> TlsStream<TcpStream> {
        let mut config = self.config.clone();
        config.alpn_protocols = vec![protocol.into()];
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from(NAME).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    /// A connection for HTTP, and the certificate that it got.
    async fn open(&self, verifier: &Program) -> (SendRequest<Empty<Bytes>>, CertificateDer<'static>) {
        let stream = self.connect(verifier, "http", "http/1.1").await;
        let certificate = stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        (sender, certificate)
    }

    /// The status of one request.
    async fn ask(&self, sender: &mut SendRequest<Empty<Bytes>>) -> hyper::Result<u16> {
        sender.ready().await?;
        let request = Request::get("/verify").header("Host", NAME).header("X-API-Key", self.key);
        let answer = sender.send_request(request.body(Empty::new()).unwrap()).await?;
        let status = answer.status().as_u16();
        answer.into_body().collect().await?;
        Ok(status)
    }
}

/// What `curl` prints of a request: the status, 000 for none.
async fn curl(verifier: &Program, scheme: &str, arguments: &[&str]) -> String {
    let port = verifier.address("http").port();
    let mut curl = Command::new("curl");
    curl.args([
        "--silent",
        "--max-time",
        "10",
        "--output",
        "/dev/null",
        "--write-out",
        "%{http_code}",
        "--noproxy",
        "*",
    ]);
    curl.arg("--resolve").arg(format!("{NAME}:{port}:127.0.0.1")).args(arguments);
    let output = curl.arg(format!("{scheme}://{NAME}:{port}/verify")).output().await.unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Asks the health service, as Envoy and the kubelet do.
async fn health(proxy: &Proxy<'_>, verifier: &Program) -> Vec<u8> {
    let stream = proxy.connect(verifier, "grpc", "h2").await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    poll_fn(|context| sender.poll_ready(context)).await.unwrap();
    let call = Request::post(format!("https://{NAME}/grpc.health.v1.Health/Check"));
    let call = call.header("content-type", "application/grpc").header("te", "trailers").body(()).unwrap();
    let (answer, mut stream) = sender.send_request(call, false).unwrap();
    stream.send_data(Bytes::from_static(&[0; 5]), true).unwrap();
    let mut body = answer.await.unwrap().into_body();
    let mut message = Vec::new();
    while let Some(data) = body.data().await {
        message.extend(data.unwrap());
    }
    connection.abort();
    message
}

pub(super) async fn with_files(bench: &Bench, mounted: &Mounted) -> Program {
    let flags = mounted.flags();
    bench.verifier(&flags.each_ref().map(String::as_str)).await
}

#[tokio::test]
async fn a_proxy_with_a_certificate_is_answered_and_nobody_else() {
    let bench = Bench::new("tls").await;
    let folder = bench.installation.control_plane.folder();
    let (mounted, ca, proxies) = (Mounted(folder.clone()), Ca::new(), Ca::new());
    mounted.write(&ca.server(), &proxies.pem());
    let verifier = with_files(&bench, &mounted).await;
    let key = bench.issue(1).await;
    let file = |name: &str, text: &str| {
        std::fs::write(folder.join(name), text).unwrap();
        folder.join(name).display().to_string()
    };
    let (shown, foreign) = (proxies.client(), Ca::new().client());
    let trusted = file("trusted.pem", &ca.pem());
    let of = |name: &str, pair: &Pair| {
        [file(&format!("{name}.crt"), &pair.certificate), file(&format!("{name}.key"), &pair.key)]
    };
    let ([shown_certificate, shown_key], [foreign_certificate, foreign_key]) =
        (of("shown", &shown), of("foreign", &foreign));
    let header = format!("X-API-Key: {key}");
    let with_certificate = ["--cacert", &trusted, "--cert", &shown_certificate, "--key", &shown_key];
    let allowed = [&with_certificate[..], &["--header", &header]].concat();
    let known = timeout(wait::DEADLINE, async { while curl(&verifier, "https", &allowed).await != "200" {} });
    known.await.expect("the key is known");
    assert_eq!(curl(&verifier, "https", &with_certificate).await, "401", "without a key");
    for version in [["--tlsv1.2", "--tls-max", "1.2"], ["--tlsv1.3", "--tls-max", "1.3"]] {
        assert_eq!(curl(&verifier, "https", &[&allowed[..], &version].concat()).await, "200", "{version:?}");
        let bare = ["--cacert", &trusted, "--header", &header];
        assert_eq!(
            curl(&verifier, "https", &[&bare[..], &version].concat()).await,
            "000",
            "no certificate, {version:?}"
        );
        let foreign = [&bare[..], &["--cert", &foreign_certificate, "--key", &foreign_key]].concat();
        assert_eq!(curl(&verifier, "https", &[&foreign[..], &version].concat()).await, "000", "another authority's");
    }
    let distrusting = ["--cacert", &foreign_certificate, "--cert", &shown_certificate, "--key", &shown_key];
    assert_eq!(curl(&verifier, "https", &distrusting).await, "000");
    assert_eq!(curl(&verifier, "http", &["--header", &header]).await, "000", "plain text");
    for (reason, count) in
        [("no_client_certificate", 2), ("bad_client_certificate", 2), ("distrusted", 1), ("protocol", 1)]
    {
        let line = format!("keywright_tls_handshake_failures_total{{reason=\"{reason}\"}} {count}");
        // The client hears of it a moment before it is counted.
        let counted = timeout(wait::DEADLINE, async {
            while !verifier.metrics().await.lines().any(|seen| seen == line) {
                sleep(Duration::from_millis(20)).await;
            }
        });
        assert!(counted.await.is_ok(), "{line} in {}", verifier.metrics().await);
    }
    let metrics = verifier.metrics().await;
    assert!(metrics.contains("keywright_certificate_expiry_timestamp_seconds "), "{metrics}");
    assert!(metrics.contains("keywright_certificate_source_good 1"), "{metrics}");
    let refused = verifier.printed().matches("refused a client without a certificate").count();
    assert_eq!(refused, 1, "told once a minute");

    let message = health(&Proxy::new(&ca, &shown, &key), &verifier).await;
    assert_eq!(message, [0, 0, 0, 0, 2, 8, 1], "SERVING, over TLS");
    assert_eq!(verifier.terminate().await.code(), Some(0));
}

#[tokio::test]
async fn no_request_fails_while_the_files_are_replaced() {
    let bench = Bench::new("tls-rotation").await;
    let (mounted, ca, before, after) = (Mounted::new(&bench.installation), Ca::new(), Ca::new(), Ca::new());
    mounted.write(&ca.server(), &before.pem());
    let verifier = with_files(&bench, &mounted).await;
    let key = bench.issue(1).await;
    let proxy_before = Proxy::new(&ca, &before.client(), &key);
    let proxy_after = Proxy::new(&ca, &after.client(), &key);
    let (mut kept, _) = proxy_before.open(&verifier).await;
    let known = timeout(wait::DEADLINE, async { while proxy_before.ask(&mut kept).await.unwrap() != 200 {} });
    known.await.expect("the key is known");

    // Requests on new connections and on the one that was there before all of it, until the certificate is served.
    let mut asked = 0;
    let mut until_served = async |proxy: &Proxy<'_>, pair: &Pair| {
        let served = timeout(wait::DEADLINE, async {
            loop {
                let (mut new, certificate) = proxy.open(&verifier).await;
                assert_eq!(proxy.ask(&mut new).await.unwrap(), 200, "request {asked}");
                assert_eq!(proxy_before.ask(&mut kept).await.unwrap(), 200, "request {asked}");
                asked += 1;
                if certificate == first(&pair.certificate) {
                    break;
                }
            }
        });
        served.await.expect("the new certificate is served");
    };
    let second = ca.server();
    mounted.write(&second, &(before.pem() + &after.pem()));
    until_served(&proxy_before, &second).await;
    until_served(&proxy_after, &second).await;

    // One that does not fit its key changes nothing, and is told once.
    let broken = Pair { certificate: ca.server().certificate, key: ca.server().key };
    mounted.write(&broken, &after.pem());
    verifier.says("tls.key cannot be used").await;
    until_served(&proxy_after, &second).await;

    let third = ca.server();
    mounted.write(&third, &after.pem());
    until_served(&proxy_after, &third).await;
    assert_eq!(verifier.printed().matches("tls.key cannot be used").count(), 1);
    println!("{asked} times on a new connection and on the old one");

    // Whoever is trusted no more is not let in again.
    let (mut refused, _) = proxy_before.open(&verifier).await;
    assert!(proxy_before.ask(&mut refused).await.is_err());
    let metrics = verifier.metrics().await;
    assert!(metrics.contains("keywright_certificate_renewals_total 3"), "{metrics}");
}

/// Where a proxy asks, and how.
#[derive(Clone, Debug, Default, PartialEq)]
struct Upstream {
    verifiers: Vec<SocketAddr>,
    is_tls: bool,
}

/// Asks without a pause, over a connection that it keeps until it is closed or told to ask elsewhere; each has to be answered.
async fn ask_for_ever(proxy: &Proxy<'_>, upstream: &Mutex<Upstream>, answered: &AtomicUsize) {
    loop {
        let current = upstream.lock().unwrap().clone();
        if current.verifiers.is_empty() {
            sleep(Duration::from_millis(5)).await;
            continue;
        }
        let address = current.verifiers[answered.load(Ordering::Relaxed) % current.verifiers.len()];
        let mut sender = if current.is_tls {
            let (sender, connection) =
                http1::handshake(TokioIo::new(proxy.connect_to(address, "http/1.1").await)).await.unwrap();
            tokio::spawn(connection);
            sender
        } else {
            let stream = TcpStream::connect(address).await.unwrap();
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            sender
        };
        for _ in 0..10 {
            if sender.ready().await.is_err() || *upstream.lock().unwrap() != current {
                break;
            }
            assert_eq!(proxy.ask(&mut sender).await.expect("an answer"), 200, "{current:?}");
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The steps of docs/certificates.md, there and back, with two proxies that ask all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_switched_on_and_off_again_without_a_refused_request() {
    let bench = Bench::new("tls-steps").await;
    let (mounted, ca) = (Mounted::new(&bench.installation), Ca::new());
    mounted.write(&ca.server(), "");
    let key = bench.issue(1).await;
    let [certificate, private_key, _] = mounted.flags();
    let optional = [&*certificate, &private_key, "--tls-required=false"];
    let required = [&*certificate, &private_key, "--tls-required=true"];
    let shown = ca.client();
    let proxies = [Proxy::new(&ca, &shown, &key), Proxy::new(&ca, &shown, &key)];
    let (upstreams, answered): ([Mutex<Upstream>; 2], [AtomicUsize; 2]) = Default::default();

    // Until both have asked each verifier a few times.
    let some_answers = async || {
        let before = answered.each_ref().map(|answered| answered.load(Ordering::Relaxed));
        let all = async {
            while answered.iter().zip(before).any(|(now, before)| now.load(Ordering::Relaxed) < before + 30) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(wait::DEADLINE, all).await.expect("answers");
    };
    let route = |verifiers: &[&Program]| {
        let addresses: Vec<_> = verifiers.iter().map(|verifier| verifier.address("http")).collect();
        upstreams.iter().for_each(|upstream| upstream.lock().unwrap().verifiers.clone_from(&addresses));
    };
    // As a Deployment does it: the new one is there before the old one goes.
    let roll_out = async |old: Program, flags: &[&str]| {
        let new = bench.verifier(flags).await;
        route(&[&old, &new]);
        some_answers().await;
        route(&[&new]);
        some_answers().await;
        assert_eq!(old.terminate().await.code(), Some(0));
        new
    };
    let switch = async |is_tls| {
        for upstream in &upstreams {
            upstream.lock().unwrap().is_tls = is_tls;
            some_answers().await;
        }
    };
    let steps = async {
        let plain = bench.verifier(&[]).await;
        super::verifier::answers(&plain, &key, 200).await;
        route(&[&plain]);
        let both = roll_out(plain, &optional).await;
        both.says("plain text is accepted without a certificate").await;
        assert_eq!(health(&proxies[0], &both).await, [0, 0, 0, 0, 2, 8, 1], "gRPC over TLS");
        assert_eq!(ask_over_grpc(&both, &key).await, ("0".to_owned(), vec![8, 1]), "gRPC in plain text");
        switch(true).await;
        let plain_before = plain_text_connections(&both).await;
        some_answers().await;
        assert_eq!(plain_text_connections(&both).await, plain_before, "nobody is left");
        assert!(plain_before > 0);
        let tls = roll_out(both, &required).await;
        assert_eq!(curl(&tls, "http", &["--header", &format!("X-API-Key: {key}")]).await, "000");
        let both = roll_out(tls, &optional).await;
        switch(false).await;
        let plain = roll_out(both, &[]).await;
        some_answers().await;
        plain
    };
    tokio::select! {
        _ = steps => {}
        () = ask_for_ever(&proxies[0], &upstreams[0], &answered[0]) => {}
        () = ask_for_ever(&proxies[1], &upstreams[1], &answered[1]) => {}
    }
    println!("{answered:?} requests, all answered");
}

async fn plain_text_connections(verifier: &Program) -> usize {
    let metrics = verifier.metrics().await;
    let value = metrics.lines().find_map(|line| line.strip_prefix("keywright_plain_text_connections_total "));
    value.unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_file_that_is_of_no_use_at_the_start_is_named() {
    let installation = Installation::new("tls-start").await;
    let (mounted, ca) = (Mounted::new(&installation), Ca::new());
    let (good, other) = (ca.server(), ca.server());
    let cases = [
        (Pair { certificate: good.certificate.clone(), key: other.key }, ca.pem(), "tls.key cannot be used: "),
        (Pair { certificate: String::new(), key: good.key.clone() }, ca.pem(), "tls.crt: not certificates in PEM"),
        (good, "no certificate".to_owned(), "ca.crt: not certificates in PEM"),
    ];
    let run = async || {
        let launch = installation.program("verifier");
        mounted.flags().iter().fold(launch, |launch, flag| launch.argument(flag)).run().await
    };
    let absent = run().await;
    assert!(absent.0 == Some(1) && absent.1.contains("tls.crt: cannot be read: No such file"), "{absent:?}");
    for (pair, client_authorities, expected) in cases {
        mounted.write(&pair, &client_authorities);
        let (code, said) = run().await;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(expected) && !said.contains("listening"), "{said}");
        assert!(!said.contains("PRIVATE"), "{said}");
    }
}
