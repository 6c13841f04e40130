//! Requests as octets, encoded once, with a place for the key; and answers told apart with as little work as possible.

use std::collections::HashMap;

use memchr::memmem;
use prost::Message;

use crate::base::messages::{
    Address, AttributeContext, CheckRequest, HttpRequest, Peer, Request, SocketAddress, Timestamp,
};
use keywright_measure::population::{KEY_LENGTH, KeyText};

/// A request, and where in it the key stands.
#[derive(Clone)]
pub struct Template {
    octets: Vec<u8>,
    key: usize,
}

const PLACEHOLDER: &[u8; KEY_LENGTH] = b"keyw1_-------------------------------------------------";

impl Template {
    fn new(octets: Vec<u8>) -> Self {
        let key = memmem::find(&octets, PLACEHOLDER).expect("the placeholder is in it");
        Self { octets, key }
    }

    /// A GET with the headers that nginx hands over.
    pub fn http(path: &str) -> Self {
        let placeholder = str::from_utf8(PLACEHOLDER).expect("ASCII");
        Self::new(
            format!(
                "GET {path} HTTP/1.1\r\nHost: api.example.com\r\nAuthorization: Bearer {placeholder}\r\n\
                 X-Forwarded-For: 192.0.2.7\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n"
            )
            .into_bytes(),
        )
    }

    /// A HEADERS frame and a DATA frame with a `CheckRequest` of 14 headers.
    pub fn grpc() -> Self {
        let mut head = vec![0x83, 0x86]; // POST, http
        literal(&mut head, &[0x04], "/envoy.service.auth.v3.Authorization/Check");
        literal(&mut head, &[0x01], "keywright");
        literal(&mut head, &[0x00, 2, b't', b'e'], "trailers");
        literal(&mut head, &[0x0f, 0x10], "application/grpc");
        let message = check_request().encode_to_vec();
        let mut octets = Vec::new();
        frame(&mut octets, 0x1, 0x4, &head);
        let mut data = vec![0];
        data.extend_from_slice(&u32::try_from(message.len()).expect("short").to_be_bytes());
        data.extend_from_slice(&message);
        frame(&mut octets, 0x0, 0x1, &data);
        Self::new(octets)
    }

    pub fn len(&self) -> usize {
        self.octets.len()
    }

    /// Appends the request with a key.
    pub fn write(&self, key: &KeyText, output: &mut Vec<u8>) {
        let start = output.len();
        output.extend_from_slice(&self.octets);
        output[start + self.key..][..KEY_LENGTH].copy_from_slice(key);
    }

    /// Appends the request with a key, for a stream: its number stands in both frames.
    pub fn write_on_stream(&self, key: &KeyText, stream: u32, output: &mut Vec<u8>) {
        let start = output.len();
        self.write(key, output);
        let length = frame_length(&self.octets);
        for frame in [start, start + FRAME_HEAD + length] {
            output[frame + 5..frame + 9].copy_from_slice(&stream.to_be_bytes());
        }
    }

    /// Octets of a call that count against the flow-control windows.
    pub fn data_length(&self) -> usize {
        self.len() - 2 * FRAME_HEAD - frame_length(&self.octets)
    }
}

pub const FRAME_HEAD: usize = 9;

/// The length in a frame's head.
pub fn frame_length(frame: &[u8]) -> usize {
    usize::from(frame[0]) << 16 | usize::from(frame[1]) << 8 | usize::from(frame[2])
}

/// Appends a frame of stream 0, to be corrected where it is another's.
pub fn frame(output: &mut Vec<u8>, kind: u8, flags: u8, payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    output.extend_from_slice(&length[1..]);
    output.extend_from_slice(&[kind, flags, 0, 0, 0, 0]);
    output.extend_from_slice(payload);
}

fn literal(head: &mut Vec<u8>, name: &[u8], value: &str) {
    head.extend_from_slice(name);
    head.push(u8::try_from(value.len()).expect("below 127"));
    head.extend_from_slice(value.as_bytes());
}

fn check_request() -> CheckRequest {
    let peer = |address: &str, port_value| Peer {
        address: Some(Address { socket_address: Some(SocketAddress { address: address.into(), port_value }) }),
    };
    let authorization = format!("Bearer {}", str::from_utf8(PLACEHOLDER).expect("ASCII"));
    let headers = [
        (":authority", "api.example.com"),
        (":method", "GET"),
        (":path", "/v1/orders/8731?expand=lines"),
        (":scheme", "https"),
        ("accept", "application/json"),
        ("accept-encoding", "gzip, br"),
        ("authorization", &authorization),
        ("content-type", "application/json"),
        ("user-agent", "orders-client/2.7.1"),
        ("x-envoy-internal", "true"),
        ("x-forwarded-for", "192.0.2.7"),
        ("x-forwarded-proto", "https"),
        ("x-request-id", "5f1a7c1e-2d0b-4bd5-9a46-0f9f4b1d8c77"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ];
    let headers: HashMap<String, String> =
        headers.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(peer("192.0.2.7", 51724)),
            destination: Some(peer("10.0.3.9", 8443)),
            request: Some(Request {
                time: Some(Timestamp { seconds: 1_795_000_000, nanos: 123_456_789 }),
                http: Some(HttpRequest {
                    id: "11731894522431547342".into(),
                    method: "GET".into(),
                    headers,
                    path: "/v1/orders/8731?expand=lines".into(),
                    host: "api.example.com".into(),
                    scheme: "https".into(),
                    protocol: "HTTP/1.1".into(),
                }),
            }),
            context_extensions: HashMap::new(),
        }),
    }
}

/// What an answer says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    Allowed,
    Refused,
    Other,
}

/// The first answer of HTTP/1.1 in `octets`, and its length; none if it is not whole.
pub fn http_answer(octets: &[u8]) -> Option<(Verdict, usize)> {
    let head = memmem::find(octets, b"\r\n\r\n")? + 4;
    let verdict = match &octets[9..12] {
        b"200" | b"204" => Verdict::Allowed,
        b"401" | b"403" => Verdict::Refused,
        _ => Verdict::Other,
    };
    let lines = &octets[..head];
    let name = memmem::find(lines, b"ontent-length: ").or_else(|| memmem::find(lines, b"ontent-Length: "));
    let digits = name.map_or(&[][..], |name| &lines[name + 15..]);
    let body = digits.iter().take_while(|digit| digit.is_ascii_digit());
    let body = body.fold(0, |number, digit| number * 10 + usize::from(digit - b'0'));
    (octets.len() >= head + body).then_some((verdict, head + body))
}

/// What the DATA of a call's answer says: `CheckResponse` begins with its status.
pub fn check_response(data: &[u8]) -> Verdict {
    match data.get(5..7) {
        None | Some([0x0a, 0]) => Verdict::Allowed,
        Some([0x0a, _]) => Verdict::Refused,
        Some(_) => Verdict::Other,
    }
}
