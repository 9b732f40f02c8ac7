//! Models that come and go over runners that compute nothing: what is promised, who waits for whom,
//! and what a failure leaves behind.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use futures_util::FutureExt;
use serde_json::Map;

use super::*;
use crate::api::error::ApiError;
use crate::api::operator::{Operator, Wanted};
use crate::api::test_support::info;
use crate::config::flags::Written;
use crate::memory::ModelMemory;
use crate::metrics::Metrics;
use crate::request::{Request, SamplerParams, Segment, StopParams, Tenant};
use crate::runner::NullRunner;
use crate::scheduler::settings::SchedulerSettings;
use crate::serve::begin;
use crate::step;
use crate::text::TextModel;

/// Every model takes this much, and needs less at first.
const WEIGHTS: u64 = 100;
const KV_CACHE: u64 = 50;

/// Loads models that compute nothing. One whose quantization is set is broken: `q8_0` cannot be
/// opened, `q4_0` cannot be loaded, `fp8` panics.
struct Fakes {
    log: Arc<Mutex<Vec<(String, Beside)>>>,
    /// Each load waits for a word, if there is one.
    words: Mutex<Option<Receiver<()>>>,
}

fn broken(stage: &str) -> StartError {
    StartError::Setting { setting: "planted", reason: stage.into() }
}

fn plant(config: &ModelConfig) -> &str {
    config.model.quantization.map_or("", |quantization| quantization.name())
}

impl Load for Fakes {
    type Opened = ();

    fn open(&self, config: &ModelConfig, _: &Shared) -> Result<(), StartError> {
        if plant(config) == "q8_0" { Err(broken("open")) } else { Ok(()) }
    }

    fn least_bytes(&self, (): &(), _: &ModelConfig) -> Result<u64, StartError> {
        Ok(WEIGHTS)
    }

    fn load(
        &self,
        (): (),
        (config, shared): (&ModelConfig, &Shared),
        beside: Beside,
    ) -> Result<Loaded, StartError> {
        if let Some(words) = &*self.words.lock().unwrap() {
            words.recv().unwrap();
        }
        match plant(config) {
            "q4_0" => return Err(broken("load")),
            "fp8" => panic!("planted"),
            _ => {}
        }
        self.log.lock().unwrap().push((config.model.names[0].clone(), beside));
        let runner = Box::new(NullRunner::new(1, 65));
        let (engine, thread) = step::start(runner, info(), SchedulerSettings::default()).unwrap();
        let (names, texts) = (config.model.names.clone(), shared.texts.clone());
        let text = TextModel::dummy(300).unwrap();
        let instance = Arc::new(Instance::new(names, engine, text, texts, &shared.metrics));
        let memory = ModelMemory { weights: WEIGHTS, kv_cache: KV_CACHE, ..ModelMemory::default() };
        let (summary, source) = (String::new(), "planted".into());
        Ok(Loaded { instance, thread, summary, memory, source, on_gpu: None })
    }
}

struct Set {
    lineup: Arc<Lineup<Fakes>>,
    log: Arc<Mutex<Vec<(String, Beside)>>>,
    config: Config,
}

fn lineup(models: &[&str]) -> Set {
    let model = Some(models.iter().map(ToString::to_string).collect());
    let config = Written { model, ..Written::default() }.resolve().unwrap();
    let metrics = Metrics::new(false).unwrap();
    let (api, shared) = (Api::new(metrics.clone()), Shared::new(metrics).unwrap());
    let log = Arc::default();
    let fakes = Fakes { log: Arc::clone(&log), words: Mutex::new(None) };
    let lineup = Lineup::new(api, shared, fakes, &config);
    Set { lineup, log, config }
}

impl Set {
    fn begin(&self) -> Result<(), StartError> {
        self.lineup.begin_with(&self.config.models).map(drop)
    }

    /// Loads wait for a word from now on.
    fn on_words(&self) -> SyncSender<()> {
        let (say, words) = sync_channel(0);
        *self.lineup.load.words.lock().unwrap() = Some(words);
        say
    }

    fn served(&self) -> Vec<String> {
        self.lineup.api.instances().iter().map(|one| one.name().to_owned()).collect()
    }
}

fn wanted(name: &str, quantization: Option<&str>, replace: bool) -> Wanted {
    let options: Map<_, _> =
        quantization.map(|value| ("quantization".to_owned(), value.into())).into_iter().collect();
    Wanted { name: name.into(), path: "builtin".into(), options, replace, drain_timeout: None }
}

async fn until(holds: impl Fn() -> bool) {
    while !holds() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn what_later_models_need_is_left_to_them() {
    let stage = lineup(&["a=builtin", "b=builtin,kv-cache-memory-bytes=50", "c=builtin"]);
    stage.begin().unwrap();
    let beside = |promised, to_come, models_to_come| Beside { promised, to_come, models_to_come };
    let each = WEIGHTS + KV_CACHE;
    let expected = [
        ("a".to_owned(), beside(0, 2 * WEIGHTS, 1)),
        ("b".to_owned(), beside(each, WEIGHTS, 1)),
        ("c".to_owned(), beside(2 * each, 0, 0)),
    ];
    assert_eq!(*stage.log.lock().unwrap(), expected);
    assert_eq!(
        (stage.served(), stage.lineup.promised()),
        (vec!["a".into(), "b".into(), "c".into()], 3 * each)
    );
}

#[test]
fn one_that_cannot_be_opened_is_told_before_any_is_loaded() {
    let stage = lineup(&["a=builtin", "b=builtin,quantization=q8_0"]);
    assert_eq!(stage.begin().unwrap_err().to_string(), "planted: open");
    assert!(stage.log.lock().unwrap().is_empty() && stage.served().is_empty());
    assert!(stage.lineup.api.models.changing().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_fails_leaves_all_as_it_was() {
    let stage = lineup(&["a=builtin"]);
    stage.begin().unwrap();
    let before = stage.lineup.api.instances();
    for (plant, told) in [("q8_0", "open"), ("q4_0", "load"), ("fp8", "error while processing")] {
        for (name, replace) in [("x", false), ("a", true)] {
            let failed = stage.lineup.load(wanted(name, Some(plant), replace)).await;
            let error = failed.err().unwrap().to_string();
            assert!(error.contains(told), "{error}");
            assert!(Arc::ptr_eq(&before[0], &stage.lineup.api.instances()[0]));
            assert!(stage.lineup.api.models.changing().is_empty());
            assert_eq!((stage.lineup.promised(), stage.served().len()), (WEIGHTS + KV_CACHE, 1));
        }
    }
    assert!(stage.lineup.load(wanted("x", None, false)).await.is_ok(), "the next one loads");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_model_held_is_promised_until_it_is_gone() {
    let stage = lineup(&["a=builtin"]);
    stage.begin().unwrap();
    let each = WEIGHTS + KV_CACHE;
    let came = stage.lineup.load(wanted("b", None, false)).await.unwrap();
    assert_eq!(
        (stage.lineup.promised(), stage.log.lock().unwrap()[1].1.promised),
        (2 * each, each)
    );
    let gone = Arc::downgrade(&came.instance);
    drop(came);
    assert_eq!(stage.lineup.unload("b".into(), None).await, Ok(Gone { cut_off: 0, freed: each }));
    assert_eq!((stage.lineup.promised(), stage.served()), (each, vec!["a".to_owned()]));
    assert!(gone.upgrade().is_none(), "somebody keeps it");
    assert_eq!(
        stage.lineup.unload("b".into(), None).await,
        Err(ApiError::ModelNotFound("b".into()))
    );
    // A replaced one leaves behind the answer.
    assert!(stage.lineup.load(wanted("a", None, true)).await.is_ok());
    until(|| stage.lineup.promised() == each).await;
    assert_eq!(stage.served(), ["a"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_found_a_model_before_it_left_is_served_to_the_end() {
    let stage = lineup(&["a=builtin"]);
    stage.begin().unwrap();
    let found = stage.lineup.api.instance(Some("a")).unwrap();
    let hour = Some(Duration::from_secs(3600));
    let leaves = tokio::spawn(stage.lineup.unload("a".into(), hour));
    until(|| stage.lineup.in_memory()[0].stage == Stage::Draining).await;
    assert!(matches!(
        stage.lineup.api.instance(Some("a")),
        Err(ApiError::NotReady | ApiError::ModelNotFound(_))
    ));
    let request = Request {
        id: "late".into(),
        input: vec![Segment::Tokens(vec![5, 6])],
        sampler: SamplerParams::default(),
        stop: StopParams {
            max_tokens: 4,
            min_tokens: 0,
            eos_token_ids: Vec::new(),
            stop_token_ids: Vec::new(),
        },
        n: 1,
        prompt_logprobs: None,
        tenant: Tenant::default(),
        priority: 0,
    };
    let mut events = found.engine.submit(request).unwrap();
    while events.next().await.is_some() {}
    drop(events);
    assert!(found.engine.is_serving() && !leaves.is_finished());
    drop(found);
    assert_eq!(leaves.await.unwrap().map(|gone| gone.cut_off), Ok(0));
    // Nobody asked for metrics while it left.
    let counted = stage.lineup.api.metrics.render(&[]);
    let steps = counted.lines().find(|line| line.starts_with("pagoda_steps_total{"));
    assert!(steps.is_some_and(|line| !line.ends_with(" 0")), "{steps:?}");
    assert_eq!(stage.lineup.promised(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asked_may_leave_and_the_load_goes_on() {
    let stage = lineup(&["a=builtin"]);
    stage.begin().unwrap();
    let say = stage.on_words();
    assert!(stage.lineup.load(wanted("b", None, false)).now_or_never().is_none());
    let taken = stage.lineup.load(wanted("b", None, false)).await.err();
    assert_eq!(taken, Some(ApiError::ModelChanging { name: "b".into(), change: "loading" }));
    assert!(stage.lineup.take_threads().is_none(), "the process does not end cleanly meanwhile");
    say.send(()).unwrap();
    until(|| stage.served().len() == 2).await;
    assert_eq!(stage.served(), ["a", "b"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_goes_away_takes_no_model_more() {
    let stage = lineup(&["a=builtin"]);
    stage.begin().unwrap();
    let say = stage.on_words();
    let mut load = stage.lineup.load(wanted("b", None, false));
    assert!((&mut load).now_or_never().is_none());
    until(|| stage.lineup.load.words.try_lock().is_err()).await;
    let mut in_line = stage.lineup.load(wanted("c", None, false));
    assert!((&mut in_line).now_or_never().is_none());
    stage.lineup.api.start_draining();
    stage.lineup.drain(Duration::ZERO);
    assert_eq!(load.await.err(), Some(ApiError::ShuttingDown), "nobody waits for a load");
    assert_eq!(in_line.await.err(), Some(ApiError::ShuttingDown));
    say.send(()).unwrap();
    until(|| stage.lineup.api.models.changing().is_empty()).await;
    assert_eq!(stage.lineup.in_memory().len(), 1, "and it is not kept");
    assert_eq!(stage.log.lock().unwrap().len(), 2, "who stood in line is not even begun");
    assert_eq!(stage.lineup.take_threads().map(|threads| threads.len()), Some(1));
}

/// A model over HTTP during the start: what those to begin with need is not taken from them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_during_the_start_comes_after_those_to_begin_with() {
    let stage = lineup(&["a=builtin", "b=builtin"]);
    let say = stage.on_words();
    let begins = tokio::spawn(begin(stage.config.clone(), stage.lineup.clone()));
    until(|| stage.lineup.api.models.is_loading(Some("b"))).await;
    let load = tokio::spawn(stage.lineup.load(wanted("c", None, false)));
    until(|| stage.lineup.api.models.is_loading(Some("c"))).await;
    // Time to go wrong in; who waits as it should needs none.
    tokio::time::sleep(Duration::from_millis(20)).await;
    for _ in 0..3 {
        say.send(()).unwrap();
    }
    assert_eq!(begins.await.unwrap().unwrap().len(), 2);
    assert!(load.await.unwrap().is_ok());
    let log = stage.log.lock().unwrap();
    let promised: Vec<_> =
        log.iter().map(|(name, beside)| (name.as_str(), beside.promised)).collect();
    let each = WEIGHTS + KV_CACHE;
    assert_eq!(promised, [("a", 0), ("b", each), ("c", 2 * each)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_that_are_asked_for_are_bounded_also_when_nobody_waits_for_them() {
    let stage = lineup(&["a=builtin"]);
    stage.begin().unwrap();
    let say = stage.on_words();
    for number in 0..LOADS_MAX {
        let name = format!("m-{number}");
        assert!(stage.lineup.load(wanted(&name, Some("q4_0"), false)).now_or_never().is_none());
    }
    let refused = stage.lineup.load(wanted("more", None, false)).await.err();
    assert_eq!(refused, Some(ApiError::Busy { retry_after_s: 5 }));
    assert!(!stage.lineup.api.models.is_loading(Some("more")));
    assert!(stage.lineup.unload("a".into(), None).await.is_ok(), "who goes makes room");
    for _ in 0..LOADS_MAX {
        say.send(()).unwrap();
    }
    until(|| stage.lineup.places_to_load.available_permits() == LOADS_MAX).await;
    assert!(stage.lineup.api.models.changing().is_empty());
}

/// The word to stop may come between a load's last look and its model's place in the list.
#[tokio::test]
async fn a_model_that_comes_too_late_is_drained_with_the_others() {
    let stage = lineup(&["a=builtin"]);
    let Lineup { load, shared, api, .. } = &*stage.lineup;
    let late = load.load((), (&stage.config.models[0], shared), Beside::default()).unwrap();
    api.start_draining();
    stage.lineup.drain(Duration::ZERO);
    let late = stage.lineup.hold(late);
    assert!(!late.instance.engine.is_serving());
}
