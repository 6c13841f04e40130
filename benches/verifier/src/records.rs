//! A stand-in for the API server that holds a million records and changes them a thousand times a second, which no real
//! one does. It knows the requests that a verifier makes, forgets the last uses that are written, and says nothing about
//! Kubernetes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use keywright_measure::population::{record_name, spec};

const FIRST_VERSION: usize = 1000;

#[derive(Clone)]
pub struct Records(Arc<Inner>);

struct Inner {
    address: SocketAddr,
    count: usize,
    changes: Mutex<Changes>,
}

#[derive(Default)]
struct Changes {
    /// All that there ever were, as they stand on a watch. The version of the first is one above `FIRST_VERSION`.
    events: Vec<String>,
    watches: Vec<(usize, TcpStream)>,
    opened: usize,
    lease_writes: usize,
}

impl Records {
    /// Serves so many records, each generated when it is asked for.
    pub fn serve(count: usize) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let records = Self(Arc::new(Inner { address, count, changes: Mutex::default() }));
        let served = records.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let records = served.clone();
                // An error is the end of the connection.
                thread::spawn(move || records.converse(stream).ok());
            }
        });
        Ok(records)
    }

    pub fn kubeconfig(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "bench",
            "clusters": [{"name": "bench", "cluster": {"server": format!("http://{}", self.0.address)}}],
            "users": [{"name": "bench", "user": {}}],
            "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
        })
    }

    /// Tells all watches that a record is another now.
    pub fn change(&self, number: usize, spec: Value) -> Result<()> {
        let mut changes = self.0.changes.lock().expect("no thread panics here");
        let version = FIRST_VERSION + changes.events.len() + 1;
        // The type comes first, as the API server has it; the other way round, the object would have to be kept until then.
        let event = format!("{{\"type\":\"MODIFIED\",\"object\":{}}}\n", object(number, version, spec));
        for (_, watch) in &mut changes.watches {
            write_chunk(watch, &event)?;
        }
        changes.events.push(event);
        Ok(())
    }

    fn converse(&self, stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        let mut output = stream.try_clone()?;
        let mut input = BufReader::new(stream);
        loop {
            let (mut target, mut body) = (String::new(), 0);
            for (number, line) in input.by_ref().lines().enumerate() {
                let line = line?;
                if number == 0 {
                    target = line;
                } else if line.is_empty() {
                    break;
                } else if let Some(length) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
                    body = length.parse()?;
                }
            }
            let mut content = Vec::new();
            input.by_ref().take(body).read_to_end(&mut content)?;
            if target.is_empty() {
                return Ok(());
            } else if parameter(&target, "watch") == Some("true") {
                self.watch(&target, &mut output)?;
            } else {
                let answer = match target.contains("/leases") {
                    true => self.lease(&target, &content)?,
                    false => record(&target).unwrap_or_else(|| self.page(&target)),
                };
                let length = answer.len();
                output.write_all(
                    format!(
                        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{answer}"
                    )
                    .as_bytes(),
                )?;
            }
        }
    }

    /// The Lease as it is stored now, or that it is gone.
    fn lease(&self, target: &str, content: &[u8]) -> Result<String> {
        if target.starts_with("DELETE ") {
            return Ok(json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}).to_string());
        }
        let mut changes = self.0.changes.lock().expect("no thread panics here");
        changes.lease_writes += 1;
        let mut lease: Value = serde_json::from_slice(content)?;
        lease["metadata"]["uid"] = json!("a");
        lease["metadata"]["resourceVersion"] = json!(changes.lease_writes.to_string());
        Ok(lease.to_string())
    }

    fn page(&self, target: &str) -> String {
        let number = |name| parameter(target, name).and_then(|text| text.parse::<usize>().ok());
        let start = number("continue").unwrap_or(0);
        let end = (start + number("limit").unwrap_or(self.0.count)).min(self.0.count);
        let items: Vec<Value> = (start..end).map(|number| object(number, FIRST_VERSION, spec(number))).collect();
        let version = FIRST_VERSION + self.0.changes.lock().expect("no thread panics here").events.len();
        let next = if end < self.0.count { end.to_string() } else { String::new() };
        json!({
            "apiVersion": "keywright.dev/v1alpha1", "kind": "ApiKeyRecordList",
            "metadata": {"resourceVersion": version.to_string(), "continue": next},
            "items": items,
        })
        .to_string()
    }

    fn watch(&self, target: &str, output: &mut TcpStream) -> Result<()> {
        output.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")?;
        let since = parameter(target, "resourceVersion").and_then(|text| text.parse::<usize>().ok());
        let seen = since.unwrap_or(FIRST_VERSION).saturating_sub(FIRST_VERSION);
        let own = {
            let mut changes = self.0.changes.lock().expect("no thread panics here");
            let missed: String = changes.events.iter().skip(seen).map(String::as_str).collect();
            if !missed.is_empty() {
                write_chunk(output, &missed)?;
            }
            changes.opened += 1;
            let own = changes.opened;
            changes.watches.push((own, output.try_clone()?));
            own
        };
        let seconds = parameter(target, "timeoutSeconds").and_then(|text| text.parse().ok());
        thread::sleep(Duration::from_secs(seconds.unwrap_or(20)));
        let mut changes = self.0.changes.lock().expect("no thread panics here");
        changes.watches.retain(|(number, _)| *number != own);
        drop(changes);
        output.write_all(b"0\r\n\r\n")?;
        Ok(())
    }
}

fn write_chunk(watch: &mut TcpStream, text: &str) -> Result<()> {
    watch.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes())?;
    Ok(())
}

/// The answer to a request for one record, whether it is to be read or written.
fn record(target: &str) -> Option<String> {
    let (_, path) = target.split_once("/apikeyrecords/")?;
    let name = path.split(['/', '?', ' ']).next()?;
    let metadata = json!({"name": name, "namespace": "keywright-system", "resourceVersion": FIRST_VERSION.to_string()});
    Some(json!({"apiVersion": "keywright.dev/v1alpha1", "kind": "ApiKeyRecord", "metadata": metadata}).to_string())
}

fn parameter<'t>(target: &'t str, name: &str) -> Option<&'t str> {
    let query = target.split(' ').nth(1)?.split_once('?')?.1;
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

fn object(number: usize, version: usize, spec: Value) -> Value {
    json!({
        "apiVersion": "keywright.dev/v1alpha1", "kind": "ApiKeyRecord",
        "metadata": {
            "name": record_name(number), "namespace": "keywright-system", "resourceVersion": version.to_string(),
            "uid": record_name(number)[..36], "generation": 1, "creationTimestamp": "2026-11-23T12:00:00Z",
        },
        "spec": spec,
    })
}
