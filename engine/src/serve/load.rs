//! From settings to an instance: device, checkpoint, weights, text, engine thread.
//!
//! Runs on a thread of its own, for one model at a time: first all small files are opened, then the
//! weights are read. Whatever goes wrong is one clear error for whoever asked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::api::instance::Instance;
use crate::config::{LoadFormat, ModelConfig, ModelSettings};
use crate::handle::AnswerBudget;
use crate::hub::{self, HubError, Wish};
use crate::memory::{Beside, KvBudget, ModelMemory};
use crate::metrics::Metrics;
use crate::model::files::read_bounded;
use crate::model::load::least_on_cpu;
use crate::model::source::SourceError;
use crate::model::{
    self, Checkpoint, InstanceInfo, LoadError, LoadOptions, LoadedModel, ModelSource, Progress,
};
use crate::runner::Turns;
use crate::scheduler::settings::SchedulerSettings;
use crate::serve::device::{Chosen, GpuPlace, OnGpu};
use crate::step::{self, EngineThread};
use crate::text::files::TextFilesError;
use crate::text::{Rendering, TextModel, TextPool};

/// An instance, and what there is to tell about its start.
pub struct Loaded {
    /// Serves.
    pub instance: Arc<Instance>,
    /// Says how the engine ended.
    pub thread: EngineThread,
    /// Lines of the start-up summary.
    pub summary: String,
    /// What it holds.
    pub memory: ModelMemory,
    /// Where it came from.
    pub source: String,
    /// Its place on the GPU, if it runs there.
    pub(crate) on_gpu: Option<OnGpu>,
}

/// What all models of a process share.
#[derive(Clone)]
pub struct Shared {
    /// Every metric.
    pub metrics: Arc<Metrics>,
    /// Tokenizes and renders.
    pub texts: Arc<TextPool>,
    /// Steps on the CPU take turns.
    pub turns: Turns,
    /// What answers may hold, of all models together.
    pub answers: Arc<AnswerBudget>,
    gpu: GpuPlace,
}

impl Shared {
    /// For a process that serves nothing yet.
    pub fn new(metrics: Arc<Metrics>) -> std::io::Result<Self> {
        let texts = Arc::new(TextPool::new(SHORT_TEXT_THREADS, TEXT_QUEUE_MAX)?);
        let answers = AnswerBudget::new(SchedulerSettings::default().max_answer_items);
        Ok(Shared { metrics, texts, turns: Turns::default(), answers, gpu: GpuPlace::default() })
    }
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

/// A model whose small files are read and whose device is open: no weight is in memory yet.
pub struct Opened {
    checkpoint: Checkpoint,
    text: TextModel,
    device: Chosen,
    on_gpu: Option<OnGpu>,
}

impl Opened {
    /// Opens what the settings name; its template is rendered where `rendering` says.
    pub fn open(
        config: &ModelConfig,
        shared: &Shared,
        rendering: &Rendering,
    ) -> Result<Self, StartError> {
        let checkpoint = Checkpoint::open(&source(&config.model)?).map_err(StartError::Model)?;
        // What is wrong with the text files is told before minutes go into the weights.
        let text = text(&config.model, &checkpoint, rendering)?;
        let (device, on_gpu) = Chosen::open_in(&config.device, &shared.gpu)?;
        Ok(Opened { checkpoint, text, device, on_gpu })
    }

    /// Bytes of the host's memory that it will take at least.
    pub fn least_bytes(&self, config: &ModelConfig) -> Result<u64, StartError> {
        let options = options(config, &self.device, Beside::default());
        match &self.device {
            Chosen::Cpu { .. } => {
                let need = least_on_cpu(&self.checkpoint, &options).map_err(StartError::Model)?;
                Ok(need.total())
            }
            Chosen::Gpu(..) => Ok(0),
        }
    }

    /// Loads it beside what other models hold.
    pub fn load(
        self,
        config: &ModelConfig,
        shared: &Shared,
        beside: Beside,
    ) -> Result<Loaded, StartError> {
        let Opened { checkpoint, text, device, on_gpu } = self;
        tracing::info!(model = config.model.names[0], "loading");
        let source = checkpoint.place.clone();
        let (options, progress) = (options(config, &device, beside), told_now_and_then());
        let loaded = match &device {
            Chosen::Cpu { .. } => model::load_checkpoint(checkpoint, &options, &progress),
            Chosen::Gpu(gpu, _) => model::load_on(gpu, checkpoint, &options, &progress),
        };
        let LoadedModel { runner, mut info, summary, memory, .. } =
            loaded.map_err(StartError::Model)?;
        end_with_turns(&mut info, &text);
        let summary = format!("{summary}{}", device.summary());
        let runner = shared.turns.line_up(runner);
        let (settings, answers) = (scheduler_settings(config), shared.answers.clone());
        let started = step::start_beside(runner, info, settings, answers);
        let (engine, thread) = started.map_err(StartError::Thread)?;
        let (names, texts) = (config.model.names.clone(), shared.texts.clone());
        let instance = Arc::new(Instance::new(names, engine, text, texts, &shared.metrics));
        Ok(Loaded { instance, thread, summary, memory, source, on_gpu })
    }
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

fn options(config: &ModelConfig, chosen: &Chosen, beside: Beside) -> LoadOptions {
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
        beside,
    }
}

fn scheduler_settings(config: &ModelConfig) -> SchedulerSettings {
    let scheduling = &config.scheduling;
    SchedulerSettings {
        max_queued_requests: scheduling.queued_requests_max,
        max_queued_tokens: scheduling.queued_tokens_max,
        max_choices: config.choices_max,
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

fn text(
    settings: &ModelSettings,
    checkpoint: &Checkpoint,
    rendering: &Rendering,
) -> Result<TextModel, StartError> {
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
    // The demo's template is ours.
    let is_ours = settings.folder.is_none() && own_template.is_none();
    let rendering = if is_ours { &Rendering::Here } else { rendering };
    let text = TextModel::from_files(&files, config.family.dialects, rendering);
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
