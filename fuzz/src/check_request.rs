use std::net::IpAddr;

use keywright::verifier::ext_authz::{Authorization, NoResponse};
use keywright_core::client_address::ClientAddressSource;
use prost::Message;
use tokio::runtime::Runtime;

use crate::{client, credential, http, keys};

/// The input is a `CheckRequest` as an Envoy sends it.
pub fn check_request(data: &[u8]) {
    thread_local!(static AUTHORIZATION: (Runtime, Authorization) = authorization());
    let mut response = Vec::new();
    let answer = AUTHORIZATION.with(|(_, authorization)| authorization.check(data, &mut response));
    let request = envoy::CheckRequest::decode(data);
    if let Err(error) = answer {
        assert_eq!((error, &*response), (NoResponse::Malformed, &[][..]));
        // Groups, which no message of Envoy's has, are not followed as deep as prost does.
        let starts_of_groups = data.iter().filter(|octet| **octet & 7 == 3).count();
        assert!(request.is_err() || starts_of_groups > 64, "{request:?} is refused");
        return;
    }
    let attributes = request.unwrap_or_else(|error| panic!("read, and {error}")).attributes.unwrap_or_default();
    let carrier = read(&attributes);
    let response = check(&response);
    assert_eq!(response.ok_response.is_some(), carrier.is_some(), "{response:?} for {attributes:?}");
    let removed: Vec<String> = response.ok_response.into_iter().flat_map(|ok| ok.headers_to_remove).collect();
    assert_eq!(removed, carrier.as_slice(), "{attributes:?}");
}

fn check(octets: &[u8]) -> envoy::CheckResponse {
    assert!(octets.len() <= 1024, "{} octets", octets.len());
    for key in [keys::OPEN, keys::FOREIGN, keys::LISTED, keys::REVOKED, keys::EXPIRED, keys::UNKNOWN] {
        assert!(!crate::key::shows(octets, key), "{octets:?}");
    }
    let response = envoy::CheckResponse::decode(octets).unwrap_or_else(|error| panic!("{error}: {octets:?}"));
    let is_ok = response.status.as_ref().is_some_and(|status| status.code == 0);
    let status = response.denied_response.as_ref().and_then(|denied| denied.status.as_ref()).map(|status| status.code);
    assert_eq!(is_ok, response.ok_response.is_some(), "{response:?}");
    assert_eq!(!is_ok, status.is_some_and(|status| [401, 403].contains(&status)), "{response:?}");
    response
}

/// The second reading, from prost's: the header that carried the key, if the request may pass.
fn read(attributes: &envoy::AttributeContext) -> Option<String> {
    let http = attributes.request.as_ref().and_then(|request| request.http.clone()).unwrap_or_default();
    let from_map = http.headers.iter().map(|entry| (&*entry.key, entry.value.as_bytes()));
    let header_map = http.header_map.unwrap_or_default().headers;
    let from_lines = header_map
        .iter()
        .map(|line| (&*line.key, if line.raw_value.is_empty() { line.value.as_bytes() } else { &line.raw_value }));
    if from_map.len() > 0 && from_lines.len() > 0 {
        return None;
    }
    let headers: Vec<(&str, &[u8])> = from_map.chain(from_lines).collect();
    let lines = |name| -> Vec<&[u8]> {
        headers.iter().filter(|(own, _)| own.to_ascii_lowercase() == name).map(|(_, value)| *value).collect()
    };
    let (key, carrier) = credential::read(&lines("authorization"), &lines("x-api-key")).ok()?;
    let is_from_the_list = || {
        let address = attributes.source.clone()?.address?.address?;
        let envoy::OneAddress::Socket(socket) = address else { return None };
        let peer: IpAddr = socket.address.split('%').next()?.parse().ok()?;
        client::read(&source(), peer, &lines("x-forwarded-for")).ok().filter(|client| http::is_in_the_list(*client))
    };
    let key_fits = http::is_open(key) || key == keys::LISTED.as_bytes() && is_from_the_list().is_some();
    (key_fits && is_a_good_route(&attributes.context_extensions)).then(|| carrier.header_name().to_owned())
}

fn is_a_good_route(extensions: &[envoy::Entry]) -> bool {
    let mut names: Vec<&str> = extensions.iter().map(|entry| &*entry.key).collect();
    names.sort_unstable();
    names.dedup();
    let parameters = extensions.iter().flat_map(|entry| entry.value.split(',').map(|value| (&*entry.key, value)));
    names.len() == extensions.len() && http::is_a_good_route(&parameters.collect::<Vec<_>>())
}

fn source() -> ClientAddressSource {
    "xff-proxies=10.0.0.0/8".parse().unwrap_or(ClientAddressSource::Peer)
}

fn authorization() -> (Runtime, Authorization) {
    let (runtime, decisions) = http::decisions();
    (runtime, Authorization::new(decisions, source()))
}

/// Envoy's messages, as far as they matter here. A map is what it is on the wire, a list of entries.
mod envoy {
    use prost::{Message, Oneof};

    #[derive(Clone, PartialEq, Message)]
    pub struct CheckRequest {
        #[prost(message, optional, tag = "1")]
        pub attributes: Option<AttributeContext>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct AttributeContext {
        #[prost(message, optional, tag = "1")]
        pub source: Option<Peer>,
        #[prost(message, optional, tag = "4")]
        pub request: Option<Request>,
        #[prost(message, repeated, tag = "10")]
        pub context_extensions: Vec<Entry>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Entry {
        #[prost(string, tag = "1")]
        pub key: String,
        #[prost(string, tag = "2")]
        pub value: String,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Peer {
        #[prost(message, optional, tag = "1")]
        pub address: Option<Address>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Address {
        #[prost(oneof = "OneAddress", tags = "1, 2, 3")]
        pub address: Option<OneAddress>,
    }

    #[derive(Clone, PartialEq, Oneof)]
    pub enum OneAddress {
        #[prost(message, tag = "1")]
        Socket(SocketAddress),
        #[prost(message, tag = "2")]
        Pipe(Empty),
        #[prost(message, tag = "3")]
        Internal(Empty),
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct SocketAddress {
        #[prost(string, tag = "2")]
        pub address: String,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Empty {}

    #[derive(Clone, PartialEq, Message)]
    pub struct Request {
        #[prost(message, optional, tag = "2")]
        pub http: Option<HttpRequest>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct HttpRequest {
        #[prost(message, repeated, tag = "3")]
        pub headers: Vec<Entry>,
        #[prost(message, optional, tag = "13")]
        pub header_map: Option<HeaderMap>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct HeaderMap {
        #[prost(message, repeated, tag = "1")]
        pub headers: Vec<HeaderValue>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct HeaderValue {
        #[prost(string, tag = "1")]
        pub key: String,
        #[prost(string, tag = "2")]
        pub value: String,
        #[prost(bytes = "vec", tag = "3")]
        pub raw_value: Vec<u8>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct CheckResponse {
        #[prost(message, optional, tag = "1")]
        pub status: Option<Status>,
        #[prost(message, optional, tag = "2")]
        pub denied_response: Option<DeniedHttpResponse>,
        #[prost(message, optional, tag = "3")]
        pub ok_response: Option<OkHttpResponse>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Status {
        #[prost(int32, tag = "1")]
        pub code: i32,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct DeniedHttpResponse {
        #[prost(message, optional, tag = "1")]
        pub status: Option<Status>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct OkHttpResponse {
        #[prost(string, repeated, tag = "5")]
        pub headers_to_remove: Vec<String>,
    }
}
