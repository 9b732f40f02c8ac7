//! What a step pays beside its kernels: nodes of a graph, copies from and to the host, marks.
//!
//! Whether a node may begin while the one before it ends is the device's to say, see
//! [`crate::cuda::GpuOptions::one_by_one`].

use std::time::Instant;

use super::ceilings::{Ceiling, NOTHING, micros, rate};
use super::finding::Figure;
use super::stopwatch::Stopwatch;
use super::{Finding, Run, Size};
use crate::cuda::driver::{DeviceBuffer, Grid, launch};
use crate::cuda::host_buffer::HostBuffer;
use crate::error::KernelError;

/// Kernels of a small model's step, and of a large one's.
const NODES: [[usize; 2]; 2] = [[50, 300], [2, 5]];

/// Bytes of copies: what a step brings, and as many as make a rate.
const COPIES: [[usize; 2]; 2] = [[4 << 10, 256 << 20], [64, 4 << 10]];

pub(super) fn run(run: &mut Run<'_>) -> Result<bool, KernelError> {
    let at = usize::from(run.size == Size::Tiny);
    let watch = Stopwatch::new(run.driver, run.size)?;
    for nodes in NODES[at] {
        if !(run.keeps_going)() {
            return Ok(false);
        }
        for figure in graph(run, &watch, nodes)? {
            (run.put)(Finding::Figure(figure));
        }
    }
    let apart = partitions(run, &watch, NODES[at][1])?;
    (run.put)(Finding::Figure(apart));
    for bytes in COPIES[at] {
        if !(run.keeps_going)() {
            return Ok(false);
        }
        for figure in copies(run, &watch, bytes)? {
            (run.put)(Finding::Figure(figure));
        }
    }
    let mark = mark(run, &watch)?;
    (run.put)(Finding::Figure(mark));
    Ok(true)
}

/// A graph of empty kernels: microseconds a node, of the whole, and that the host takes to start it.
fn graph(run: &Run<'_>, watch: &Stopwatch, nodes: usize) -> Result<[Figure; 3], KernelError> {
    let grid = Grid { blocks: [1, 1, 1], shared_bytes: 0 };
    let recorded = watch.record(nodes, &mut |_| {
        // SAFETY: the kernel looks at nothing.
        unsafe { launch(&**run.driver, &NOTHING, grid, &Ceiling::nothing()) }
    })?;
    let whole = watch.time_asked(&mut |_| recorded.replay())?;
    let each: Vec<f64> = whole.iter().map(|seconds| seconds / nodes as f64).collect();
    let mut host = Vec::new();
    for _ in 0..if run.size == Size::Tiny { 1 } else { 20 } {
        watch.wait()?;
        let began = Instant::now();
        recorded.replay()?;
        host.push(began.elapsed().as_secs_f64());
    }
    let name = format!("graph of {nodes} empty kernels");
    Ok([
        micros(&format!("{name}: a node"), &each),
        micros(&name, &whole),
        micros(&format!("{name}: host time of its launch"), &host),
    ])
}

/// The same of kernels of which every other wants half of the shared memory there is. A multiprocessor
/// parts its memory between that and its first cache as the driver thinks best for a kernel, and one
/// that wants other parts may have to wait until the one before it has left.
fn partitions(run: &Run<'_>, watch: &Stopwatch, nodes: usize) -> Result<Figure, KernelError> {
    let half = run.target.shared_bytes_max / 2;
    let recorded = watch.record(nodes, &mut |call| {
        let grid = Grid { blocks: [1, 1, 1], shared_bytes: call % 2 * half };
        // SAFETY: the kernel looks at nothing.
        unsafe { launch(&**run.driver, &NOTHING, grid, &Ceiling::nothing()) }
    })?;
    let whole = watch.time_asked(&mut |_| recorded.replay())?;
    let each: Vec<f64> = whole.iter().map(|seconds| seconds / nodes as f64).collect();
    let name =
        format!("graph of {nodes} empty kernels, every other with much shared memory: a node");
    Ok(micros(&name, &each))
}

/// Copies of `bytes` both ways between page-locked memory and the device.
fn copies(run: &Run<'_>, watch: &Stopwatch, bytes: usize) -> Result<Vec<Figure>, KernelError> {
    let host = HostBuffer::new(run.driver, bytes)?;
    let device = DeviceBuffer::new(run.driver, bytes, "copies")?;
    let inward = watch.time_asked(&mut |_| {
        // SAFETY: both hold so many bytes, and nobody writes the host's.
        unsafe { run.driver.copy_in(device.pointer(), host.pointer(0), bytes) }
    })?;
    let outward = watch.time_asked(&mut |_| {
        // SAFETY: as above, and nobody reads the host's.
        unsafe { run.driver.copy_out(host.pointer(0), device.pointer(), bytes) }
    })?;
    let figures = [("host to device", inward), ("device to host", outward)];
    let figures = figures.into_iter().flat_map(|(way, seconds)| {
        let what = format!("copy of {bytes} bytes, {way}");
        [micros(&what, &seconds), rate(&what, "GB/s", &seconds, bytes as f64 / 1e9)]
    });
    Ok(figures.collect())
}

/// Microseconds from an empty launch to a mark behind it that was waited for.
fn mark(run: &Run<'_>, watch: &Stopwatch) -> Result<Figure, KernelError> {
    let grid = Grid { blocks: [1, 1, 1], shared_bytes: 0 };
    let mark = run.driver.reserve_marks(1)?;
    let seconds = watch.time_asked(&mut |_| {
        // SAFETY: the kernel looks at nothing.
        unsafe { launch(&**run.driver, &NOTHING, grid, &Ceiling::nothing()) }?;
        run.driver.mark(mark)?;
        run.driver.wait(mark)
    })?;
    Ok(micros("launch, mark and wait for the mark", &seconds))
}
