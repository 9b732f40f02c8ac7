//! The choice of experts for one row.

use crate::cpu::isa::Kernel;
use crate::cpu::math;
use crate::cpu::program::CpuProgram;
use crate::cpu::simd::Simd;
use crate::ops::{Moe, Routing};

/// Chooses the experts of one row: the largest scores, ties by lower expert; ascending by expert.
pub(super) struct Route<'a> {
    /// The op.
    pub(super) op: &'a Moe<CpuProgram>,
    /// `[E]`, padded to whole vectors; overwritten.
    pub(super) scores: &'a mut [f32],
    /// `[A]`, written.
    pub(super) experts: &'a mut [u32],
    /// `[A]`, written.
    pub(super) weights: &'a mut [f32],
}

impl Kernel for Route<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Route { op, scores, experts, weights } = self;
        let num_experts = op.gate_up.num_experts();
        match op.routing {
            Routing::Softmax => softmax::<S>(scores, num_experts),
            Routing::Sigmoid => map::<S>(scores, |x| math::sigmoid::<S>(x)),
        }
        choose(&scores[..num_experts], experts);
        for (weight, &expert) in weights.iter_mut().zip(experts.iter()) {
            *weight = scores[expert as usize];
        }
        if op.renormalize {
            let sum: f32 = weights.iter().sum();
            weights.iter_mut().for_each(|weight| *weight /= sum);
        }
    }
}

#[inline(always)]
fn softmax<S: Simd>(scores: &mut [f32], num_experts: usize) {
    let largest = scores[..num_experts].iter().copied().fold(f32::NEG_INFINITY, f32::max);
    map::<S>(scores, |x| math::exp::<S>(S::sub(x, S::splat(largest))));
    let sum: f32 = scores[..num_experts].iter().sum();
    map::<S>(scores, |x| S::div(x, S::splat(sum)));
}

#[inline(always)]
fn map<S: Simd>(values: &mut [f32], f: impl Fn(S::F32) -> S::F32) {
    for chunk in values.chunks_exact_mut(S::LANES) {
        // SAFETY: a chunk holds LANES elements.
        unsafe { S::store(chunk.as_mut_ptr(), f(S::load(chunk.as_ptr()))) };
    }
}

/// The `chosen.len()` largest scores, found by one pass each, then sorted by expert.
fn choose(scores: &[f32], chosen: &mut [u32]) {
    for found in 0..chosen.len() {
        let (taken, rest) = chosen.split_at_mut(found);
        let mut best: Option<usize> = None;
        for (expert, &score) in scores.iter().enumerate() {
            let better = best.is_none_or(|best| score > scores[best]);
            if better && !taken.contains(&(expert as u32)) {
                best = Some(expert);
            }
        }
        rest[0] = best.unwrap_or(0) as u32;
    }
    chosen.sort_unstable();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_lower_expert() {
        let mut chosen = [0; 3];
        choose(&[0.1, 0.5, 0.2, 0.5, 0.2, 0.2], &mut chosen);
        assert_eq!(chosen, [1, 2, 3]);
        choose(&[0.0; 6], &mut chosen);
        assert_eq!(chosen, [0, 1, 2]);
        choose(&[-1.0, -3.0, -2.0, -0.5], &mut chosen);
        assert_eq!(chosen, [0, 2, 3]);
    }
}
