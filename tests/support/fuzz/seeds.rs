//! Where mutations begin: files of the goldens, small ones made here, and the committed corpus.
//!
//! All of them are sound or nearly so, and small: a change of a large file seldom meets what matters.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::CUT;

/// A configuration without anything special.
pub(super) const PLAIN_CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 32,
"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 64,
"max_position_embeddings": 128, "vocab_size": 300, "rms_norm_eps": 1e-5, "eos_token_id": [2, 3],
"torch_dtype": "float16", "rope_scaling": null}"#;

fn tests() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files and folders in a folder, in the order of their names.
fn list(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// A target's files of tests/fuzz/corpus, then `more`.
fn with_corpus(name: &str, more: impl IntoIterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
    let files = list(&tests().join("fuzz/corpus").join(name));
    let files = files.into_iter().map(|path| fs::read(path).expect("a file of the corpus"));
    files.chain(more).collect()
}

fn joined<const N: usize>(parts: [&[u8]; N]) -> Vec<u8> {
    parts.join(CUT)
}

pub(super) fn configs() -> Vec<Vec<u8>> {
    let mut configs = vec![joined([PLAIN_CONFIG.as_bytes(), b"{\"do_sample\": true}"])];
    for folder in list(&tests().join("goldens")) {
        let generation = fs::read(folder.join("generation_config.json")).unwrap_or_default();
        for name in ["config.json", "config_v4.json"] {
            let config = fs::read(folder.join(name));
            configs.extend(config.into_iter().map(|config| joined([&config, &generation])));
        }
    }
    with_corpus("config", configs)
}

/// A safetensors file of tensors by name, type, shape and bytes.
pub(super) fn file_of(tensors: &[(&str, &str, &[usize], usize)]) -> Vec<u8> {
    let (mut header, mut elements) = (Map::new(), Vec::new());
    for (name, dtype, shape, len) in tensors {
        let start = elements.len();
        // Neither large nor NaN in any type.
        elements.extend((0..*len).map(|at| [0x11, 0x22, 0x12, 0x21, 0x01][(start + at) % 5]));
        let offsets = [start, elements.len()];
        header.insert(
            (*name).into(),
            json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}),
        );
    }
    let header = Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &elements].concat()
}

pub(super) fn safetensors() -> Vec<Vec<u8>> {
    let header = br#"{"__metadata__": {"format": "pt"}, "a": {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}}"#;
    let with_metadata = [&(header.len() as u64).to_le_bytes()[..], header].concat();
    let files = vec![
        file_of(&[]),
        file_of(&[("a", "F32", &[2, 3], 24), ("b.weight", "BF16", &[4], 8)]),
        file_of(&[("a", "F16", &[1, 2, 3], 12), ("b", "F8_E4M3", &[5], 5), ("c", "I32", &[2], 8)]),
        file_of(&[("a", "F4", &[4], 2), ("b", "F64", &[], 8), ("c", "BOOL", &[1, 1, 1, 1], 1)]),
        with_metadata,
    ];
    with_corpus("safetensors", files)
}

pub(super) fn indexes() -> Vec<Vec<u8>> {
    let both = json!({"metadata": {"total_size": 32},
        "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}});
    let one = json!({"weight_map": {"a": "one.safetensors"}});
    with_corpus("shards", [both, one].map(|index| index.to_string().into_bytes()))
}

pub(super) fn quantized() -> Vec<Vec<u8>> {
    let int4 = |rows: usize, cols: usize, by_rows: bool| {
        let codes = if by_rows { [rows / 8, cols] } else { [rows, cols / 8] };
        let (groups, out) = (2, cols);
        file_of(&[
            ("x.qweight", "I32", &codes, rows * cols / 2),
            ("x.qzeros", "I32", &[groups, out / 8], groups * out / 2),
            ("x.scales", "F16", &[groups, out], groups * out * 2),
            ("y.weight", "F16", &[2], 4),
        ])
    };
    let indexed = file_of(&[
        ("x.qweight", "I32", &[1, 8], 32),
        ("x.qzeros", "I32", &[1, 1], 4),
        ("x.scales", "F16", &[1, 8], 16),
        ("x.g_idx", "I32", &[8], 32),
    ]);
    let fp8 = |name: &str, shape: &[usize], len: usize| {
        file_of(&[("x.weight", "F8_E4M3", &[4, 6], 24), (name, "F32", shape, len)])
    };
    let awq = json!({"quant_method": "awq", "bits": 4, "group_size": 8, "version": "gemm",
        "zero_point": true, "modules_to_not_convert": null});
    let gptq = |more: Value| {
        let mut fields = json!({"quant_method": "gptq", "bits": 4, "group_size": 8, "sym": false,
            "desc_act": false});
        fields
            .as_object_mut()
            .expect("an object")
            .extend(more.as_object().cloned().unwrap_or_default());
        fields
    };
    let compressed = |strategy: &str, block: Value| {
        json!({"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {
            "group_0": {"targets": ["Linear"], "input_activations": null, "weights": {"num_bits": 8,
            "type": "float", "strategy": strategy, "symmetric": true, "dynamic": false,
            "block_structure": block, "group_size": null}}}})
    };
    let block = json!({"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
        "weight_block_size": [2, 3]});
    let inputs = [
        (awq, int4(16, 16, false)),
        (gptq(json!({})), int4(16, 16, true)),
        (gptq(json!({"checkpoint_format": "gptq_v2"})), int4(16, 16, true)),
        (gptq(json!({"desc_act": true})), indexed),
        (compressed("channel", Value::Null), fp8("x.weight_scale", &[4, 1], 16)),
        (compressed("tensor", Value::Null), fp8("x.weight_scale", &[1], 4)),
        (compressed("block", json!([2, 3])), fp8("x.weight_scale", &[2, 2], 16)),
        (block, fp8("x.weight_scale_inv", &[2, 2], 16)),
        (json!({"quant_method": "fp8"}), fp8("x.weight_scale", &[], 4)),
    ];
    let inputs = inputs.map(|(config, file)| joined([config.to_string().as_bytes(), &file]));
    with_corpus("quantized", inputs)
}

/// The vocabulary files of the goldens with what stands beside them; `is_json` chooses the kind.
fn text_files(is_json: bool) -> Vec<Vec<u8>> {
    let mut inputs = Vec::new();
    for folder in list(&tests().join("goldens/tokenizers")) {
        let config = fs::read(folder.join("tokenizer_config.json")).unwrap_or_default();
        for path in list(&folder) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let fits = match is_json {
                true => name == "tokenizer.json",
                false => name.ends_with(".model") || name.ends_with(".tiktoken"),
            };
            if fits {
                inputs.push(joined([&fs::read(&path).expect("a file"), &config]));
            }
        }
    }
    inputs
}

pub(super) fn tokenizers() -> Vec<Vec<u8>> {
    let vocab = json!({"<unk>": 0, "a": 1, "b": 2, "▁": 3, "ab": 4, "<0x41>": 5, "é": 6});
    let marks = json!([{"id": 7, "content": "<s>", "special": true, "normalized": false,
        "single_word": false, "lstrip": true, "rstrip": true}]);
    let file = |model: Value, parts: Value| {
        let mut file = json!({"version": "1.0", "added_tokens": marks, "model": model});
        file.as_object_mut()
            .expect("an object")
            .extend(parts.as_object().cloned().unwrap_or_default());
        joined([
            file.to_string().as_bytes(),
            br#"{"bos_token": "<s>", "chat_template": "{{ messages }}"}"#,
        ])
    };
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"});
    let pieces = json!([["<unk>", 0.0], ["a", -1.0], ["b", -1.5], ["▁", -2.0], ["ab", -0.5]]);
    let small = [
        file(
            json!({"type": "BPE", "vocab": vocab, "merges": [["a", "b"]], "unk_token": "<unk>",
                "byte_fallback": true, "fuse_unk": true}),
            json!({"decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
                "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}}),
        ),
        file(
            json!({"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": false}),
            json!({"pre_tokenizer": metaspace, "decoder": metaspace}),
        ),
        file(
            json!({"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}),
            json!({"pre_tokenizer": {"type": "Whitespace"}, "post_processor":
                {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens":
                {"<s>": {"id": "<s>", "ids": [7], "tokens": ["<s>"]}}}}),
        ),
        file(
            json!({"type": "BPE", "vocab": vocab, "merges": ["a b"], "unk_token": "<unk>"}),
            json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split",
                "pattern": {"Regex": "\\s+(?!\\S)|\\p{N}{1,3}"}, "behavior": "Isolated",
                "invert": false}, {"type": "Digits", "individual_digits": true}]}}),
        ),
    ];
    with_corpus("tokenizer", small.into_iter().chain(text_files(true)))
}

/// A field of a protobuf message.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let len = u8::try_from(bytes.len()).ok().filter(|len| *len < 0x80).expect("a short field");
    [&[number << 3 | 2, len], bytes].concat()
}

/// A small model of sentencepiece; `algorithm` is 1 for unigram, 2 for BPE.
fn sentencepiece(algorithm: u8) -> Vec<u8> {
    let piece = |text: &str, score: f32, kind: u8| {
        let score = [&[0x15][..], &score.to_le_bytes()].concat();
        field(1, &[field(1, text.as_bytes()), score, vec![0x18, kind]].concat())
    };
    let pieces = [
        piece("<unk>", 0.0, 2),
        piece("<s>", 0.0, 3),
        piece("</s>", 0.0, 3),
        piece("<0x41>", 0.0, 6),
        piece("▁▁", 0.0, 4),
        piece("<mark>", 0.0, 4),
        piece("ab", -0.0, 1),
        piece("▁ab", -2.0, 1),
        piece("a", -3.0, 1),
        piece("b", -4.0, 1),
        piece("▁", -6.0, 1),
        piece("old", -7.0, 5),
    ];
    let training = field(2, &[0x18, algorithm, 0x98, 0x02, 1]);
    [pieces.concat(), training, field(3, &[0x20, 0, 0x18, 1])].concat()
}

pub(super) fn vocabularies() -> Vec<Vec<u8>> {
    let small = [1, 2].map(|algorithm| joined([&sentencepiece(algorithm), b"{\"legacy\": false}"]));
    with_corpus("vocabulary", small.into_iter().chain(text_files(false)))
}

pub(super) fn templates() -> Vec<Vec<u8>> {
    let families = list(&tests().join("../engine/src/model/families/templates"));
    let folders = list(&tests().join("goldens/tokenizers"));
    let of_folders = folders.iter().map(|folder| folder.join("chat_template.jinja"));
    let files = families.into_iter().chain(of_folders).filter_map(|path| fs::read(path).ok());
    let in_configs = folders.iter().filter_map(|folder| {
        let config = fs::read(folder.join("tokenizer_config.json")).ok()?;
        let config: Value = serde_json::from_slice(&config).ok()?;
        Some(config["chat_template"].as_str()?.as_bytes().to_vec())
    });
    with_corpus("template", files.chain(in_configs))
}

pub(super) fn choices() -> Vec<Vec<u8>> {
    let long = |step: u32| (0..200_u32).map(|at| (at * step % 251) as u8).collect::<Vec<u8>>();
    with_corpus("grammar", [7, 31, 57, 91, 123, 201].map(long))
}

pub(super) fn admin() -> Vec<Vec<u8>> {
    let bodies = [
        json!({"name": "org/a", "path": "x/y", "options": {"quantization": "q8_0", "seed": 3}}),
        json!({"name": "a", "path": "builtin", "options": {"max-model-len": "4k", "dtype": "bf16"}}),
        json!({"path": "b", "drain_timeout": 60, "options": {"device": "cuda:1", "threads": 2,
            "enable-prefix-caching": false, "kv-cache-memory-bytes": "1GiB", "max-step-ms": 10}}),
        json!({"drain_timeout": 1}),
    ];
    with_corpus("admin", bodies.map(|body| body.to_string().into_bytes()))
}

pub(super) fn settings() -> Vec<Vec<u8>> {
    let files = [
        ("a=/m/a,quantization=q8_0,max-model-len=4k\nbuiltin", "model = \"x\"\nport = 1\n"),
        (
            "org/name,revision=main",
            "model = [\"x\", \"b=y,seed=1\"]\napi-key = [\"sk-never-shown-1\"]\n",
        ),
        (
            "/m/b,device=cuda:1,block-size=64",
            "gpu-memory-utilization = 0.5\nhost = \"::1\"\n\
          allowed-origins = [\"http://a.example\"]\nmax-num-seqs = 4\nlog-format = \"json\"\n",
        ),
        (
            "./x",
            "kv-cache-memory-bytes = \"1GiB\"\notlp-endpoint = \"http://localhost:4318\"\n\
          admin-key = [\"sk-never-shown-2\"]\nmodels-dir = \"m\"\nshutdown-timeout = 5\n",
        ),
    ];
    with_corpus(
        "settings",
        files.map(|(models, file)| joined([models.as_bytes(), file.as_bytes()])),
    )
}

pub(super) fn hub() -> Vec<Vec<u8>> {
    let list = json!({"sha": "0123456789abcdef0123456789abcdef01234567", "siblings": [
        {"rfilename": "config.json", "size": 7, "blobId": "a".repeat(40)},
        {"rfilename": "tokenizer.model"}, {"rfilename": "qwen.tiktoken"},
        {"rfilename": "model.safetensors", "size": 9, "lfs": {"sha256": "b".repeat(64), "size": 9}}]});
    let list = list.to_string();
    let names =
        [("org/name-1.0", "main"), ("models--org--name", "refs/pr/3"), ("gpt2", "v1.0+a@b")];
    let input = |(name, revision): (&str, &str)| {
        joined([name.as_bytes(), revision.as_bytes(), list.as_bytes()])
    };
    with_corpus("hub", names.map(input))
}

pub(super) fn requests() -> Vec<Vec<u8>> {
    let chat = |more: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2});
        body.as_object_mut()
            .expect("an object")
            .extend(more.as_object().cloned().unwrap_or_default());
        ("POST /v1/chat/completions", body)
    };
    let text = |more: Value| {
        let mut body = json!({"prompt": "hi", "max_tokens": 2});
        body.as_object_mut()
            .expect("an object")
            .extend(more.as_object().cloned().unwrap_or_default());
        ("POST /v1/completions", body)
    };
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let requests = [
        chat(json!({})),
        chat(
            json!({"model": "model-a", "stream": true, "stream_options": {"include_usage": true}}),
        ),
        chat(json!({"n": 2, "logprobs": true, "top_logprobs": 2, "stop": ["x", "aa"], "seed": 1})),
        chat(
            json!({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": parts},
            {"role": "assistant", "content": "It"}], "continue_final_message": true,
            "chat_template_kwargs": {"a": 1}, "return_token_ids": true, "stream": true}),
        ),
        chat(json!({"temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "cache_salt": "s",
            "frequency_penalty": 1, "repetition_penalty": 1.1, "logit_bias": {"97": -100},
            "min_tokens": 1, "ignore_eos": true, "priority": 3, "prompt_logprobs": 1})),
        text(json!({"echo": true, "logprobs": 2, "n": 2, "best_of": 2})),
        text(json!({"prompt": ["a", "b"], "stream": true, "logprobs": 1, "echo": true})),
        text(json!({"prompt": [[1, 2], [3]], "stop_token_ids": [97], "truncate_prompt_tokens": 1})),
        text(json!({"prompt": [1, 2, 3], "allowed_token_ids": [97, 98], "suffix": "", "user": "u",
            "return_tokens_as_token_ids": true, "logprobs": 0, "prompt_logprobs": 2})),
        ("POST /tokenize", json!({"prompt": "hi", "return_token_strs": true})),
        (
            "POST /tokenize",
            json!({"messages": [{"role": "user", "content": "a"}], "model": "default"}),
        ),
        ("POST /detokenize", json!({"tokens": [97, 98, 299, 256]})),
        ("GET /v1/models/org%2Fmodel-b", json!({})),
        ("GET /v1/models", json!({})),
        ("GET /health", json!({})),
        ("HEAD /metrics", json!({})),
        ("OPTIONS /v1/completions", json!({})),
    ];
    let inputs =
        requests.map(|(line, body)| joined([line.as_bytes(), body.to_string().as_bytes()]));
    with_corpus("requests", inputs)
}

pub(super) fn connections() -> Vec<Vec<u8>> {
    let body = r#"{"prompt": "a", "max_tokens": 1}"#;
    let post = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         x-request-id: a\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let chunked = format!(
        "POST /tokenize HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n\
         {:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    let get = "GET /health HTTP/1.1\r\nhost: localhost:1\r\nauthorization: Bearer k\r\n\r\n";
    let http2 = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = b"\0\0\0\x04\0\0\0\0\0";
    // GET / of http and localhost, by HPACK's static table and one literal.
    let headers = b"\0\0\x0e\x01\x05\0\0\0\x01\x82\x86\x84\x41\x09localhost";
    let inputs = [
        post.repeat(2).into_bytes(),
        chunked.into_bytes(),
        [get, get].concat().into_bytes(),
        [http2.as_bytes(), settings, headers].concat(),
    ];
    with_corpus("connections", inputs)
}
