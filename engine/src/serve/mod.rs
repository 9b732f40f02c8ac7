//! The life of the process: listen, load, serve, drain.
//!
//! The port is taken first, so that a second start fails at once and `/ready` answers while models
//! load. An engine thread and the network runtime share nothing but the handle.

/// From settings to an instance.
pub mod load;

/// The models of a process, as they come and go.
pub(crate) mod lineup;

/// What an operator asks for.
mod admin;

/// What a start runs on.
pub(crate) mod device;

/// The control plane that is followed.
mod control_plane;

/// Why an engine thread ended.
mod engine_end;

/// How many sockets the process may have.
mod open_files;

/// What is printed once everything serves.
mod summary;

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pagoda_http::cors::Cors;
use pagoda_http::hosts::Hosts;
use pagoda_http::server::{Server, Settings};
use pagoda_http::tls::{Tls, TlsError};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};

use crate::api::{Api, Condition};
use crate::config::Config;
use crate::http::body::BodyBudget;
use crate::http::callers::Callers;
use crate::http::keys::{KeyFileError, Keys};
use crate::http::route::Router;
use crate::http::service::{READABLE_HEADERS, Service};
use crate::metrics::{HttpMetrics, Metrics, TraceMetrics};
use crate::profiles::{FACES, FACES_WITH_ADMIN};
use crate::step::EngineThread;
use crate::text::Rendering;
use crate::trace::Tracer;
use crate::trace::export::Exporter;
use engine_end::Panics;
use lineup::{Begun, FromFiles, Lineup, Load};
use load::{Shared, StartError};

pub use engine_end::EngineEnd;

/// Why the process does not serve, or serves no more.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {}", told(.cause))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why; told in full above, so no source of its own.
        cause: std::io::Error,
    },
    /// The key file.
    #[error(transparent)]
    Keys(#[from] KeyFileError),
    /// Certificate or key.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The control plane cannot be followed.
    #[error(transparent)]
    ControlPlane(#[from] control_plane::FollowError),
    /// The model cannot be loaded.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The network runtime, signals or metrics cannot be set up.
    #[error("cannot start: {0}")]
    Setup(String),
    /// The engine ended while serving.
    #[error(transparent)]
    Engine(#[from] EngineEnd),
}

impl ServeError {
    /// The exit code that tells it to a supervisor.
    pub fn exit_code(&self) -> u8 {
        match self {
            ServeError::Listen { .. } => 3,
            ServeError::ControlPlane(_)
            | ServeError::Keys(_)
            | ServeError::Tls(_)
            | ServeError::Setup(_) => 2,
            ServeError::Start(_) => 1,
            ServeError::Engine(EngineEnd::Panicked { .. } | EngineEnd::Early) => 70,
            ServeError::Engine(EngineEnd::Device(_)) => 71,
        }
    }
}

fn told(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            "the port is taken (is Pagoda running already? choose another with --port)".into()
        }
        _ => error.to_string(),
    }
}

/// What is left of a process that was told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Nothing: every thread that uses the device has ended.
    Clean,
    /// A thread loads or computes, and nobody waits for what it does. Exit handlers must not run.
    Busy,
}

/// An error with the whole chain of its causes, as one line. What came with a model or from a hub is
/// words in it, never orders to a terminal.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let told = inner.to_string();
        // Some errors already say what their cause says.
        if !line.contains(&told) {
            line.push_str(": ");
            line.push_str(&told);
        }
        cause = inner.source();
    }
    let is_plain = |c: char| !c.is_control();
    if line.chars().all(is_plain) {
        return line;
    }
    let shown = |c: char| match is_plain(c) {
        true => c.to_string(),
        false => c.escape_default().to_string(),
    };
    line.chars().map(shown).collect()
}

/// Serves until told to stop. Templates that came with models are rendered where `rendering` says.
pub fn serve(config: Config, rendering: Rendering) -> Result<Stop, ServeError> {
    pagoda_kernels::heap::keep_little();
    serve_what(config, FromFiles(rendering))
}

/// Serves what `load` gives.
fn serve_what(config: Config, load: impl Load) -> Result<Stop, ServeError> {
    let panics = Panics::watch();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("net")
        .build()
        .map_err(|error| ServeError::Setup(error.to_string()))?;
    let outcome = runtime.block_on(serve_until_stopped(config, load, panics));
    // What the drain gave up on must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(100));
    outcome
}

async fn serve_until_stopped(
    config: Config,
    load: impl Load,
    panics: Panics,
) -> Result<Stop, ServeError> {
    let setup = |error: std::io::Error| ServeError::Setup(error.to_string());
    let mut signals = Signals::new().map_err(setup)?;
    open_files::allow(config.limits.http.connections_max);
    let keys = Keys::new(&config.network.api_keys, config.network.api_key_file.clone())?;
    let tls = tls(&config)?;
    let metrics =
        Metrics::new(config.vllm_metrics).map_err(|error| ServeError::Setup(error.to_string()))?;
    let address = config.network.listen;
    let listener =
        TcpListener::bind(address).await.map_err(|cause| ServeError::Listen { address, cause })?;
    let address = listener.local_addr().unwrap_or(address);

    let api = Api::with_step_time_max(metrics.clone(), config.step_time_max);
    let shared = Shared::new(metrics.clone()).map_err(setup)?;
    let lineup = Lineup::new(api.clone(), shared, load, &config);
    if !config.network.admin_keys.is_empty() {
        api.set_operator(Arc::new(lineup.clone()));
    }
    let exporter = exporter(&config, &metrics)?;
    let http = HttpMetrics::new(metrics);
    let hosts = Hosts::of(address, &config.network.allowed_origins);
    let tracer = exporter.as_ref().map(|exporter| exporter.tracer(config.traces.sampling));
    let followed = config.network.control_plane.as_ref();
    let (callers, _following) = control_plane::callers(followed, &keys, &api)?;
    let mut service = service(&config, callers, hosts, (api.clone(), http.clone()))?;
    service.tracer = tracer.unwrap_or_default();
    let (drain, draining) = watch::channel(false);
    let settings = Settings {
        limits: config.limits.http.clone(),
        connections: http.connections.clone(),
        tls,
        trusted_proxies: config.network.trusted_proxies.clone(),
    };
    let server = Server::new(Arc::new(service), settings, draining);
    let serving = tokio::spawn(server.run(listener));
    let upkeep = tokio::spawn(upkeep(api.clone(), keys));

    let begun = tokio::select! {
        begun = begin(config.clone(), lineup.clone()) => begun.map(Some),
        // Nothing runs yet: nothing to finish.
        () = signals.stop() => Ok(None),
    };
    let outcome = match begun {
        Ok(Some(begun)) => {
            api.set_started();
            let text = summary::summary(&config, address, &begun);
            drop(begun);
            serve_models(&text, &lineup, &mut signals, &panics).await.map(Some)
        }
        Ok(None) => Ok(None),
        Err(error) => Err(error),
    };
    api.start_draining();
    let has_begun = match outcome {
        Ok(has_begun) => has_begun.is_some(),
        Err(error) => {
            // Streams have their error events; give the sockets a moment to carry them.
            let _ = drain.send(true);
            let _ = tokio::time::timeout(FLUSH_TIME, serving).await;
            finish_sending(exporter).await;
            return Err(error);
        }
    };
    let deadline = config.network.shutdown_timeout;
    lineup.drain(deadline);
    finish_what_runs(&http, deadline, &mut signals).await;
    let _ = drain.send(true);
    // Idle connections close now; what still writes is given up on.
    let _ = tokio::time::timeout(FLUSH_TIME, serving).await;
    upkeep.abort();
    finish_sending(exporter).await;
    if has_begun { end_of_all(&lineup, &panics).await } else { Ok(Stop::Busy) }
}

/// Serves what is there until a signal, or until an engine ends.
async fn serve_models<L: Load>(
    summary: &str,
    lineup: &Lineup<L>,
    signals: &mut Signals,
    panics: &Panics,
) -> Result<(), ServeError> {
    // Nobody reads it if this fails, and that is no reason to stop.
    let _ = std::io::stdout().lock().write_all(summary.as_bytes());
    tokio::select! {
        () = signals.stop() => Ok(()),
        thread = lineup.failed() => Err(EngineEnd::of(thread, panics).into()),
    }
}

/// Waits for the engine threads of all models.
async fn end_of_all<L: Load>(lineup: &Lineup<L>, panics: &Panics) -> Result<Stop, ServeError> {
    // Without all threads something still loads, or leaves.
    let Some(threads) = lineup.take_threads() else { return Ok(Stop::Busy) };
    for thread in threads {
        if end_of(thread, panics).await? == Stop::Busy {
            return Ok(Stop::Busy);
        }
    }
    Ok(Stop::Clean)
}

/// Waits for an engine thread that drains, as long as a step should take.
async fn end_of(thread: EngineThread, panics: &Panics) -> Result<Stop, ServeError> {
    let ended = async {
        while !thread.is_finished() {
            tokio::time::sleep(DRAIN_LOOK_INTERVAL).await;
        }
    };
    if tokio::time::timeout(FLUSH_TIME, ended).await.is_err() {
        return Ok(Stop::Busy);
    }
    match EngineEnd::of(Some(thread), panics) {
        EngineEnd::Early => Ok(Stop::Clean),
        failed => Err(failed.into()),
    }
}

/// Waits for the running requests, a deadline or a second signal. The port stays open meanwhile,
/// so that a load balancer sees `/ready` turn to 503; new work is refused.
async fn finish_what_runs(http: &HttpMetrics, deadline: Duration, signals: &mut Signals) {
    tracing::info!(
        requests = http.active(),
        seconds = deadline.as_secs(),
        "stopping: finishing what runs"
    );
    let finished = async {
        while http.active() > 0 {
            tokio::time::sleep(DRAIN_LOOK_INTERVAL).await;
        }
    };
    tokio::select! {
        ended = tokio::time::timeout(deadline + FLUSH_TIME, finished) => {
            if ended.is_err() {
                tracing::warn!("the time to finish is over; what runs is dropped");
            }
        }
        () = signals.stop() => tracing::warn!("stopping at once"),
    }
}

/// How soon the end of the last request is noticed.
const DRAIN_LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// How long sockets may take to carry what was written last.
const FLUSH_TIME: Duration = Duration::from_secs(1);

/// What TLS needs, if it is spoken; read again as long as the runtime lives.
fn tls(config: &Config) -> Result<Option<Arc<Tls>>, ServeError> {
    let Some(files) = config.network.tls.clone() else { return Ok(None) };
    let tls = Tls::load(files, SystemTime::now())?;
    let fresh = tls.clone().keep_fresh().map_err(|error| ServeError::Setup(error.to_string()))?;
    tokio::spawn(fresh);
    Ok(Some(tls))
}

fn service(
    config: &Config,
    callers: Callers,
    hosts: Hosts,
    (api, metrics): (Arc<Api>, Arc<HttpMetrics>),
) -> Result<Service, ServeError> {
    // Nobody may change models without a key: then there is nothing to ask for.
    let admin_keys = Keys::new(&config.network.admin_keys, None)?;
    let faces = if admin_keys.is_open() { FACES } else { FACES_WITH_ADMIN };
    Ok(Service {
        router: Router::new(faces).ok_or_else(|| ServeError::Setup("no profile".into()))?,
        callers,
        admin_keys,
        hosts,
        cors: Cors::new(&config.network.allowed_origins, READABLE_HEADERS),
        metrics_public: config.network.metrics_public,
        limits: Arc::new(config.limits.clone()),
        bodies: BodyBudget::new(&config.limits),
        api,
        metrics,
        tracer: Tracer::default(),
    })
}

/// Sends spans, if somebody wants them.
fn exporter(config: &Config, metrics: &Metrics) -> Result<Option<Exporter>, ServeError> {
    for note in &config.traces.notes {
        tracing::warn!("traces: {note}");
    }
    let Some(collector) = config.traces.collector.clone() else { return Ok(None) };
    let exporter = Exporter::start(collector, &config.traces.resource, TraceMetrics::new(metrics));
    Ok(Some(exporter.map_err(|why| ServeError::Setup(format!("traces: {why}")))?))
}

/// Spans of the last requests go out, too.
async fn finish_sending(exporter: Option<Exporter>) {
    if let Some(exporter) = exporter {
        exporter.finish(FLUSH_TIME).await;
    }
}

/// Loads the models to begin with, for seconds or minutes: not on the runtime's threads, which
/// answer `/ready`.
async fn begin<L: Load>(config: Config, lineup: Arc<Lineup<L>>) -> Result<Vec<Begun>, ServeError> {
    // Whoever asks for another one meanwhile comes after all of these, whatever becomes of the future.
    let turn = lineup.turn_to_load.clone().lock_owned().await;
    let work = move || {
        let begun = lineup.begin_with(&config.models);
        drop(turn);
        begun
    };
    match on_load_thread(work).await.map_err(|error| ServeError::Setup(error.to_string()))? {
        Some(outcome) => Ok(outcome?),
        None => Err(ServeError::Setup("loading the model panicked".into())),
    }
}

/// Runs `work` on a thread of its own; `None` if it panicked. Goes on when the future is dropped.
async fn on_load_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<Option<T>> {
    let (done, outcome) = oneshot::channel();
    let thread = std::thread::Builder::new().name("load".into());
    thread.spawn(move || {
        // Nobody waits any more if the process was told to stop.
        let _ = done.send(work());
    })?;
    Ok(outcome.await.ok())
}

/// Whatever has to be done again and again: keys that change, samples that pile up, a watchdog.
async fn upkeep(api: Arc<Api>, keys: Arc<Keys>) {
    let (mut failed, mut keys_failed) = (false, false);
    loop {
        tokio::time::sleep(UPKEEP_INTERVAL).await;
        api.metrics.run_upkeep();
        let reread = keys.clone();
        match tokio::task::spawn_blocking(move || reread.reload()).await {
            Ok(Ok(true)) => tracing::info!("the API keys were read again"),
            Ok(Ok(false)) => keys_failed = false,
            Ok(Err(error)) if !std::mem::replace(&mut keys_failed, true) => {
                tracing::warn!(%error, "the API keys stay as they were");
            }
            Ok(Err(_)) | Err(_) => {}
        }
        let fails = api.condition() == Condition::Failed;
        if fails && !failed {
            tracing::error!("the engine hangs in a step or has ended; /health answers 503");
        }
        failed = fails;
    }
}

/// A key that was revoked in the file is refused within this time.
const UPKEEP_INTERVAL: Duration = Duration::from_millis(500);

/// SIGTERM and Ctrl-C.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next of them.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests;
