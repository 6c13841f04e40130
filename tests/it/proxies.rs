//! The real proxies, with the very files of `docs/proxies/`, between a client and a workload; the real verifier beside them.

mod wire;

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

use keywright_core::key::Key;
use kube::api::PostParams;
use rand::rngs::SysRng;
use serde_json::{Value, json};
use tokio::join;
use tokio::process::Command;
use tokio::sync::watch;

use super::overload::count;
use super::verifier::{self, Bench, UID, record_name};
use super::verifier_tls::{Ca, Mounted, with_files};
use keywright_testing::Program;
use keywright_testing::proxy::{Kind, Proxy, replaced};
use wire::{Connection, Message, Service, Workload, silence};

/// Where requests come from, unless a test says otherwise.
const CLIENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 44);
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 66);
const IDENTITY: [&str; 5] =
    ["X-Keywright-Key", "X-Keywright-Namespace", "X-Keywright-Name", "X-Keywright-Owner", "X-Keywright-Scopes"];
const UPGRADE: [&str; 4] = [
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
];

/// Where this kind of proxy asks.
fn door(verifier: &Program, kind: Kind) -> SocketAddr {
    verifier.address(if kind == Kind::EnvoyGrpc { "grpc" } else { "http" })
}

async fn each_in_front_of(verifier: &Program, workload: &Workload) -> Vec<Proxy> {
    let mut proxies = Vec::new();
    for kind in Kind::ALL {
        proxies.push(kind.start(door(verifier, kind), workload.address).await);
    }
    proxies
}

/// A new key that the recipes' route accepts, except for what `spec` says; and that the verifier knows.
async fn issue(bench: &Bench, verifier: &Program, serial: u32, spec: Value) -> String {
    let key = record(bench, serial, &spec).await;
    verifier::answers(verifier, &key, if spec.get("allowedIPs").is_some() { 403 } else { 200 }).await;
    key
}

async fn record(bench: &Bench, serial: u32, spec: &Value) -> String {
    let key = Key::mint(&mut SysRng).unwrap();
    let mut record = json!({
        "apiVersion": "keywright.dev/v1alpha1",
        "kind": "ApiKeyRecord",
        "metadata": { "name": record_name(serial) },
        "spec": {
            "digest": key.digest().to_string(),
            "keyPrefix": key.prefix().as_str(),
            "apiKey": { "namespace": "team-a", "name": "billing", "uid": UID },
            "serial": serial,
            "owner": "billing@example.org",
            "scopes": ["packages:read", "packages:write"],
        },
    });
    for (field, value) in spec.as_object().unwrap() {
        record["spec"][field] = value.clone();
    }
    let record = serde_json::from_value(record).unwrap();
    bench.records.create(&PostParams::default(), &record).await.unwrap();
    key.reveal().to_owned()
}

fn bearer(key: &str) -> String {
    format!("Authorization: Bearer {key}")
}

async fn by(line: &str, proxy: &Proxy, lines: &[&str]) -> Message {
    Connection::from(CLIENT, proxy.address).await.ask(line, lines, "").await
}

async fn get(proxy: &Proxy, from: Ipv4Addr, lines: &[&str]) -> Message {
    Connection::from(from, proxy.address).await.ask("GET /api", lines, "").await
}

/// The one request that the workload has seen since the last time.
fn arrived(workload: &Workload, proxy: &Proxy) -> Message {
    let mut seen = workload.take();
    assert_eq!(seen.len(), 1, "{:?}: {seen:?}", proxy.kind);
    seen.remove(0)
}

fn nothing_arrived(workload: &Workload, proxy: &Proxy) {
    let seen = workload.take();
    assert!(seen.is_empty(), "{:?} let it through: {seen:?}", proxy.kind);
}

#[tokio::test]
async fn what_is_allowed_arrives_with_an_identity_and_without_the_key() {
    let bench = Bench::new("proxies-allow").await;
    let (verifier, workload) = (bench.verifier(&[]).await, Workload::start().await);
    let key = issue(&bench, &verifier, 1, json!({})).await;
    let identity = [&key[..14], "team-a", "billing", "billing@example.org", "packages:read packages:write"];
    for proxy in each_in_front_of(&verifier, &workload).await {
        for carrier in [bearer(&key), format!("X-API-Key: {key}"), format!("x-api-key: {key}")] {
            let mut connection = Connection::from(CLIENT, proxy.address).await;
            let answer = connection.ask("POST /api?namespace=team-b", &[&carrier, "Cookie: a=b"], "the body").await;
            assert_eq!((answer.status(), &*answer.body), (200, "welcome\n"), "{:?}: {answer:?}", proxy.kind);
            let request = arrived(&workload, &proxy);
            assert!(request.head.starts_with("POST /api?namespace=team-b HTTP/1.1"), "{:?}: {request:?}", proxy.kind);
            assert_eq!((&*request.body, request.values("Cookie")), ("the body", vec!["a=b"]), "{:?}", proxy.kind);
            assert_eq!(
                IDENTITY.map(|name| request.values(name)),
                identity.map(|value| vec![value]),
                "{:?}",
                proxy.kind
            );
            assert!(!request.head.contains(&key[..15]), "{:?} passes the key on: {request:?}", proxy.kind);
            assert!(!answer.head.to_lowercase().contains("x-keywright"), "{:?}: {answer:?}", proxy.kind);
        }
    }
}

/// A workload may have users of its own, whose credentials are none of the proxy's business.
#[tokio::test]
async fn another_credential_beside_an_api_key_arrives() {
    let bench = Bench::new("proxies-basic").await;
    let (verifier, workload) = (bench.verifier(&[]).await, Workload::start().await);
    let key = issue(&bench, &verifier, 1, json!({})).await;
    for proxy in each_in_front_of(&verifier, &workload).await {
        let lines = ["Authorization: Basic dXNlcjpwdw==", &format!("X-API-Key: {key}")];
        assert_eq!(get(&proxy, CLIENT, &lines).await.status(), 200, "{:?}", proxy.kind);
        let request = arrived(&workload, &proxy);
        // The page says that Envoy's recipes take off both.
        let is_envoy = matches!(proxy.kind, Kind::EnvoyHttp | Kind::EnvoyGrpc);
        let expected = if is_envoy { vec![] } else { vec!["Basic dXNlcjpwdw=="] };
        assert_eq!(request.values("Authorization"), expected, "{:?}", proxy.kind);
        assert!(request.values("X-API-Key").is_empty(), "{:?}: {request:?}", proxy.kind);
    }
}

/// Browsers send no key with it. Whoever is no browser gets no further by posing as one.
#[tokio::test]
async fn a_preflight_is_answered_by_the_proxy_and_reaches_nobody() {
    let bench = Bench::new("proxies-cors").await;
    let (verifier, workload) = (bench.verifier(&[]).await, Workload::start().await);
    let key = issue(&bench, &verifier, 1, json!({})).await;
    let (origin, method) = ("Origin: https://app.example.org", "Access-Control-Request-Method: POST");
    let claim = "X-Keywright-Owner: mallory";
    for kind in Kind::ALL {
        let proxy = kind.start_with(&kind.recipe_with("CORS"), door(&verifier, kind), workload.address).await;
        let answer = by("OPTIONS /api", &proxy, &[origin, method, claim]).await;
        assert!([200, 204].contains(&answer.status()), "{kind:?}: {answer:?}");
        assert_eq!(answer.values("Access-Control-Allow-Origin"), ["https://app.example.org"], "{kind:?}: {answer:?}");
        for (name, expected) in
            [("Access-Control-Allow-Methods", "POST"), ("Access-Control-Allow-Headers", "X-API-Key")]
        {
            assert!(answer.values(name).concat().contains(expected), "{kind:?}: {answer:?}");
        }
        nothing_arrived(&workload, &proxy);
        for (line, lines) in [
            ("OPTIONS /api", &[origin, claim][..]),
            ("OPTIONS /api", &[method, claim]),
            ("OPTIONS /api", &[]),
            ("GET /api", &[origin, method]),
            ("POST /api", &[origin, method]),
        ] {
            assert_eq!(by(line, &proxy, lines).await.status(), 401, "{kind:?}: {line} {lines:?}");
            nothing_arrived(&workload, &proxy);
        }
        // A page that may call learns what it is told, be it good or bad.
        for (lines, expected) in [(&[origin, &bearer(&key)][..], 200), (&[origin][..], 401)] {
            let answer = by("GET /api", &proxy, lines).await;
            assert_eq!(answer.status(), expected, "{kind:?}: {answer:?}");
            assert_eq!(
                answer.values("Access-Control-Allow-Origin"),
                ["https://app.example.org"],
                "{kind:?}: {answer:?}"
            );
            workload.take();
        }
        // And as the recipe is published, nobody is answered without a key.
        let proxy = kind.start(door(&verifier, kind), workload.address).await;
        let answer = by("OPTIONS /api", &proxy, &[origin, method]).await;
        assert_eq!(answer.status(), 401, "{kind:?}: {answer:?}");
        nothing_arrived(&workload, &proxy);
    }
}

#[tokio::test]
async fn each_refusal_reaches_the_client_as_the_verifier_says_it() {
    let bench = Bench::new("proxies-deny").await;
    let (verifier, workload) = (bench.verifier(&[]).await, Workload::start().await);
    let mut refused = vec![("missing", None), ("malformed", Some("keyw1_short".to_owned()))];
    refused.push(("unknown", Some(Key::mint(&mut SysRng).unwrap().reveal().to_owned())));
    let changes = [
        ("suspended", json!({ "suspended": true }), 401),
        ("expired", json!({ "notAfter": "2026-01-01T00:00:00Z" }), 401),
        ("revoked", json!({ "revoked": { "at": "2026-01-01T00:00:00Z", "reason": "Deleted" } }), 401),
    ];
    for ((reason, change, status), serial) in changes.into_iter().zip(1..) {
        let key = issue(&bench, &verifier, serial, json!({})).await;
        bench.change(serial, change).await;
        verifier::answers(&verifier, &key, status).await;
        refused.push((reason, Some(key)));
    }
    let team_b = json!({ "namespace": "team-b", "name": "billing", "uid": UID });
    let others = [
        ("namespace", json!({ "apiKey": team_b })),
        ("scope", json!({ "scopes": ["packages:write"] })),
        ("address", json!({ "allowedIPs": ["127.0.0.45/32"] })),
    ];
    for ((reason, spec), serial) in others.into_iter().zip(11..) {
        refused.push((reason, Some(issue(&bench, &verifier, serial, spec).await)));
    }
    let good = issue(&bench, &verifier, 21, json!({})).await;
    for proxy in each_in_front_of(&verifier, &workload).await {
        for (reason, key) in &refused {
            let credential = key.as_deref().map(bearer);
            let demand = "namespace=team-a&scope=packages:read";
            refusal(&proxy, &workload, &verifier, credential.as_deref(), demand, reason).await;
        }
        let recipe = proxy.kind.recipe();
        let without_value = if proxy.kind == Kind::EnvoyGrpc {
            replaced(&recipe, "namespace: team-a", r#"namespace: """#)
        } else {
            replaced(&recipe, "namespace=team-a", "namespace=")
        };
        let misconfigured = proxy.kind.start_with(&without_value, door(&verifier, proxy.kind), workload.address).await;
        let demand = "namespace=&scope=packages:read";
        refusal(&misconfigured, &workload, &verifier, Some(&bearer(&good)), demand, "route").await;
    }
}

/// What the proxy answers is what the verifier itself answers, and the workload hears nothing.
async fn refusal(
    proxy: &Proxy,
    workload: &Workload,
    verifier: &Program,
    credential: Option<&str>,
    demand: &str,
    reason: &str,
) {
    let mut lines: Vec<&str> = credential.into_iter().collect();
    let mut connection = Connection::from(CLIENT, proxy.address).await;
    let answer = connection.ask("POST /api", &lines, "the body").await;
    lines.push("X-Forwarded-For: 127.0.0.44");
    let mut direct = Connection::from(CLIENT, verifier.address("http")).await;
    let expected = direct.ask(&format!("GET /verify?{demand}"), &lines, "").await;
    let telling = |answer: &Message| {
        let names = ["Content-Type", "WWW-Authenticate", "Cache-Control"];
        let values = names.map(|name| answer.values(name).into_iter().map(str::to_owned).collect::<Vec<_>>());
        (answer.status(), answer.body.clone(), values)
    };
    assert!([401, 403].contains(&expected.status()), "{reason}: {expected:?}");
    assert_eq!(telling(&answer), telling(&expected), "{:?}, {reason}: {answer:?}", proxy.kind);
    nothing_arrived(workload, proxy);
}

/// The service behind might read the other one.
#[tokio::test]
async fn a_key_that_is_repeated_or_sent_in_two_ways_lets_nobody_in() {
    let bench = Bench::new("proxies-twice").await;
    let (verifier, workload) = (bench.verifier(&[]).await, Workload::start().await);
    let key = issue(&bench, &verifier, 1, json!({})).await;
    let (as_bearer, as_api_key) = (bearer(&key), format!("X-API-Key: {key}"));
    for proxy in each_in_front_of(&verifier, &workload).await {
        for lines in [[&*as_bearer, &as_bearer], [&as_api_key, &as_api_key], [&as_bearer, &as_api_key]] {
            let answer = get(&proxy, CLIENT, &lines).await;
            assert!([400, 401].contains(&answer.status()), "{:?}: {answer:?}", proxy.kind);
            nothing_arrived(&workload, &proxy);
        }
        assert_eq!(get(&proxy, CLIENT, &[&as_bearer]).await.status(), 200, "{:?}", proxy.kind);
        arrived(&workload, &proxy);
    }
}

#[tokio::test]
async fn an_identity_that_a_client_claims_never_arrives() {
    let bench = Bench::new("proxies-spoof").await;
    let (verifier, workload) = (bench.verifier(&[]).await, Workload::start().await);
    let key = issue(&bench, &verifier, 1, json!({})).await;
    // Without owner and scopes: nothing overwrites what a client claims by a value of its own.
    let nobody = issue(&bench, &verifier, 2, json!({ "owner": null })).await;
    let spellings = [
        "X-Keywright-Owner",
        "x-keywright-owner",
        "x-KEYWRIGHT-oWNER",
        "X_Keywright_Owner",
        "X-Keywright_Owner",
        "x_keywright-owner",
        "X-Keywright-Scopes",
        "X-Keywright-Name",
        "X.Keywright.Owner",
    ];
    for proxy in each_in_front_of(&verifier, &workload).await {
        for (spelling, key) in spellings.into_iter().flat_map(|spelling| [(spelling, &key), (spelling, &nobody)]) {
            let claims = [format!("{spelling}: mallory"), format!("{spelling}: mallory@example.org")];
            let answer = get(&proxy, CLIENT, &[&bearer(key), &claims[0], &claims[1]]).await;
            if proxy.kind == Kind::EnvoyHttp || proxy.kind == Kind::EnvoyGrpc {
                let expected = if spelling.contains('_') { 400 } else { 200 };
                assert_eq!(answer.status(), expected, "{:?}, {spelling}", proxy.kind);
            } else {
                assert_eq!(answer.status(), 200, "{:?}, {spelling}", proxy.kind);
            }
            for request in workload.take() {
                assert!(!request.head.contains("mallory"), "{:?}, {spelling}: {request:?}", proxy.kind);
            }
        }
        let answer = get(&proxy, CLIENT, &[&bearer(&key), "Connection: close, X-Keywright-Owner"]).await;
        assert_eq!(answer.status(), 200, "{:?}: {answer:?}", proxy.kind);
        let request = arrived(&workload, &proxy);
        assert_eq!(request.values("X-Keywright-Owner"), ["billing@example.org"], "{:?}", proxy.kind);
    }
}

/// What clients claim, one line each.
const CLAIMS: [&[&str]; 6] = [
    &[],
    &["X-Forwarded-For: 127.0.0.44"],
    &["X-Forwarded-For: 127.0.0.44, 127.0.0.44"],
    &["X-Forwarded-For: 127.0.0.44", "x-forwarded-for: 127.0.0.44"],
    &["X-Forwarded-For: ,"],
    &["X-Forwarded-For: 127.0.0.44", "Connection: X-Forwarded-For", "X-Real-IP: 127.0.0.44"],
];

/// Nor does what the right client sends shut it out.
async fn only_the_true_client_gets_in(proxy: &Proxy, workload: &Workload, key: &str) {
    for claims in CLAIMS {
        let credential = bearer(key);
        let lines: Vec<&str> = [&*credential].into_iter().chain(claims.iter().copied()).collect();
        let answer = get(proxy, STRANGER, &lines).await;
        // Envoy refuses whoever has the header removed.
        let refuses = answer.status() == 400 && answer.head.contains("server: envoy") && claims.len() == 3;
        assert!(answer.status() == 403 || refuses, "{:?}, {claims:?}: {answer:?}", proxy.kind);
        nothing_arrived(workload, proxy);
        let claims = claims.iter().map(|claim| claim.replace("127.0.0.44", "127.0.0.66")).collect::<Vec<_>>();
        let lines: Vec<&str> = [&*credential].into_iter().chain(claims.iter().map(String::as_str)).collect();
        let answer = get(proxy, CLIENT, &lines).await;
        if refuses {
            continue;
        }
        assert_eq!(answer.status(), 200, "{:?}, {claims:?}: {answer:?}", proxy.kind);
        arrived(workload, proxy);
    }
}

#[tokio::test]
async fn a_client_cannot_choose_its_address_behind_one_proxy() {
    let bench = Bench::new("proxies-one").await;
    let (verifier, workload) = (bench.verifier(&[]).await, Workload::start().await);
    let key = issue(&bench, &verifier, 1, json!({ "allowedIPs": ["127.0.0.44/32"] })).await;
    for proxy in each_in_front_of(&verifier, &workload).await {
        only_the_true_client_gets_in(&proxy, &workload, &key).await;
    }
}

#[tokio::test]
async fn a_client_cannot_choose_its_address_behind_two_proxies() {
    let bench = Bench::new("proxies-two").await;
    let workload = Workload::start().await;
    // nginx adds to what the client sent, as most proxies do. It is not at 127.0.0.1: Envoy takes that for itself, and
    // appends the address of its machine.
    let outer = "server { listen 8000; location / { proxy_pass http://workload.team-a.svc:8080; proxy_http_version 1.1; proxy_bind 127.0.0.2; \
                 proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; } } \
                 # keywright-verifier.keywright-system.svc:8080";
    let modes = [
        ["--http-client-ip=xff-hops=2", "--grpc-client-ip=xff-hops=2"],
        [
            "--http-client-ip=xff-proxies=127.0.0.1/32,127.0.0.2/32",
            "--grpc-client-ip=xff-proxies=127.0.0.1/32,127.0.0.2/32",
        ],
    ];
    for (mode, serial) in modes.iter().zip(1..) {
        let verifier = bench.verifier(mode).await;
        let key = issue(&bench, &verifier, serial, json!({ "allowedIPs": ["127.0.0.44/32"] })).await;
        for kind in Kind::ALL {
            let mut recipe = kind.recipe();
            if kind == Kind::Caddy {
                recipe = replaced(&recipe, "# trusted_proxies 192.0.2.0/24", "trusted_proxies 127.0.0.2/32");
            }
            let inner = kind.start_with(&recipe, door(&verifier, kind), workload.address).await;
            // Who goes past the outer one is told apart only where the proxies' addresses are known.
            if mode[0].contains("xff-proxies") {
                let answer = get(&inner, STRANGER, &[&bearer(&key), "X-Forwarded-For: 127.0.0.44"]).await;
                assert_eq!(answer.status(), 403, "{kind:?}: {answer:?}");
                nothing_arrived(&workload, &inner);
            }
            let mut proxy = Kind::Nginx.start_with(outer, door(&verifier, Kind::Nginx), inner.address).await;
            proxy.kind = kind;
            only_the_true_client_gets_in(&proxy, &workload, &key).await;
        }
    }
}

/// Every proxy, asking at these addresses, answers 5xx and passes nothing on.
async fn shut(http: SocketAddr, grpc: SocketAddr, workload: &Workload, key: &str) {
    for kind in Kind::ALL {
        let door = if kind == Kind::EnvoyGrpc { grpc } else { http };
        refuses(&kind.start(door, workload.address).await, workload, key).await;
    }
}

async fn refuses(proxy: &Proxy, workload: &Workload, key: &str) {
    for lines in [vec![], vec![bearer(key)], UPGRADE.map(str::to_owned).into_iter().chain([bearer(key)]).collect()] {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let answer = get(proxy, CLIENT, &lines).await;
        // A client takes a 500 for the workload's fault.
        let expected = if proxy.kind == Kind::Caddy { &[502, 503, 504][..] } else { &[503] };
        assert!(expected.contains(&answer.status()), "{:?}: {answer:?}", proxy.kind);
        nothing_arrived(workload, proxy);
    }
}

#[tokio::test]
async fn without_a_verifier_that_knows_nobody_gets_in() {
    let bench = Bench::new("proxies-shut").await;
    let workload = Workload::start().await;
    let verifier = bench.verifier(&[]).await;
    let key = issue(&bench, &verifier, 1, json!({})).await;
    let (http, grpc) = (verifier.address("http"), verifier.address("grpc"));
    verifier.kill().await;
    println!("down");
    shut(http, grpc, &workload, &key).await;
    println!("not ready");
    bench.faults.partition();
    let unready = bench.installation.program("verifier").through(&bench.faults).start().await;
    shut(unready.address("http"), unready.address("grpc"), &workload, &key).await;
    println!("silent");
    let (silent, held) = silence().await;
    shut(silent, silent, &workload, &key).await;
    held.abort();
}

/// HAProxy goes on after an error in a script.
#[tokio::test]
async fn an_answer_that_haproxys_script_does_not_expect_lets_nobody_in() {
    let workload = Workload::start().await;
    let verifier = Workload::answering(&[], "no identity").await;
    let proxy = Kind::Haproxy.start(verifier.address, workload.address).await;
    refuses(&proxy, &workload, "key").await;
    assert_eq!(verifier.take().len(), 3);
}

/// The proxy has to be sure of the verifier, and the verifier of the proxy.
#[tokio::test]
async fn over_tls_only_the_right_verifier_is_believed_and_only_the_right_proxy_answered() {
    let bench = Bench::new("proxies-tls").await;
    let workload = Workload::start().await;
    let (verifiers, proxies, stranger) = (Ca::new(), Ca::new(), Ca::new());
    let key = record(&bench, 1, &json!({})).await;
    let of_verifier = Mounted::new(&bench.installation);
    of_verifier.write(&verifiers.server(), &proxies.pem());
    let verifier = with_files(&bench, &of_verifier).await;
    let of_other = Mounted::new(&bench.installation);
    of_other.write(&verifiers.other_server(), &proxies.pem());
    let other = with_files(&bench, &of_other).await;
    let of_proxy = Mounted::new(&bench.installation);
    let open = async |kind: Kind, verifier: &Program| {
        let recipe = kind.recipe_over_tls(&of_proxy.files());
        kind.start_with(&recipe, door(verifier, kind), workload.address).await
    };
    // HAProxy's recipe asks in plain text.
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Haproxy) {
        of_proxy.write(&proxies.client(), &verifiers.pem());
        let proxy = open(kind, &verifier).await;
        let unknown = Key::mint(&mut SysRng).unwrap();
        for (key, expected) in [(&*key, 200), (unknown.reveal(), 401), (&*key, 200)] {
            let answer = get(&proxy, CLIENT, &[&bearer(key)]).await;
            assert_eq!(answer.status(), expected, "{kind:?}: {answer:?}");
        }
        let requests = workload.take();
        let owners: Vec<_> = requests.iter().map(|request| request.values("X-Keywright-Owner")).collect();
        assert_eq!(owners, vec![["billing@example.org"]; 2], "{kind:?}");
        println!("{kind:?}: a verifier by another name");
        refuses(&open(kind, &other).await, &workload, &key).await;
        println!("{kind:?}: a verifier that another authority is answerable for");
        of_proxy.write(&proxies.client(), &stranger.pem());
        refuses(&open(kind, &verifier).await, &workload, &key).await;
        println!("{kind:?}: a proxy that another authority is answerable for");
        of_proxy.write(&stranger.client(), &verifiers.pem());
        refuses(&open(kind, &verifier).await, &workload, &key).await;
    }
}

/// As a rolling update does: endpoints change, and the verifier of before gets SIGTERM.
#[tokio::test]
async fn no_request_is_lost_while_a_verifier_is_replaced() {
    let bench = Bench::new("proxies-replace").await;
    let workload = Workload::start().await;
    let key = record(&bench, 1, &json!({})).await;
    let credential = bearer(&key);
    for kind in Kind::ALL {
        let (before, after) = (bench.verifier(&[]).await, bench.verifier(&[]).await);
        let service = Service::to(door(&before, kind)).await;
        let proxy = kind.start(service.address, workload.address).await;
        let (answered, is_over) = (watch::Sender::new(0), AtomicBool::new(false));
        let client = async || {
            let mut connection = Connection::from(CLIENT, proxy.address).await;
            while !is_over.load(Ordering::Relaxed) {
                let answer = connection.ask("GET /api", &[&credential], "").await;
                assert_eq!(answer.status(), 200, "{kind:?}, after {}: {answer:?}", *answered.borrow());
                answered.send_modify(|answered| *answered += 1);
                if answer.values("Connection") == ["close"] {
                    connection = Connection::from(CLIENT, proxy.address).await;
                }
            }
        };
        let replace = async || {
            let mut heard = answered.subscribe();
            let mut hundred_more = async || {
                let goal = *answered.borrow() + 100;
                heard.wait_for(|answered| *answered >= goal).await.unwrap();
            };
            hundred_more().await;
            service.turn_to(door(&after, kind));
            assert_eq!(before.terminate().await.code(), Some(0), "{kind:?}");
            hundred_more().await;
            is_over.store(true, Ordering::Relaxed);
        };
        join!(client(), client(), client(), client(), replace());
        assert_eq!(workload.take().len(), *answered.borrow(), "{kind:?}");
        let protocol = if kind == Kind::EnvoyGrpc { "grpc" } else { "http" };
        assert!(count(&after, "allow", "allowed", protocol).await >= 100, "{kind:?}");
    }
}

#[tokio::test]
async fn connections_are_kept_and_each_request_is_judged_by_itself() {
    let bench = Bench::new("proxies-keep").await;
    let (verifier, workload) = (bench.verifier(&[]).await, Workload::start().await);
    let key = issue(&bench, &verifier, 1, json!({})).await;
    let other = Key::mint(&mut SysRng).unwrap().reveal().to_owned();
    for proxy in each_in_front_of(&verifier, &workload).await {
        let mut connection = Connection::from(CLIENT, proxy.address).await;
        for _ in 0..20 {
            assert_eq!(connection.ask("GET /api", &[&bearer(&key)], "").await.status(), 200, "{:?}", proxy.kind);
            assert_eq!(connection.ask("GET /api", &[&bearer(&other)], "").await.status(), 401, "{:?}", proxy.kind);
            assert_eq!(connection.ask("GET /api", &[], "").await.status(), 401, "{:?}", proxy.kind);
        }
        assert_eq!(workload.take().len(), 20, "{:?}", proxy.kind);
    }
}

#[tokio::test]
async fn a_verifier_is_asked_over_one_connection_and_told_neither_body_nor_cookies() {
    let workload = Workload::start().await;
    for kind in [Kind::Nginx, Kind::Caddy, Kind::EnvoyHttp, Kind::Haproxy] {
        let verifier = Workload::answering(&IDENTITY.map(|name| format!("{name}: someone")), "").await;
        let proxy = kind.start(verifier.address, workload.address).await;
        let mut connection = Connection::from(CLIENT, proxy.address).await;
        for _ in 0..10 {
            let answer = connection.ask("POST /api?namespace=x", &["X-API-Key: key", "Cookie: a=b"], "the body").await;
            assert_eq!(answer.status(), 200, "{kind:?}");
            assert_eq!(arrived(&workload, &proxy).body, "the body", "{kind:?}");
            let question = arrived(&verifier, &proxy);
            let target = question.head.split(' ').nth(1);
            assert_eq!(target, Some("/verify?namespace=team-a&scope=packages:read"), "{kind:?}");
            assert_eq!((&*question.body, question.values("Cookie").len()), ("", 0), "{kind:?}: {question:?}");
            assert_eq!(question.values("X-Forwarded-For"), ["127.0.0.44"], "{kind:?}: {question:?}");
        }
        assert_eq!(verifier.connections(), 1, "{kind:?}");
    }
}

#[tokio::test]
async fn a_websocket_is_opened_with_a_key_and_not_without() {
    let bench = Bench::new("proxies-ws").await;
    let (verifier, workload) = (bench.verifier(&[]).await, Workload::start().await);
    let key = issue(&bench, &verifier, 1, json!({})).await;
    for proxy in each_in_front_of(&verifier, &workload).await {
        let answer = get(&proxy, CLIENT, &UPGRADE).await;
        assert_eq!(answer.status(), 401, "{:?}: {answer:?}", proxy.kind);
        nothing_arrived(&workload, &proxy);
        let mut connection = Connection::from(CLIENT, proxy.address).await;
        let credential = bearer(&key);
        let lines: Vec<&str> = UPGRADE.into_iter().chain([&*credential]).collect();
        let answer = connection.ask("GET /api", &lines, "").await;
        assert_eq!(answer.status(), 101, "{:?}: {answer:?}", proxy.kind);
        assert_eq!(connection.echo("over the socket").await, "over the socket");
        let request = arrived(&workload, &proxy);
        assert_eq!(request.values("X-Keywright-Owner"), ["billing@example.org"], "{:?}", proxy.kind);
        assert!(!request.head.contains(&key[..15]), "{:?}", proxy.kind);
    }
}

/// On a connection that has become something else, nothing is judged any more.
#[tokio::test]
async fn no_upgrade_but_that_to_a_websocket_reaches_the_workload() {
    let bench = Bench::new("proxies-upgrade").await;
    let (verifier, workload) = (bench.verifier(&[]).await, Workload::start().await);
    let key = issue(&bench, &verifier, 1, json!({})).await;
    let h2c = ["Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"];
    let upgrades: [&[&str]; 6] = [
        &h2c,
        &h2c[..1],
        &["Upgrade: h2c", "Connection: Upgrade"],
        &["Upgrade: TLS/1.0", "Connection: Upgrade"],
        &["Upgrade: websocket, h2c", "Connection: Upgrade"],
        &["Upgrade: websocket", "Upgrade: h2c", "Connection: Upgrade"],
    ];
    for proxy in each_in_front_of(&verifier, &workload).await {
        for upgrade in upgrades {
            let credential = bearer(&key);
            let lines: Vec<&str> = upgrade.iter().copied().chain([&*credential]).collect();
            let answer = get(&proxy, CLIENT, &lines).await;
            println!("{:?}, {upgrade:?}: {}", proxy.kind, answer.head);
            for request in workload.take() {
                // Of two lines, nginx takes the first.
                let upgrade = request.values("Upgrade");
                assert!(upgrade.is_empty() || upgrade == ["websocket"], "{:?}: {request:?}", proxy.kind);
            }
        }
    }
}

/// Where nothing else in Envoy's configuration takes headers away: gateways ask in this way.
#[tokio::test]
async fn envoy_removes_the_key_and_overwrites_an_identity_because_the_verifier_says_so() {
    let bench = Bench::new("proxies-told").await;
    let (verifier, workload) = (bench.verifier(&[]).await, Workload::start().await);
    let recipe = replaced(&Kind::EnvoyGrpc.recipe(), "request_headers_to_remove: [authorization, x-api-key]", "");
    let recipe = replaced(&recipe, "key_matcher: { contains: keywright,", "key_matcher: { contains: nothing-at-all,");
    // It then tells of headers in `header_map`.
    let raw = replaced(
        &recipe,
        "failure_mode_allow: false",
        "failure_mode_allow: false\n              encode_raw_headers: true",
    );
    let named = issue(&bench, &verifier, 1, json!({})).await;
    let nobody = issue(&bench, &verifier, 2, json!({ "owner": null, "scopes": ["packages:read"] })).await;
    for recipe in [recipe, raw] {
        let proxy = Kind::EnvoyGrpc.start_with(&recipe, door(&verifier, Kind::EnvoyGrpc), workload.address).await;
        for (key, owner, scopes) in
            [(&named, "billing@example.org", "packages:read packages:write"), (&nobody, "", "packages:read")]
        {
            let identity = [&key[..14], "team-a", "billing", owner, scopes];
            for carrier in [bearer(key), format!("X-API-Key: {key}")] {
                let claims = IDENTITY.map(|name| format!("{name}: mallory"));
                let lines: Vec<&str> =
                    [&carrier].into_iter().chain(&claims).chain(&claims).map(String::as_str).collect();
                assert_eq!(get(&proxy, CLIENT, &lines).await.status(), 200);
                let request = arrived(&workload, &proxy);
                assert_eq!(IDENTITY.map(|name| request.values(name)), identity.map(|value| vec![value]), "{request:?}");
                assert!(!request.head.contains(&key[..15]), "{request:?}");
            }
        }
    }
}

#[tokio::test]
async fn http_2_is_judged_as_http_1_is() {
    let bench = Bench::new("proxies-h2").await;
    let (verifier, workload) = (bench.verifier(&[]).await, Workload::start().await);
    let key = issue(&bench, &verifier, 1, json!({})).await;
    for kind in Kind::ALL {
        let mut recipe = kind.recipe();
        if kind == Kind::Nginx {
            // Without TLS, it speaks either of them at a port.
            recipe = replaced(&recipe, "listen 8000;", "listen 8000 http2;");
        }
        let proxy = kind.start_with(&recipe, door(&verifier, kind), workload.address).await;
        for (lines, expected) in [(vec![], "2 401"), (vec![bearer(&key), "X-Keywright-Owner: mallory".into()], "2 200")]
        {
            let mut curl = Command::new("curl");
            curl.args(["--silent", "--http2-prior-knowledge", "--noproxy", "*", "--output", "/dev/null"]);
            curl.args(["--write-out", "%{http_version} %{http_code}"]).stdin(Stdio::null());
            curl.args(lines.iter().flat_map(|line| ["--header", line]));
            let output = curl.arg(format!("http://{}/api", proxy.address)).output().await.unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{kind:?}");
            if expected == "2 401" {
                nothing_arrived(&workload, &proxy);
            } else {
                let owner = arrived(&workload, &proxy).values("X-Keywright-Owner").join(",");
                assert_eq!(owner, "billing@example.org", "{kind:?}");
            }
        }
    }
}

/// The trap that the documentation warns of: not our configuration, but one that somebody may make of it.
#[tokio::test]
async fn a_cached_decision_lets_in_strangers_and_revoked_keys_unless_no_store_is_heeded() {
    let bench = Bench::new("proxies-cache").await;
    let (verifier, workload) = (bench.verifier(&[]).await, Workload::start().await);
    let key = issue(&bench, &verifier, 1, json!({})).await;
    let folder = format!("{}/cache-{:08x}", env!("CARGO_TARGET_TMPDIR"), rand::random::<u32>());
    let caching = async |name: &str, key: &str, more: &str| {
        let zone = format!("proxy_cache_path {folder}-{name} keys_zone=decisions:1m;\n");
        let location = "location = /keywright {";
        let cached = format!("{location}\n proxy_cache decisions; proxy_cache_valid 1m; proxy_cache_key {key}; {more}");
        let configuration = zone + &replaced(&Kind::Nginx.recipe(), location, &cached);
        Kind::Nginx.start_with(&configuration, door(&verifier, Kind::Nginx), workload.address).await
    };
    let heeding = caching("heeding", "$request_uri", "").await;
    let ignoring = caching("ignoring", "$request_uri", "proxy_ignore_headers Cache-Control;").await;
    let by_key = caching("by-key", "$request_uri$http_authorization", "proxy_ignore_headers Cache-Control;").await;
    for (proxy, stranger) in [(&heeding, 401), (&ignoring, 200), (&by_key, 401)] {
        assert_eq!(get(proxy, CLIENT, &[&bearer(&key)]).await.status(), 200);
        assert_eq!(get(proxy, STRANGER, &[]).await.status(), stranger);
    }
    bench.revoke(1).await;
    verifier::answers(&verifier, &key, 401).await;
    assert_eq!(get(&heeding, CLIENT, &[&bearer(&key)]).await.status(), 401);
    assert_eq!(get(&by_key, CLIENT, &[&bearer(&key)]).await.status(), 200);
    for name in ["heeding", "ignoring", "by-key"] {
        std::fs::remove_dir_all(format!("{folder}-{name}")).unwrap();
    }
}
