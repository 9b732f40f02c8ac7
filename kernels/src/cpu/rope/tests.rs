//! QK norm, rope and the cache write against float64.

use super::*;
use crate::batch::GroupBatch;
use crate::cpu::command::ScratchPlan;
use crate::cpu::isa::Isa;
use crate::cpu::kv::KvCache;
use crate::cpu::test_team::{self, noise};
use crate::device::KvSpec;
use crate::dtype::DType;
use crate::kv_format::{KvFormat, scale_value};
use crate::ops::Heads;
use crate::quantize::e4m3_value;
use crate::reference;

const HEADS: Heads = Heads { num_q: 5, num_kv: 1, head_dim: 12 };
const WIDTH: usize = (5 + 2) * 12;
const ROWS: usize = 4;
const POSITIONS: usize = 40;
const BLOCK: usize = 16;
const EPS: f32 = 1e-5;
/// Row 2 is padding.
const SLOTS: [u32; ROWS] = [17, 3, NO_SLOT, 31];
const AT: [u32; ROWS] = [0, 7, 1, 39];

#[derive(Clone, Copy)]
struct Case {
    normed: bool,
    rope: Option<(usize, RopeStyle)>,
    format: KvFormat,
}

fn table(rotary_dim: usize) -> Vec<f32> {
    let angle = |position: usize, i: usize| {
        position as f64 * 100f64.powf(-2.0 * i as f64 / rotary_dim as f64)
    };
    (0..POSITIONS * rotary_dim)
        .map(|at| {
            let (position, i) = (at / rotary_dim, at % rotary_dim);
            let half = rotary_dim / 2;
            if i < half {
                angle(position, i).cos() as f32
            } else {
                angle(position, i - half).sin() as f32
            }
        })
        .collect()
}

/// Queries grow, as they may.
fn query_table(rotary_dim: usize) -> Vec<f32> {
    table(rotary_dim)
        .iter()
        .enumerate()
        .map(|(at, x)| x * (1.0 + (at / rotary_dim) as f32 / 8.0))
        .collect()
}

fn norm_weight(which: usize) -> Vec<f32> {
    (0..HEADS.head_dim).map(|i| 1.0 + noise(which, 0, i) / 2.0).collect()
}

impl Case {
    fn op(self) -> QkRopeStore<CpuProgram> {
        let spec = KvSpec {
            num_layers: 2,
            num_kv_heads: HEADS.num_kv,
            head_dim: HEADS.head_dim,
            format: self.format,
            num_blocks: 2,
        };
        let norm = |which| {
            let weight = Parameters::new(&norm_weight(which)).unwrap();
            self.normed.then_some(Norm { weight, eps: EPS })
        };
        QkRopeStore {
            qkv: test_team::activation(ROWS, WIDTH, |row, col| noise(9, row, col)),
            heads: HEADS,
            q_norm: norm(10),
            k_norm: norm(11),
            rope: self.rope.map(|(rotary_dim, style)| Rope {
                keys: Parameters::new(&table(rotary_dim)).unwrap(),
                queries: Parameters::new(&query_table(rotary_dim)).unwrap(),
                rotary_dim,
                style,
            }),
            kv: KvCache::new(spec, BLOCK).unwrap(),
            group: 0,
            layer: 1,
        }
    }

    /// One head of a row as it should be; `norm` names the norm's weight.
    fn reference(self, row: usize, head: usize, norm: usize) -> Vec<f64> {
        let cols = head * HEADS.head_dim..(head + 1) * HEADS.head_dim;
        let mut x: Vec<f64> = cols.map(|col| f64::from(noise(9, row, col))).collect();
        if self.normed {
            let weight: Vec<f64> = norm_weight(norm).into_iter().map(f64::from).collect();
            x = reference::rms_norm(&x, &weight, f64::from(EPS));
        }
        if let Some((rotary_dim, style)) = self.rope {
            let at = AT[row] as usize * rotary_dim;
            let table =
                if head < HEADS.num_q { query_table(rotary_dim) } else { table(rotary_dim) };
            let table: Vec<f64> =
                table[at..at + rotary_dim].iter().map(|&x| f64::from(x)).collect();
            reference::rope(&mut x, &table, style);
        }
        x
    }

    fn run(self, workers: usize) -> QkRopeStore<CpuProgram> {
        let op = self.op();
        let group = GroupBatch { slots: SLOTS.to_vec(), ..GroupBatch::default() };
        let batch = Batch {
            ids: vec![0; ROWS],
            positions: AT.to_vec(),
            groups: vec![group],
            ..Batch::default()
        };
        let plan = ScratchPlan::default();
        test_team::run(Isa::Portable, workers, plan, |ctx| run(&op, ctx, &batch));
        op
    }
}

/// What the cache holds for a slot, widened.
fn cached(kv: &KvCache, plane: Plane, slot: usize) -> Vec<f32> {
    let base = kv.head_ptr(1, plane, slot / BLOCK, 0);
    let element = |i: usize| match plane {
        Plane::Keys => i * BLOCK + slot % BLOCK,
        Plane::Values => slot % BLOCK * HEADS.head_dim + i,
    };
    // SAFETY: within the head's elements, and no team is running.
    let read = |i: usize| unsafe {
        match kv.spec().format {
            KvFormat::Plain(DType::F32) => *base.cast::<f32>().add(element(i)),
            KvFormat::Plain(DType::Bf16) => {
                half::bf16::from_bits(*base.cast::<u16>().add(element(i))).to_f32()
            }
            KvFormat::Plain(DType::F16) => {
                half::f16::from_bits(*base.cast::<u16>().add(element(i))).to_f32()
            }
            KvFormat::Fp8 => {
                let scale = *base.add(BLOCK * HEADS.head_dim + slot % BLOCK);
                e4m3_value(*base.add(element(i))) * scale_value(scale)
            }
        }
    };
    (0..HEADS.head_dim).map(read).collect()
}

fn cases() -> impl Iterator<Item = Case> {
    let ropes = [
        None,
        Some((12, RopeStyle::Halves)),
        Some((12, RopeStyle::Interleaved)),
        Some((8, RopeStyle::Halves)),
        Some((4, RopeStyle::Interleaved)),
    ];
    let plain = [DType::F32, DType::Bf16, DType::F16].map(KvFormat::Plain);
    let formats = [plain[0], plain[1], plain[2], KvFormat::Fp8];
    let switches =
        [false, true].into_iter().flat_map(move |normed| formats.map(|format| (normed, format)));
    switches.flat_map(move |(normed, format)| ropes.map(|rope| Case { normed, rope, format }))
}

#[test]
fn heads_and_cache_agree_with_float64() {
    for case in cases() {
        let op = case.run(2);
        let rows = test_team::rows(&op.qkv, ROWS);
        let rounding = match case.format {
            KvFormat::Plain(DType::F32) => 1e-6,
            KvFormat::Plain(DType::Bf16) => 1e-2,
            KvFormat::Plain(DType::F16) => 2e-3,
            KvFormat::Fp8 => 0.2,
        };
        for row in 0..ROWS {
            for head in 0..HEADS.num_q {
                let q = &rows[row][head * HEADS.head_dim..(head + 1) * HEADS.head_dim];
                assert!(reference::error(q, &case.reference(row, head, 10)) < 2e-6);
            }
            if SLOTS[row] == NO_SLOT {
                continue;
            }
            let slot = SLOTS[row] as usize;
            let key = cached(&op.kv, Plane::Keys, slot);
            assert!(reference::error(&key, &case.reference(row, HEADS.num_q, 11)) < rounding);
            let plain = Case { normed: false, rope: None, ..case };
            let value = cached(&op.kv, Plane::Values, slot);
            let want = plain.reference(row, HEADS.num_q + HEADS.num_kv, 11);
            assert!(reference::error(&value, &want) < rounding);
        }
    }
}

/// Values pass as they are, and keys do without norm and rope: so their codes are known.
#[test]
fn an_fp8_cache_holds_what_its_format_says() {
    let case = Case { normed: false, rope: None, format: KvFormat::Fp8 };
    let op = case.run(2);
    for (row, &slot) in SLOTS.iter().enumerate().filter(|(_, slot)| **slot != NO_SLOT) {
        let planes = [(Plane::Keys, HEADS.num_q), (Plane::Values, HEADS.num_q + HEADS.num_kv)];
        for (plane, head) in planes {
            let want = reference::quantized::kv_head(&case.reference(row, head, 11));
            let got = cached(&op.kv, plane, slot as usize);
            assert!(got.iter().zip(want).all(|(&got, want)| f64::from(got) == want));
        }
    }
}

#[test]
fn rows_without_a_slot_and_other_layers_write_nothing() {
    let case =
        Case { normed: true, rope: Some((12, RopeStyle::Halves)), format: DType::F32.into() };
    let op = case.run(3);
    let written = [Plane::Keys, Plane::Values].map(|plane| {
        let used = |slot: &usize| cached(&op.kv, plane, *slot).iter().any(|&x| x != 0.0);
        (0..2 * BLOCK).filter(used).collect::<Vec<_>>()
    });
    assert_eq!(written, [vec![3, 17, 31], vec![3, 17, 31]]);
    for plane in [Plane::Keys, Plane::Values] {
        for block in 0..2 {
            let base = op.kv.head_ptr(0, plane, block, 0).cast::<f32>();
            // SAFETY: the other layer's elements, and no team is running.
            let untouched = (0..HEADS.head_dim * BLOCK).all(|i| unsafe { *base.add(i) == 0.0 });
            assert!(untouched);
        }
    }
}

#[test]
fn workers_change_no_bit() {
    for case in cases() {
        let all = test_team::rows(&case.run(1).qkv, ROWS);
        for workers in 2..=3 {
            assert_eq!(test_team::rows(&case.run(workers).qkv, ROWS), all);
        }
    }
}

#[test]
fn a_wrong_position_is_seen() {
    let case =
        Case { normed: false, rope: Some((12, RopeStyle::Halves)), format: DType::F32.into() };
    let op = case.run(1);
    let q = test_team::rows(&op.qkv, ROWS)[1][..HEADS.head_dim].to_vec();
    let mut shifted: Vec<f64> = (0..HEADS.head_dim).map(|i| f64::from(noise(9, 1, i))).collect();
    let next: Vec<f64> = query_table(12)[8 * 12..9 * 12].iter().map(|&x| f64::from(x)).collect();
    reference::rope(&mut shifted, &next, RopeStyle::Halves);
    assert!(reference::error(&q, &shifted) > 0.05);
    assert!(reference::error(&q, &case.reference(1, 0, 10)) < 2e-6);
}
