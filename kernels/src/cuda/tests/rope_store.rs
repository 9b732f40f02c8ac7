//! rope_store.cu.

use super::dice::Dice;
use super::*;
use crate::cuda::rope_store::RopeStore;
use crate::ops::RopeStyle;
use crate::reference::{self, error};

/// Heads and rope of a layer.
#[derive(Clone, Copy, Debug)]
struct Case {
    num_q: usize,
    num_kv: usize,
    head_dim: usize,
    rotary_dim: usize,
    style: RopeStyle,
    normed: bool,
    format: DType,
}

const ODD: Case = Case {
    num_q: 5,
    num_kv: 1,
    head_dim: 48,
    rotary_dim: 48,
    style: RopeStyle::Halves,
    normed: true,
    format: DType::F32,
};

const BLOCK: usize = 16;
const BLOCKS: usize = 4;
/// Rows in blocks 3, 1 and nowhere.
const SLOTS: [u32; 4] = [BLOCK as u32 * 3 + 15, BLOCK as u32, u32::MAX, BLOCK as u32 + 1];
const POSITIONS: [u32; 4] = [31, 0, 7, 1];
const EPS: [f32; 2] = [1e-2, 1e-3];

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

impl Case {
    fn is_right(&self, bed: &Bed) -> Result<bool, KernelError> {
        let Case { num_q, num_kv, head_dim, rotary_dim, format, .. } = *self;
        let (rows, heads) = (SLOTS.len(), num_q + 2 * num_kv);
        let qkv = noises(1, rows * heads * head_dim);
        let (q_norm, k_norm) = (noises(2, head_dim), noises(3, head_dim));
        let table = noises(4, 32 * rotary_dim);
        let plane = BLOCKS * num_kv * BLOCK * head_dim;
        let cache = vec![0.5; plane];
        let on_qkv = bed.floats(&qkv);
        let norms = [bed.floats(&q_norm), bed.floats(&k_norm)];
        let (keys, values) = (bed.numbers(&cache, format), bed.numbers(&cache, format));
        let rest = [bed.floats(&table), bed.words(&POSITIONS), bed.words(&SLOTS)];
        let norm = |at: usize| if self.normed { norms[at].pointer() } else { DevicePointer::NULL };
        let store = RopeStore {
            qkv: on_qkv.pointer(),
            q_norm: norm(0),
            k_norm: norm(1),
            table: if rotary_dim > 0 { rest[0].pointer() } else { DevicePointer::NULL },
            positions: rest[1].pointer(),
            slots: rest[2].pointer(),
            keys: keys.pointer(),
            values: values.pointer(),
            num_q: num_q as u32,
            num_kv: num_kv as u32,
            head_dim: head_dim as u32,
            block_size: BLOCK as u32,
            rotary_dim: rotary_dim as u32,
            style: u32::from(self.style == RopeStyle::Interleaved),
            q_eps: EPS[0],
            k_eps: EPS[1],
        };
        // SAFETY: buffers of these shapes.
        unsafe { store.launch(&*bed.driver, format, rows as u32) }?;

        let mut want_qkv = wide(&qkv);
        let mut want = [wide(&cache), wide(&cache)];
        for (row, &slot) in SLOTS.iter().enumerate() {
            for head in 0..heads {
                let at = (row * heads + head) * head_dim;
                let mut x = wide(&qkv[at..at + head_dim]);
                let is_query = head < num_q;
                let is_value = head >= num_q + num_kv;
                if !is_value {
                    self.turn(&mut x, &table, POSITIONS[row], is_query, [&q_norm, &k_norm]);
                }
                if is_query {
                    want_qkv[at..at + head_dim].copy_from_slice(&x);
                } else if slot != u32::MAX {
                    let kv_head = head - num_q - if is_value { num_kv } else { 0 };
                    let (block, offset) = (slot as usize / BLOCK, slot as usize % BLOCK);
                    let to = ((block * num_kv + kv_head) * BLOCK + offset) * head_dim;
                    let plane = &mut want[usize::from(is_value)];
                    for (to, x) in plane[to..to + head_dim].iter_mut().zip(&x) {
                        *to = reference::round(*x, format);
                    }
                }
            }
        }
        let close = |got: &[f32], want: &[f64]| error(got, want) < 1e-5;
        let bound = if format == DType::F32 { 1e-5 } else { 1e-2 };
        Ok(close(&read_floats(&on_qkv, want_qkv.len()), &want_qkv)
            && error(&read(&keys, plane, format), &want[0]) < bound
            && error(&read(&values, plane, format), &want[1]) < bound)
    }

    fn turn(
        &self,
        x: &mut Vec<f64>,
        table: &[f32],
        position: u32,
        is_query: bool,
        norms: [&[f32]; 2],
    ) {
        if self.normed {
            let which = usize::from(!is_query);
            *x = reference::rms_norm(x, &wide(norms[which]), f64::from(EPS[which]));
        }
        if self.rotary_dim > 0 {
            let from = position as usize * self.rotary_dim;
            let table = wide(&table[from..from + self.rotary_dim]);
            reference::rope(&mut x[..], &table, self.style);
        }
    }
}

/// Heads of any kind on a device.
pub(in crate::cuda) fn random(bed: &Bed, dice: &mut Dice, _most: usize) -> Drawn {
    let num_kv = dice.size(8);
    let head_dim = 8 * (1 + dice.below(32));
    let case = Case {
        num_q: num_kv * dice.size(8),
        num_kv,
        head_dim,
        rotary_dim: dice.of(&[head_dim, head_dim / 2, 0]),
        style: dice.of(&[RopeStyle::Halves, RopeStyle::Interleaved]),
        normed: dice.once_in(2),
        format: dice.of(&[DType::Bf16, DType::F16, DType::F32]),
    };
    (format!("{case:?}"), case.is_right(bed))
}

fn read(buffer: &DeviceBuffer, len: usize, format: DType) -> Vec<f32> {
    let mut bytes = vec![0; len * format.bytes()];
    buffer.download(0, &mut bytes).unwrap();
    let host = crate::dtype::HostTensor::new(format, 1, len, &bytes).unwrap();
    (0..len).map(|index| host.at(0, index)).collect()
}

#[test]
fn heads_are_normed_turned_and_stored() {
    let cases = [
        ODD,
        Case { num_q: 4, num_kv: 2, head_dim: 128, rotary_dim: 64, format: DType::Bf16, ..ODD },
        Case { normed: false, style: RopeStyle::Interleaved, format: DType::F16, ..ODD },
        Case { num_q: 3, num_kv: 3, head_dim: 256, rotary_dim: 0, ..ODD },
        Case { head_dim: 80, rotary_dim: 20, style: RopeStyle::Interleaved, ..ODD },
    ];
    for case in cases {
        for seed in SEEDS {
            assert!(case.is_right(&Bed::new(seed, None)).unwrap(), "{case:?}");
        }
    }
}

#[test]
fn planted_faults_show() {
    let faults = [
        Fault { from: "x * cosine - y * sine", to: "x * cosine + y * sine" },
        Fault { from: "style == HALVES ? i + half", to: "style == HALVES ? i + 1" },
        Fault { from: "p.positions[row] * p.rotary_dim", to: "row * p.rotary_dim" },
        Fault { from: "slot % p.block_size", to: "0" },
        Fault { from: "if (slot == NO_SLOT) return;", to: "if (slot == NO_SLOT) slot = 0;" },
        Fault { from: "is_query ? p.q_eps : p.k_eps", to: "p.q_eps" },
        Fault { from: "is_value ? p.values : p.keys", to: "p.keys" },
        Fault { from: "    sync_warp();\n\n    bool", to: "\n    bool" },
        Fault { from: "* p.num_kv + kv_head", to: "* p.num_q + kv_head" },
    ];
    let wide = Case { num_q: 4, num_kv: 2, head_dim: 128, rotary_dim: 64, ..ODD };
    let plain = Case { normed: false, ..ODD };
    let cases = [ODD, wide, plain];
    assert_caught(&faults, |bed| {
        cases.iter().try_fold(true, |right, case| Ok(right && case.is_right(bed)?))
    });
}
