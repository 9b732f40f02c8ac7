//! `qk_rope_store`: launches of rope_store.cu.

use crate::cuda::driver::{DevicePointer, Driver, Grid, Kernel, launch};
use crate::cuda::source::ROPE_STORE;
use crate::dtype::DType;
use crate::error::KernelError;
use crate::kv_format::KvFormat;

/// Mirrors `RopeStore` of rope_store.cu.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct RopeStore {
    pub(crate) qkv: DevicePointer,
    pub(crate) q_norm: DevicePointer,
    pub(crate) k_norm: DevicePointer,
    pub(crate) q_table: DevicePointer,
    pub(crate) k_table: DevicePointer,
    pub(crate) positions: DevicePointer,
    pub(crate) slots: DevicePointer,
    pub(crate) keys: DevicePointer,
    pub(crate) values: DevicePointer,
    pub(crate) num_q: u32,
    pub(crate) num_kv: u32,
    pub(crate) head_dim: u32,
    pub(crate) block_size: u32,
    pub(crate) rotary_dim: u32,
    /// 0: halves, 1: interleaved.
    pub(crate) style: u32,
    pub(crate) q_eps: f32,
    pub(crate) k_eps: f32,
}

/// The largest head that the kernel's shared memory holds.
pub(crate) const HEAD_DIM_MAX: usize = 256;

const WARPS: u32 = 4;
const THREADS: u32 = WARPS * 32;
const SHARED_BYTES: usize = WARPS as usize * HEAD_DIM_MAX * 4;

impl RopeStore {
    /// Turns and stores `rows` rows into a cache of `format`.
    ///
    /// # Safety
    /// Every pointer has what rope_store.cu says for `rows` rows; positions are in the table, slots
    /// in the cache; `head_dim` is at most [`HEAD_DIM_MAX`], in fp8 a multiple of 4.
    pub(crate) unsafe fn launch(
        &self,
        driver: &dyn Driver,
        format: impl Into<KvFormat>,
        rows: u32,
    ) -> Result<(), KernelError> {
        let name = match format.into() {
            KvFormat::Plain(DType::F32) => "rope_store_f32",
            KvFormat::Plain(DType::Bf16) => "rope_store_bf16",
            KvFormat::Plain(DType::F16) => "rope_store_f16",
            KvFormat::Fp8 => "rope_store_fp8",
        };
        let heads = self.num_q + 2 * self.num_kv;
        let blocks = [rows, heads.div_ceil(WARPS), 1];
        let grid = Grid { blocks, shared_bytes: SHARED_BYTES };
        // SAFETY: the caller's promise.
        unsafe { launch(driver, &Kernel::new(&ROPE_STORE, name, THREADS), grid, self) }
    }
}
