#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nbdkit_fuzz::layouts::fat_names(data));
