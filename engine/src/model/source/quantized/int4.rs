//! Codes of four bits, eight to a word, with scales and zeros of groups along K.
//!
//! A widened weight is (code − zero) · scale. Files hold such weights with K down the rows, so they
//! are turned while they are widened, a tile at a time. Every dimension and every group's number is
//! checked before anything is read by it.
//!
//! ```text
//! AWQ    qweight[K, N / 8], qzeros[G, N / 8]: nibbles 0 to 7 of a word are its rows 0 2 4 6 1 3 5 7
//! GPTQ   qweight[K / 8, N]: nibble i of a word is column 8·k + i;  qzeros[G, N / 8]: row 8·n + i
//!        g_idx[K]: the group of each column, where columns were quantized in another order
//! both   scales[G, N]
//! ```

use rayon::prelude::*;

use super::{SourceError, Stored, Tensor, read_scales, room, rows_cols, widened};
use crate::model::config::{Packing, StoredInt4};

/// Codes of a word.
const CODES: usize = 8;
/// The type of words, as files name it.
const TYPE: &str = "I32";
/// Rows that a thread widens at a time, and columns before they are written.
const ROWS: usize = 64;
const COLS: usize = 16;
/// The nibble of each row of a word in AWQ's order.
const AWQ_NIBBLES: [u32; CODES] = [0, 4, 1, 5, 2, 6, 3, 7];

/// The tensors that stand for one weight.
pub(super) struct Words<'a> {
    /// `qweight`.
    pub(super) codes: Stored<'a>,
    /// `qzeros`.
    pub(super) zeros: Stored<'a>,
    /// `scales`.
    pub(super) scales: Stored<'a>,
    /// `g_idx`, if it is there.
    pub(super) groups: Option<Stored<'a>>,
}

/// The weight `[N, K]` of this shape as f32.
pub(super) fn widen(
    words: &Words<'_>,
    stored: &StoredInt4,
    shape: &[usize],
) -> Result<Tensor<'static>, SourceError> {
    let codes = words.codes;
    let Some((rows, cols)) = rows_cols(shape).filter(|_| shape.len() == 2) else {
        return Err(codes.refuse("is quantized and no matrix"));
    };
    let group_size = stored.group_size.unwrap_or(cols);
    let num_groups = cols.div_ceil(group_size);
    let is_whole = match stored.packing {
        Packing::Awq => cols.is_multiple_of(group_size),
        Packing::Gptq { .. } => cols.is_multiple_of(CODES),
    };
    if !rows.is_multiple_of(CODES) || !is_whole {
        let reason = format!("cannot be [{rows}, {cols}] in groups of {group_size}");
        return Err(codes.refuse(reason));
    }
    let code_shape = match stored.packing {
        Packing::Awq => [cols, rows / CODES],
        Packing::Gptq { .. } => [cols / CODES, rows],
    };
    let codes = codes.of_type(TYPE)?.of_shape(&code_shape)?;
    let zeros = words.zeros.of_type(TYPE)?.of_shape(&[num_groups, rows / CODES])?;
    let matrix = Matrix {
        packing: stored.packing,
        rows,
        cols,
        codes: codes.bytes,
        zeros: zeros.bytes,
        scales: read_scales(words.scales.of_shape(&[num_groups, rows])?)?,
        groups: read_groups(words, stored.packing, cols, (num_groups, group_size))?,
    };
    let mut bytes = room(&codes, rows, cols)?;
    let blocks = bytes.par_chunks_mut(ROWS * 4 * cols).enumerate();
    blocks.for_each(|(block, to)| matrix.widen_rows(block * ROWS, to));
    Ok(widened(rows, cols, bytes))
}

/// The group of each column.
fn read_groups(
    words: &Words<'_>,
    packing: Packing,
    cols: usize,
    (num_groups, group_size): (usize, usize),
) -> Result<Vec<usize>, SourceError> {
    let is_ordered = match packing {
        Packing::Awq => return Ok((0..cols).map(|col| col / group_size).collect()),
        Packing::Gptq { is_ordered, .. } => is_ordered,
    };
    let Some(stored) = words.groups else {
        if is_ordered {
            return Err(words.codes.refuse("has no g_idx beside it, which desc_act asks for"));
        }
        return Ok((0..cols).map(|col| col / group_size).collect());
    };
    let stored = stored.of_type(TYPE)?.of_shape(&[cols])?;
    let groups = (0..cols).map(|col| {
        let group = word(stored.bytes, col) as usize;
        let refuse =
            || stored.refuse(format!("has group {} of {num_groups}, column {col}", group as i32));
        (group < num_groups).then_some(group).ok_or_else(refuse)
    });
    groups.collect()
}

/// A weight whose tensors have been checked.
struct Matrix<'a> {
    packing: Packing,
    rows: usize,
    cols: usize,
    codes: &'a [u8],
    zeros: &'a [u8],
    scales: Vec<f32>,
    groups: Vec<usize>,
}

impl Matrix<'_> {
    /// Rows from `first` on, [`ROWS`] at most and whole words, into `to`.
    fn widen_rows(&self, first: usize, to: &mut [u8]) {
        let count = to.len() / (4 * self.cols);
        let (mut codes, mut zeros) = ([0f32; ROWS], [0f32; ROWS]);
        let mut tile = [[0f32; COLS]; ROWS];
        let mut scales: &[f32] = &[];
        let mut group = usize::MAX;
        for start in (0..self.cols).step_by(COLS) {
            let width = COLS.min(self.cols - start);
            for col in start..start + width {
                if self.groups[col] != group {
                    group = self.groups[col];
                    let at = group * self.rows + first;
                    scales = &self.scales[at..at + count];
                    self.read_zeros(group, first, &mut zeros[..count]);
                }
                self.read_codes(col, first, &mut codes[..count]);
                for (row, scale) in scales.iter().enumerate() {
                    tile[row][col - start] = (codes[row] - zeros[row]) * scale;
                }
            }
            for (row, to) in to.chunks_exact_mut(4 * self.cols).enumerate() {
                let to = to[4 * start..].chunks_exact_mut(4);
                for (to, value) in to.zip(&tile[row][..width]) {
                    to.copy_from_slice(&value.to_le_bytes());
                }
            }
        }
    }

    /// Codes of a column.
    fn read_codes(&self, col: usize, first: usize, to: &mut [f32]) {
        match self.packing {
            Packing::Awq => {
                read_neighbours(self.codes, col * self.rows + first, AWQ_NIBBLES, to);
            }
            Packing::Gptq { .. } => {
                let at = col / CODES * self.rows + first;
                let nibble = (col % CODES) as u32;
                for (row, to) in to.iter_mut().enumerate() {
                    *to = code(word(self.codes, at + row), nibble);
                }
            }
        }
    }

    /// Zeros of a group. A stored zero of 15 in GPTQ's first format means 16: nothing wraps, as in
    /// the kernels that such files were made for.
    fn read_zeros(&self, group: usize, first: usize, to: &mut [f32]) {
        let at = group * self.rows + first;
        match self.packing {
            Packing::Awq => read_neighbours(self.zeros, at, AWQ_NIBBLES, to),
            Packing::Gptq { zero_offset, .. } => {
                read_neighbours(self.zeros, at, [0, 1, 2, 3, 4, 5, 6, 7], to);
                to.iter_mut().for_each(|zero| *zero += f32::from(zero_offset));
            }
        }
    }
}

/// Codes of rows that stand side by side in words, from element `at` on.
fn read_neighbours(words: &[u8], at: usize, nibbles: [u32; CODES], to: &mut [f32]) {
    for (index, to) in to.chunks_exact_mut(CODES).enumerate() {
        let word = word(words, at / CODES + index);
        for (to, nibble) in to.iter_mut().zip(nibbles) {
            *to = code(word, nibble);
        }
    }
}

/// The word at `index`. The number of words has been checked.
fn word(words: &[u8], index: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&words[4 * index..4 * index + 4]);
    u32::from_le_bytes(word)
}

fn code(word: u32, nibble: u32) -> f32 {
    ((word >> (4 * nibble)) & 15) as f32
}
