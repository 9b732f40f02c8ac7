//! e4m3 elements times scales, of the whole weight, of its rows or of its blocks.
//!
//! A widened weight is value(code) · scale in f32. Trusts no shape: the scales' own shape must be
//! one that the configuration allows.

use pagoda_kernels::quantize::e4m3_value;
use rayon::prelude::*;

use super::{SourceError, Stored, Tensor, read_scales, room, rows_cols, widened};
use crate::model::config::ScaleGrid;

/// The type of such a weight, as files name it.
pub(super) const TYPE: &str = "F8_E4M3";
/// Codes without a sign that are no number.
const NAN: u8 = 0x7f;
/// Codes that are looked through at a time.
const CHUNK: usize = 1 << 16;

/// Which rows and columns of a weight share a scale.
struct Blocks {
    rows: usize,
    cols: usize,
    /// Scales in a row of blocks.
    per_row: usize,
}

/// `weight`, whose shape has been checked, as f32.
pub(super) fn widen(
    weight: Stored<'_>,
    scales: Stored<'_>,
    grids: &[ScaleGrid],
) -> Result<Tensor<'static>, SourceError> {
    let Some((rows, cols)) = rows_cols(weight.shape).filter(|_| weight.shape.len() == 2) else {
        return Err(weight.refuse("is quantized and no matrix"));
    };
    let blocks = grids.iter().find_map(|grid| blocks_of(*grid, rows, cols, scales.shape));
    let blocks = blocks.ok_or_else(|| {
        let shape = scales.shape;
        scales.refuse(format!("has shape {shape:?}, not that of {grids:?} of [{rows}, {cols}]"))
    })?;
    let values = read_scales(scales)?;
    refuse_nan(&weight, cols)?;
    let numbers: [f32; 256] = std::array::from_fn(|code| e4m3_value(code as u8));
    let mut bytes = room(&weight, rows, cols)?;
    bytes
        .par_chunks_exact_mut(4 * cols)
        .zip(weight.bytes.par_chunks_exact(cols))
        .enumerate()
        .for_each(|(row, (to, codes))| {
            let first = row / blocks.rows * blocks.per_row;
            let to = to.chunks_mut(4 * blocks.cols).zip(codes.chunks(blocks.cols));
            for ((to, codes), scale) in to.zip(&values[first..first + blocks.per_row]) {
                for (to, code) in to.chunks_exact_mut(4).zip(codes) {
                    to.copy_from_slice(&(numbers[usize::from(*code)] * scale).to_le_bytes());
                }
            }
        });
    Ok(widened(rows, cols, bytes))
}

/// The blocks that `grid` cuts a weight into, if scales of this shape are theirs.
fn blocks_of(grid: ScaleGrid, rows: usize, cols: usize, shape: &[usize]) -> Option<Blocks> {
    match grid {
        ScaleGrid::Tensor => {
            let is_one = shape.iter().all(|dim| *dim == 1);
            is_one.then_some(Blocks { rows, cols, per_row: 1 })
        }
        ScaleGrid::Channel => {
            let is_column = shape == [rows, 1] || shape == [rows];
            is_column.then_some(Blocks { rows: 1, cols, per_row: 1 })
        }
        ScaleGrid::Block { rows: block_rows, cols: block_cols } => {
            let per_row = cols.div_ceil(block_cols);
            let is_grid = shape == [rows.div_ceil(block_rows), per_row];
            is_grid.then_some(Blocks { rows: block_rows, cols: block_cols, per_row })
        }
    }
}

fn refuse_nan(weight: &Stored<'_>, cols: usize) -> Result<(), SourceError> {
    let is_nan = |code: &u8| code & NAN == NAN;
    let damaged = weight.bytes.par_chunks(CHUNK).position_first(|codes| {
        // The largest code without its sign, which the compiler finds many at a time.
        codes.iter().fold(0, |largest, code| largest.max(code & NAN)) == NAN
    });
    let Some(chunk) = damaged else { return Ok(()) };
    let within = weight.bytes[chunk * CHUNK..].iter().position(is_nan).unwrap_or(0);
    let at = chunk * CHUNK + within;
    Err(weight.refuse(format!("is NaN in row {}, column {}", at / cols, at % cols)))
}
