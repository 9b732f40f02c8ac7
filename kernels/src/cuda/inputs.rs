//! A step's batch on the device: ids, positions, slots, block tables, blocks to copy, rows that need
//! logits.

use crate::batch::{Batch, BlockCopy, NO_SLOT};
use crate::cuda::driver::DevicePointer;
use crate::cuda::graphs::StepShape;
use crate::cuda::staging::{Place, Staging, StagingPlan};
use crate::device::Limits;
use crate::error::KernelError;
use crate::shapes::GroupShape;

/// Places of the batch's arrays.
#[derive(Debug)]
pub(crate) struct Inputs {
    ids: Place<u32>,
    /// Sequence of each row.
    row_seq: Place<u32>,
    positions: Place<u32>,
    seq_slot: Place<u32>,
    /// Rows that need logits.
    logits_rows: Place<u32>,
    /// By KV group; groups that no op uses have none.
    groups: Vec<Option<GroupInputs>>,
    rows: Vec<u32>,
}

/// Places of a KV group's arrays.
#[derive(Debug)]
struct GroupInputs {
    slots: Place<u32>,
    copies: Place<BlockCopy>,
    block_table: Place<u32>,
}

/// Where a step's arrays are on the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowPointers {
    pub(crate) ids: DevicePointer,
    pub(crate) row_seq: DevicePointer,
    pub(crate) positions: DevicePointer,
    pub(crate) seq_slot: DevicePointer,
    pub(crate) logits_rows: DevicePointer,
}

/// Where a group's arrays are on the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GroupPointers {
    pub(crate) slots: DevicePointer,
    pub(crate) copies: DevicePointer,
    pub(crate) block_table: DevicePointer,
}

impl Inputs {
    /// Plans the places of steps within `limits`.
    pub(crate) fn new(plan: &mut StagingPlan, limits: &Limits, shapes: &[GroupShape]) -> Self {
        let Limits { max_tokens, max_seqs, max_logits_rows, max_model_len, .. } = *limits;
        let num_groups = shapes.iter().map(|shape| shape.group + 1).max().unwrap_or(0);
        let mut groups: Vec<Option<GroupInputs>> = (0..num_groups).map(|_| None).collect();
        for shape in shapes {
            let blocks = max_seqs * max_model_len.div_ceil(shape.block_size);
            groups[shape.group].get_or_insert_with(|| GroupInputs {
                slots: plan.place(max_tokens),
                // Of few steps.
                copies: plan.place_aside(max_seqs),
                block_table: plan.place_aside(blocks),
            });
        }
        Inputs {
            ids: plan.place(max_tokens),
            row_seq: plan.place(max_tokens),
            positions: plan.place(max_tokens),
            seq_slot: plan.place(max_seqs),
            logits_rows: plan.place(max_logits_rows),
            groups,
            rows: Vec::with_capacity(max_tokens.max(max_logits_rows)),
        }
    }

    /// Writes the arrays of `batch`, with as many rows as `shape` has. A padded row is token 0 at
    /// position 0, and is stored nowhere.
    pub(crate) fn write(
        &mut self,
        staging: &mut Staging,
        batch: &Batch,
        shape: StepShape,
    ) -> Result<(), KernelError> {
        let StepShape { tokens, logits, .. } = shape;
        staging.write_padded(&self.ids, &batch.ids, (0, tokens))?;
        staging.write_padded(&self.positions, &batch.positions, (0, tokens))?;
        staging.write(&self.seq_slot, &batch.seq_slot)?;
        self.rows.clear();
        for seq in 0..batch.num_seqs() {
            self.rows.extend(std::iter::repeat_n(seq as u32, batch.query_len(seq)));
        }
        staging.write_padded(&self.row_seq, &self.rows, (0, tokens))?;
        self.rows.clear();
        self.rows.extend(batch.logits.iter().map(|row| row.row));
        staging.write_padded(&self.logits_rows, &self.rows, (0, logits))?;
        for (places, group) in self.groups.iter().zip(&batch.groups) {
            if let Some(places) = places {
                staging.write_padded(&places.slots, &group.slots, (NO_SLOT, tokens))?;
                staging.write(&places.copies, &group.copies)?;
                staging.write(&places.block_table, &group.block_table)?;
            }
        }
        Ok(())
    }

    /// The rows' arrays.
    pub(crate) fn rows(&self, staging: &Staging) -> RowPointers {
        RowPointers {
            ids: staging.pointer(&self.ids),
            row_seq: staging.pointer(&self.row_seq),
            positions: staging.pointer(&self.positions),
            seq_slot: staging.pointer(&self.seq_slot),
            logits_rows: staging.pointer(&self.logits_rows),
        }
    }

    /// A group's arrays. The group has a cache, or no op would name it.
    pub(crate) fn group(&self, staging: &Staging, group: usize) -> GroupPointers {
        let null = DevicePointer::NULL;
        let none = GroupPointers { slots: null, copies: null, block_table: null };
        self.groups.get(group).and_then(Option::as_ref).map_or(none, |places| GroupPointers {
            slots: staging.pointer(&places.slots),
            copies: staging.pointer(&places.copies),
            block_table: staging.pointer(&places.block_table),
        })
    }
}
