//! I/O. Listeners, whatever they serve: connections and their limits, TLS, probes and metrics. No role is known here.

pub mod admin;
pub mod connections;
pub mod listen;
pub mod places;
pub mod problem;
pub mod room;
pub mod timed;
pub mod tls;
pub mod workers;
