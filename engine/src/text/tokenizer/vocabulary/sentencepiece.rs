//! A model of sentencepiece as a tokenizer.json.
//!
//! Normal pieces merge by score (BPE) or are chosen by it (unigram). Control pieces, bytes and the
//! unknown piece never come out of a text's letters; those that the user defined do, before all
//! else. Of a text sentencepiece prepares three things: characters are replaced by a trie in the
//! file, extra spaces dropped, and a space put in front.

use base64::Engine;
use serde_json::{Value, json};
use tokenizers::AddedToken;

use super::proto::{Kind, Model, Piece};
use super::{Algorithm, Bpe, TokenizerFile, Translation, Unigram, merges, tokens_by_text};
use crate::model::families::Vocabulary;

/// Sentencepiece's mark of a space.
const SPACE: &str = "▁";

/// Reads a file and says the same in other words.
pub(super) fn translate(
    bytes: &[u8],
    rules: Option<&Vocabulary>,
    config: &Value,
) -> Result<Translation, String> {
    let model = Model::read(bytes)?;
    check(&model)?;
    let first_space = FirstSpace::of(&model, config);
    let appended = super::appended(rules);
    let algorithm = match model.algorithm {
        1 => Algorithm::Unigram(unigram(&model)?),
        _ => Algorithm::Bpe(bpe(&model, &appended)?),
    };
    let file = TokenizerFile {
        version: "1.0",
        normalizer: normalizer(&model, first_space),
        pre_tokenizer: pre_tokenizer(&model),
        decoder: decoder(&model, first_space),
        model: algorithm,
    };
    let spoken = model.pieces.iter().filter(|piece| stands_for_itself(piece));
    let token = |piece: &Piece| {
        let special = piece.kind != Kind::UserDefined;
        // What the user defined ends no text: the one space in front has been put before it is found.
        let is_inside = !special && first_space != FirstSpace::Never;
        AddedToken::from(piece.text.as_str(), special).normalized(is_inside)
    };
    let named =
        [("unk", &model.unk), ("bos", &model.bos), ("eos", &model.eos), ("pad", &model.pad)];
    let is_special = |text: &str| {
        let kinds = [Kind::Control, Kind::Unknown];
        model.pieces.iter().any(|piece| piece.text == text && kinds.contains(&piece.kind))
    };
    let named = named.into_iter().filter(|(_, text)| is_special(text));
    Ok(Translation {
        added: spoken.map(token).chain(super::special_tokens(appended)).collect(),
        named: named.map(|(name, text)| (format!("{name}_token"), text.clone())).collect(),
        adds_bos: true,
        first_space: first_space == FirstSpace::Once,
        file,
    })
}

/// Refuses what no decoder-only model has, by name.
fn check(model: &Model) -> Result<(), String> {
    if model.pieces.is_empty() {
        return Err("has no tokens".into());
    }
    if !matches!(model.algorithm, 1 | 2) {
        return Err(format!(
            "model type {} is not supported (1: unigram, 2: BPE)",
            model.algorithm
        ));
    }
    if model.space_behind_words {
        return Err("treat_whitespace_as_suffix is not supported".into());
    }
    if !model.marks_spaces {
        return Err("escape_whitespaces = false is not supported".into());
    }
    let trie = model.replacements.split_at_checked(4);
    let trie_len = trie.map(|(len, _)| u32::from_le_bytes(len.try_into().unwrap_or_default()));
    let fits = trie.zip(trie_len).is_some_and(|((_, rest), len)| {
        len > 0 && len.is_multiple_of(4) && len as usize <= rest.len()
    });
    if !model.replacements.is_empty() && !fits {
        return Err("precompiled_charsmap is damaged".into());
    }
    Ok(())
}

/// Where a text gets a space in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FirstSpace {
    Never,
    /// At the beginning of a text, unless a special token stands there.
    Once,
    /// There and behind each special token: every part is a text of its own.
    Each,
}

impl FirstSpace {
    /// `legacy` of tokenizer_config.json decides, and files that do not say it are older than it.
    fn of(model: &Model, config: &Value) -> Self {
        if !model.adds_first_space || config["add_prefix_space"] == false {
            Self::Never
        } else if config["legacy"] == false && !model.drops_extra_spaces {
            Self::Once
        } else {
            Self::Each
        }
    }
}

/// Whether the piece is looked for in a text, rather than made of its characters. Runs of spaces
/// that the user defined are no part of a text as it comes: they are made by merges before all
/// others.
fn stands_for_itself(piece: &Piece) -> bool {
    match piece.kind {
        Kind::Control | Kind::Unknown => true,
        Kind::UserDefined => !piece.text.contains(SPACE),
        Kind::Normal | Kind::Unused | Kind::Byte => false,
    }
}

fn bpe(model: &Model, appended: &[String]) -> Result<Bpe, String> {
    let first = model.pieces.len() as u32;
    let mut ids = tokens_by_text(model.pieces.iter().map(|piece| piece.text.as_str()).zip(0..))?;
    let mut user_defined = Vec::new();
    let mut normal = Vec::new();
    for piece in &model.pieces {
        match piece.kind {
            Kind::Normal => normal.push(piece),
            Kind::UserDefined if !stands_for_itself(piece) => user_defined.push(piece),
            _ => {}
        }
    }
    // Stable: of equal scores the lower id comes first.
    normal.sort_by(|a, b| b.score.total_cmp(&a.score));
    user_defined.sort_by_key(|piece| std::cmp::Reverse(piece.text.chars().count()));
    let texts = |pieces: &[&Piece]| -> Vec<String> {
        pieces.iter().map(|piece| piece.text.clone()).collect()
    };
    let (normal, user_defined) = (texts(&normal), texts(&user_defined));
    let parts = tokens_by_text(normal.iter().map(String::as_str).zip(0..))?;
    let mut more_parts = parts.clone();
    more_parts.extend(user_defined.iter().cloned().zip(0..));
    let mut merged = merges(&user_defined, |part| more_parts.contains_key(part))?;
    merged.extend(merges(&normal, |part| parts.contains_key(part))?);
    // As in the code that came with such files, these win where the file has the same text.
    ids.extend(appended.iter().cloned().zip(first..));
    Ok(Bpe {
        unk_token: ids.contains_key(&model.unk).then(|| model.unk.clone()),
        fuse_unk: true,
        byte_fallback: model.byte_fallback,
        ignore_merges: false,
        vocab: ids,
        merges: merged,
    })
}

fn unigram(model: &Model) -> Result<Unigram, String> {
    tokens_by_text(model.pieces.iter().map(|piece| piece.text.as_str()).zip(0..))?;
    let unk_id = model.pieces.iter().position(|piece| piece.kind == Kind::Unknown);
    let unk_id = unk_id.ok_or("has no unknown token")?;
    let scores = model.pieces.iter().filter(|piece| piece.kind == Kind::Normal);
    let (least, most) = scores.fold((f64::MAX, f64::MIN), |(least, most), piece| {
        (least.min(piece.score.into()), most.max(piece.score.into()))
    });
    if least > most {
        return Err("has no normal tokens".into());
    }
    let score = |piece: &Piece| match piece.kind {
        // More than any way to spell it.
        Kind::UserDefined => piece.text.chars().count() as f64 * most - 0.1,
        Kind::Normal => piece.score.into(),
        Kind::Unknown | Kind::Control | Kind::Unused | Kind::Byte => least,
    };
    Ok(Unigram {
        unk_id: unk_id as u32,
        byte_fallback: model.byte_fallback,
        vocab: model.pieces.iter().map(|piece| (piece.text.clone(), score(piece))).collect(),
    })
}

/// Replacements are left to the `tokenizers` crate, which loses a mark that combines with a replaced
/// character where sentencepiece keeps it; so does transformers.
fn normalizer(model: &Model, first_space: FirstSpace) -> Value {
    let replace = |regex: &str, by: &str| json!({ "type": "Replace", "pattern": { "Regex": regex }, "content": by });
    let mut stages = Vec::new();
    if !model.replacements.is_empty() {
        let map = base64::engine::general_purpose::STANDARD.encode(&model.replacements);
        stages.push(json!({ "type": "Precompiled", "precompiled_charsmap": map }));
    }
    if model.drops_extra_spaces {
        stages.push(replace(r"\A +|[ ▁]+\z", ""));
        stages.push(replace(" {2,}", " "));
    }
    if first_space == FirstSpace::Each {
        stages.push(json!({ "type": "Prepend", "prepend": SPACE }));
    }
    stages.push(json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE }));
    json!({ "type": "Sequence", "normalizers": stages })
}

/// The unigram model would find a byte's token where a text spells it, `<0x41>`: a cut behind the
/// `<` keeps it from that. A merge never leads there.
fn pre_tokenizer(model: &Model) -> Value {
    if model.algorithm != 1 || !model.byte_fallback {
        return Value::Null;
    }
    json!({
        "type": "Split", "pattern": { "Regex": "<(?=0x[0-9A-F]{2}>)" },
        "behavior": "MergedWithPrevious", "invert": false,
    })
}

fn decoder(model: &Model, first_space: FirstSpace) -> Value {
    let mut stages =
        vec![json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " })];
    if model.byte_fallback {
        stages.push(json!({ "type": "ByteFallback" }));
    }
    stages.push(json!({ "type": "Fuse" }));
    let strip = match (model.drops_extra_spaces, first_space) {
        (true, _) => u32::MAX,
        (false, FirstSpace::Never) => 0,
        (false, FirstSpace::Once | FirstSpace::Each) => 1,
    };
    if strip > 0 {
        stages.push(json!({ "type": "Strip", "content": " ", "start": strip, "stop": 0 }));
    }
    json!({ "type": "Sequence", "decoders": stages })
}
