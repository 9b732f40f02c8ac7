//! The waiting queue: deficit round robin over tenants, then priority, then age.
//!
//! Each tenant has a line of its own, ordered by priority and arrival: callers name priorities, so
//! they rank a tenant's own requests and never one tenant before another. Each tenant earns a
//! quantum of tokens a round, and the one that can first pay for its first sequence goes next. A sequence pays for the rows of its prompt when it
//! starts and for its tokens when it leaves, so a tenant with long answers waits longer.
//! A candidate that cannot start now is passed over for this step only.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::sequence::SeqId;

/// A sequence in line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Which.
    pub id: SeqId,
    /// Smaller goes first.
    pub priority: i32,
    /// Smaller is older.
    pub arrival: u64,
    /// Tokens it pays to start.
    pub cost: u32,
}

#[derive(Debug)]
struct Line {
    tenant: Arc<str>,
    waiting: VecDeque<Waiting>,
    /// Candidates before this index were passed over in this step.
    passed: usize,
    /// Tokens earned and not yet spent; negative is debt.
    deficit: i64,
    /// Waiting and running sequences: the line is kept as long as there are any.
    num_live: u32,
}

/// Sequences that wait for a seat, by tenant.
#[derive(Debug, Default)]
pub struct WaitingQueue {
    lines: Vec<Line>,
    /// Emptied lines, kept for their memory.
    spare: Vec<Line>,
    /// Index of the line whose turn is next.
    turn: usize,
    len: usize,
}

/// A candidate: in which line, and who.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    line: usize,
    /// Rounds until the line can pay.
    rounds: i64,
    /// Who.
    pub waiting: Waiting,
}

/// Tokens that a tenant earns a round.
const QUANTUM: i64 = 256;

impl WaitingQueue {
    /// Sequences in line.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A new sequence of `tenant` gets in line.
    pub fn join(&mut self, tenant: &Arc<str>, waiting: Waiting) {
        let line = match self.line_of(tenant) {
            Some(line) => line,
            None => self.open_line(tenant),
        };
        self.lines[line].num_live += 1;
        self.insert(line, waiting);
    }

    /// A running sequence of `tenant` gets back in line, at the place of its age.
    pub fn rejoin(&mut self, tenant: &Arc<str>, waiting: Waiting) {
        if let Some(line) = self.line_of(tenant) {
            self.insert(line, waiting);
        }
    }

    /// Starts a new step: nobody is passed over.
    pub fn begin_step(&mut self) {
        for line in &mut self.lines {
            line.passed = 0;
        }
    }

    /// Who goes next among those not passed over.
    pub fn candidate(&self) -> Option<Candidate> {
        let heads = || {
            let heads = self.lines.iter().enumerate();
            heads.filter_map(|(index, line)| Some((index, line, *line.waiting.get(line.passed)?)))
        };
        let num_lines = self.lines.len();
        heads()
            .map(|(line, queue, waiting)| {
                let missing = i64::from(waiting.cost) - queue.deficit;
                let rounds = missing.max(0).div_euclid(QUANTUM)
                    + i64::from(missing > 0 && missing % QUANTUM != 0);
                Candidate { line, rounds, waiting }
            })
            .min_by_key(|c| (c.rounds, (c.line + num_lines - self.turn) % num_lines))
    }

    /// Passes the candidate over for this step.
    pub fn pass_over(&mut self, candidate: Candidate) {
        self.lines[candidate.line].passed += 1;
    }

    /// Takes the candidate out of the line: it starts and pays.
    pub fn start(&mut self, candidate: Candidate) {
        let Candidate { line, rounds, waiting } = candidate;
        for other in &mut self.lines {
            if other.waiting.len() > other.passed {
                other.deficit += rounds * QUANTUM;
            }
        }
        let queue = &mut self.lines[line];
        let removed = queue.waiting.remove(queue.passed);
        debug_assert_eq!(removed, Some(waiting));
        queue.deficit -= i64::from(waiting.cost);
        if queue.waiting.is_empty() {
            // Nothing is saved up while nobody waits; debt stays.
            queue.deficit = queue.deficit.min(0);
        }
        self.len -= 1;
        self.turn = (line + 1) % self.lines.len();
    }

    /// Charges a tenant for tokens that its sequence generated.
    pub fn charge(&mut self, tenant: &Arc<str>, tokens: u32) {
        if let Some(line) = self.line_of(tenant) {
            self.lines[line].deficit -= i64::from(tokens);
        }
    }

    /// A sequence of `tenant` ended; it stands in line only if it was waiting.
    pub fn leave(&mut self, tenant: &Arc<str>, id: SeqId, was_waiting: bool) {
        let Some(index) = self.line_of(tenant) else { return };
        let line = &mut self.lines[index];
        if was_waiting && let Some(place) = line.waiting.iter().position(|w| w.id == id) {
            line.waiting.remove(place);
            line.passed -= usize::from(place < line.passed);
            self.len -= 1;
        }
        line.num_live -= 1;
        if line.num_live == 0 {
            self.spare.push(self.lines.swap_remove(index));
            if self.turn >= self.lines.len() {
                self.turn = 0;
            }
        }
    }

    fn line_of(&self, tenant: &Arc<str>) -> Option<usize> {
        let same = |line: &Line| Arc::ptr_eq(&line.tenant, tenant) || line.tenant == *tenant;
        self.lines.iter().position(same)
    }

    fn open_line(&mut self, tenant: &Arc<str>) -> usize {
        let line = match self.spare.pop() {
            Some(spare) => Line { tenant: tenant.clone(), passed: 0, deficit: 0, ..spare },
            None => Line {
                tenant: tenant.clone(),
                waiting: VecDeque::new(),
                passed: 0,
                deficit: 0,
                num_live: 0,
            },
        };
        self.lines.push(line);
        self.lines.len() - 1
    }

    fn insert(&mut self, line: usize, waiting: Waiting) {
        let queue = &mut self.lines[line].waiting;
        let rank = |w: &Waiting| (w.priority, w.arrival, w.id.choice);
        let mut place = queue.len();
        while place > 0 && rank(&queue[place - 1]) > rank(&waiting) {
            place -= 1;
        }
        queue.insert(place, waiting);
        self.len += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(group: u32, priority: i32, cost: u32) -> Waiting {
        let id = SeqId { group, choice: 0 };
        Waiting { id, priority, arrival: u64::from(group), cost }
    }

    fn start_all(queue: &mut WaitingQueue) -> Vec<u32> {
        let mut order = Vec::new();
        while let Some(candidate) = queue.candidate() {
            queue.start(candidate);
            order.push(candidate.waiting.id.group);
        }
        order
    }

    #[test]
    fn priority_goes_before_age_and_not_before_other_tenants() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut queue = WaitingQueue::default();
        queue.join(&a, waiting(0, 1, 10));
        queue.join(&a, waiting(1, 0, 10));
        assert_eq!(start_all(&mut queue), [1, 0]);
        for group in 0..40 {
            queue.join(&a, waiting(group, -100, 100));
        }
        queue.join(&b, waiting(40, 0, 100));
        let place = start_all(&mut queue).iter().position(|&group| group == 40);
        assert!(place.is_some_and(|place| place < 12), "{place:?}");
    }

    #[test]
    fn tenants_share_by_tokens_not_by_requests() {
        let (long, short): (Arc<str>, Arc<str>) = ("long".into(), "short".into());
        let mut queue = WaitingQueue::default();
        for group in 0..4 {
            queue.join(&long, waiting(group, 0, 1024));
        }
        for group in 10..26 {
            queue.join(&short, waiting(group, 0, 256));
        }
        let order = start_all(&mut queue);
        let longs = |n: usize| order[..n].iter().filter(|&&group| group < 10).count();
        assert_eq!(order.len(), 20);
        // One long prompt for four short ones: equal tokens.
        assert!((1..=3).contains(&longs(10)), "{order:?}");
        assert!((2..=4).contains(&longs(15)), "{order:?}");
    }

    #[test]
    fn debt_for_generated_tokens_is_paid_before_the_next_turn() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut queue = WaitingQueue::default();
        queue.join(&a, waiting(0, 0, 10));
        queue.join(&b, waiting(1, 0, 10));
        queue.charge(&a, 5_000);
        for group in 2..5 {
            queue.join(&b, waiting(group, 0, 10));
        }
        assert_eq!(start_all(&mut queue), [1, 2, 3, 4, 0]);
    }

    #[test]
    fn who_is_passed_over_keeps_its_place() {
        let a: Arc<str> = "a".into();
        let mut queue = WaitingQueue::default();
        for group in 0..3 {
            queue.join(&a, waiting(group, 0, 10));
        }
        queue.begin_step();
        let first = queue.candidate().unwrap();
        queue.pass_over(first);
        let second = queue.candidate().unwrap();
        assert_eq!(second.waiting.id.group, 1);
        queue.start(second);
        queue.rejoin(&a, waiting(1, 0, 10));
        queue.begin_step();
        assert_eq!(start_all(&mut queue), [0, 1, 2]);
    }

    #[test]
    fn a_line_goes_with_its_last_sequence() {
        let a: Arc<str> = "a".into();
        let mut queue = WaitingQueue::default();
        queue.join(&a, waiting(0, 0, 10));
        queue.join(&a, waiting(1, 0, 10));
        let candidate = queue.candidate().unwrap();
        queue.start(candidate);
        queue.leave(&a, SeqId { group: 1, choice: 0 }, true);
        assert!(queue.is_empty());
        assert_eq!(queue.lines.len(), 1);
        queue.leave(&a, SeqId { group: 0, choice: 0 }, false);
        assert!(queue.lines.is_empty());
    }
}
