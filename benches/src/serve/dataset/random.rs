//! Random prompts: lengths from a range around the wanted one, every token drawn on its own.
//!
//! Two prompts share no beginning except the wanted prefix, so a prefix cache gains nothing that was
//! not asked for. (Runs of following ids, which are drawn elsewhere, repeat in small vocabularies.)

use std::ops::RangeInclusive;

use anyhow::{Context, Result, ensure};
use pagoda_engine::text::TextModel;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::serve::dataset::{Prompt, Sample, writer};

/// Random tokens.
#[derive(Clone, Debug)]
pub struct Random {
    /// Prompt tokens without the prefix, in the middle of the range.
    pub input_len: u32,
    /// Output tokens, likewise.
    pub output_len: u32,
    /// Half the range's width, as a share of its middle: 0 to below 1.
    pub range_ratio: f64,
    /// Tokens that all prompts begin with.
    pub prefix_len: u32,
    /// Send ids rather than text.
    pub as_ids: bool,
}

impl Random {
    /// Prompt tokens without prefix, and output tokens, both ends included.
    pub fn ranges(
        &self,
        text: Option<&TextModel>,
    ) -> Result<(RangeInclusive<u32>, RangeInclusive<u32>)> {
        let ratio = self.range_ratio;
        ensure!((0.0..1.0).contains(&ratio), "--random-range-ratio must be in [0, 1)");
        let around = |middle: u32, least: u32| {
            let (low, high) =
                (f64::from(middle) * (1.0 - ratio), f64::from(middle) * (1.0 + ratio));
            (low.floor() as u32).max(least)..=(high.ceil() as u32).max(least)
        };
        let special = if self.as_ids { 0 } else { writer::special_tokens(text)? };
        let input = around(self.input_len.saturating_sub(special), 0);
        ensure!(
            self.prefix_len + input.start() >= 1,
            "--random-input-len is too small: with {special} special tokens and \
             --random-range-ratio {ratio} a prompt may have no token"
        );
        Ok((input, around(self.output_len, 1)))
    }

    pub(super) fn samples(
        &self,
        count: usize,
        text: Option<&TextModel>,
        random: &mut ChaCha8Rng,
    ) -> Result<Vec<Sample>> {
        let (input, output) = self.ranges(text)?;
        let lens: Vec<(u32, u32)> = (0..count)
            .map(|_| (random.random_range(input.clone()), random.random_range(output.clone())))
            .collect();
        let Some(text) = text else {
            ensure!(!self.as_ids, "--prompt-token-ids needs a --tokenizer");
            let prefix = writer::words(self.prefix_len, random);
            let sample = |(input, output_tokens): (u32, u32)| Sample {
                prompt: Prompt::Text(prefix.clone() + &writer::words(input, random)),
                prompt_tokens: self.prefix_len + input,
                output_tokens,
            };
            return Ok(lens.into_iter().map(sample).collect());
        };
        let allowed = writer::allowed_ids(text)?;
        let prefix = writer::draw(&allowed, self.prefix_len, random);
        let samples = lens.into_iter().map(|(input, output_tokens)| {
            let ids = [prefix.as_slice(), &writer::draw(&allowed, input, random)].concat();
            let (prompt, prompt_tokens) = if self.as_ids {
                let len = ids.len();
                (Prompt::Tokens(ids), len)
            } else {
                let (written, ids) = writer::exact_text(text, ids, &allowed, random)?;
                (Prompt::Text(written), ids.len())
            };
            let prompt_tokens = u32::try_from(prompt_tokens).context("a prompt is too long")?;
            Ok(Sample { prompt, prompt_tokens, output_tokens })
        });
        samples.collect()
    }
}
