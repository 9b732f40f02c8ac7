//! Benchmarks of Pagoda: what the programs in `bin/` share.

/// What stands beside every figure.
pub mod machine;

/// What the command line asks for.
pub mod settings;
