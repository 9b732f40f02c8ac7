//! Settings of the scheduler and of the waiting queue.
//!
//! What the device bounds (sequences, rows and logits rows of a step) stands in `InstanceInfo`.

use std::time::Duration;

/// How the engine thread shares an instance among requests.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerSettings {
    /// Sequences of one tenant that may wait (a request with n choices counts n); more is refused.
    /// All tenants together have an eighth more, and none more than eight times what it leaves.
    pub max_queued_requests: u32,
    /// Prompt tokens that may wait, shared alike; a lone request may bring more.
    pub max_queued_tokens: u64,
    /// Choices of one request.
    pub max_choices: u32,
    /// Aim for the time of one step; `None` leaves it to the token budget.
    pub max_step: Option<Duration>,
    /// Whether blocks are shared by equal prefixes.
    pub prefix_cache: bool,
    /// Items of 16 bytes that the answers to all open requests take together: a request takes its
    /// event ring, sized for all that it can bring (a token is one, and one an alternative), and
    /// what is made of it. One that takes more than a quarter is refused, one for which too few
    /// are left is told to retry.
    pub max_answer_items: usize,
}

impl Default for SchedulerSettings {
    fn default() -> Self {
        SchedulerSettings {
            max_queued_requests: 512,
            max_queued_tokens: 1 << 20,
            max_choices: 128,
            max_step: None,
            prefix_cache: true,
            max_answer_items: 1 << 25,
        }
    }
}
