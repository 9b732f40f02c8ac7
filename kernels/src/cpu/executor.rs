//! Replays a recorded program with a team of workers.
//!
//! `launch` checks the batch, moves the step to the team and returns; `finish` waits and gives the
//! step back. Between steps the workers are parked. Everything is allocated in
//! [`CpuExecutor::start`]; a step allocates nothing.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::admission::Admission;
use crate::cpu::buffer::Claim;
use crate::cpu::command::{Command, LeaderOutput, Scratch, ScratchPlan, WorkerCtx};
use crate::cpu::isa::Isa;
use crate::cpu::kv::KvCache;
use crate::cpu::kv_copy;
use crate::cpu::program::{CpuProgram, Recorded};
use crate::cpu::team::{Barrier, BarrierPoisoned, SPINS_BETWEEN_STEPS, Signal, Team};
use crate::device::{Executor, Limits, Step};
use crate::error::KernelError;

/// A program and the team that replays it. Dropping it ends the team.
pub struct CpuExecutor {
    shared: Arc<Shared>,
    admission: Admission,
    claims: Vec<Arc<Claim>>,
    launched: bool,
    _pool: rayon::ThreadPool,
}

/// What the workers and the owner of the executor share.
struct Shared {
    commands: Vec<Command>,
    /// By KV group.
    caches: Vec<(usize, KvCache)>,
    isa: Isa,
    scratch: Scratch,
    last_tokens: Vec<AtomicU32>,
    /// The owner's while `done == started`, the team's otherwise.
    step: UnsafeCell<Step>,
    /// Steps that were launched.
    started: Signal,
    /// Steps that the team has ended with.
    done: Signal,
    /// Workers that have left.
    left: Signal,
    ended: AtomicBool,
    barrier: Barrier,
    fault: Mutex<Option<String>>,
}

// SAFETY: `step` changes hands by `started` and `done` (see there); the rest is read-only or
// synchronised. Commands reach activations and caches through raw memory: each claimed by this
// executor alone, written by its workers in disjoint ranges between barriers.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

/// What all commands need together for steps within `limits`.
fn plan_scratch(
    commands: &mut [Command],
    limits: &Limits,
    workers: usize,
) -> Result<ScratchPlan, KernelError> {
    let mut plan = ScratchPlan::default();
    for command in commands {
        command.plan(&mut plan, limits, workers)?;
    }
    Ok(plan)
}

impl CpuExecutor {
    /// Bytes that [`CpuExecutor::start`] would allocate.
    pub(crate) fn scratch_bytes(
        program: CpuProgram,
        limits: &Limits,
        workers: usize,
    ) -> Result<usize, KernelError> {
        Ok(plan_scratch(&mut program.finish()?.commands, limits, workers)?.bytes(workers))
    }

    /// Plans scratch for steps within `limits`, claims the program's buffers, starts the team.
    pub(crate) fn start(
        program: CpuProgram,
        limits: Limits,
        isa: Isa,
        workers: usize,
    ) -> Result<Self, KernelError> {
        let Recorded { mut commands, claims, bounds, groups, caches } = program.finish()?;
        let admission = Admission::new(limits, bounds, &groups)?;
        let scratch = plan_scratch(&mut commands, &limits, workers)?.allocate(workers)?;
        let last_tokens = (0..limits.max_seqs).map(|_| AtomicU32::new(0)).collect();
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(workers)
            .thread_name(|worker| format!("pagoda-cpu-{worker}"))
            .build()
            .map_err(|error| KernelError::Unsupported(format!("cannot start workers: {error}")))?;
        let claims = Claims::take(claims)?.keep();
        let shared = Arc::new(Shared {
            commands,
            caches,
            isa,
            scratch,
            last_tokens,
            step: UnsafeCell::new(Step::default()),
            started: Signal::default(),
            done: Signal::default(),
            left: Signal::default(),
            ended: AtomicBool::new(false),
            barrier: Barrier::new(workers),
            fault: Mutex::new(None),
        });
        let team = Arc::clone(&shared);
        pool.spawn_broadcast(move |worker| team.work(worker.index()));
        Ok(CpuExecutor { shared, admission, claims, launched: false, _pool: pool })
    }

    fn fault(&self) -> Option<KernelError> {
        let fault = self.shared.fault.lock().unwrap_or_else(PoisonError::into_inner);
        fault.clone().map(KernelError::Fault)
    }
}

impl Executor for CpuExecutor {
    fn launch(&mut self, mut step: Step) -> Result<(), KernelError> {
        if self.launched {
            return Err(KernelError::Fault("a step was launched before the last finished".into()));
        }
        if let Some(fault) = self.fault() {
            return Err(fault);
        }
        self.admission.check(&step.batch)?;
        step.output.rows.clear();
        step.output.top.clear();
        // SAFETY: no step is launched, so the team does not look at the cell.
        unsafe { *self.shared.step.get() = step };
        self.launched = true;
        self.shared.started.increment();
        Ok(())
    }

    fn finish(&mut self) -> Result<Step, KernelError> {
        if !self.launched {
            return Err(KernelError::Fault("no step was launched".into()));
        }
        let before = self.shared.started.load().wrapping_sub(1);
        self.shared.done.wait_while(before, SPINS_BETWEEN_STEPS);
        self.launched = false;
        if let Some(fault) = self.fault() {
            return Err(fault);
        }
        // SAFETY: the team is done with the step.
        Ok(unsafe { std::mem::take(&mut *self.shared.step.get()) })
    }
}

impl Drop for CpuExecutor {
    fn drop(&mut self) {
        if self.launched {
            let before = self.shared.started.load().wrapping_sub(1);
            self.shared.done.wait_while(before, SPINS_BETWEEN_STEPS);
        }
        self.shared.ended.store(true, Ordering::SeqCst);
        self.shared.started.increment();
        let workers = self._pool.current_num_threads() as u32;
        loop {
            let left = self.shared.left.load();
            if left >= workers {
                break;
            }
            self.shared.left.wait_while(left, SPINS_BETWEEN_STEPS);
        }
        for claim in &self.claims {
            claim.release();
        }
    }
}

impl Shared {
    /// A worker's life: wait, run a step, report, until the executor is dropped.
    fn work(&self, worker: usize) {
        let team = Team::new(worker, &self.barrier);
        let ctx = WorkerCtx::new(team, self.isa, &self.last_tokens, &self.scratch);
        let mut seen = 0;
        loop {
            seen = self.started.wait_while(seen, SPINS_BETWEEN_STEPS);
            if self.ended.load(Ordering::SeqCst) {
                break;
            }
            let outcome = catch_unwind(AssertUnwindSafe(|| self.step(&ctx)));
            if let Err(panic) = outcome {
                self.report(panic);
                // Whoever fails first ends the step for the owner; it never looks at it again.
                self.done.store(seen);
                break;
            }
            // The last barrier of the step was passed, so all workers are done with it.
            if team.is_leader() {
                self.done.store(seen);
            }
        }
        self.left.increment();
    }

    fn step(&self, ctx: &WorkerCtx<'_>) {
        let step = self.step.get();
        // SAFETY: a launched step stays in place until `done`; the batch is only read, and the
        // output is reached through `LeaderOutput` alone.
        let (batch, output) =
            unsafe { (&(*step).batch, LeaderOutput::new(&raw mut (*step).output)) };
        if batch.has_copies() {
            // SAFETY: the caches are claimed, the batch was admitted, and no command runs yet.
            unsafe { kv_copy::run(&self.caches, &ctx.team, batch) };
            ctx.team.wait();
        }
        for command in &self.commands {
            command.run(ctx, batch, output);
            ctx.team.wait();
        }
    }

    fn report(&self, panic: Box<dyn Any + Send>) {
        if panic.is::<BarrierPoisoned>() {
            return;
        }
        let text = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "a worker panicked".to_owned());
        let mut fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        fault.get_or_insert(text);
        drop(fault);
        self.barrier.poison();
    }
}

/// Claims taken so far; given back unless kept.
struct Claims(Vec<Arc<Claim>>);

impl Claims {
    fn take(claims: Vec<Arc<Claim>>) -> Result<Self, KernelError> {
        let mut taken = Claims(Vec::with_capacity(claims.len()));
        for claim in claims {
            if !claim.take() {
                return Err(KernelError::Unsupported(
                    "a buffer of this program belongs to a running executor".into(),
                ));
            }
            taken.0.push(claim);
        }
        Ok(taken)
    }

    fn keep(mut self) -> Vec<Arc<Claim>> {
        std::mem::take(&mut self.0)
    }
}

impl Drop for Claims {
    fn drop(&mut self) {
        self.0.iter().for_each(|claim| claim.release());
    }
}

#[cfg(test)]
mod tests;
