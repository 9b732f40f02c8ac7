//! Steps through the whole device: programs, teams, faults.

use super::*;
use crate::batch::{Batch, PENDING_TOKEN};
use crate::cpu::buffer::Activation;
use crate::cpu::{CpuDevice, CpuOptions};
use crate::device::Device;
use crate::dtype::{DType, HostTensor};
use crate::ops::{Embed, Epilogue, GatherRows, Linear, Norm, NormRows, Ops, Stacking};
use crate::sampling::{LogitsRow, Purpose, SlotInit};

const VOCAB: usize = 37;
const HIDDEN: usize = 24;

fn limits() -> Limits {
    Limits {
        max_tokens: 8,
        max_seqs: 4,
        max_logits_rows: 4,
        vocab: VOCAB,
        max_model_len: 64,
        max_top: 3,
    }
}

fn device(threads: usize) -> CpuDevice {
    CpuDevice::new(CpuOptions { threads, ..CpuOptions::default() }).unwrap()
}

/// Embedding, norm, and a head over the rows that need logits.
fn program(device: &CpuDevice) -> (CpuProgram, Activation) {
    let values: Vec<u8> = (0..VOCAB * HIDDEN)
        .flat_map(|i| ((i * 7919 % 1000) as f32 / 500.0 - 1.0).to_le_bytes())
        .collect();
    let host = HostTensor::new(DType::F32, VOCAB, HIDDEN, &values).unwrap();
    let table = device.pack(&[host], Stacking::Stack, DType::F32.into()).unwrap();
    let x = device.tensor(8, HIDDEN).unwrap();
    let gathered = device.tensor(4, HIDDEN).unwrap();
    let logits = device.tensor(4, VOCAB).unwrap();
    let weight = device.vector(&[1.0; HIDDEN]).unwrap();
    let mut program = device.program();
    program.embed(Embed { table: table.clone(), scale: 1.0, x: x.clone() });
    program.gather_rows(GatherRows { x, out: gathered.clone() });
    let norm = Norm { weight, eps: 1e-6 };
    program.norm(NormRows { x: gathered.clone(), norm, out: gathered.clone() });
    program.linear(Linear {
        x: gathered,
        weight: table,
        bias: None,
        out: logits.clone(),
        epilogue: Epilogue::Store,
    });
    program.advance();
    (program, logits)
}

#[test]
fn scratch_is_known_before_the_team_starts_and_grows_with_the_step() {
    let device = device(3);
    let bytes = |max_tokens| {
        let values = [0; VOCAB * HIDDEN * 2];
        let host = HostTensor::new(DType::Bf16, VOCAB, HIDDEN, &values).unwrap();
        let weight = device.pack(&[host], Stacking::Stack, DType::Bf16.into()).unwrap();
        let (x, out) = (device.tensor(max_tokens, HIDDEN), device.tensor(max_tokens, VOCAB));
        let mut program = device.program();
        let (x, out) = (x.unwrap(), out.unwrap());
        program.linear(Linear { x, weight, bias: None, out, epilogue: Epilogue::Store });
        device.scratch(program, &Limits { max_tokens, ..limits() }).unwrap().bytes
    };
    // Rows of bf16 pairs or of rounded f32, whichever the instruction set takes.
    assert!(bytes(8192) - bytes(8) >= (8192 - 8) * HIDDEN as u64 * 2);
    let (program, _) = program(&device);
    let planned = device.scratch(program, &limits()).unwrap().bytes;
    assert_eq!(planned, 0, "f32 rows are read in place, and nothing is sampled");
}

#[test]
fn a_sampler_keeps_what_was_planned_for_it() {
    let device = device(2);
    let sampler = |limits: &Limits| {
        let mut program = device.program();
        let logits = device.tensor(4, VOCAB).unwrap();
        program.sample(crate::ops::Sample { logits, vocab: VOCAB });
        device.scratch(program, limits).unwrap().bytes
    };
    let long = Limits { max_model_len: 1000 + limits().max_model_len, ..limits() };
    assert_eq!(sampler(&long) - sampler(&limits()), 4 * 1000 * 8, "a count for each token");
}

fn step(ids: &[u32], rows: &[u32]) -> Step {
    let mut batch = Batch::new(1);
    batch.ids = ids.to_vec();
    batch.positions = (0..ids.len() as u32).collect();
    batch.query_start = vec![0, ids.len() as u32];
    batch.kv_len = vec![ids.len() as u32];
    batch.seq_slot = vec![2];
    let purpose = Purpose::Sample { output_position: 0 };
    batch.logits = rows.iter().map(|&row| LogitsRow { row, seq: 0, purpose }).collect();
    Step { batch, ..Step::default() }
}

fn rows_of(logits: &Activation, rows: usize) -> Vec<Vec<f32>> {
    // SAFETY: no step is running.
    (0..rows).map(|row| unsafe { logits.row(row)[..VOCAB].to_vec() }).collect()
}

#[test]
fn steps_give_the_same_bits_for_any_number_of_workers() {
    let mut seen: Option<Vec<Vec<f32>>> = None;
    for threads in 1..=3 {
        let device = device(threads);
        let (program, logits) = program(&device);
        let mut executor = device.executor(program, limits()).unwrap();
        for _ in 0..50 {
            executor.launch(step(&[3, 36, 0, 5], &[1, 3])).unwrap();
            let step = executor.finish().unwrap();
            assert_eq!(step.batch.ids, [3, 36, 0, 5]);
        }
        let rows = rows_of(&logits, 2);
        assert!(rows[0].iter().all(|value| *value != 0.0));
        assert_eq!(seen.get_or_insert_with(|| rows.clone()), &rows);
    }
}

#[test]
fn a_pending_token_is_the_slots_last_one() {
    let device = device(2);
    let (program, logits) = program(&device);
    let mut executor = device.executor(program, limits()).unwrap();
    executor.launch(step(&[11], &[0])).unwrap();
    executor.finish().unwrap();
    let want = rows_of(&logits, 1);
    executor.shared.last_tokens[2].store(11, Ordering::Relaxed);
    executor.launch(step(&[PENDING_TOKEN], &[0])).unwrap();
    executor.finish().unwrap();
    assert_eq!(rows_of(&logits, 1), want);
}

#[test]
fn an_empty_step_runs() {
    let device = device(2);
    let (program, _) = program(&device);
    let mut executor = device.executor(program, limits()).unwrap();
    let mut batch = Batch::new(0);
    batch.clear();
    executor.launch(Step { batch, ..Step::default() }).unwrap();
    executor.finish().unwrap();
}

#[test]
fn a_batch_out_of_range_is_refused_and_the_next_one_runs() {
    let device = device(1);
    let (program, _) = program(&device);
    let mut executor = device.executor(program, limits()).unwrap();
    let wrong: [fn(&mut Batch); 8] = [
        |batch| batch.ids[0] = VOCAB as u32,
        |batch| batch.positions[0] = 64,
        |batch| batch.seq_slot[0] = 4,
        |batch| batch.query_start[1] = 2,
        |batch| batch.logits[0].row = 1,
        |batch| batch.kv_len[0] = 65,
        |batch| {
            batch.query_start = vec![0, 1, 1];
            batch.kv_len.push(1);
            batch.seq_slot.push(2);
        },
        |batch| {
            let params = std::sync::Arc::default();
            let init = SlotInit { slot: 1, params, prompt: vec![], output: vec![] };
            batch.slot_inits = vec![init.clone(), init];
        },
    ];
    for spoil in wrong {
        let mut step = step(&[1], &[0]);
        spoil(&mut step.batch);
        assert!(matches!(executor.launch(step), Err(KernelError::Shape { .. })));
    }
    executor.launch(step(&[1], &[0])).unwrap();
    executor.finish().unwrap();
}

#[test]
fn one_buffer_serves_one_executor_at_a_time() {
    let device = device(2);
    let (first, logits) = program(&device);
    let executor = device.executor(first, limits()).unwrap();
    let (mut second, _) = program(&device);
    second.sneak(&logits);
    let refused = device.executor(second, limits());
    assert!(matches!(refused.err(), Some(KernelError::Unsupported(_))));
    drop(executor);
    let (mut third, _) = program(&device);
    third.sneak(&logits);
    assert!(device.executor(third, limits()).is_ok());
}

#[test]
fn a_panic_in_a_worker_is_a_fault_for_every_team_size() {
    for threads in 1..=3 {
        let device = device(threads);
        let (mut program, _) = program(&device);
        program.panic_in_worker(threads - 1);
        let mut executor = device.executor(program, limits()).unwrap();
        executor.launch(step(&[1], &[0])).unwrap();
        let fault = executor.finish().unwrap_err();
        assert!(matches!(fault, KernelError::Fault(text) if text.contains("planted")));
        assert!(matches!(executor.launch(Step::default()), Err(KernelError::Fault(_))));
    }
}

#[test]
fn limits_beyond_the_buffers_are_refused() {
    let device = device(1);
    let (program, _) = program(&device);
    let limits = Limits { max_tokens: 9, ..limits() };
    assert!(matches!(device.executor(program, limits), Err(KernelError::Shape { .. })));
}

#[test]
fn shapes_that_do_not_fit_are_refused_when_the_executor_starts() {
    let device = device(1);
    let (mut program, _) = program(&device);
    let x = device.tensor(8, HIDDEN).unwrap();
    let out = device.tensor(8, HIDDEN + 1).unwrap();
    program.gather_rows(GatherRows { x, out });
    assert!(matches!(device.executor(program, limits()), Err(KernelError::Shape { .. })));
}

#[test]
fn options_are_checked() {
    let wrong = [
        CpuOptions { block_size: 24, ..CpuOptions::default() },
        CpuOptions { block_size: 8, ..CpuOptions::default() },
        CpuOptions { attention_unit: 48, ..CpuOptions::default() },
        CpuOptions { threads: 1 << 20, ..CpuOptions::default() },
    ];
    for options in wrong {
        assert!(matches!(CpuDevice::new(options), Err(KernelError::Unsupported(_))));
    }
}
