//! For cargo-fuzz: the target `requests` of `pagoda_tests::fuzz`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| pagoda_tests::fuzz::once("requests", input));
