use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::SignedDuration;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::crypto::ring;
use rustls::{ALL_VERSIONS, ClientConfig, RootCertStore};
use time::OffsetDateTime;

use super::super::tests::{NAME, Running, ask, connect};
use super::*;
use crate::serve::limits::Limits;

const POLL: Duration = Duration::from_secs(10);
const DAY: SignedDuration = SignedDuration::from_hours(24);
const OK: &str = "HTTP/1.1 200 OK";

/// An authority.
struct Ca(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, PEM.
struct Pair {
    certificate: String,
    key: String,
}

impl Ca {
    fn new() -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        encode("CERTIFICATE", self.0.der())
    }

    /// For [`NAME`], from a day ago until this long from now.
    fn issue(&self, usage: ExtendedKeyUsagePurpose, lifetime: SignedDuration) -> Pair {
        self.issue_from(clock::now() - DAY, usage, clock::now() + lifetime)
    }

    fn issue_from(&self, start: Timestamp, usage: ExtendedKeyUsagePurpose, end: Timestamp) -> Pair {
        let at = |time: Timestamp| OffsetDateTime::from_unix_timestamp(time.as_second()).unwrap();
        let mut parameters = CertificateParams::new([NAME.to_owned()]).unwrap();
        (parameters.not_before, parameters.not_after) = (at(start), at(end));
        parameters.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.0).unwrap();
        Pair { certificate: encode("CERTIFICATE", certificate.der()), key: encode("PRIVATE KEY", &key.serialize_der()) }
    }

    fn server(&self) -> Pair {
        self.issue(ExtendedKeyUsagePurpose::ServerAuth, DAY)
    }

    fn client(&self) -> Pair {
        self.issue(ExtendedKeyUsagePurpose::ClientAuth, DAY)
    }
}

fn encode(tag: &str, der: &[u8]) -> String {
    pem::encode(&pem::Pem::new(tag, der))
}

/// A client that trusts these authorities, and shows this certificate.
fn client(authorities: &[&Ca], shown: Option<&Pair>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    authorities.iter().for_each(|authority| roots.add(authority.0.der().clone()).unwrap());
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_protocol_versions(ALL_VERSIONS).unwrap().with_root_certificates(roots);
    Arc::new(match shown {
        None => builder.with_no_client_auth(),
        Some(Pair { certificate, key }) => {
            let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).map(Result::unwrap).collect();
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    })
}

/// A folder as a kubelet mounts a Secret. Removed when dropped.
struct Mounted {
    folder: PathBuf,
    files: PemFiles,
}

impl Mounted {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("keywright-tls-{:016x}", rand::random::<u64>()));
        std::fs::create_dir(&folder).unwrap();
        let files = ["tls.crt", "tls.key"].map(|name| folder.join("..data").join(name));
        let [certificate, key] = files;
        Self { folder, files: PemFiles { certificate, key, client_authorities: None } }
    }

    fn demanding_clients() -> Self {
        let mut mounted = Self::new();
        mounted.files.client_authorities = Some(mounted.folder.join("..data").join("ca.crt"));
        mounted
    }

    /// All of them at once: the folder's link is replaced.
    fn write(&self, certificate: &str, key: &str, client_authorities: &str) {
        let written = self.folder.join(format!("..{:016x}", rand::random::<u64>()));
        std::fs::create_dir(&written).unwrap();
        for (name, text) in [("tls.crt", certificate), ("tls.key", key), ("ca.crt", client_authorities)] {
            std::fs::write(written.join(name), text).unwrap();
        }
        let link = self.folder.join("..data_tmp");
        std::os::unix::fs::symlink(&written, &link).unwrap();
        std::fs::rename(link, self.folder.join("..data")).unwrap();
    }

    fn write_pair(&self, pair: &Pair) {
        self.write(&pair.certificate, &pair.key, "");
    }

    fn certificates(&self, registry: &mut Registry) -> Arc<CertificateFiles> {
        CertificateFiles::new(self.files.clone(), vec![NAME.to_owned()], POLL, registry).unwrap()
    }

    /// A listener that serves them, once they are looked at.
    async fn running(&self) -> (Arc<CertificateFiles>, Running) {
        let mut registry = Registry::default();
        let certificates = self.certificates(&mut registry);
        let running = Running::serve(Limits::default(), certificates.served(), registry).await;
        (certificates, running)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.folder).ok();
    }
}

fn served(certificates: &CertificateFiles) -> CertificateDer<'static> {
    certificates.served.current(clock::now()).unwrap().leaf().unwrap().clone()
}

/// Sends a request on an open connection, and reads the answer's status.
fn ask_again(stream: &mut (impl Read + Write)) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: v\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nok") {
        let mut octet = [0];
        stream.read_exact(&mut octet).unwrap();
        answer.extend(octet);
    }
    String::from_utf8(answer).unwrap().lines().next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn rotations_disturb_nobody_and_new_connections_get_the_new_certificate() {
    let (mounted, ca) = (Mounted::new(), Ca::new());
    let (certificates, running) = mounted.running().await;
    mounted.write_pair(&ca.server());
    certificates.refresh(clock::now()).unwrap();
    let (address, config) = (running.address, client(&[&ca], None));
    let mut open = connect(address, &config);
    assert_eq!(ask_again(&mut open), OK);
    let first = open.conn.peer_certificates().unwrap()[0].clone();

    let is_over = Arc::new(AtomicBool::new(false));
    let asking = {
        let (is_over, config) = (Arc::clone(&is_over), Arc::clone(&config));
        tokio::task::spawn_blocking(move || {
            let mut asked = 0;
            while !is_over.load(Ordering::Relaxed) || asked == 0 {
                assert_eq!(ask(address, &config).unwrap(), OK);
                asked += 1;
            }
        })
    };
    for _ in 0..50 {
        mounted.write_pair(&ca.server());
        certificates.refresh(clock::now()).unwrap();
        let mut new = connect(address, &config);
        assert_eq!(ask_again(&mut new), OK);
        assert_eq!(new.conn.peer_certificates().unwrap()[0], served(&certificates));
        assert_eq!(ask_again(&mut open), OK, "an open connection goes on");
    }
    assert_ne!(served(&certificates), first);
    is_over.store(true, Ordering::Relaxed);
    asking.await.unwrap();
    assert_eq!(certificates.served.renewals.get(), 51);
    // The same again is no renewal.
    certificates.refresh(clock::now()).unwrap();
    assert_eq!(certificates.served.renewals.get(), 51);
}

#[test]
fn what_is_of_no_use_is_named_and_what_is_served_stays() {
    let (mounted, ca) = (Mounted::demanding_clients(), Ca::new());
    let certificates = mounted.certificates(&mut Registry::default());
    let (good, other, authorities) = (ca.server(), ca.server(), ca.pem());
    let now = clock::now();
    certificates.refresh(now).unwrap_err();
    assert!(certificates.readiness(now).unwrap_err().contains("ca.crt: cannot be read"));
    mounted.write(&good.certificate, &good.key, &authorities);
    certificates.refresh(now).unwrap();
    let first = served(&certificates);
    let of = |start, end| ca.issue_from(start, ExtendedKeyUsagePurpose::ServerAuth, end);
    let (expired, early) = (of(now - DAY * 2, now - DAY), of(now + DAY, now + DAY * 2));
    for (certificate, key, authorities, expected) in [
        ("", &*good.key, &*authorities, "tls.crt: not certificates in PEM"),
        (&good.key, &good.key, &authorities, "tls.crt: not certificates in PEM"),
        (&good.certificate[..200], &good.key, &authorities, "tls.crt: not certificates in PEM"),
        (&good.certificate, "", &authorities, "tls.key: not a private key in PEM"),
        (&good.certificate, &good.certificate, &authorities, "tls.key: not a private key in PEM"),
        (&good.certificate, &other.key, &authorities, "tls.key cannot be used: "),
        (&expired.certificate, &expired.key, &authorities, "tls.crt: the certificate expired at "),
        (&early.certificate, &early.key, &authorities, "tls.crt: the certificate is not valid before "),
        (&good.certificate, &good.key, "", "ca.crt: not certificates in PEM"),
        (&good.certificate, &good.key, &good.certificate, "ca.crt: certificate 0 is not a CA certificate"),
    ] {
        mounted.write(certificate, key, authorities);
        let problem = certificates.refresh(now).unwrap_err().to_string();
        assert!(problem.contains(expected), "{problem}");
        assert!(!problem.contains("BEGIN") && !problem.contains(&good.key[40..80]), "{problem}");
        assert_eq!(served(&certificates), first, "{expected}");
        assert_eq!(certificates.readiness(now), Ok(()), "{expected}");
    }
    // Neither waits for the other.
    mounted.write(&other.certificate, &other.key, "");
    certificates.refresh(now).unwrap_err();
    assert_ne!(served(&certificates), first);
    let end = certificates.served.not_after().unwrap();
    assert!(certificates.served.current(end).is_none(), "the last good one ends like any other");
    assert!(certificates.readiness(end).unwrap_err().starts_with(&format!("the certificate expired at {end}")));
}

#[test]
fn each_change_of_what_is_wrong_is_told_once() {
    let (mounted, ca) = (Mounted::new(), Ca::new());
    let certificates = mounted.certificates(&mut Registry::default());
    let (good, other) = (ca.server(), ca.server());
    let log = told(|| {
        for pair in [&good, &Pair { certificate: good.certificate.clone(), key: other.key.clone() }, &good] {
            mounted.write_pair(pair);
            for _ in 0..3 {
                certificates.refresh(clock::now()).ok();
            }
        }
    });
    let lines: Vec<_> = log.lines().collect();
    assert_eq!(lines.len(), 4, "{log}");
    assert!(lines[0].contains("serving a new certificate"), "{log}");
    assert!(lines[1].contains("are valid") && lines[3].contains("are valid"), "{log}");
    assert!(lines[2].contains("WARN") && lines[2].contains("tls.key cannot be used"), "{log}");
}

/// What is logged meanwhile.
fn told(act: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl Write for Log {
        fn write(&mut self, octets: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(octets)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let lines = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(lines, act);
    String::from_utf8(log.0.lock().unwrap().clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_judged_by_the_authorities_of_the_moment() {
    let (mounted, ca, old, new) = (Mounted::demanding_clients(), Ca::new(), Ca::new(), Ca::new());
    let (certificates, running) = mounted.running().await;
    let pair = ca.server();
    let write = |authorities: &str| {
        mounted.write(&pair.certificate, &pair.key, authorities);
        certificates.refresh(clock::now())
    };
    let showing = |shown: &Pair| client(&[&ca], Some(shown));
    let (of_old, of_new) = (showing(&old.client()), showing(&new.client()));
    let is_let_in = |config: &Arc<ClientConfig>| ask(running.address, config).is_ok_and(|status| status == OK);

    // Damaged from the start: there is nobody to be let in.
    write("").unwrap_err();
    assert!(!is_let_in(&client(&[&ca], None)), "it is not known who may come");
    running.failed("no_certificate", 1).await;

    write(&old.pem()).unwrap();
    assert!(is_let_in(&of_old));
    assert!(!is_let_in(&client(&[&ca], None)), "no certificate");
    running.failed("no_client_certificate", 1).await;
    assert!(!is_let_in(&of_new), "of another authority");
    assert!(!is_let_in(&showing(&old.server())), "a server's");
    assert!(!is_let_in(&showing(&old.issue(ExtendedKeyUsagePurpose::ClientAuth, -SignedDuration::from_mins(1)))));
    running.failed("bad_client_certificate", 3).await;

    let mut open = connect(running.address, &of_old);
    assert_eq!(ask_again(&mut open), OK);
    write(&(old.pem() + &new.pem())).unwrap();
    assert!(is_let_in(&of_old) && is_let_in(&of_new), "both of a bundle");
    write(&new.pem()).unwrap();
    assert!(is_let_in(&of_new) && !is_let_in(&of_old));
    running.failed("bad_client_certificate", 4).await;
    assert_eq!(ask_again(&mut open), OK, "an open connection goes on");
    // What is damaged later changes nothing.
    write(&old.pem()[..100]).unwrap_err();
    assert!(is_let_in(&of_new) && !is_let_in(&of_old) && !is_let_in(&client(&[&ca], None)));
}

#[test]
fn a_certificate_must_be_for_every_name_that_is_demanded() {
    let (mounted, ca) = (Mounted::new(), Ca::new());
    let names = vec![NAME.to_owned(), "elsewhere.svc".to_owned()];
    let certificates = CertificateFiles::new(mounted.files.clone(), names, POLL, &mut Registry::default()).unwrap();
    mounted.write_pair(&ca.server());
    let problem = certificates.refresh(clock::now()).unwrap_err().to_string();
    assert!(problem.contains("tls.crt: the certificate is not valid for elsewhere.svc: "), "{problem}");
    assert!(certificates.readiness(clock::now()).unwrap_err().contains(&problem));
}
