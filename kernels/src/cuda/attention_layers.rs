//! Layers of a program that attend alike, and what their launches share: kernels, the plan of a step,
//! room on the device.
//!
//! Made once when an executor starts, which fills the plan each step; launches nothing itself.

use std::sync::Arc;

use crate::cuda::attention::{AttentionKernels, AttentionPiece};
use crate::cuda::attention_plan::AttentionPlan;
use crate::cuda::driver::{DeviceBuffer, Driver};
use crate::cuda::linear_choice::Target;
use crate::cuda::program::CudaProgram;
use crate::cuda::staging::{Place, StagingPlan};
use crate::device::Limits;
use crate::error::KernelError;
use crate::ops;
use crate::shapes::CacheShape;

/// Layers that attend alike: one plan a step serves all of them.
pub(crate) struct AttentionLayers {
    /// Index of the KV group in the batch.
    pub(crate) group: usize,
    heads: ops::Heads,
    window: Option<u32>,
    pub(crate) kernels: AttentionKernels,
    /// Made anew each step.
    pub(crate) plan: AttentionPlan,
    /// The plan on the device.
    pub(crate) pieces: Place<AttentionPiece>,
    /// What pieces of a tile leave for the last of them.
    pub(crate) partials: DeviceBuffer,
    /// How many pieces of a tile are done; zeros between launches.
    pub(crate) arrivals: DeviceBuffer,
}

impl AttentionLayers {
    /// Of layers like `op`: places the plan in staging and makes room for what pieces leave.
    pub(crate) fn new(
        driver: &Arc<dyn Driver>,
        op: &ops::Attention<CudaProgram>,
        limits: &Limits,
        target: Target,
        plan: &mut StagingPlan,
    ) -> Result<Self, KernelError> {
        let heads = op.heads;
        let kernels = AttentionKernels::new(heads, op.kv.spec().format, &target)?;
        let shape = kernels.plan_shape(op.window);
        let room = shape.room(limits);
        let floats = room.partial_floats(&shape);
        Ok(AttentionLayers {
            group: op.group,
            heads,
            window: op.window,
            kernels,
            plan: AttentionPlan::with_room(shape, limits),
            pieces: plan.place(room.pieces),
            partials: DeviceBuffer::new(driver, floats * 4, "attention's partial results")?,
            arrivals: DeviceBuffer::new(driver, room.arrivals * 4, "attention's arrivals")?,
        })
    }

    /// Whether `op`'s layer is one of them.
    pub(crate) fn serves(&self, op: &ops::Attention<CudaProgram>) -> bool {
        (self.group, self.heads, self.window) == (op.group, op.heads, op.window)
    }
}
