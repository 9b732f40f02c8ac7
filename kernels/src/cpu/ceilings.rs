//! What this machine can do at most: read bandwidth and arithmetic peaks.
//!
//! Benchmarks give a kernel's speed as a share of these, measured in the same run. Each function
//! takes one sample; callers take several and report their spread.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

use crate::cpu::buffer::AlignedBuffer;
use crate::cpu::isa::{Isa, Kernel};
use crate::cpu::simd::Simd;
use crate::error::KernelError;

/// Independent chains of arithmetic: enough to hide any instruction's latency.
const CHAINS: usize = 12;

/// Iterations of all chains in one sample: some tens of milliseconds.
const ITERATIONS: usize = 4 << 20;

/// A buffer far larger than any cache, read again and again.
pub struct ReadProbe(AlignedBuffer);

impl ReadProbe {
    /// `bytes` that are really there (every page written).
    pub fn new(bytes: usize) -> Result<Self, KernelError> {
        let mut buffer = AlignedBuffer::zeroed(bytes, "the read probe")?;
        buffer.as_mut_slice::<f32>().fill(1.0);
        Ok(ReadProbe(buffer))
    }

    /// Bytes a second of one pass over the buffer by `threads` threads.
    pub fn bytes_per_second(&self, isa: Isa, threads: usize) -> f64 {
        let all = self.0.as_slice::<f32>();
        let share = (all.len() / threads).next_multiple_of(64);
        let seconds = together(threads, |thread| {
            let part = &all[(thread * share).min(all.len())..((thread + 1) * share).min(all.len())];
            black_box(isa.dispatch(Read(part)));
        });
        self.0.len() as f64 / seconds
    }
}

/// f32 multiply-adds: two operations each, a second, over `threads` threads.
pub fn f32_flops(isa: Isa, threads: usize) -> f64 {
    let lanes = if isa.dots_pairs() { 16 } else { 8 };
    let seconds = together(threads, |_| _ = black_box(isa.dispatch(Multiply)));
    (threads * ITERATIONS * CHAINS * lanes * 2) as f64 / seconds
}

/// bf16 multiply-adds a second where the instruction set dots pairs: two operations each.
pub fn bf16_flops(isa: Isa, threads: usize) -> Option<f64> {
    if !isa.dots_pairs() {
        return None;
    }
    let seconds = together(threads, |_| _ = black_box(isa.dispatch(DotPairs)));
    Some((threads * ITERATIONS * CHAINS * 32 * 2) as f64 / seconds)
}

/// int8 multiply-adds a second with AVX-512 VNNI: two operations each.
pub fn int8_ops(isa: Isa, threads: usize) -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512 && isa.checked().is_ok() {
        // SAFETY: the instructions are part of that set, which this machine has.
        let seconds = together(threads, |_| _ = black_box(unsafe { vnni::multiply() }));
        return Some((threads * ITERATIONS * CHAINS * 64 * 2) as f64 / seconds);
    }
    let _ = (isa, threads);
    None
}

/// Seconds from the moment when all threads are ready until the last has done `work`.
fn together(threads: usize, work: impl Fn(usize) + Sync) -> f64 {
    let barrier = Barrier::new(threads);
    std::thread::scope(|scope| {
        let run = |thread: usize| {
            let (barrier, work) = (&barrier, &work);
            move || {
                barrier.wait();
                let start = Instant::now();
                work(thread);
                (start, Instant::now())
            }
        };
        let others: Vec<_> = (1..threads).map(|thread| scope.spawn(run(thread))).collect();
        let mut times = vec![run(0)()];
        // A thread that panicked has no time; nothing in a probe panics.
        times.extend(others.into_iter().filter_map(|other| other.join().ok()));
        let first = times.iter().map(|(start, _)| *start).min();
        let last = times.iter().map(|(_, end)| *end).max();
        first.zip(last).map_or(f64::NAN, |(first, last)| (last - first).as_secs_f64())
    })
}

/// Reads everything: four streams, as one row's linear reads four panels, two vectors of each.
struct Read<'a>(&'a [f32]);

impl Kernel for Read<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self) -> f32 {
        let stream = self.0.len() / 4 / (2 * S::LANES) * (2 * S::LANES);
        let mut sums = [S::splat(0.0); 8];
        for at in (0..stream).step_by(2 * S::LANES) {
            for (i, sum) in sums.iter_mut().enumerate() {
                let from = (i / 2) * stream + at + (i % 2) * S::LANES;
                // SAFETY: four streams of whole double vectors are in the slice.
                *sum = S::add(*sum, unsafe { S::load(self.0.as_ptr().add(from)) });
            }
        }
        let rest: f32 = self.0[4 * stream..].iter().sum();
        sums.map(S::sum).iter().sum::<f32>() + rest
    }
}

/// Chains of multiply-add.
struct Multiply;

impl Kernel for Multiply {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self) -> f32 {
        let (a, b) = (S::splat(black_box(0.999_9)), S::splat(black_box(0.001)));
        let mut chains = [S::splat(1.0); CHAINS];
        for _ in 0..ITERATIONS {
            for chain in &mut chains {
                *chain = S::fma(*chain, a, b);
            }
        }
        chains.map(S::sum).iter().sum()
    }
}

/// Chains of bf16 dots.
struct DotPairs;

impl Kernel for DotPairs {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self) -> f32 {
        let pair = S::splat_word(black_box(0x3c00_3c00));
        let mut chains = [S::splat(1.0); CHAINS];
        for _ in 0..ITERATIONS {
            for chain in &mut chains {
                *chain = S::dot_pairs(*chain, pair, pair);
            }
        }
        chains.map(S::sum).iter().sum()
    }
}

#[cfg(target_arch = "x86_64")]
mod vnni {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::{CHAINS, ITERATIONS};

    /// Chains of unsigned by signed byte products.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub(super) fn multiply() -> i32 {
        let a = _mm512_set1_epi32(black_box(0x0101_0101));
        let mut chains = [_mm512_setzero_si512(); CHAINS];
        for _ in 0..ITERATIONS {
            for chain in &mut chains {
                *chain = _mm512_dpbusd_epi32(*chain, a, a);
            }
        }
        chains.iter().fold(0, |sum, chain| sum ^ _mm512_reduce_add_epi32(*chain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_reach_every_element() {
        let values: Vec<f32> = vec![1.0; 4096];
        for isa in Isa::available() {
            assert_eq!(isa.dispatch(Read(&values)), 4096.0);
        }
    }
}
