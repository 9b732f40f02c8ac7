//! Pagoda's engine, from socket to device and back.
//!
//! The modules stand in the order in which a request meets them; ARCHITECTURE.md draws the path.
//! Two thread borders, both crossed by plain data only: [`request::Request`] goes in through
//! [`handle::EngineHandle::submit`], [`request::Event`]s come back through
//! [`handle::EventStream`]. One thread owns scheduler, KV bookkeeping and device.

/// The life of the process: listen, load, serve, drain.
pub mod serve;

/// What this machine has to run models on.
pub mod doctor;

/// What models of the hub are on this machine.
pub mod models;

/// Models of the hub become folders.
pub mod hub;

/// Kernels for GPUs, made ahead of time.
pub mod kernel_file;

/// Settings, from written to meant.
pub mod config;

/// Sockets, routes, keys, bodies and answers.
pub mod http;

/// The faces of the server.
pub mod profiles;

/// The chat page.
pub mod page;

/// Operations that profiles call; they know no profile.
pub mod api;

/// Text on both sides of the engine: templates, tokenizer, detokenizer, stop strings.
pub mod text;

/// Traces of requests.
pub mod trace;

/// Whose certificates are trusted.
pub mod certificates;

/// Every metric.
pub mod metrics;

/// The border types: what goes to the engine thread and what comes back.
pub mod request;

/// Launches steps on a device and finishes them.
pub mod runner;

/// From a checkpoint to a recorded decoder; what the engine may know about it.
pub mod model;

/// How much memory there is, and how many KV blocks that makes.
pub mod memory;

/// The demo model that is part of the program.
pub mod demo;

/// Submits requests to the engine thread and brings their events back.
pub mod handle;

/// One choice of a request, as the engine thread knows it.
pub mod sequence;

/// Who computes what in the next step.
pub mod scheduler;

/// Bookkeeping of the paged KV cache.
pub mod kv;

/// The step loop: one thread that owns scheduler, KV bookkeeping and device.
pub mod step;

/// The control plane, as a data plane sees it.
pub mod plane;
