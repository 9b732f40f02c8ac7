//! rope_store.cu.

use super::dice::Dice;
use super::*;
use crate::cuda::rope_store::RopeStore;
use crate::kv_format::scale_value;
use crate::ops::RopeStyle;
use crate::quantize::e4m3_value;
use crate::reference::{self, Matrix, error};

/// Heads and rope of a layer.
#[derive(Clone, Copy, Debug)]
struct Case {
    num_q: usize,
    num_kv: usize,
    head_dim: usize,
    rotary_dim: usize,
    style: RopeStyle,
    normed: bool,
    format: KvFormat,
}

const ODD: Case = Case {
    num_q: 5,
    num_kv: 1,
    head_dim: 48,
    rotary_dim: 48,
    style: RopeStyle::Halves,
    normed: true,
    format: KvFormat::Plain(DType::F32),
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
        let tables = [noises(4, 32 * rotary_dim), noises(5, 32 * rotary_dim)];
        let plane = BLOCKS * num_kv * BLOCK * head_dim;
        let cache = vec![0.5; plane];
        let on_qkv = bed.floats(&qkv);
        let norms = [bed.floats(&q_norm), bed.floats(&k_norm)];
        let [keys, values] = [(); 2].map(|()| self.plane(bed, &cache));
        let on_tables = tables.each_ref().map(|table| bed.floats(table));
        let rest = [bed.words(&POSITIONS), bed.words(&SLOTS)];
        let table = |at: usize| {
            if rotary_dim > 0 { on_tables[at].pointer() } else { DevicePointer::NULL }
        };
        let norm = |at: usize| if self.normed { norms[at].pointer() } else { DevicePointer::NULL };
        let store = RopeStore {
            qkv: on_qkv.pointer(),
            q_norm: norm(0),
            k_norm: norm(1),
            q_table: table(0),
            k_table: table(1),
            positions: rest[0].pointer(),
            slots: rest[1].pointer(),
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
                    let which = usize::from(!is_query);
                    let norm = [&q_norm, &k_norm][which];
                    self.turn(&mut x, &tables[which], POSITIONS[row], (norm, EPS[which]));
                }
                if is_query {
                    want_qkv[at..at + head_dim].copy_from_slice(&x);
                } else if slot != u32::MAX {
                    let kv_head = head - num_q - if is_value { num_kv } else { 0 };
                    let (block, offset) = (slot as usize / BLOCK, slot as usize % BLOCK);
                    let to = ((block * num_kv + kv_head) * BLOCK + offset) * head_dim;
                    let plane = &mut want[usize::from(is_value)];
                    let stored = Matrix { rows: 1, cols: head_dim, data: x }.cached(format);
                    plane[to..to + head_dim].copy_from_slice(&stored.data);
                }
            }
        }
        let close = |got: &[f32], want: &[f64]| error(got, want) < 1e-5;
        // A key may lie between two steps; values come as they are.
        let [of_keys, of_values] = match format {
            KvFormat::Plain(DType::F32) => [1e-5; 2],
            KvFormat::Plain(_) => [1e-2; 2],
            KvFormat::Fp8 => [0.3, 1e-9],
        };
        Ok(close(&read_floats(&on_qkv, want_qkv.len()), &want_qkv)
            && error(&self.read(&keys, plane), &want[0]) < of_keys
            && error(&self.read(&values, plane), &want[1]) < of_values)
    }

    /// A plane that holds these elements.
    fn plane(&self, bed: &Bed, elements: &[f32]) -> DeviceBuffer {
        match self.format {
            KvFormat::Plain(dtype) => bed.numbers(elements, dtype),
            KvFormat::Fp8 => bed.bytes(&fp8_plane(elements, BLOCK, self.head_dim)),
        }
    }

    /// The `len` elements of a plane.
    fn read(&self, buffer: &DeviceBuffer, len: usize) -> Vec<f32> {
        let mut bytes = vec![0; self.format.head_bytes(len / self.head_dim, self.head_dim)];
        buffer.download(0, &mut bytes).unwrap();
        let KvFormat::Plain(dtype) = self.format else {
            return self.read_codes(&bytes);
        };
        let host = crate::dtype::HostTensor::new(dtype, 1, len, &bytes).unwrap();
        (0..len).map(|index| host.at(0, index)).collect()
    }

    fn read_codes(&self, bytes: &[u8]) -> Vec<f32> {
        let mut elements = Vec::new();
        for head in bytes.chunks_exact(BLOCK * (self.head_dim + 1)) {
            let (codes, scales) = head.split_at(BLOCK * self.head_dim);
            for (codes, &scale) in codes.chunks_exact(self.head_dim).zip(scales) {
                elements.extend(codes.iter().map(|&code| e4m3_value(code) * scale_value(scale)));
            }
        }
        elements
    }

    fn turn(&self, x: &mut Vec<f64>, table: &[f32], position: u32, (norm, eps): (&[f32], f32)) {
        if self.normed {
            *x = reference::rms_norm(x, &wide(norm), f64::from(eps));
        }
        if self.rotary_dim > 0 {
            let from = position as usize * self.rotary_dim;
            let table = wide(&table[from..from + self.rotary_dim]);
            reference::rope(&mut x[..], &table, self.style);
        }
    }
}

/// Heads of any kind on a device.
pub(in crate::cuda) fn random(_: &Bed, dice: &mut Dice, _most: usize) -> Drawn {
    let num_kv = dice.size(8);
    let head_dim = 8 * (1 + dice.below(32));
    let plain = [DType::Bf16, DType::F16, DType::F32].map(KvFormat::Plain);
    let case = Case {
        num_q: num_kv * dice.size(8),
        num_kv,
        head_dim,
        rotary_dim: dice.of(&[head_dim, head_dim / 2, 0]),
        style: dice.of(&[RopeStyle::Halves, RopeStyle::Interleaved]),
        normed: dice.once_in(2),
        format: dice.of(&[plain[0], plain[1], plain[2], KvFormat::Fp8]),
    };
    (format!("{case:?}"), Box::new(move |bed: &Bed| case.is_right(bed)))
}

#[test]
fn heads_are_normed_turned_and_stored() {
    let cases = [
        ODD,
        Case {
            num_q: 4,
            num_kv: 2,
            head_dim: 128,
            rotary_dim: 64,
            format: DType::Bf16.into(),
            ..ODD
        },
        Case { normed: false, style: RopeStyle::Interleaved, format: DType::F16.into(), ..ODD },
        Case { num_q: 3, num_kv: 3, head_dim: 256, rotary_dim: 0, ..ODD },
        Case { head_dim: 80, rotary_dim: 20, style: RopeStyle::Interleaved, ..ODD },
        Case { num_q: 4, num_kv: 2, head_dim: 80, rotary_dim: 80, format: KvFormat::Fp8, ..ODD },
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
        Fault { from: "is_query ? p.q_table : p.k_table", to: "p.k_table" },
        Fault { from: "is_query ? p.q_table : p.k_table", to: "p.q_table" },
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

/// Keys and values that come as they are: of all sizes, on borders between codes and between scales, and
/// not finite. Gives whether both planes have the bytes of the format's definition.
fn has_the_right_bytes(bed: &Bed) -> Result<bool, KernelError> {
    const HEADS: usize = 2;
    const DIM: usize = 48;
    let head = |at: usize| -> Vec<f32> {
        let size = 2f32.powi([0, -8, 3, 100, -126, 127, 7][at % 7]);
        let mut head: Vec<f32> = noises(at as u64, DIM)
            .into_iter()
            .enumerate()
            // Few bits: halfway between two codes often enough; some so small that they have no exponent.
            .map(|(i, x)| (x * 64.0).round() / 64.0 * size * [1.0, 0.01, 0.0002][i % 3])
            .collect();
        head[at % DIM] = 1.75 * size;
        match at % 11 {
            1 => head[at % DIM] = f32::from_bits(head[at % DIM].to_bits() + 1),
            4 => head[5] = f32::INFINITY,
            7 => head[9] = f32::NAN,
            9 => head.fill(0.0),
            _ => {}
        }
        head
    };
    let rows = BLOCKS * BLOCK - 1;
    let qkv: Vec<f32> = (0..rows * (1 + 2 * HEADS)).flat_map(head).collect();
    let slots: Vec<u32> = (0..rows as u32).map(|row| row * 5 % (BLOCKS * BLOCK) as u32).collect();
    let mut planes = [(); 2].map(|()| vec![0.0; BLOCKS * HEADS * BLOCK * DIM]);
    for (row, &slot) in slots.iter().enumerate() {
        for kv_head in 0..2 * HEADS {
            let (block, token) = (slot as usize / BLOCK, slot as usize % BLOCK);
            let to = ((block * HEADS + kv_head % HEADS) * BLOCK + token) * DIM;
            let from = (row * (1 + 2 * HEADS) + 1 + kv_head) * DIM;
            planes[kv_head / HEADS][to..to + DIM].copy_from_slice(&qkv[from..from + DIM]);
        }
    }
    // What nobody writes is a head of zeros, as the definition has it.
    let want = planes.map(|plane| fp8_plane(&plane, BLOCK, DIM));
    let empty = fp8_plane(&vec![0.0; BLOCKS * HEADS * BLOCK * DIM], BLOCK, DIM);
    let on_device = [bed.bytes(&empty), bed.bytes(&empty)];
    let (qkv, slots) = (bed.floats(&qkv), bed.words(&slots));
    let store = RopeStore {
        qkv: qkv.pointer(),
        q_norm: DevicePointer::NULL,
        k_norm: DevicePointer::NULL,
        q_table: DevicePointer::NULL,
        k_table: DevicePointer::NULL,
        positions: slots.pointer(),
        slots: slots.pointer(),
        keys: on_device[0].pointer(),
        values: on_device[1].pointer(),
        num_q: 1,
        num_kv: HEADS as u32,
        head_dim: DIM as u32,
        block_size: BLOCK as u32,
        rotary_dim: 0,
        style: 0,
        q_eps: 0.0,
        k_eps: 0.0,
    };
    // SAFETY: buffers of these shapes.
    unsafe { store.launch(&*bed.driver, KvFormat::Fp8, rows as u32) }?;
    let is_right = |(buffer, want): (&DeviceBuffer, &Vec<u8>)| {
        let mut bytes = vec![0; want.len()];
        buffer.download(0, &mut bytes).unwrap();
        bytes == *want
    };
    Ok(on_device.iter().zip(&want).all(is_right))
}

#[test]
fn an_fp8_cache_has_the_bytes_of_its_format() {
    for seed in SEEDS {
        assert!(has_the_right_bytes(&Bed::new(seed, None)).unwrap());
    }
}

#[test]
fn planted_faults_in_codes_and_scales_show() {
    let faults = [
        Fault { from: "magnitude = max_of(magnitude, shuffle_xor(magnitude, distance));", to: "" },
        Fault { from: "(magnitude + 0x1fffff) >> 23", to: "magnitude >> 23" },
        Fault { from: "max_of(exponent, 16u + 8u)", to: "max_of(exponent, 9u)" },
        Fault { from: "246u + 8u) - 8", to: "247u + 8u) - 8" },
        Fault { from: "scale == NOT_FINITE_SCALE ? 0 : code", to: "code" },
        Fault { from: "magnitude >= 0x7f800000", to: "magnitude > 0x7f800000" },
        Fault { from: "0x7ffff + (magnitude >> 20 & 1)", to: "0x80000" },
        Fault { from: "0x3c800000) return", to: "0x3c000000) return" },
        Fault { from: "sign = bits >> 24 & 0x80", to: "sign = 0" },
        Fault { from: "[p.block_size * p.head_dim + token]", to: "[p.block_size * p.head_dim]" },
        Fault { from: "* (p.head_dim + 1);", to: "* p.head_dim;" },
        Fault { from: "(254 - scale) << 23", to: "(253 - scale) << 23" },
    ];
    assert_caught(&faults, has_the_right_bytes);
}
