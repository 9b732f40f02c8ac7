//! What the packed weights of a model take, known before any of them is read.
//!
//! The same sum as a load makes tensor by tensor; without a device's padding.

use pagoda_kernels::dtype::DType;

use super::spec::{AttentionSpec, LayerSpec, Mixer, MlpSpec, ModelSpec};

impl ModelSpec {
    /// Bytes of all weights packed as `dtype`; vectors are f32.
    pub fn weight_bytes(&self, dtype: DType) -> u64 {
        let tables = if self.head.tied { 1 } else { 2 };
        let mut size = Size { matrices: product(&[tables, self.vocab, self.hidden]), vectors: 0 };
        size.vectors += self.hidden as u64;
        for layer in &self.layers {
            size.add_layer(layer, self.hidden);
        }
        size.matrices.saturating_mul(dtype.bytes() as u64).saturating_add(size.vectors * 4)
    }
}

/// Numbers of elements.
struct Size {
    matrices: u64,
    vectors: u64,
}

impl Size {
    fn add_layer(&mut self, layer: &LayerSpec, hidden: usize) {
        let Mixer::Attention(attention) = &layer.mixer;
        self.add_attention(attention, hidden);
        // Norms before mixer and MLP.
        self.vectors += 2 * hidden as u64;
        let mlp = |intermediate: usize| product(&[3, intermediate, hidden]);
        self.matrices += match &layer.mlp {
            MlpSpec::Dense { intermediate, .. } => mlp(*intermediate),
            MlpSpec::Moe(moe) => {
                let experts = (moe.num_experts as u64).saturating_mul(mlp(moe.intermediate));
                experts.saturating_add(product(&[moe.num_experts, hidden]))
            }
        };
    }

    fn add_attention(&mut self, attention: &AttentionSpec, hidden: usize) {
        let heads = attention.heads;
        let q_rows = heads.num_q * heads.head_dim;
        let qkv_rows = q_rows + 2 * heads.num_kv * heads.head_dim;
        self.matrices += product(&[qkv_rows + q_rows, hidden]);
        let vectors = [
            (attention.qkv_bias, qkv_rows),
            (attention.output_bias, hidden),
            (attention.qk_norm.is_some(), 2 * heads.head_dim),
        ];
        let present = vectors.iter().filter(|(is_there, _)| *is_there);
        self.vectors += present.map(|(_, len)| *len as u64).sum::<u64>();
    }
}

fn product(sizes: &[usize]) -> u64 {
    sizes.iter().fold(1, |product: u64, &size| product.saturating_mul(size as u64))
}

#[cfg(test)]
mod tests {
    use crate::memory::KvBudget;
    use crate::model::files::{Checkpoint, ModelSource};
    use crate::model::load::load_checkpoint;
    use crate::model::spec::ModelSpec;
    use crate::model::{LoadOptions, LoadedModel};
    use pagoda_kernels::dtype::DType;

    /// A tiny model of a family, with random weights.
    fn loaded(config: serde_json::Value) -> (ModelSpec, LoadedModel) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let source = ModelSource::Dummy { folder: folder.path().into(), seed: 0 };
        let checkpoint = Checkpoint::open(&source).unwrap();
        let spec = ModelSpec::plan(&checkpoint.config, 64);
        let options = LoadOptions {
            dtype: Some(DType::Bf16),
            max_model_len: Some(64),
            max_num_seqs: Some(2),
            max_num_batched_tokens: Some(16),
            threads: Some(1),
            kv: KvBudget::Bytes(8 << 20),
            ..LoadOptions::default()
        };
        (spec, load_checkpoint(checkpoint, &options, &|_| ()).unwrap())
    }

    #[test]
    fn the_sum_is_what_a_load_packs() {
        let shape = serde_json::json!({
            "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "hidden_act": "silu", "torch_dtype": "bfloat16",
        });
        for (family, more) in [
            ("llama", serde_json::json!({"tie_word_embeddings": true})),
            ("llama", serde_json::json!({"tie_word_embeddings": false})),
            ("qwen2", serde_json::json!({})),
            ("qwen3", serde_json::json!({})),
            (
                "qwen3_moe",
                serde_json::json!({
                    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
                    "decoder_sparse_step": 1, "mlp_only_layers": [0], "norm_topk_prob": true,
                }),
            ),
        ] {
            let mut config = shape.clone();
            let fields = config.as_object_mut().unwrap();
            fields.extend(more.as_object().unwrap().clone());
            fields.insert("model_type".into(), family.into());
            let name = match family {
                "llama" => "LlamaForCausalLM",
                "qwen2" => "Qwen2ForCausalLM",
                "qwen3" => "Qwen3ForCausalLM",
                _ => "Qwen3MoeForCausalLM",
            };
            fields.insert("architectures".into(), serde_json::json!([name]));
            let (spec, model) = loaded(config);
            assert_eq!(spec.weight_bytes(DType::Bf16), model.info.weight_bytes, "{family}");
        }
    }
}
