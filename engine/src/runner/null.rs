//! A runner that computes nothing: what remains is the engine thread's own time.
//!
//! For benchmarks and for tests that count allocations. Every row samples the same token, so a
//! sequence ends by length only.

use std::collections::VecDeque;

use pagoda_kernels::error::KernelError;
use pagoda_kernels::sampling::SampledRow;

use super::{Plan, Runner, Ticket};

/// Gives each logits row `token` at once.
#[derive(Debug)]
pub struct NullRunner {
    depth: usize,
    token: u32,
    launched: VecDeque<Plan>,
}

impl NullRunner {
    /// A runner of `depth` steps whose rows all sample `token`.
    pub fn new(depth: usize, token: u32) -> Self {
        NullRunner { depth, token, launched: VecDeque::with_capacity(depth) }
    }
}

impl Runner for NullRunner {
    fn depth(&self) -> usize {
        self.depth
    }

    fn launch(&mut self, plan: Plan) -> Result<Ticket, KernelError> {
        let ticket = Ticket(plan.number);
        self.launched.push_back(plan);
        Ok(ticket)
    }

    fn finish(&mut self, ticket: Ticket) -> Result<Plan, KernelError> {
        match self.launched.pop_front() {
            Some(mut plan) if plan.number == ticket.0 => {
                let rows = &mut plan.step.output.rows;
                rows.clear();
                let row = SampledRow { token: self.token, ..SampledRow::default() };
                rows.resize(plan.step.batch.logits.len(), row);
                Ok(plan)
            }
            _ => Err(KernelError::Fault("steps are finished in the order of launching".into())),
        }
    }
}
