use std::cell::RefCell;
use std::io;
use std::sync::{Arc, Once};

use hyper::body::Bytes;
use jiff::Timestamp;
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};

use super::super::decisions::{DecisionMetrics, Tally};
use super::*;
use crate::verifier::feed::Feed;
use keywright_core::address::Network;
use keywright_core::key::Digest;
use keywright_core::keyring::Keyring;
use keywright_core::testing::{KEY, OTHER_KEY, record_name, stored};
use keywright_core::verify::Denial;

const PEER: &str = "10.0.0.5";

fn now() -> Timestamp {
    "2026-11-23T12:00:00Z".parse().unwrap()
}

fn spec(key: &str) -> Value {
    json!({
        "digest": Digest::of(key.as_bytes()).to_string(),
        "keyPrefix": &key[..14],
        "apiKey": { "namespace": "team-a", "name": "billing", "uid": "c" },
        "owner": "jane@example.com",
        "scopes": ["orders:read", "orders:write"],
    })
}

struct Fixture {
    verifier: ForwardAuth,
    registry: Registry,
}

impl Fixture {
    fn new(specs: &[Value], source: ClientAddressSource) -> Self {
        let mut keyring = Keyring::default();
        for (number, spec) in (1..).zip(specs) {
            keyring.upsert(&stored(&record_name(number), spec)).unwrap();
        }
        Self::following(Feed::holding(&keyring), source)
    }

    fn following(feed: Feed, source: ClientAddressSource) -> Self {
        let mut registry = Registry::with_prefix("keywright");
        let tally = Arc::new(Tally::new("http"));
        registry.register_collector(Box::new(DecisionMetrics(vec![Arc::clone(&tally)])));
        let decisions = Decisions::new(Arc::new(feed), now, tally);
        Self { verifier: ForwardAuth::new(decisions, source), registry }
    }

    fn get(&self, target: &str, headers: &[(String, String)]) -> Response<Full<Bytes>> {
        self.ask(target, PEER, headers).expect("HTTP carries these headers")
    }

    /// `None` if HTTP cannot carry such a header. Each character of a value is one octet.
    fn ask(&self, target: &str, peer: &str, headers: &[(String, String)]) -> Option<Response<Full<Bytes>>> {
        let mut request = Request::get(target).header(HOST, "verifier").body(()).unwrap();
        for (name, value) in headers {
            let octets: Vec<u8> = value.chars().map(|octet| u8::try_from(u32::from(octet)).unwrap()).collect();
            let name = HeaderName::try_from(name).ok()?;
            request.headers_mut().append(name, HeaderValue::from_bytes(&octets).ok()?);
        }
        Some(self.verifier.answer(&request, peer.parse().unwrap()).response)
    }

    fn metrics(&self) -> String {
        let mut metrics = String::new();
        text::encode(&mut metrics, &self.registry).unwrap();
        metrics
    }

    fn count(&self, decision: &str, reason: &str) -> u32 {
        let labels = format!("{{decision=\"{decision}\",reason=\"{reason}\",protocol=\"http\"}} ");
        let metrics = self.metrics();
        let start = format!("keywright_verify_decisions_total{labels}");
        metrics.lines().find_map(|line| line.strip_prefix(&start)).unwrap().parse().unwrap()
    }
}

fn with_key(key: &str) -> Vec<(String, String)> {
    vec![("X-API-Key".to_owned(), key.to_owned())]
}

fn header<'r>(response: &'r Response<Full<Bytes>>, name: &str) -> &'r str {
    response.headers()[name].to_str().unwrap()
}

fn rows(cases: &str) -> impl Iterator<Item = Vec<&str>> {
    cases.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(|line| line.split('\t').collect())
}

#[test]
fn credentials_are_read_as_the_cases_say() {
    let mut other = spec(OTHER_KEY);
    other["apiKey"]["name"] = json!("other");
    let fixture = Fixture::new(&[spec(KEY), other], ClientAddressSource::Peer);
    let mut carried = 0;
    for row in rows(include_str!("../../../tests/cases/credentials.tsv")) {
        let headers: Vec<(String, String)> = serde_json::from_str(row[0]).unwrap();
        let before = (fixture.count("deny", "missing"), fixture.count("deny", "malformed"));
        let Some(response) = fixture.ask("/verify", PEER, &headers) else {
            continue;
        };
        carried += 1;
        let (missing, malformed) = (fixture.count("deny", "missing"), fixture.count("deny", "malformed"));
        let counted = (missing - before.0, malformed - before.1);
        match row[1] {
            "deny:credential_missing" => {
                assert_eq!((response.status().as_u16(), counted), (401, (1, 0)), "{row:?}")
            }
            deny if deny.starts_with("deny:") => {
                assert_eq!((response.status().as_u16(), counted), (401, (0, 1)), "{row:?}");
            }
            expected => {
                assert_eq!((response.status().as_u16(), counted), (200, (0, 0)), "{row:?}");
                assert_eq!(expected.strip_prefix("key:"), Some(KEY), "the only key that the cases accept");
                assert_eq!(header(&response, "x-keywright-name"), "billing", "{row:?}");
            }
        }
    }
    assert!(carried >= 36, "HTTP carries {carried} of the cases");
}

fn source(mode: &str) -> ClientAddressSource {
    match mode.split_once(':') {
        None => mode.parse().unwrap(),
        Some(("hops", hops)) => format!("xff-hops={hops}").parse().unwrap(),
        // Not through the flag, which refuses the /0 of one case.
        Some((_, proxies)) => {
            ClientAddressSource::XffProxies(proxies.split(',').map(|proxy| Network::parse(proxy).unwrap()).collect())
        }
    }
}

#[test]
fn client_addresses_are_found_as_the_cases_say() {
    let mut carried = 0;
    for row in rows(include_str!("../../../tests/cases/client-ip.tsv")) {
        let mut headers: Vec<(String, String)> = serde_json::from_str(row[2]).unwrap();
        headers.extend(with_key(KEY));
        let (peer, expected) = (row[1].split('%').next().unwrap(), row[3]);
        // A key for the one address that is expected, and a key for all but a few others.
        let sole = if expected.starts_with("deny:") { "0.0.0.0/0" } else { expected };
        for (list, passes) in [([sole, "2001:db8:ffff::/48"], true), (["240.0.0.1", "2001:db8:ffff::/48"], false)] {
            let mut spec = spec(KEY);
            spec["allowedIPs"] = json!(list);
            let fixture = Fixture::new(&[spec], source(row[0]));
            let Some(response) = fixture.ask("/verify", peer, &headers) else {
                continue;
            };
            carried += 1;
            let is_allowed = passes && !expected.starts_with("deny:");
            let counted = (fixture.count("allow", "allowed"), fixture.count("deny", "address"));
            assert_eq!(response.status().is_success(), is_allowed, "{row:?}");
            assert_eq!(counted, if is_allowed { (1, 0) } else { (0, 1) }, "{row:?}");
        }
    }
    assert!(carried >= 138, "HTTP carries {carried} of the cases, each tried twice");
}

#[test]
fn a_header_without_an_answer_shuts_out_only_keys_with_a_list() {
    let mut listed = spec(OTHER_KEY);
    listed["allowedIPs"] = json!(["0.0.0.0/0"]);
    let fixture = Fixture::new(&[spec(KEY), listed], "xff-hops=1".parse().unwrap());
    let junk = ("X-Forwarded-For".to_owned(), "junk".to_owned());
    let ask = |key| fixture.get("/verify", &[with_key(key), vec![junk.clone()]].concat()).status().as_u16();
    assert_eq!((ask(KEY), ask(OTHER_KEY)), (200, 403));
}

#[test]
fn an_allow_tells_everything_about_the_key_and_nothing_from_the_request() {
    let bare = json!({
        "digest": Digest::of(OTHER_KEY.as_bytes()).to_string(),
        "apiKey": { "namespace": "team-b", "name": "bare", "uid": "c" },
    });
    let fixture = Fixture::new(&[spec(KEY), bare], ClientAddressSource::Peer);
    let identity = |response: &Response<Full<Bytes>>| {
        ["key", "namespace", "name", "owner", "scopes"]
            .map(|name| header(response, &format!("x-keywright-{name}")).to_owned())
    };
    let response = fixture.get("/verify", &with_key(KEY));
    let expected = ["keyw1_eVULq19j", "team-a", "billing", "jane@example.com", "orders:read orders:write"];
    assert_eq!(identity(&response), expected);
    assert_eq!(header(&response, "cache-control"), "no-store");
    assert_eq!(response.headers().len(), 6);

    let spoofed = [
        "X-Keywright-Owner",
        "X-Keywright-Scopes",
        "X_Keywright_Owner",
        "X-Keywright-Key",
        "X-Forwarded-Uri",
        "X-Original-URL",
        "X-Forwarded-Method",
    ];
    let spoofed: Vec<_> = spoofed.iter().map(|name| ((*name).to_owned(), "admin".to_owned())).collect();
    let response = fixture.get("/verify", &[spoofed, with_key(OTHER_KEY)].concat());
    assert_eq!(identity(&response), ["keyw1_x3dylZ3l", "team-b", "bare", "", ""]);
    assert_eq!(response.headers().len(), 6);
}

#[test]
fn what_the_route_demands_is_read_from_the_query() {
    let fixture = Fixture::new(&[spec(KEY)], ClientAddressSource::Peer);
    let cases = [
        ("/verify", 200, "allowed"),
        ("/verify?", 200, "allowed"),
        ("/verify?namespace=team-a", 200, "allowed"),
        ("/verify?namespace=team-b&namespace=team-a&scope=orders:read&scope=orders%3Awrite", 200, "allowed"),
        ("/verify?n%61mespace=team-a", 200, "allowed"),
        ("/verify?namespace=team-b", 403, "namespace"),
        ("/verify?namespace=team", 403, "namespace"),
        ("/verify?namespace=Team-A", 403, "namespace"),
        ("/verify?scope=orders:read&scope=admin", 403, "scope"),
        ("/verify?scope=orders", 403, "scope"),
        ("/verify?namespace=team-b&scope=admin", 403, "namespace"),
        ("/verify?namespace", 403, "route"),
        ("/verify?namespace=", 403, "route"),
        ("/verify?scope=", 403, "route"),
        ("/verify?namespace=team-a&scope=", 403, "route"),
        ("/verify?scope=orders:read+orders:write", 403, "route"),
        ("/verify?scope=orders:read,orders:write", 403, "route"),
        ("/verify?scope=%zz", 403, "route"),
        ("/verify?scope=%ff", 403, "route"),
        ("/verify?scope=a%00", 403, "route"),
        ("/verify?scopes=orders:read", 403, "route"),
        ("/verify?Namespace=team-a", 403, "route"),
        ("/verify?api_key=keyw1_eVULq19jgYgonBwBS9PnYuwEwkbytwZtG3LkFawtUJJ3cXN0G", 403, "route"),
    ];
    for (target, status, reason) in cases {
        let decision = if status == 200 { "allow" } else { "deny" };
        let before = fixture.count(decision, reason);
        assert_eq!(fixture.get(target, &with_key(KEY)).status().as_u16(), status, "{target}");
        assert_eq!(fixture.count(decision, reason), before + 1, "{target}");
    }
    let target = "/verify?namespace=";
    assert_eq!(fixture.get(target, &[]).status(), 403, "the proxy's fault comes before the caller's");
}

#[test]
fn without_records_to_rely_on_nobody_gets_in() {
    let fixture = Fixture::following(Feed::of_a_stranger(), ClientAddressSource::Peer);
    let response = fixture.get("/verify", &with_key(KEY));
    assert_eq!((response.status().as_u16(), fixture.count("deny", "stale")), (503, 1));
}

#[test]
fn every_reason_is_counted_from_the_start() {
    let fixture = Fixture::new(&[], ClientAddressSource::Peer);
    assert!(Denial::REASONS.iter().all(|reason| fixture.count("deny", reason) == 0));
    assert_eq!(fixture.count("allow", "allowed"), 0);
    fixture.get("/verify", &[]);
    assert!(fixture.metrics().contains("keywright_verify_duration_seconds_count 1"));
}

thread_local! {
    /// What this thread has logged, while anybody wants to know.
    static LOG: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// Writes into [`LOG`]. One subscriber for all tests: tracing may leave out lines where subscribers come and go on
/// several threads.
struct ToThread;

impl io::Write for ToThread {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        LOG.with_borrow_mut(|log| log.as_mut().map(|log| log.extend_from_slice(octets)));
        Ok(octets.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The log lines of one request, as JSON.
fn logged(fixture: &Fixture, target: &str, headers: &[(String, String)]) -> Vec<Value> {
    static SUBSCRIBER: Once = Once::new();
    SUBSCRIBER.call_once(|| {
        let lines = tracing_subscriber::fmt().json().with_max_level(tracing::Level::TRACE);
        lines.with_writer(|| ToThread).init();
    });
    LOG.set(Some(Vec::new()));
    fixture.get(target, headers);
    let log = String::from_utf8(LOG.take().unwrap()).unwrap();
    log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn each_decision_is_one_line_that_says_who_and_why() {
    const RECORD: &str = "0b0e7a4c-93d1-4f5e-8a6b-7c8d9e0f1a2b-1";
    let mut suspended = spec(KEY);
    suspended["suspended"] = json!(true);
    let mut listed = spec(OTHER_KEY);
    listed["allowedIPs"] = json!(["10.0.0.0/24"]);
    let fixture = Fixture::new(&[suspended, listed], ClientAddressSource::Peer);
    let cases = [
        (
            with_key(KEY),
            json!({ "message": "denied", "reason": "suspended", "namespace": "team-a", "name": "billing",
                "prefix": "keyw1_eVULq19j", "record": RECORD, "client": "10.0.0.5" }),
            "INFO",
        ),
        (
            with_key(OTHER_KEY),
            json!({ "message": "allowed", "namespace": "team-a", "name": "billing", "prefix": "keyw1_x3dylZ3l",
                "client": "10.0.0.5" }),
            "DEBUG",
        ),
        (
            with_key("keyw1_GIJjCtps9VfyK3QoUQexN2DvsoQN4YWslJWRPo4m4Ex4LtC2d"),
            json!({ "message": "denied", "reason": "unknown", "cause": "absent", "prefix": "keyw1_GIJjCtps" }),
            "INFO",
        ),
        (vec![], json!({ "message": "denied", "reason": "missing" }), "INFO"),
    ];
    for (headers, fields, level) in cases {
        let lines = logged(&fixture, "/verify", &headers);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert_eq!((&lines[0]["fields"], &lines[0]["level"]), (&fields, &json!(level)));
    }
    for (target, cause, remedy) in [
        ("/verify?scope=", "invalid_value", "scope: write 1 to 64 letters, digits and ._:/-"),
        ("/verify?namespace=orders,demo", "invalid_value", "namespace: repeat the parameter instead of a comma"),
        ("/verify?scope=a%2Cb", "invalid_value", "scope: repeat the parameter instead of a comma"),
        ("/verify?scopes=a", "unknown_parameter", "ask with the parameters namespace and scope only"),
    ] {
        let line = &logged(&fixture, target, &with_key(KEY))[0]["fields"];
        assert_eq!((&line["cause"], &line["remedy"]), (&json!(cause), &json!(remedy)), "{target}");
    }
}

#[test]
fn no_log_line_holds_more_of_a_key_than_its_prefix_or_anything_of_what_is_no_key() {
    let mut revoked = spec(OTHER_KEY);
    revoked["revoked"] = json!({ "at": "2026-01-01T00:00:00Z", "reason": "Deleted" });
    let fixture = Fixture::new(&[spec(KEY), revoked], "xff-hops=1".parse().unwrap());
    let mistyped = KEY.replace("19jg", "19Jg");
    let unknown = "keyw1_5LdvPPYbsFuXItWtxeRYxNSM0lFE7WG6AJPOloe336t3XOvuE";
    let bearer = |value: &str| vec![("Authorization".to_owned(), format!("Bearer {value}"))];
    let requests = [
        with_key(KEY),
        with_key(OTHER_KEY),
        with_key(unknown),
        with_key(&mistyped),
        with_key("hunter2"),
        bearer("eyJhbGciOiJub25lIn0.e30."),
        [bearer(KEY), with_key(OTHER_KEY)].concat(),
        [with_key(KEY), vec![("X-Forwarded-For".to_owned(), "hunter2\"\n".replace('\n', " "))]].concat(),
    ];
    for headers in requests {
        for target in ["/verify", "/verify?scope=hunter2", "/verify?hunter2=x"] {
            let log = format!("{:?}", logged(&fixture, target, &headers));
            for key in [KEY, OTHER_KEY, unknown, &mistyped] {
                assert!(!log.contains(&key[..15]), "{log}");
                assert!(!log.contains(&key[15..25]), "{log}");
                assert!(!log.contains(&Digest::of(key.as_bytes()).to_string()[7..]), "{log}");
            }
            assert!(!log.contains(&mistyped[..14]), "nothing is shown of what fails its checksum: {log}");
            assert!(!log.contains("hunter2") && !log.contains("eyJ"), "{log}");
        }
    }
}
