//! Texts that stand where a key should be. Anybody tries them first.
//!
//! The list is short and reviewed: it catches slips, and is no measure of a key. Most of its texts are too short for a key,
//! so that no request could ever be let in with them either.

/// The texts.
pub(super) const TEXTS: [&str; 40] = [
    // What documentation and templates write where a key belongs.
    "api-key",
    "apikey",
    "change-me",
    "changeme",
    "example",
    "key",
    "my-api-key",
    "my-secret-key",
    "placeholder",
    "REPLACE_ME",
    "replace-me",
    "your-api-key",
    "your-api-key-here",
    "YOUR_API_KEY",
    "xxxxxxxxxxxxxxxx",
    // What people type to try something.
    "admin",
    "foo",
    "hello",
    "letmein",
    "password",
    "secret",
    "supersecret",
    "test",
    "test-key",
    "token",
    // What programs, shells and Helm write where a value is missing.
    "null",
    "None",
    "undefined",
    "<no value>",
    "$KEY",
    "${KEY}",
    // Runs, at the shortest length that a key may have and at the lengths of 128 and 256 bits.
    "1234567890123456",
    "0123456789abcdef",
    "0123456789abcdef0123456789abcdef",
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "0000000000000000",
    "00000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000000",
    // A UUID of nothing but zeros.
    "00000000-0000-0000-0000-000000000000",
    // Nothing but a space.
    " ",
];
