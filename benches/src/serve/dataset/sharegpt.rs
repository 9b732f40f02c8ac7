//! A file of conversations (ShareGPT): the first turn asks, the length of the second is wanted.
//!
//! Left out, as everywhere: conversations of one turn, prompts of fewer than 4 or more than 1024
//! tokens, answers of fewer than 4, and both together above 2048.

use anyhow::{Context, Result};
use pagoda_engine::text::TextModel;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use crate::serve::dataset::{File, Prompt, Sample};

const TOKENS_MIN: usize = 4;
const PROMPT_TOKENS_MAX: usize = 1024;
const TOTAL_TOKENS_MAX: usize = 2048;

/// A file of conversations.
#[derive(Clone, Debug)]
pub struct Sharegpt {
    /// The file.
    pub file: File,
    /// Output tokens, instead of the answer's.
    pub output_len: Option<u32>,
}

#[derive(Deserialize)]
struct Conversation {
    #[serde(default)]
    conversations: Vec<Turn>,
}

#[derive(Deserialize)]
struct Turn {
    value: String,
}

impl Sharegpt {
    pub(super) fn samples(
        &self,
        count: usize,
        text: Option<&TextModel>,
        random: &mut ChaCha8Rng,
    ) -> Result<Vec<Sample>> {
        let text = text.context("conversations are chosen by their tokens: give a --tokenizer")?;
        let path = &self.file.path;
        let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let entries: Vec<Conversation> = serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is no file of conversations", path.display()))?;
        let mut entries: Vec<Conversation> =
            entries.into_iter().filter(|entry| entry.conversations.len() >= 2).collect();
        if self.file.shuffle {
            entries.shuffle(random);
        }
        let mut samples = Vec::new();
        for entry in entries {
            if samples.len() == count {
                break;
            }
            samples.extend(self.sample(entry, text)?);
        }
        self.file.fill(&mut samples, count, random);
        Ok(samples)
    }

    fn sample(&self, entry: Conversation, text: &TextModel) -> Result<Option<Sample>> {
        let mut turns = entry.conversations.into_iter();
        let Some((first, second)) = turns.next().zip(turns.next()) else { return Ok(None) };
        let prompt_tokens = text.tokenizer.encode(&first.value, true)?.len();
        let output_tokens = match self.output_len {
            Some(len) => len as usize,
            None => text.tokenizer.encode(&second.value, true)?.len(),
        };
        let fits = prompt_tokens >= TOKENS_MIN
            && (output_tokens >= TOKENS_MIN || self.output_len.is_some())
            && prompt_tokens <= PROMPT_TOKENS_MAX
            && prompt_tokens + output_tokens <= TOTAL_TOKENS_MAX;
        Ok(fits.then_some(Sample {
            prompt: Prompt::Text(first.value),
            prompt_tokens: u32::try_from(prompt_tokens)?,
            output_tokens: u32::try_from(output_tokens)?,
        }))
    }
}
