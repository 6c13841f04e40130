use std::io::{Read, Write};
use std::thread;

use prometheus_client::encoding::text;
use serde_json::{Value, json};

use super::*;
use crate::testing::running::{PATIENCE, Running, rest, statuses};

const MIB: usize = 1024 * 1024;

fn now() -> Timestamp {
    "2026-11-23T12:00:00Z".parse().unwrap()
}

async fn webhook(limits: Limits, bodies: BodyLimits) -> Running {
    let webhook = Webhook::new(now, &mut Registry::default());
    Running::serving_bodies(limits, bodies, move |request: &Request<Bytes>| webhook.answer(request)).await
}

fn review(spec: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "u-1",
            "resource": {"group": "keywright.dev", "version": "v1alpha1", "resource": "apikeys"},
            "namespace": "team-a",
            "operation": "CREATE",
            "userInfo": {"username": "eve"},
            "object": {"metadata": {"name": "ci"}, "spec": spec},
        },
    })
}

fn head(path: &str, length: usize) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: w\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n"
    )
}

fn post(path: &str, body: &str) -> String {
    head(path, body.len()) + body
}

fn body_of(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").expect("a whole answer").1
}

#[tokio::test(flavor = "multi_thread")]
async fn a_review_is_answered_at_either_path() {
    let running = webhook(LIMITS, BODY_LIMITS).await;
    for (path, spec, allowed) in [
        ("/mutate", json!({}), true),
        ("/mutate?timeout=10s", json!({}), true),
        ("/mutate", json!({"owner": "a b"}), false),
        ("/validate", json!({"owner": "ada"}), false), // nobody stamped it
    ] {
        let answer = running.exchange(post(path, &review(&spec).to_string()));
        assert_eq!(statuses(&answer), [200], "{path} {spec}");
        assert!(answer.contains("\r\ncontent-type: application/json\r\n"), "{answer}");
        let answer: Value = serde_json::from_str(body_of(&answer)).unwrap();
        assert_eq!(answer["response"]["uid"], "u-1");
        assert_eq!(answer["response"]["allowed"], allowed, "{path} {spec}");
        assert_eq!(answer["response"]["patchType"], if allowed { json!("JSONPatch") } else { Value::Null });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_no_review_gets_a_clear_answer() {
    let running = webhook(LIMITS, BODY_LIMITS).await;
    let good = review(&json!({})).to_string();
    let deep = "[".repeat(10_000);
    let chunked = post("/mutate", "").replace("Content-Length: 0", "Transfer-Encoding: chunked");
    for (request, status, said) in [
        (post("/mutate", ""), 400, "not an AdmissionReview: EOF while parsing a value at line 1 column 0"),
        (post("/mutate", &good[..good.len() / 2]), 400, "not an AdmissionReview: EOF while parsing"),
        (post("/mutate", "{}"), 400, "expected AdmissionReview of admission.k8s.io/v1, not (none) of (none)"),
        (post("/validate", "\0"), 400, "not an AdmissionReview: expected value"),
        (post("/validate", "\u{ff}"), 400, "not an AdmissionReview: expected value"),
        (post("/mutate", &deep), 400, "not an AdmissionReview: "),
        (post("/mutate", &good.replace("eve", &deep)), 200, "\"allowed\":false"),
        (post("/mutate", &good.replace("\"eve\"", &deep)), 400, "not an AdmissionReview: "),
        (post("/", &good), 404, "ask at /mutate or /validate"),
        (post("/mutate/", &good), 404, "ask at /mutate or /validate"),
        (post("/mutate", &good).replace("POST", "GET"), 405, "send a POST"),
        (post("/mutate", &good).replace("POST", "PUT"), 405, "send a POST"),
        (post("/mutate", &good).replace("application/json", "text/json"), 415, "send application/json"),
        (post("/mutate", &good).replace("Content-Type: application/json\r\n", ""), 415, "send application/json"),
        (post("/mutate", &good).replace("application/json", "application/JSON; charset=utf-8"), 200, "\"u-1\""),
        (format!("{chunked}{:x}\r\n{good}\r\n0\r\nTrailer: x\r\n\r\n", good.len()), 200, "\"u-1\""),
        (format!("{chunked}zz\r\n"), 400, "the request ended before its body did"),
    ] {
        let answer = running.exchange(&request);
        let shown = &request[..request.len().min(200)];
        assert_eq!(statuses(&answer), [status], "{shown}: {answer}");
        assert!(body_of(&answer).contains(said), "{shown}: {answer}");
    }
    let answer = running.exchange(post("/mutate", &good).replace("POST", "DELETE"));
    assert!(answer.contains("\r\nallow: POST\r\n"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_may_have_3_mib() {
    let running = webhook(LIMITS, BODY_LIMITS).await;
    let padded = |length: usize| {
        let mut review = review(&json!({}));
        review["padding"] = json!("");
        let padding = length - review.to_string().len();
        review["padding"] = json!("x".repeat(padding));
        review.to_string()
    };
    let chunked = |body: &str| {
        let head = head("/mutate", 0).replace("Content-Length: 0", "Transfer-Encoding: chunked");
        let chunks = body.as_bytes().chunks(100_000);
        let chunks = chunks.map(|chunk| format!("{:x}\r\n{}\r\n", chunk.len(), str::from_utf8(chunk).unwrap()));
        head + &chunks.collect::<String>() + "0\r\n\r\n"
    };
    for (length, status) in [(3 * MIB - 1, 200), (3 * MIB, 200), (3 * MIB + 1, 413), (6 * MIB, 413)] {
        let body = padded(length);
        for request in [post("/mutate", &body), chunked(&body)] {
            let answer = running.exchange(&request);
            assert_eq!(statuses(&answer), [status], "{length}");
            if status == 413 {
                assert!(answer.ends_with("the request is longer than 3145728 bytes"), "{answer}");
            }
        }
    }
    let expecting = head("/mutate", 100 * MIB).replace("Host", "Expect: 100-continue\r\nHost");
    assert_eq!(statuses(&running.exchange(expecting)), [413], "nobody asks for the body");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_is_not_awaited_for_ever() {
    let bodies = BodyLimits { timeout: Duration::from_millis(100), ..BODY_LIMITS };
    let running = webhook(LIMITS, bodies).await;
    let answer = running.exchange(head("/mutate", 10) + "{");
    assert_eq!(statuses(&answer), [408]);
    assert!(answer.ends_with("the request's body took longer than 100ms"), "{answer}");
    assert_eq!(statuses(&running.exchange(post("/mutate", &review(&json!({})).to_string()))), [200]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_body_too_many_waits_and_holds_up_no_small_one() {
    let running = webhook(LIMITS, BodyLimits { large_at_once: 1, ..BODY_LIMITS }).await;
    let mut large = review(&json!({}));
    large["padding"] = json!("x".repeat(MIB));
    let large = post("/mutate", &large.to_string());
    let (all_but_one, last) = large.split_at(large.len() - 1);
    let mut first = running.connect();
    first.write_all(all_but_one.as_bytes()).unwrap();
    // The place is taken once the first 64 KiB are read, which nothing outside tells: the second comes a while later.
    thread::sleep(Duration::from_millis(300));
    let mut second = running.connect();
    second.set_nonblocking(true).unwrap();
    let taken = second.write(large.as_bytes()).unwrap();
    second.set_nonblocking(false).unwrap();
    let rest_of_second = large.as_bytes()[taken..].to_vec();
    let mut writer = second.try_clone().unwrap();
    let writing = thread::spawn(move || writer.write_all(&rest_of_second).unwrap());
    second.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(second.read(&mut [0]).is_err(), "no place, no answer");
    assert_eq!(statuses(&running.exchange(post("/mutate", &review(&json!({})).to_string()))), [200]);
    first.write_all(last.as_bytes()).unwrap();
    assert_eq!(statuses(&rest(&mut first)), [200]);
    second.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(statuses(&rest(&mut second)), [200]);
    writing.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_answered_and_disturbs_nothing_else() {
    let running = Running::serving_bodies(LIMITS, BODY_LIMITS, |request: &Request<Bytes>| {
        assert!(!request.body().is_empty(), "on purpose");
        Response::new(Full::default())
    });
    let running = running.await;
    for _ in 0..3 {
        let answer = running.exchange(post("/mutate", ""));
        assert_eq!(statuses(&answer), [500]);
        assert!(answer.ends_with("the webhook failed; its log says why"), "{answer}");
        assert_eq!(statuses(&running.exchange(post("/mutate", "{}"))), [200]);
    }
}

#[test]
fn reviews_are_counted_by_webhook_and_verdict() {
    let mut registry = Registry::with_prefix("keywright");
    let webhook = Webhook::new(now, &mut registry);
    let ask = |path: &str, body: String| {
        let request = Request::post(path).header("content-type", "application/json").body(Bytes::from(body));
        webhook.answer(&request.unwrap()).status().as_u16()
    };
    assert_eq!(ask("/mutate", review(&json!({})).to_string()), 200);
    assert_eq!(ask("/mutate", review(&json!({"owner": ""})).to_string()), 200);
    assert_eq!(ask("/validate", review(&json!({"owner": ""})).to_string()), 200);
    assert_eq!(ask("/mutate", review(&json!({})).to_string().replace("apikeys", "pods")), 200);
    assert_eq!(ask("/mutate", "{".to_owned()), 400);
    let mut metrics = String::new();
    text::encode(&mut metrics, &registry).unwrap();
    for (allowed, webhook, count) in
        [("true", "mutate", 1), ("false", "mutate", 2), ("true", "validate", 0), ("false", "validate", 1)]
    {
        let line =
            format!("\nkeywright_admission_reviews_total{{allowed=\"{allowed}\",webhook=\"{webhook}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
}

/// Bodies that would each take up a multiple of their size if they were taken in whole.
fn greedy_bodies() -> Vec<String> {
    let fill = |item: &str, room: usize| item.repeat(room / item.len());
    let room = 3 * MIB - 2000;
    let good = review(&json!("SPEC"));
    let with_spec = |spec: String| good.to_string().replace("\"SPEC\"", &spec);
    let with_metadata = |text: String| good.to_string().replace("\"name\":\"ci\"", &text);
    let names: String = (0..room / 11).map(|number| format!("\"{number:06}\":0,")).collect();
    vec![
        with_spec(format!("{{\"allowedIPs\":[{}0]}}", fill("0,", room))),
        with_spec(format!("{{\"a\":{}{}}}", "[".repeat(room / 2), "]".repeat(room / 2))),
        with_spec(format!("{{{names}\"owner\":\"ada\"}}")),
        with_metadata(format!("\"finalizers\":[{}\"\"]", fill("\"\",", room))),
        with_metadata(format!("\"annotations\":{{{names}\"a\":\"b\"}}")),
        with_metadata(format!("\"managedFields\":[{}{{}}]", fill("{},", room))),
    ]
}

/// A child process of this test has only the webhook in it, and tells the most memory that it ever took up.
#[test]
fn many_large_bodies_at_once_leave_the_memory_flat() {
    const CHILD: &str = "KEYWRIGHT_TEST_MEMORY";
    if std::env::var_os(CHILD).is_none() {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "webhook::reviews::tests::many_large_bodies_at_once_leave_the_memory_flat"])
            .arg("--nocapture")
            .env(CHILD, "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("grew by"), "{output:?}");
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let bodies = BodyLimits { large_at_once: 2, timeout: Duration::from_secs(300), ..BODY_LIMITS };
    let running = runtime.block_on(webhook(LIMITS, bodies));
    let requests: Vec<_> = greedy_bodies().iter().map(|body| post("/mutate", body)).collect();
    assert!(requests.iter().all(|request| request.len() > 3 * MIB - 4000), "they are as large as can be");
    let before = peak_memory();
    let answers = thread::scope(|scope| {
        let clients = (0..18).map(|number| {
            let (request, running) = (&requests[number % requests.len()], &running);
            scope.spawn(move || {
                let mut socket = running.connect();
                socket.set_read_timeout(Some(Duration::from_secs(300))).unwrap();
                socket.write_all(request.as_bytes()).unwrap();
                rest(&mut socket)
            })
        });
        let clients: Vec<_> = clients.collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(answers.iter().all(|answer| statuses(answer) == [200]), "{answers:?}");
    let grown = (peak_memory() - before) / MIB;
    println!("grew by {grown} MiB");
    assert!(grown < 36, "by {grown} MiB, with 54 MiB of bodies");
}

/// The most memory that this process ever took up, in octets.
fn peak_memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}
