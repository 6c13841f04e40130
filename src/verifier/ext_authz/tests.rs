use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use proptest::prelude::*;
use prost::Message;
use serde_json::{Value, json};

use super::super::decisions::Tally;
use super::*;
use crate::verifier::feed::Feed;
use keywright_core::address::Network;
use keywright_core::key::Digest;
use keywright_core::keyring::Keyring;
use keywright_core::testing::{record_name, stored};

const KEY: &str = "keyw1_eVULq19jgYgonBwBS9PnYuwEwkbytwZtG3LkFawtUJJ3cXN0G";
const OTHER_KEY: &str = "keyw1_x3dylZ3lzYKIhQQXeAJ94cGS4sbYtvgcYDsSikFczMP1KVy2b";

/// Envoy's messages as the Protocol Buffers compiler would have them, as far as they matter here.
mod envoy {
    use std::collections::BTreeMap;

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct CheckRequest {
        #[prost(message, optional, tag = "1")]
        pub attributes: Option<AttributeContext>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct AttributeContext {
        #[prost(message, optional, tag = "1")]
        pub source: Option<Peer>,
        #[prost(message, optional, tag = "4")]
        pub request: Option<Request>,
        #[prost(btree_map = "string, string", tag = "10")]
        pub context_extensions: BTreeMap<String, String>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Peer {
        #[prost(message, optional, tag = "1")]
        pub address: Option<Address>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Address {
        #[prost(oneof = "OneAddress", tags = "1, 2, 3")]
        pub address: Option<OneAddress>,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum OneAddress {
        #[prost(message, tag = "1")]
        Socket(SocketAddress),
        #[prost(message, tag = "2")]
        Pipe(Empty),
        #[prost(message, tag = "3")]
        Internal(Empty),
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct SocketAddress {
        #[prost(string, tag = "2")]
        pub address: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Empty {}

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Request {
        #[prost(message, optional, tag = "2")]
        pub http: Option<HttpRequest>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct HttpRequest {
        #[prost(btree_map = "string, string", tag = "3")]
        pub headers: BTreeMap<String, String>,
        #[prost(message, optional, tag = "13")]
        pub header_map: Option<HeaderMap>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct HeaderMap {
        #[prost(message, repeated, tag = "1")]
        pub headers: Vec<HeaderValue>,
    }

    #[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
    pub struct HeaderValue {
        #[prost(string, tag = "1")]
        pub key: String,
        #[prost(string, tag = "2")]
        pub value: String,
        #[prost(bytes = "vec", tag = "3")]
        pub raw_value: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct CheckResponse {
        #[prost(message, optional, tag = "1")]
        pub status: Option<Status>,
        #[prost(message, optional, tag = "2")]
        pub denied_response: Option<DeniedHttpResponse>,
        #[prost(message, optional, tag = "3")]
        pub ok_response: Option<OkHttpResponse>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Status {
        #[prost(int32, tag = "1")]
        pub code: i32,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct DeniedHttpResponse {
        #[prost(message, optional, tag = "1")]
        pub status: Option<Status>,
        #[prost(message, repeated, tag = "2")]
        pub headers: Vec<HeaderValueOption>,
        #[prost(string, tag = "3")]
        pub body: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct OkHttpResponse {
        #[prost(message, repeated, tag = "2")]
        pub headers: Vec<HeaderValueOption>,
        #[prost(string, repeated, tag = "5")]
        pub headers_to_remove: Vec<String>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct HeaderValueOption {
        #[prost(message, optional, tag = "1")]
        pub header: Option<HeaderValue>,
        #[prost(int32, tag = "3")]
        pub append_action: i32,
        #[prost(bool, tag = "4")]
        pub keep_empty_value: bool,
    }
}

/// What an Envoy asks. Each character of a header's value is one octet.
#[derive(Clone, Debug, Default)]
struct Ask<'a> {
    source: Option<&'a str>,
    headers: Vec<(String, String)>,
    context_extensions: Vec<(&'a str, &'a str)>,
}

fn octets(text: &str) -> Vec<u8> {
    text.chars().map(|octet| u8::try_from(u32::from(octet)).unwrap()).collect()
}

impl Ask<'_> {
    fn with(headers: &[(String, String)]) -> Self {
        Self { source: Some("10.0.0.5"), headers: headers.to_vec(), ..Self::default() }
    }

    /// As an Envoy sends it that keeps header lines apart (`encode_raw_headers`).
    fn raw(&self) -> envoy::CheckRequest {
        let line = |(name, value): &(String, String)| envoy::HeaderValue {
            key: name.to_lowercase(),
            value: String::new(),
            raw_value: octets(value),
        };
        let header_map = Some(envoy::HeaderMap { headers: self.headers.iter().map(line).collect() });
        self.message(envoy::HttpRequest { headers: BTreeMap::new(), header_map })
    }

    /// As an Envoy sends it by itself: lines of one name are joined. `None` if it would change what is not UTF-8.
    fn joined(&self) -> Option<envoy::CheckRequest> {
        let mut headers = BTreeMap::<String, String>::new();
        for (name, value) in &self.headers {
            let value = String::from_utf8(octets(value)).ok()?;
            let joined = headers.entry(name.to_lowercase());
            joined.and_modify(|joined| *joined = format!("{joined},{value}")).or_insert(value);
        }
        Some(self.message(envoy::HttpRequest { headers, header_map: None }))
    }

    fn message(&self, http: envoy::HttpRequest) -> envoy::CheckRequest {
        let address = self.source.map(|address| envoy::SocketAddress { address: address.to_owned() });
        let address = envoy::Address { address: address.map(envoy::OneAddress::Socket) };
        let extensions = self.context_extensions.iter();
        envoy::CheckRequest {
            attributes: Some(envoy::AttributeContext {
                source: Some(envoy::Peer { address: Some(address) }),
                request: Some(envoy::Request { http: Some(http) }),
                context_extensions: extensions.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            }),
        }
    }
}

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

fn authorization(specs: &[Value], source: &str) -> Authorization {
    let mut keyring = Keyring::default();
    for (number, spec) in (1..).zip(specs) {
        keyring.upsert(&stored(&record_name(number), spec)).unwrap();
    }
    // Not through the flag, which refuses the /0 of one case.
    let source = match source.strip_prefix("xff-proxies=") {
        Some(proxies) => {
            let proxies = proxies.split(',').map(|proxy| Network::parse(proxy).unwrap());
            ClientAddressSource::XffProxies(proxies.collect())
        }
        None => source.parse().unwrap(),
    };
    let decisions = Decisions::new(Arc::new(Feed::holding(&keyring)), now, Arc::new(Tally::new("grpc")));
    Authorization::new(decisions, source)
}

fn check(authorization: &Authorization, request: &envoy::CheckRequest) -> envoy::CheckResponse {
    let response = answer(authorization, &request.encode_to_vec()).unwrap();
    envoy::CheckResponse::decode(&*response).unwrap()
}

/// Without a response, nothing is appended.
fn answer(authorization: &Authorization, message: &[u8]) -> Result<Vec<u8>, NoResponse> {
    let mut response = Vec::new();
    let answered = authorization.check(message, &mut response);
    assert!(answered.is_ok() || response.is_empty());
    answered.map(|_| response)
}

/// The status that Envoy answers with, 200 if it passes the request on.
fn status(response: &envoy::CheckResponse) -> i32 {
    let code = response.status.as_ref().unwrap().code;
    match (&response.denied_response, &response.ok_response) {
        (None, Some(_)) if code == 0 => 200,
        (Some(denied), None) if code != 0 => denied.status.as_ref().unwrap().code,
        _ => panic!("{response:?}"),
    }
}

fn with_key(key: &str) -> Vec<(String, String)> {
    vec![("X-API-Key".to_owned(), key.to_owned())]
}

fn rows(cases: &str) -> impl Iterator<Item = Vec<&str>> {
    cases.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(|line| line.split('\t').collect())
}

#[test]
fn credentials_are_read_as_the_cases_say() {
    let mut other = spec(OTHER_KEY);
    other["apiKey"]["name"] = json!("other");
    let authorization = authorization(&[spec(KEY), other], "peer");
    let (mut raw, mut joined) = (0, 0);
    for row in rows(include_str!("../../../tests/cases/credentials.tsv")) {
        let headers: Vec<(String, String)> = serde_json::from_str(row[0]).unwrap();
        let ask = Ask::with(&headers);
        let expected = if row[1].starts_with("deny:") { 401 } else { 200 };
        assert_eq!(status(&check(&authorization, &ask.raw())), expected, "{row:?}");
        raw += 1;
        // A line that is joined to another is not what was sent, and must not become good by it.
        let is_joined =
            headers.iter().map(|(name, _)| name.to_lowercase()).collect::<BTreeSet<_>>().len() < headers.len();
        if let Some(request) = ask.joined() {
            let got = status(&check(&authorization, &request));
            assert!(got == expected || is_joined && got == 401, "{row:?} joined: {got}");
            joined += 1;
        }
    }
    assert!(raw >= 36 && joined >= 30, "{raw} and {joined} of the cases");
}

#[test]
fn client_addresses_are_found_as_the_cases_say() {
    let mut carried = 0;
    for row in rows(include_str!("../../../tests/cases/client-ip.tsv")) {
        let mut headers: Vec<(String, String)> = serde_json::from_str(row[2]).unwrap();
        headers.extend(with_key(KEY));
        let source = row[0].replace("hops:", "xff-hops=").replace("proxies:", "xff-proxies=");
        let expected = row[3];
        let sole = if expected.starts_with("deny:") { "0.0.0.0/0" } else { expected };
        for (list, passes) in [([sole, "2001:db8:ffff::/48"], true), (["240.0.0.1", "2001:db8:ffff::/48"], false)] {
            let mut spec = spec(KEY);
            spec["allowedIPs"] = json!(list);
            let ask = Ask { source: Some(row[1]), ..Ask::with(&headers) };
            let got = status(&check(&authorization(&[spec], &source), &ask.raw()));
            let is_allowed = passes && !expected.starts_with("deny:");
            assert_eq!(got, if is_allowed { 200 } else { 403 }, "{row:?}");
            carried += 1;
        }
    }
    assert!(carried >= 138, "{carried} of the cases, each tried twice");
}

#[test]
fn an_allow_overwrites_all_identity_headers_and_takes_the_key_away() {
    let bare = json!({
        "digest": Digest::of(OTHER_KEY.as_bytes()).to_string(),
        "apiKey": { "namespace": "team-b", "name": "bare", "uid": "c" },
    });
    let authorization = authorization(&[spec(KEY), bare], "peer");
    let identity = |headers: &[(String, String)]| {
        let response = check(&authorization, &Ask::with(headers).raw());
        let ok = response.ok_response.unwrap();
        let headers = ok.headers.iter().map(|option| {
            let header = option.header.clone().unwrap();
            assert!(header.raw_value.is_empty());
            assert_eq!((option.append_action, option.keep_empty_value), (2, true), "it overwrites");
            (header.key, header.value)
        });
        (headers.collect::<Vec<_>>(), ok.headers_to_remove)
    };
    let named = |values: [&str; 5]| {
        let names = ["key", "namespace", "name", "owner", "scopes"].map(|name| format!("x-keywright-{name}"));
        names.into_iter().zip(values.map(str::to_owned)).collect::<Vec<_>>()
    };
    let (headers, removed) = identity(&with_key(KEY));
    let expected = ["keyw1_eVULq19j", "team-a", "billing", "jane@example.com", "orders:read orders:write"];
    assert_eq!((headers, &*removed), (named(expected), &["x-api-key".to_owned()][..]));
    let spoofed =
        ["X-Keywright-Owner", "X-Keywright-Scopes", "X-Keywright-Key"].map(|name| (name.into(), "admin".into()));
    let bearer = ("Authorization".to_owned(), format!("Bearer {OTHER_KEY}"));
    let (headers, removed) = identity(&[&spoofed[..], &[bearer]].concat());
    assert_eq!(headers, named(["keyw1_x3dylZ3l", "team-b", "bare", "", ""]));
    assert_eq!(removed, ["authorization"]);
}

#[test]
fn a_denial_is_told_as_over_http() {
    let mut spec = spec(KEY);
    spec["allowedIPs"] = json!(["192.0.2.0/24"]);
    let authorization = authorization(&[spec], "peer");
    let unknown = check(&authorization, &Ask::with(&with_key(OTHER_KEY)).raw());
    let missing = check(&authorization, &Ask::with(&[]).raw());
    assert_eq!(unknown, missing);
    let headers = |response: &envoy::CheckResponse| {
        let headers =
            response.denied_response.as_ref().unwrap().headers.iter().map(|option| option.header.clone().unwrap());
        headers.map(|header| format!("{}: {}", header.key, header.value)).collect::<Vec<_>>()
    };
    let (content_type, cache) = ("content-type: application/problem+json", "cache-control: no-store");
    assert_eq!((status(&unknown), unknown.status.as_ref().unwrap().code), (401, 16));
    assert_eq!(headers(&unknown), [content_type, cache, "www-authenticate: Bearer"]);
    let answer = ProblemDocument::from(verify::Denial::Missing);
    assert_eq!(unknown.denied_response.unwrap().body, answer.body);
    let forbidden = check(&authorization, &Ask::with(&with_key(KEY)).raw());
    assert_eq!((status(&forbidden), forbidden.status.as_ref().unwrap().code), (403, 7));
    assert_eq!(headers(&forbidden), [content_type, cache]);
}

#[test]
fn without_records_to_rely_on_there_is_no_response() {
    let feed = Arc::new(Feed::of_a_stranger());
    let decisions = Decisions::new(feed, now, Arc::new(Tally::new("grpc")));
    let authorization = Authorization::new(decisions, ClientAddressSource::Peer);
    let request = Ask::with(&with_key(KEY)).raw().encode_to_vec();
    assert_eq!(answer(&authorization, &request), Err(NoResponse::Unavailable));
    assert_eq!(answer(&authorization, b"?"), Err(NoResponse::Malformed));
}

#[test]
fn headers_that_are_told_twice_are_refused() {
    let authorization = authorization(&[spec(KEY)], "peer");
    let ask = Ask::with(&with_key(KEY));
    let with_http = |change: &dyn Fn(&mut envoy::HttpRequest)| {
        let mut request = ask.raw();
        change(request.attributes.as_mut().unwrap().request.as_mut().unwrap().http.as_mut().unwrap());
        status(&check(&authorization, &request))
    };
    assert_eq!(with_http(&|_| {}), 200);
    assert_eq!(with_http(&|http| drop(http.headers.insert("a".into(), "b".into()))), 401);
    assert_eq!(with_http(&|http| drop(http.headers.insert("x-api-key".into(), KEY.into()))), 401);
    let empty = Some(envoy::HeaderMap::default());
    let mut request = ask.joined().unwrap();
    request.attributes.as_mut().unwrap().request.as_mut().unwrap().http.as_mut().unwrap().header_map = empty;
    assert_eq!(status(&check(&authorization, &request)), 200, "nothing is told twice");
}

#[test]
fn what_the_route_demands_is_read_from_the_context_extensions() {
    let authorization = authorization(&[spec(KEY)], "peer");
    let cases: [(&[(&str, &str)], i32); 15] = [
        (&[], 200),
        (&[("namespace", "team-a")], 200),
        (&[("namespace", "team-b,team-a"), ("scope", "orders:read,orders:write")], 200),
        (&[("namespace", "team-b")], 403),
        (&[("scope", "orders:read,admin")], 403),
        (&[("namespace", "")], 403),
        (&[("scope", "")], 403),
        (&[("scope", ",")], 403),
        (&[("scope", "orders:read,")], 403),
        (&[("scope", "orders:read, orders:write")], 403),
        (&[("scope", "orders:read orders:write")], 403),
        (&[("Scope", "orders:read")], 403),
        (&[("scopes", "orders:read")], 403),
        (&[("", "")], 403),
        (&[("virtual_host", "local_service")], 403),
    ];
    for (context_extensions, expected) in cases {
        let ask = Ask { context_extensions: context_extensions.to_vec(), ..Ask::with(&with_key(KEY)) };
        assert_eq!(status(&check(&authorization, &ask.raw())), expected, "{context_extensions:?}");
    }
    // A map that is none: the wider of the two must not count, nor both.
    let ask = |context_extensions| Ask { context_extensions, ..Ask::with(&with_key(KEY)) }.raw().encode_to_vec();
    let twice = [ask(vec![("namespace", "team-b")]), ask(vec![("namespace", "team-a")])].concat();
    let response = answer(&authorization, &twice).unwrap();
    assert_eq!(status(&envoy::CheckResponse::decode(&*response).unwrap()), 403);
}

#[test]
fn a_key_with_a_list_needs_an_address() {
    let mut listed = spec(KEY);
    listed["allowedIPs"] = json!(["0.0.0.0/0", "::/0"]);
    for (source, peer, expected) in [
        ("peer", Some("192.0.2.1"), 200),
        ("peer", Some("fe80::1%eth0"), 200),
        ("peer", Some("::ffff:192.0.2.1"), 200),
        ("peer", Some(""), 403),
        ("peer", Some("/run/envoy.sock"), 403),
        ("peer", Some("localhost"), 403),
        ("peer", None, 403),
        ("xff-proxies=10.0.0.0/8", None, 403),
        ("xff-hops=1", None, 200),
    ] {
        let mut ask = Ask { source: peer, ..Ask::with(&with_key(KEY)) };
        ask.headers.push(("X-Forwarded-For".to_owned(), "192.0.2.1".to_owned()));
        let ask_with = |spec: &Value| status(&check(&authorization(std::slice::from_ref(spec), source), &ask.raw()));
        assert_eq!((ask_with(&listed), ask_with(&spec(KEY))), (expected, 200), "{source} {peer:?}");
    }
}

/// What prost makes of a message has to be what we make of it.
fn compare(message: &[u8]) -> Result<(), TestCaseError> {
    let ours = CheckRequest::read(message);
    let Ok(theirs) = envoy::CheckRequest::decode(message) else {
        prop_assert_eq!(ours, Err(Malformed));
        return Ok(());
    };
    let Ok(ours) = ours else {
        let starts_of_groups = message.iter().filter(|octet| **octet & 7 == 3).count();
        prop_assert!(starts_of_groups > 64, "only groups are refused that are deep");
        return Ok(());
    };
    let attributes = theirs.attributes.unwrap_or_default();
    let address = attributes.source.and_then(|peer| peer.address).and_then(|address| address.address);
    let address = match address {
        Some(envoy::OneAddress::Socket(socket)) => socket.address,
        _ => String::new(),
    };
    prop_assert_eq!(ours.source_address.unwrap_or_default(), address);
    let extensions: BTreeMap<String, String> =
        ours.context_extensions.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    prop_assert_eq!(extensions, attributes.context_extensions);
    let http = attributes.request.and_then(|request| request.http).unwrap_or_default();
    let header_map = http.header_map.unwrap_or_default();
    prop_assert_eq!(ours.has_headers, !http.headers.is_empty());
    prop_assert_eq!(ours.has_header_map, !header_map.headers.is_empty());
    let is_ours = |name: &str, value: &[u8]| {
        let header = Header::ALL.into_iter().find(|header| name.eq_ignore_ascii_case(header.name()));
        header.is_none_or(|header| ours.lines(header).any(|line| line == value))
    };
    for (name, value) in &http.headers {
        prop_assert!(is_ours(name, value.as_bytes()), "{}: {}", name, value);
    }
    for header in &header_map.headers {
        let value = if header.raw_value.is_empty() { header.value.as_bytes() } else { &header.raw_value };
        prop_assert!(is_ours(&header.key, value), "{:?}", header);
    }
    Ok(())
}

fn messages() -> impl Strategy<Value = Vec<u8>> {
    let name = proptest::sample::select(vec!["x-api-key", "authorization", "x-forwarded-for", "X-Api-Key", "a", ""]);
    let headers = proptest::collection::vec((name, ".{0,40}"), 0..6);
    let extensions = proptest::collection::btree_map("[a-z]{0,9}", ".{0,9}", 0..3);
    let address = proptest::option::of("[0-9a-f.:]{0,15}");
    (headers.clone(), headers, extensions, address, any::<bool>()).prop_map(
        |(headers, lines, context_extensions, address, is_pipe)| {
            let one_address = match address {
                _ if is_pipe => Some(envoy::OneAddress::Pipe(envoy::Empty {})),
                Some(address) => Some(envoy::OneAddress::Socket(envoy::SocketAddress { address })),
                None => None,
            };
            let lines = lines.into_iter().map(|(name, value)| envoy::HeaderValue {
                key: name.to_owned(),
                raw_value: if value.len() % 2 == 0 { value.clone().into_bytes() } else { Vec::new() },
                value,
            });
            let http = envoy::HttpRequest {
                headers: headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
                header_map: Some(envoy::HeaderMap { headers: lines.collect() }),
            };
            let attributes = envoy::AttributeContext {
                source: Some(envoy::Peer { address: Some(envoy::Address { address: one_address }) }),
                request: Some(envoy::Request { http: Some(http) }),
                context_extensions,
            };
            envoy::CheckRequest { attributes: Some(attributes) }.encode_to_vec()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn a_request_is_read_as_prost_reads_it(message in messages()) {
        compare(&message)?;
    }

    #[test]
    fn two_halves_are_merged_as_prost_merges_them(first in messages(), second in messages()) {
        compare(&[first, second].concat())?;
    }

    #[test]
    fn a_damaged_request_is_read_as_prost_reads_it(
        message in messages(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        length in any::<prop::sample::Index>(),
    ) {
        let mut message = message;
        for (place, octet) in damage {
            if !message.is_empty() {
                let place = place.index(message.len());
                message[place] = octet;
            }
        }
        compare(&message)?;
        message.truncate(length.index(message.len() + 1));
        compare(&message)?;
    }

    #[test]
    fn any_octets_are_read_as_prost_reads_them(octets in proptest::collection::vec(any::<u8>(), 0..64)) {
        compare(&octets)?;
    }
}
