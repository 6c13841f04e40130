//! `keywright_fuzz::http_head` says what has to hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| keywright_fuzz::http_head(data));
