//! A server on a real socket: every part of the product but a model, whose place has a runner that
//! gives the same token at once.
//!
//! One a process, started by the first input. Its bounds are small, so that no input takes long.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use pagoda_engine::api::Api;
use pagoda_engine::api::instance::Instance;
use pagoda_engine::config::Limits;
use pagoda_engine::handle::EngineHandle;
use pagoda_engine::http::body::BodyBudget;
use pagoda_engine::http::keys::Keys;
use pagoda_engine::http::route::Router;
use pagoda_engine::http::service::{READABLE_HEADERS, Service};
use pagoda_engine::metrics::{HttpMetrics, Metrics};
use pagoda_engine::model::InstanceInfo;
use pagoda_engine::profiles::FACES;
use pagoda_engine::runner::NullRunner;
use pagoda_engine::scheduler::settings::SchedulerSettings;
use pagoda_engine::step::start;
use pagoda_engine::text::{TextModel, TextPool};
use pagoda_engine::trace::Tracer;
use pagoda_http::cors::Cors;
use pagoda_http::hosts::Hosts;
use pagoda_http::server::{Server, Settings};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::simulation::workload::instance;

/// What an input needs of the server.
pub(super) struct Running {
    /// Where it listens.
    pub(super) address: SocketAddr,
    /// Its engine.
    pub(super) engine: EngineHandle,
    /// Dropped, it would tell the server to drain.
    _drain: watch::Sender<bool>,
}

/// Tokens of a sequence at most.
const LEN_MAX: u32 = 96;

/// The server, started once.
pub(super) fn running() -> &'static Running {
    static RUNNING: OnceLock<Running> = OnceLock::new();
    RUNNING.get_or_init(begin)
}

fn begin() -> Running {
    let vocab = 300;
    let info = InstanceInfo {
        vocab,
        max_model_len: LEN_MAX,
        eos_token_ids: vec![vocab - 1],
        max_logprobs: 5,
        ..instance(1, 16, 600, (40, 600))
    };
    let letter = u32::from(b'a');
    let runner = Box::new(NullRunner::new(1, letter));
    let (engine, _thread) = start(runner, info, SchedulerSettings::default()).expect("threads");
    let metrics = Metrics::new(true).expect("a registry");
    let api = Api::new(metrics.clone());
    let pool = Arc::new(TextPool::new(1, 16).expect("threads"));
    let text = TextModel::dummy(vocab).expect("a tokenizer");
    let names = vec!["model-a".to_owned(), "org/model-b".to_owned()];
    let model = Arc::new(Instance::new(names, engine.clone(), text, pool, &metrics));
    api.serve(&[model]).expect("no name is taken");
    let http = pagoda_http::limits::Limits {
        body_bytes_max: 1 << 20,
        head_timeout: Duration::from_secs(5),
        body_timeout: Duration::from_secs(5),
        ..Default::default()
    };
    let limits = Limits {
        http: http.clone(),
        choices_max: 8,
        body_bytes_total: 16 << 20,
        ..Limits::default()
    };
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    socket.set_nonblocking(true).expect("a socket");
    let address = socket.local_addr().expect("an address");
    let service = Arc::new(Service {
        hosts: Hosts::of(address, &[]),
        router: Router::new(FACES).expect("faces"),
        callers: Keys::new(&[], None).expect("no file").into(),
        admin_keys: Keys::new(&[], None).expect("no file"),
        cors: Cors::new(&[], READABLE_HEADERS),
        metrics_public: false,
        bodies: BodyBudget::new(&limits),
        limits: Arc::new(limits.clone()),
        api,
        metrics: HttpMetrics::new(metrics),
        tracer: Tracer::default(),
    });
    let (drain, draining) = watch::channel(false);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).enable_all().build().expect("threads");
    std::thread::spawn(move || {
        runtime.block_on(async {
            let listener = TcpListener::from_std(socket).expect("a listener");
            Server::new(service, Settings { limits: http, ..Settings::default() }, draining)
                .run(listener)
                .await;
        });
    });
    Running { address, engine, _drain: drain }
}
