//! A runner over a device's executor: the CPU's team, later a GPU's stream.
//!
//! Gives each plan's buffers to the executor and takes them back in order. Decides nothing.

use std::collections::VecDeque;

use pagoda_kernels::device::Executor;
use pagoda_kernels::error::KernelError;

use super::{Plan, Runner, Ticket};

/// Runs plans on the device that `executor` belongs to.
pub struct DeviceRunner<E> {
    executor: E,
    /// Numbers of launched steps, oldest first; at most `depth`, so it never grows.
    launched: VecDeque<u64>,
}

impl<E: Executor> DeviceRunner<E> {
    /// A runner with nothing launched.
    pub fn new(executor: E) -> Self {
        let launched = VecDeque::with_capacity(executor.depth() + 1);
        DeviceRunner { executor, launched }
    }
}

impl<E: Executor> Runner for DeviceRunner<E> {
    fn depth(&self) -> usize {
        self.executor.depth()
    }

    fn decode_equals_prefill(&self) -> bool {
        self.executor.decode_equals_prefill()
    }

    fn launch(&mut self, plan: Plan) -> Result<Ticket, KernelError> {
        self.executor.launch(plan.step)?;
        self.launched.push_back(plan.number);
        Ok(Ticket(plan.number))
    }

    fn finish(&mut self, ticket: Ticket) -> Result<Plan, KernelError> {
        let step = self.executor.finish()?;
        match self.launched.pop_front() {
            Some(number) if number == ticket.0 => Ok(Plan { number, step }),
            oldest => Err(KernelError::Fault(format!(
                "step {} was finished out of order: the oldest launched is {oldest:?}",
                ticket.0
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use pagoda_kernels::device::Step;

    use super::*;

    /// Answers each row with its token id plus one.
    #[derive(Default)]
    struct Echo(VecDeque<Step>);

    impl Executor for Echo {
        fn depth(&self) -> usize {
            2
        }

        fn decode_equals_prefill(&self) -> bool {
            false
        }

        fn launch(&mut self, step: Step) -> Result<(), KernelError> {
            self.0.push_back(step);
            Ok(())
        }

        fn finish(&mut self) -> Result<Step, KernelError> {
            let mut step = self.0.pop_front().unwrap();
            step.output.top = step.batch.ids.iter().map(|id| (id + 1, 0.0)).collect();
            Ok(step)
        }
    }

    fn plan(number: u64) -> Plan {
        let mut plan = Plan { number, ..Plan::default() };
        plan.step.batch.ids.push(number as u32 * 10);
        plan
    }

    #[test]
    fn steps_come_back_in_order_with_their_numbers() {
        let mut runner = DeviceRunner::new(Echo::default());
        assert_eq!((runner.depth(), runner.decode_equals_prefill()), (2, false));
        let first = runner.launch(plan(1)).unwrap();
        let second = runner.launch(plan(2)).unwrap();
        let plans = [runner.finish(first).unwrap(), runner.finish(second).unwrap()];
        assert_eq!(plans.map(|p| (p.number, p.step.output.top[0].0)), [(1, 11), (2, 21)]);
    }

    #[test]
    fn finishing_out_of_order_is_a_fault() {
        let mut runner = DeviceRunner::new(Echo::default());
        let _ = runner.launch(plan(1)).unwrap();
        assert!(matches!(runner.finish(Ticket(2)), Err(KernelError::Fault(_))));
    }
}
