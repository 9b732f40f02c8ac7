//! What requests ask: prompts and output lengths, drawn from a seed before anything is sent.
//!
//! The four patterns follow those of `vllm bench serve`: lengths come from the same ranges, files
//! are filtered alike, but the drawn numbers are our own, since the generators differ. A dataset
//! must be complete before a run begins, so that making prompts never delays a request.

/// Random tokens.
pub mod random;

/// A file of conversations.
pub mod sharegpt;

/// A file with a prompt a line.
pub mod custom;

/// Random texts behind shared prefixes.
pub mod prefix_repetition;

/// Texts of a wanted number of tokens.
pub mod writer;

use anyhow::{Result, ensure};
use pagoda_engine::text::TextModel;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

use custom::Custom;
use prefix_repetition::PrefixRepetition;
use random::Random;
use sharegpt::Sharegpt;

/// What a request begins with.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// A text.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
    /// A chat, as the API writes it.
    Messages(Value),
}

/// One request to send.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// What it begins with.
    pub prompt: Prompt,
    /// Its tokens as far as this side knows; the server's usage wins.
    pub prompt_tokens: u32,
    /// Most tokens of its answer.
    pub output_tokens: u32,
}

/// Where samples come from.
#[derive(Clone, Debug)]
pub enum Dataset {
    /// Random tokens.
    Random(Random),
    /// A file of conversations.
    Sharegpt(Sharegpt),
    /// A file with a prompt a line.
    Custom(Custom),
    /// Random texts behind shared prefixes.
    PrefixRepetition(PrefixRepetition),
}

impl Dataset {
    /// `count` samples; fewer where the dataset says so. `text` is the model's tokenizer and chat
    /// template, if there is one.
    pub fn samples(
        &self,
        count: usize,
        text: Option<&TextModel>,
        random: &mut ChaCha8Rng,
    ) -> Result<Vec<Sample>> {
        let samples = match self {
            Dataset::Random(dataset) => dataset.samples(count, text, random),
            Dataset::Sharegpt(dataset) => dataset.samples(count, text, random),
            Dataset::Custom(dataset) => dataset.samples(count, text, random),
            Dataset::PrefixRepetition(dataset) => dataset.samples(count, text, random),
        }?;
        ensure!(!samples.is_empty(), "the dataset has no prompt that can be used");
        Ok(samples)
    }

    /// What stands in results beside the figures, so that nobody has to guess how lengths were
    /// drawn: bounds of ranges, seeds of texts.
    pub fn describe(&self, text: Option<&TextModel>) -> Result<Map<String, Value>> {
        let described = match self {
            Dataset::Random(dataset) => {
                let (input, output) = dataset.ranges(text)?;
                json!({
                    "name": "random", "prefix_len": dataset.prefix_len,
                    "input_len": [input.start(), input.end()],
                    "output_len": [output.start(), output.end()],
                    "tokens": if dataset.as_ids { "ids" } else { writer::kind(text) },
                })
            }
            Dataset::Sharegpt(dataset) => json!({
                "name": "sharegpt", "path": dataset.file.path, "output_len": dataset.output_len,
            }),
            Dataset::Custom(dataset) => json!({
                "name": "custom", "path": dataset.file.path, "output_len": dataset.output_len,
                "chat_template": dataset.renders(text),
            }),
            Dataset::PrefixRepetition(dataset) => json!({
                "name": "prefix_repetition", "num_prefixes": dataset.num_prefixes,
                "prefix_len": dataset.prefix_len, "suffix_len": dataset.suffix_len,
                "output_len": dataset.output_len, "tokens": writer::kind(text),
            }),
        };
        Ok(described.as_object().cloned().unwrap_or_default())
    }
}

/// A dataset in a file, and what to do when it is short.
#[derive(Clone, Debug)]
pub struct File {
    /// Where it is.
    pub path: std::path::PathBuf,
    /// Take its entries in another order.
    pub shuffle: bool,
    /// Send some of them again where there are too few.
    pub oversample: bool,
}

impl File {
    /// Adds samples that are there already until there are `count`.
    fn fill(&self, samples: &mut Vec<Sample>, count: usize, random: &mut ChaCha8Rng) {
        if !self.oversample || samples.len() >= count {
            return;
        }
        let missing = count - samples.len();
        let again: Vec<Sample> =
            (0..missing).filter_map(|_| samples.choose(random).cloned()).collect();
        samples.extend(again);
    }
}

#[cfg(test)]
mod tests;
