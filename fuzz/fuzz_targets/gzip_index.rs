#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nbdkit_fuzz::images::gzip_index(data));
