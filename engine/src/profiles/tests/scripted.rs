//! A server on a real socket with an engine thread that follows the prompt's text: it echoes the
//! prompt's bytes, or hangs, waits or fails when the prompt says so.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use pagoda_http::cors::Cors;
use pagoda_http::hosts::Hosts;
use pagoda_http::server::{Server, Settings};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::api::Api;
use crate::api::instance::Instance;
use crate::api::test_support::info;
use crate::config::Limits;
use crate::handle::stream::{EventSink, FlatToken};
use crate::handle::{Inbox, Message, border};
use crate::http::body::BodyBudget;
use crate::http::keys::Keys;
use crate::http::route::{Face, Router};
use crate::http::service::{READABLE_HEADERS, Service};
use crate::metrics::{HttpMetrics, Metrics};
use crate::model::info::InstanceInfo;
use crate::profiles::FACES;
use crate::request::{FinishReason, StepError};
use crate::scheduler::settings::SchedulerSettings;
use crate::sequence::SequenceGroup;
use crate::text::{TextModel, TextPool};
use crate::trace::Tracer;

/// End-of-sequence mark of the made-up tokenizer over 300 ids.
const EOS: u32 = 299;

/// A server that a test talks to.
pub(super) struct Scripted {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its operations.
    pub api: Arc<Api>,
    /// Requests that the engine has taken.
    pub taken: Arc<AtomicU32>,
    /// Requests whose stream was dropped before they ended.
    pub cancelled: Arc<AtomicU32>,
    /// Its one thread for text.
    pub pool: Arc<TextPool>,
    /// Its room for bodies.
    pub bodies: Arc<BodyBudget>,
    drain: watch::Sender<bool>,
}

/// What a test may choose.
#[derive(Default)]
pub(super) struct Setup {
    /// Static keys.
    pub keys: Vec<String>,
    /// Keys for changing models.
    pub admin_keys: Vec<String>,
    /// Allowed origins.
    pub origins: Vec<String>,
    /// Bounds.
    pub limits: Limits,
    /// How much may wait and be answered.
    pub scheduling: SchedulerSettings,
    /// Leave the model out, as while loading.
    pub is_loading: bool,
    /// The model's text, instead of bytes as tokens.
    pub text: Option<TextModel>,
}

impl Scripted {
    /// A server without keys.
    pub(super) async fn open() -> Self {
        Self::with(Setup::default()).await
    }

    /// A server as set up.
    pub(super) async fn with(mut setup: Setup) -> Self {
        let metrics = Metrics::new(true).unwrap();
        let api = Api::new(metrics.clone());
        let (taken, cancelled) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let pool = Arc::new(TextPool::new(1, 16).unwrap());
        if !setup.is_loading {
            let info = InstanceInfo { eos_token_ids: vec![EOS], max_model_len: 512, ..info() };
            let (engine, inbox) = border(info, setup.scheduling.clone());
            let counters = (taken.clone(), cancelled.clone());
            std::thread::spawn(move || run(&inbox, &counters));
            let names = vec!["model-a".to_string(), "org/model-b".to_string()];
            let text = setup.text.take().unwrap_or_else(|| TextModel::dummy(300).unwrap());
            let instance = Instance::new(names, engine, text, pool.clone(), &metrics);
            api.serve(&[Arc::new(instance)]).unwrap();
        }
        let bodies = BodyBudget::new(&setup.limits);
        let (address, drain) = listen(setup, bodies.clone(), api.clone(), metrics).await;
        Scripted { address, api, taken, cancelled, pool, bodies, drain }
    }

    /// Stops accepting and lets connections end.
    pub(super) fn drain(&self) {
        self.drain.send(true).unwrap();
    }

    /// Waits until the engine has seen `count` requests go away early.
    pub(super) async fn saw_cancelled(&self, count: u32) {
        until(|| self.cancelled.load(SeqCst) == count).await;
    }

    /// Waits until the engine has taken `count` requests.
    pub(super) async fn has_taken(&self, count: u32) {
        until(|| self.taken.load(SeqCst) == count).await;
    }
}

/// A listener with all faces over `api`.
pub(super) async fn listen(
    setup: Setup,
    bodies: Arc<BodyBudget>,
    api: Arc<Api>,
    metrics: Arc<Metrics>,
) -> (SocketAddr, watch::Sender<bool>) {
    listen_with(FACES, setup, bodies, api, metrics).await
}

/// A listener with these faces over `api`.
pub(super) async fn listen_with(
    faces: &'static [&'static Face],
    setup: Setup,
    bodies: Arc<BodyBudget>,
    api: Arc<Api>,
    metrics: Arc<Metrics>,
) -> (SocketAddr, watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = Service {
        hosts: Hosts::of(address, &setup.origins),
        router: Router::new(faces).unwrap(),
        callers: Keys::new(&setup.keys, None).unwrap().into(),
        admin_keys: Keys::new(&setup.admin_keys, None).unwrap(),
        cors: Cors::new(&setup.origins, READABLE_HEADERS),
        metrics_public: false,
        bodies,
        limits: Arc::new(setup.limits.clone()),
        api,
        metrics: HttpMetrics::new(metrics),
        tracer: Tracer::default(),
    };
    let (drain, draining) = watch::channel(false);
    let settings = Settings {
        limits: setup.limits.http,
        connections: service.metrics.connections.clone(),
        ..Settings::default()
    };
    tokio::spawn(Server::new(Arc::new(service), settings, draining).run(listener));
    (address, drain)
}

/// Waits until something holds, and fails if it never does.
pub(super) async fn until(holds: impl Fn() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it did not happen within ten seconds");
}

fn run(inbox: &Inbox, (taken, cancelled): &(Arc<AtomicU32>, Arc<AtomicU32>)) {
    for message in &inbox.messages {
        let Message::Submit(group) = message else { continue };
        // What is submitted has left the queue.
        let choices = group.sequences.len() as u64;
        let prompt_tokens = group.sequences[0].prompt.len() as u64;
        group.places.give_back(&inbox.shared.stats, choices, prompt_tokens);
        taken.fetch_add(1, SeqCst);
        let cancelled = cancelled.clone();
        std::thread::spawn(move || play(*group, &cancelled));
    }
}

/// Plays the script that the prompt names.
fn play(group: SequenceGroup, cancelled: &AtomicU32) {
    let SequenceGroup { mut sink, sequences, .. } = group;
    let prompt: Vec<u32> = sequences[0].prompt.to_vec();
    let bytes: Vec<u8> = prompt.iter().filter_map(|id| u8::try_from(*id).ok()).collect();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let wait_for_leave = |sink: &EventSink| {
        while !sink.is_abandoned() {
            std::thread::sleep(Duration::from_millis(1));
        }
        cancelled.fetch_add(1, SeqCst);
    };
    if text.contains("wait in the queue") {
        return wait_for_leave(&sink);
    }
    if text.contains("vanish") {
        return;
    }
    if text.contains("fail at once") {
        return sink.failed(StepError::ShuttingDown);
    }
    sink.started(prompt.len() as u32, 3);
    if let Some(num_top) = sequences[0].prompt_top {
        let top: Vec<(u32, f32)> = (0..num_top).map(|id| (id, -1.0 - id as f32)).collect();
        for id in prompt.iter().skip(1) {
            sink.prompt(flat(*id), &top);
        }
    }
    sink.wake();
    for (choice, sequence) in sequences.iter().enumerate() {
        let choice = choice as u32;
        let num_top = sequence.sampler.num_logprobs.unwrap_or(0);
        let top: Vec<(u32, f32)> = (0..num_top).map(|id| (id, -1.0 - id as f32)).collect();
        let mut reason = FinishReason::Length;
        for (index, id) in said(&text, &prompt).into_iter().chain([EOS]).enumerate() {
            if sink.is_abandoned() {
                cancelled.fetch_add(1, SeqCst);
                return;
            }
            if index as u32 == sequence.stop.max_tokens {
                break;
            }
            if index == 2 && text.contains("fail midway") {
                return sink.failed(StepError::Device("a secret of the machine".into()));
            }
            if index == 2 && text.contains("hang midway") {
                return wait_for_leave(&sink);
            }
            if id == EOS && text.contains("until stopped") {
                // The reader stops all choices but the last, with which it drops the stream.
                if !until_stopped(&sink, choice) {
                    cancelled.fetch_add(u32::from(sink.is_abandoned()), SeqCst);
                    return;
                }
                reason = FinishReason::Stopped;
                break;
            }
            sink.token(choice, flat(id), &top);
            sink.wake();
            if sequence.stop.eos_token_ids.contains(&id) {
                reason = FinishReason::Eos;
                break;
            }
            if sequence.stop.stop_token_ids.contains(&id) {
                reason = FinishReason::StopToken(id);
                break;
            }
        }
        sink.finished(choice, reason);
        sink.wake();
    }
}

/// Waits until the reader stops the choice; false if it leaves instead, or does neither for long.
fn until_stopped(sink: &EventSink, choice: u32) -> bool {
    for _ in 0..5000 {
        if sink.is_stopped(choice) || sink.is_abandoned() {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    sink.is_stopped(choice)
}

/// A chat's last user message without the template's marks, or the whole prompt.
fn said(text: &str, prompt: &[u32]) -> Vec<u32> {
    match text.rsplit_once("user\n") {
        Some((_, rest)) => {
            rest.split("\nassistant").next().unwrap_or(rest).bytes().map(u32::from).collect()
        }
        None => prompt.to_vec(),
    }
}

fn flat(id: u32) -> FlatToken {
    FlatToken { id, logprob: -0.5, rank: 1 }
}
