//! `kubectl keywright ui`: a page in the user's browser, on the user's own rights.
//!
//! A small server on the loopback interface serves the page and speaks to the API server for it. There is no flag for
//! another interface: from afar, `ssh -L` brings the port.
//!
//! - [`session`]: who may talk to it. [`routes`]: what can be asked. [`assets`]: the files of the page. [`browser`]: opens it.
//! - [`feed`]: what happens to the ApiKeys of a namespace, as [`row`]s. [`details`]: everything about one.
//! - [`form`]: what a person has typed, as a spec and as problems. [`change`]: what is then written.
//! - [`rights`]: what the user may do.

pub mod assets;
pub mod browser;
pub mod change;
pub mod details;
pub mod feed;
pub mod form;
pub mod rights;
pub mod routes;
pub mod row;
pub mod session;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rand::TryRng;
use rand::rngs::SysRng;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use self::browser::Signpost;
use self::routes::Page;
use self::session::{Secrets, Session};
use crate::args::Ui;
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::interrupt;
use crate::terminal::Terminal;

/// Connections at once. A browser has six to one address, and four tabs may be open.
const MOST_CONNECTIONS: usize = 64;
/// How long a connection may ask nothing.
const PATIENCE: Duration = Duration::from_secs(5);
/// After a connection that could not be taken.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves the page until somebody ends it. Its address, which is good once, goes to `terminal`.
///
/// # Errors
/// A port that is taken, no randomness, or an address that cannot be printed.
pub async fn run(cluster: Cluster, options: &Ui, terminal: Terminal) -> Result<(), Failure> {
    let taken = |error: std::io::Error| {
        Failure::usage(format!("127.0.0.1:{} cannot be listened on: {error}. Choose another --port.", options.port))
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, options.port)).await.map_err(taken)?;
    let port = listener.local_addr().map_err(taken)?.port();
    let secrets = Secrets { token: random()?, cookie: random()?, proof: random()? };
    let (session, token) = Session::new(port, &secrets);
    let address = format!("http://127.0.0.1:{port}/#{}", token.as_str());
    // Before the address is told: whoever has it may end the page at once.
    let stopped = interrupt::stopped()?;
    terminal.print(&format!("{address}\n"))?;
    terminal.say("Open this address in a browser on this machine. It works once. Ctrl-C ends the page.");
    let _signpost = if options.no_browser { None } else { open_browser(&address, terminal) };
    let page = Page::new(cluster, session);
    tokio::select! {
        () = stopped => Ok(()),
        () = serve(listener, routes::router(Arc::new(page))) => Ok(()),
    }
}

/// Serves connections. Whoever is on this machine may open them: a few at once, and none that asks nothing for long.
async fn serve(listener: TcpListener, router: Router) {
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut http = http1::Builder::new();
    // One request each: a browser that takes up a connection which just then ends would tell the page that nobody is there.
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false);
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((connection, _)) = listener.accept().await else {
            // Too many files are open, as a rule.
            sleep(PAUSE).await;
            continue;
        };
        let served = http.serve_connection(TokioIo::new(connection), TowerToHyperService::new(router.clone()));
        tokio::spawn(async move {
            // Whoever breaks off has nobody to hear of it.
            let _ = served.await;
            drop(place);
        });
    }
}

/// What leads the browser to the page has to stay until it was there.
fn open_browser(address: &str, terminal: Terminal) -> Option<Signpost> {
    let opened = random().map_err(std::io::Error::other).and_then(|name| {
        let signpost = Signpost::put(address, &session::hexadecimal(&name))?;
        signpost.follow()?;
        Ok(signpost)
    });
    if opened.is_err() {
        terminal.say("No browser could be opened: open the address yourself.");
    }
    opened.ok()
}

fn random() -> Result<[u8; 32], Failure> {
    let mut bytes = [0; 32];
    SysRng
        .try_fill_bytes(&mut bytes)
        .map_err(|error| Failure::failed(format!("The operating system gives no random numbers: {error}.")))?;
    Ok(bytes)
}
