//! Quantized models through the loader: log-probabilities against a checkpoint whose weights are
//! what the quantized ones stand for, and the built-in model's sums.
//!
//! That checkpoint is written here, from the float64 statement of the formats, and runs in f32. What
//! remains between the two is the quantization of input rows, and nothing at all for fp8. (A golden's random
//! weights make its log-probabilities far more sensitive than a trained model's are.)

#![allow(clippy::unwrap_used, reason = "test code")]

use std::fs;
use std::path::Path;

use pagoda_engine::model::LoadOptions;
use pagoda_kernels::dtype::DType;
use pagoda_kernels::reference::quantized;
use pagoda_kernels::weight_format::Quantization;
use pagoda_tests::golden::{Golden, folder};
use pagoda_tests::logprobs::{distance, first_logprobs};
use pagoda_tests::sums::HeldOutSums;
use serde_json::json;
use tempfile::TempDir;

/// Tokens of a golden's prompt.
const LEN: usize = 200;

/// Whether a product takes the tensor: the definition in words of a checkpoint's names.
fn is_quantized(name: &str, is_tied: bool) -> bool {
    let is_table = name == "model.embed_tokens.weight";
    let is_router = name.ends_with("mlp.gate.weight");
    name.ends_with(".weight") && !name.contains("norm") && !is_router && (!is_table || is_tied)
}

/// A copy of a golden's checkpoint whose weights are what quantized ones stand for.
fn dequantized(case: &str, quantization: Quantization) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    let config = fs::read(folder(case).join("config.json")).unwrap();
    let fields: serde_json::Value = serde_json::from_slice(&config).unwrap();
    let is_tied = fields["tie_word_embeddings"].as_bool().unwrap();
    fs::write(copy.path().join("config.json"), config).unwrap();

    let bytes = fs::read(folder(case).join("model.safetensors")).unwrap();
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let head: serde_json::Value = serde_json::from_slice(&bytes[8..start]).unwrap();
    let (mut new_head, mut data) = (serde_json::Map::new(), Vec::new());
    let mut changed = 0;
    for (name, entry) in
        head.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__")
    {
        assert_eq!(entry["dtype"], "BF16", "{name}");
        let number = |value: &serde_json::Value| value.as_u64().unwrap() as usize;
        let offsets = &entry["data_offsets"];
        let stored = &bytes[start + number(&offsets[0])..start + number(&offsets[1])];
        let wide = |b: &[u8]| f64::from(f32::from_bits(u32::from_le_bytes([0, 0, b[0], b[1]])));
        let mut values: Vec<f64> = stored.chunks_exact(2).map(wide).collect();
        if is_quantized(name, is_tied) {
            let rows = values.chunks(number(&entry["shape"][1]));
            values = rows.flat_map(|row| quantized::row(row, quantization)).collect();
            changed += 1;
        }
        let begin = data.len();
        data.extend(values.iter().flat_map(|&value| (value as f32).to_le_bytes()));
        let shape = &entry["shape"];
        let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()] });
        new_head.insert(name.clone(), entry);
    }
    assert!(changed >= 7, "{case}: {changed} tensors");
    let new_head = serde_json::Value::from(new_head).to_string();
    let file = [&(new_head.len() as u64).to_le_bytes(), new_head.as_bytes(), &data].concat();
    fs::write(copy.path().join("model.safetensors"), file).unwrap();
    copy
}

/// Log-probabilities of a golden's first tokens by the checkpoint in `from`.
fn logprobs(case: &str, from: &Path, quantization: Option<Quantization>) -> Vec<f32> {
    let options =
        LoadOptions { kv_dtype: Some(DType::F32.into()), quantization, ..LoadOptions::default() };
    first_logprobs(&Golden::read(case).unwrap(), from, LEN, options)
}

#[test]
fn quantized_weights_give_the_logprobs_of_what_they_stand_for() {
    for case in ["qwen3", "llama2", "qwen3_moe"] {
        let plain = logprobs(case, &folder(case), None);
        for quantization in Quantization::ALL {
            let copy = dequantized(case, quantization);
            let want = logprobs(case, copy.path(), None);
            let got = logprobs(case, &folder(case), Some(quantization));
            let (rms, largest) = distance(&got, &want);
            let (moved, _) = distance(&plain, &want);
            println!(
                "{case:10} {quantization:?}: rms {rms:.5}, largest {largest:.5}; weights moved it by {moved:.5}"
            );
            // Rows of eight bits move a value as weights of eight bits do; with experts they may also
            // tip a choice, which moves it as far as another expert does.
            let is_moe = case == "qwen3_moe";
            let (rms_max, largest_max) = match quantization {
                Quantization::Fp8 => (1e-5, 1e-4),
                Quantization::Q8_0 | Quantization::Q4_0 if is_moe => (0.6, 4.0),
                Quantization::Q8_0 | Quantization::Q4_0 => (0.1, 0.5),
            };
            assert!(
                rms <= rms_max && largest <= largest_max,
                "{case} {quantization:?} {rms} {largest}"
            );
            // Other weights than these would show.
            if quantization == Quantization::Fp8 || quantization == Quantization::Q4_0 && !is_moe {
                assert!(moved > 4.0 * rms, "{case} {quantization:?}: {moved} and {rms}");
            }
        }
    }
}

#[test]
fn the_demo_model_still_adds_when_it_is_quantized() {
    let sums = HeldOutSums::read();
    let right = |quantization| sums.right(&LoadOptions { quantization, ..LoadOptions::default() });
    let plain = right(None);
    let counts = Quantization::ALL.map(|quantization| (quantization, right(Some(quantization))));
    println!("of {} sums bf16 gets {plain} right, {counts:?}", sums.len());
    assert!(plain * 100 >= sums.len() * 95, "{plain} of {}", sums.len());
    for (quantization, right) in counts {
        // Four bits are few for a model this small, and are not promised.
        let lost = match quantization {
            Quantization::Q8_0 => 2,
            Quantization::Fp8 => 4,
            Quantization::Q4_0 => sums.len() / 2,
        };
        assert!(right + lost >= plain, "{quantization:?}: {right}, plain {plain}");
    }
}
