//! I/O. TLS for listeners: a certificate, and the authorities of clients, that are replaced while connections come in.
//! TLS 1.2 and 1.3, by rustls with ring. `tls/files.rs` is for those that come from PEM files.

mod acceptor;
mod certificate;
pub mod files;
mod served;

pub use self::acceptor::{Acceptor, HTTP_1, HTTP_2};
pub use self::certificate::{Certificate, ClientAuthorities};
pub use self::served::{SOURCE_GOOD, Served};

#[cfg(test)]
mod tests;
