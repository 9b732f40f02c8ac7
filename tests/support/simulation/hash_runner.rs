//! Runs plans over a real KV store of hashes, and checks that they are well formed.
//!
//! Steps run when they are finished, so at depth 2 a step runs after the next one was launched, as
//! on a device. Content that the engine says is lost is overwritten before the next step.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pagoda_engine::model::info::InstanceInfo;
use pagoda_engine::runner::{Plan, Runner, Ticket};
use pagoda_kernels::batch::{Batch, NO_SLOT, PENDING_TOKEN};
use pagoda_kernels::error::KernelError;
use pagoda_kernels::sampling::{Purpose, SampledRow};

use super::closed_form::{decoded_kv_value, digest, first_read, kv_value, logprob, mix, sample};

/// A defect to plant: a simulation that does not notice it proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A row in a hundred is written one slot too far.
    SlotOffByOne,
    /// Rows read one token more than the window that the engine was told.
    WindowTooShort,
    /// The keys of blocks do not know the tenant's salt.
    KeysWithoutSalt,
    /// Rows of rejected drafts stay: the first write to a slot wins.
    RollbackForgotten,
    /// A pending token is the one before the last.
    StalePendingToken,
    /// Blocks in use are given to others now and then.
    FreedTooEarly,
    /// The engine takes outcomes of runs that have ended.
    DiscardForgotten,
    /// Blocks are not copied.
    CopyForgotten,
    /// Blocks are copied once the step's rows are written.
    CopyTooLate,
    /// What a step copies is not held until the step is filled.
    SourceNotHeld,
    /// The engine is told that decode equals prefill where it does not.
    DecodeTakenForPrefill,
}

/// What the runner shares with the driver.
#[derive(Debug)]
pub struct RunnerState {
    /// Blocks whose content was lost since the last launch: (group, block).
    pub lost: Vec<(usize, u32)>,
    /// Requests (by number) of which rows were computed.
    pub computed: HashSet<u32>,
    /// Steps that ran.
    pub num_steps: u64,
    /// The largest numbers of rows of a sequence in a step, by size: how often.
    pub chunk_sizes: HashSet<usize>,
    /// Rows whose id came from the step before.
    pub num_pending_rows: u64,
    /// Content that was overwritten because it was lost.
    pub num_poisoned: u64,
    /// Blocks that were copied.
    pub num_copied: u64,
    /// The simulation's time.
    pub now: Instant,
}

/// A [`RunnerState`] that runner and driver hold.
pub type SharedState = Arc<Mutex<RunnerState>>;

/// What the device remembers of a sequence.
#[derive(Clone, Copy, Debug, Default)]
struct SlotState {
    salt: u64,
    request: u32,
    choice: u32,
    last_token: u32,
    token_before: u32,
}

/// The pretended device.
#[derive(Debug)]
pub struct HashRunner {
    info: InstanceInfo,
    store: Vec<Vec<u64>>,
    slots: Vec<SlotState>,
    launched: VecDeque<(Plan, Vec<(usize, u32)>)>,
    state: SharedState,
    fault: Option<Fault>,
    /// Prompt tokens of each request, by number, if decode differs from prefill.
    prompts: Option<Vec<u32>>,
}

/// Never the value of a token: those are odd.
const POISON: u64 = 0;

impl HashRunner {
    /// An empty store for `info`'s groups.
    pub fn new(info: InstanceInfo, fault: Option<Fault>) -> (Self, SharedState) {
        let state = Arc::new(Mutex::new(RunnerState {
            lost: Vec::new(),
            computed: HashSet::new(),
            num_steps: 0,
            chunk_sizes: HashSet::new(),
            num_pending_rows: 0,
            num_poisoned: 0,
            num_copied: 0,
            now: Instant::now(),
        }));
        let store = |blocks: u32| vec![POISON; (blocks * info.block_size) as usize + 1];
        let runner = HashRunner {
            store: info.groups.iter().map(|group| store(group.num_blocks)).collect(),
            slots: vec![SlotState::default(); info.max_num_seqs as usize],
            launched: VecDeque::new(),
            state: state.clone(),
            fault,
            prompts: None,
            info,
        };
        (runner, state)
    }

    /// Lets decode write other values than prefill: a row alone in its step, behind its request's
    /// prompt. `prompts` has the prompts' lengths by request.
    pub fn decode_differs(&mut self, prompts: Vec<u32>) {
        self.prompts = Some(prompts);
    }

    fn run(&mut self, plan: &mut Plan) {
        let batch = &mut plan.step.batch;
        for init in &batch.slot_inits {
            self.slots[init.slot as usize] = SlotState {
                salt: init.params.seed,
                request: init.params.logit_bias[0].0,
                choice: init.params.choice,
                last_token: PENDING_TOKEN,
                token_before: PENDING_TOKEN,
            };
        }
        self.plant(plan);
        let batch = &plan.step.batch;
        self.check(batch);
        if self.fault != Some(Fault::CopyTooLate) {
            self.copy(batch);
        }
        self.write(batch);
        if self.fault == Some(Fault::CopyTooLate) {
            self.copy(batch);
        }
        let output = &mut plan.step.output;
        output.rows.clear();
        output.top.clear();
        for row in &batch.logits {
            let seq = row.seq as usize;
            let state = &mut self.slots[batch.seq_slot[seq] as usize];
            let (choice, top_start) = (state.choice, output.top.len() as u32);
            let digest = read(&self.info, &self.store, batch, row.row, seq, self.fault);
            let (token, num_top) = match row.purpose {
                Purpose::PromptLogprob { target, num_top } => (target, num_top),
                Purpose::Sample { output_position } | Purpose::Verify { output_position, .. } => {
                    let token = sample(digest, choice, output_position, self.info.vocab);
                    (state.token_before, state.last_token) = (state.last_token, token);
                    (token, output_position % 3)
                }
            };
            output.top.extend((0..num_top).map(|rank| (rank, logprob(digest, rank))));
            output.rows.push(SampledRow {
                token,
                logprob: logprob(digest, token),
                rank: 1,
                top_start,
                top_len: num_top,
            });
        }
    }

    fn copy(&mut self, batch: &Batch) {
        if self.fault == Some(Fault::CopyForgotten) {
            return;
        }
        let size = self.info.block_size as usize;
        let mut num_copied = 0;
        for (group, store) in batch.groups.iter().zip(&mut self.store) {
            for copy in &group.copies {
                let from = copy.from as usize * size;
                store.copy_within(from..from + size, copy.to as usize * size);
            }
            num_copied += group.copies.len() as u64;
        }
        let mut state = self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        state.num_copied += num_copied;
    }

    fn write(&mut self, batch: &Batch) {
        let mut state = self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for seq in 0..batch.num_seqs() {
            let slot_state = self.slots[batch.seq_slot[seq] as usize];
            state.computed.insert(slot_state.request);
            state.chunk_sizes.insert(batch.query_len(seq));
            let is_alone = batch.query_len(seq) == 1;
            let prompt = self.prompts.as_ref().filter(|_| is_alone);
            let prompt = prompt.map_or(u32::MAX, |len| len[slot_state.request as usize]);
            for row in batch.query_start[seq] as usize..batch.query_start[seq + 1] as usize {
                let pending = batch.ids[row] == PENDING_TOKEN;
                state.num_pending_rows += u64::from(pending);
                let token = match (pending, self.fault) {
                    (false, _) => batch.ids[row],
                    (true, Some(Fault::StalePendingToken)) => slot_state.token_before,
                    (true, _) => slot_state.last_token,
                };
                let position = batch.positions[row];
                let value_of = if position < prompt { kv_value } else { decoded_kv_value };
                let value = value_of(token, position, slot_state.salt);
                for (group, store) in batch.groups.iter().zip(&mut self.store) {
                    let cell = &mut store[group.slots[row] as usize];
                    if self.fault != Some(Fault::RollbackForgotten) || *cell == POISON {
                        *cell = value;
                    }
                }
            }
        }
        state.num_steps += 1;
        state.now += Duration::from_micros(100 + 20 * batch.num_tokens() as u64);
    }

    /// What any device may take for granted. A planted fault is for the closed form to find.
    fn check(&self, batch: &Batch) {
        let (rows, seqs) = (batch.num_tokens(), batch.num_seqs());
        assert!(rows <= self.info.max_num_batched_tokens as usize && rows > 0);
        assert!(seqs <= self.info.max_num_seqs as usize);
        assert!(batch.logits.len() <= self.info.max_logits_rows as usize);
        assert_eq!(batch.query_start.len(), seqs + 1);
        assert_eq!(batch.query_start[seqs] as usize, rows);
        assert!(batch.logits.windows(2).all(|pair| pair[0].row < pair[1].row));
        let slots: HashSet<_> = batch.seq_slot.iter().collect();
        assert_eq!(slots.len(), seqs, "one slot a sequence");
        if self.fault.is_some() {
            return;
        }
        for (group, info) in batch.groups.iter().zip(&self.info.groups) {
            let written: HashSet<_> = group.slots.iter().collect();
            assert_eq!(written.len(), rows, "no slot is written twice in a step");
            assert_eq!(group.table_start.len(), seqs + 1);
            let to: HashSet<_> = group.copies.iter().map(|copy| copy.to).collect();
            assert_eq!(to.len(), group.copies.len(), "no block is copied to twice");
            assert!(group.copies.iter().all(|copy| !to.contains(&copy.from)), "from and to");
            assert!(to.iter().all(|block| group.block_table.contains(block)), "for nobody");
            for seq in 0..seqs {
                let table = group.table(seq);
                for row in batch.query_start[seq]..batch.query_start[seq + 1] {
                    let position = batch.positions[row as usize];
                    let block = table[(position / self.info.block_size) as usize];
                    assert!(block < info.num_blocks);
                    let slot = block * self.info.block_size + position % self.info.block_size;
                    assert_eq!(group.slots[row as usize], slot);
                }
                let end = batch.positions[batch.query_start[seq + 1] as usize - 1] + 1;
                assert_eq!(batch.kv_len[seq], end);
            }
        }
    }

    fn plant(&mut self, plan: &mut Plan) {
        let batch = &mut plan.step.batch;
        match self.fault {
            Some(Fault::SlotOffByOne) => {
                for group in &mut batch.groups {
                    for (row, slot) in (0_u64..).zip(&mut group.slots) {
                        *slot += u32::from(mix(plan.number, row).is_multiple_of(100));
                    }
                }
            }
            Some(Fault::FreedTooEarly) if plan.number % 50 == 49 => {
                let block = batch.groups[0].block_table[0];
                self.overwrite(0, block, 2);
            }
            _ => {}
        }
    }

    fn overwrite(&mut self, group: usize, block: u32, value: u64) {
        let size = self.info.block_size as usize;
        self.store[group][block as usize * size..][..size].fill(value);
    }
}

/// A row's logits, read through the block tables.
fn read(
    info: &InstanceInfo,
    store: &[Vec<u64>],
    batch: &Batch,
    row: u32,
    seq: usize,
    fault: Option<Fault>,
) -> u64 {
    let position = batch.positions[row as usize];
    let size = info.block_size;
    digest(batch.groups.iter().zip(&info.groups).zip(store).map(|((group, info), store)| {
        let table = group.table(seq);
        let mut first = first_read(info.kind, position);
        if fault == Some(Fault::WindowTooShort) && first > 0 {
            first -= 1;
        }
        (first..=position).fold(0, |hash, position| {
            let block = table[(position / size) as usize];
            assert_ne!(block, NO_SLOT, "position {position} slid out and is read");
            let value = store[(block * size + position % size) as usize];
            assert!(value != POISON || fault.is_some(), "position {position} reads lost content");
            mix(hash, value)
        })
    }))
}

impl Runner for HashRunner {
    fn depth(&self) -> usize {
        self.info.depth as usize
    }

    fn decode_equals_prefill(&self) -> bool {
        self.prompts.is_none() || self.fault == Some(Fault::DecodeTakenForPrefill)
    }

    fn launch(&mut self, plan: Plan) -> Result<Ticket, KernelError> {
        assert!(self.launched.len() < self.depth(), "more steps in progress than the depth");
        let number = plan.number;
        let mut state = self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let lost = std::mem::take(&mut state.lost);
        drop(state);
        self.launched.push_back((plan, lost));
        Ok(Ticket(number))
    }

    fn finish(&mut self, ticket: Ticket) -> Result<Plan, KernelError> {
        let Some((mut plan, lost)) = self.launched.pop_front() else {
            return Err(KernelError::Fault("nothing is in progress".into()));
        };
        assert_eq!(ticket.0, plan.number, "steps are finished in order");
        let mut state = self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        state.num_poisoned += lost.len() as u64;
        drop(state);
        for (group, block) in lost {
            self.overwrite(group, block, POISON);
        }
        self.run(&mut plan);
        Ok(plan)
    }
}
