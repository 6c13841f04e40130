//! `keywright_fuzz::secret_text` says what has to hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| keywright_fuzz::secret_text(data));
