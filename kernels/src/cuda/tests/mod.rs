//! Kernels under emulation against float64, each with planted faults that must show.
//!
//! The hardware suite (`cuda::suite`) runs the same cases, drawn at random, on whatever device it is
//! given; so this is part of a build for it, too, and nothing here may ask for the emulation unless it
//! is a test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]
#![cfg_attr(
    not(test),
    allow(dead_code, unused_imports, reason = "the hardware suite takes a part of the tests")
)]

pub(in crate::cuda) mod attention;
#[cfg(test)]
mod attention_hopper;
#[cfg(test)]
mod attention_plan;
pub(in crate::cuda) mod dice;
pub(in crate::cuda) mod embed;
#[cfg(test)]
mod emulator;
#[cfg(test)]
mod executor;
pub(in crate::cuda) mod hopper;
pub(in crate::cuda) mod kv_copy;
pub(in crate::cuda) mod linear;
#[cfg(test)]
mod linear_bytes;
#[cfg(test)]
mod linear_choice;
#[cfg(test)]
mod linear_hopper;
#[cfg(test)]
mod linear_hopper_quantized;
pub(in crate::cuda) mod linear_quantized;
pub(in crate::cuda) mod linear_tensor;
pub(in crate::cuda) mod moe;
pub(in crate::cuda) mod norm;
#[cfg(test)]
mod normed_linear;
pub(in crate::cuda) mod rope_store;
pub(in crate::cuda) mod sample;
#[cfg(test)]
pub(in crate::cuda) mod silent;
#[cfg(test)]
mod staging;

use std::path::PathBuf;
use std::sync::Arc;

use half::{bf16, f16};

use crate::cuda::driver::{DeviceBuffer, DevicePointer, Driver};
use crate::cuda::emulated::{Emulated, Fault};
use crate::cuda::linear::{Linear, stride_of};
use crate::cuda::quantized::{code_bytes, place_row, scale_bytes};
use crate::dtype::DType;
use crate::error::KernelError;
use crate::kv_format::{KvFormat, code_of, scale_of};
use crate::quantize::quantize_row;
use crate::weight_format::{Quantization, WeightFormat};

/// Orders of threads and blocks that every kernel is run in.
const SEEDS: [u64; 3] = [1, 2, 3];

/// Where compiled kernels are kept: beside the test's own binary.
pub(crate) fn folder() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().join("emulated-kernels")
}

/// A case that was drawn, and what runs it: whether the device has it right.
pub(in crate::cuda) type Drawn = (String, Box<dyn FnOnce(&Bed) -> Result<bool, KernelError>>);

/// What draws the case of a number, no larger than another, and runs it; and how many such cases there are.
pub(in crate::cuda) type Numbered = (usize, DrawNumbered);
pub(in crate::cuda) type DrawNumbered = fn(&Bed, &mut dice::Dice, usize, usize) -> Drawn;

/// A device under test.
pub(in crate::cuda) struct Bed {
    driver: Arc<dyn Driver>,
}

impl Bed {
    /// Any device.
    pub(in crate::cuda) fn on(driver: &Arc<dyn Driver>) -> Self {
        Bed { driver: Arc::clone(driver) }
    }

    fn new(seed: u64, fault: Option<Fault>) -> Self {
        Bed { driver: Arc::new(Emulated::with_fault(&folder(), seed, fault).at_once()) }
    }

    /// Whether its arithmetic is a card's: one with memory of its own.
    fn is_card(&self) -> bool {
        matches!(self.driver.memory(), Ok(Some(_)))
    }

    fn bytes(&self, bytes: &[u8]) -> DeviceBuffer {
        let buffer = DeviceBuffer::new(&self.driver, bytes.len(), "a test").unwrap();
        buffer.upload(0, bytes).unwrap();
        buffer
    }

    fn floats(&self, values: &[f32]) -> DeviceBuffer {
        self.numbers(values, DType::F32)
    }

    fn numbers(&self, values: &[f32], format: DType) -> DeviceBuffer {
        let bytes: Vec<u8> = values.iter().flat_map(|&value| encode(value, format)).collect();
        self.bytes(&bytes)
    }

    fn words(&self, words: &[u32]) -> DeviceBuffer {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.bytes(&bytes)
    }

    /// `len` NaNs: what a kernel leaves unwritten shows.
    fn poison(&self, len: usize) -> DeviceBuffer {
        self.floats(&vec![f32::NAN; len])
    }
}

fn encode(value: f32, format: DType) -> Vec<u8> {
    match format {
        DType::F32 => value.to_le_bytes().to_vec(),
        DType::Bf16 => bf16::from_f32(value).to_le_bytes().to_vec(),
        DType::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
    }
}

/// A plane of an fp8 cache that holds these elements, `[block][KV head][token][D]`.
fn fp8_plane(elements: &[f32], block: usize, head_dim: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for tokens in elements.chunks_exact(block * head_dim) {
        let scales: Vec<u8> = tokens.chunks_exact(head_dim).map(scale_of).collect();
        for (token, &scale) in tokens.chunks_exact(head_dim).zip(&scales) {
            bytes.extend(token.iter().map(|&x| code_of(x, scale)));
        }
        bytes.extend(scales);
    }
    bytes
}

fn read_floats(buffer: &DeviceBuffer, len: usize) -> Vec<f32> {
    let mut bytes = vec![0; len * 4];
    buffer.download(0, &mut bytes).unwrap();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn read_words(buffer: &DeviceBuffer, len: usize) -> Vec<u32> {
    read_floats(buffer, len).into_iter().map(f32::to_bits).collect()
}

/// Matrices one after another, stored in any format.
struct StoredWeight {
    format: WeightFormat,
    elements: DeviceBuffer,
    scales: Option<DeviceBuffer>,
}

impl StoredWeight {
    fn new(bed: &Bed, format: WeightFormat, weight: &[f32], k: usize) -> Self {
        let format = match format {
            WeightFormat::Plain(dtype) => {
                let stride = stride_of(k, dtype);
                let mut padded = vec![0.0; weight.len() / k * stride];
                for (row, to) in weight.chunks_exact(k).zip(padded.chunks_exact_mut(stride)) {
                    to[..k].copy_from_slice(row);
                }
                let elements = bed.numbers(&padded, dtype);
                return StoredWeight { format, elements, scales: None };
            }
            WeightFormat::Quantized(quantization) => quantization,
        };
        let OnDevice { codes, scales } = OnDevice::new(bed, format, weight, k);
        StoredWeight { format: format.into(), elements: codes, scales: Some(scales) }
    }

    /// The product with the first matrix: stored, without bias.
    fn linear(&self, [x, out]: [DevicePointer; 2], rows: usize, (n, k): (usize, usize)) -> Linear {
        let pointers = [x, self.elements.pointer(), out];
        let stride = match self.format {
            WeightFormat::Plain(dtype) => stride_of(k, dtype),
            WeightFormat::Quantized(quantization) => code_bytes(quantization, k),
        };
        let scales = self.scales.as_ref().map_or(DevicePointer::NULL, DeviceBuffer::pointer);
        let plain = Linear::plain(pointers, rows, (n, k), DType::F32);
        Linear { scales, stride: stride as u32, ..plain }
    }
}

/// Quantized matrices one after another.
struct OnDevice {
    codes: DeviceBuffer,
    scales: DeviceBuffer,
}

impl OnDevice {
    fn new(bed: &Bed, quantization: Quantization, weight: &[f32], k: usize) -> Self {
        let rows = weight.len() / k;
        let sizes = [code_bytes(quantization, k), scale_bytes(quantization, k)];
        let [mut codes, mut scales] = sizes.map(|bytes| vec![0; rows * bytes]);
        let places = codes.chunks_exact_mut(sizes[0]).zip(scales.chunks_exact_mut(sizes[1]));
        let mut row_bytes = vec![0; quantization.row_bytes(k)];
        for (row, (codes, scales)) in weight.chunks_exact(k).zip(places) {
            quantize_row(quantization, row, &mut row_bytes).unwrap();
            place_row(quantization, &row_bytes, codes, scales);
        }
        OnDevice { codes: bed.bytes(&codes), scales: bed.bytes(&scales) }
    }
}

/// A number in (−1, 1) that depends on nothing but its arguments.
fn noise(seed: u64, index: usize) -> f32 {
    let mut x = seed << 40 ^ index as u64;
    for _ in 0..3 {
        x = (x ^ x >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    (x >> 40) as f32 / (1 << 23) as f32 - 1.0
}

/// Numbers of [`noise`].
pub(crate) fn noises(seed: u64, len: usize) -> Vec<f32> {
    (0..len).map(|index| noise(seed, index)).collect()
}

/// Plants each fault, runs `check`, and asserts that it fails: with an error of the emulator, or by
/// finding wrong values.
fn assert_caught(faults: &[Fault], check: impl Fn(&Bed) -> Result<bool, KernelError>) {
    assert_caught_by(|fault| Bed::new(1, Some(fault)), faults, check);
}

/// The same, for a check of several sources: plants in `name` alone.
fn assert_caught_in(
    name: &'static str,
    faults: &[Fault],
    check: impl Fn(&Bed) -> Result<bool, KernelError>,
) {
    let planted = |fault| Emulated::with_fault(&folder(), 1, Some(fault)).only_in(name);
    assert_caught_by(|fault| Bed { driver: Arc::new(planted(fault).at_once()) }, faults, check);
}

fn assert_caught_by(
    bed: impl Fn(Fault) -> Bed,
    faults: &[Fault],
    check: impl Fn(&Bed) -> Result<bool, KernelError>,
) {
    for fault in faults {
        let right = check(&bed(*fault));
        assert!(!matches!(right, Ok(true)), "not caught: {fault:?}");
        if let Err(KernelError::Unsupported(reason)) = right {
            panic!("the fault {fault:?} was not planted: {reason}");
        }
    }
}
