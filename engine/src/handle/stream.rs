//! The way back: events of one request from the engine thread to whoever reads them.
//!
//! One single-producer ring a request, allocated by the submitting thread and sized so that it can
//! never fill ([`ring_capacity`]): the engine thread never waits for a reader, however slow. What
//! all rings hold together is bounded by the [`super::room::AnswerBudget`], of which a request takes
//! its part before it is admitted. Items in the ring are flat; [`EventStream`] puts events together
//! on the reading side, so the engine thread allocates nothing. Dropping the [`EventStream`]
//! cancels the request, which the engine thread sees within one step; [`EventStream::stop`] ends
//! one of its choices.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;

use atomic_waker::AtomicWaker;
use rtrb::{Consumer, Producer, RingBuffer};

use super::room::AnswerRoom;
use crate::request::{Event, FinishReason, StepError, TokenOut};

/// One flat item of the ring. The top list of a token stands before the token, so that an event is
/// complete as soon as its last item is seen.
#[derive(Debug)]
enum Item {
    Started { prompt_tokens: u32, cached_tokens: u32 },
    Top { token: u32, logprob: f32 },
    Prompt(FlatToken),
    Token { choice: u16, token: FlatToken },
    Finished { choice: u16, reason: FinishReason },
}

/// Bytes of an item, for whoever turns a budget of memory into one of items.
pub const ITEM_BYTES: usize = 16;

const _: () = assert!(size_of::<Item>() == ITEM_BYTES, "rings are budgeted by this size");

/// Choices of a request that the ring can tell apart.
pub const CHOICES_MAX: u32 = u16::MAX as u32;

/// A token without its top list.
#[derive(Clone, Copy, Debug)]
pub struct FlatToken {
    /// The token id.
    pub id: u32,
    /// Natural log of its probability, NaN unless asked for.
    pub logprob: f32,
    /// 1 for the most likely token, 0 unless asked for.
    pub rank: u32,
}

/// How many events one request can bring, top lists counted.
#[derive(Clone, Copy, Debug)]
pub struct EventBounds {
    /// Choices.
    pub num_choices: u32,
    /// Tokens of a choice.
    pub max_tokens: u32,
    /// Entries of a generated token's top list.
    pub top: u32,
    /// Prompt rows with log-probabilities (0 without `prompt_logprobs`).
    pub prompt_rows: u32,
    /// Entries of a prompt token's top list.
    pub prompt_top: u32,
}

/// Items that a request can bring at most: `n × (max_tokens × (1 + top) + 1)`, the prompt's part,
/// and `Started`. `None` if that does not fit `usize`.
pub fn ring_capacity(bounds: EventBounds) -> Option<usize> {
    let EventBounds { num_choices, max_tokens, top, prompt_rows, prompt_top } = bounds;
    let tokens = u64::from(max_tokens).checked_mul(u64::from(top) + 1)?.checked_add(1)?;
    let choices = tokens.checked_mul(u64::from(num_choices))?;
    let prompt = u64::from(prompt_rows).checked_mul(u64::from(prompt_top) + 1)?;
    usize::try_from(choices.checked_add(prompt)?.checked_add(1)?).ok()
}

/// A stream of `num_choices` choices and its sink over a ring that fills `room`. Once `draining`, a
/// sink that goes without a word was shut down.
pub fn event_ring(
    room: AnswerRoom,
    num_choices: u32,
    draining: Arc<AtomicBool>,
) -> (EventSink, EventStream) {
    let (producer, consumer) = RingBuffer::new(room.items());
    let link = Arc::new(Link {
        waker: AtomicWaker::new(),
        failure: OnceLock::new(),
        draining,
        stopped: (0..num_choices).map(|_| AtomicBool::new(false)).collect(),
        scheduled_at: OnceLock::new(),
        room,
    });
    let sink = EventSink { producer, num_pushed: 0, link: WakeOnDrop(link.clone()) };
    let stream = EventStream {
        consumer,
        link,
        top: Vec::new(),
        num_prompt_rows: 0,
        num_unfinished: num_choices,
    };
    (sink, stream)
}

/// What both ends share beside the ring. Each end drops its half of the ring first, so the room is
/// given back after the ring's memory.
#[derive(Debug)]
struct Link {
    waker: AtomicWaker,
    /// Why the request failed; set before the sink goes.
    failure: OnceLock<StepError>,
    /// Whether the instance was told to end.
    draining: Arc<AtomicBool>,
    /// Set by the reader: it wants no more of this choice.
    stopped: Box<[AtomicBool]>,
    /// When the request first took part in a step.
    scheduled_at: OnceLock<Instant>,
    room: AnswerRoom,
}

/// The engine thread's end. Pushing never waits and never allocates; [`EventSink::wake`] tells the
/// reader. Dropping the sink ends the stream.
#[derive(Debug)]
pub struct EventSink {
    // Fields drop in this order: the reader is woken once the ring counts as abandoned.
    producer: Producer<Item>,
    num_pushed: usize,
    link: WakeOnDrop,
}

impl EventSink {
    /// Whether the reader is gone.
    pub fn is_abandoned(&self) -> bool {
        self.producer.is_abandoned()
    }

    /// Whether the reader wants no more of `choice`.
    pub fn is_stopped(&self, choice: u32) -> bool {
        self.link.0.stopped.get(choice as usize).is_some_and(|stopped| stopped.load(Relaxed))
    }

    /// The request takes part in a step for the first time.
    pub fn scheduled(&self, at: Instant) {
        // It does so once.
        let _ = self.link.0.scheduled_at.set(at);
    }

    /// Tells the reader that there is something to read.
    pub fn wake(&self) {
        self.link.0.waker.wake();
    }

    /// Pushes [`Event::Started`].
    pub fn started(&mut self, prompt_tokens: u32, cached_tokens: u32) {
        self.push(Item::Started { prompt_tokens, cached_tokens });
    }

    /// Pushes [`Event::Prompt`] of the next prompt token, from the second one on, with its top list.
    pub fn prompt(&mut self, token: FlatToken, top: &[(u32, f32)]) {
        self.push_top(top);
        self.push(Item::Prompt(token));
    }

    /// Pushes [`Event::Token`] with its top list.
    pub fn token(&mut self, choice: u32, token: FlatToken, top: &[(u32, f32)]) {
        self.push_top(top);
        self.push(Item::Token { choice: choice as u16, token });
    }

    /// Pushes [`Event::Finished`].
    pub fn finished(&mut self, choice: u32, reason: FinishReason) {
        self.push(Item::Finished { choice: choice as u16, reason });
    }

    /// Ends the stream with [`Event::Failed`] after what was pushed.
    pub fn failed(self, error: StepError) {
        // Set once: the sink is gone after this.
        let _ = self.link.0.failure.set(error);
    }

    fn push_top(&mut self, top: &[(u32, f32)]) {
        for &(token, logprob) in top {
            self.push(Item::Top { token, logprob });
        }
    }

    fn push(&mut self, item: Item) {
        let pushed = self.producer.push(item);
        assert!(pushed.is_ok(), "the ring holds every item its request can bring");
        self.num_pushed += 1;
    }
}

/// Says why before the ring counts as abandoned. Asked here and not by the reader, who may look
/// long after the end. The part of the ring that was never written is no memory: its room goes back
/// however slow the reader is.
impl Drop for EventSink {
    fn drop(&mut self) {
        self.link.0.room.keep(self.num_pushed);
        if self.link.0.draining.load(Relaxed) {
            let _ = self.link.0.failure.set(StepError::ShuttingDown);
        }
    }
}

/// Wakes the reader when the sink goes, so that a sleeping reader sees the end.
#[derive(Debug)]
struct WakeOnDrop(Arc<Link>);

impl Drop for WakeOnDrop {
    fn drop(&mut self) {
        self.0.waker.wake();
    }
}

/// Events of one request, in order. Dropping it cancels the request.
#[derive(Debug)]
pub struct EventStream {
    consumer: Consumer<Item>,
    link: Arc<Link>,
    top: Vec<(u32, f32)>,
    /// Prompt tokens whose log-probabilities were read: they come in order.
    num_prompt_rows: u32,
    num_unfinished: u32,
}

impl EventStream {
    /// The next event; `None` once all choices have finished or the request failed. An engine
    /// thread that ends without a word counts as a failure.
    pub async fn next(&mut self) -> Option<Event> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// [`EventStream::next`] for a caller that polls.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        if let Some(event) = self.try_next() {
            return Poll::Ready(Some(event));
        }
        self.link.waker.register(context.waker());
        match self.try_next() {
            Some(event) => Poll::Ready(Some(event)),
            None if self.num_unfinished == 0 => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    /// The next event if there is one now. `None` says nothing about the end:
    /// see [`EventStream::is_ended`].
    pub fn try_next(&mut self) -> Option<Event> {
        // The end is asked for before the last look: what came before the end is then seen.
        let abandoned = self.consumer.is_abandoned();
        while let Ok(item) = self.consumer.pop() {
            if let Some(event) = self.event(item) {
                return Some(event);
            }
        }
        if abandoned && self.num_unfinished > 0 {
            self.num_unfinished = 0;
            let told = self.link.failure.get().cloned();
            return Some(Event::Failed(told.unwrap_or(StepError::Ended)));
        }
        None
    }

    /// Ends `choice` with the next step that it is part of: nobody wants more of it. Others go on.
    /// It still finishes, after tokens that were on their way.
    pub fn stop(&self, choice: u32) {
        if let Some(stopped) = self.link.stopped.get(choice as usize) {
            stopped.store(true, Relaxed);
        }
    }

    /// When the request first took part in a step, if it has.
    pub fn scheduled_at(&self) -> Option<Instant> {
        self.link.scheduled_at.get().copied()
    }

    /// Whether everything was read and nothing more will come.
    pub fn is_ended(&self) -> bool {
        self.num_unfinished == 0
    }

    /// The event that `item` completes, if any.
    fn event(&mut self, item: Item) -> Option<Event> {
        Some(match item {
            Item::Top { token, logprob } => {
                self.top.push((token, logprob));
                return None;
            }
            Item::Started { prompt_tokens, cached_tokens } => {
                Event::Started { prompt_tokens, cached_tokens }
            }
            Item::Prompt(token) => {
                self.num_prompt_rows += 1;
                Event::Prompt { index: self.num_prompt_rows, token: self.token(token) }
            }
            Item::Token { choice, token } => {
                Event::Token { choice: choice.into(), token: self.token(token) }
            }
            Item::Finished { choice, reason } => {
                self.num_unfinished = self.num_unfinished.saturating_sub(1);
                Event::Finished { choice: choice.into(), reason }
            }
        })
    }

    fn token(&mut self, token: FlatToken) -> TokenOut {
        let FlatToken { id, logprob, rank } = token;
        TokenOut { id, logprob, rank, top: std::mem::take(&mut self.top) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handle::room::AnswerBudget;

    fn event_ring(items: usize, num_choices: u32) -> (EventSink, EventStream) {
        let room = AnswerBudget::new(4 * items).take(items).unwrap();
        super::event_ring(room, num_choices, Arc::default())
    }

    fn flat(id: u32) -> FlatToken {
        FlatToken { id, logprob: -0.5, rank: 1 }
    }

    #[test]
    fn a_token_comes_with_its_own_top_list() {
        let (mut sink, mut stream) = event_ring(8, 2);
        sink.started(3, 0);
        sink.token(0, flat(7), &[(7, -0.5), (9, -1.0)]);
        sink.token(1, flat(8), &[]);
        let events: Vec<Event> = std::iter::from_fn(|| stream.try_next()).collect();
        assert_eq!(events.len(), 3);
        let Event::Token { choice: 0, token } = &events[1] else { panic!("{events:?}") };
        assert_eq!(token.top, vec![(7, -0.5), (9, -1.0)]);
        let Event::Token { choice: 1, token } = &events[2] else { panic!("{events:?}") };
        assert!(token.top.is_empty());
    }

    #[test]
    fn a_sleeping_reader_sees_tokens_and_the_end() {
        let (mut sink, mut stream) = event_ring(4, 1);
        let reader = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let mut events = Vec::new();
                while let Some(event) = stream.next().await {
                    events.push(event);
                }
                assert!(stream.is_ended());
                events
            })
        });
        sink.token(0, flat(1), &[]);
        sink.wake();
        sink.finished(0, FinishReason::Length);
        drop(sink);
        let events = reader.join().unwrap();
        assert!(matches!(events[..], [Event::Token { .. }, Event::Finished { choice: 0, .. }]));
    }

    #[test]
    fn an_engine_that_ends_without_a_word_is_a_failure() {
        let (mut sink, mut stream) = event_ring(4, 2);
        sink.token(0, flat(1), &[]);
        sink.finished(0, FinishReason::Length);
        drop(sink);
        assert!(matches!(stream.try_next(), Some(Event::Token { .. })));
        assert!(matches!(stream.try_next(), Some(Event::Finished { .. })));
        assert!(!stream.is_ended(), "the other choice has not finished");
        assert_eq!(stream.try_next(), Some(Event::Failed(StepError::Ended)));
        assert!(stream.is_ended());
        assert_eq!(stream.try_next(), None);
    }

    #[test]
    fn a_failure_comes_after_what_was_pushed_and_says_why() {
        let (mut sink, mut stream) = event_ring(2, 1);
        sink.token(0, flat(1), &[]);
        sink.failed(StepError::ShuttingDown);
        assert!(matches!(stream.try_next(), Some(Event::Token { .. })));
        assert_eq!(stream.try_next(), Some(Event::Failed(StepError::ShuttingDown)));
        assert_eq!(stream.try_next(), None);
    }

    #[test]
    fn room_that_was_not_needed_goes_back_when_the_engine_has_finished() {
        let budget = AnswerBudget::new(400);
        let (mut sink, mut stream) =
            super::event_ring(budget.take(100).unwrap(), 1, Arc::default());
        sink.token(0, flat(1), &[]);
        sink.finished(0, FinishReason::Eos);
        let left = || {
            let all: Vec<AnswerRoom> = std::iter::from_fn(|| budget.take(1)).collect();
            all.len()
        };
        assert_eq!(left(), 300);
        drop(sink);
        assert_eq!(left(), 398, "only what was written is held");
        while stream.try_next().is_some() {}
        drop(stream);
        assert_eq!(left(), 400);
    }

    #[test]
    fn a_choice_is_stopped_alone() {
        let (sink, stream) = event_ring(2, 2);
        stream.stop(1);
        stream.stop(2);
        assert!(!sink.is_stopped(0) && sink.is_stopped(1) && !sink.is_stopped(2));
        assert!(!sink.is_abandoned());
    }

    #[test]
    fn dropping_the_stream_is_seen_by_the_sink() {
        let (sink, stream) = event_ring(1, 1);
        assert!(!sink.is_abandoned());
        drop(stream);
        assert!(sink.is_abandoned());
    }

    #[test]
    fn capacity_counts_every_item_and_never_overflows() {
        let bounds =
            EventBounds { num_choices: 2, max_tokens: 3, top: 4, prompt_rows: 5, prompt_top: 6 };
        assert_eq!(ring_capacity(bounds), Some(2 * (3 * 5 + 1) + 5 * 7 + 1));
        let huge = EventBounds {
            num_choices: u32::MAX,
            max_tokens: u32::MAX,
            top: u32::MAX,
            prompt_rows: 0,
            prompt_top: 0,
        };
        assert_eq!(ring_capacity(huge), None);
    }
}
