//! README.md's table of families, written from what the tests have of each.
//!
//! A row names a family as people do. Every architecture that the engine knows is in one row; every
//! row has goldens, which `goldens.rs` holds it to, and strings and chats of `tests/goldens/tokenizers`,
//! which it is held to here, by the rules of its own table. The table in README.md must be the one
//! made here: `PAGODA_WRITE=1 cargo nextest run -p pagoda-tests --test families_table` writes it anew.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use pagoda_engine::model::families::{self, Dialect};
use pagoda_engine::text::{Chat, ChatTemplate, Content, Message, TemplateError, TextModel};
use pagoda_tests::golden::{CASES, computed_by, folder};
use serde_json::{Map, Value, json};

/// A row: what people call it, its architectures, and what its tokenizers and templates are held to.
struct Row {
    family: &'static str,
    architectures: &'static [&'static str],
    /// Folders of tests/goldens/tokenizers with a tokenizer of its kind.
    tokenizers: &'static [&'static str],
    /// Those with a template of its kind, and the engine's own templates.
    templates: &'static [&'static str],
}

const fn row(
    family: &'static str,
    architectures: &'static [&'static str],
    tokenizers: &'static [&'static str],
    templates: &'static [&'static str],
) -> Row {
    Row { family, architectures, tokenizers, templates }
}

const ROWS: &[Row] = &[
    row(
        "Llama 2, 3",
        &["LlamaForCausalLM"],
        &["llama2", "llama2_spm", "llama3"],
        &["llama2", "llama2.jinja", "llama3"],
    ),
    row("Mistral", &["MistralForCausalLM"], &["llama2_spm"], &["mistral.jinja"]),
    row("Mixtral", &["MixtralForCausalLM"], &["llama2_spm"], &["mistral.jinja"]),
    row("Qwen (first)", &["QWenLMHeadModel"], &["qwen1"], &["qwen.jinja"]),
    row("Qwen2, Qwen2.5", &["Qwen2ForCausalLM"], &["qwen2.5"], &["qwen2.5", "chatml.jinja"]),
    row("Qwen3", &["Qwen3ForCausalLM"], &["qwen3"], &["qwen3", "chatml.jinja"]),
    row("Qwen3-MoE", &["Qwen3MoeForCausalLM"], &["qwen3"], &["qwen3", "chatml.jinja"]),
    row("Gemma", &["GemmaForCausalLM"], &["gemma_spm"], &["gemma.jinja"]),
    row("Gemma 2", &["Gemma2ForCausalLM"], &["gemma_spm"], &["gemma.jinja"]),
    row(
        "Gemma 3 (text)",
        &["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"],
        &["gemma_spm"],
        &["gemma3.jinja"],
    ),
    row("Phi-3, Phi-4", &["Phi3ForCausalLM"], &["phi3_spm"], &["phi3.jinja"]),
    row(
        "ChatGLM3, GLM-4 (first)",
        &["ChatGLMModel", "ChatGLMForConditionalGeneration"],
        &["chatglm3", "glm4"],
        &["chatglm3.jinja", "glm4.jinja"],
    ),
    row("GLM-4", &["GlmForCausalLM"], &["glm4"], &["glm4.jinja"]),
    row("GLM-4-0414", &["Glm4ForCausalLM"], &["glm4"], &["glm4.jinja"]),
];

/// Golden cases by the architecture that their files name.
fn goldens() -> BTreeMap<String, Vec<&'static str>> {
    let mut cases: BTreeMap<String, Vec<&'static str>> = BTreeMap::new();
    for case in CASES {
        let config = fs::read_to_string(folder(case).join("config.json")).unwrap();
        let config: Value = serde_json::from_str(&config).unwrap();
        let architecture = config["architectures"][0].as_str().unwrap();
        cases.entry(architecture.to_owned()).or_default().push(case);
    }
    cases
}

/// Lines of a file of tests/goldens/tokenizers by folder, or by which of the engine's own templates
/// they are for.
fn lines_of(file: &str) -> BTreeMap<String, Vec<Value>> {
    let path = folder("tokenizers").join(file);
    let lines: Vec<Value> = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let mut by_name: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for line in lines {
        let own = line["dialect"].as_str().map(|dialect| format!("{dialect}.jinja"));
        let name = own.unwrap_or_else(|| line["folder"].as_str().unwrap().to_owned());
        by_name.entry(name).or_default().push(line);
    }
    by_name
}

/// `3 strings (llama2), …`.
fn texts(names: &[&str], lines: &BTreeMap<String, Vec<Value>>, what: &str) -> String {
    let of = |name: &&str| format!("{} {what} ({name})", lines[*name].len());
    assert!(!names.is_empty());
    names.iter().map(of).collect::<Vec<_>>().join(", ")
}

fn table() -> String {
    let goldens = goldens();
    let (strings, chats) = (lines_of("encodings.json"), lines_of("templates.json"));
    let mut table = String::from(
        "| family | `architectures` | golden | tokenizer | template |\n| --- | --- | --- | --- | --- |\n",
    );
    for row in ROWS {
        let cases = row.architectures.iter().filter_map(|name| goldens.get(*name)).flatten();
        let mut by: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for case in cases {
            by.entry(computed_by(case)).or_default().push(format!("`{case}`"));
        }
        assert!(!by.is_empty(), "{} has no golden", row.family);
        let golden: Vec<String> =
            by.iter().map(|(by, cases)| format!("{} by {by}", cases.join(", "))).collect();
        let names: Vec<String> = row.architectures.iter().map(|name| format!("`{name}`")).collect();
        table += &format!(
            "| {} | {} | {} | {} | {} |\n",
            row.family,
            names.join(", "),
            golden.join("; "),
            texts(row.tokenizers, &strings, "strings"),
            texts(row.templates, &chats, "chats"),
        );
    }
    table
}

const BEGIN: &str = "<!-- families: begin; written by tests/families_table.rs -->\n";
const END: &str = "<!-- families: end -->";

fn readme() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")
}

/// `text` with the table between its marks.
fn with_table(text: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{}{END}{after}", table()))
}

#[test]
fn every_architecture_is_in_one_row_and_every_golden_counts() {
    let named: Vec<&str> = ROWS.iter().flat_map(|row| row.architectures).copied().collect();
    let once: BTreeSet<&str> = named.iter().copied().collect();
    assert_eq!(once.len(), named.len(), "an architecture is in two rows");
    assert_eq!(once, families::architectures().collect());
    assert!(goldens().keys().all(|name| once.contains(name.as_str())));
}

/// What the table of each of a row's architectures says of text.
fn dialects(row: &Row) -> impl Iterator<Item = &'static [&'static Dialect]> {
    row.architectures.iter().map(|name| families::find(name).unwrap().dialects)
}

/// A folder of tests/goldens/tokenizers, as a checkpoint of a family with these dialects.
fn open(name: &str, dialects: &[&Dialect]) -> TextModel {
    TextModel::from_folder(&folder("tokenizers").join(name), dialects).unwrap()
}

#[test]
fn the_strings_that_are_counted_become_their_ids_by_each_family_s_own_rules() {
    let lines = lines_of("encodings.json");
    for row in ROWS {
        for (dialects, name) in dialects(row)
            .flat_map(|dialects| row.tokenizers.iter().map(move |name| (dialects, name)))
        {
            let tokenizer = open(name, dialects).tokenizer;
            for line in &lines[*name] {
                let text = line["text"].as_str().unwrap();
                let ids = |add_special| tokenizer.encode(text, add_special).unwrap();
                let what = format!("{}, {name}: {text:?}", row.family);
                assert_eq!(json!(ids(true)), line["ids"], "{what}");
                assert_eq!(json!(ids(false)), line["bare_ids"], "{what}");
                assert_eq!(tokenizer.decode(&ids(false), false), line["decoded"], "{what}");
            }
        }
    }
}

#[test]
fn the_chats_that_are_counted_become_their_ids_by_each_family_s_own_templates() {
    let lines = lines_of("templates.json");
    let written =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/src/model/families/templates");
    for row in ROWS {
        for (dialects, name) in dialects(row)
            .flat_map(|dialects| row.templates.iter().map(move |name| (dialects, name)))
        {
            let own =
                name.ends_with(".jinja").then(|| fs::read_to_string(written.join(name)).unwrap());
            let is_own = own.as_ref().is_none_or(|own| dialects.iter().any(|d| d.template == own));
            assert!(is_own, "{} does not write {name}", row.family);
            // Where a template is lent a tokenizer, that is read as its own family reads it.
            let folder = lines[*name][0]["folder"].as_str().unwrap();
            let reads = |row: &&Row| row.tokenizers.contains(&folder);
            let reader = std::iter::once(row).chain(ROWS).find(reads).unwrap();
            let model = open(folder, self::dialects(reader).next().unwrap());
            let template = match &own {
                Some(own) => ChatTemplate::new(own, model.tokenizer.named_tokens()).unwrap().into(),
                None => model.template.unwrap(),
            };
            for line in &lines[*name] {
                assert_eq!(line["folder"], folder);
                let what = format!("{}, {name}: {}", row.family, line["name"]);
                match (render(&template, line), line["error"].as_str()) {
                    (Err(TemplateError::Raised(said)), Some(words)) => {
                        assert_eq!(said, words, "{what}")
                    }
                    (Err(_), None) => assert!(!line["refused"].is_null(), "{what}"),
                    (Ok(text), None) if line["refused"].is_null() => {
                        assert_eq!(text, line["text"], "{what}");
                        let ids = model.tokenizer.encode(&text, false).unwrap();
                        assert_eq!(json!(ids), line["ids"], "{what}");
                    }
                    (other, _) => panic!("{what}: {other:?}"),
                }
            }
        }
    }
}

/// A line of templates.json as a request would have it.
fn render(template: &ChatTemplate, line: &Value) -> Result<String, TemplateError> {
    let message = |json: &Value| {
        let mut fields: Map<String, Value> = json.as_object().unwrap().clone();
        let role = fields.remove("role").unwrap().as_str().unwrap().to_owned();
        let content = match fields.remove("content") {
            Some(Value::String(text)) => Content::Text(text),
            Some(Value::Array(parts)) => Content::Parts(
                parts.iter().map(|part| part["text"].as_str().unwrap().to_owned()).collect(),
            ),
            _ => Content::None,
        };
        Message { role, content, fields }
    };
    let messages: Vec<Message> = line["messages"].as_array().unwrap().iter().map(message).collect();
    template.render(&Chat {
        messages: &messages,
        add_generation_prompt: line["add_generation_prompt"] == true,
        continue_final_message: line["continue_final_message"] == true,
        tools: Some(&line["tools"]).filter(|tools| !tools.is_null()),
        kwargs: &line["kwargs"].as_object().cloned().unwrap_or_default(),
        now: SystemTime::UNIX_EPOCH,
    })
}

#[test]
fn the_table_in_the_readme_is_what_the_tests_have() {
    let text = fs::read_to_string(readme()).unwrap();
    let wanted = with_table(&text).expect("README.md has both marks");
    if std::env::var_os("PAGODA_WRITE").is_some() {
        fs::write(readme(), &wanted).unwrap();
        return;
    }
    assert_eq!(text, wanted, "PAGODA_WRITE=1 writes it");
}

#[test]
fn another_table_is_seen() {
    let text = format!("a\n{BEGIN}| Llama | all of it |\n{END}\nb\n");
    let wanted = with_table(&text).unwrap();
    assert!(wanted != text && wanted.starts_with("a\n") && wanted.ends_with("\nb\n"));
    assert_eq!(with_table(&wanted).unwrap(), wanted);
}
