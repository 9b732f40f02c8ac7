//! Small checkpoints whose codes are packed here, element by element, against plain arithmetic in
//! float64; planted faults; and every way in which their tensors can lie.

use std::collections::BTreeMap;
use std::fs;

use proptest::prelude::*;

use super::*;
use crate::model::config::{Packing, ScaleGrid};

/// Tensors by name: type, shape, bytes.
type Tensors = BTreeMap<String, (&'static str, Vec<usize>, Vec<u8>)>;

fn open(tensors: &Tensors, stored: StoredQuantization) -> Dequantized {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, (dtype, shape, bytes)) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        let entry = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": offsets});
        header.insert(name.clone(), entry);
        data.extend_from_slice(bytes);
    }
    let header = serde_json::Value::from(header).to_string();
    let folder = tempfile::tempdir().unwrap();
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
    fs::write(folder.path().join("model.safetensors"), file).unwrap();
    Dequantized::new(Safetensors::open(folder.path()).unwrap(), stored)
}

fn values(tensor: &Tensor<'_>) -> Vec<f64> {
    let host = tensor.as_host().unwrap();
    let at = |row| (0..host.cols).map(move |col| f64::from(host.at(row, col)));
    (0..host.rows).flat_map(at).collect()
}

/// A small number for each index, in no order.
fn draw(index: usize, below: usize) -> usize {
    (index.wrapping_mul(2_654_435_761) >> 7) % below
}

fn floats(values: impl Iterator<Item = f32>) -> Vec<u8> {
    values.flat_map(f32::to_le_bytes).collect()
}

fn halves(values: impl Iterator<Item = f32>) -> Vec<u8> {
    values.flat_map(|value| half::f16::from_f32(value).to_le_bytes()).collect()
}

fn words(values: impl Iterator<Item = u32>) -> Vec<u8> {
    values.flat_map(u32::to_le_bytes).collect()
}

// fp8

const FP8: StoredFp8 = StoredFp8 {
    name: "fp8",
    scale_names: &["weight_scale_inv", "weight_scale"],
    grids: Vec::new(),
};

fn fp8(grid: ScaleGrid) -> StoredQuantization {
    StoredQuantization::Fp8(StoredFp8 { grids: vec![grid], ..FP8 })
}

/// The value of a code from its fields.
fn e4m3(code: u8) -> f64 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let magnitude = match exponent {
        0 => fraction / 8.0 * 2f64.powi(-6),
        _ => (1.0 + fraction / 8.0) * 2f64.powi(exponent - 7),
    };
    if code < 0x80 { magnitude } else { -magnitude }
}

fn code_at(index: usize) -> u8 {
    let code = draw(index, 256) as u8;
    if code & 0x7f == 0x7f { 0x11 } else { code }
}

fn fp8_tensors(rows: usize, cols: usize, scale_shape: &[usize], end: &str) -> Tensors {
    let scales = scale_shape.iter().product();
    let codes = (0..rows * cols).map(code_at).collect();
    let scales = floats((0..scales).map(|index| 0.001 * (1.0 + draw(index, 97) as f32)));
    BTreeMap::from([
        ("x.weight".to_owned(), ("F8_E4M3", vec![rows, cols], codes)),
        (format!("x.{end}"), ("F32", scale_shape.to_vec(), scales)),
    ])
}

#[test]
fn e4m3_weights_are_their_values_times_the_scales_of_their_places() {
    let block = ScaleGrid::Block { rows: 5, cols: 3 };
    let large = ScaleGrid::Block { rows: 128, cols: 128 };
    for (grid, shape, scale_at) in [
        (ScaleGrid::Tensor, vec![], (|_, _| 0) as fn(usize, usize) -> usize),
        (ScaleGrid::Tensor, vec![1], |_, _| 0),
        (ScaleGrid::Tensor, vec![1, 1], |_, _| 0),
        (ScaleGrid::Channel, vec![13, 1], |row, _| row),
        (ScaleGrid::Channel, vec![13], |row, _| row),
        (block, vec![3, 4], |row, col| row / 5 * 4 + col / 3),
        (large, vec![1, 1], |_, _| 0),
    ] {
        let tensors = fp8_tensors(13, 10, &shape, "weight_scale");
        let scale = |index: usize| f64::from(0.001 * (1.0 + draw(index, 97) as f32));
        let source = open(&tensors, fp8(grid));
        let got = values(&source.tensor("x.weight", &[13, 10]).unwrap());
        for (index, got) in got.iter().enumerate() {
            let want = e4m3(code_at(index)) * scale(scale_at(index / 10, index % 10));
            assert_eq!(*got as f32, want as f32, "{grid:?} {index}");
        }
        source.release("x.weight").unwrap();
        assert_eq!((source.names(), source.stored_dtype("x.weight")), (vec!["x.weight"], None));
    }
}

#[test]
fn a_plain_weight_stays_plain_and_all_that_is_named_can_be_asked_for() {
    let mut tensors = fp8_tensors(4, 2, &[4, 1], "weight_scale");
    tensors.insert("x.bias".to_owned(), ("F32", vec![4], floats([1.0, 2.0, 3.0, 4.0].into_iter())));
    tensors.insert("x.input_scale".to_owned(), ("F32", vec![1], floats([1.0].into_iter())));
    tensors.insert("head.weight".to_owned(), ("F32", vec![1, 2], floats([5.0, 6.0].into_iter())));
    tensors.insert("head.scale".to_owned(), ("F32", vec![1], floats([7.0].into_iter())));
    let source = open(&tensors, fp8(ScaleGrid::Channel));
    assert_eq!(source.names(), ["head.scale", "head.weight", "x.bias", "x.weight"]);
    assert_eq!(values(&source.tensor("head.weight", &[1, 2]).unwrap()), [5.0, 6.0]);
    assert_eq!(values(&source.tensor("x.bias", &[4]).unwrap()), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(source.stored_dtype("head.weight"), Some(DType::F32));
}

fn refusal(source: &Dequantized, shape: &[usize]) -> String {
    source.tensor("x.weight", shape).unwrap_err().to_string()
}

#[test]
fn scales_that_lie_are_refused() {
    let channel = || fp8(ScaleGrid::Channel);
    let sound = fp8_tensors(6, 4, &[6, 1], "weight_scale");
    let changed = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = sound.clone();
        change(&mut tensors);
        refusal(&open(&tensors, channel()), &[6, 4])
    };
    let scale = |tensors: &mut Tensors, entry| tensors.insert("x.weight_scale".to_owned(), entry);
    let of =
        |shape: &[usize]| ("F32", shape.to_vec(), vec![0; 4 * shape.iter().product::<usize>()]);
    for (said, expected) in [
        (
            refusal(&open(&sound, channel()), &[4, 6]),
            "x.weight: has shape [6, 4], config.json asks",
        ),
        (
            refusal(&open(&sound, fp8(ScaleGrid::Tensor)), &[6, 4]),
            "x.weight_scale: has shape [6, 1], not",
        ),
        (
            changed(&|t| drop(t.remove("x.weight_scale"))),
            "x.weight: has 0 tensors weight_scale_inv or",
        ),
        (changed(&|t| drop(t.insert("x.weight_scale_inv".to_owned(), of(&[6])))), "has 2 tensors"),
        (
            changed(&|t| drop(scale(t, of(&[1, 6])))),
            "x.weight_scale: has shape [1, 6], not that of",
        ),
        (changed(&|t| drop(scale(t, of(&[4, 1])))), "has shape [4, 1]"),
        (changed(&|t| drop(scale(t, ("F8_E8M0", vec![6, 1], vec![0; 6])))), "has type F8_E8M0"),
        (
            changed(&|t| {
                t.get_mut("x.weight_scale").unwrap().2[4..8]
                    .copy_from_slice(&f32::NAN.to_le_bytes())
            }),
            "x.weight_scale: has NaN as its scale 1",
        ),
        (
            changed(&|t| t.get_mut("x.weight").unwrap().2[9] = 0xff),
            "x.weight: is NaN in row 2, column 1",
        ),
        (
            changed(&|t| drop(t.insert("x.weight".to_owned(), ("BF16", vec![6, 4], vec![0; 48])))),
            "x.weight_scale: is of x.weight, which has type BF16 and no scale",
        ),
        (
            changed(&|t| {
                t.insert(
                    "x.weight_zero_point".to_owned(),
                    ("I8", vec![6, 1], vec![0, 0, 0, 0, 0, 1]),
                );
            }),
            "x.weight_zero_point: is not zero",
        ),
        (
            changed(&|t| {
                drop(t.insert("x.weight".to_owned(), ("F8_E5M2", vec![6, 4], vec![0; 24])))
            }),
            "x.weight_scale: is of x.weight, which has type F8_E5M2",
        ),
    ] {
        assert!(said.contains("model.safetensors: tensor") && said.contains(expected), "{said}");
    }
    // Only matrices have scales of rows.
    let source = open(&sound, channel());
    assert!(refusal(&source, &[24]).contains("has shape [6, 4]"));
}

#[test]
fn zeros_that_say_nothing_may_be_there() {
    // Writers of some versions leave zeros that say nothing; a scale of zero is one of zeros.
    let mut tensors = fp8_tensors(6, 4, &[6, 1], "weight_scale");
    tensors.insert("x.weight_zero_point".to_owned(), ("I8", vec![6, 1], vec![0; 6]));
    tensors.get_mut("x.weight_scale").unwrap().2[..4].fill(0);
    let source = open(&tensors, fp8(ScaleGrid::Channel));
    assert_eq!(source.names(), ["x.weight"]);
    let got = values(&source.tensor("x.weight", &[6, 4]).unwrap());
    assert!(got[..4].iter().all(|value| *value == 0.0) && got[4..].iter().any(|v| *v != 0.0));
}

// int4

/// A weight of four bits before it is packed: codes `[N, K]`, zeros and scales `[G, N]`.
struct Codes {
    rows: usize,
    cols: usize,
    groups: Vec<usize>,
    group_size: Option<usize>,
}

impl Codes {
    fn code(&self, row: usize, col: usize) -> u32 {
        draw(3 + row * self.cols + col, 16) as u32
    }

    /// From 1 to 15, so that one less can be stored.
    fn zero(&self, group: usize, row: usize) -> u32 {
        1 + draw(7 + group * self.rows + row, 15) as u32
    }

    fn scale(&self, group: usize, row: usize) -> f32 {
        half::f16::from_f32(0.01 + 0.003 * draw(group * self.rows + row, 61) as f32).to_f32()
    }

    fn value(&self, row: usize, col: usize) -> f64 {
        let group = self.groups[col];
        let steps = f64::from(self.code(row, col)) - f64::from(self.zero(group, row));
        steps * f64::from(self.scale(group, row))
    }

    fn num_groups(&self) -> usize {
        self.cols.div_ceil(self.group_size.unwrap_or(self.cols))
    }

    /// A matrix of words along its columns, from the nibble that each column of a word goes to.
    fn along_rows(
        &self,
        lines: usize,
        nibbles: [u32; 8],
        at: impl Fn(usize, usize) -> u32,
    ) -> Vec<u8> {
        let word = |line: usize, word: usize| {
            (0..8).fold(0, |bits, i| bits | at(line, 8 * word + i) << (4 * nibbles[i]))
        };
        words(
            (0..lines)
                .flat_map(|line| (0..self.rows / 8).map(move |w| (line, w)))
                .map(|(l, w)| word(l, w)),
        )
    }

    fn common(&self) -> Tensors {
        let groups = self.num_groups();
        let scales = (0..groups * self.rows).map(|i| self.scale(i / self.rows, i % self.rows));
        BTreeMap::from([("x.scales".to_owned(), ("F16", vec![groups, self.rows], halves(scales)))])
    }

    fn awq(&self) -> Tensors {
        // Column 2i of a word goes to nibble i, column 2i + 1 to nibble 4 + i.
        let nibbles = [0, 4, 1, 5, 2, 6, 3, 7];
        let codes = self.along_rows(self.cols, nibbles, |col, row| self.code(row, col));
        let zeros = self.along_rows(self.num_groups(), nibbles, |group, row| self.zero(group, row));
        let mut tensors = self.common();
        tensors.insert("x.qweight".to_owned(), ("I32", vec![self.cols, self.rows / 8], codes));
        tensors
            .insert("x.qzeros".to_owned(), ("I32", vec![self.num_groups(), self.rows / 8], zeros));
        tensors
    }

    fn gptq(&self, zero_offset: u32) -> Tensors {
        let word = |line: usize, row: usize| {
            (0..8).fold(0, |bits, i| bits | self.code(row, 8 * line + i) << (4 * i))
        };
        let places = (0..self.cols / 8 * self.rows).map(|i| (i / self.rows, i % self.rows));
        let codes = words(places.map(|(line, row)| word(line, row)));
        let in_order = [0, 1, 2, 3, 4, 5, 6, 7];
        let zero = |group: usize, row: usize| self.zero(group, row) - zero_offset;
        let zeros = self.along_rows(self.num_groups(), in_order, zero);
        let groups = words(self.groups.iter().map(|group| *group as u32));
        let mut tensors = self.common();
        tensors.insert("x.qweight".to_owned(), ("I32", vec![self.cols / 8, self.rows], codes));
        tensors
            .insert("x.qzeros".to_owned(), ("I32", vec![self.num_groups(), self.rows / 8], zeros));
        tensors.insert("x.g_idx".to_owned(), ("I32", vec![self.cols], groups));
        tensors
    }

    fn check(&self, source: &Dequantized) -> bool {
        let got = values(&source.tensor("x.weight", &[self.rows, self.cols]).unwrap());
        got.iter().enumerate().all(|(i, got)| *got == self.value(i / self.cols, i % self.cols))
    }
}

fn codes(rows: usize, cols: usize, group_size: Option<usize>) -> Codes {
    let groups = (0..cols).map(|col| col / group_size.unwrap_or(cols)).collect();
    Codes { rows, cols, groups, group_size }
}

fn int4(packing: Packing, group_size: Option<usize>) -> StoredQuantization {
    StoredQuantization::Int4(StoredInt4 { packing, group_size })
}

const FIRST: Packing = Packing::Gptq { zero_offset: 1, is_ordered: false };
const SECOND: Packing = Packing::Gptq { zero_offset: 0, is_ordered: true };

#[test]
fn codes_are_found_in_either_packing_and_stand_for_exact_numbers() {
    // One word, more rows and columns than a tile, no multiple of either; groups of all and of few.
    for (rows, cols, group_size) in
        [(8, 8, None), (72, 40, Some(8)), (136, 24, Some(24)), (64, 48, Some(16)), (200, 16, None)]
    {
        let case = codes(rows, cols, group_size);
        assert!(case.check(&open(&case.awq(), int4(Packing::Awq, group_size))));
        assert!(case.check(&open(&case.gptq(1), int4(FIRST, group_size))));
        assert!(case.check(&open(&case.gptq(0), int4(SECOND, group_size))));
        // Without g_idx columns lie in order.
        let mut plain = case.gptq(1);
        plain.remove("x.g_idx");
        assert!(case.check(&open(&plain, int4(FIRST, group_size))));
    }
    // GPTQ's last group may be short, and its columns in any order.
    let mut case = codes(16, 40, Some(16));
    assert!(case.check(&open(&case.gptq(1), int4(FIRST, Some(16)))));
    case.groups.reverse();
    case.groups.swap(3, 30);
    let source = open(&case.gptq(0), int4(SECOND, Some(16)));
    assert!(case.check(&source));
    assert_eq!(source.names(), ["x.weight"]);
    source.release("x.weight").unwrap();
    assert!(case.check(&source));
}

/// A zero of 16 stores 15, and is 16 again.
#[test]
fn the_first_formats_zeros_do_not_wrap() {
    let case = codes(8, 8, None);
    let mut tensors = case.gptq(1);
    tensors.get_mut("x.qzeros").unwrap().2 = vec![0xff; 4];
    let source = open(&tensors, int4(FIRST, None));
    let got = values(&source.tensor("x.weight", &[8, 8]).unwrap());
    let want = (f64::from(case.code(1, 2)) - 16.0) * f64::from(case.scale(0, 1));
    assert_eq!(got[10], want);
}

#[test]
fn planted_faults_change_a_number() {
    let group_size = Some(8);
    let mut case = codes(24, 32, group_size);
    case.groups.swap(0, 31);
    let in_order = codes(24, 32, group_size);
    let awq = || int4(Packing::Awq, group_size);
    let first = || int4(FIRST, group_size);
    let changed = |mut tensors: Tensors, name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        change(&mut tensors.get_mut(name).unwrap().2);
        tensors
    };
    // One packing's words under the other's shapes, with the fault that the name says.
    let nibbles_in_order = {
        let in_place = [0, 1, 2, 3, 4, 5, 6, 7];
        let words = in_order.along_rows(32, in_place, |col, row| in_order.code(row, col));
        changed(in_order.awq(), "x.qweight", &|bytes| bytes.copy_from_slice(&words))
    };
    let transposed = |bytes: &mut Vec<u8>| {
        let old = bytes.clone();
        for (index, to) in bytes.chunks_exact_mut(2).enumerate() {
            let from = index % 4 * 24 + index / 4; // [4, 24] read as [24, 4]
            to.copy_from_slice(&old[2 * from..2 * from + 2]);
        }
    };
    let inverted = |bytes: &mut Vec<u8>| {
        for scale in bytes.chunks_exact_mut(2) {
            let value = half::f16::from_le_bytes([scale[0], scale[1]]).to_f32().recip();
            scale.copy_from_slice(&half::f16::from_f32(value).to_le_bytes());
        }
    };
    let no_order = {
        let mut tensors = case.gptq(1);
        tensors.remove("x.g_idx");
        tensors
    };
    let swapped =
        |bytes: &mut Vec<u8>| bytes.iter_mut().for_each(|byte| *byte = byte.rotate_left(4));
    let backwards = |bytes: &mut Vec<u8>| bytes.chunks_exact_mut(4).for_each(<[u8]>::reverse);
    for (fault, tensors, stored, of) in [
        ("nibbles in order", nibbles_in_order, awq(), &in_order),
        (
            "nibbles of a byte swapped",
            changed(in_order.gptq(1), "x.qweight", &swapped),
            first(),
            &in_order,
        ),
        ("words backwards", changed(in_order.gptq(1), "x.qweight", &backwards), first(), &in_order),
        ("zeros of the second format", in_order.gptq(0), first(), &in_order),
        ("zeros of the first format", in_order.gptq(1), int4(SECOND, group_size), &in_order),
        ("groups transposed", changed(in_order.awq(), "x.scales", &transposed), awq(), &in_order),
        ("scales inverted", changed(in_order.awq(), "x.scales", &inverted), awq(), &in_order),
        ("order ignored", no_order, first(), &case),
        ("zeros swapped", changed(in_order.awq(), "x.qzeros", &swapped), awq(), &in_order),
    ] {
        assert!(!of.check(&open(&tensors, stored)), "{fault}");
    }
}

#[test]
fn words_that_lie_are_refused() {
    let case = codes(16, 24, Some(8));
    let changed = |name: &'static str, entry: Option<(&'static str, Vec<usize>, Vec<u8>)>| {
        let mut tensors = case.gptq(1);
        tensors.remove(name);
        entry.map(|entry| tensors.insert(name.to_owned(), entry));
        open(&tensors, int4(Packing::Gptq { zero_offset: 1, is_ordered: true }, Some(8)))
    };
    let of = |dtype, shape: &[usize], size: usize| {
        Some((dtype, shape.to_vec(), vec![0; size * shape.iter().product::<usize>()]))
    };
    let group = |group: i32| {
        let groups = (0..24).map(|col| if col == 5 { group as u32 } else { 0 });
        Some(("I32", vec![24], words(groups)))
    };
    for (source, expected) in [
        (changed("x.qweight", None), "tensor x.weight: is missing"),
        (changed("x.qzeros", None), "tensor x.qzeros: is missing"),
        (changed("x.scales", None), "tensor x.scales: is missing"),
        (changed("x.g_idx", None), "tensor x.qweight: has no g_idx beside it"),
        (
            changed("x.weight", of("F16", &[16, 24], 2)),
            "x.qweight: stands for x.weight, which is also",
        ),
        (
            changed("x.qweight", of("I32", &[24, 2], 4)),
            "x.qweight: has shape [24, 2], config.json asks for [3, 16]",
        ),
        (changed("x.qweight", of("F32", &[3, 16], 4)), "x.qweight: has type F32, expected I32"),
        (changed("x.qzeros", of("I32", &[2, 2], 4)), "x.qzeros: has shape [2, 2]"),
        (changed("x.scales", of("F16", &[16, 3], 2)), "x.scales: has shape [16, 3]"),
        (changed("x.scales", of("I16", &[3, 16], 2)), "x.scales: has type I16, only"),
        (
            changed("x.scales", Some(("F16", vec![3, 16], vec![0xff; 96]))),
            "x.scales: has NaN as its scale 0",
        ),
        (changed("x.scales", of("F16", &[4, 16], 2)), "x.scales: has shape [4, 16]"),
        (changed("x.scales", of("F16", &[3, 15], 2)), "x.scales: has shape [3, 15]"),
        (changed("x.qzeros", of("I32", &[3, 1], 4)), "x.qzeros: has shape [3, 1]"),
        (changed("x.qzeros", of("I64", &[3, 2], 8)), "x.qzeros: has type I64, expected I32"),
        (changed("x.qweight", of("I32", &[2, 16], 4)), "x.qweight: has shape [2, 16]"),
        (changed("x.g_idx", of("I64", &[24], 8)), "x.g_idx: has type I64, expected I32"),
        (changed("x.g_idx", of("I32", &[16], 4)), "x.g_idx: has shape [16]"),
        (changed("x.g_idx", group(3)), "x.g_idx: has group 3 of 3, column 5"),
        (changed("x.g_idx", group(-1)), "x.g_idx: has group -1 of 3, column 5"),
    ] {
        let said = refusal(&source, &[16, 24]);
        assert!(said.contains("model.safetensors: tensor") && said.contains(expected), "{said}");
    }
    // Another size of groups than the files were made with.
    for (group_size, expected) in [(Some(4), "x.qzeros: has shape [3, 2]"), (None, "x.qzeros: has")]
    {
        let source = open(&case.gptq(1), int4(FIRST, group_size));
        assert!(refusal(&source, &[16, 24]).contains(expected), "{group_size:?}");
    }
    let awq = open(&case.awq(), int4(Packing::Awq, Some(16)));
    assert!(refusal(&awq, &[16, 24]).contains("x.qweight: cannot be [16, 24] in groups of 16"));
    // What is left of codes beside a weight that is plain.
    let mut tensors = case.gptq(1);
    tensors.remove("x.qweight");
    tensors.insert("x.weight".to_owned(), ("F16", vec![16, 24], vec![0; 2 * 16 * 24]));
    let said = refusal(&open(&tensors, int4(FIRST, Some(8))), &[16, 24]);
    assert!(said.contains("x.qzeros: is of x.weight, which is plain and has no qweight"), "{said}");
    for (packing, shape) in [(Packing::Awq, [16, 20]), (FIRST, [16, 20]), (FIRST, [12, 24])] {
        let source = open(&case.awq(), int4(packing, Some(8)));
        assert!(refusal(&source, &shape).contains("x.qweight: cannot be ["), "{packing:?}");
    }
    assert!(refusal(&open(&case.awq(), int4(Packing::Awq, Some(8))), &[24]).contains("no matrix"));
}

fn any_entry() -> impl Strategy<Value = (&'static str, Vec<usize>)> {
    let dtype = prop::sample::select(vec!["F8_E4M3", "F32", "BF16", "F16", "I32", "U8"]);
    (dtype, prop::collection::vec(0usize..33, 0..4))
}

proptest! {
    /// Whatever types, shapes and bytes stand under the names: a refusal, or the tensor asked for.
    #[test]
    fn damaged_tensors_never_panic(
        entries in prop::collection::vec((0usize..8, any_entry(), any::<u8>()), 0..4),
        kind in 0usize..5,
    ) {
        const NAMES: [&str; 8] = [
            "weight", "weight_scale", "weight_scale_inv", "qweight", "qzeros", "scales", "g_idx", "bias",
        ];
        let case = codes(16, 24, Some(8));
        let (mut tensors, stored) = match kind {
            0 => (fp8_tensors(16, 24, &[4, 3], "weight_scale"), fp8(ScaleGrid::Block { rows: 4, cols: 9 })),
            1 => (fp8_tensors(16, 24, &[16, 1], "weight_scale"), fp8(ScaleGrid::Channel)),
            2 => (case.awq(), int4(Packing::Awq, Some(8))),
            3 => (case.gptq(1), int4(FIRST, Some(8))),
            _ => (case.gptq(0), int4(SECOND, Some(8))),
        };
        for (name, (dtype, shape), byte) in entries {
            let size = match dtype { "F8_E4M3" | "U8" => 1, "F32" | "I32" => 4, _ => 2 };
            let bytes = vec![byte; size * shape.iter().product::<usize>()];
            tensors.insert(format!("x.{}", NAMES[name]), (dtype, shape, bytes));
        }
        let source = open(&tensors, stored);
        for shape in [&[16usize, 24][..], &[24, 16], &[384]] {
            if let Ok(tensor) = source.tensor("x.weight", shape) {
                prop_assert_eq!(values(&tensor).len(), 384);
            }
        }
    }
}
