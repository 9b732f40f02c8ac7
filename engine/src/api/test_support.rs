//! A model in numbers, for tests.

use std::sync::Arc;

use pagoda_kernels::dtype::DType;

use crate::api::instance::Instance;
use crate::handle::border;
use crate::metrics::Metrics;
use crate::model::info::{DefaultSampling, InstanceInfo, KvGroupInfo, KvGroupKind};
use crate::scheduler::settings::SchedulerSettings;
use crate::text::{TextModel, TextPool};

/// An instance whose engine never answers.
pub(crate) fn instance(names: &[&str]) -> Arc<Instance> {
    let (engine, _gone) = border(info(), SchedulerSettings::default());
    let names = names.iter().map(ToString::to_string).collect();
    let pool = Arc::new(TextPool::new(1, 1).unwrap());
    let text = TextModel::dummy(300).unwrap();
    Arc::new(Instance::new(names, engine, text, pool, &Metrics::new(false).unwrap()))
}

/// A small model.
pub(crate) fn info() -> InstanceInfo {
    InstanceInfo {
        max_model_len: 128,
        vocab: 300,
        block_size: 16,
        groups: vec![KvGroupInfo {
            kind: KvGroupKind::Full,
            num_layers: 1,
            num_blocks: 64,
            bytes_per_block: 1024,
        }],
        max_num_seqs: 8,
        max_num_batched_tokens: 64,
        max_logits_rows: 64,
        max_logprobs: 20,
        numerics: "test".into(),
        eos_token_ids: vec![2],
        default_sampling: DefaultSampling::default(),
        dtype: DType::F32,
        quantization: None,
        kv_dtype: DType::F32.into(),
        weight_bytes: 0,
        depth: 1,
        device: "test".into(),
    }
}
