//! The binary `pagoda`.
fn main() {}
