//! What must not get in, by HTTP itself: other hosts' names, other pages' requests, no cookie, a spent token.

use std::net::SocketAddr;

use keywright_core::api::ApiKey;
use keywright_testing::{Fault, FaultProxy, Installation, Occurrence, Outcome, Program};
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::stage::{address, page_of, page_through};

/// Sends a request as it stands; the answer's status, and all of it.
async fn send(to: SocketAddr, head: &str, body: &str) -> (u16, String) {
    let mut connection = TcpStream::connect(to).await.unwrap();
    let length = body.len();
    let request = format!("{head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
    connection.write_all(request.replace("\r\n", "\n").replace('\n', "\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

#[tokio::test]
async fn only_the_page_gets_in_and_its_token_once() {
    let installation = Installation::new("page-http").await;
    let page = page_of(&installation, "ann", &[("keywright.dev", "apikeys", "get list watch")]).await;
    let address = address(&page);
    let (origin, token) = address.split_once("/#").unwrap();
    let host = origin.strip_prefix("http://").unwrap();
    let to: SocketAddr = host.parse().unwrap();
    let json = "Content-Type: application/json";
    let begin = format!("{{\"token\": \"{token}\"}}");

    let (status, answer) = send(to, &format!("GET / HTTP/1.1\nHost: {host}"), "").await;
    assert_eq!(status, 200);
    for header in [
        "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
        "cross-origin-opener-policy: same-origin",
        "cross-origin-resource-policy: same-origin",
        "cache-control: no-store",
    ] {
        assert!(answer.contains(header), "{header} is not in {answer}");
    }

    let rebound = "rebound.example.org";
    for (what, head, expected) in [
        ("a name that points here", format!("GET / HTTP/1.1\nHost: {rebound}"), 421),
        ("the same with the port", format!("GET /api/session HTTP/1.1\nHost: {rebound}:{}", to.port()), 421),
        (
            "another page's token",
            format!("POST /session HTTP/1.1\nHost: {host}\nOrigin: http://{rebound}\n{json}"),
            403,
        ),
        ("no origin", format!("POST /session HTTP/1.1\nHost: {host}\n{json}"), 403),
        ("a form", format!("POST /session HTTP/1.1\nHost: {host}\nOrigin: {origin}\nContent-Type: text/plain"), 415),
        ("no cookie", format!("GET /api/session HTTP/1.1\nHost: {host}"), 401),
        ("no cookie for a path that is not there", format!("GET /api/nothing HTTP/1.1\nHost: {host}"), 401),
    ] {
        assert_eq!(send(to, &head, &begin).await.0, expected, "{what}");
    }

    let session = format!("POST /session HTTP/1.1\nHost: {host}\nOrigin: {origin}\n{json}");
    assert_eq!(send(to, &session, "{\"token\": \"0000\"}").await.0, 401, "another token");
    let (status, answer) = send(to, &session, &begin).await;
    assert_eq!(status, 200, "{answer}");
    let cookie = answer.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    assert!(cookie.ends_with("; Path=/; HttpOnly; SameSite=Strict"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap();
    let proof = answer.split("\"proof\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
    let proof = format!("X-Keywright-Session: {proof}");
    assert_eq!(send(to, &session, &begin).await.0, 401, "the token a second time");

    let asked = format!("GET /api/session?namespace={} HTTP/1.1\nHost: {host}", installation.tenant_namespace);
    let cookie_alone = format!("{asked}\nCookie: {cookie}");
    assert_eq!(send(to, &cookie_alone, "").await.0, 401, "another server on this machine, which was sent the cookie");
    let cookie = format!("{cookie}\n{proof}");
    let (status, answer) = send(to, &format!("{asked}\nCookie: {cookie}"), "").await;
    assert_eq!(status, 200, "{answer}");
    assert!(answer.contains("You may look, not change: ask for keywright-admin."), "{answer}");
    for (what, headers, expected) in [
        ("another port's page", "Sec-Fetch-Site: same-site", 403),
        ("another site's page", "Sec-Fetch-Site: cross-site", 403),
        ("another site's origin", "Origin: http://rebound.example.org", 403),
    ] {
        assert_eq!(send(to, &format!("{asked}\nCookie: {cookie}\n{headers}"), "").await.0, expected, "{what}");
    }
    let forged = format!("POST /api/keys HTTP/1.1\nHost: {host}\nOrigin: http://127.0.0.1:1\n{json}\nCookie: {cookie}");
    assert_eq!(send(to, &forged, "{}").await.0, 403, "another port's page creates a key");
}

/// Begins the page's session: its host, and the headers that prove it.
async fn session(page: &Program) -> (String, String) {
    let address = address(page);
    let (origin, token) = address.split_once("/#").unwrap();
    let host = origin.strip_prefix("http://").unwrap().to_owned();
    let head = format!("POST /session HTTP/1.1\nHost: {host}\nOrigin: {origin}\nContent-Type: application/json");
    let (_, answer) = send(host.parse().unwrap(), &head, &format!("{{\"token\": \"{token}\"}}")).await;
    let cookie = answer.lines().find_map(|line| line.strip_prefix("set-cookie: ")?.split(';').next()).unwrap();
    let proof = answer.split("\"proof\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
    (host, format!("Cookie: {cookie}\nX-Keywright-Session: {proof}"))
}

/// The head of the page's own POST to this path.
fn posting(path: &str, host: &str, proof: &str) -> String {
    format!("POST {path} HTTP/1.1\nHost: {host}\nOrigin: http://{host}\nContent-Type: application/json\n{proof}")
}

#[tokio::test]
async fn a_watch_that_goes_silent_is_made_up_for_and_one_that_breaks_is_told() {
    let installation = Installation::new("page-silence").await;
    let faults = FaultProxy::start(installation.control_plane).await;
    let rules = [("keywright.dev", "apikeys", "get list watch")];
    let page = page_through(&installation, "ann", &rules, Some(&faults)).await;
    let (host, proof) = session(&page).await;
    let mut feed = TcpStream::connect(&host).await.unwrap();
    let namespace = &installation.tenant_namespace;
    let asked = format!("GET /api/feed?namespace={namespace} HTTP/1.1\nHost: {host}\n{proof}\n\n");
    feed.write_all(asked.replace('\n', "\r\n").as_bytes()).await.unwrap();
    let mut told = String::new();
    let mut hear = async |what: &str| {
        let mut part = [0; 4096];
        let heard = async {
            while !told.contains(what) {
                let length = feed.read(&mut part).await.unwrap();
                assert!(length > 0, "the feed ended: {told}");
                told += &String::from_utf8_lossy(&part[..length]);
            }
        };
        let waited = tokio::time::timeout(std::time::Duration::from_secs(120), heard).await;
        assert!(waited.is_ok(), "no {what} in {told}");
        told.clone()
    };
    hear("\"complete\"").await;
    let is_watch = |request: &keywright_testing::ApiRequest| request.watch && request.resource == "apikeys";
    let silent = faults.inject(Fault::HangWatch, Occurrence::Nth(1), is_watch);
    let api_key =
        json!({"apiVersion": "keywright.dev/v1alpha1", "kind": "ApiKey", "metadata": {"name": "late"}, "spec": {}});
    let api_key: ApiKey = serde_json::from_value(api_key).unwrap();
    installation.tenant().create(&PostParams::default(), &api_key).await.unwrap();
    silent.hit().await;
    hear("\"late\"").await;

    faults.partition();
    faults.sever();
    hear("\"lost\"").await;
    faults.heal();
    faults.sever();
    hear("\"found\"").await;
}

#[tokio::test]
async fn connections_that_ask_nothing_keep_nobody_out() {
    let installation = Installation::new("page-idle").await;
    let page = page_of(&installation, "ann", &[]).await;
    let address = address(&page);
    let host = address.strip_prefix("http://").and_then(|rest| rest.split('/').next()).unwrap();
    let to: SocketAddr = host.parse().unwrap();
    let mut idle = Vec::new();
    for _ in 0..200 {
        let mut connection = TcpStream::connect(to).await.unwrap();
        connection.write_all(b"GET / HTTP/1.1\r\nHost: 127").await.unwrap();
        idle.push(connection);
    }
    let (status, _) = send(to, &format!("GET / HTTP/1.1\nHost: {host}"), "").await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn a_key_whose_creation_had_no_answer_is_shown_all_the_same() {
    let installation = Installation::new("page-lost").await;
    let faults = FaultProxy::start(installation.control_plane).await;
    let rules = [("keywright.dev", "apikeys", "get list watch create delete")];
    let page = page_through(&installation, "ann", &rules, Some(&faults)).await;
    let (host, proof) = session(&page).await;
    let namespace = &installation.tenant_namespace;
    let lost = faults.inject(Fault::After(Outcome::Reset), Occurrence::Nth(1), |request| request.is("POST", "apikeys"));
    let form = json!({"namespace": namespace, "display_name": "Lost", "name": "lost", "description": "", "owner": "", "expires": "1d", "addresses": "", "deliver": "once"});
    let (status, answer) = send(host.parse().unwrap(), &posting("/api/keys", &host, &proof), &form.to_string()).await;
    assert_eq!(status, 200, "{answer}");
    lost.hit().await;
    assert!(answer.contains("\"key\":\"keyw1_"), "{answer}");
    let uid = installation.tenant::<ApiKey>().get("lost").await.unwrap().metadata.uid.unwrap();

    let lost =
        faults.inject(Fault::After(Outcome::Reset), Occurrence::Nth(1), |request| request.is("DELETE", "apikeys"));
    let revoke = posting(&format!("/api/keys/{namespace}/lost/revoke"), &host, &proof);
    let (status, answer) = send(host.parse().unwrap(), &revoke, &json!({"uid": uid}).to_string()).await;
    assert_eq!(status, 204, "{answer}");
    lost.hit().await;
}

#[tokio::test]
async fn a_rotation_ends_no_key_within_its_overlap_unasked() {
    let installation = Installation::new("page-overlap").await;
    let faults = FaultProxy::start(installation.control_plane).await;
    let rules = [("keywright.dev", "apikeys", "get list watch patch")];
    let page = page_through(&installation, "ann", &rules, Some(&faults)).await;
    let (host, proof) = session(&page).await;
    let api_keys: kube::Api<ApiKey> = installation.tenant();
    let api_key =
        json!({"apiVersion": "keywright.dev/v1alpha1", "kind": "ApiKey", "metadata": {"name": "ci"}, "spec": {}});
    let created = api_keys.create(&PostParams::default(), &serde_json::from_value(api_key).unwrap()).await.unwrap();
    let namespace = &installation.tenant_namespace;
    let head = posting(&format!("/api/keys/{namespace}/ci/rotate"), &host, &proof);
    let meant = json!({"uid": created.metadata.uid}).to_string();
    let rotate = || {
        let (host, head, meant) = (host.clone(), head.clone(), meant.clone());
        async move { send(host.parse().unwrap(), &head, &meant).await }
    };
    let retire = async |serials: &[u32]| {
        let retiring: Vec<_> = serials.iter().map(|serial| json!({"serial": serial, "keyPrefix": format!("keyw1_Aa11bb2{serial}"), "retiresAt": "2099-01-01T00:00:00Z"})).collect();
        let status = Patch::Merge(json!({"status": {"retiring": retiring}}));
        api_keys.patch_status("ci", &PatchParams::default(), &status).await.unwrap();
    };
    let refusal = "Old key keyw1_Aa11bb21, never used since, ends at once";

    retire(&[1, 2]).await;
    let (status, answer) = rotate().await;
    assert!(status == 409 && answer.contains(refusal), "{answer}");

    // Another one is faster, between the look and the write.
    retire(&[1]).await;
    let held = faults.inject(Fault::Hold, Occurrence::Nth(1), |request| request.is("PATCH", "apikeys"));
    let rotating = tokio::spawn(rotate());
    held.hit().await;
    retire(&[1, 2]).await;
    held.lift();
    let (status, answer) = rotating.await.unwrap();
    assert!(status == 409 && answer.contains(refusal), "{answer}");

    retire(&[2]).await;
    assert_eq!(rotate().await.0, 204);
    assert!(api_keys.get("ci").await.unwrap().metadata.annotations.is_some());
}
