//! Loads of every source, and checkpoints that lie.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tempfile::TempDir;

use super::*;
use crate::model::info::KvGroupKind;
use crate::model::source::{SourceError, Tensor, TensorSource};

const BF16: Formats = Formats { dtype: DType::Bf16, quantization: None };

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens").join(case)
}

fn small() -> LoadOptions {
    LoadOptions { max_num_seqs: Some(4), kv: KvBudget::Bytes(64 << 20), ..LoadOptions::default() }
}

fn refusal(source: &ModelSource, options: &LoadOptions) -> String {
    load(source, options, &|_| ()).map(|model| model.info).unwrap_err().to_string()
}

/// A copy of a golden checkpoint with its configuration changed.
fn changed(case: &str, field: &str, value: u32) -> (TempDir, ModelSource) {
    let folder = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(golden(case).join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config[field] = value.into();
    config["layer_types"] = serde_json::Value::Null;
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    fs::copy(golden(case).join("model.safetensors"), folder.path().join("model.safetensors"))
        .unwrap();
    let source = ModelSource::Folder(folder.path().to_owned());
    (folder, source)
}

#[test]
fn the_demo_loads_and_says_what_it_is() {
    let steps = std::cell::RefCell::new(Vec::new());
    let model = load(&ModelSource::Demo, &small(), &|p| steps.borrow_mut().push(p)).unwrap();
    let InstanceInfo { dtype, kv_dtype, weight_bytes, .. } = model.info;
    assert_eq!((dtype, kv_dtype), (DType::Bf16, DType::Bf16.into()));
    let last = steps.borrow().last().copied().unwrap();
    assert_eq!(last.layers_done, last.layers);
    assert!(last.bytes <= weight_bytes && last.bytes * 10 > weight_bytes * 9);
    assert_eq!(model.info.groups.len(), 1);
    assert!(model.summary.contains("the built-in demo model"), "{}", model.summary);
    assert!(!model.info.eos_token_ids.is_empty());
}

#[test]
fn a_dummy_needs_a_configuration_only() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(golden("qwen3_moe").join("config.json"), folder.path().join("config.json")).unwrap();
    let source = ModelSource::Dummy { folder: folder.path().to_owned(), seed: 3 };
    let model = load(&source, &small(), &|_| ()).unwrap();
    assert!(model.files.tokenizer.is_none());
    assert_eq!(model.info.vocab, 331);
    assert_eq!(model.info.eos_token_ids, [2]);
}

#[test]
fn settings_override_what_the_checkpoint_says() {
    let options = LoadOptions {
        dtype: Some(DType::F16),
        kv_dtype: Some(DType::F32.into()),
        max_model_len: Some(100),
        block_size: Some(16),
        isa: Some("portable".to_owned()),
        threads: Some(1),
        ..small()
    };
    let model = load(&ModelSource::Folder(golden("qwen2_window")), &options, &|_| ()).unwrap();
    let info = model.info;
    assert_eq!((info.dtype, info.kv_dtype), (DType::F16, DType::F32.into()));
    assert_eq!((info.max_model_len, info.block_size), (100, 16));
    assert!(info.device.contains("portable") && info.numerics.contains("F16"));
    let blocks: Vec<_> = info.groups.iter().map(|group| (group.kind, group.num_blocks)).collect();
    assert_eq!(blocks, [(KvGroupKind::Full, 4 * 7), (KvGroupKind::Window(50), 4 * 7)]);
}

#[test]
fn a_checkpoint_that_lies_is_one_error_with_file_tensor_and_reason() {
    let (folder, source) = changed("qwen3", "num_hidden_layers", 3);
    let said = refusal(&source, &small());
    let file = folder.path().join("model.safetensors").display().to_string();
    assert!(said.starts_with(&file), "{said}");
    assert!(said.contains("tensor model.layers.2.") && said.ends_with("is missing"), "{said}");

    let (_folder, source) = changed("qwen3", "intermediate_size", 128);
    let said = refusal(&source, &small());
    assert!(
        said.contains("mlp.gate_proj.weight: has shape [136, 80], config.json asks for [128, 80]"),
        "{said}"
    );

    // One tensor for gate and up.
    let (_folder, source) = changed("phi3", "intermediate_size", 128);
    let said = refusal(&source, &small());
    assert!(
        said.contains("gate_up_proj.weight: has shape [272, 96], config.json asks for [256, 96]"),
        "{said}"
    );

    let (folder, source) = changed("qwen3", "vocab_size", 331);
    let path = folder.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let said = refusal(&source, &small());
    assert!(said.contains("model.safetensors: tensor") && said.contains("is truncated"), "{said}");
}

#[test]
fn a_file_that_is_cut_after_it_was_opened_ends_the_load_and_not_the_process() {
    for (case, tensor) in [("qwen3", "model."), ("fp8_tensor", "model.")] {
        let (folder, source) = changed(case, "unused_here", 1);
        let checkpoint = Checkpoint::open(&source).unwrap();
        let file = fs::File::options().write(true).open(folder.path().join("model.safetensors"));
        file.unwrap().set_len(4096).unwrap();
        let error = load_checkpoint(checkpoint, &small(), &|_| ()).map(drop).unwrap_err();
        let said = error.to_string();
        let told = ["model.safetensors: tensor", tensor, "to 4096 bytes while it was read"];
        assert!(told.iter().all(|part| said.contains(part)), "{case}: {said}");
    }
}

#[test]
fn settings_that_cannot_be_are_refused_by_name() {
    let llama = ModelSource::Folder(golden("llama2"));
    let said = |options: LoadOptions| refusal(&llama, &options);
    let beyond = LoadOptions { max_model_len: Some(2049), ..small() };
    assert_eq!(said(beyond), "max-model-len: 2049 is beyond the 2048 tokens of the checkpoint");
    let few = LoadOptions { max_num_batched_tokens: Some(3), ..small() };
    assert!(said(few).starts_with("max-num-batched-tokens: 3 rows are fewer than max-num-seqs"));
    let none = LoadOptions { max_num_seqs: Some(0), ..small() };
    assert!(said(none).starts_with("max-num-seqs: 0 is not within"));
    let isa = LoadOptions { isa: Some("sve2".to_owned()), ..small() };
    assert!(said(isa).starts_with("isa: \"sve2\" is not one of this machine's: portable"));
    let tiny = LoadOptions { kv: KvBudget::Bytes(1 << 20), ..small() };
    let told = said(tiny);
    assert!(told.contains("lower max-model-len to") && told.ends_with("kv-cache-memory-bytes"));
    let nothing = LoadOptions { kv: KvBudget::Bytes(100), ..small() };
    assert!(said(nothing).contains("has room for 100 bytes, and its smallest part, a block of"));
    let block = LoadOptions { block_size: Some(24), ..small() };
    assert!(said(block).contains("must be a power of two"));
}

#[test]
fn scratch_of_the_largest_step_is_part_of_the_plan() {
    let scratch = |max_num_batched_tokens| {
        let options = LoadOptions { max_num_batched_tokens, ..small() };
        let source = ModelSource::Folder(golden("qwen3_moe"));
        let checkpoint = Checkpoint::open(&source).unwrap();
        let device = open_cpu(&options).unwrap();
        let limits = limits(&checkpoint.config, &options).unwrap();
        let spec = ModelSpec::plan(&checkpoint.config, limits.max_model_len as u32);
        let weights = pack(&device, &spec, checkpoint.tensors.as_ref(), BF16, &|_| ());
        let (weights, kv_dtype) = (weights.unwrap(), KvFormat::from(DType::Bf16));
        let buffers = Buffers::new(&device, &spec, &limits).unwrap();
        let recorder = Recorder {
            device: &device,
            spec: &spec,
            weights: &weights,
            buffers: &buffers,
            kv_dtype,
        };
        let bytes = recorder.scratch(&limits).unwrap().bytes;
        let dtype = Some(DType::Bf16);
        let need = least_on_cpu(&checkpoint, &LoadOptions { dtype, ..options.clone() });
        assert_eq!(need.unwrap().scratch, bytes, "known before a weight is read");
        let model = load(&source, &LoadOptions { dtype: Some(DType::Bf16), ..options }, &|_| ());
        let said = model.unwrap().summary;
        assert!(said.contains(&format!("and {} of scratch", crate::memory::gib(bytes))), "{said}");
        bytes
    };
    // At least the rounded rows of the experts' inputs.
    assert!(scratch(Some(8192)) - scratch(Some(64)) > (8192 - 64) * 2 * 64);
}

#[test]
fn a_stretching_rope_may_go_beyond_its_positions() {
    let options = LoadOptions { max_model_len: Some(4096), ..small() };
    let model = load(&ModelSource::Folder(golden("llama_dynamic")), &options, &|_| ()).unwrap();
    assert_eq!(model.info.max_model_len, 4096);
}

/// What is promised of a model before it is loaded is what it then holds, in any family.
#[test]
fn the_least_that_a_model_needs_is_what_a_load_of_that_much_takes() {
    for case in ["qwen_long", "gemma3", "phi3", "mixtral", "qwen2_window"] {
        for quantization in [None, Some(Quantization::Q4_0)] {
            let source = ModelSource::Folder(golden(case));
            let options = LoadOptions { quantization, max_num_seqs: Some(1), ..small() };
            let checkpoint = Checkpoint::open(&source).unwrap();
            let need = least_on_cpu(&checkpoint, &options).unwrap();
            let memory = load_checkpoint(checkpoint, &options, &|_| ()).unwrap().memory;
            assert_eq!(need.total(), memory.total(), "{case}: {need:?} {memory:?}");
        }
    }
}

/// Counts the tensors that are held at once.
struct Held {
    source: Box<dyn TensorSource>,
    now: AtomicUsize,
    most: AtomicUsize,
}

impl TensorSource for Held {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>, SourceError> {
        self.most.fetch_max(self.now.fetch_add(1, SeqCst) + 1, SeqCst);
        self.source.tensor(name, shape)
    }

    fn stored_dtype(&self, name: &str) -> Option<DType> {
        self.source.stored_dtype(name)
    }

    fn release(&self, name: &str) -> Result<(), SourceError> {
        self.now.fetch_sub(1, SeqCst);
        self.source.release(name)
    }

    fn names(&self) -> Vec<&str> {
        self.source.names()
    }
}

#[test]
fn a_load_holds_the_parts_of_one_matrix_however_many_experts_there_are() {
    let checkpoint = Checkpoint::open(&ModelSource::Folder(golden("qwen3_moe"))).unwrap();
    let spec = ModelSpec::plan(&checkpoint.config, 64);
    let source = checkpoint.tensors;
    let held = Held { source, now: AtomicUsize::new(0), most: AtomicUsize::new(0) };
    pack(&open_cpu(&small()).unwrap(), &spec, &held, BF16, &|_| ()).unwrap();
    assert_eq!((held.now.into_inner(), held.most.into_inner()), (0, 3), "query, key and value");
}

/// Reading one may widen it: that it holds two matrices is no reason to do so twice.
#[test]
fn a_tensor_of_several_parts_is_read_once() {
    struct Counted(Box<dyn TensorSource>, std::sync::Mutex<Vec<String>>);
    impl TensorSource for Counted {
        fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>, SourceError> {
            self.1.lock().unwrap().push(name.to_owned());
            self.0.tensor(name, shape)
        }
        fn stored_dtype(&self, name: &str) -> Option<DType> {
            self.0.stored_dtype(name)
        }
        fn release(&self, name: &str) -> Result<(), SourceError> {
            self.0.release(name)
        }
        fn names(&self) -> Vec<&str> {
            self.0.names()
        }
    }
    let checkpoint = Checkpoint::open(&ModelSource::Folder(golden("phi3"))).unwrap();
    let spec = ModelSpec::plan(&checkpoint.config, 64);
    let source = Counted(checkpoint.tensors, std::sync::Mutex::default());
    pack(&open_cpu(&small()).unwrap(), &spec, &source, BF16, &|_| ()).unwrap();
    let mut read = source.1.into_inner().unwrap();
    let all = read.len();
    read.sort_unstable();
    read.dedup();
    assert_eq!(read.len(), all);
    assert!(read.iter().any(|name| name.contains("gate_up_proj")));
}

#[test]
fn embeddings_grow_by_a_number_of_their_own_type() {
    let checkpoint = Checkpoint::open(&ModelSource::Folder(golden("gemma"))).unwrap();
    let spec = ModelSpec::plan(&checkpoint.config, 64);
    let scale = |dtype| {
        let formats = Formats { dtype, quantization: None };
        let device = open_cpu(&small()).unwrap();
        let weights = pack(&device, &spec, checkpoint.tensors.as_ref(), formats, &|_| ());
        weights.unwrap().embed_scale
    };
    assert_eq!(scale(DType::F32), 80f32.sqrt());
    assert_eq!(scale(DType::Bf16), 8.9375);
}

#[test]
fn a_quantized_model_says_so_and_is_as_small_as_its_blocks() {
    let load_as = |case: &str, quantization| {
        let options = LoadOptions { quantization, dtype: Some(DType::Bf16), ..small() };
        load(&ModelSource::Folder(golden(case)), &options, &|_| ()).unwrap()
    };
    for case in ["qwen3", "qwen3_moe", "llama2"] {
        let plain = load_as(case, None).info.weight_bytes;
        // Bits of an element with its share of a scale, and what is left of sixteen at most: norms,
        // routers, an embedding of its own, rows that end within a block.
        for (quantization, bits) in
            [(Quantization::Q8_0, 8.5), (Quantization::Q4_0, 4.5), (Quantization::Fp8, 8.0)]
        {
            let model = load_as(case, Some(quantization));
            let share = model.info.weight_bytes as f64 / plain as f64;
            assert!(share > bits / 16.0 && share < 0.9, "{case} {quantization:?} {share}");
            assert_eq!(
                (model.info.quantization, model.info.kv_dtype),
                (Some(quantization), DType::Bf16.into())
            );
            let line = format!("weights     {} (the rest bf16), ", quantization.name());
            assert!(model.summary.contains(&line), "{}", model.summary);
            assert!(model.info.numerics.contains(&format!("{quantization:?}")));
        }
    }
}

#[test]
fn an_fp8_cache_has_twice_the_blocks_and_other_keys() {
    let load_as = |kv_dtype: Option<KvFormat>| {
        // Too little for all sequences, so that the plan takes all it may.
        let kv = KvBudget::Bytes(6 << 20);
        let options =
            LoadOptions { kv_dtype, kv, max_num_seqs: Some(64), ..LoadOptions::default() };
        load(&ModelSource::Demo, &options, &|_| ()).unwrap()
    };
    let (plain, fp8) = (load_as(None), load_as(Some(KvFormat::Fp8)));
    let (bf16_group, group) = (&plain.info.groups[0], &fp8.info.groups[0]);
    // A byte of scale for each token, head, K and V.
    let tokens = u64::from(fp8.info.block_size) * u64::from(group.num_layers);
    let heads = (2 * group.bytes_per_block - bf16_group.bytes_per_block) / (4 * tokens);
    let scales = 2 * tokens * heads;
    assert!(heads >= 1);
    assert_eq!(2 * (group.bytes_per_block - scales), bf16_group.bytes_per_block);
    let more = f64::from(group.num_blocks) / f64::from(bf16_group.num_blocks);
    assert!((1.8..2.0).contains(&more), "{more}");
    assert!(fp8.summary.contains("KV cache    fp8, "), "{}", fp8.summary);
    assert!(fp8.info.numerics.ends_with("KV fp8") && plain.info.numerics.ends_with("KV bf16"));
}

/// A value that is no number, in the second of three tensors that become one matrix.
#[test]
fn a_tensor_that_cannot_be_quantized_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(golden("qwen3").join("config.json"), folder.path().join("config.json")).unwrap();
    let mut bytes = fs::read(golden("qwen3").join("model.safetensors")).unwrap();
    let head_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let head: serde_json::Value = serde_json::from_slice(&bytes[8..8 + head_len]).unwrap();
    let name = "model.layers.1.self_attn.k_proj.weight";
    let at = 8 + head_len + head[name]["data_offsets"][0].as_u64().unwrap() as usize;
    assert_eq!(head[name]["dtype"], "BF16");
    let cols = head[name]["shape"][1].as_u64().unwrap() as usize;
    bytes[at + (2 * cols + 7) * 2..][..2].copy_from_slice(&0x7fc0u16.to_le_bytes());
    fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    let source = ModelSource::Folder(folder.path().to_owned());
    assert!(load(&source, &small(), &|_| ()).is_ok());
    for quantization in Quantization::ALL {
        let options = LoadOptions { quantization: Some(quantization), ..small() };
        let said = refusal(&source, &options);
        assert!(
            said.starts_with(&format!("packing {name}: row 2, column 7 is not a finite number")),
            "{said}"
        );
    }
}
