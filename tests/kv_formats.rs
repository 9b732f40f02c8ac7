//! KV caches of every format through the loader: how far they move the goldens' log-probabilities
//! from those over an f32 cache, and the built-in model's sums.
//!
//! (A golden's random weights make its log-probabilities far more sensitive than a trained model's are.)

#![allow(clippy::unwrap_used, reason = "test code")]

use pagoda_engine::model::config::ModelConfig;
use pagoda_engine::model::files::Checkpoint;
use pagoda_engine::model::{LoadOptions, ModelSource};
use pagoda_kernels::dtype::DType;
use pagoda_kernels::kv_format::KvFormat;
use pagoda_tests::golden::{CASES, Golden, folder};
use pagoda_tests::logprobs::{distance, first_logprobs};
use pagoda_tests::sums::HeldOutSums;

/// Tokens of a golden's prompt.
const LEN: usize = 300;

/// Log-probabilities of a golden's first tokens over a cache of this format.
fn logprobs(case: &str, kv_dtype: KvFormat) -> Vec<f32> {
    let options = LoadOptions { kv_dtype: Some(kv_dtype), ..LoadOptions::default() };
    first_logprobs(&Golden::read(case).unwrap(), &folder(case), LEN, options)
}

fn read_config(case: &str) -> ModelConfig {
    Checkpoint::open(&ModelSource::Folder(folder(case))).unwrap().config
}

#[test]
fn a_cache_of_eight_bits_moves_logprobs_by_no_more_than_its_bound() {
    for case in CASES {
        let wide = logprobs(case, DType::F32.into());
        let [fp8, bf16] = [KvFormat::Fp8, DType::Bf16.into()]
            .map(|format| distance(&logprobs(case, format), &wide));
        println!("{case:18} rms and largest: fp8 {fp8:.4?}, bf16 {bf16:.4?}");
        let (rms, largest) = fp8;
        if case.starts_with("qwen3_moe") || case == "mixtral" {
            // A choice of experts may tip, which moves a value as far as another expert does.
            assert!(rms <= 0.6 && largest <= 4.0, "{case}: {fp8:?}");
            continue;
        }
        // Errors of more layers add up, as those of chance do.
        let layers = read_config(case).num_layers as f64;
        let growth = (layers / 3.0).sqrt().max(1.0);
        assert!(rms <= 0.16 * growth && largest <= growth, "{case}: {fp8:?}");
        // Four bits of precision fewer than bf16: sixteen times its errors, no more and no less.
        assert!((8.0..32.0).contains(&(rms / bf16.0)), "{case}: {fp8:?} and {bf16:?}");
    }
}

#[test]
fn the_demo_model_adds_with_a_cache_of_eight_bits_as_well_as_with_sixteen() {
    let sums = HeldOutSums::read();
    let right = |kv_dtype: KvFormat| {
        sums.right(&LoadOptions { kv_dtype: Some(kv_dtype), ..LoadOptions::default() })
    };
    let (plain, fp8) = (right(DType::Bf16.into()), right(KvFormat::Fp8));
    println!("of {} sums a bf16 cache gets {plain} right, fp8 {fp8}", sums.len());
    assert!(plain * 100 >= sums.len() * 95, "{plain} of {}", sums.len());
    assert!(fp8 >= plain, "{fp8}, plain {plain}");
}
