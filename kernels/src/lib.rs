//! The op list of Pagoda: what a decoder may ask of a device, and the devices that do it.
//!
//! Modules in the order in which a step meets them. This crate knows tensors, batches and
//! arithmetic; it never knows models, requests or sockets. It is the only crate with `unsafe`.

/// Number types of weights and of the KV cache.
pub mod dtype;

/// How the elements of a weight are stored: plainly or quantized.
pub mod weight_format;

/// How the elements of a KV cache are stored: plainly or in eight bits.
pub mod kv_format;

/// What can go wrong in a kernel, and whose fault it is.
pub mod error;

/// The rows of one step as plain data: token ids, positions, slots, block tables.
pub mod batch;

/// Sampling parameters of a sequence and what sampling returns.
pub mod sampling;

/// The op list: composites with default bodies, primitives under them.
pub mod ops;

/// Devices at load time, and executors that replay a program.
pub mod device;

/// Checks of recorded ops, shared by devices.
mod shapes;

/// Checks of a batch before a device sees it.
mod admission;

/// How matrices of a checkpoint become one.
mod stacking;

/// Quantization of weights, the same for every device.
pub mod quantize;

/// Which indices occurred in a round.
mod distinct;

/// Read-only mappings of weight files.
pub mod file_map;

/// What the allocator keeps of freed memory.
pub mod heap;

/// The end of a process whose threads still compute.
pub mod leave;

/// The CPU device: a worker team and kernels for each instruction set.
pub mod cpu;

/// The CUDA device: the same op list from handwritten kernels.
pub mod cuda;

/// Every op in plain float64 loops, for tests.
pub mod reference;
