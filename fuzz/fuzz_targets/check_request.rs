//! `keywright_fuzz::check_request` says what has to hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| keywright_fuzz::check_request(data));
