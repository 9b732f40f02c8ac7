//! Whole steps: two in flight, from graphs, against one at a time, launched op by op.
//!
//! The emulated device runs late, so what the host touches too early shows; and what is wrong with a
//! graph shows as other bits.

mod allocations;
mod careless;
mod machine;
mod world;

use self::careless::{Careless, Slip};
use self::machine::{BLOCK, LIMITS, Machine, Mode, Outcome, push_copy, push_rows};
use self::world::{Dice, steps};
use super::*;
use crate::batch::{Batch, PENDING_TOKEN};
use crate::cuda::graphs::buckets;
use crate::device::{Executor, Limits, Step};
use crate::sampling::{LogitsRow, Purpose, SlotInit};

/// One step at a time, op by op, on a device that runs everything at once, with tokens that the host
/// knows.
fn plainly(steps: &[Batch], format: DType) -> Outcome {
    let driver = Arc::new(Emulated::new(&folder(), 1).at_once());
    Machine::new(driver, format, Mode::Eager).run_known(steps).unwrap()
}

fn by_graphs(
    steps: &[Batch],
    format: DType,
    (seed, slip): (u64, Slip),
) -> Result<Outcome, KernelError> {
    let driver = Careless::new(Emulated::new(&folder(), seed), slip);
    Machine::new(Arc::new(driver), format, Mode::Graphs).run(steps, 2)
}

/// Whether every sequence has one row.
fn is_decode(batch: &Batch) -> bool {
    batch.num_tokens() == batch.num_seqs()
}

#[test]
fn two_steps_in_flight_from_graphs_give_the_same_bits() {
    for (seed, format) in [(1, DType::F32), (2, DType::Bf16)] {
        let steps = steps(seed, 30);
        let decode = steps.iter().filter(|batch| is_decode(batch)).count();
        assert!((10..28).contains(&decode), "{decode} steps are replayed");
        let want = plainly(&steps, format);
        let got = by_graphs(&steps, format, (seed, Slip::None)).unwrap();
        for (at, (got, want)) in got.outputs.iter().zip(&want.outputs).enumerate() {
            assert_eq!(got, want, "step {at} of {seed}: {:?}", steps[at]);
        }
        assert!(got == want, "what steps of {seed} left in the cache");
    }
}

#[test]
fn copies_are_behind_the_step_before_and_ahead_of_all_else() {
    // A block of 64 rows is written by one step, and copied by the next, whose row follows 60 of them.
    let copying = || {
        let mut write = Batch::new(2);
        write.clear();
        push_rows(&mut write, 3, 64 + 50, &[7, 8, 9, 10, 11, 12]);
        let mut copy = Batch::new(2);
        copy.clear();
        push_copy(&mut copy, (3, 1), (1, 1));
        push_rows(&mut copy, 1, 64 + 60, &[5]);
        let purpose = Purpose::Sample { output_position: 0 };
        copy.logits.push(LogitsRow { row: 0, seq: 0, purpose });
        copy.slot_inits.push(plain_init(1));
        [write, copy]
    };
    assert_eq!(BLOCK, 64);
    let mut plain = Machine::new(Arc::new(Emulated::new(&folder(), 3)), DType::F32, Mode::Eager);
    let [write, mut copy] = copying();
    plain.run(&[write], 1).unwrap();
    plain.copy_on_host(&mut copy).unwrap();
    let want = plain.run(&[copy], 1).unwrap();
    for mode in [Mode::Eager, Mode::Graphs] {
        let machine = || Machine::new(Arc::new(Emulated::new(&folder(), 3)), DType::F32, mode);
        let mut got = machine().run(&copying(), 2).unwrap();
        got.outputs.remove(0);
        assert!(got == want, "{mode:?}");
        let mut without = copying();
        without[1].groups.iter_mut().for_each(|group| group.copies.clear());
        let mut other = machine().run(&without, 2).unwrap();
        other.outputs.remove(0);
        assert!(other.outputs != want.outputs, "nobody reads what was copied: {mode:?}");
    }
}

/// Steps on which every fault shows: few, since each fault runs them. Of some that are replayed the
/// bucket is larger, and of others a row is split.
fn telling_steps() -> Vec<Batch> {
    let is_padded = |batch: &&Batch| is_decode(batch) && [3, 5].contains(&batch.num_seqs());
    let is_split = |batch: &&Batch| {
        is_decode(batch) && batch.num_seqs() < 3 && batch.kv_len.iter().any(|&len| len > 256)
    };
    let tells = |steps: &Vec<Batch>| {
        steps.iter().filter(is_padded).count() > 2 && steps.iter().filter(is_split).count() > 1
    };
    (0..).map(|seed| steps(seed, 12)).find(tells).unwrap()
}

#[test]
fn planted_faults_of_the_host_show() {
    let steps = telling_steps();
    let want = plainly(&steps, DType::F32);
    let run = |slip| by_graphs(&steps, DType::F32, (5, slip));
    assert!(run(Slip::None).unwrap() == want);
    // Words as in the structs that kernels take.
    for slip in [
        Slip::NoWait,
        Slip::NoMark,
        Slip::OneSet,
        Slip::Frozen("embed", 2),
        Slip::Frozen("embed", 3),
        Slip::Frozen("rope_store", 4),
        Slip::Frozen("rope_store", 5),
        Slip::Frozen("attention_units", 4),
        Slip::Frozen("attention_units", 6),
        Slip::Frozen("sample_rows", 2),
        Slip::Frozen("sample_rows", 3),
        Slip::TilesOnly,
    ] {
        assert!(!run(slip).is_ok_and(|got| got == want), "not caught: {slip:?}");
    }
}

#[test]
fn planted_faults_of_padded_rows_show() {
    let steps = telling_steps();
    let want = plainly(&steps, DType::F32);
    let no_slot = "if (slot == NO_SLOT) return;";
    for (source, from, to) in [
        ("rope_store.cu", no_slot, "if (slot == NO_SLOT) slot = 0;"),
        ("rope_store.cu", no_slot, ""),
        ("sample.cu", "if (row.kind == NO_ROW) return;", ""),
    ] {
        let fault = Some(Fault { from, to });
        let driver = Emulated::with_fault(&folder(), 5, fault).only_in(source);
        let got = Machine::new(Arc::new(driver), DType::F32, Mode::Graphs).run(&steps, 2);
        if let Err(KernelError::Unsupported(reason)) = got {
            panic!("the fault {fault:?} was not planted: {reason}");
        }
        assert!(!got.is_ok_and(|got| got == want), "not caught: {fault:?}");
    }
}

/// A step of one row for each of `num_seqs` sequences, at `position`.
fn decode_step(num_seqs: u32, position: u32) -> Batch {
    let mut batch = Batch::new(2);
    batch.clear();
    for slot in 0..num_seqs {
        push_rows(&mut batch, slot, position, &[PENDING_TOKEN]);
        let purpose = Purpose::Sample { output_position: position };
        batch.logits.push(LogitsRow { row: slot, seq: slot, purpose });
    }
    batch
}

fn step(batch: Batch) -> Step {
    Step { batch, ..Step::default() }
}

fn plain_init(slot: u32) -> SlotInit {
    SlotInit { slot, params: Arc::default(), prompt: vec![], output: vec![] }
}

#[test]
fn a_step_of_decode_neither_launches_nor_waits() {
    let driver = Arc::new(Careless::new(Emulated::new(&folder(), 9), Slip::None));
    let mut executor = Machine::new(driver.clone(), DType::F32, Mode::Graphs).executor;
    let slot_inits = (0..3).map(plain_init).collect();
    executor.launch(step(Batch { slot_inits, ..decode_step(3, 7) })).unwrap();
    driver.asked();
    for position in 8..12 {
        executor.launch(step(decode_step(3, position))).unwrap();
        // The arrays, and the block tables of the groups, which lie aside.
        let mut asked = driver.asked();
        asked.dedup();
        assert_eq!(asked, ["copy_in", "replay", "copy_out", "mark"]);
        executor.finish().unwrap();
        assert_eq!(driver.asked(), ["wait"]);
    }
}

#[test]
fn a_third_step_is_refused_and_so_is_a_finish_of_none() {
    let driver = Arc::new(Emulated::new(&folder(), 9));
    let mut executor = Machine::new(driver, DType::F32, Mode::Graphs).executor;
    assert_eq!(executor.depth(), 2);
    assert!(executor.finish().is_err());
    executor.launch(step(decode_step(1, 7))).unwrap();
    executor.launch(step(decode_step(1, 8))).unwrap();
    assert!(executor.launch(step(decode_step(1, 9))).is_err());
    assert_eq!(executor.finish().unwrap().batch.kv_len, [8]);
    executor.launch(step(decode_step(1, 9))).unwrap();
    assert_eq!(executor.finish().unwrap().batch.kv_len, [9]);
    assert_eq!(executor.finish().unwrap().batch.kv_len, [10]);
}

#[test]
fn buckets_hold_every_number_of_sequences() {
    let of = |max_seqs: usize| {
        buckets(&Limits { max_seqs, max_tokens: 999, max_logits_rows: 999, ..LIMITS })
    };
    assert_eq!(of(1), [1]);
    assert_eq!(of(6), [1, 2, 4, 6]);
    assert_eq!(of(24), [1, 2, 4, 8, 16, 24]);
    assert_eq!(of(25), [1, 2, 4, 8, 16, 24, 25]);
    assert_eq!(of(1000).last(), Some(&256));
    assert_eq!(buckets(&Limits { max_tokens: 3, ..LIMITS }), [1, 2, 3]);
}

/// Tokens of a sequence that begins within a unit of keys and ends in the next.
const START: u32 = 250;
const ROWS: u32 = 13;

fn tokens(slot: u32) -> Vec<u32> {
    let mut dice = Dice(u64::from(slot));
    (0..ROWS).map(|_| dice.below(LIMITS.vocab as u32)).collect()
}

/// What rows of the sequence in slot 2 say of the next token, beside those of `others`, in steps of as
/// many rows as `chunk` says.
fn descriptions(format: DType, others: &[u32], chunk: &dyn Fn(u32) -> u32) -> Vec<String> {
    let driver = Arc::new(Emulated::new(&folder(), 3));
    let mut executor = Machine::new(driver, format, Mode::Graphs).executor;
    let mut done = [0; LIMITS.max_seqs];
    let mut described = Vec::new();
    while done[2] < ROWS {
        let mut batch = Batch::new(2);
        batch.clear();
        for &slot in others.iter().chain(&[2]) {
            let from = done[slot as usize];
            let rows = chunk(from + slot).clamp(1, LIMITS.max_tokens as u32 / 6).min(ROWS - from);
            if rows == 0 {
                continue;
            }
            let (seq, first) = (batch.num_seqs() as u32, batch.ids.len() as u32);
            let ids = &tokens(slot)[from as usize..(from + rows) as usize];
            push_rows(&mut batch, slot, START + from, ids);
            if slot == 2 {
                let purpose = Purpose::PromptLogprob { target: 9, num_top: 5 };
                batch.logits.extend((first..first + rows).map(|row| LogitsRow {
                    row,
                    seq,
                    purpose,
                }));
            }
            done[slot as usize] += rows;
        }
        executor.launch(step(batch)).unwrap();
        let output = executor.finish().unwrap().output;
        described.extend(output.rows.iter().map(|row| {
            let top = &output.top[row.top_start as usize..][..row.top_len as usize];
            format!("{:?} {:?} {top:?}", row.token, row.logprob)
        }));
    }
    described
}

#[test]
fn a_sequence_has_the_same_bits_alone_in_a_crowd_and_in_any_chunks() {
    for format in [DType::F32, DType::Bf16] {
        let want = descriptions(format, &[], &|_| 1);
        assert_eq!(want.len(), ROWS as usize);
        assert!(want.iter().all(|row| !row.contains("NaN")), "{want:?}");
        assert!(want.windows(2).all(|pair| pair[0] != pair[1]), "{want:?}");
        // By graphs in a crowd; in chunks alone; in chunks that differ in a crowd.
        assert_eq!(descriptions(format, &[0, 5, 1], &|_| 1), want, "{format:?} crowd");
        assert_eq!(descriptions(format, &[], &|_| 4), want, "{format:?} chunks");
        let mixed = |at: u32| [1, 3, 2][at as usize % 3];
        assert_eq!(descriptions(format, &[4, 0, 3, 1, 5], &mixed), want, "{format:?} mixed");
    }
}

#[test]
fn slots_are_taken_in_order_also_when_they_take_several_rounds() {
    // Prompts of penalties that together are longer than one sequence may be.
    let run = |mode, depth, late: bool| {
        let emulated = Emulated::new(&folder(), 6);
        let driver = Arc::new(if late { emulated } else { emulated.at_once() });
        let mut steps = Vec::new();
        for position in 0..4 {
            let mut batch = decode_step(4, position);
            for slot in (0..4).filter(|slot| (slot + position) % 2 == 0) {
                let params = crate::sampling::SamplerParams {
                    presence_penalty: 1.5,
                    temperature: 1.0,
                    seed: u64::from(slot),
                    allowed: (0..30 + slot + position).collect(),
                    ..Default::default()
                };
                let prompt = (0..400).map(|at| (at * (slot + 1) + position) % 61).collect();
                let params = Arc::new(params);
                batch.slot_inits.push(SlotInit { slot, params, prompt, output: vec![] });
            }
            if position == 0 {
                batch.ids.fill(3);
            }
            steps.push(batch);
        }
        Machine::new(driver, DType::F32, mode).run(&steps, depth).unwrap()
    };
    assert!(run(Mode::Graphs, 2, true) == run(Mode::Eager, 1, false));
}
