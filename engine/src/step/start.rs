//! The engine thread of an instance.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use super::{Leftover, Parts, StepLoop};
use crate::handle::{AnswerBudget, EngineHandle, Shared, border_beside};
use crate::model::info::InstanceInfo;
use crate::request::StepError;
use crate::runner::Runner;
use crate::scheduler::settings::SchedulerSettings;

/// How the engine thread ended: `Err` after a device fault.
pub type EngineThread = JoinHandle<Result<(), StepError>>;

/// Name of every engine thread.
pub const ENGINE_THREAD: &str = "engine";

/// Ended requests that wait to be dropped; more are dropped by the engine thread itself.
const REAPER_QUEUE: usize = 64;

/// [`start_beside`] of an instance that is alone.
pub fn start(
    runner: Box<dyn Runner>,
    info: InstanceInfo,
    settings: SchedulerSettings,
) -> std::io::Result<(EngineHandle, EngineThread)> {
    let answers = AnswerBudget::new(settings.max_answer_items);
    start_beside(runner, info, settings, answers)
}

/// Starts the engine thread of an instance. It ends when all handles are gone and all requests
/// have ended, when a drain is over, or with a device fault. `answers` may be others' room, too.
pub fn start_beside(
    runner: Box<dyn Runner>,
    info: InstanceInfo,
    settings: SchedulerSettings,
    answers: Arc<AnswerBudget>,
) -> std::io::Result<(EngineHandle, EngineThread)> {
    let (handle, inbox) = border_beside(info, settings, answers);
    let shared = inbox.shared.clone();
    let (reaper, ended) = sync_channel::<Leftover>(REAPER_QUEUE);
    Builder::new().name("reaper".into()).spawn(move || ended.iter().for_each(drop))?;
    let thread = Builder::new().name(ENGINE_THREAD.into()).spawn(move || {
        let _ended = SayEnded(shared);
        let clock = Box::new(Instant::now);
        StepLoop::new(Parts { runner, inbox, clock, drafts: None, reaper: Some(reaper) }).run()
    })?;
    Ok((handle, thread))
}

/// Says that the thread has ended, however it did.
struct SayEnded(Arc<Shared>);

impl Drop for SayEnded {
    fn drop(&mut self) {
        self.0.pulse.set_ended();
    }
}
