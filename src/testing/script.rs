//! A server on loopback that answers from a script, for what a client does with answers.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::slice;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use keywright_core::testing::record_name;
use kube::Client;
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
/// script has no reply to that, it is the list's, and the question does not count.
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
}

impl Script {
    /// `replies` come with a part of the query that each one is for: `watch=true`, or `limit=1&` for the newest version;
    /// or [`LIST`] for any page of a list.
    pub fn start(replies: Vec<(&'static str, Reply)>, last: fn(&str) -> Reply) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let replies = replies.into_iter();
        let state = State { replies, last, targets: Vec::new(), wrong: None, is_released: false, listed: None };
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

    pub fn client(&self) -> Client {
        let mut config = kube::Config::new(self.url.parse().unwrap());
        config.default_retry = false;
        Client::try_from(config).unwrap()
    }

    pub fn release(&self) {
        self.state.lock().unwrap().is_released = true;
    }

    /// Ends in an error where the client goes away in the middle of an answer.
    fn converse(&self, mut stream: TcpStream) -> io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        while let Some(target) = read_target(&mut reader) {
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

    /// What was asked for, in the order in which it came.
    pub fn targets(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        assert_eq!(state.wrong, None, "{:?}", state.targets);
        state.targets.clone()
    }
}

/// The request's target, or `None` at the connection's end.
fn read_target(reader: &mut impl BufRead) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    head.split(' ').nth(1).map(str::to_owned)
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
