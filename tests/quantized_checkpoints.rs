//! Checkpoints that come quantized, through the loader: log-probabilities against those that
//! transformers computes from the weights that their codes stand for.
//!
//! Each format's own package widened the files when the goldens were made (tests/goldens). Faults are
//! planted in copies of the files, so that the loader reads them as one that was wrong would read the
//! sound ones; each must move some value by at least 0.05.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::fs;
use std::ops::Range;
use std::path::Path;

use half::{bf16, f16};
use pagoda_engine::memory::KvBudget;
use pagoda_engine::model::files::Checkpoint;
use pagoda_engine::model::spec::ModelSpec;
use pagoda_engine::model::weights::Formats;
use pagoda_engine::model::{LoadOptions, LoadedModel, ModelSource, load};
use pagoda_kernels::dtype::DType;
use pagoda_kernels::weight_format::Quantization;
use pagoda_tests::golden::{Golden, QUANTIZED_CASES, folder};
use pagoda_tests::logprobs::{distance, first_logprobs};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Largest distance from transformers.
const TOLERANCE: f64 = 0.001;
/// Least distance that a planted fault must cause.
const FAULT: f64 = 0.05;

/// The distance of the first tokens' values from the golden's: root mean square, and largest.
fn measure(case: &str, from: &Path, len: usize, quantization: Option<Quantization>) -> (f64, f64) {
    let golden = Golden::read(case).unwrap();
    let options = LoadOptions { quantization, ..LoadOptions::default() };
    let got = first_logprobs(&golden, from, len, options);
    distance(&got, &golden.target_logprobs[..len - 1])
}

#[test]
fn every_format_gives_the_values_of_what_its_codes_stand_for() {
    for case in QUANTIZED_CASES {
        let (_, largest) = measure(case, &folder(case), 1000, None);
        println!("{case:14} {largest:.6}");
        assert!(largest <= TOLERANCE, "{case}: {largest}");
    }
}

/// A copy of a case, to be changed.
struct Copy {
    folder: TempDir,
    header: Value,
    /// Where elements begin in the file.
    start: usize,
    bytes: Vec<u8>,
}

impl Copy {
    fn of(case: &str) -> Self {
        let copy = tempfile::tempdir().unwrap();
        fs::copy(folder(case).join("config.json"), copy.path().join("config.json")).unwrap();
        let bytes = fs::read(folder(case).join("model.safetensors")).unwrap();
        let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = serde_json::from_slice(&bytes[8..start]).unwrap();
        Copy { folder: copy, header, start, bytes }
    }

    /// Changes a field of quantization_config.
    fn configure(&mut self, field: &str, value: Value) {
        let file = self.folder.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        config["quantization_config"][field] = value;
        fs::write(file, config.to_string()).unwrap();
    }

    /// Changes the elements of every tensor whose name ends so; the change is given the shape too.
    fn change(&mut self, end: &str, change: impl Fn(&mut [u8], &[usize])) {
        let number = |value: &Value| value.as_u64().unwrap() as usize;
        let mut changed = 0;
        for (name, entry) in self.header.as_object().unwrap() {
            if !name.ends_with(end) {
                continue;
            }
            let offsets = &entry["data_offsets"];
            let place: Range<usize> =
                self.start + number(&offsets[0])..self.start + number(&offsets[1]);
            let shape: Vec<usize> = entry["shape"].as_array().unwrap().iter().map(number).collect();
            change(&mut self.bytes[place], &shape);
            changed += 1;
        }
        assert!(changed >= 14, "{changed} tensors end in {end}");
    }

    /// Puts a module's weight in place of what stands for it.
    fn widen(&mut self, module: &str) {
        let tensors = Checkpoint::open(&self.source()).unwrap().tensors;
        let header = self.header.as_object().unwrap();
        let stands_for_it = |name: &str| {
            name.rsplit_once('.').is_some_and(|(of, end)| of == module && end != "bias")
        };
        let number = |value: &Value| value.as_u64().unwrap() as usize;
        let shape_of = |name: &str| {
            let entry = header.get(&format!("{module}.{name}"))?;
            Some(entry["shape"].as_array().unwrap().iter().map(number).collect::<Vec<_>>())
        };
        let shape = shape_of("weight").unwrap_or_else(|| {
            // Codes lie in words along K or along N; scales are [G, N].
            let (codes, rows) = (shape_of("qweight").unwrap(), shape_of("scales").unwrap()[1]);
            vec![rows, codes[0] * codes[1] * 8 / rows]
        });
        let name = format!("{module}.weight");
        let wide = tensors.tensor(&name, &shape).unwrap().bytes.into_owned();
        let (mut entries, mut bytes) = (serde_json::Map::new(), Vec::new());
        let mut add = |name: &str, dtype: &Value, shape: Value, of: &[u8]| {
            let offsets = [bytes.len(), bytes.len() + of.len()];
            let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": offsets});
            entries.insert(name.to_owned(), entry);
            bytes.extend_from_slice(of);
        };
        add(&name, &json!("F32"), json!(shape), &wide);
        for (name, entry) in
            header.iter().filter(|(name, _)| !stands_for_it(name) && *name != "__metadata__")
        {
            let at = |index: usize| self.start + number(&entry["data_offsets"][index]);
            add(name, &entry["dtype"], entry["shape"].clone(), &self.bytes[at(0)..at(1)]);
        }
        self.header = Value::Object(entries);
        let text = self.header.to_string();
        self.start = 8 + text.len();
        self.bytes = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &bytes].concat();
    }

    /// The folder with what it holds now.
    fn source(&self) -> ModelSource {
        fs::write(self.folder.path().join("model.safetensors"), &self.bytes).unwrap();
        ModelSource::Folder(self.folder.path().to_owned())
    }

    /// How far the changed files are from the golden.
    fn moved(&self, case: &str) -> f64 {
        self.source();
        measure(case, self.folder.path(), 200, None).1
    }
}

/// Changes each number of a tensor of scales.
fn each_bf16(bytes: &mut [u8], change: fn(f32) -> f32) {
    for element in bytes.chunks_exact_mut(2) {
        let value = bf16::from_le_bytes([element[0], element[1]]).to_f32();
        element.copy_from_slice(&bf16::from_f32(change(value)).to_le_bytes());
    }
}

fn each_f16(bytes: &mut [u8], change: fn(f32) -> f32) {
    for element in bytes.chunks_exact_mut(2) {
        let value = f16::from_le_bytes([element[0], element[1]]).to_f32();
        element.copy_from_slice(&f16::from_f32(change(value)).to_le_bytes());
    }
}

fn each_f32(bytes: &mut [u8], change: fn(f32) -> f32) {
    for element in bytes.chunks_exact_mut(4) {
        let value = f32::from_le_bytes(element.try_into().unwrap());
        element.copy_from_slice(&change(value).to_le_bytes());
    }
}

/// `[a, b]` as if its elements of `size` bytes were those of `[b, a]`.
fn transposed(bytes: &mut [u8], shape: &[usize], size: usize) {
    let old = bytes.to_vec();
    let (rows, cols) = (shape[0], shape[1]);
    for (index, element) in bytes.chunks_exact_mut(size).enumerate() {
        let from = index % rows * cols + index / rows;
        element.copy_from_slice(&old[from * size..][..size]);
    }
}

/// Words whose nibbles AWQ's order finds where they are when it is not known.
fn nibbles_in_order(bytes: &mut [u8]) {
    const ORDER: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];
    for word in bytes.chunks_exact_mut(4) {
        let old = u32::from_le_bytes(word.try_into().unwrap());
        let nibbles = ORDER.iter().enumerate();
        let new = nibbles.fold(0, |new, (i, to)| new | (old >> (4 * i) & 15) << (4 * to));
        word.copy_from_slice(&new.to_le_bytes());
    }
}

type Plant = fn(&mut Copy);

const FAULTS: &[(&str, &str, Plant)] = &[
    ("fp8_channel", "the neighbour's scale", |copy| {
        copy.change("weight_scale", |bytes, _| bytes.rotate_left(2));
    }),
    ("fp8_channel", "no scale", |copy| {
        copy.change("weight_scale", |bytes, _| each_bf16(bytes, |_| 1.0));
    }),
    ("fp8_tensor", "no scale", |copy| {
        copy.change("weight_scale", |bytes, _| each_bf16(bytes, |_| 1.0));
    }),
    ("fp8_tensor", "inverse scale", |copy| {
        copy.change("weight_scale", |bytes, _| each_bf16(bytes, f32::recip));
    }),
    ("fp8_tensor", "signs dropped", |copy| {
        copy.change("proj.weight", |bytes, _| bytes.iter_mut().for_each(|code| *code &= 0x7f));
    }),
    ("fp8_block", "blocks transposed", |copy| {
        copy.change("weight_scale", |bytes, shape| transposed(bytes, shape, 2));
    }),
    ("fp8_scale_inv", "blocks transposed", |copy| {
        copy.change("weight_scale_inv", |bytes, shape| transposed(bytes, shape, 4));
    }),
    ("fp8_scale_inv", "inverse scale", |copy| {
        copy.change("weight_scale_inv", |bytes, _| each_f32(bytes, f32::recip));
    }),
    ("awq", "nibbles in order", |copy| copy.change("qweight", |bytes, _| nibbles_in_order(bytes))),
    ("awq", "zeros' nibbles in order", |copy| {
        copy.change("qzeros", |bytes, _| nibbles_in_order(bytes));
    }),
    ("awq", "zeros of eight", |copy| copy.change("qzeros", |bytes, _| bytes.fill(0x88))),
    ("awq", "groups transposed", |copy| {
        copy.change(".scales", |bytes, shape| transposed(bytes, shape, 2));
    }),
    ("awq", "inverse scale", |copy| {
        copy.change(".scales", |bytes, _| each_f16(bytes, f32::recip));
    }),
    ("gptq", "zeros not one more", |copy| copy.configure("checkpoint_format", json!("gptq_v2"))),
    ("gptq", "order of columns ignored", |copy| {
        copy.change("g_idx", |bytes, _| {
            for (col, group) in bytes.chunks_exact_mut(4).enumerate() {
                group.copy_from_slice(&(col as u32 / 64).to_le_bytes());
            }
        });
    }),
    ("gptq", "nibbles of a byte swapped", |copy| {
        copy.change("qweight", |bytes, _| {
            bytes.iter_mut().for_each(|byte| *byte = byte.rotate_left(4));
        });
    }),
    ("gptq_v2", "zeros one more", |copy| copy.configure("checkpoint_format", json!("gptq"))),
    ("gptq_v2", "groups transposed", |copy| {
        copy.change(".scales", |bytes, shape| transposed(bytes, shape, 2));
    }),
];

#[test]
fn each_planted_fault_moves_a_value() {
    for case in QUANTIZED_CASES {
        let sound = Copy::of(case).moved(case);
        assert!(sound <= TOLERANCE, "{case} without a fault: {sound}");
    }
    for (case, fault, plant) in FAULTS {
        let mut copy = Copy::of(case);
        plant(&mut copy);
        let moved = copy.moved(case);
        println!("{case:14} {fault:26} moves a value by {moved:.2}");
        assert!(moved >= FAULT, "{case}: {fault} moves no value by more than {moved}");
    }
}

/// Lists of modules that were left out say what whoever made the files meant; tensors say what is there.
#[test]
fn a_weight_is_quantized_if_its_tensors_are_whatever_lists_say() {
    for (case, field, all) in [
        ("fp8_channel", "ignore", json!(["re:.*"])),
        ("fp8_scale_inv", "modules_to_not_convert", json!(["model"])),
        ("awq", "modules_to_not_convert", json!(["self_attn", "mlp"])),
        ("gptq", "dynamic", json!({"-:.*": {}})),
    ] {
        let mut copy = Copy::of(case);
        copy.configure(field, all);
        let moved = copy.moved(case);
        assert!(moved <= TOLERANCE, "{case}: listed as left out, and quantized: {moved}");
        copy.configure(field, json!(null));
        copy.widen("model.layers.0.self_attn.o_proj");
        copy.widen("model.layers.1.self_attn.k_proj");
        let moved = copy.moved(case);
        assert!(moved <= TOLERANCE, "{case}: plain, and listed nowhere: {moved}");
    }
}

/// Widened weights may be quantized again, as those of any checkpoint.
#[test]
fn a_quantized_checkpoint_may_be_quantized_another_way() {
    for case in ["fp8_channel", "awq"] {
        let (rms, largest) = measure(case, &folder(case), 200, Some(Quantization::Q8_0));
        println!("{case:14} as q8_0: rms {rms:.4}, largest {largest:.4}");
        assert!(rms > 1e-4 && rms < 0.1, "{case}: {rms}");
    }
}

fn loaded(case: &str, quantization: Option<Quantization>) -> (u64, LoadedModel) {
    let source = ModelSource::Folder(folder(case));
    let config = Checkpoint::open(&source).unwrap().config;
    let options = LoadOptions {
        quantization,
        max_model_len: Some(64),
        max_num_seqs: Some(2),
        max_num_batched_tokens: Some(16),
        kv: KvBudget::Bytes(8 << 20),
        ..LoadOptions::default()
    };
    let dtype = config.dtype.unwrap();
    let planned = ModelSpec::plan(&config, 64).weight_bytes(Formats { dtype, quantization });
    (planned, load(&source, &options, &|_| ()).unwrap())
}

#[test]
fn a_start_tells_what_weights_were_made_of_and_plans_for_what_they_are() {
    for (case, dtype, said) in [
        ("fp8_channel", DType::Bf16, "weights     bf16, made of fp8 of compressed-tensors, "),
        ("fp8_scale_inv", DType::Bf16, "weights     bf16, made of fp8, "),
        ("awq", DType::F16, "weights     f16, made of AWQ int4, "),
        ("gptq", DType::F16, "weights     f16, made of GPTQ int4, "),
    ] {
        let (planned, model) = loaded(case, None);
        assert_eq!((model.info.dtype, model.info.weight_bytes), (dtype, planned), "{case}");
        assert!(model.summary.contains(said), "{}", model.summary);
    }
    let (planned, model) = loaded("awq", Some(Quantization::Q4_0));
    assert_eq!(model.info.weight_bytes, planned);
    assert!(model.summary.contains("q4_0 (the rest f16), made of AWQ int4"), "{}", model.summary);
}
