//! A real engine on the CPU whose steps are watched.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use pagoda_engine::handle::{EngineHandle, EngineStats, EventStream};
use pagoda_engine::memory::KvBudget;
use pagoda_engine::model::files::Checkpoint;
use pagoda_engine::model::{LoadOptions, ModelSource, load};
use pagoda_engine::runner::{Plan, Runner, Ticket};
use pagoda_engine::scheduler::settings::SchedulerSettings;
use pagoda_engine::step;
use pagoda_kernels::batch::Batch;
use pagoda_kernels::cpu::isa::Isa;
use pagoda_kernels::dtype::DType;
use pagoda_kernels::error::KernelError;
use pagoda_kernels::kv_format::KvFormat;
use pagoda_kernels::sampling::Purpose;
use pagoda_kernels::weight_format::Quantization;

use crate::workload::{Outcome, Request};

/// Rows of a step in the cramped engine.
pub(crate) const STEP_TOKENS: usize = 97;
/// A prefill this deep can only be one of the crowd's long prompts.
const DEEP_PREFILL: u32 = 450;
const MAX_MODEL_LEN: u32 = 1024;
const BLOCK_SIZE: u32 = 16;

/// Which model, and which arithmetic.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) folder: PathBuf,
    pub(crate) isa: Isa,
    pub(crate) dtype: DType,
    pub(crate) quantization: Option<Quantization>,
    pub(crate) kv_format: KvFormat,
    pub(crate) threads: u32,
    /// Tokens for which the cramped cache has room, if all layers keep all of them.
    pub(crate) cache_tokens: u64,
}

/// A running engine.
pub(crate) struct Engine {
    pub(crate) handle: EngineHandle,
    pub(crate) seen: Arc<Seen>,
}

/// What the watched steps showed.
#[derive(Debug)]
pub(crate) struct Seen {
    chunk_sizes: [AtomicU32; STEP_TOKENS + 1],
    /// Steps in which a long prompt was in the middle of its prefill.
    pub(crate) deep_prefills: AtomicU32,
}

impl Engine {
    /// Room for everything, whole prompts in one step, nothing shared.
    pub(crate) fn ample(setup: &Setup) -> Self {
        let options = LoadOptions {
            max_num_seqs: Some(16),
            max_num_batched_tokens: Some(2048),
            kv: KvBudget::Bytes(64 << 20),
            ..LoadOptions::default()
        };
        let settings = SchedulerSettings { prefix_cache: false, ..SchedulerSettings::default() };
        Self::start(setup, options, settings)
    }

    /// A cache for `cache_tokens`, 40 seats, steps of 97 rows.
    pub(crate) fn cramped(setup: &Setup) -> Self {
        let config = Checkpoint::open(&ModelSource::Folder(setup.folder.clone())).unwrap().config;
        let heads = config.heads;
        let head_bytes = setup.kv_format.head_bytes(1, heads.head_dim);
        let bytes_per_token = 2 * config.num_layers * heads.num_kv * head_bytes;
        let options = LoadOptions {
            max_num_seqs: Some(40),
            max_num_batched_tokens: Some(STEP_TOKENS as u32),
            kv: KvBudget::Bytes(setup.cache_tokens * bytes_per_token as u64),
            ..LoadOptions::default()
        };
        Self::start(setup, options, SchedulerSettings::default())
    }

    fn start(setup: &Setup, options: LoadOptions, settings: SchedulerSettings) -> Self {
        let options = LoadOptions {
            dtype: Some(setup.dtype),
            quantization: setup.quantization,
            kv_dtype: Some(setup.kv_format),
            max_model_len: Some(MAX_MODEL_LEN),
            threads: Some(setup.threads),
            isa: Some(setup.isa.name().into()),
            block_size: Some(BLOCK_SIZE),
            ..options
        };
        let loaded = load(&ModelSource::Folder(setup.folder.clone()), &options, &|_| {}).unwrap();
        let seen = Arc::new(Seen {
            chunk_sizes: std::array::from_fn(|_| AtomicU32::new(0)),
            deep_prefills: AtomicU32::new(0),
        });
        let runner = Box::new(Watched { runner: loaded.runner, seen: seen.clone() });
        let (handle, _thread) = step::start(runner, loaded.info, settings).unwrap();
        Engine { handle, seen }
    }

    pub(crate) fn vocab(&self) -> u32 {
        self.handle.info().vocab
    }

    pub(crate) fn submit(&self, request: &Request) -> EventStream {
        self.handle.submit(request.to_engine()).unwrap()
    }

    /// Runs one request to its end.
    pub(crate) fn run(&self, request: Request) -> (Request, Outcome) {
        let mut stream = self.submit(&request);
        let mut outcome = Outcome::default();
        loop {
            match stream.try_next() {
                Some(event) => {
                    if outcome.push(event) {
                        return (request, outcome);
                    }
                }
                None => {
                    assert!(!stream.is_ended(), "{}: the stream ended early", request.name);
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
        }
    }

    pub(crate) fn stats(&self) -> EngineStats {
        self.handle.stats()
    }

    pub(crate) fn assert_chunk_sizes(&self, sizes: &[usize]) {
        for &size in sizes {
            let count = self.seen.chunk_sizes[size].load(Relaxed);
            assert!(count > 0, "no chunk of {size} rows was ever prefilled");
        }
    }
}

/// A runner that notes what its plans hold.
struct Watched {
    runner: Box<dyn Runner>,
    seen: Arc<Seen>,
}

impl Runner for Watched {
    fn depth(&self) -> usize {
        self.runner.depth()
    }

    fn launch(&mut self, plan: Plan) -> Result<Ticket, KernelError> {
        self.seen.note(&plan.step.batch);
        self.runner.launch(plan)
    }

    fn finish(&mut self, ticket: Ticket) -> Result<Plan, KernelError> {
        self.runner.finish(ticket)
    }
}

impl Seen {
    fn note(&self, batch: &Batch) {
        for seq in 0..batch.num_seqs() {
            let sampled = batch.logits.iter().find_map(|row| match row.purpose {
                Purpose::Sample { output_position } if row.seq as usize == seq => {
                    Some(output_position)
                }
                _ => None,
            });
            let rows = batch.query_len(seq);
            let is_prefill = rows > 1 || sampled.is_none_or(|position| position == 0);
            if let Some(count) = self.chunk_sizes.get(rows).filter(|_| is_prefill) {
                count.fetch_add(1, Relaxed);
            }
            if sampled.is_none() && batch.kv_len[seq] > DEEP_PREFILL {
                self.deep_prefills.fetch_add(1, Relaxed);
            }
        }
    }
}
