//! Products of many rows by the library of the device's maker, where it was the faster one.
//!
//! Start: for each shape of a program and each bucket of rows, the library's ways are tried against our
//! own kernels on the program's weights (`linear_trials`). Run: a product goes the way that won; nothing
//! is asked or timed any more, and graphs record what was found. Only bf16 that is stored or added, with
//! a bias or without: whatever else becomes of results, our own kernels do. Rows of x are rounded by the
//! same kernel for both.

use std::collections::HashMap;
use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::cuda::driver::{DeviceBuffer, DevicePointer, Driver, MarkIndex};
use crate::cuda::linear::Linear;
use crate::cuda::linear_choice::{ProductShape, Target};
use crate::cuda::linear_hopper::narrow;
use crate::cuda::linear_trials::{Contest, Multiply, Trials};
use crate::cuda::product_library::{LibraryOperands, LibraryShape, ProductLibrary, Refusal, Way};
use crate::device::Found;
use crate::dtype::DType;
use crate::error::KernelError;

/// Fewer rows are bound by reading the weight, which our own kernels do as fast as memory allows.
pub(crate) const ROWS_MIN: u32 = 65;
/// What the library may use beside matrices: what NVIDIA names for Hopper.
pub(crate) const WORKSPACE_BYTES: usize = 32 << 20;
/// Ways that are tried for a shape.
pub(crate) const WAYS_MAX: usize = 12;
/// Bytes of weights that take turns while ways are timed, more than twice what a card's cache holds; and
/// of how many weights at most.
const TURNS_BYTES: usize = 128 << 20;
const TURNS_MAX: usize = 8;
/// Bytes of numbers that fill x for timing: at rest a card's arithmetic is faster than it is at work.
const CHUNK_BYTES: usize = 1 << 20;

/// Whether products of `shape`, or of fewer rows, may go to the library.
pub(crate) fn may_serve(target: &Target, shape: &ProductShape) -> bool {
    target.has_library
        && !target.options.deterministic
        && shape.format == DType::Bf16.into()
        && shape.rows >= ROWS_MIN
}

/// What the library was found to do faster.
#[derive(Debug)]
pub(crate) struct LibraryProducts {
    driver: Arc<dyn Driver>,
    multiprocessors: u32,
    workspace: DeviceBuffer,
    /// Rows of x, rounded.
    narrowed: DevicePointer,
    mark: MarkIndex,
    /// By shape and the most rows of a bucket.
    ways: HashMap<(LibraryShape, u32), Way>,
    /// The most rows of each bucket, ascending.
    buckets: Vec<u32>,
    /// What was left aside.
    lines: Vec<String>,
}

impl LibraryProducts {
    /// For products of up to `rows` rows, whose x passes through `narrowed`.
    pub(crate) fn new(
        driver: &Arc<dyn Driver>,
        target: &Target,
        (rows, narrowed): (u32, DevicePointer),
    ) -> Result<Self, KernelError> {
        Ok(LibraryProducts {
            driver: Arc::clone(driver),
            multiprocessors: target.multiprocessors,
            workspace: DeviceBuffer::new(driver, WORKSPACE_BYTES, "the workspace of products")?,
            narrowed,
            mark: driver.reserve_marks(1)?,
            ways: HashMap::new(),
            buckets: buckets(rows),
            lines: Vec::new(),
        })
    }

    /// How many shapes and buckets go to the library.
    #[cfg(test)]
    pub(crate) fn num_ways(&self) -> usize {
        self.ways.len()
    }

    /// What went which way, by a hash, and what was left aside.
    pub(crate) fn found(&self) -> Found {
        let lines = self.lines.clone();
        let Some(library) = self.driver.product_library() else { return Found::default() };
        if self.ways.is_empty() {
            return Found { lines, ..Found::default() };
        }
        let named = |(&(shape, most), &way): (&(LibraryShape, u32), &Way)| {
            (shape, most, library.identity(way))
        };
        let mut chosen: Vec<_> = self.ways.iter().map(named).collect();
        chosen.sort_unstable();
        let hash = blake3::hash(format!("{chosen:?}").as_bytes()).to_hex();
        Found { numerics: format!("{} for {}", library.name(), &hash[..16]), lines }
    }

    /// Multiplies, if the library was found faster. False: it was not, or refuses, and nothing was done.
    ///
    /// # Safety
    /// As [`crate::cuda::products::Products::launch`].
    pub(crate) unsafe fn launch(
        &self,
        linear: &Linear,
        format: DType,
    ) -> Result<bool, KernelError> {
        let (Some(library), Some(shape)) =
            (self.driver.product_library(), shape_of(linear, format))
        else {
            return Ok(false);
        };
        let at = self.buckets.partition_point(|&most| most < linear.rows);
        let Some(way) = self.buckets.get(at).and_then(|&most| self.ways.get(&(shape, most))) else {
            return Ok(false);
        };
        // SAFETY: the caller's promise.
        match unsafe { self.multiply(library, *way, linear) }? {
            Ok(()) => Ok(true),
            Err(refusal) if refusal.started_nothing => Ok(false),
            // Sums may have been added in part.
            Err(refusal) => Err(KernelError::Fault(refusal.words)),
        }
    }

    /// # Safety
    /// As [`Self::launch`]; the way is one for this shape.
    unsafe fn multiply(
        &self,
        library: &dyn ProductLibrary,
        way: Way,
        linear: &Linear,
    ) -> Result<Result<(), Refusal>, KernelError> {
        let Linear { rows, weight, bias, out, .. } = *linear;
        let (x, workspace) = (self.narrowed, self.workspace.pointer());
        let operands = LibraryOperands { rows, x, weight, bias, out, workspace };
        // SAFETY: the caller's promise; rounded rows have room, and the stream keeps them in order.
        unsafe { narrow(&*self.driver, linear, (x, DType::Bf16), self.multiprocessors) }?;
        // SAFETY: as above.
        Ok(unsafe { library.multiply(way, &operands) })
    }

    /// Finds out which of `products`, each of its most rows, the library computes faster than `own` does
    /// for which numbers of rows. Steps of `captured` rows will be recorded. Spoils what they write, and
    /// their x. Before the first step and the first graph.
    ///
    /// # Safety
    /// As [`Self::launch`] for each of them, and nothing else runs.
    pub(crate) unsafe fn find_ways(
        &mut self,
        products: &[Linear],
        captured: &[u32],
        own: &Multiply<'_>,
    ) -> Result<(), KernelError> {
        let driver = Arc::clone(&self.driver);
        let Some(library) = driver.product_library() else { return Ok(()) };
        let mut by_shape: HashMap<LibraryShape, Vec<Linear>> = HashMap::new();
        for linear in products {
            if let Some(shape) = shape_of(linear, DType::Bf16) {
                by_shape.entry(shape).or_default().push(*linear);
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.fill(by_shape.values().flatten()) }?;
        let mut trials = Trials::new(&*driver, self.mark);
        let mut found = HashMap::new();
        // SAFETY: the caller's promise; the way is one for the linear's shape.
        let by = |way, linear: &Linear| unsafe {
            self.multiply(library, way, linear)?.map_err(KernelError::from)
        };
        for (shape, linears) in by_shape {
            let most = linears.iter().map(|linear| linear.rows).max().unwrap_or(0);
            for (bucket, rows) in self.ranges(most) {
                let ways = library.ways(shape, rows.clone(), WORKSPACE_BYTES, WAYS_MAX);
                let ways = trials.tried(ways)?.unwrap_or_default();
                if ways.is_empty() {
                    continue;
                }
                let turns = turns(shape, &linears, *rows.end());
                let mut met = vec![*rows.start()];
                met.extend(captured.iter().filter(|captured| rows.contains(captured)));
                let contest = Contest { turns: &turns, rows: &met, own, by: &by };
                if let Some(way) = trials.fastest(&contest, &ways)? {
                    found.insert((shape, bucket), way);
                }
            }
        }
        self.lines = trials.lines(&library.name());
        self.ways = found;
        Ok(())
    }

    /// The buckets that products of up to `most` rows meet, and the numbers of rows in each.
    fn ranges(&self, most: u32) -> Vec<(u32, RangeInclusive<u32>)> {
        let fewest = std::iter::once(ROWS_MIN).chain(self.buckets.iter().map(|bucket| bucket + 1));
        let ranges = self.buckets.iter().zip(fewest);
        let ranges = ranges.map(|(&bucket, fewest)| (bucket, fewest..=bucket.min(most)));
        ranges.filter(|(_, rows)| !rows.is_empty()).collect()
    }

    /// Fills every x with numbers in (−1, 1).
    ///
    /// # Safety
    /// As [`Self::find_ways`].
    unsafe fn fill<'a>(
        &self,
        linears: impl Iterator<Item = &'a Linear>,
    ) -> Result<(), KernelError> {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let chunk: Vec<u8> = (0..CHUNK_BYTES / 4).flat_map(|_| next().to_le_bytes()).collect();
        let mut filled = HashSet::new();
        for Linear { x, rows, k, .. } in linears {
            if !filled.insert(x.0) {
                continue;
            }
            let bytes = *rows as usize * *k as usize * 4;
            for at in (0..bytes).step_by(CHUNK_BYTES) {
                let part = &chunk[..CHUNK_BYTES.min(bytes - at)];
                // SAFETY: x has as many bytes, by the caller's promise.
                unsafe { self.driver.upload(x.offset(at), part) }?;
            }
        }
        Ok(())
    }
}

/// The shape that the library knows a product by. `None`: it does not compute such ones.
pub(crate) fn shape_of(linear: &Linear, format: DType) -> Option<LibraryShape> {
    let Linear { n, stride, experts, bias, epilogue, rows, .. } = *linear;
    let is_known = format == DType::Bf16
        && rows >= ROWS_MIN
        && experts == DevicePointer::NULL
        && matches!(epilogue, Linear::STORE | Linear::ADD);
    // Columns up to the stride are zeros on both sides.
    is_known.then_some(LibraryShape {
        n,
        k: stride,
        adds: epilogue == Linear::ADD,
        has_bias: bias != DevicePointer::NULL,
    })
}

/// Products of `rows` rows on weights in turn, those of `linears` that have room for as many.
fn turns(shape: LibraryShape, linears: &[Linear], rows: u32) -> Vec<Linear> {
    let bytes = shape.n as usize * shape.k as usize * 2;
    let count = linears.len().min(TURNS_BYTES.div_ceil(bytes)).clamp(2, TURNS_MAX);
    let fitting = linears.iter().filter(|linear| linear.rows >= rows);
    fitting.cycle().take(count).map(|linear| Linear { rows, ..*linear }).collect()
}

/// The most rows of each bucket, up to `rows`: each twice the one before, since what is fastest changes
/// with the number of tiles.
fn buckets(rows: u32) -> Vec<u32> {
    let doubled =
        std::iter::successors(Some(ROWS_MIN.next_power_of_two()), |most| most.checked_mul(2));
    let mut buckets: Vec<u32> = doubled.take_while(|&most| most < rows).collect();
    buckets.push(rows);
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_double_up_to_the_most_rows() {
        assert_eq!(buckets(65), [65]);
        assert_eq!(buckets(128), [128]);
        assert_eq!(buckets(700), [128, 256, 512, 700]);
    }
}
