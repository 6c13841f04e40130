//! What has to hold for any octets from outside. Each function takes one input and panics if something does not hold.
//!
//! libFuzzer calls them through the binaries in `fuzz_targets/`, and `tests/corpus.rs` with every saved input. They
//! compare Keywright with a second reading that is written to be obvious and may be slow; so a change of the rules has
//! to be made there too, on purpose.

#![forbid(unsafe_code)]

mod address;
mod admission;
mod check_request;
mod client;
mod credential;
mod http;
mod key;
mod record;
mod secret_text;

pub use address::address_entry;
pub use admission::admission_review;
pub use check_request::check_request;
pub use client::client_address;
pub use credential::credential;
pub use http::http_head;
pub use key::key;
pub use record::record;
pub use secret_text::secret_text;

/// A function of this crate by its name, which is also the name of its binary and of its folder in `corpus/`.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 9] = [
    ("address_entry", address_entry),
    ("client_address", client_address),
    ("credential", credential),
    ("key", key),
    ("http_head", http_head),
    ("check_request", check_request),
    ("record", record),
    ("admission_review", admission_review),
    ("secret_text", secret_text),
];

/// The test vectors of `tests/cases/keys.tsv`, and one that was made elsewhere.
mod keys {
    pub const FOREIGN: &str = "live_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYg==";
    pub const OPEN: &str = "keyw1_eVULq19jgYgonBwBS9PnYuwEwkbytwZtG3LkFawtUJJ3cXN0G";
    pub const LISTED: &str = "keyw1_x3dylZ3lzYKIhQQXeAJ94cGS4sbYtvgcYDsSikFczMP1KVy2b";
    pub const REVOKED: &str = "keyw1_5LdvPPYbsFuXItWtxeRYxNSM0lFE7WG6AJPOloe336t3XOvuE";
    pub const EXPIRED: &str = "keyw1_GIJjCtps9VfyK3QoUQexN2DvsoQN4YWslJWRPo4m4Ex4LtC2d";
    pub const UNKNOWN: &str = "keyw1_Eav9ArYNbbTZ8VEQXgrruSpj3GvHaM5lnD2yoWJInsb3Jfxvu";
}

/// The instant at which everything is decided here.
fn now() -> jiff::Timestamp {
    jiff::Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_hours(500_000)
}

/// What is said to people stays short, on one line, and harmless on a terminal.
fn assert_fit_to_print(message: &str) {
    assert!(message.len() <= 512, "{} octets: {message:?}", message.len());
    assert!(message.bytes().all(|octet| (b' '..=b'~').contains(&octet)), "{message:?}");
}
