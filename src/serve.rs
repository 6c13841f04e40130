//! I/O. Listeners for all roles: connections and their limits, TLS, probes and metrics. This module does not know any role.

pub mod admin;
pub mod connections;
pub mod limits;
pub mod listen;
pub mod places;
pub mod problem;
pub mod room;
pub mod timed;
pub mod tls;
pub mod workers;
