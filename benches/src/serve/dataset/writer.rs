//! Texts of a wanted number of tokens.
//!
//! With a tokenizer: decoded ids, encoded again, cut or continued until the count holds, since two
//! tokens side by side may be one or three in the text that they make. Without: common words, of
//! which nearly every vocabulary has each as one token; the server's usage then tells what they were.

use anyhow::{Context, Result, ensure};
use pagoda_engine::text::TextModel;
use rand::RngExt;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

/// How often a text is mended before it is taken as it is.
const TRIES: usize = 20;

/// Of which random texts are made where there is no tokenizer.
const WORDS: [&str; 64] = [
    " the", " of", " and", " to", " in", " is", " that", " for", " it", " as", " was", " with",
    " be", " by", " on", " not", " he", " his", " but", " at", " are", " this", " have", " from",
    " or", " had", " an", " they", " which", " one", " you", " were", " all", " her", " she",
    " there", " would", " their", " we", " him", " been", " has", " when", " who", " will", " no",
    " more", " if", " out", " so", " up", " said", " what", " its", " about", " than", " into",
    " them", " can", " only", " other", " time", " new", " some",
];

/// Ids that random prompts are made of: all that are text, each on its own. A part of a character
/// would become another, of other tokens.
pub fn allowed_ids(text: &TextModel) -> Result<Vec<u32>> {
    let tokenizer = &text.tokenizer;
    let is_text = |&id: &u32| {
        let bytes = tokenizer.token_bytes(id);
        !bytes.is_empty() && !tokenizer.is_special(id) && std::str::from_utf8(bytes).is_ok()
    };
    let ids: Vec<u32> = (0..tokenizer.vocab_size()).filter(is_text).collect();
    ensure!(!ids.is_empty(), "the tokenizer has no tokens of text");
    Ok(ids)
}

/// Tokens that the model's tokenizer adds to every text, which a server adds to prompts.
pub fn special_tokens(text: Option<&TextModel>) -> Result<u32> {
    let Some(text) = text else { return Ok(0) };
    let ids = text.tokenizer.encode("", true).context("the tokenizer cannot encode nothing")?;
    Ok(u32::try_from(ids.len())?)
}

/// What `--random-…-len` counts, for results.
pub fn kind(text: Option<&TextModel>) -> &'static str {
    if text.is_some() { "text" } else { "words" }
}

/// `count` ids drawn from `allowed`.
pub fn draw(allowed: &[u32], count: u32, random: &mut ChaCha8Rng) -> Vec<u32> {
    (0..count).map(|_| allowed[random.random_range(0..allowed.len())]).collect()
}

/// `count` common words.
pub fn words(count: u32, random: &mut ChaCha8Rng) -> String {
    (0..count).filter_map(|_| WORDS.choose(random).copied()).collect()
}

/// The text of `ids` and its own ids, of which there are `ids.len()` where the tokenizer lets them.
pub fn exact_text(
    text: &TextModel,
    mut ids: Vec<u32>,
    allowed: &[u32],
    random: &mut ChaCha8Rng,
) -> Result<(String, Vec<u32>)> {
    let wanted = ids.len();
    let mut tries = TRIES;
    loop {
        let written = text.tokenizer.decode(&ids, false);
        ids = text.tokenizer.encode(&written, false)?;
        if ids.len() == wanted || tries == 0 {
            return Ok((written, ids));
        }
        tries -= 1;
        ids.truncate(wanted);
        let missing = u32::try_from(wanted - ids.len())?;
        ids.extend(draw(allowed, missing, random));
    }
}
