//! `embed`: launches of embed.cu.

use crate::cuda::driver::{DevicePointer, Driver, Grid, Kernel, launch};
use crate::cuda::source::EMBED;
use crate::dtype::DType;
use crate::error::KernelError;
use crate::weight_format::{Quantization, WeightFormat};

/// Mirrors `Embed` of embed.cu.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Embed {
    pub(crate) table: DevicePointer,
    /// Of a quantized table.
    pub(crate) scales: DevicePointer,
    pub(crate) ids: DevicePointer,
    pub(crate) row_seq: DevicePointer,
    pub(crate) seq_slot: DevicePointer,
    pub(crate) last_tokens: DevicePointer,
    pub(crate) x: DevicePointer,
    pub(crate) cols: u32,
    pub(crate) stride: u32,
    pub(crate) scale: f32,
}

const THREADS: u32 = 128;

fn kernel(format: WeightFormat) -> Kernel<Embed> {
    let name = match format {
        WeightFormat::Plain(DType::F32) => "embed_f32",
        WeightFormat::Plain(DType::Bf16) => "embed_bf16",
        WeightFormat::Plain(DType::F16) => "embed_f16",
        WeightFormat::Quantized(Quantization::Q8_0) => "embed_q8_0",
        WeightFormat::Quantized(Quantization::Q4_0) => "embed_q4_0",
        WeightFormat::Quantized(Quantization::Fp8) => "embed_fp8",
    };
    Kernel::new(&EMBED, name, THREADS)
}

impl Embed {
    /// Embeds `rows` rows from a table of `format`.
    ///
    /// # Safety
    /// Every pointer has what embed.cu says for `rows` rows, and ids are in the table.
    pub(crate) unsafe fn launch(
        &self,
        driver: &dyn Driver,
        format: WeightFormat,
        rows: u32,
    ) -> Result<(), KernelError> {
        let grid = Grid { blocks: [rows, self.cols.div_ceil(THREADS), 1], shared_bytes: 0 };
        // SAFETY: the caller's promise.
        unsafe { launch(driver, &kernel(format), grid, self) }
    }
}
