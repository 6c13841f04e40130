//! A server on loopback that answers from a script, for what a client does with answers.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::slice;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use keywright_core::fence::APPLIED_ANNOTATION;
use keywright_core::testing::record_name;
use kube::{Client, Config};
use serde_json::{Value, json};

/// What a scripted server sends in reply to a request; the client's behaviour is what is tested with it.
#[derive(Clone, Debug)]
pub enum Reply {
    /// A whole answer.
    Answer(u16, Value),
    /// Lines of a watch, and then its end.
    Events(Vec<Value>),
    /// Lines of a watch that stays open; nothing more is ever sent.
    Silence(Vec<Value>),
    /// The same, but not before [`Script::release`].
    Held(Vec<Value>),
    /// A whole answer after this time.
    Late(Duration, Value),
    /// Lines of a watch that is cut off in the middle of the next one.
    Cut(Vec<Value>),
    /// Nothing at all.
    NoAnswer,
    /// A line of a watch that stays open, again and again.
    Trickle(Value),
}

/// Stands for the query of a list's page, whose size depends on the ones before.
pub const LIST: &str = "a list";

/// Whether a request with this target is one for which a reply with `part` is.
pub fn is_for(target: &str, part: &str) -> bool {
    let target = format!("{target}&");
    match part {
        LIST => !target.contains("watch=true") && !target.contains("limit=1&"),
        part => target.contains(part),
    }
}

/// A server on loopback that answers requests one after the other from a script, and with `last` once it has run
/// out. Knows nothing of Kubernetes, except that a list is followed by a question for the newest version: where the
/// script has no reply to that, it is the list's, and the question does not count. It stores Leases too, which do not count
/// either.
#[derive(Clone)]
pub struct Script {
    state: Arc<Mutex<State>>,
    url: String,
}

struct State {
    replies: std::vec::IntoIter<(&'static str, Reply)>,
    last: fn(&str) -> Reply,
    targets: Vec<String>,
    wrong: Option<String>,
    is_released: bool,
    /// Of a list whose last page was sent just now.
    listed: Option<Value>,
    lease: Option<Value>,
    lease_writes: u32,
    lease_creations: usize,
}

impl Script {
    /// `replies` come with a part of the query that each one is for: `watch=true`, or `limit=1&` for the newest version;
    /// or [`LIST`] for any page of a list.
    pub fn start(replies: Vec<(&'static str, Reply)>, last: fn(&str) -> Reply) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let replies = replies.into_iter();
        let state = State {
            replies,
            last,
            targets: Vec::new(),
            wrong: None,
            is_released: false,
            listed: None,
            lease: None,
            lease_writes: 0,
            lease_creations: 0,
        };
        let script = Self { state: Arc::new(Mutex::new(state)), url };
        let server = script.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let server = server.clone();
                thread::spawn(move || server.converse(stream.unwrap()));
            }
        });
        script
    }

    pub fn config(&self) -> Config {
        let mut config = Config::new(self.url.parse().unwrap());
        config.default_retry = false;
        config
    }

    pub fn client(&self) -> Client {
        Client::try_from(self.config()).unwrap()
    }

    pub fn release(&self) {
        self.state.lock().unwrap().is_released = true;
    }

    /// Ends in an error where the client goes away in the middle of an answer.
    fn converse(&self, mut stream: TcpStream) -> io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        while let Some((method, target, body)) = read_request(&mut reader) {
            if target.contains("/leases") {
                let (status, lease) = self.lease(&method, &body);
                answer(&mut stream, status, &lease)?;
                continue;
            }
            match self.reply(target) {
                Reply::Answer(status, body) => answer(&mut stream, status, &body)?,
                Reply::Late(delay, body) => {
                    thread::sleep(delay);
                    answer(&mut stream, 200, &body)?;
                }
                Reply::Events(events) => {
                    send(&mut stream, &events)?;
                    stream.write_all(b"0\r\n\r\n")?;
                }
                Reply::Silence(events) => send(&mut stream, &events)?,
                Reply::Held(events) => {
                    while !self.state.lock().unwrap().is_released {
                        thread::sleep(Duration::from_millis(1));
                    }
                    send(&mut stream, &events)?;
                }
                Reply::Cut(events) => {
                    send(&mut stream, &events)?;
                    stream.write_all(b"400\r\n{\"type\":\"MODIF")?;
                    stream.shutdown(Shutdown::Both)?;
                }
                Reply::NoAnswer => {}
                Reply::Trickle(event) => {
                    send(&mut stream, &[])?;
                    loop {
                        send_lines(&mut stream, slice::from_ref(&event))?;
                        thread::sleep(Duration::from_millis(20));
                    }
                }
            }
        }
        Ok(())
    }

    /// Stores the one Lease.
    fn lease(&self, method: &str, body: &[u8]) -> (u16, Value) {
        let mut state = self.state.lock().unwrap();
        let status = |status, code| json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": status, "code": code });
        match (method, &state.lease) {
            ("GET", Some(lease)) => return (200, lease.clone()),
            ("GET", None) => return (404, status("Failure", 404)),
            ("DELETE", _) => {
                state.lease = None;
                return (200, status("Success", 200));
            }
            _ => {}
        }
        state.lease_writes += 1;
        state.lease_creations += usize::from(method == "POST");
        let mut lease: Value = serde_json::from_slice(body).unwrap();
        lease["metadata"]["uid"] = json!(format!("lease-{}", state.lease_creations));
        lease["metadata"]["resourceVersion"] = json!(state.lease_writes.to_string());
        state.lease = Some(lease.clone());
        (200, lease)
    }

    fn reply(&self, target: String) -> Reply {
        let mut state = self.state.lock().unwrap();
        if let Some(metadata) = state.listed.take()
            && state.replies.as_slice().first().is_none_or(|(part, _)| *part != "limit=1&")
        {
            return Reply::Answer(200, json!({ "metadata": metadata, "items": [] }));
        }
        let reply = match state.replies.next() {
            None => (state.last)(&target),
            Some((part, reply)) => {
                if !is_for(&target, part) {
                    state.wrong.get_or_insert(format!("{target} where {part} was expected"));
                }
                reply
            }
        };
        if let Reply::Answer(200, list) = &reply
            && is_for(&target, LIST)
            && list["metadata"]["continue"] == ""
            && list["metadata"]["resourceVersion"] != ""
        {
            state.listed = Some(list["metadata"].clone());
        }
        state.targets.push(target);
        reply
    }

    /// What the Lease says is applied.
    pub fn applied(&self) -> Option<String> {
        let state = self.state.lock().unwrap();
        let applied = state.lease.as_ref()?["metadata"]["annotations"][APPLIED_ANNOTATION].as_str();
        applied.map(str::to_owned)
    }

    /// How many times a Lease was created.
    pub fn lease_creations(&self) -> usize {
        self.state.lock().unwrap().lease_creations
    }

    /// What was asked for, in the order in which it came.
    pub fn targets(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        assert_eq!(state.wrong, None, "{:?}", state.targets);
        state.targets.clone()
    }
}

/// The request's method, target and body, or `None` at the connection's end.
fn read_request(reader: &mut impl BufRead) -> Option<(String, String, Vec<u8>)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let lower = head.to_lowercase();
    let length = lower.split("content-length: ").nth(1).and_then(|rest| rest.split('\r').next()?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    let mut words = head.split(' ').map(str::to_owned);
    Some((words.next()?, words.next()?, body))
}

fn answer(stream: &mut TcpStream, status: u16, body: &Value) -> io::Result<()> {
    let body = body.to_string();
    write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn send(stream: &mut TcpStream, events: &[Value]) -> io::Result<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    send_lines(stream, events)
}

fn send_lines(stream: &mut TcpStream, events: &[Value]) -> io::Result<()> {
    for event in events {
        let line = format!("{event}\n");
        write!(stream, "{:x}\r\n{line}\r\n", line.len())?;
    }
    Ok(())
}

pub fn record(number: u32, version: &str, spec: &Value) -> Value {
    json!({ "metadata": { "name": record_name(number), "resourceVersion": version }, "spec": spec })
}

pub fn event(kind: &str, object: Value) -> Value {
    json!({ "type": kind, "object": object })
}

pub fn page(version: &str, continue_token: &str, records: &[Value]) -> Value {
    let metadata = json!({ "resourceVersion": version, "continue": continue_token });
    json!({ "apiVersion": "v1", "kind": "List", "metadata": metadata, "items": records })
}

pub fn list(version: &str, continue_token: &str, records: &[Value]) -> Reply {
    Reply::Answer(200, page(version, continue_token, records))
}
