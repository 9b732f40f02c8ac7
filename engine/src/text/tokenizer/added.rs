//! Tokens that stand for themselves in a text, and those that frame a prompt.
//!
//! At load only: what tokenizer_config.json says of tokens is put into the tokenizer. Entries that
//! contradict the vocabulary are errors; names of tokens that it lacks are left alone.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokenizers::{AddedToken, PostProcessorWrapper};

use super::TokenizerError;

/// Adds the tokens that only `added_tokens_decoder` lists, in the order of their ids.
pub(super) fn add_missing_tokens(
    inner: &mut tokenizers::Tokenizer,
    config: &Value,
) -> Result<(), TokenizerError> {
    let Some(listed) = config["added_tokens_decoder"].as_object() else { return Ok(()) };
    let mut missing = Vec::new();
    for (id, entry) in listed {
        let bad = || TokenizerError::Config(format!("added_tokens_decoder[{id:?}] is damaged"));
        let number: u32 = id.parse().map_err(|_| bad())?;
        let content = entry["content"].as_str().ok_or_else(bad)?;
        if inner.token_to_id(content).is_none() {
            missing.push((number, with_flags(AddedToken::from(content, false), entry)));
        }
    }
    missing.sort_by_key(|(id, _)| *id);
    let (ids, tokens): (Vec<u32>, Vec<AddedToken>) = missing.into_iter().unzip();
    // All at once: each call looks at every token that there is.
    inner.add_tokens(&tokens);
    for (id, AddedToken { content, .. }) in ids.into_iter().zip(tokens) {
        if inner.token_to_id(&content) != Some(id) {
            let what = format!("added token {content:?} cannot have the id {id}");
            return Err(TokenizerError::Config(what));
        }
    }
    Ok(())
}

/// Adds tokens with the flags that `added_tokens_decoder` has for them, and those of its entries that
/// the vocabulary knows as text. Tokens that the vocabulary lacks get the next ids. Those of the file
/// are looked for in a text as it came, whatever it says of that: so did the code of its time.
pub(super) fn add_with_flags(
    inner: &mut tokenizers::Tokenizer,
    tokens: Vec<AddedToken>,
    config: &Value,
) {
    let listed = config["added_tokens_decoder"].as_object();
    let listed = listed.into_iter().flat_map(|listed| listed.values());
    let mut entries: BTreeMap<&str, &Value> =
        listed.filter_map(|entry| Some((entry["content"].as_str()?, entry))).collect();
    let mut flagged = Vec::with_capacity(tokens.len() + entries.len());
    for token in tokens {
        flagged.push(match entries.remove(token.content.as_str()) {
            Some(entry) => {
                let is_word = token.single_word;
                let token = with_flags(token, entry);
                // What looks like a word is not looked for inside others, whatever the file says.
                let single_word = is_word || token.single_word;
                token.single_word(single_word).normalized(false)
            }
            None => token,
        });
    }
    for (content, entry) in entries {
        if inner.token_to_id(content).is_some() {
            flagged.push(with_flags(AddedToken::from(content, false), entry).normalized(false));
        }
    }
    inner.add_tokens(&flagged);
}

fn with_flags(token: AddedToken, entry: &Value) -> AddedToken {
    let flag = |key: &str, absent: bool| entry[key].as_bool().unwrap_or(absent);
    let special = flag("special", false);
    AddedToken::from(token.content, special)
        .single_word(flag("single_word", false))
        .lstrip(flag("lstrip", false))
        .rstrip(flag("rstrip", false))
        .normalized(flag("normalized", !special))
}

/// `bos_token`, `eos_token`, …: each a string or an object with `content`.
pub(super) fn named_tokens(config: &Value) -> BTreeMap<String, String> {
    let entries = config.as_object().into_iter().flatten();
    entries
        .filter(|(key, _)| key.ends_with("_token"))
        .filter_map(|(key, value)| Some((key.clone(), content(value)?)))
        .collect()
}

/// `additional_special_tokens`, each written in the same ways.
pub(super) fn additional_special_tokens(config: &Value) -> Vec<String> {
    let list = config["additional_special_tokens"].as_array().into_iter().flatten();
    list.filter_map(content).collect()
}

fn content(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

/// Makes tokens special that the tokenizer knows as text.
pub(super) fn mark_special<'a>(
    inner: &mut tokenizers::Tokenizer,
    tokens: impl Iterator<Item = &'a String>,
) {
    let is_text = |token: &&String| {
        let known = inner.token_to_id(token).is_some();
        known && !inner.get_added_vocabulary().is_special_token(token)
    };
    let tokens = tokens.filter(is_text).map(|token| AddedToken::from(token.as_str(), true));
    let tokens: Vec<AddedToken> = tokens.collect();
    inner.add_special_tokens(&tokens);
}

/// All tokens that stand for themselves in a text as it came.
pub(super) fn texts(inner: &tokenizers::Tokenizer) -> Vec<String> {
    let added = inner.get_added_tokens_decoder();
    added.values().filter(|token| !token.normalized).map(|token| token.content.clone()).collect()
}

/// What is put before and behind a prompt that asks for special tokens: `begin`, or else the begin
/// token, and the end token if tokenizer_config.json wants it.
pub(super) fn frame_prompts(
    inner: &mut tokenizers::Tokenizer,
    begin: &[&str],
    named: &BTreeMap<String, String>,
    adds_bos: bool,
    config: &Value,
) {
    let wants = |key: &str, absent: bool| config[key].as_bool().unwrap_or(absent);
    let named = |key: &str| named.get(key).map(String::as_str);
    let bos = named("bos_token").filter(|_| begin.is_empty() && wants("add_bos_token", adds_bos));
    let eos = named("eos_token").filter(|_| wants("add_eos_token", false));
    let known = |token: &&str| inner.token_to_id(token).is_some();
    let before: Vec<&str> = begin.iter().copied().chain(bos).filter(known).collect();
    let behind: Vec<&str> = eos.into_iter().filter(known).collect();
    let special = |token: &&str| json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let text = |name: &str| json!({ "Sequence": { "id": name, "type_id": 0 } });
    let frame = |texts: &[&str]| -> Vec<Value> {
        let texts = texts.iter().map(|name| text(name));
        before.iter().map(special).chain(texts).chain(behind.iter().map(special)).collect()
    };
    let ids: serde_json::Map<String, Value> = before
        .iter()
        .chain(&behind)
        .map(|token| {
            let ids: Vec<u32> = inner.token_to_id(token).into_iter().collect();
            (token.to_string(), json!({ "id": token, "ids": ids, "tokens": [token] }))
        })
        .collect();
    let frame = json!({
        "type": "TemplateProcessing", "single": frame(&["A"]), "pair": frame(&["A", "B"]),
        "special_tokens": ids,
    });
    let processor: Option<PostProcessorWrapper> = serde_json::from_value(frame).ok();
    inner.with_post_processor(processor);
}
