//! KV caches of every format through the loader: how far they move the goldens' log-probabilities
//! from those over an f32 cache, and the built-in model's sums.
//!
//! (A golden's random weights make its log-probabilities far more sensitive than a trained model's are.)

#![allow(clippy::unwrap_used, reason = "test code")]

use pagoda_engine::memory::KvBudget;
use pagoda_engine::model::{LoadOptions, ModelSource, load};
use pagoda_kernels::dtype::DType;
use pagoda_kernels::kv_format::KvFormat;
use pagoda_tests::golden::{CASES, Golden, folder};
use pagoda_tests::prompts::PromptRun;
use pagoda_tests::sums::HeldOutSums;

/// Tokens of a golden's prompt.
const LEN: usize = 300;

/// Log-probabilities of a golden's first tokens, in chunks with a tail that is decoded.
fn logprobs(case: &str, kv_dtype: KvFormat) -> Vec<f32> {
    let golden = Golden::read(case).unwrap();
    let options = LoadOptions {
        dtype: Some(DType::F32),
        kv_dtype: Some(kv_dtype),
        max_model_len: Some(golden.max_model_len),
        max_num_seqs: Some(128),
        max_num_batched_tokens: Some(128),
        kv: KvBudget::Bytes(64 << 20),
        ..LoadOptions::default()
    };
    let mut model = load(&ModelSource::Folder(folder(case)), &options, &|_| ()).unwrap();
    let prompts = vec![&golden.tokens[..LEN]];
    let chunk = |done: usize| if done < 280 { [97, 1, 82][done % 3].min(280 - done) } else { 1 };
    let run = PromptRun { prompts, chunk: &chunk, lengths: &[], last_position_shift: 0 };
    let mut values = run.run(model.runner.as_mut(), &model.info).unwrap();
    let mut targets = values.remove(0).targets;
    assert_eq!(targets.len(), LEN);
    targets.pop();
    targets
}

/// Root mean square and largest of the differences.
fn distance(a: &[f32], b: &[f32]) -> (f64, f64) {
    let differences = a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs()));
    let (sum, largest) = differences.fold((0.0, 0.0), |(sum, largest): (f64, f64), difference| {
        assert!(difference.is_finite());
        (sum + difference * difference, largest.max(difference))
    });
    ((sum / a.len() as f64).sqrt(), largest)
}

#[test]
fn a_cache_of_eight_bits_moves_logprobs_by_no_more_than_its_bound() {
    for case in CASES {
        let wide = logprobs(case, DType::F32.into());
        let [fp8, bf16] = [KvFormat::Fp8, DType::Bf16.into()]
            .map(|format| distance(&logprobs(case, format), &wide));
        println!("{case:18} rms and largest: fp8 {fp8:.4?}, bf16 {bf16:.4?}");
        let (rms, largest) = fp8;
        if case.starts_with("qwen3_moe") {
            // A choice of experts may tip, which moves a value as far as another expert does.
            assert!(rms <= 0.6 && largest <= 4.0, "{case}: {fp8:?}");
            continue;
        }
        assert!(rms <= 0.12 && largest <= 0.8, "{case}: {fp8:?}");
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
