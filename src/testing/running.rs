//! A listener on loopback, and a client of it that sees every octet.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream as Socket};
use std::time::Duration;

use futures::future::BoxFuture;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, Response};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::serve::connections::{Answer, Leaving, Listener, Server};
use crate::serve::limits::{BodyLimits, Limits};
use crate::serve::listen::{Address, bind};
use crate::serve::room::{ConnectionMetrics, Occupancy};
use crate::serve::workers::Workers;

/// Long enough for anything that is expected to happen, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A listener on loopback, and how to end it.
pub struct Running {
    pub address: SocketAddr,
    pub stop: oneshot::Sender<()>,
    pub leaving: Leaving,
    pub occupancy: Occupancy,
    pub registry: Registry,
    pub task: JoinHandle<()>,
}

pub fn server(listener: TcpListener, limits: Limits, registry: &mut Registry) -> Server {
    let (workers, leaving) = (Workers::current(), Leaving::default());
    let occupancy = ConnectionMetrics::new(registry).of("http");
    Server { listener: Listener::plain(listener), limits, workers, leaving, occupancy }
}

impl Running {
    pub async fn serving<H, A>(limits: Limits, handler: H) -> Self
    where
        H: Fn(&Request<()>, IpAddr) -> A + Send + Sync + 'static,
        A: Into<Answer> + 'static,
    {
        Self::start(limits, |server, shutdown| server.serve(handler, shutdown)).await
    }

    pub async fn serving_bodies<H>(limits: Limits, bodies: BodyLimits, handler: H) -> Self
    where
        H: Fn(&Request<Bytes>) -> Response<Full<Bytes>> + Send + Sync + 'static,
    {
        Self::start(limits, |server, shutdown| server.serve_with_bodies(bodies, handler, shutdown)).await
    }

    async fn start<F>(limits: Limits, serve: impl FnOnce(Server, BoxFuture<'static, ()>) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = bind(Address::Given("127.0.0.1:0".parse().unwrap()), "--http-address").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let mut registry = Registry::default();
        let server = server(listener, limits, &mut registry);
        let (leaving, occupancy) = (server.leaving.clone(), server.occupancy.clone());
        let shutdown = async { stopped.await.unwrap_or_default() };
        let task = tokio::spawn(serve(server, Box::pin(shutdown)));
        Self { address, stop, leaving, occupancy, registry, task }
    }

    pub fn connect(&self) -> Socket {
        connect(self.address)
    }

    /// All that is answered to `request`, until the server closes the connection.
    pub fn exchange(&self, request: impl AsRef<[u8]>) -> String {
        let mut socket = self.connect();
        socket.write_all(request.as_ref()).unwrap();
        rest(&mut socket)
    }
}

pub fn connect(address: SocketAddr) -> Socket {
    let socket = Socket::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// From another address of loopback, by its last octet.
pub fn connect_from(host: u8, address: SocketAddr) -> Socket {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, host], 0)).into()).unwrap();
    socket.connect(&address.into()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.into()
}

pub fn rest(socket: &mut Socket) -> String {
    let mut answer = Vec::new();
    match socket.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&answer)),
    }
    String::from_utf8(answer).unwrap()
}

/// One answer with an empty or a counted body, on a connection that stays open.
pub fn one_answer(socket: &mut Socket) -> String {
    let mut answer = String::new();
    let mut octet = [0];
    while !answer.ends_with("\r\n\r\n") {
        socket.read_exact(&mut octet).unwrap();
        answer.push(char::from(octet[0]));
    }
    let length = answer.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    socket.read_exact(&mut body).unwrap();
    answer + str::from_utf8(&body).unwrap()
}

pub fn statuses(answers: &str) -> Vec<u16> {
    answers.match_indices("HTTP/1.1 ").map(|(start, _)| answers[start + 9..start + 12].parse().unwrap()).collect()
}
