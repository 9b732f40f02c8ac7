//! `pagoda-bench serve`: load on a server that speaks the OpenAI API, and what its clients see of it.
//!
//! Arguments become a plan, the plan's dataset becomes requests, the client sends them when they
//! are due, records become figures, figures become a table, a file and a plot. Nothing here knows
//! which engine answers: the server is an address.

/// What was typed.
pub mod arguments;

/// What it means.
pub mod plan;

/// What requests ask.
pub mod dataset;

/// When they are sent.
pub mod arrivals;

/// Sends one and reads its answer.
pub mod client;

/// Over what it is sent.
pub mod connections;

/// Bytes to events.
pub mod sse;

/// Events to a timed answer.
pub mod answer;

/// Sends all of them.
pub mod load;

/// Records to figures.
pub mod measure;

/// Mean, median, deviation, percentiles.
pub mod statistics;

/// The metrics by name.
pub mod metric;

/// Figures to a table and a file.
pub mod report;

/// Figures to a drawing.
pub mod plot;

mod session;

pub use session::run;
