//! The addresses of listeners.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Context;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;

/// Connections that the operating system holds before they are accepted.
const BACKLOG: i32 = 1024;

/// The address of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// This address and port only.
    Given(SocketAddr),
    /// All addresses of this machine, at this port.
    All(u16),
}

impl Address {
    /// The given address, or else all addresses at `port`. `[::]` means all addresses too, IPv4 alone if there is no IPv6: the
    /// chart writes it to change a port.
    pub fn or_all(given: Option<SocketAddr>, port: u16) -> Self {
        match given {
            None => Self::All(port),
            Some(address) if address.ip() == Ipv6Addr::UNSPECIFIED => Self::All(address.port()),
            Some(address) => Self::Given(address),
        }
    }
}

/// A listener on `address`.
///
/// # Errors
/// If the address cannot be used. Names the `flag`.
pub(crate) async fn bind(address: Address, flag: &str) -> anyhow::Result<TcpListener> {
    bind_by(listen, address, flag)
}

fn bind_by<L>(listen: impl Fn(SocketAddr) -> io::Result<L>, address: Address, flag: &str) -> anyhow::Result<L> {
    let (address, listening) = match address {
        Address::Given(address) => (address, listen(address)),
        Address::All(port) => {
            let (ipv6, ipv4) = ((Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into());
            match listen(ipv6) {
                Err(error) if has_no_ipv6(&error) => (ipv4, listen(ipv4)),
                listening => (ipv6, listening),
            }
        }
    };
    listening.with_context(|| format!("{flag} {address}: cannot listen on this address; check that the port is free"))
}

/// Whether it failed because this machine has no IPv6. Other errors, such as a port in use, would be the same with IPv4.
fn has_no_ipv6(error: &io::Error) -> bool {
    const EAFNOSUPPORT: i32 = 97;
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(EAFNOSUPPORT)
}

/// Listens like tokio, but `[::]` always accepts IPv4 too, whatever the machine's default is.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::net::IpAddr;

    use tokio::net::TcpStream;

    use super::*;

    #[test]
    fn without_ipv6_the_default_is_ipv4_and_nothing_else_is_replaced() {
        const EAFNOSUPPORT: i32 = 97;
        const EADDRNOTAVAIL: i32 = 99;
        const EADDRINUSE: i32 = 98;
        const EACCES: i32 = 13;
        const EMFILE: i32 = 24;
        let given = |text: &str| Address::Given(text.parse().unwrap());
        for (address, ipv6_fails, tried, works) in [
            (Address::All(9090), None, &["[::]:9090"][..], true),
            (Address::All(9090), Some(EAFNOSUPPORT), &["[::]:9090", "0.0.0.0:9090"], true),
            (Address::All(9090), Some(EADDRNOTAVAIL), &["[::]:9090", "0.0.0.0:9090"], true),
            (Address::All(9090), Some(EADDRINUSE), &["[::]:9090"], false),
            (Address::All(9090), Some(EACCES), &["[::]:9090"], false),
            (Address::All(9090), Some(EMFILE), &["[::]:9090"], false),
            (given("[::]:9090"), Some(EAFNOSUPPORT), &["[::]:9090"], false),
            (given("[::1]:9090"), Some(EADDRNOTAVAIL), &["[::1]:9090"], false),
            (given("0.0.0.0:9090"), Some(EAFNOSUPPORT), &["0.0.0.0:9090"], true),
        ] {
            let asked = RefCell::new(Vec::new());
            let listen = |address: SocketAddr| {
                asked.borrow_mut().push(address.to_string());
                match ipv6_fails.filter(|_| address.is_ipv6()) {
                    Some(error) => Err(io::Error::from_raw_os_error(error)),
                    None => Ok(()),
                }
            };
            let bound = bind_by(listen, address, "--admin-address");
            assert_eq!(bound.is_ok(), works, "{address:?} {ipv6_fails:?}");
            assert_eq!(*asked.borrow(), tried, "{address:?} {ipv6_fails:?}");
        }
    }

    #[tokio::test]
    async fn all_addresses_are_those_of_ipv4_too() {
        let listener = bind(Address::All(0), "--http-address").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut addresses = vec![IpAddr::from(Ipv4Addr::LOCALHOST)];
        if listener.local_addr().unwrap().is_ipv6() {
            addresses.push(Ipv6Addr::LOCALHOST.into());
        }
        for address in addresses {
            let connecting = TcpStream::connect((address, port));
            let (connected, accepted) = tokio::join!(connecting, listener.accept());
            connected.unwrap();
            assert_eq!(accepted.unwrap().1.ip().to_canonical(), address);
        }
    }
}
