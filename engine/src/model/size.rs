//! What the packed weights of a model and its KV cache take, known before any of them is read.
//!
//! The same sum as a load makes tensor by tensor; without a device's padding.

use pagoda_kernels::device::KvSpec;
use pagoda_kernels::dtype::DType;
use pagoda_kernels::kv_format::KvFormat;
use pagoda_kernels::weight_format::{Quantization, WeightFormat};

use super::files::Checkpoint;
use super::info::KvGroupKind;
use super::load::own_dtype;
use super::spec::{AttentionSpec, KvGroup, LayerSpec, Mixer, MlpSpec, ModelSpec};
use super::weights::Formats;

/// What a checkpoint takes in memory, in each way that it can be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Type that its weights are loaded in unless another is asked for.
    pub dtype: DType,
    /// Tokens of one sequence.
    pub max_model_len: u32,
    /// Bytes of the weights: in `dtype`, and with each quantization, by name.
    pub weights: Vec<(&'static str, u64)>,
    /// What the KV cache takes: in `dtype`, and in fp8, by name.
    pub kv: Vec<(&'static str, KvBytes)>,
}

/// What a sequence takes in the KV cache, without the rest of its last blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvBytes {
    /// Bytes for each token, of all layers that keep all tokens.
    pub per_token: u64,
    /// Bytes at most of all layers that keep a window of them.
    pub windows: u64,
}

impl Checkpoint {
    /// What it takes, before it is loaded.
    pub fn sizes(&self) -> Sizes {
        let max_model_len = self.config.longest();
        let spec = ModelSpec::plan(&self.config, max_model_len);
        let dtype = own_dtype(&self.config, self.tensors.stored_dtype(&spec.embedding_name()));
        let ways = std::iter::once(None).chain(Quantization::ALL.map(Some));
        let weights = ways.map(|quantization| {
            let name = quantization.map_or_else(|| dtype.name(), Quantization::name);
            (name, spec.weight_bytes(Formats { dtype, quantization }))
        });
        let kv =
            [KvFormat::Plain(dtype), KvFormat::Fp8].map(|way| (way.name(), spec.kv_bytes(way)));
        Sizes { dtype, max_model_len, weights: weights.collect(), kv: kv.into() }
    }
}

impl KvGroup {
    fn bytes_per_token(&self, format: KvFormat) -> u64 {
        let &KvGroup { num_layers, num_kv_heads, head_dim, .. } = self;
        let spec = KvSpec { num_layers, num_kv_heads, head_dim, format, num_blocks: 0 };
        spec.bytes_per_block(1) as u64
    }
}

impl ModelSpec {
    fn kv_bytes(&self, format: KvFormat) -> KvBytes {
        let mut bytes = KvBytes { per_token: 0, windows: 0 };
        for group in &self.groups {
            let of_token = group.bytes_per_token(format);
            match group.kind {
                KvGroupKind::Full => bytes.per_token += of_token,
                KvGroupKind::Window(window) => bytes.windows += of_token * u64::from(window),
            }
        }
        bytes
    }

    /// Bytes of all weights packed in their formats; vectors are f32.
    pub fn weight_bytes(&self, formats: Formats) -> u64 {
        let mut size = Size { formats, bytes: 0 };
        size.add_product(1, self.vocab, self.hidden);
        if !self.head.tied {
            size.add_plain(self.vocab, self.hidden);
        }
        size.add_vector(self.hidden);
        for layer in &self.layers {
            size.add_layer(layer, self.hidden);
        }
        size.bytes
    }
}

/// Bytes so far.
struct Size {
    formats: Formats,
    bytes: u64,
}

impl Size {
    fn add_layer(&mut self, layer: &LayerSpec, hidden: usize) {
        let Mixer::Attention(attention) = &layer.mixer;
        self.add_attention(attention, hidden);
        // Norms before mixer and MLP, and behind them.
        let norms = if layer.post_norm.is_some() { 4 } else { 2 };
        self.add_vector(norms * hidden);
        match &layer.mlp {
            MlpSpec::Dense { intermediate, .. } => self.add_mlps(1, *intermediate, hidden),
            MlpSpec::Moe(moe) => {
                self.add_mlps(moe.num_experts, moe.intermediate, hidden);
                self.add_plain(moe.num_experts, hidden);
            }
        }
    }

    /// Gate and up, and down.
    fn add_mlps(&mut self, count: usize, intermediate: usize, hidden: usize) {
        self.add_product(count.saturating_mul(2), intermediate, hidden);
        self.add_product(count, hidden, intermediate);
    }

    fn add_attention(&mut self, attention: &AttentionSpec, hidden: usize) {
        let heads = attention.heads;
        let q_rows = heads.num_q * heads.head_dim;
        let qkv_rows = q_rows + 2 * heads.num_kv * heads.head_dim;
        self.add_product(1, qkv_rows, hidden);
        self.add_product(1, hidden, q_rows);
        let vectors = [
            (attention.qkv_bias, qkv_rows),
            (attention.output_bias, hidden),
            (attention.qk_norm.is_some(), 2 * heads.head_dim),
        ];
        let present = vectors.iter().filter(|(is_there, _)| *is_there);
        present.for_each(|(_, len)| self.add_vector(*len));
    }

    fn add_product(&mut self, count: usize, rows: usize, cols: usize) {
        self.add(self.formats.product(), count.saturating_mul(rows), cols);
    }

    fn add_plain(&mut self, rows: usize, cols: usize) {
        self.add(self.formats.plain(), rows, cols);
    }

    fn add_vector(&mut self, len: usize) {
        self.bytes = self.bytes.saturating_add(4 * len as u64);
    }

    fn add(&mut self, format: WeightFormat, rows: usize, cols: usize) {
        let bytes = (rows as u64).saturating_mul(format.row_bytes(cols) as u64);
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::memory::KvBudget;
    use crate::model::files::{Checkpoint, ModelSource};
    use crate::model::load::load_checkpoint;
    use crate::model::spec::ModelSpec;
    use crate::model::weights::Formats;
    use crate::model::{LoadOptions, LoadedModel};
    use pagoda_kernels::dtype::DType;
    use pagoda_kernels::weight_format::Quantization;

    /// A tiny model of a family, with random weights.
    fn loaded(
        config: &serde_json::Value,
        quantization: Option<Quantization>,
    ) -> (ModelSpec, LoadedModel) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let source = ModelSource::Dummy { folder: folder.path().into(), seed: 0 };
        let checkpoint = Checkpoint::open(&source).unwrap();
        let spec = ModelSpec::plan(&checkpoint.config, 64);
        let options = LoadOptions {
            dtype: Some(DType::Bf16),
            quantization,
            max_model_len: Some(64),
            max_num_seqs: Some(2),
            max_num_batched_tokens: Some(16),
            threads: Some(1),
            kv: KvBudget::Bytes(8 << 20),
            ..LoadOptions::default()
        };
        (spec, load_checkpoint(checkpoint, &options, &|_| ()).unwrap())
    }

    /// The configurations of all goldens: every family.
    fn configurations() -> Vec<serde_json::Value> {
        let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens");
        let folders = std::fs::read_dir(goldens).unwrap().map(|entry| entry.unwrap().path());
        let files = folders.map(|folder| folder.join("config.json")).filter(|file| file.exists());
        files.map(|file| serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()).collect()
    }

    #[test]
    fn the_sum_is_what_a_load_packs() {
        let configurations = configurations();
        assert!(configurations.len() > 20);
        for config in configurations {
            for quantization in [None, Some(Quantization::Q4_0)] {
                let formats = Formats { dtype: DType::Bf16, quantization };
                let (spec, model) = loaded(&config, quantization);
                let bytes = spec.weight_bytes(formats);
                let family = &config["architectures"];
                assert_eq!(bytes, model.info.weight_bytes, "{family} {quantization:?}");
            }
        }
    }
}
