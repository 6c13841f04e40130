//! `keywright_fuzz::record` says what has to hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| keywright_fuzz::record(data));
