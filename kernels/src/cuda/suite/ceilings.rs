//! What the card can do at most, measured by the simplest kernels that do it.

use std::sync::Arc;
use std::time::Instant;

use super::finding::Figure;
use super::pool::Pool;
use super::stopwatch::Stopwatch;
use super::{Finding, Run, Size};
use crate::cuda::driver::{DeviceBuffer, DevicePointer, Driver, Grid, Kernel, launch};
use crate::cuda::source::{SUITE_CEILINGS, SUITE_HOPPER};
use crate::error::KernelError;

/// Mirrors `Ceiling` of suite_ceilings.cu.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Ceiling {
    from: DevicePointer,
    to: DevicePointer,
    out: DevicePointer,
    pieces: u64,
    turns: u32,
    unused: u32,
}

/// Mirrors `ProductRate` of suite_hopper.cu.
#[repr(C)]
struct ProductRate {
    out: DevicePointer,
    turns: u32,
}

/// Two warpgroups, whose tiles lie in as much shared memory.
const PRODUCT_RATE: Kernel<ProductRate> = Kernel::new(&SUITE_HOPPER, "product_rate", THREADS);
const RATE_SHARED_BYTES: usize = 64 << 10;
/// Operations of a block of it in a turn.
const RATE_FLOPS: f64 = 2.0 * 32.0 * 2.0 * 64.0 * 256.0 * 16.0;

/// An empty kernel.
pub(super) const NOTHING: Kernel<Ceiling> =
    Kernel::new(&SUITE_CEILINGS, "ceiling_nothing", THREADS);

impl Ceiling {
    /// What [`NOTHING`] takes: it looks at none of it.
    pub(super) fn nothing() -> Self {
        let (from, to, out) = (DevicePointer::NULL, DevicePointer::NULL, DevicePointer::NULL);
        Ceiling { from, to, out, pieces: 0, turns: 0, unused: 0 }
    }
}

/// What other figures are shares of: bytes and operations a second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ceilings {
    pub(super) read: f64,
    /// Of bf16 on the matrix units.
    pub(super) products: f64,
    /// Of f32 one by one.
    pub(super) multiply_adds: f64,
}

const THREADS: u32 = 256;
/// Bytes of a block's turn: pieces of 16 bytes, eight a thread.
const TURN_BYTES: usize = THREADS as usize * 8 * 16;
/// Chains of arithmetic of a thread.
const CHAINS: f64 = 8.0;
/// Operations of a product of matrices of a warp.
const PRODUCT_FLOPS: f64 = 2.0 * 16.0 * 8.0 * 16.0;

pub(super) fn run(run: &mut Run<'_>) -> Result<bool, KernelError> {
    let pool = Pool::new(run.driver, run.size)?;
    let probe = Probe::new(run, &pool)?;
    let figures: [&dyn Fn() -> Result<Option<Figure>, KernelError>; 8] = [
        &|| probe.read().map(Some),
        &|| probe.copy().map(Some),
        &|| probe.products().map(Some),
        &|| probe.warpgroup_products(),
        &|| probe.multiply_adds().map(Some),
        &|| probe.launch().map(Some),
        &|| probe.launch_and_wait().map(Some),
        &|| probe.host().map(Some),
    ];
    for figure in figures {
        if !(run.keeps_going)() {
            return Ok(false);
        }
        if let Some(figure) = figure()? {
            (run.put)(Finding::Figure(figure));
        }
    }
    Ok(true)
}

impl Ceilings {
    /// Measures them, and tells them.
    pub(super) fn measure(run: &mut Run<'_>, pool: &Pool) -> Result<Self, KernelError> {
        let probe = Probe::new(run, pool)?;
        let (read, products) = (probe.read()?, probe.products()?);
        let warpgroups = probe.warpgroup_products()?;
        // The faster way binds all. Figures are in GB/s and TFLOP/s.
        let most = warpgroups.iter().map(|figure| figure.median).fold(products.median, f64::max);
        let multiply_adds = probe.multiply_adds()?;
        let ceilings = Ceilings {
            read: read.median * 1e9,
            products: most * 1e12,
            multiply_adds: multiply_adds.median * 1e12,
        };
        let figures = [Some(read), Some(products), warpgroups, Some(multiply_adds)];
        for figure in figures.into_iter().flatten() {
            (run.put)(Finding::Figure(figure));
        }
        Ok(ceilings)
    }
}

/// Kernels of suite_ceilings.cu on one device.
struct Probe<'a> {
    driver: Arc<dyn Driver>,
    watch: Stopwatch,
    pool: &'a Pool,
    /// Where sums go: a float for each thread of any grid.
    out: DeviceBuffer,
    /// Blocks that read all of the pool in one turn; half as many copy one half onto the other.
    blocks: u32,
    /// Blocks and turns of arithmetic.
    busy: (u32, u32),
    /// The same of products of warpgroups, where the card has them.
    busy_warpgroups: Option<(u32, u32)>,
}

impl<'a> Probe<'a> {
    fn new(run: &Run<'_>, pool: &'a Pool) -> Result<Self, KernelError> {
        let (blocks, busy) = match run.size {
            Size::Full => ((pool.bytes() / TURN_BYTES) as u32, (132 * 8 * 4, 4096)),
            Size::Tiny => (4, (2, 2)),
        };
        let threads = (blocks.max(busy.0) * THREADS) as usize;
        Ok(Probe {
            driver: Arc::clone(run.driver),
            watch: Stopwatch::new(run.driver, run.size)?,
            pool,
            out: DeviceBuffer::new(run.driver, threads * 4, "a probe's sums")?,
            blocks,
            busy,
            busy_warpgroups: run.target.is_hopper.then_some(match run.size {
                Size::Full => (run.target.multiprocessors * 2, 256),
                Size::Tiny => (1, 1),
            }),
        })
    }

    /// GB/s of reads.
    fn read(&self) -> Result<Figure, KernelError> {
        let bytes = self.blocks as usize * TURN_BYTES;
        let samples = self.samples("ceiling_read", self.blocks, bytes, 0)?;
        Ok(rate("read", "GB/s", &samples, bytes as f64 / 1e9))
    }

    /// GB/s of reads and writes together.
    fn copy(&self) -> Result<Figure, KernelError> {
        let bytes = self.blocks as usize / 2 * TURN_BYTES;
        let samples = self.samples("ceiling_copy", self.blocks / 2, bytes, 0)?;
        Ok(rate("copy, read and written", "GB/s", &samples, 2.0 * bytes as f64 / 1e9))
    }

    /// TFLOP/s of bf16 products on the matrix units, from registers.
    fn products(&self) -> Result<Figure, KernelError> {
        let (blocks, turns) = self.busy;
        let samples = self.samples("ceiling_products", blocks, 0, turns)?;
        let warps = f64::from(blocks * THREADS / 32);
        let flops = warps * f64::from(turns) * CHAINS * PRODUCT_FLOPS;
        Ok(rate("bf16 products (mma.sync)", "TFLOP/s", &samples, flops / 1e12))
    }

    /// TFLOP/s of bf16 products of warpgroups, from shared memory; nothing where there are none.
    fn warpgroup_products(&self) -> Result<Option<Figure>, KernelError> {
        let Some((blocks, turns)) = self.busy_warpgroups else { return Ok(None) };
        let grid = Grid { blocks: [blocks, 1, 1], shared_bytes: RATE_SHARED_BYTES };
        let seconds = self.watch.time_asked(&mut |_| {
            let parameters = ProductRate { out: self.out.pointer(), turns };
            // SAFETY: a float for each thread.
            unsafe { launch(&*self.driver, &PRODUCT_RATE, grid, &parameters) }
        })?;
        let flops = f64::from(blocks * turns) * RATE_FLOPS;
        Ok(Some(rate("bf16 products (wgmma)", "TFLOP/s", &seconds, flops / 1e12)))
    }

    /// TFLOP/s of f32 multiply-adds.
    fn multiply_adds(&self) -> Result<Figure, KernelError> {
        let (blocks, turns) = self.busy;
        let samples = self.samples("ceiling_multiply_adds", blocks, 0, turns)?;
        let flops = f64::from(blocks * THREADS) * f64::from(turns) * CHAINS * 2.0;
        Ok(rate("f32 multiply-adds", "TFLOP/s", &samples, flops / 1e12))
    }

    /// Microseconds from an empty launch to the next.
    fn launch(&self) -> Result<Figure, KernelError> {
        let samples = self.samples("ceiling_nothing", 1, 0, 0)?;
        Ok(micros("launch after launch", &samples))
    }

    /// Microseconds of an empty launch and the wait for it.
    fn launch_and_wait(&self) -> Result<Figure, KernelError> {
        let samples = self.watch.time_asked(&mut |_| {
            self.launch_one("ceiling_nothing", 1, 0, 0)?;
            self.out.download(0, &mut [0; 4])
        })?;
        Ok(micros("launch and wait", &samples))
    }

    /// Microseconds that a launch takes of the host.
    fn host(&self) -> Result<Figure, KernelError> {
        let mut samples = Vec::new();
        for _ in 0..20 {
            self.out.download(0, &mut [0; 4])?;
            let began = Instant::now();
            for _ in 0..16 {
                self.launch_one("ceiling_nothing", 1, 0, 0)?;
            }
            samples.push(began.elapsed().as_secs_f64() / 16.0);
        }
        Ok(micros("host time of a launch", &samples))
    }

    fn samples(
        &self,
        name: &'static str,
        blocks: u32,
        bytes: usize,
        turns: u32,
    ) -> Result<Vec<f64>, KernelError> {
        self.watch.time_asked(&mut |_| self.launch_one(name, blocks, bytes, turns))
    }

    fn launch_one(
        &self,
        name: &'static str,
        blocks: u32,
        bytes: usize,
        turns: u32,
    ) -> Result<(), KernelError> {
        let from = self.pool.window(self.pool.bytes(), 0);
        let parameters = Ceiling {
            from,
            to: from.offset(self.pool.bytes() / 2),
            out: self.out.pointer(),
            pieces: (bytes / 16) as u64,
            turns,
            unused: 0,
        };
        let kernel = Kernel::new(&SUITE_CEILINGS, name, THREADS);
        let grid = Grid { blocks: [blocks, 1, 1], shared_bytes: 0 };
        // SAFETY: the pool holds the pieces, its second half those of a copy; a float a thread.
        unsafe { launch(&*self.driver, &kernel, grid, &parameters) }
    }
}

pub(super) fn rate(what: &str, unit: &'static str, seconds: &[f64], amount: f64) -> Figure {
    Figure::new(what, unit, seconds.iter().map(|seconds| amount / seconds).collect())
}

pub(super) fn micros(what: &str, seconds: &[f64]) -> Figure {
    Figure::new(what, "us", seconds.iter().map(|seconds| seconds * 1e6).collect())
}
