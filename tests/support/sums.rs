//! Sums that were held out from the built-in model's training, and how many a model gets right.

use std::path::Path;

use pagoda_engine::memory::KvBudget;
use pagoda_engine::model::{LoadOptions, ModelSource, load};

use crate::answers::{answers, demo_prompt, demo_text};

/// Questions with their answers.
#[derive(Debug)]
pub struct HeldOutSums(Vec<(String, String)>);

impl HeldOutSums {
    /// All of them. Panics if there are too few to tell anything.
    pub fn read() -> Self {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/demo/heldout.jsonl");
        let text = std::fs::read_to_string(file).unwrap();
        let cases =
            text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let sums = cases.filter(|case| case["task"] == "add" || case["task"] == "sub");
        let text = |value: &serde_json::Value| value.as_str().unwrap().trim().to_owned();
        let sums: Vec<_> = sums
            .filter(|case| case["messages"].as_array().unwrap().len() == 1)
            .map(|case| (text(&case["messages"][0]["content"]), text(&case["expected"])))
            .collect();
        assert!(sums.len() >= 30, "too few to tell");
        HeldOutSums(sums)
    }

    /// How many there are.
    #[expect(clippy::len_without_is_empty, reason = "there are always some")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// How many the built-in model gets right when it is loaded with `options`, many at once.
    pub fn right(&self, options: &LoadOptions) -> usize {
        let options = LoadOptions {
            max_model_len: Some(256),
            max_num_seqs: Some(16),
            max_num_batched_tokens: Some(128),
            kv: KvBudget::Bytes(16 << 20),
            ..options.clone()
        };
        let loaded = load(&ModelSource::Demo, &options, &|_| ()).unwrap();
        let text = demo_text(&loaded.files);
        let prompts: Vec<_> =
            self.0.iter().map(|(question, _)| demo_prompt(&text, question)).collect();
        let given = answers(loaded, &prompts, 24);
        let is_right = |(tokens, (_, expected)): &(&Vec<u32>, &(String, String))| {
            text.tokenizer.decode(tokens, true).trim() == expected
        };
        given.iter().zip(&self.0).filter(is_right).count()
    }
}
