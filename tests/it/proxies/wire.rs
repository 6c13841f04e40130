//! Both ends of a proxy: a client that sends exactly what it is told, and a workload that keeps what it receives.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use keywright_testing::wait::DEADLINE;

/// A request or an answer.
#[derive(Clone, Debug)]
pub struct Message {
    /// Without its end.
    pub head: String,
    pub body: String,
}

/// A client's connection.
pub struct Connection(TcpStream);

/// Answers 200 to everything, takes up every upgrade and then echoes, and keeps what it saw.
pub struct Workload {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Message>>>,
    connections: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Message {
    /// Of an answer.
    pub fn status(&self) -> u16 {
        self.head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{}", self.head))
    }

    /// All values by this name, in any case.
    pub fn values(&self, name: &str) -> Vec<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines.filter(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
    }

    async fn read(stream: &mut TcpStream) -> Option<Self> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.ok()?);
        }
        let head = String::from_utf8_lossy(&head).trim_end().to_owned();
        let mut message = Self { head, body: String::new() };
        let body = message.read_body(stream).await?;
        message.body = String::from_utf8_lossy(&body).into_owned();
        Some(message)
    }

    async fn read_body(&self, stream: &mut TcpStream) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        if let [length] = self.values("content-length")[..] {
            body.resize(length.parse().ok()?, 0);
            stream.read_exact(&mut body).await.ok()?;
        } else if self.values("transfer-encoding") == ["chunked"] {
            loop {
                let mut line = Vec::new();
                while !line.ends_with(b"\r\n") {
                    line.push(stream.read_u8().await.ok()?);
                }
                let size = usize::from_str_radix(String::from_utf8_lossy(&line).trim(), 16).ok()?;
                let mut chunk = vec![0; size + 2];
                stream.read_exact(&mut chunk).await.ok()?;
                if size == 0 {
                    break;
                }
                body.extend(&chunk[..size]);
            }
        }
        Some(body)
    }
}

impl Connection {
    /// From this loopback address.
    pub async fn from(source: Ipv4Addr, to: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((source, 0).into()).unwrap();
        Self(socket.connect(to).await.unwrap())
    }

    /// Sends a request with these lines, and waits for the answer to it.
    pub async fn ask(&mut self, request_line: &str, lines: &[&str], body: &str) -> Message {
        let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let request = format!("{request_line} HTTP/1.1\r\nHost: workload.example.org\r\n{lines}{length}\r\n{body}");
        self.0.write_all(request.as_bytes()).await.unwrap();
        let answer = timeout(DEADLINE, Message::read(&mut self.0)).await.expect("an answer in time");
        answer.unwrap_or_else(|| panic!("no answer to {request_line}"))
    }

    /// Sends octets after an upgrade, and waits for as many.
    pub async fn echo(&mut self, octets: &str) -> String {
        self.0.write_all(octets.as_bytes()).await.unwrap();
        let mut echo = vec![0; octets.len()];
        timeout(DEADLINE, self.0.read_exact(&mut echo)).await.expect("an echo in time").unwrap();
        String::from_utf8(echo).unwrap()
    }
}

impl Workload {
    pub async fn start() -> Self {
        Self::answering(&[], "welcome\n").await
    }

    /// With these lines and this body in its answers.
    pub async fn answering(lines: &[String], body: &str) -> Self {
        let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        let answer = format!("HTTP/1.1 200 OK\r\n{lines}Content-Length: {}\r\n\r\n{body}", body.len());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, connections) = (Arc::<Mutex<Vec<Message>>>::default(), Arc::<AtomicUsize>::default());
        let (shared, counted) = (seen.clone(), connections.clone());
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(stream, shared.clone(), answer.clone()));
            }
        });
        Self { address, seen, connections, accepting }
    }

    /// What came in since the last time.
    pub fn take(&self) -> Vec<Message> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }

    /// How many connections it has had.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(mut stream: TcpStream, seen: Arc<Mutex<Vec<Message>>>, answer: String) {
    while let Some(request) = Message::read(&mut stream).await {
        let upgrade = !request.values("upgrade").is_empty();
        seen.lock().unwrap().push(request);
        if upgrade {
            // The nonce and its answer are those of RFC 6455, 1.3.
            let accepted = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                            Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
            if stream.write_all(accepted.as_bytes()).await.is_ok() {
                let (mut from, mut to) = stream.split();
                let _: Result<_, _> = tokio::io::copy(&mut from, &mut to).await;
            }
            return;
        }
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Passes connections on, as a Service of Kubernetes does: each stays where it went, whatever becomes of the ones after it.
pub struct Service {
    pub address: SocketAddr,
    target: Arc<Mutex<SocketAddr>>,
    accepting: JoinHandle<()>,
}

impl Service {
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let target = Arc::new(Mutex::new(target));
        let shared = target.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let target = *shared.lock().unwrap();
                tokio::spawn(async move {
                    let mut passed_on = TcpStream::connect(target).await.unwrap();
                    let _: Result<_, _> = copy_bidirectional(&mut stream, &mut passed_on).await;
                });
            }
        });
        Self { address, target, accepting }
    }

    /// New connections go there.
    pub fn turn_to(&self, target: SocketAddr) {
        *self.target.lock().unwrap() = target;
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Accepts connections and never answers.
pub async fn silence() -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let held = tokio::spawn(async move {
        let mut connections = Vec::new();
        while let Ok((connection, _)) = listener.accept().await {
            connections.push(connection);
        }
        tokio::time::sleep(Duration::MAX).await;
    });
    (address, held)
}
