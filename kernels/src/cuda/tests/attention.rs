//! attention.cu and attention_sized.cu.

use std::collections::BTreeMap;

use super::dice::Dice;
use super::*;
use crate::batch::{Batch, NO_SLOT};
use crate::cuda::CudaOptions;
use crate::cuda::attention::{Attention, AttentionKernels, BLOCK_SIZE_MIN};
use crate::cuda::attention_plan::{AttentionPlan, PlanRoom};
use crate::cuda::linear_choice::Target;
use crate::cuda::plain::bytes_of;
use crate::device::Limits;
use crate::ops::Heads;
use crate::reference::attention::AttentionRow;
use crate::reference::{Matrix, error};

/// A layer and its cache.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) heads: Heads,
    pub(super) format: KvFormat,
    pub(super) block: usize,
    pub(super) window: Option<usize>,
    pub(super) soft_cap: Option<f32>,
    pub(super) has_sinks: bool,
}

/// Rows of a sequence in a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seq {
    id: u64,
    /// Of the first row.
    position: usize,
    rows: usize,
    /// Padded rows behind them.
    padding: usize,
}

/// How a step is cut; changes no bit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    /// Multiprocessors that the planner takes the device to have.
    pub(super) blocks: u32,
    /// What long queries get.
    pub(super) wide: Wide,
}

/// Tiles of many rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wide {
    /// What fits into little shared memory, if anything does.
    Small,
    Tensor,
    /// Other bits than those of the others.
    Hopper,
}

const SPLIT: Way = Way { blocks: 1000, wide: Wide::Tensor };
const WHOLE: Way = Way { blocks: 1, wide: Wide::Tensor };

/// What rows give, by sequence and position.
pub(super) type Rows<T> = BTreeMap<(u64, usize), Vec<T>>;

pub(super) const fn seq(id: u64, position: usize, rows: usize, padding: usize) -> Seq {
    Seq { id, position, rows, padding }
}

pub(super) const fn case(num_q: usize, num_kv: usize, head_dim: usize, format: DType) -> Case {
    let heads = Heads { num_q, num_kv, head_dim };
    let format = KvFormat::Plain(format);
    Case { heads, format, block: BLOCK_SIZE_MIN, window: None, soft_cap: None, has_sinks: false }
}

const fn fp8(num_q: usize, num_kv: usize, head_dim: usize) -> Case {
    Case { format: KvFormat::Fp8, ..case(num_q, num_kv, head_dim, DType::Bf16) }
}

/// A step on the device, its buffers still filled on the host.
struct Step {
    batch: Batch,
    qkv: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Way {
    fn target(self) -> Target {
        // Of an RTX 40 and an H100.
        let shared_bytes_max = if self.wide == Wide::Small { 99 << 10 } else { 227 << 10 };
        let is_hopper = self.wide == Wide::Hopper;
        let options = CudaOptions::default();
        let multiprocessors = self.blocks;
        Target { multiprocessors, shared_bytes_max, is_hopper, has_library: false, options }
    }
}

impl Case {
    fn scale(&self) -> f32 {
        (self.heads.head_dim as f32).powf(-0.5)
    }

    /// First key that a row sees.
    fn first_key(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    fn sinks(&self) -> Vec<f32> {
        noises(1, self.heads.num_q).iter().map(|sink| sink * 3.0).collect()
    }

    /// All query heads of a row.
    fn query(&self, id: u64, position: usize) -> Vec<f32> {
        let len = self.heads.num_q * self.heads.head_dim;
        (0..len).map(|i| 6.0 * noise(100 + id, position * len + i)).collect()
    }

    fn key(&self, id: u64, token: usize, kv_head: usize, i: usize) -> f32 {
        let Heads { num_kv, head_dim, .. } = self.heads;
        self.size(token) * noise(200 + id, (token * num_kv + kv_head) * head_dim + i)
    }

    fn value(&self, id: u64, token: usize, kv_head: usize, i: usize) -> f32 {
        let Heads { num_kv, head_dim, .. } = self.heads;
        self.size(token + 2) * (0.3 + noise(300 + id, (token * num_kv + kv_head) * head_dim + i))
    }

    /// Where tokens have scales, no two neighbours have the same.
    fn size(&self, token: usize) -> f32 {
        if self.format == KvFormat::Fp8 { [1.0, 0.125, 2.0, 0.5, 0.03][token % 5] } else { 1.0 }
    }

    /// A plane of the cache, from what it shall hold: NaN where nobody may look.
    fn plane(&self, bed: &Bed, elements: &[f32]) -> DeviceBuffer {
        match self.format {
            KvFormat::Plain(dtype) => bed.numbers(elements, dtype),
            KvFormat::Fp8 => bed.bytes(&fp8_plane(elements, self.block, self.heads.head_dim)),
        }
    }

    pub(super) fn want(&self, seqs: &[Seq]) -> Rows<f64> {
        let Heads { num_q, num_kv, head_dim } = self.heads;
        let mut want = Rows::new();
        for &Seq { id, position: first, rows, .. } in seqs {
            let matrix = |value: &dyn Fn(usize, usize) -> f32| {
                let matrix =
                    Matrix::from_fn(first + rows, head_dim, |token, i| value(token, i).into());
                matrix.cached(self.format)
            };
            let heads: Vec<_> = (0..num_kv)
                .map(|head| {
                    let keys = matrix(&|token, i| self.key(id, token, head, i));
                    (keys, matrix(&|token, i| self.value(id, token, head, i)))
                })
                .collect();
            for position in first..first + rows {
                let query: Vec<f64> = self.query(id, position).into_iter().map(f64::from).collect();
                let attend = |head: usize| {
                    let (keys, values) = &heads[head / (num_q / num_kv)];
                    let row = AttentionRow {
                        position,
                        keys,
                        values,
                        scale: self.scale().into(),
                        window: self.window,
                        soft_cap: self.soft_cap.map(f64::from),
                        sink: self.has_sinks.then(|| self.sinks()[head].into()),
                    };
                    row.attend(&query[head * head_dim..(head + 1) * head_dim])
                };
                want.insert((id, position), (0..num_q).flat_map(attend).collect());
            }
        }
        want
    }

    /// Pages the sequences. What no row sees is NaN: queries of padded rows, K and V of the step,
    /// keys before a window, blocks of others.
    fn step(&self, seqs: &[Seq]) -> Step {
        let Heads { num_q, num_kv, head_dim } = self.heads;
        let block = self.block;
        let blocks_of = |seq: &Seq| (seq.position + seq.rows).div_ceil(block);
        // Blocks in some order, the first and a few others nobody's.
        let total = (seqs.iter().map(blocks_of).sum::<usize>() + 3).next_multiple_of(5) + 1;
        let mut places = (0..).map(|n| n * 5 % total + 1);
        let plane = vec![f32::NAN; (total + 1) * num_kv * block * head_dim];
        let (mut keys, mut values) = (plane.clone(), plane);
        let (mut qkv, mut batch) = (Vec::new(), Batch::new(1));
        batch.clear();
        for seq in seqs {
            let (id, end) = (seq.id, seq.position + seq.rows);
            let first_key = self.first_key(seq.position);
            let table: Vec<usize> = (0..blocks_of(seq))
                .map(|at| {
                    if (at + 1) * block <= first_key { usize::MAX } else { places.next().unwrap() }
                })
                .collect();
            for (token, head) in (first_key..end).flat_map(|t| (0..num_kv).map(move |h| (t, h))) {
                let to = (table[token / block] * num_kv + head) * block + token % block;
                for i in 0..head_dim {
                    keys[to * head_dim + i] = self.key(id, token, head, i);
                    values[to * head_dim + i] = self.value(id, token, head, i);
                }
            }
            for row in 0..seq.rows + seq.padding {
                let (position, is_padded) = (seq.position + row, row >= seq.rows);
                let len = qkv.len() + (num_q + 2 * num_kv) * head_dim;
                if !is_padded {
                    qkv.extend(self.query(id, position));
                }
                qkv.resize(len, f32::NAN);
                let slot = || (table[position / block] * block + position % block) as u32;
                batch.groups[0].slots.push(if is_padded { NO_SLOT } else { slot() });
                batch.ids.push(0);
            }
            batch.groups[0].push_table(table.iter().map(|&block| block as u32));
            batch.query_start.push(batch.ids.len() as u32);
            batch.kv_len.push((end + seq.padding) as u32);
        }
        Step { batch, qkv, keys, values }
    }

    fn kernels(&self, way: Way) -> AttentionKernels {
        AttentionKernels::new(self.heads, self.format, &way.target()).unwrap()
    }

    fn plan(&self, way: Way, batch: &Batch) -> (AttentionPlan, PlanRoom, usize) {
        let shape = self.kernels(way).plan_shape(self.window.map(|window| window as u32));
        let limits = Limits {
            max_tokens: batch.num_tokens(),
            max_seqs: batch.num_seqs(),
            max_logits_rows: 0,
            vocab: 0,
            max_model_len: batch.kv_len.iter().copied().max().unwrap_or(0) as usize,
            max_top: 0,
        };
        let mut plan = AttentionPlan::with_room(shape, &limits);
        plan.make(batch, &batch.groups[0]);
        let room = shape.room(&limits);
        (plan, room, room.partial_floats(&shape))
    }

    /// What the device gives for all rows, padded ones under the position `usize::MAX`.
    pub(super) fn run(&self, bed: &Bed, way: Way, seqs: &[Seq]) -> Result<Rows<f32>, KernelError> {
        let Heads { num_q, num_kv, head_dim } = self.heads;
        let step = self.step(seqs);
        let kernels = self.kernels(way);
        let (plan, room, partial_floats) = self.plan(way, &step.batch);
        let arrivals = bed.words(&vec![0; room.arrivals]);
        let group = &step.batch.groups[0];
        let len = step.batch.num_tokens() * num_q * head_dim;
        let out = bed.poison(len);
        let buffers = [
            bed.floats(&step.qkv),
            self.plane(bed, &step.keys),
            self.plane(bed, &step.values),
            bed.words(&group.block_table),
            bed.words(&group.slots),
            bed.bytes(bytes_of(plan.pieces())),
            bed.poison(partial_floats),
            bed.floats(&self.sinks()),
        ];
        let [qkv, keys, values, block_table, slots, pieces, partials, sinks] =
            buffers.each_ref().map(DeviceBuffer::pointer);
        let attention = Attention {
            qkv,
            out: out.pointer(),
            keys,
            values,
            block_table,
            slots,
            pieces,
            sinks: if self.has_sinks { sinks } else { DevicePointer::NULL },
            partials,
            arrivals: arrivals.pointer(),
            num_q: num_q as u32,
            num_kv: num_kv as u32,
            group: kernels.group(),
            head_dim: head_dim as u32,
            block_bits: self.block.ilog2(),
            window: self.window.map_or(u32::MAX, |window| window as u32),
            scale: self.scale(),
            soft_cap: self.soft_cap.unwrap_or(0.0),
        };
        // SAFETY: buffers of these shapes, and the plan of this batch.
        unsafe { attention.launch(&*bed.driver, &kernels, &plan, step.keys.len() / head_dim) }?;
        if read_words(&arrivals, room.arrivals).iter().any(|&count| count != 0) {
            return Err(KernelError::Fault("arrivals are left to the next launch".into()));
        }
        let out = read_floats(&out, len);
        let mut rows = out.chunks(num_q * head_dim);
        let mut got = Rows::new();
        for seq in seqs {
            for position in seq.position..seq.position + seq.rows {
                got.insert((seq.id, position), rows.next().unwrap().to_vec());
            }
            let padding: Vec<f32> = rows.by_ref().take(seq.padding).flatten().copied().collect();
            got.insert((seq.id, usize::MAX), padding);
        }
        Ok(got)
    }

    /// Whether rows are what is wanted, and padded ones zeros.
    pub(super) fn matches(&self, way: Way, got: &Rows<f32>, want: &Rows<f64>) -> bool {
        self.matches_within(1.0, way, got, want)
    }

    /// The same within so many times the bounds.
    fn matches_within(&self, times: f64, way: Way, got: &Rows<f32>, want: &Rows<f64>) -> bool {
        let bound = times
            * match (self.format, way.wide) {
                // Queries and weights are of the cache's type.
                (KvFormat::Plain(DType::F16), Wide::Hopper) => 3e-3,
                (KvFormat::Plain(DType::Bf16), Wide::Hopper) => 2e-2,
                (KvFormat::Plain(DType::F32 | DType::F16), _) => 2e-5,
                // Queries and weights have 16 bits.
                (KvFormat::Plain(DType::Bf16) | KvFormat::Fp8, _) => 3e-4,
            };
        got.iter().all(|(key @ (_, position), got)| match want.get(key) {
            Some(want) => error(got, want) < bound,
            None => *position == usize::MAX && got.iter().all(|value| value.to_bits() == 0),
        })
    }
}

/// Sequences of any length over heads of any size on a device; `most` keys of all rows together.
pub(in crate::cuda) fn random(bed: &Bed, dice: &mut Dice, most: usize) -> Drawn {
    let plain = [DType::Bf16, DType::F16, DType::F32].map(KvFormat::Plain);
    let format = dice.of(&[plain[0], plain[0], plain[1], plain[2], KvFormat::Fp8]);
    let any = match format {
        KvFormat::Plain(_) => 8 * (1 + dice.below(32)),
        KvFormat::Fp8 => 16 * (1 + dice.below(16)),
    };
    let head_dim = dice.of(&[64, 80, 96, 128, 256, any]);
    // Whether blocks may ask for as much memory as wide tiles take, and for Hopper's instructions.
    let has_room = bed.driver.shared_bytes_max() >= 227 << 10;
    let is_hopper = bed.driver.capability() == (9, 0);
    let wide = match dice.of(&[0, 1, 2, 2]) {
        2 if is_hopper => Wide::Hopper,
        1 | 2 if has_room => Wide::Tensor,
        _ => Wide::Small,
    };
    drawn(dice, (most, Vec::new()), (format, head_dim, wide))
}

/// Every kernel of attention_hopper.cu, with tiles that are split and that are not.
pub(in crate::cuda) const EACH_OF_HOPPER: Numbered =
    (4 * HOPPER_HEADS.len(), |_, dice, most, number| {
        let format = [DType::Bf16, DType::F16][number % 2];
        let head_dim = HOPPER_HEADS[number / 2 % HOPPER_HEADS.len()];
        // More rows than any narrow tile has; on a card several wide ones, of which some are not full.
        let rows = 17 + dice.below(most.isqrt().saturating_sub(16).max(1));
        let position = dice.below((most / rows).saturating_sub(rows).max(1));
        let first = vec![seq(0, position, rows, dice.below(3))];
        drawn(dice, (most, first), (format.into(), head_dim, Wide::Hopper))
    });

/// The sizes of heads that it has kernels for.
const HOPPER_HEADS: [usize; 5] = [64, 80, 96, 128, 256];

/// Sequences, these and others of up to so many keys of all rows, over heads of a size.
fn drawn(
    dice: &mut Dice,
    (most, mut seqs): (usize, Vec<Seq>),
    (format, head_dim, wide): (KvFormat, usize, Wide),
) -> Drawn {
    let num_kv = dice.size(4);
    let heads = Heads { num_q: num_kv * dice.size(8), num_kv, head_dim };
    let case = Case {
        heads,
        format,
        block: dice.of(&[16, 32, 64, 64]),
        window: dice.once_in(3).then(|| dice.size(400)),
        soft_cap: dice.once_in(3).then_some(2.0),
        has_sinks: dice.once_in(3),
    };
    let mut left = most;
    while left > 0 && seqs.len() < 8 {
        let position = dice.size(left) - 1;
        let rows = dice.size((left / (position + 1)).min(64));
        left = left.saturating_sub((position + rows) * rows);
        seqs.push(seq(seqs.len() as u64, position, rows, dice.below(3)));
    }
    let way = Way { blocks: dice.of(&[1, 132, 1000]), wide };
    let words = format!("{case:?} {seqs:?} {way:?}");
    let run = move |bed: &Bed| {
        let got = case.run(bed, way, &seqs)?;
        // Of so many rows and heads as draws meet, the worst rounding is further out than that of few.
        Ok(case.matches_within(2.0, way, &got, &case.want(&seqs)))
    };
    (words, Box::new(run))
}

/// Decodes, prompts and padding, before, at and behind the end of a unit.
const RAGGED: [Seq; 6] = [
    seq(1, 530, 1, 0),
    seq(2, 250, 11, 2),
    seq(3, 0, 1, 0),
    seq(4, 0, 21, 0),
    seq(5, 255, 1, 1),
    seq(6, 3, 0, 2),
];

fn check(cases: &[Case]) {
    for case in cases {
        let want = case.want(&RAGGED);
        for (seed, way) in SEEDS.into_iter().zip([SPLIT, WHOLE, Way { wide: Wide::Small, ..SPLIT }])
        {
            let got = case.run(&Bed::new(seed, None), way, &RAGGED).unwrap();
            assert!(case.matches(way, &got, &want), "{case:?} {way:?}");
        }
    }
}

#[test]
fn heads_of_any_size() {
    check(&[
        case(5, 1, 48, DType::F32),
        Case { block: 64, window: Some(100), has_sinks: true, ..case(4, 2, 80, DType::F32) },
        Case { soft_cap: Some(2.0), window: Some(300), ..case(5, 1, 48, DType::Bf16) },
        Case { block: 32, has_sinks: true, ..case(6, 2, 72, DType::F16) },
    ]);
}

#[test]
fn heads_of_known_sizes() {
    check(&[
        Case { block: 32, has_sinks: true, ..case(4, 2, 64, DType::Bf16) },
        Case { window: Some(20), ..case(5, 1, 80, DType::Bf16) },
        Case { soft_cap: Some(2.0), ..case(3, 3, 96, DType::F16) },
        Case { block: 64, window: Some(257), has_sinks: true, ..case(8, 1, 128, DType::Bf16) },
        case(2, 1, 256, DType::Bf16),
    ]);
}

#[test]
fn more_heads_on_a_kv_head_than_a_tile_has_rows() {
    check(&[
        Case { window: Some(300), has_sinks: true, ..case(24, 1, 64, DType::Bf16) },
        case(64, 2, 40, DType::F16),
        Case { soft_cap: Some(2.0), ..case(17, 1, 48, DType::F32) },
    ]);
}

#[test]
fn how_rows_are_cut_changes_no_bit() {
    let cases = [
        Case { window: Some(290), block: 32, ..fp8(4, 2, 64) },
        Case { window: Some(290), has_sinks: true, ..case(4, 2, 64, DType::Bf16) },
        Case { soft_cap: Some(2.0), ..case(5, 1, 40, DType::F16) },
        Case { window: Some(40), ..case(5, 1, 48, DType::F32) },
    ];
    for case in cases {
        let run = |seed, way, seqs: &[Seq]| case.run(&Bed::new(seed, None), way, seqs).unwrap();
        let prompt = run(4, WHOLE, &[seq(1, 500, 23, 0)]);
        let others = [
            run(5, SPLIT, &[seq(1, 500, 23, 0)]),
            run(6, Way { wide: Wide::Small, ..WHOLE }, &[seq(2, 0, 3, 0), seq(1, 500, 23, 0)]),
            run(7, WHOLE, &[seq(1, 500, 1, 0)]),
            run(8, SPLIT, &[seq(1, 511, 1, 1)]),
            run(9, SPLIT, &[seq(3, 700, 2, 0), seq(1, 512, 1, 0)]),
            run(10, Way { blocks: 4, ..SPLIT }, &[seq(1, 510, 6, 1)]),
            run(11, WHOLE, &[seq(1, 507, 16, 0), seq(2, 300, 1, 0)]),
        ];
        let bits = |row: &[f32]| row.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        for (other, rows) in others.iter().zip([23, 23, 1, 1, 1, 6, 16]) {
            let common = other.iter().filter_map(|((id, position), row)| {
                let row = (*position != usize::MAX).then_some(row)?;
                Some((row, prompt.get(&(*id, *position))?))
            });
            let same = common.map(|(a, b)| assert_eq!(bits(a), bits(b), "{case:?}")).count();
            assert_eq!(same, rows);
        }
    }
}

#[test]
fn heads_that_no_kernel_takes_are_refused() {
    let refused = |num_q, head_dim, format, shared_bytes_max| {
        let heads = Heads { num_q, num_kv: 1, head_dim };
        let target = Target { shared_bytes_max, ..WHOLE.target() };
        AttentionKernels::new(heads, format, &target).is_err()
    };
    let most = 99 << 10;
    let plain = [DType::F32, DType::Bf16, DType::F16].map(KvFormat::Plain);
    for format in [plain[0], plain[1], plain[2], KvFormat::Fp8] {
        assert!(!refused(16, 256, format, most));
        assert!(!refused(71, 128, format, most));
        assert!(refused(1, 264, format, most));
        assert!(refused(1, 62, format, most));
        assert!(refused(1, 256, format, 48 << 10));
        // Rows of codes are whole pieces of 16 bytes.
        assert_eq!(refused(1, 72, format, most), format == KvFormat::Fp8);
    }
}

#[test]
fn planted_faults_show() {
    let faults = [
        // The ring.
        Fault { from: "wait_copies<Math::SLOTS - 2>()", to: "wait_copies<Math::SLOTS - 1>()" },
        Fault { from: "        sync_block();\n        fetch();", to: "        fetch();" },
        Fault { from: "tile.kv_head) <<", to: "0) <<" },
        Fault { from: "(chunk * Math::CHUNK >> p.block_bits));", to: "(token >> p.block_bits));" },
        Fault { from: "is_seen ? 16 : 0);", to: "16);" },
        // What rows see.
        Fault { from: "to > window ? to - window : 0", to: "to >= window ? to - window + 1 : 0" },
        Fault { from: "if (p.slots[piece.row + row] == NO_SLOT)", to: "if (false)" },
        Fault { from: "is_seen ? exp_of(weights[i] - max) : 0.0f", to: "exp_of(weights[i] - max)" },
        // Merges.
        Fault {
            from: "return keep / fused(sum, keep, exp_of(sink - larger));",
            to: "return keep / sum;",
        },
        Fault { from: "sum = joined(join, sum, unit_sum);", to: "sum += unit_sum;" },
        Fault { from: "+ tile.index * rows)", to: "+ tile.index)" },
        Fault { from: "ahead += MERGE_AHEAD", to: "ahead += MERGE_AHEAD - 7" },
        Fault { from: "+ 1 == tile.piece.num_pieces;", to: "+ 2 == tile.piece.num_pieces;" },
        Fault { from: "if (last) *arrivals = 0;", to: "" },
        Fault { from: "+ tile.index;\n            bool last", to: ";\n            bool last" },
        Fault { from: "tile.piece.partial -= tile.piece.parts_before * rows;", to: "" },
        Fault { from: "max = shuffle(larger, WARP - 1);", to: "max = shuffle(larger, 0);" },
        Fault { from: "sum, shuffle(joins.sum, lane)", to: "sum, joins.sum" },
        Fault { from: "u32 from = is_there ? column : 0;", to: "u32 from = 0;" },
        Fault { from: "if (row < tile.num_score_rows) parts", to: "parts" },
        // Products.
        Fault { from: "to[0] = high[0] + low[0];", to: "to[0] = high[0];" },
        Fault { from: "if (head_dim % 16 == 0) return;", to: "return;" },
        Fault { from: "(token + lane) * row_bytes", to: "lane * row_bytes" },
        Fault { from: "+ column + token) = sums", to: "+ token) = sums" },
    ];
    let tensor = Case {
        window: Some(300),
        soft_cap: Some(2.0),
        has_sinks: true,
        ..case(8, 4, 24, DType::F16)
    };
    let plain = case(5, 1, 16, DType::F32);
    // Padding in a tile that is split; and more parts of one than a warp has lanes.
    let ragged = vec![seq(1, 700, 1, 0), seq(2, 252, 6, 2), seq(3, 1, 1, 0)];
    let cases = [(tensor, ragged.clone()), (plain, ragged), (plain, vec![seq(1, 8400, 1, 0)])];
    let wanted = cases.map(|(case, seqs)| (case, case.want(&seqs), seqs));
    assert_caught(&faults, |bed| {
        for (case, want, seqs) in &wanted {
            for way in [SPLIT, WHOLE] {
                if !case.matches(way, &case.run(bed, way, seqs)?, want) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    });
}

#[test]
fn planted_faults_in_codes_and_scales_show() {
    let faults = [
        // Codes on their way from the cache.
        Fault { from: "HAS_SCALES ? head * (head_dim + 1)", to: "HAS_SCALES ? head * head_dim" },
        Fault { from: "piece * 16) = values;", to: "piece * 8) = values;" },
        Fault {
            from: "            widen(slot, chunk, widened);\n            sync_block();",
            to: "            widen(slot, chunk, widened);",
        },
        Fault { from: "(codes & 0x7f007f00) >> 4", to: "(codes & 0x7f007f00) >> 3" },
        Fault { from: "codes & 0x80008000", to: "codes & 0x80000000" },
        Fault { from: "placed, 0x7b807b80", to: "placed, 0x7b007b00" },
        Fault { from: "(pair & 0xff00) << 16", to: "(pair & 0x7f00) << 16" },
        // Scales.
        Fault {
            from: "slot[Math::CHUNK * head_dim + place]",
            to: "slot[Math::CHUNK * head_dim + place / 2]",
        },
        Fault {
            from: "? bf16_pair_of_scale(scale) : 0",
            to: "? bf16_pair_of_scale(scale) : bf16_pair_of_scale(scale)",
        },
        Fault {
            from: "p.block_bits) + head * (head_dim + 1)",
            to: "p.block_bits) + head * head_dim",
        },
        Fault { from: "(u64)(head_dim << p.block_bits) +", to: "" },
        Fault { from: "token + 16 > tile.keys.from", to: "token >= tile.keys.from" },
        Fault { from: "scale << 7 | scale << 23", to: "scale << 7 | scale << 7" },
        Fault {
            from: "if (warp_index() == 0) copy_scales",
            to: "if (warp_index() == 4) copy_scales",
        },
    ];
    let case = Case { window: Some(300), block: 32, has_sinks: true, ..fp8(4, 2, 48) };
    let seqs = [seq(1, 700, 1, 0), seq(2, 250, 8, 2), seq(3, 1, 1, 0)];
    let want = case.want(&seqs);
    assert_caught_in("attention_fp8.cu", &faults, |bed| {
        for way in [SPLIT, WHOLE] {
            if !case.matches(way, &case.run(bed, way, &seqs)?, &want) {
                return Ok(false);
            }
        }
        Ok(true)
    });
}
