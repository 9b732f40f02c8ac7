//! The emulator itself: it must not pass what a device would not.

use super::*;
use crate::cuda::driver::{Grid, Kernel, launch};
use crate::cuda::norm::{Norm, Put};
use crate::cuda::rope_store::RopeStore;
use crate::cuda::source::NORM;

fn norm(bed: &Bed, cols: u32, out: &DeviceBuffer) -> Result<(), KernelError> {
    let x = bed.floats(&noises(1, cols as usize));
    let parameters =
        Norm { x: x.pointer(), weight: x.pointer(), out: out.pointer(), cols, eps: 1e-6 };
    // SAFETY: the red zones take what is too much.
    unsafe { parameters.launch(&*bed.driver, Put::Store, 1) }
}

fn fault(outcome: Result<(), KernelError>) -> String {
    match outcome {
        Err(KernelError::Fault(text)) => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_write_beyond_a_buffer_is_a_fault() {
    let bed = Bed::new(1, None);
    let out = bed.poison(60);
    assert!(norm(&bed, 60, &out).is_ok());
    let text = fault(norm(&bed, 61, &out));
    assert!(text.contains("wrote beyond a buffer of 240 bytes"), "{text}");
}

#[test]
fn a_barrier_that_some_threads_miss_is_a_deadlock() {
    let missing = Fault {
        from: "float inverse",
        to: "if (thread_index() == 7) return; sync_block(); float inverse",
    };
    let bed = Bed::new(1, Some(missing));
    let out = bed.poison(60);
    let text = fault(norm(&bed, 60, &out));
    assert!(text.contains("deadlock"), "{text}");
}

#[test]
fn shared_memory_beyond_what_was_asked_for_is_a_fault() {
    let greedy = Fault { from: "float squares", to: "scratch[20] = 0.0f; float squares" };
    let bed = Bed::new(1, Some(greedy));
    let out = bed.poison(60);
    let text = fault(norm(&bed, 60, &out));
    assert!(text.contains("shared memory"), "{text}");
}

#[test]
fn unknown_kernels_and_other_parameters_are_refused() {
    let grid = Grid { blocks: [1, 1, 1], shared_bytes: 0 };
    for (name, threads) in [("no_such", 256), ("norm_f32", 128), ("norm_f32", 256)] {
        let bed = Bed::new(1, None);
        let kernel: Kernel<u32> = Kernel::new(&NORM, name, threads);
        // SAFETY: refused before it runs.
        let outcome = unsafe { launch(&*bed.driver, &kernel, grid, &0u32) };
        assert!(!fault(outcome).is_empty());
    }
}

#[test]
fn a_fault_that_has_no_place_is_told() {
    let nowhere = Fault { from: "no such text", to: "" };
    let bed = Bed::new(1, Some(nowhere));
    let out = bed.poison(60);
    assert!(matches!(norm(&bed, 60, &out), Err(KernelError::Unsupported(_))));
}

#[test]
fn conversions_are_those_of_the_device() {
    // Values go to the cache as they are: for every bit that can decide, at every exponent.
    let values: Vec<f32> =
        (0..4096u32).map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761))).collect();
    let (rows, head_dim) = (values.len() / 64, 64);
    let bed = Bed::new(1, None);
    let heads: Vec<f32> =
        values.chunks(head_dim).flat_map(|row| [row, row, row].concat()).collect();
    let slots: Vec<u32> = (0..rows as u32).collect();
    let (qkv, slots) = (bed.floats(&heads), bed.words(&slots));
    for format in [DType::Bf16, DType::F16] {
        let planes = [bed.numbers(&values, DType::F32), bed.numbers(&values, DType::F32)];
        let store = RopeStore {
            qkv: qkv.pointer(),
            q_norm: DevicePointer::NULL,
            k_norm: DevicePointer::NULL,
            q_table: DevicePointer::NULL,
            k_table: DevicePointer::NULL,
            positions: slots.pointer(),
            slots: slots.pointer(),
            keys: planes[0].pointer(),
            values: planes[1].pointer(),
            num_q: 1,
            num_kv: 1,
            head_dim: head_dim as u32,
            block_size: 16,
            rotary_dim: 0,
            style: 0,
            q_eps: 0.0,
            k_eps: 0.0,
        };
        // SAFETY: buffers of these rows, wider than their cache.
        unsafe { store.launch(&*bed.driver, format, rows as u32) }.unwrap();
        let words = read_words(&planes[1], values.len() / 2);
        let got = words.iter().flat_map(|word| [*word as u16, (*word >> 16) as u16]);
        for (value, got) in values.iter().zip(got) {
            let (want, got) = match format {
                DType::Bf16 => (bf16::from_f32(*value).to_f32(), bf16::from_bits(got).to_f32()),
                _ => (f16::from_f32(*value).to_f32(), f16::from_bits(got).to_f32()),
            };
            assert!(want.to_bits() == got.to_bits() || want.is_nan() && got.is_nan(), "{value:e}");
        }
    }
}

#[test]
fn memory_that_nobody_has_ends_the_launch_alone() {
    let wild = Fault { from: "float inverse", to: "out += (u64)1 << 44; float inverse" };
    for fault in [None, Some(wild), None, Some(wild), None] {
        let bed = Bed::new(1, fault);
        let out = bed.poison(60);
        match (fault, norm(&bed, 60, &out)) {
            (None, outcome) => outcome.unwrap(),
            (Some(_), Err(KernelError::Fault(text))) if text.contains("that nobody has") => {}
            (Some(_), outcome) => panic!("{outcome:?}"),
        }
    }
}
