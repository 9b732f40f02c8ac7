//! The demo model: a small decoder that is part of the program.
//!
//! Opened through the same code as a folder; the engine has no case for it. engine/demo/train
//! makes the files.

use bytes::Bytes;

use crate::model::config::read_config;
use crate::model::error::LoadError;
use crate::model::files::{Checkpoint, ModelFiles};
use crate::model::source::safetensors::Safetensors;

const CONFIG: &[u8] = include_bytes!("../demo/model/config.json");
const GENERATION: &[u8] = include_bytes!("../demo/model/generation_config.json");
const TOKENIZER: &[u8] = include_bytes!("../demo/model/tokenizer.json");
const TOKENIZER_CONFIG: &[u8] = include_bytes!("../demo/model/tokenizer_config.json");
const WEIGHTS: &[u8] = include_bytes!("../demo/model/model.safetensors");

/// The demo's files and weights.
pub fn open() -> Result<Checkpoint, LoadError> {
    Ok(Checkpoint {
        place: "the built-in demo model".to_owned(),
        config: read_config("demo/config.json", CONFIG)?,
        files: ModelFiles {
            tokenizer: Some(Bytes::from_static(TOKENIZER)),
            vocabulary: None,
            tokenizer_config: Some(Bytes::from_static(TOKENIZER_CONFIG)),
            chat_template: None,
            generation_config: Some(Bytes::from_static(GENERATION)),
        },
        tensors: Box::new(Safetensors::embedded("demo/model.safetensors", WEIGHTS)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::spec::ModelSpec;

    #[test]
    fn every_tensor_that_the_demo_needs_is_embedded() {
        let demo = open().unwrap();
        let spec = ModelSpec::plan(&demo.config, demo.config.rope.max_position);
        let embed = demo.tensors.tensor(&spec.embedding_name(), &[spec.vocab, spec.hidden]);
        assert_eq!(embed.unwrap().rows, demo.config.vocab);
        assert!(demo.files.tokenizer.is_some() && demo.files.tokenizer_config.is_some());
    }
}
