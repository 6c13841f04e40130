//! I/O. TLS for listeners. The certificate and the CAs for client certificates can be replaced at any time. TLS 1.2 and 1.3,
//! by rustls with ring. `tls/files.rs` reads PEM files.

mod acceptor;
mod certificate;
pub mod files;
mod served;

pub use self::acceptor::{Acceptor, HTTP_1, HTTP_2};
pub use self::certificate::{Certificate, ClientAuthorities};
pub use self::served::{SOURCE_GOOD, Served};

#[cfg(test)]
mod tests;
