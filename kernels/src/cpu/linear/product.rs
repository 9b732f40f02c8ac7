//! A range of panels times rows: cuts the product into row blocks and register tiles.
//!
//! One row streams several panels at once, so that its few accumulators do not wait for each other;
//! many rows take a tall tile over few columns, and a block of rows stays in the cache while the
//! panels pass by. None of these choices changes a result's order over k.

use std::ops::Range;

use crate::cpu::buffer::Activation;
use crate::cpu::isa::Isa;
use crate::cpu::linear::blocks::{Q4, Q8};
use crate::cpu::linear::epilogue::Finish;
use crate::cpu::linear::format::{Bf16Pairs, Bf16Widened, F16, F32, Format, Fp8};
use crate::cpu::linear::rows::PreparedRows;
use crate::cpu::linear::tile::{LANES8, LANES16, TILE_MAX, Tile};
use crate::cpu::weight::{PANEL, Panels};
use crate::dtype::DType;
use crate::ops::Epilogue;
use crate::weight_format::{Quantization, WeightFormat};

/// Bytes of rows that stay in the cache while panels pass by: about a second-level cache. Measured
/// on Zen 3, 128 KiB to 2 MiB differ by less than the noise.
const ROW_BLOCK_BYTES: usize = 512 << 10;

/// One worker's part of a product.
#[derive(Clone)]
pub(crate) struct Product<'a> {
    /// The weight.
    pub(crate) panels: Panels<'a>,
    /// Panels to compute.
    pub(crate) range: Range<usize>,
    /// Left operand.
    pub(crate) x: PreparedRows,
    /// Row `i` of the product is row `x_index[i]` of the left operand; `None`: row `i`.
    pub(crate) x_index: Option<&'a [u32]>,
    /// Where results go, row `i` to row `i`.
    pub(crate) out: OutRows,
    /// Rows of the product.
    pub(crate) rows: usize,
    /// `[N]`, padded to whole panels.
    pub(crate) bias: Option<&'a [f32]>,
    /// What happens to results.
    pub(crate) epilogue: Epilogue,
}

/// Rows that results are stored to. The worker writes its panels' columns only.
#[derive(Clone, Copy)]
pub(crate) struct OutRows {
    start: *mut f32,
    stride: usize,
}

impl OutRows {
    /// All rows of an activation.
    pub(crate) fn of(out: &Activation) -> Self {
        OutRows { start: out.as_ptr(), stride: out.stride() }
    }

    /// The rows from `first` on.
    pub(crate) fn starting_at(self, first: usize) -> Self {
        OutRows { start: self.row(first), ..self }
    }

    /// First element of a row.
    pub(crate) fn row(&self, row: usize) -> *mut f32 {
        self.start.wrapping_add(row * self.stride)
    }
}

impl Product<'_> {
    /// Computes the range of panels for all rows.
    pub(crate) fn run(&self, isa: Isa) {
        match self.panels.shape.format {
            WeightFormat::Plain(DType::F32) => self.run_format::<F32>(isa),
            WeightFormat::Plain(DType::F16) => self.run_format::<F16>(isa),
            WeightFormat::Plain(DType::Bf16) if isa.dots_pairs() => {
                self.run_format::<Bf16Pairs>(isa);
            }
            WeightFormat::Plain(DType::Bf16) => self.run_format::<Bf16Widened>(isa),
            WeightFormat::Quantized(Quantization::Q8_0) => self.run_blocks::<Q8>(isa),
            WeightFormat::Quantized(Quantization::Q4_0) => self.run_blocks::<Q4>(isa),
            WeightFormat::Quantized(Quantization::Fp8) => self.run_format::<Fp8>(isa),
        }
    }

    /// Tiles by registers: AVX-512 has 32 of 16 lanes, AVX2 16 of 8 lanes; the portable path has
    /// 16 of 4, two of which hold one vector.
    fn run_format<F: Format>(&self, isa: Isa) {
        match (isa, self.rows) {
            (_, 0) => {}
            (Isa::Avx512 | Isa::Emulated512, 1) => self.run_rows::<F, LANES16, 1, 1, 8>(isa),
            (Isa::Avx512 | Isa::Emulated512, 2..=4) => self.run_rows::<F, LANES16, 4, 4, 4>(isa),
            (Isa::Avx512 | Isa::Emulated512, _) => self.run_rows::<F, LANES16, 12, 4, 2>(isa),
            (Isa::Avx2, 2) => self.run_rows::<F, LANES8, 2, 2, 4>(isa),
            (Isa::Avx2, 3..) => self.run_rows::<F, LANES8, 6, 4, 2>(isa),
            (_, 1) => self.run_rows::<F, LANES8, 1, 1, 8>(isa),
            (Isa::Portable, _) => self.run_rows::<F, LANES8, 2, 2, 2>(isa),
        }
    }

    /// The same for blocks, which need as many registers again for integer sums.
    fn run_blocks<F: Format>(&self, isa: Isa) {
        match (isa, self.rows) {
            (_, 0) => {}
            (Isa::Avx512 | Isa::Emulated512, 1) => self.run_rows::<F, LANES16, 1, 1, 4>(isa),
            (Isa::Avx512 | Isa::Emulated512, _) => self.run_rows::<F, LANES16, 6, 3, 2>(isa),
            (_, 1) => self.run_rows::<F, LANES8, 1, 1, 4>(isa),
            (_, _) => self.run_rows::<F, LANES8, 2, 2, 2>(isa),
        }
    }

    /// All rows and panels in tiles of `R` rows by `V` vectors of `L` lanes; up to `Q` rows that
    /// are left at the end take a tile of `Q`.
    fn run_rows<F: Format, const L: usize, const R: usize, const Q: usize, const V: usize>(
        &self,
        isa: Isa,
    ) {
        let block = (ROW_BLOCK_BYTES / self.x.row_bytes().max(1)).max(1).next_multiple_of(R);
        let per_tile = V * L / PANEL;
        for first in (0..self.rows).step_by(block) {
            let rows = first..(first + block).min(self.rows);
            let mut panel = self.range.start;
            while panel + per_tile <= self.range.end {
                self.run_panels::<F, L, R, Q, V>(isa, rows.clone(), panel);
                panel += per_tile;
            }
            // What fills no tile goes panel by panel: one vector of 16 lanes or two of 8.
            while panel < self.range.end {
                if L == LANES16 {
                    self.run_panels::<F, L, R, Q, 1>(isa, rows.clone(), panel);
                } else {
                    self.run_panels::<F, L, R, Q, 2>(isa, rows.clone(), panel);
                }
                panel += 1;
            }
        }
    }

    /// A block of rows by the panels of one tile.
    fn run_panels<F: Format, const L: usize, const R: usize, const Q: usize, const V: usize>(
        &self,
        isa: Isa,
        rows: Range<usize>,
        panel: usize,
    ) {
        let mut first = rows.start;
        while first < rows.end {
            if rows.end - first <= Q {
                self.run_tile::<F, L, Q, V>(isa, first..rows.end, panel);
                first += Q;
            } else {
                self.run_tile::<F, L, R, V>(isa, first..rows.end.min(first + R), panel);
                first += R;
            }
        }
    }

    /// Up to `R` rows by the panels of one tile.
    fn run_tile<F: Format, const L: usize, const R: usize, const V: usize>(
        &self,
        isa: Isa,
        rows: Range<usize>,
        panel: usize,
    ) {
        let shape = self.panels.shape;
        let mut results = [0.0f32; TILE_MAX];
        isa.dispatch(Tile::<F, L, R, V> {
            weights: self.panels.panel(panel).as_ptr(),
            panel_bytes: shape.panel_bytes(),
            steps: shape.k_padded() / F::K,
            // With too few rows, the last one is computed again, and stored once.
            x: std::array::from_fn(|r| self.x_row((rows.start + r).min(rows.end - 1))),
            results: &mut results,
            format: std::marker::PhantomData,
        });
        for (row, results) in rows.zip(results.chunks_exact(V * L)) {
            isa.dispatch(Finish {
                results,
                panel,
                bias: self.bias,
                epilogue: self.epilogue,
                out: self.out.row(row),
            });
        }
    }

    fn x_row(&self, row: usize) -> *const u32 {
        self.x.row(self.x_index.map_or(row, |index| index[row] as usize))
    }
}
