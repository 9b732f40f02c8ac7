//! A golden's log-probabilities in f32 through the loader under other settings, and how far two runs lie
//! apart. Says nothing of how far they may.

use std::path::Path;

use pagoda_engine::memory::KvBudget;
use pagoda_engine::model::{LoadOptions, ModelSource, load};
use pagoda_kernels::dtype::DType;

use crate::golden::Golden;
use crate::prompts::PromptRun;

/// Tokens that come one by one after the chunks, as decoded ones do.
const TAIL: usize = 20;

/// Log-probabilities of the first `len` tokens but one by the checkpoint in `from`, in chunks with a tail that is
/// decoded.
pub fn first_logprobs(golden: &Golden, from: &Path, len: usize, options: LoadOptions) -> Vec<f32> {
    let options = LoadOptions {
        dtype: Some(DType::F32),
        max_model_len: Some(golden.max_model_len),
        max_num_seqs: Some(128),
        max_num_batched_tokens: Some(128),
        kv: KvBudget::Bytes(64 << 20),
        ..options
    };
    let mut model = load(&ModelSource::Folder(from.to_owned()), &options, &|_| ()).unwrap();
    let prompts = vec![&golden.tokens[..len]];
    let chunked = len - TAIL;
    let chunk =
        |done: usize| if done < chunked { [97, 1, 82][done % 3].min(chunked - done) } else { 1 };
    let run = PromptRun { prompts, chunk: &chunk, lengths: &[], last_position_shift: 0 };
    let mut values = run.run(model.runner.as_mut(), &model.info).unwrap();
    let mut targets = values.remove(0).targets;
    assert_eq!(targets.len(), len);
    targets.pop();
    targets
}

/// Root mean square and largest of the differences.
pub fn distance(a: &[f32], b: &[f32]) -> (f64, f64) {
    let differences = a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs()));
    let (sum, largest) = differences.fold((0.0, 0.0), |(sum, largest): (f64, f64), difference| {
        assert!(difference.is_finite());
        (sum + difference * difference, largest.max(difference))
    });
    ((sum / a.len() as f64).sqrt(), largest)
}
