//! (row, expert) pairs sorted by expert, in scratch planned at start.
//!
//! ```text
//! choices   [rows][A] experts and weights, a row's experts ascending
//! starts    [E + 1]   first sorted pair of each expert
//! tokens    [pairs]   row of each sorted pair
//! places    [rows][A] sorted place of each choice
//! ```

use std::ops::Range;

/// Scratch of one mixture-of-experts op.
#[derive(Clone, Copy)]
pub(super) struct MoeScratch {
    prepared: *mut u8,
    experts: *mut u32,
    weights: *mut f32,
    starts: *mut u32,
    tokens: *mut u32,
    places: *mut u32,
    num_experts: usize,
    bytes: usize,
}

/// The sorted pairs.
#[derive(Clone, Copy)]
pub(super) struct Groups<'a> {
    starts: &'a [u32],
    /// Row of each sorted pair.
    pub(super) tokens: &'a [u32],
}

impl Groups<'_> {
    /// All pairs.
    pub(super) fn num_pairs(&self) -> usize {
        self.tokens.len()
    }

    /// The sorted pairs of one expert.
    pub(super) fn pairs(&self, expert: usize) -> Range<usize> {
        self.starts[expert] as usize..self.starts[expert + 1] as usize
    }
}

impl MoeScratch {
    /// Lays out scratch from `start` on: `prepared_bytes` for prepared rows, and `pairs` pairs. With
    /// a null start only the size means anything.
    pub(super) fn lay_out(
        start: *mut u8,
        prepared_bytes: usize,
        pairs: usize,
        num_experts: usize,
    ) -> Self {
        let mut end = 0;
        let mut take = |bytes: usize| {
            let at = start.wrapping_add(end);
            end += bytes.next_multiple_of(64);
            at
        };
        let prepared = take(prepared_bytes);
        let experts = take(pairs * 4).cast();
        let weights = take(pairs * 4).cast();
        let starts = take((num_experts + 2) * 4).cast();
        let tokens = take(pairs * 4).cast();
        let places = take(pairs * 4).cast();
        MoeScratch { prepared, experts, weights, starts, tokens, places, num_experts, bytes: end }
    }

    /// Bytes laid out.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Prepared rows.
    pub(super) fn prepared(&self) -> *mut u8 {
        self.prepared
    }

    /// A row's experts and their weights.
    ///
    /// # Safety
    /// The row is within the plan, and one worker's while any worker writes.
    pub(super) unsafe fn choices<'a>(
        &self,
        row: usize,
        num_chosen: usize,
    ) -> (&'a mut [u32], &'a mut [f32]) {
        let start = row * num_chosen;
        // SAFETY: within the layout; the caller answers for aliasing.
        unsafe {
            (
                std::slice::from_raw_parts_mut(self.experts.add(start), num_chosen),
                std::slice::from_raw_parts_mut(self.weights.add(start), num_chosen),
            )
        }
    }

    /// Where a row's choices went.
    ///
    /// # Safety
    /// Sorted, and nobody writes.
    pub(super) unsafe fn places<'a>(&self, row: usize, num_chosen: usize) -> &'a [u32] {
        // SAFETY: within the layout; the caller answers for writers.
        unsafe { std::slice::from_raw_parts(self.places.add(row * num_chosen), num_chosen) }
    }

    /// The sorted pairs.
    ///
    /// # Safety
    /// Sorted, and nobody writes.
    pub(super) unsafe fn groups<'a>(&self, pairs: usize) -> Groups<'a> {
        // SAFETY: within the layout; the caller answers for writers.
        unsafe {
            Groups {
                starts: std::slice::from_raw_parts(self.starts, self.num_experts + 1),
                tokens: std::slice::from_raw_parts(self.tokens, pairs),
            }
        }
    }

    /// Sorts `pairs` choices by expert; within an expert by row (a counting sort is stable).
    ///
    /// # Safety
    /// All choices are written, and nobody else uses the scratch's pairs.
    pub(super) unsafe fn sort(&self, pairs: usize, num_chosen: usize) {
        // SAFETY: within the layout; the caller is alone.
        let (experts, starts, tokens, places) = unsafe {
            (
                std::slice::from_raw_parts(self.experts, pairs),
                std::slice::from_raw_parts_mut(self.starts, self.num_experts + 2),
                std::slice::from_raw_parts_mut(self.tokens, pairs),
                std::slice::from_raw_parts_mut(self.places, pairs),
            )
        };
        // starts[e + 2] counts expert e, then starts[e + 1] runs from its first to its last place.
        starts.fill(0);
        for &expert in experts {
            starts[expert as usize + 2] += 1;
        }
        for expert in 2..starts.len() {
            starts[expert] += starts[expert - 1];
        }
        for (pair, &expert) in experts.iter().enumerate() {
            let place = &mut starts[expert as usize + 1];
            tokens[*place as usize] = (pair / num_chosen) as u32;
            places[pair] = *place;
            *place += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_sorted_by_expert_then_row() {
        let bytes = MoeScratch::lay_out(std::ptr::null_mut(), 0, 6, 4).bytes();
        let mut memory = vec![0u64; bytes.div_ceil(8)];
        let scratch = MoeScratch::lay_out(memory.as_mut_ptr().cast(), 0, 6, 4);
        // SAFETY: the only owner, laid out for six pairs.
        unsafe {
            for (row, chosen) in [[0, 3], [1, 3], [0, 1]].into_iter().enumerate() {
                scratch.choices(row, 2).0.copy_from_slice(&chosen);
            }
            scratch.sort(6, 2);
            let groups = scratch.groups(6);
            assert_eq!(groups.tokens, [0, 2, 1, 2, 0, 1]);
            let pairs: Vec<_> = (0..4).map(|expert| groups.pairs(expert)).collect();
            assert_eq!(pairs, [0..2, 2..4, 4..4, 4..6]);
            assert_eq!(scratch.places(1, 2), [2, 5]);
        }
    }
}
