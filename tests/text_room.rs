//! What tokenizing takes in memory is within what the longest text is bounded by.
//!
//! Reads the peak of the whole process, so it is one test alone in its process.

#![cfg(target_os = "linux")]

use std::path::PathBuf;

use pagoda_engine::text::TextModel;
use pagoda_engine::text::tokenizer::length::ENCODING_BYTES;

/// A number of bytes in the kernel's account of this process.
fn status_bytes(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(key))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
}

#[test]
fn tokenizing_takes_no_more_than_its_bound() {
    // The first is the one that takes most: what it gives back may serve the others.
    let cases = [
        ("llama3", "1 "),
        ("llama3", "a "),
        ("llama2", " "),
        ("llama2", "word "),
        ("qwen3", "a\u{301}"),
        ("qwen3", "="),
        ("gemma_spm", "word "),
        ("unigram_spm", "word "),
        ("qwen1", "a\u{301}"),
    ];
    let mut closest = 0.0_f64;
    for (folder, unit) in cases {
        let goldens = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("goldens/tokenizers");
        let tokenizer = TextModel::from_folder(&goldens.join(folder), &[]).unwrap().tokenizer;
        let text = unit.repeat((1 << 19) / unit.len());
        // Lets the peak begin anew.
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        let before = status_bytes("VmRSS").unwrap();
        tokenizer.encode(&text, false).unwrap();
        let taken = status_bytes("VmHWM").unwrap() - before;
        let share = taken as f64 / (text.len() * ENCODING_BYTES) as f64;
        assert!(share <= 1.0, "{folder} {unit:?}: {share} of the bound");
        closest = closest.max(share);
    }
    assert!(closest > 0.5, "the bound is far more than what is taken: {closest}");
}
