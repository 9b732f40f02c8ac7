//! For cargo-fuzz: the target `grammar` of `pagoda_tests::fuzz`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| pagoda_tests::fuzz::once("grammar", input));
