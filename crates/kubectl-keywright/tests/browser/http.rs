//! What must not get in, by HTTP itself: other hosts' names, other pages' requests, no cookie, a spent token.

use std::net::SocketAddr;

use keywright_testing::Installation;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::stage::{address, page_of};

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
    assert_eq!(status, 204, "{answer}");
    let cookie = answer.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    assert!(cookie.ends_with("; Path=/; HttpOnly; SameSite=Strict"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap();
    assert_eq!(send(to, &session, &begin).await.0, 401, "the token a second time");

    let asked = format!("GET /api/session?namespace={} HTTP/1.1\nHost: {host}", installation.tenant_namespace);
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
