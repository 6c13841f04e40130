//! The tests in the browser disturb the way to the API server from there: a line is what shall be wrong, and one comes back when
//! it is.

use std::net::SocketAddr;

use keywright_testing::{ApiRequest, Fault, FaultProxy, Injection, Occurrence, Outcome};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

/// The first page of a list that does not come, where lists are slow. Each page has 500 objects.
const PAGE: usize = 4;

/// Listens for what shall be wrong, for as long as the process.
pub async fn serve(faults: &'static FaultProxy) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut wrong: Option<Injection> = None;
        loop {
            let (connection, _) = listener.accept().await.unwrap();
            let mut connection = BufReader::new(connection);
            let mut asked = String::new();
            connection.read_line(&mut asked).await.unwrap();
            if let Some(wrong) = wrong.take() {
                wrong.lift();
            }
            wrong = disturb(faults, asked.trim());
            connection.write_all(b"so it is\n").await.unwrap();
        }
    });
    address
}

fn disturb(faults: &FaultProxy, what: &str) -> Option<Injection> {
    let is_long_list = |request: &ApiRequest| {
        let is_list = request.is("GET", "apikeys") && request.name.is_none() && !request.watch;
        is_list && request.namespace.as_ref().is_some_and(|namespace| namespace.ends_with("-many"))
    };
    match what {
        "unreachable" => {
            let injection = faults.inject(Fault::Before(Outcome::Reset), Occurrence::Every, |_| true);
            faults.sever();
            Some(injection)
        }
        "long lists are slow" => Some(faults.inject(Fault::Hold, Occurrence::Nth(PAGE), is_long_list)),
        "nothing" => None,
        other => panic!("{other}: no such outage"),
    }
}
