//! `embed`: rows of the packed embedding table, times a scale.

use std::sync::atomic::Ordering;

use half::{bf16, f16};

use crate::batch::{Batch, PENDING_TOKEN};
use crate::cpu::command::WorkerCtx;
use crate::cpu::program::CpuProgram;
use crate::cpu::weight::{PANEL, Panels};
use crate::dtype::DType;
use crate::ops::Embed;
use crate::weight_format::WeightFormat;

/// Runs this worker's share of the rows.
pub(crate) fn run(op: &Embed<CpuProgram>, ctx: &WorkerCtx<'_>, batch: &Batch) {
    let panels = op.table.panels();
    let share = ctx.team.share(batch.num_tokens());
    // The sequence of a row is needed for pending tokens only: found by walking along.
    let mut seq = batch.query_start.partition_point(|&start| start as usize <= share.start) - 1;
    for row in share {
        while batch.query_start[seq + 1] as usize <= row {
            seq += 1;
        }
        let id = match batch.ids[row] {
            PENDING_TOKEN => ctx.last_tokens[batch.seq_slot[seq] as usize].load(Ordering::Relaxed),
            id => id,
        };
        // SAFETY: this worker's row.
        let x = unsafe { op.x.row_mut(row) };
        copy_row(panels, id as usize, op.scale, &mut x[..panels.shape.k]);
    }
}

/// One row of the packed table.
fn copy_row(panels: Panels<'_>, id: usize, scale: f32, x: &mut [f32]) {
    match panels.shape.format {
        WeightFormat::Plain(dtype) => copy_plain(panels, dtype, id, scale, x),
        WeightFormat::Quantized(quantization) => {
            panels.dequantize(quantization, id, x);
            x.iter_mut().for_each(|x| *x *= scale);
        }
    }
}

/// One row of plain elements: a strided walk down its panel.
fn copy_plain(panels: Panels<'_>, dtype: DType, id: usize, scale: f32, x: &mut [f32]) {
    let lane = id % PANEL;
    let panel = panels.panel(id / PANEL);
    match dtype {
        DType::F32 => {
            let steps = panel.chunks_exact(PANEL * 4);
            for (x, step) in x.iter_mut().zip(steps) {
                let at = &step[lane * 4..];
                *x = f32::from_ne_bytes([at[0], at[1], at[2], at[3]]) * scale;
            }
        }
        DType::F16 => {
            let steps = panel.chunks_exact(PANEL * 2);
            for (x, step) in x.iter_mut().zip(steps) {
                let at = &step[lane * 2..];
                *x = f16::from_ne_bytes([at[0], at[1]]).to_f32() * scale;
            }
        }
        DType::Bf16 => {
            let steps = panel.chunks_exact(PANEL * 4);
            for (x, step) in x.chunks_mut(2).zip(steps) {
                let pair = &step[lane * 4..lane * 4 + 4];
                for (x, word) in x.iter_mut().zip(pair.chunks_exact(2)) {
                    *x = bf16::from_ne_bytes([word[0], word[1]]).to_f32() * scale;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
