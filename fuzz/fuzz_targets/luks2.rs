#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nbdkit_fuzz::images::luks2(data));
