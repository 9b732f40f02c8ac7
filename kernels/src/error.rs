//! What can go wrong in a kernel or a device, and whose fault it is.
//!
//! Errors arise while loading (shapes, memory) or as a device fault that ends the process. An op
//! inside a step never fails on data: shapes are checked when it is recorded.

/// An error of a device or of an op's contract.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Shapes that do not fit the op. Our fault, or a damaged checkpoint's.
    #[error("{op}: {reason}")]
    Shape {
        /// The op that refused.
        op: &'static str,
        /// The numbers that disagree.
        reason: String,
    },
    /// A weight that cannot be quantized: the checkpoint is damaged.
    #[error("row {row}, column {column} {why}: {value}; quantization needs finite weights")]
    Unquantizable {
        /// Which of the matrices that are packed together.
        part: usize,
        /// Its row.
        row: usize,
        /// The column.
        column: usize,
        /// What is there.
        value: f32,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The device has no room. Says what was asked for.
    #[error("cannot allocate {bytes} bytes for {what}")]
    OutOfMemory {
        /// What the memory was for.
        what: String,
        /// Bytes asked for.
        bytes: usize,
    },
    /// A forced instruction set or device that this machine lacks.
    #[error("{0}")]
    Unsupported(String),
    /// A worker thread died or a device reported a fault: the process must end.
    #[error("device fault: {0}")]
    Fault(String),
}
