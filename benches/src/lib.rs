//! Benchmarks of Pagoda: what the programs in `bin/` share.

/// What stands beside every figure.
pub mod machine;

/// What the command line asks for.
pub mod settings;

/// Requests straight to the engine, without the network.
pub mod streams;

/// When steps are launched and finished.
pub mod timed;

/// The hardware suite.
pub mod gpu;

/// Load on a server, over the network.
pub mod serve;
