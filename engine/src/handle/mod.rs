//! Submit and read back: the border of the engine thread.
//!
//! [`EngineHandle::submit`] checks what depends on the instance, takes a place in the bounded
//! waiting queue, builds everything the request needs and hands it over; an [`EventStream`] brings
//! the events back. Never blocks, never waits for the engine thread.

use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Acquire, Relaxed},
};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use self::admission::{Demand, RequestLimits};
use crate::kv::key::KeyHasher;
use crate::model::info::InstanceInfo;
use crate::request::{Request, SubmitError};
use crate::scheduler::settings::SchedulerSettings;
use crate::sequence::SequenceGroup;

pub use self::room::{AnswerBudget, AnswerRoom};
pub use self::stats::{EngineStats, TIME_BUCKETS, TimeReading};
pub use self::stream::EventStream;

/// Checks of a request against an instance, and the building of its sequences.
pub mod admission;

/// Numbers for metrics, health and admission.
pub mod stats;

/// Places in the waiting queue.
pub mod queue;

/// Signs of life of the engine thread.
pub mod pulse;

/// A budget of memory for answers.
pub mod room;

/// Events on their way back.
pub mod stream;

/// Submits requests to one engine thread. Cheap to clone; the thread ends when all handles are
/// gone and all requests have ended.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    shared: Arc<Shared>,
    inbox: SyncSender<Message>,
}

/// What handles and the engine thread share: plain numbers, no lock.
#[derive(Debug)]
pub struct Shared {
    /// The instance in numbers.
    pub info: InstanceInfo,
    /// Limits of the queue.
    pub settings: SchedulerSettings,
    /// Hashes blocks of this instance.
    pub hasher: KeyHasher,
    /// What the engine thread counts, and how full the waiting queue is.
    pub stats: stats::LiveStats,
    /// Signs of life of the engine thread.
    pub pulse: pulse::Pulse,
    /// Who holds places in the waiting queue.
    places: queue::Places,
    /// Room for the answers to open requests.
    answers: Arc<AnswerBudget>,
    started_at: Instant,
    /// Set once; every open request's sink asks it.
    draining: Arc<AtomicBool>,
    /// Milliseconds since `started_at` at which what still runs is failed.
    drain_deadline_ms: AtomicU64,
}

/// What handles tell the engine thread.
#[derive(Debug)]
pub enum Message {
    /// A request that was admitted.
    Submit(Box<SequenceGroup>),
    /// Look at the drain flag.
    Wake,
}

/// The engine thread's end of the border. A request that is still in it when it is dropped fails,
/// as its [`stream::EventSink`] does.
#[derive(Debug)]
pub struct Inbox {
    /// Admitted requests in the order of arrival.
    pub messages: Receiver<Message>,
    /// Numbers shared with the handles.
    pub shared: Arc<Shared>,
}

/// The two ends of the border of an instance that is alone.
pub fn border(info: InstanceInfo, settings: SchedulerSettings) -> (EngineHandle, Inbox) {
    let answers = AnswerBudget::new(settings.max_answer_items);
    border_beside(info, settings, answers)
}

/// The two ends of an instance's border, whose answers take room that others take of, too.
pub fn border_beside(
    info: InstanceInfo,
    settings: SchedulerSettings,
    answers: Arc<AnswerBudget>,
) -> (EngineHandle, Inbox) {
    let hasher = KeyHasher::new(&info.numerics, info.block_size);
    // Each message holds a place in the queue; the spare one is for `Wake`.
    let places = queue::places_of_all(settings.max_queued_requests.into()) as usize;
    let (sender, messages) = sync_channel(places + 1);
    let shared = Arc::new(Shared {
        places: queue::Places::default(),
        answers,
        info,
        settings,
        hasher,
        stats: stats::LiveStats::default(),
        pulse: pulse::Pulse::default(),
        started_at: Instant::now(),
        draining: Arc::default(),
        drain_deadline_ms: AtomicU64::new(u64::MAX),
    });
    (EngineHandle { shared: shared.clone(), inbox: sender }, Inbox { messages, shared })
}

impl EngineHandle {
    /// Admits a request or says why not. Events come through the stream; dropping it cancels.
    ///
    /// Errors: the client's (empty prompt, unknown token, too long, can never fit), capacity
    /// (the queue, or the room for answers, is full), ours (the engine has stopped or drains).
    pub fn submit(&self, request: Request) -> Result<EventStream, SubmitError> {
        self.submit_for(request, 0).map(|(stream, _none)| stream)
    }

    /// [`EngineHandle::submit`] for a caller that makes an answer of at most `answer_bytes` of the
    /// events, with the room for that, to be held until the answer is gone.
    pub fn submit_for(
        &self,
        request: Request,
        answer_bytes: u64,
    ) -> Result<(EventStream, AnswerRoom), SubmitError> {
        let mut admitted = self.submit_all(vec![(request, answer_bytes)])?;
        admitted.pop().ok_or_else(|| self.gone())
    }

    /// [`EngineHandle::submit_for`] of several requests of one tenant, all or none: what they take
    /// is taken at once, and more than can ever be had is the client's error.
    pub fn submit_all(
        &self,
        requests: Vec<(Request, u64)>,
    ) -> Result<Vec<(EventStream, AnswerRoom)>, SubmitError> {
        if !self.is_serving() {
            return Err(self.gone());
        }
        let Some((first, _)) = requests.first() else { return Ok(Vec::new()) };
        let tenant = first.tenant.id.clone();
        let Shared { info, hasher, settings, stats, answers, .. } = &*self.shared;
        let limits = RequestLimits::new(settings, answers.request_items_max());
        let check = |(request, bytes)| admission::check(info, limits, request, bytes);
        let all = requests.into_iter().map(check).collect::<Result<Vec<_>, _>>()?;
        let Demand { sequences, tokens, room_items } = admission::demand(&all, limits)?;
        let places = self.shared.places.take(&tenant, (sequences, tokens), stats, settings);
        let Some(places) = places else { return Err(self.busy()) };
        let Some(room) = answers.take(room_items) else {
            places.give_back(stats, sequences, tokens);
            return Err(self.busy());
        };
        let (mut sequences_left, mut tokens_left) = (sequences, tokens);
        let mut admitted = Vec::with_capacity(all.len());
        for one in all {
            let (sequences, tokens) = (u64::from(one.num_choices()), one.num_prompt_tokens());
            let ring_room = room.split(one.num_room_items());
            let answer_room = ring_room.split(one.num_answer_items());
            let draining = self.shared.draining.clone();
            let (group, stream) = one.build(info, hasher, ring_room, draining, places.clone());
            if let Err(refused) = self.inbox.try_send(Message::Submit(Box::new(group))) {
                // Those before it are cancelled as their streams go.
                places.give_back(stats, sequences_left, tokens_left);
                return Err(match refused {
                    TrySendError::Full(_) => self.busy(),
                    TrySendError::Disconnected(_) => self.gone(),
                });
            }
            sequences_left -= sequences;
            tokens_left -= tokens;
            admitted.push((stream, answer_room));
        }
        Ok(admitted)
    }

    /// The instance in numbers.
    pub fn info(&self) -> &InstanceInfo {
        &self.shared.info
    }

    /// Numbers for metrics and health.
    pub fn stats(&self) -> EngineStats {
        self.shared.stats.read()
    }

    /// How long the step in progress has been running: a watchdog fails `/health` on it.
    pub fn step_running_for(&self) -> Duration {
        self.shared.pulse.step_running_for()
    }

    /// Whether the engine thread is there and takes requests.
    pub fn is_serving(&self) -> bool {
        !self.shared.draining.load(Relaxed) && !self.shared.pulse.has_ended()
    }

    /// Whether the engine thread has ended though nobody told it to.
    pub fn has_failed(&self) -> bool {
        // In this order: who was told to end was told before it ended.
        self.shared.pulse.has_ended() && !self.shared.draining.load(Acquire)
    }

    /// Takes no more requests, lets those admitted end until `deadline` from now, then fails the
    /// rest with `ShuttingDown` and ends the engine thread. Returns at once.
    pub fn drain(&self, deadline: Duration) {
        let end = self.shared.started_at.elapsed().saturating_add(deadline);
        let end = u64::try_from(end.as_millis()).unwrap_or(u64::MAX);
        self.shared.drain_deadline_ms.fetch_min(end, Relaxed);
        self.shared.draining.store(true, Relaxed);
        // A full inbox means that the engine thread is awake and will look.
        let _ = self.inbox.try_send(Message::Wake);
    }

    fn gone(&self) -> SubmitError {
        let drains = self.shared.draining.load(Relaxed);
        if drains { SubmitError::Draining } else { SubmitError::Stopped }
    }

    fn busy(&self) -> SubmitError {
        let stats = &self.shared.stats;
        stats.refused.fetch_add(1, Relaxed);
        let rows = stats.rows.load(Relaxed);
        let busy_s = stats.step_time.read().sum_s;
        let wait = stats.waiting_tokens.load(Relaxed) as f64 * busy_s / rows.max(1) as f64;
        SubmitError::Busy {
            queued: u32::try_from(stats.waiting.load(Relaxed)).unwrap_or(u32::MAX),
            retry_after_s: wait.ceil().clamp(1.0, 60.0) as u32,
        }
    }
}

impl Shared {
    /// Time left to drain; `None` when not draining.
    pub fn drain_left(&self) -> Option<Duration> {
        if !self.draining.load(Relaxed) {
            return None;
        }
        let end = Duration::from_millis(self.drain_deadline_ms.load(Relaxed));
        Some(end.saturating_sub(self.started_at.elapsed()))
    }
}

#[cfg(test)]
mod tests;
