//! Benchmarks of Pagoda.
