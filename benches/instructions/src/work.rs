//! The kinds of work that are counted: what a verifier does with a request once it is read, and with a change.

use std::future::pending;
use std::hint::black_box;
use std::mem;
use std::net::IpAddr;
use std::num::NonZeroU8;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use hyper::header::AUTHORIZATION;
use hyper::{Request, Response, StatusCode};
use jiff::Timestamp;
use keywright::clock;
use keywright::verifier::decisions::{Decisions, Tally};
use keywright::verifier::ext_authz::Authorization;
use keywright::verifier::feed::Feed;
use keywright::verifier::forward_auth::ForwardAuth;
use keywright::verifier::membership::Membership;
use keywright::verifier::protobuf::{put, put_message};
use keywright_core::client_address::ClientAddressSource;
use keywright_core::credential::credential;
use keywright_core::fence::{Act, Answer, Holder};
use keywright_core::key::Digest;
use keywright_core::keyring::{Keyring, StoredRecord};
use keywright_core::testing::stored_lease;
use keywright_core::verify::{self, Denial, Permit, Route};
use keywright_measure::population::{KeyText, UNKNOWN, key_text, record_name, spec};
use kube::client::{Body, Client};
use serde_json::{Value, json};
use tower::service_fn;

/// Records, and pieces of work in one pass: one with each. The keyring's hash is seeded anew for each run, so that keys
/// share their buckets with others; over so many of them that evens out.
pub const PIECES: usize = 5_000;

/// Makes what does the piece of work with a number.
pub type Kind = fn(&World) -> Box<dyn FnMut(usize) + '_>;

/// Name, number of keys hashed, work. The first is the hash that is taken off the others: valgrind has no SHA instructions,
/// and without them a hash outweighs all the rest.
pub const KINDS: [(&str, i64, Kind); 7] = [
    ("hash", 0, |world| Box::new(|number| _ = black_box(Digest::of(black_box(&world.keys[number]))))),
    ("allow", 1, |world| Box::new(|number| assert!(world.check(&world.keys[number]).is_ok()))),
    // Every tenth record has an address list.
    ("allow-listed", 1, |world| Box::new(|number| assert!(world.check(&world.keys[number / 10 * 10]).is_ok()))),
    ("deny", 1, |world| Box::new(|number| assert!(world.check(&world.unknown_keys[number]).is_err()))),
    ("check-request", 1, World::check_requests),
    ("forward-auth", 1, World::forward_auth),
    ("change", 0, World::changes),
];

/// A verifier in step with its records, and all that it will be asked.
pub struct World {
    keyring: Arc<Keyring>,
    authorization: Authorization,
    verifier: ForwardAuth,
    client_address_source: ClientAddressSource,
    keys: Vec<KeyText>,
    unknown_keys: Vec<KeyText>,
    check_requests: Vec<Vec<u8>>,
    requests: Vec<Request<()>>,
    records: Vec<(String, Value)>,
}

/// The header in which two proxies have told whom they were asked by.
const FORWARDED_FOR: &str = "198.51.100.23, 192.0.2.7";

fn now() -> Timestamp {
    Timestamp::constant(1_795_000_000, 0)
}

impl World {
    pub fn new() -> Result<Self> {
        let records: Vec<_> = (0..PIECES).map(|number| (record_name(number), spec(number))).collect();
        let feed = Arc::new(followed(&records)?);
        ensure!(feed.records() == PIECES, "the feed has {} records", feed.records());
        let source = ClientAddressSource::XffHops(NonZeroU8::MIN);
        let decisions = |protocol| Decisions::new(Arc::clone(&feed), now, Arc::new(Tally::new(protocol)));
        let keys: Vec<_> = (0..PIECES).map(key_text).collect();
        Ok(Self {
            keyring: feed.newest(),
            authorization: Authorization::new(decisions("grpc"), source.clone()),
            verifier: ForwardAuth::new(decisions("http"), source.clone()),
            client_address_source: source,
            unknown_keys: (UNKNOWN..UNKNOWN + PIECES).map(key_text).collect(),
            check_requests: keys.iter().map(check_request).collect(),
            requests: keys.iter().map(request).collect::<Result<_>>()?,
            records,
            keys,
        })
    }

    fn check(&self, key: &KeyText) -> Result<Permit<'_>, Denial> {
        let resolve = || {
            let peer = IpAddr::from([127, 0, 0, 1]);
            self.client_address_source.resolve(peer, [FORWARDED_FOR.as_bytes()].into_iter())
        };
        let credential = credential([].into_iter(), [&black_box(key)[..]].into_iter());
        let request = verify::Request { credential, route: Ok(Route::default()), client_address: &resolve };
        black_box(verify::check(&self.keyring, &request, now()))
    }

    fn check_requests(&self) -> Box<dyn FnMut(usize) + '_> {
        let mut response = Vec::with_capacity(1024);
        Box::new(move |number| {
            response.clear();
            let answered = self.authorization.check(black_box(&self.check_requests[number]), &mut response);
            // The status comes first, and only that of a permit is empty.
            assert!(answered.is_ok() && response.starts_with(&[0x0a, 0]));
            black_box(&response);
        })
    }

    fn forward_auth(&self) -> Box<dyn FnMut(usize) + '_> {
        Box::new(|number| {
            let response = self.verifier.answer(black_box(&self.requests[number]), [127, 0, 0, 1].into());
            assert_eq!(black_box(response).response.status(), StatusCode::OK);
        })
    }

    /// What the feed does with an event, after it has been read.
    fn changes(&self) -> Box<dyn FnMut(usize) + '_> {
        let mut keyring = Keyring::clone(&self.keyring);
        let mut published = Arc::new(keyring.clone());
        Box::new(move |number| {
            let (name, spec) = &self.records[number];
            let record = StoredRecord::read(name, None, black_box(spec));
            assert!(record.is_ok_and(|record| keyring.replace(&record).is_ok()));
            black_box(mem::replace(&mut published, Arc::new(keyring.clone())));
        })
    }
}

/// A feed that has read these records, from an API server that has nothing else to tell.
fn followed(records: &[(String, Value)]) -> Result<Feed> {
    let items: Vec<_> =
        records.iter().map(|(name, spec)| json!({ "metadata": { "name": name }, "spec": spec })).collect();
    let list = json!({ "metadata": { "resourceVersion": "1" }, "items": items }).to_string();
    let api_server = service_fn(move |request: Request<Body>| {
        let list = list.clone();
        async move {
            let is_watch = request.uri().query().is_some_and(|query| query.contains("watch="));
            if is_watch { pending().await } else { Ok::<_, hyper::Error>(Response::new(Body::from(list.into_bytes()))) }
        }
    });
    let membership = Arc::new(joined()?);
    let feed = Feed::new(Arc::clone(&membership), clock::moment());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(async {
        let follow = feed.follow(Client::new(api_server, "keywright"), "keywright");
        let is_read = async {
            while membership.read().until.is_none() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            _ = follow => {}
            () = is_read => {}
        }
    });
    Ok(feed)
}

/// A membership that has its Lease, and waits for the records.
fn joined() -> Result<Membership> {
    let membership = Membership::new(Holder::new("keywright-verifier-0", 1, Duration::from_hours(1)));
    let now = clock::moment();
    let Act::Send(create) = membership.next(now) else { bail!("it begins with its Lease") };
    membership.answered(create, Answer::Stored(stored_lease(membership.holder())), now);
    let Act::List(round) = membership.next(now) else { bail!("the list comes next") };
    membership.order(round);
    Ok(membership)
}

fn bearer(key: &KeyText) -> String {
    format!("Bearer {}", String::from_utf8_lossy(key))
}

fn request(key: &KeyText) -> Result<Request<()>> {
    let request = Request::get("/verify?scope=orders%3Aread")
        .header("host", "keywright-verifier.keywright:8080")
        .header(AUTHORIZATION, bearer(key))
        .header("accept", "application/json")
        .header("user-agent", "orders-client/2.7.1")
        .header("x-forwarded-for", FORWARDED_FOR);
    Ok(request.body(())?)
}

/// An `envoy.service.auth.v3.CheckRequest` as Envoy sends it.
fn check_request(key: &KeyText) -> Vec<u8> {
    let authorization = bearer(key);
    let headers = [
        (":authority", "api.example.com"),
        (":method", "GET"),
        (":path", "/v1/orders/8731?expand=lines"),
        (":scheme", "https"),
        ("accept", "application/json"),
        ("authorization", &authorization),
        ("user-agent", "orders-client/2.7.1"),
        ("x-forwarded-for", FORWARDED_FOR),
        ("x-forwarded-proto", "https"),
        ("x-request-id", "5f1a7c1e-2d0b-4bd5-9a46-0f9f4b1d8c77"),
    ];
    let entry = |message: &mut Vec<u8>, field, (name, value): (&str, &str)| {
        put_message(message, field, |entry| {
            put(entry, 1, name.as_bytes());
            put(entry, 2, value.as_bytes());
        });
    };
    let http = |http: &mut Vec<u8>| {
        put(http, 2, b"GET");
        headers.iter().for_each(|header| entry(http, 3, *header));
        put(http, 4, b"/v1/orders/8731?expand=lines");
    };
    let mut message = Vec::new();
    put_message(&mut message, 1, |attributes| {
        put_message(attributes, 4, |request| put_message(request, 2, http));
        entry(attributes, 10, ("scope", "orders:read"));
    });
    message
}
