//! The TCP side of the fault proxy: connections that can be severed, reset, or cut off without either end noticing.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::Proxy;

/// The state of the network between the clients and the API server.
#[derive(Debug, Default)]
pub(super) struct Link {
    pub(super) partitioned: bool,
    /// How many times all connections were closed.
    pub(super) severed: usize,
}

/// Resets one connection.
pub(super) type Reset = Notify;

/// Accepts connections for ever. Dropping it drops them.
pub(super) async fn serve(listener: TcpListener, link: watch::Receiver<Link>, proxy: Arc<Proxy>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.spawn(carry(client, link.clone(), proxy.clone()));
        while connections.try_join_next().is_some() {}
    }
}

/// Carries one connection's bytes to an HTTP server in this process, which alone knows what they mean.
async fn carry(mut client: TcpStream, mut link: watch::Receiver<Link>, proxy: Arc<Proxy>) {
    let reset = Arc::new(Reset::new());
    let severed = link.borrow_and_update().severed;
    let (near, far) = duplex(64 * 1024);
    let service = service_fn(|request| {
        let (proxy, reset) = (proxy.clone(), reset.clone());
        async move { Ok::<_, Infallible>(proxy.answer(request, &reset).await) }
    });
    let serving = http1::Builder::new().serve_connection(TokioIo::new(far), service);
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = split(near);
    let requests = pump(from_client, to_server, link.clone());
    let answers = pump(from_server, to_client, link.clone());
    let reset = tokio::select! {
        _ = async { tokio::join!(serving, requests, answers) } => false,
        _ = link.wait_for(|link| link.severed > severed) => false,
        () = reset.notified() => true,
    };
    if reset {
        let _ = link.wait_for(|link| !link.partitioned).await;
        let _ = client.set_zero_linger();
    }
}

/// Copies what arrives, but not while the network is partitioned: then it waits here.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut link: watch::Receiver<Link>,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = from.read(&mut buffer).await?;
        let _ = link.wait_for(|link| !link.partitioned).await;
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..length]).await?;
    }
}
