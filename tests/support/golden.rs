//! The golden checkpoints of tests/goldens, and the comparison with what others compute from them.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::prompts::PromptValues;

/// Every case there is.
pub const CASES: [&str; 25] = [
    "llama2",
    "llama3",
    "llama_linear",
    "llama_dynamic",
    "llama_yarn",
    "llama_longrope",
    "mistral",
    "mixtral",
    "qwen",
    "qwen_long",
    "qwen2",
    "qwen2_window",
    "qwen3",
    "qwen3_moe",
    "qwen3_moe_sharded",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_nested",
    "phi3",
    "phi4_mini",
    "chatglm3",
    "glm4_first",
    "glm",
    "glm4",
];

/// Checkpoints whose files hold quantized weights; the values are of what those stand for.
pub const QUANTIZED_CASES: [&str; 7] =
    ["fp8_channel", "fp8_tensor", "fp8_block", "fp8_scale_inv", "awq", "gptq", "gptq_v2"];

/// Who computed a case's values.
pub fn computed_by(case: &str) -> &'static str {
    match case {
        "qwen" | "chatglm3" | "glm4_first" => "llama.cpp",
        "qwen_long" => "its authors' decoder",
        _ => "transformers",
    }
}

/// golden.json of a case; its README.md says what the fields mean.
#[derive(Debug, serde::Deserialize)]
pub struct Golden {
    /// The maximum model length to load with.
    pub max_model_len: u32,
    /// The prompt.
    pub tokens: Vec<u32>,
    /// `[i]`: log-probability of token i + 1 after tokens up to i.
    pub target_logprobs: Vec<f32>,
    /// The most probable next tokens after some prefixes.
    pub top20: Vec<Top>,
}

/// The most probable next tokens after the first `length` tokens.
#[derive(Debug, serde::Deserialize)]
pub struct Top {
    /// Tokens of the prefix.
    pub length: usize,
    /// Token ids.
    pub ids: Vec<u32>,
    /// Their log-probabilities.
    pub logprobs: Vec<f32>,
}

/// The folder of a case.
pub fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens").join(case)
}

impl Golden {
    /// Reads golden.json of a case.
    pub fn read(case: &str) -> anyhow::Result<Self> {
        let path = folder(case).join("golden.json");
        let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// Lengths after which the most probable tokens are known.
    pub fn lengths(&self) -> Vec<usize> {
        self.top20.iter().map(|top| top.length).collect()
    }

    /// The largest distance between any value here and in `values`, which come from a prefix of
    /// the prompt. Fails when a value is missing or not a number.
    pub fn distance(&self, values: &PromptValues) -> anyhow::Result<f32> {
        let mut largest = 0f32;
        let mut compare = |wanted: f32, got: f32| {
            let distance = (wanted - got).abs();
            anyhow::ensure!(distance.is_finite(), "{got} instead of {wanted}");
            largest = largest.max(distance);
            Ok(())
        };
        // No token follows the last of a prefix, so the last value there is of no use.
        let followed = values.targets.split_last().map_or(&[][..], |(_, followed)| followed);
        for (wanted, got) in self.target_logprobs.iter().zip(followed) {
            compare(*wanted, *got)?;
        }
        let is_within = |top: &&Top| top.length <= values.targets.len();
        for top in self.top20.iter().filter(is_within) {
            let got = values.tops.get(&top.length).context("a top list is missing")?;
            for (id, wanted) in top.ids.iter().zip(&top.logprobs) {
                let found = got.iter().find(|(token, _)| token == id);
                compare(*wanted, found.context("a token is missing in the top list")?.1)?;
            }
        }
        Ok(largest)
    }
}
