//! From settings to an instance: device, checkpoint, weights, text, engine thread.
//!
//! Runs once, on a thread of its own. Whatever goes wrong is one clear error for whoever started
//! the process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::api::instance::Instance;
use crate::config::{Config, LoadFormat, ModelSettings};
use crate::hub::{self, HubError, Wish};
use crate::memory::KvBudget;
use crate::metrics::Metrics;
use crate::model::files::read_bounded;
use crate::model::source::SourceError;
use crate::model::{
    self, Checkpoint, InstanceInfo, LoadError, LoadOptions, LoadedModel, ModelSource, Progress,
};
use crate::scheduler::settings::SchedulerSettings;
use crate::serve::device::Chosen;
use crate::step::{self, EngineThread};
use crate::text::files::TextFilesError;
use crate::text::{TextModel, TextPool};

/// An instance, and what there is to tell about its start.
pub struct Loaded {
    /// Serves.
    pub instance: Arc<Instance>,
    /// Says how the engine ended.
    pub thread: EngineThread,
    /// Lines of the start-up summary.
    pub summary: String,
    /// How long it took.
    pub took: Duration,
}

/// Why no instance came to be.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The model is no folder here, and the hub does not give it.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A setting that this program or machine cannot follow.
    #[error("{setting}: {reason}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The checkpoint.
    #[error("cannot load the model")]
    Model(#[source] LoadError),
    /// Tokenizer or chat template.
    #[error("cannot use {place}")]
    Text {
        /// The model's folder, or the file of --chat-template.
        place: String,
        /// Which file, and why.
        #[source]
        source: TextFilesError,
    },
    /// The file of --chat-template.
    #[error("cannot read the chat template")]
    Template(#[source] SourceError),
    /// A thread cannot be started.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

/// Loads what the settings name.
pub fn load(config: &Config, metrics: &Metrics) -> Result<Loaded, StartError> {
    let began = Instant::now();
    let source = source(&config.model)?;
    tracing::info!(model = config.model.names[0], "loading");
    let checkpoint = Checkpoint::open(&source).map_err(StartError::Model)?;
    // What is wrong with the text files is told before minutes go into the weights.
    let text = text(&config.model, &checkpoint)?;
    let device = Chosen::open(&config.device)?;
    let (options, progress) = (options(config, &device), told_now_and_then());
    let loaded = match &device {
        Chosen::Cpu { .. } => model::load_checkpoint(checkpoint, &options, &progress),
        Chosen::Gpu(gpu, _) => model::load_on(gpu, checkpoint, &options, &progress),
    };
    let LoadedModel { runner, mut info, summary, .. } = loaded.map_err(StartError::Model)?;
    end_with_turns(&mut info, &text);
    let summary = format!("{summary}{}", device.summary());
    let pool = TextPool::new(SHORT_TEXT_THREADS, TEXT_QUEUE_MAX).map_err(StartError::Thread)?;
    let (engine, thread) =
        step::start(runner, info, scheduler_settings(config)).map_err(StartError::Thread)?;
    let names = config.model.names.clone();
    let instance = Instance::new(names, engine, text, Arc::new(pool), metrics);
    Ok(Loaded { instance: Arc::new(instance), thread, summary, took: began.elapsed() })
}

/// Where a turn ends in the words of the model's family, an answer ends, too.
fn end_with_turns(info: &mut InstanceInfo, text: &TextModel) {
    info.eos_token_ids.extend(text.ends.iter().filter(|id| **id < info.vocab));
    info.eos_token_ids.sort_unstable();
    info.eos_token_ids.dedup();
}

/// Threads that tokenize and render short texts, beside the one for long ones: bounded, so that
/// prompts do not take the engine's cores.
const SHORT_TEXT_THREADS: usize = 2;

/// Prompts that may wait for them, and for the one.
const TEXT_QUEUE_MAX: usize = 1024;

fn source(settings: &ModelSettings) -> Result<ModelSource, StartError> {
    let weights = settings.load_format != LoadFormat::Dummy;
    let folder = settings.folder.as_deref().map(|model| {
        let wish = Wish { model, revision: settings.revision.as_deref(), weights };
        hub::resolve(&wish, &settings.hub)
    });
    match (folder.transpose()?, settings.load_format) {
        (None, LoadFormat::Dummy) => Err(StartError::Setting {
            setting: "load-format",
            reason: "dummy needs --model with a folder that holds a config.json".into(),
        }),
        (None, LoadFormat::Auto | LoadFormat::Safetensors) => Ok(ModelSource::Demo),
        (Some(folder), LoadFormat::Dummy) => Ok(ModelSource::Dummy { folder, seed: settings.seed }),
        (Some(folder), LoadFormat::Auto | LoadFormat::Safetensors) => {
            Ok(ModelSource::Folder(folder))
        }
    }
}

fn options(config: &Config, chosen: &Chosen) -> LoadOptions {
    let (model, device, scheduling) = (&config.model, &config.device, &config.scheduling);
    let defaults = chosen.defaults(scheduling);
    LoadOptions {
        dtype: model.dtype,
        quantization: model.quantization,
        kv_dtype: device.kv_dtype,
        max_model_len: model.max_model_len,
        max_num_seqs: scheduling.max_num_seqs.or(defaults.max_num_seqs),
        max_num_batched_tokens: scheduling
            .max_num_batched_tokens
            .or(defaults.max_num_batched_tokens),
        max_logprobs: model.max_logprobs,
        kv: match device.kv_bytes {
            Some(bytes) => KvBudget::Bytes(bytes),
            None => KvBudget::Share(device.memory_share.unwrap_or(defaults.memory_share)),
        },
        threads: device.threads,
        isa: device.isa.clone(),
        block_size: device.block_size,
    }
}

fn scheduler_settings(config: &Config) -> SchedulerSettings {
    let scheduling = &config.scheduling;
    SchedulerSettings {
        max_queued_requests: scheduling.queued_requests_max,
        max_queued_tokens: scheduling.queued_tokens_max,
        max_choices: config.limits.choices_max,
        max_step: scheduling.max_step,
        prefix_cache: scheduling.prefix_cache,
        ..SchedulerSettings::default()
    }
}

/// One line now and then: a start that takes minutes shall not look like one that hangs.
fn told_now_and_then() -> impl Fn(Progress) {
    let last = std::cell::Cell::new(Instant::now());
    move |progress| {
        if last.get().elapsed() < PROGRESS_INTERVAL {
            return;
        }
        last.set(Instant::now());
        tracing::info!(
            layers = progress.layers_done,
            of = progress.layers,
            mib = progress.bytes >> 20,
            "loading"
        );
    }
}

/// Between two lines.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);

/// Largest file of --chat-template.
const TEMPLATE_BYTES_MAX: u64 = 16 << 20;

fn text(settings: &ModelSettings, checkpoint: &Checkpoint) -> Result<TextModel, StartError> {
    let Checkpoint { place, files, config, .. } = checkpoint;
    let refused = |place: &str| {
        let place = place.to_owned();
        move |source| StartError::Text { place, source }
    };
    let own_template = match &settings.chat_template {
        Some(path) => {
            let bytes = read_bounded(path, TEMPLATE_BYTES_MAX).map_err(StartError::Template)?;
            let file = path.display().to_string();
            let source = String::from_utf8(bytes)
                .map_err(|_| StartError::Template(SourceError::new(&file, None, "is not UTF-8")))?;
            Some((file, source))
        }
        None => None,
    };
    let has_none = files.tokenizer.is_none() && files.vocabulary.is_none();
    if has_none && settings.load_format == LoadFormat::Dummy {
        let vocab = u32::try_from(config.vocab).unwrap_or(u32::MAX);
        return TextModel::dummy(vocab).map_err(refused(place));
    }
    let mut files = files.clone();
    if let Some((_, source)) = &own_template {
        files.chat_template = Some(source.clone());
    }
    let text = TextModel::from_files(&files, config.family.dialects);
    text.map_err(|error| match (&own_template, &error) {
        (Some((path, _)), TextFilesError::Template(_)) => refused(path)(error),
        _ => refused(place)(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::test_support::info;

    #[test]
    fn an_answer_ends_where_a_turn_does() {
        let mut info = InstanceInfo { vocab: 300, eos_token_ids: vec![299, 7], ..info() };
        let text = TextModel { ends: vec![2, 7, 300], ..TextModel::dummy(300).unwrap() };
        end_with_turns(&mut info, &text);
        assert_eq!(info.eos_token_ids, [2, 7, 299], "once, and none beyond the vocabulary");
    }
}
