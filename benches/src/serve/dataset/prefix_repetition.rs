//! Random texts behind a few random prefixes, shuffled: what a prefix cache is for.

use anyhow::{Context, Result, ensure};
use pagoda_engine::text::TextModel;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::serve::dataset::{Prompt, Sample, writer};

/// Random texts behind shared prefixes.
#[derive(Clone, Debug)]
pub struct PrefixRepetition {
    /// Tokens of a prefix.
    pub prefix_len: u32,
    /// Tokens behind it.
    pub suffix_len: u32,
    /// How many prefixes there are.
    pub num_prefixes: usize,
    /// Output tokens.
    pub output_len: u32,
    /// Mix prompts of different prefixes.
    pub shuffle: bool,
}

impl PrefixRepetition {
    /// `count` rounded down to a multiple of the prefixes.
    pub(super) fn samples(
        &self,
        count: usize,
        text: Option<&TextModel>,
        random: &mut ChaCha8Rng,
    ) -> Result<Vec<Sample>> {
        let num_prefixes = self.num_prefixes;
        ensure!(
            num_prefixes > 0 && count >= num_prefixes,
            "--num-prompts ({count}) must be at least --prefix-repetition-num-prefixes \
             ({num_prefixes}), and that at least 1"
        );
        let allowed = text.map(writer::allowed_ids).transpose()?;
        let mut samples = Vec::with_capacity(count);
        for _ in 0..num_prefixes {
            let prefix = Piece::new(self.prefix_len, text, allowed.as_deref(), random)?;
            for _ in 0..count / num_prefixes {
                let suffix = Piece::new(self.suffix_len, text, allowed.as_deref(), random)?;
                samples.push(prefix.and(&suffix, text, self.output_len)?);
            }
        }
        if self.shuffle {
            samples.shuffle(random);
        }
        Ok(samples)
    }
}

/// Part of a prompt.
enum Piece {
    Ids(Vec<u32>),
    Words(String, u32),
}

impl Piece {
    fn new(
        len: u32,
        text: Option<&TextModel>,
        allowed: Option<&[u32]>,
        random: &mut ChaCha8Rng,
    ) -> Result<Self> {
        let Some((text, allowed)) = text.zip(allowed) else {
            return Ok(Piece::Words(writer::words(len, random), len));
        };
        let ids = writer::draw(allowed, len, random);
        Ok(Piece::Ids(writer::exact_text(text, ids, allowed, random)?.1))
    }

    fn and(&self, other: &Piece, text: Option<&TextModel>, output_tokens: u32) -> Result<Sample> {
        let (prompt, prompt_tokens) = match (self, other, text) {
            (Piece::Ids(first), Piece::Ids(second), Some(text)) => {
                let ids = [first.as_slice(), second].concat();
                (text.tokenizer.decode(&ids, false), u32::try_from(ids.len())?)
            }
            (Piece::Words(first, one), Piece::Words(second, two), _) => {
                (first.clone() + second, one + two)
            }
            _ => None.context("pieces of one prompt are of one kind")?,
        };
        Ok(Sample { prompt: Prompt::Text(prompt), prompt_tokens, output_tokens })
    }
}
