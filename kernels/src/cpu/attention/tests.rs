//! Attention against float64, and the same bits however a sequence was cut into steps and workers.

use std::ops::Range;

use super::*;
use crate::cpu::buffer::{Activation, Parameters};
use crate::cpu::isa::Isa;
use crate::cpu::kv::{KvCache, Plane};
use crate::cpu::test_team;
use crate::device::KvSpec;
use crate::dtype::DType;
use crate::kv_format::KvFormat;
use crate::ops::Heads;
use crate::reference;
use crate::reference::Matrix;
use crate::reference::attention::AttentionRow;

/// A small generator of numbers: splitmix64.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// In −2..2.
    fn number(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 22) as f32 - 2.0
    }

    fn numbers(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.number()).collect()
    }
}

#[derive(Clone, Debug)]
struct Case {
    heads: Heads,
    block_size: usize,
    unit: usize,
    format: KvFormat,
    window: Option<u32>,
    soft_cap: Option<f32>,
    has_sinks: bool,
    /// Length of each sequence.
    lengths: Vec<usize>,
}

/// A cache of poison into which sequences are written token by token, as steps go on.
struct World {
    case: Case,
    op: Attention<CpuProgram>,
    sinks: Vec<f32>,
    /// For each sequence `[length][Nq + 2 Nkv][D]`.
    tokens: Vec<Vec<f32>>,
    /// For each sequence: block of each block_size tokens.
    tables: Vec<Vec<u32>>,
    num_blocks: usize,
}

const LAYER: usize = 1;

impl World {
    fn new(case: &Case, seed: u64) -> World {
        let mut random = Random(seed);
        let Heads { num_q, num_kv, head_dim } = case.heads;
        let width = (num_q + 2 * num_kv) * head_dim;
        let tokens: Vec<_> =
            case.lengths.iter().map(|&length| random.numbers(length * width)).collect();
        let needs: Vec<_> =
            case.lengths.iter().map(|length| length.div_ceil(case.block_size)).collect();
        let num_blocks = needs.iter().sum::<usize>() + 3;
        let mut free: Vec<u32> = (0..num_blocks as u32).collect();
        let mut take = || free.swap_remove(random.below(free.len()));
        let tables = needs.iter().map(|&need| (0..need).map(|_| take()).collect()).collect();
        let sinks = random.numbers(num_q);
        let spec = KvSpec {
            num_layers: 2,
            num_kv_heads: num_kv,
            head_dim,
            format: case.format,
            num_blocks,
        };
        let rows = case.lengths.iter().sum();
        let op = Attention {
            qkv: Activation::new(rows, width).unwrap(),
            heads: case.heads,
            scale: 0.7 / (head_dim as f32).sqrt(),
            window: case.window,
            soft_cap: case.soft_cap,
            sinks: case.has_sinks.then(|| Parameters::new(&sinks).unwrap()),
            kv: KvCache::new(spec, case.block_size).unwrap(),
            group: 0,
            layer: LAYER,
            out: Activation::new(rows, num_q * head_dim).unwrap(),
        };
        let world = World { case: case.clone(), op, sinks, tokens, tables, num_blocks };
        (0..num_blocks as u32).for_each(|block| world.poison(block));
        world
    }

    fn head(&self, seq: usize, token: usize, head: usize) -> &[f32] {
        let Heads { num_q, num_kv, head_dim } = self.case.heads;
        let start = (token * (num_q + 2 * num_kv) + head) * head_dim;
        &self.tokens[seq][start..start + head_dim]
    }

    fn poison(&self, block: u32) {
        for slot in 0..self.case.block_size {
            let slot = block as usize * self.case.block_size + slot;
            for head in 0..self.case.heads.num_kv {
                let poison = vec![f32::NAN; self.case.heads.head_dim];
                // SAFETY: the only owner.
                unsafe {
                    self.op.kv.write(LAYER, Plane::Keys, slot, head, &poison);
                    self.op.kv.write(LAYER, Plane::Values, slot, head, &poison);
                }
            }
        }
    }

    fn store(&self, seq: usize, token: usize) {
        let Heads { num_q, num_kv, .. } = self.case.heads;
        let block = self.tables[seq][token / self.case.block_size] as usize;
        let slot = block * self.case.block_size + token % self.case.block_size;
        for head in 0..num_kv {
            let key = self.head(seq, token, num_q + head);
            let value = self.head(seq, token, num_q + num_kv + head);
            // SAFETY: the only owner.
            unsafe {
                self.op.kv.write(LAYER, Plane::Keys, slot, head, key);
                self.op.kv.write(LAYER, Plane::Values, slot, head, value);
            }
        }
    }

    /// Runs one step over `chunks` (sequence, positions); gives each row's output bits.
    fn step(&self, chunks: &[(usize, Range<usize>)], isa: Isa, workers: usize) -> Vec<Vec<u32>> {
        let batch = self.batch(chunks);
        self.run(&batch, isa, workers);
        let width = self.op.out.cols();
        // SAFETY: the team has ended.
        let row = |row| unsafe { self.op.out.row(row)[..width].iter().map(|x| x.to_bits()) };
        (0..batch.num_tokens()).map(|index| row(index).collect()).collect()
    }

    fn run(&self, batch: &Batch, isa: Isa, workers: usize) {
        let mut scratch = ScratchPlan::default();
        let limits = Limits {
            max_tokens: batch.num_tokens(),
            max_seqs: batch.num_seqs(),
            max_logits_rows: 1,
            vocab: 1,
            max_model_len: self.case.lengths.iter().copied().max().unwrap_or(1),
            max_top: 0,
        };
        let unit = AttentionUnit(self.case.unit);
        plan(&self.op, unit, &mut scratch, &limits, workers);
        test_team::run(isa, workers, scratch, |ctx| run(&self.op, unit, ctx, batch));
    }

    fn batch(&self, chunks: &[(usize, Range<usize>)]) -> Batch {
        let mut batch = Batch::new(1);
        batch.clear();
        let longest = chunks.iter().map(|(seq, _)| self.tables[*seq].len()).max().unwrap();
        for (seq, positions) in chunks {
            let table = &self.tables[*seq];
            for token in positions.clone() {
                let row = batch.ids.len();
                // SAFETY: the only owner.
                let out = unsafe { self.op.qkv.row_mut(row) };
                let width = self.op.qkv.cols();
                out[..width].copy_from_slice(&self.tokens[*seq][token * width..][..width]);
                // SAFETY: as above.
                unsafe { self.op.out.row_mut(row) }.fill(f32::NAN);
                batch.ids.push(0);
                batch.positions.push(token as u32);
                let block = table[token / self.case.block_size] as usize;
                let offset = token % self.case.block_size;
                let slot = block * self.case.block_size + offset;
                batch.groups[0].slots.push(slot as u32);
            }
            batch.query_start.push(batch.ids.len() as u32);
            batch.kv_len.push(positions.end as u32);
            batch.seq_slot.push(0);
            let first_seen =
                self.case.window.map_or(0, |w| (positions.start + 1).saturating_sub(w as usize));
            let slid_out = first_seen / self.case.block_size;
            let blocks = (0..longest + 1).map(|index| {
                let is_used = index >= slid_out && index * self.case.block_size < positions.end;
                if is_used { table[index] } else { NO_SLOT }
            });
            batch.groups[0].push_table(blocks);
        }
        batch
    }

    /// Runs all sequences side by side in chunks of at most `chunk` rows; gives each sequence's
    /// rows. Blocks that slid out are poisoned.
    fn replay(&self, chunk: usize, isa: Isa, workers: usize) -> Vec<Vec<Vec<u32>>> {
        (0..self.num_blocks as u32).for_each(|block| self.poison(block));
        let mut rows: Vec<Vec<Vec<u32>>> = vec![Vec::new(); self.case.lengths.len()];
        loop {
            let mut chunks = Vec::new();
            for (seq, &length) in self.case.lengths.iter().enumerate() {
                let start = rows[seq].len();
                let end = (start + chunk).min(length);
                if start == end {
                    continue;
                }
                (start..end).for_each(|token| self.store(seq, token));
                if let Some(window) = self.case.window {
                    let first = (start + 1).saturating_sub(window as usize) / self.case.block_size;
                    self.tables[seq][..first].iter().for_each(|&block| self.poison(block));
                }
                chunks.push((seq, start..end));
            }
            if chunks.is_empty() {
                return rows;
            }
            let mut outputs = self.step(&chunks, isa, workers).into_iter();
            for (seq, positions) in chunks {
                rows[seq].extend(outputs.by_ref().take(positions.len()));
            }
        }
    }

    /// Largest error of a replay's rows against float64, of attention with `window`.
    fn error(&self, rows: &[Vec<Vec<u32>>], window: Option<u32>) -> f64 {
        self.error_over(rows, window, |tokens| tokens.cached(self.case.format))
    }

    /// The same, if the cache held what `cached` makes of a sequence's keys or values of a head.
    fn error_over(
        &self,
        rows: &[Vec<Vec<u32>>],
        window: Option<u32>,
        cached: impl Fn(&Matrix) -> Matrix,
    ) -> f64 {
        let Heads { num_q, num_kv, head_dim } = self.case.heads;
        let mut worst = 0.0f64;
        for (seq, rows) in rows.iter().enumerate() {
            let stored = |head: usize| {
                let at = |token, d| f64::from(self.head(seq, token, head)[d]);
                cached(&Matrix::from_fn(rows.len(), head_dim, at))
            };
            let stored: Vec<Matrix> = (num_q..num_q + 2 * num_kv).map(stored).collect();
            for (position, row) in rows.iter().enumerate() {
                for head in 0..num_q {
                    let kv_head = head / (num_q / num_kv);
                    let q: Vec<f64> =
                        self.head(seq, position, head).iter().map(|&x| f64::from(x)).collect();
                    let row_of = AttentionRow {
                        position,
                        scale: f64::from(self.op.scale),
                        window: window.map(|window| window as usize),
                        soft_cap: self.case.soft_cap.map(f64::from),
                        sink: self.case.has_sinks.then(|| f64::from(self.sinks[head])),
                        keys: &stored[kv_head],
                        values: &stored[num_kv + kv_head],
                    };
                    let wanted = row_of.attend(&q);
                    let got: Vec<f32> = row[head * head_dim..(head + 1) * head_dim]
                        .iter()
                        .map(|&bits| f32::from_bits(bits))
                        .collect();
                    worst = worst.max(reference::error(&got, &wanted));
                }
            }
        }
        worst
    }
}

/// Rounding of f32 sums over a few hundred products; a wrong mask or map gives errors near 1.
const TOLERANCE: f64 = 1e-4;

const FORMATS: [KvFormat; 4] = [
    KvFormat::Plain(DType::F32),
    KvFormat::Plain(DType::Bf16),
    KvFormat::Plain(DType::F16),
    KvFormat::Fp8,
];

fn random_case(random: &mut Random) -> Case {
    let (num_kv, group) = random.pick(&[(1, 1), (1, 5), (2, 7), (3, 1), (2, 2), (1, 8), (2, 3)]);
    let head_dim = random.pick(&[48, 64, 80, 96, 128, 256, 8, 24, 72]);
    let block_size = random.pick(&[16, 32, 64]);
    let unit = block_size * random.pick(&[1, 2, 4]);
    let near_border = |random: &mut Random| {
        let border = unit * (1 + random.below(3));
        border - 2 + random.below(5)
    };
    let mut lengths: Vec<usize> = (0..2 + random.below(2)).map(|_| near_border(random)).collect();
    lengths.push(1 + random.below(2 * unit));
    Case {
        heads: Heads { num_q: num_kv * group, num_kv, head_dim },
        block_size,
        unit,
        format: random.pick(&FORMATS),
        window: random.pick(&[None, None, Some(1), Some(7), Some(33), Some(100)]),
        soft_cap: random.pick(&[None, None, Some(2.0), Some(30.0)]),
        has_sinks: random.pick(&[false, true]),
        lengths,
    }
}

#[test]
fn random_shapes_equal_float64() {
    let mut random = Random(1);
    for seed in 0..32 {
        let case = random_case(&mut random);
        let world = World::new(&case, seed);
        // Lanes in plain arrays are slow, and the same code: a part of the cases is enough.
        let is_run = |isa: &Isa| *isa != Isa::Emulated512 || seed % 4 == 0;
        for isa in Isa::available().filter(is_run) {
            let chunk = random.pick(&[1, 5, 40, 1000]);
            let workers = random.pick(&[1, 2, 3]);
            let rows = world.replay(chunk, isa, workers);
            let error = world.error(&rows, case.window);
            assert!(error < TOLERANCE, "{error} with {isa:?}, chunks of {chunk}: {case:?}");
        }
    }
}

fn fixed_case(format: impl Into<KvFormat>, window: Option<u32>) -> Case {
    Case {
        heads: Heads { num_q: 10, num_kv: 2, head_dim: 48 },
        block_size: 16,
        unit: 64,
        format: format.into(),
        window,
        soft_cap: None,
        has_sinks: true,
        lengths: vec![197, 65, 3, 64],
    }
}

#[test]
fn a_window_off_by_one_shows() {
    let case = fixed_case(DType::F32, Some(40));
    let world = World::new(&case, 5);
    let rows = world.replay(1000, Isa::detect(), 1);
    assert!(world.error(&rows, Some(40)) < TOLERANCE);
    for wrong in [Some(39), Some(41), None] {
        assert!(world.error(&rows, wrong) > 100.0 * TOLERANCE);
    }
}

/// Tokens of very different sizes, so that no token's scale is its neighbour's.
#[test]
fn a_scale_of_another_token_shows() {
    const SIZES: [f32; 5] = [1.0, 0.125, 2.0, 0.0625, 0.5];
    let case = Case { has_sinks: false, ..fixed_case(KvFormat::Fp8, Some(90)) };
    let mut world = World::new(&case, 21);
    let width = (case.heads.num_q + 2 * case.heads.num_kv) * case.heads.head_dim;
    for tokens in &mut world.tokens {
        for (token, row) in tokens.chunks_mut(width).enumerate() {
            row.iter_mut().for_each(|x| *x *= SIZES[token % 5]);
        }
    }
    let rows = world.replay(50, Isa::detect(), 2);
    assert!(world.error(&rows, case.window) < TOLERANCE);
    // What a cache would hold whose scales are wrong by these factors.
    let faults: [(&str, &dyn Fn(usize) -> f32); 5] = [
        ("the first token of a block", &|token| if token % 16 == 0 { 2.0 } else { 1.0 }),
        ("the last token of a block", &|token| if token % 16 == 15 { 0.5 } else { 1.0 }),
        ("the token before", &|token| SIZES[(token + 4) % 5] / SIZES[token % 5]),
        ("the token behind", &|token| SIZES[(token + 1) % 5] / SIZES[token % 5]),
        ("twice the scale", &|_| 2.0),
    ];
    for (name, factor) in faults {
        let cached = |tokens: &Matrix| {
            let right = tokens.cached(KvFormat::Fp8);
            let at = |token: usize, d: usize| right.row(token)[d] * f64::from(factor(token));
            Matrix::from_fn(right.rows, right.cols, at)
        };
        let error = world.error_over(&rows, case.window, cached);
        assert!(error > 100.0 * TOLERANCE, "{name}: {error}");
    }
    let unrounded = |tokens: &Matrix| tokens.rounded(DType::F32);
    assert!(world.error_over(&rows, case.window, unrounded) > 10.0 * TOLERANCE);
}

#[test]
fn bits_do_not_depend_on_chunks_or_workers() {
    for isa in Isa::available() {
        for format in FORMATS {
            for window in [None, Some(37)] {
                let is_wide = format == DType::F32.into();
                if isa == Isa::Emulated512 && is_wide == window.is_some() {
                    continue;
                }
                let world = World::new(&fixed_case(format, window), 9);
                let alone = world.replay(1, isa, 1);
                for (chunk, workers) in [(1, 2), (1, 3), (7, 3), (64, 2), (97, 3), (1000, 1)] {
                    let rows = world.replay(chunk, isa, workers);
                    assert!(rows == alone, "{isa:?} {format:?} {window:?} {chunk} {workers}");
                }
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_how_a_long_row_is_split() {
    // One KV head: with several workers each decode step behind the first unit is split.
    let heads = Heads { num_q: 7, num_kv: 1, head_dim: 64 };
    let plain = KvFormat::from(DType::Bf16);
    for (format, window) in [(plain, None), (plain, Some(150)), (KvFormat::Fp8, None)] {
        let case = Case { heads, lengths: vec![330], ..fixed_case(format, window) };
        let world = World::new(&case, 13);
        let prefilled = world.replay(1000, Isa::detect(), 1);
        for workers in 1..=4 {
            assert!(world.replay(1, Isa::detect(), workers) == prefilled, "{workers} workers");
        }
    }
}

#[test]
fn bits_do_not_depend_on_any_chunk_size() {
    let case = Case { has_sinks: false, ..fixed_case(DType::Bf16, None) };
    let world = World::new(&case, 11);
    let alone = world.replay(1, Isa::detect(), 1);
    for chunk in 2..=97 {
        assert!(world.replay(chunk, Isa::detect(), 1 + chunk % 3) == alone, "chunks of {chunk}");
    }
}

#[test]
fn padded_rows_are_zero_and_change_nothing() {
    let world = World::new(&fixed_case(DType::F32, None), 3);
    (0..65).for_each(|token| world.store(1, token));
    let plain = world.step(&[(1, 60..65)], Isa::detect(), 1);
    let mut batch = world.batch(&[(1, 60..65)]);
    for row in 5..8 {
        batch.ids.push(0);
        batch.positions.push(0);
        batch.groups[0].slots.push(NO_SLOT);
        // SAFETY: the only owner.
        unsafe { world.op.out.row_mut(row) }.fill(f32::NAN);
    }
    batch.query_start.push(8);
    batch.kv_len.push(3);
    batch.seq_slot.push(0);
    batch.groups[0].push_table([NO_SLOT]);
    world.run(&batch, Isa::detect(), 2);
    for row in 0..8 {
        // SAFETY: the team has ended.
        let out = unsafe { &world.op.out.row(row)[..world.op.out.cols()] };
        let bits: Vec<u32> = out.iter().map(|x| x.to_bits()).collect();
        match plain.get(row) {
            Some(plain) => assert!(bits == *plain),
            None => assert!(bits.iter().all(|&bits| bits == 0)),
        }
    }
}
