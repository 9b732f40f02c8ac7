//! A step has two halves: [`Runner::launch`] starts it, [`Runner::finish`] gives its output.
//!
//! The loop may launch step n + 1 before it finishes step n (depth 2), so a plan may name tokens
//! that are not known yet (`PENDING_TOKEN`). A runner decides nothing: it runs what the plan says.

mod device;
mod null;
mod turns;

use pagoda_kernels::device::Step;
use pagoda_kernels::error::KernelError;

pub use self::device::DeviceRunner;
pub use self::null::NullRunner;
pub use self::turns::Turns;

/// Plain data that says what one step runs: enough for another rank to run it.
///
/// Moves into the runner and back out, so that no step allocates.
#[derive(Debug, Default)]
pub struct Plan {
    /// Number of the step, ascending.
    pub number: u64,
    /// The device's part: batch in, output back.
    pub step: Step,
}

/// Names a launched step. Finished in the order of launching.
#[derive(Debug, PartialEq, Eq)]
pub struct Ticket(
    /// The plan's number.
    pub u64,
);

/// Runs plans on a device (or pretends to, in the simulation).
pub trait Runner: Send {
    /// How many steps may be launched and not yet finished: 1 or 2.
    fn depth(&self) -> usize;

    /// Whether a token has the same K and V computed by decode and by prefill. Where not, blocks
    /// that decode wrote are nobody's prefix, and who was preempted replays its own tokens one by
    /// one, so that answers stay the same.
    fn decode_equals_prefill(&self) -> bool {
        true
    }

    /// Starts a step and returns at once.
    fn launch(&mut self, plan: Plan) -> Result<Ticket, KernelError>;

    /// Whether the step launched last waits for those of others on its device, and has not begun.
    fn is_waiting(&self) -> bool {
        false
    }

    /// Waits until that step has begun.
    fn begin(&mut self) -> Result<(), KernelError> {
        Ok(())
    }

    /// Waits for the step, which has begun, and returns its plan with the output filled in.
    fn finish(&mut self, ticket: Ticket) -> Result<Plan, KernelError>;
}
