//! Few threads and a bounded queue for tokenizing and rendering.
//!
//! Both take time in proportion to the prompt and run foreign code over a client's text, so they
//! never run on a socket's thread. A full queue refuses at once; a panic ends one request; a
//! client that has left costs nothing but a look at the queue.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

/// Why work was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// Capacity: the queue is full; retry later.
    #[error("the server is busy: {queued} prompts are waiting to be tokenized")]
    Busy {
        /// Prompts waiting.
        queued: usize,
    },
    /// Us: the work panicked. The pool and every other request go on.
    #[error("the prompt could not be processed")]
    Panicked,
    /// Us: the pool is gone.
    #[error("the server is shutting down")]
    Stopped,
}

type Job = Box<dyn FnOnce() + Send>;

/// A fixed number of threads that share one bounded queue. Dropping the pool ends the threads
/// once the queue is empty.
#[derive(Debug)]
pub struct TextPool {
    jobs: SyncSender<Job>,
    queue_max: usize,
}

impl TextPool {
    /// Starts `threads` threads over a queue of `queue_max` jobs.
    pub fn new(threads: usize, queue_max: usize) -> std::io::Result<Self> {
        let (jobs, queue) = sync_channel::<Job>(queue_max);
        let queue = Arc::new(Mutex::new(queue));
        for index in 0..threads.max(1) {
            let queue = Arc::clone(&queue);
            std::thread::Builder::new().name(format!("text-{index}")).spawn(move || {
                while let Some(job) = next_job(&queue) {
                    job()
                }
            })?;
        }
        Ok(Self { jobs, queue_max })
    }

    /// Runs `work` on the pool. Dropping the future before a thread took the job cancels it;
    /// afterwards its result is thrown away. `held` is what the work's input takes up: it is given
    /// back only when that is gone, however long the job waits.
    pub async fn run<T: Send + 'static>(
        &self,
        held: impl Send + 'static,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PoolError> {
        let (reply, answer) = oneshot::channel();
        let job = Box::new(move || {
            if reply.is_closed() {
                return;
            }
            // Nothing the closure can reach is seen again after a panic: it owns what it changes.
            let outcome = catch_unwind(AssertUnwindSafe(work)).map_err(|_| PoolError::Panicked);
            drop(held);
            // A closed channel means the client has left.
            let _ = reply.send(outcome);
        });
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => PoolError::Busy { queued: self.queue_max },
            TrySendError::Disconnected(_) => PoolError::Stopped,
        })?;
        answer.await.unwrap_or(Err(PoolError::Stopped))
    }
}

/// Waits for a job; none once the pool is dropped and the queue empty.
fn next_job(queue: &Mutex<Receiver<Job>>) -> Option<Job> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::Pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Waker};

    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    fn is_pending<F: Future + Unpin>(future: &mut F) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        Pin::new(future).poll(&mut context).is_pending()
    }

    #[test]
    fn a_panic_ends_one_request_only() {
        let pool = TextPool::new(1, 4).unwrap();
        block_on(async {
            let lost: Result<(), _> = pool.run((), || panic!("a damaged merge table")).await;
            assert_eq!(lost, Err(PoolError::Panicked));
            assert_eq!(pool.run((), || 7).await, Ok(7));
        });
    }

    #[test]
    fn a_full_queue_refuses_and_the_departed_are_skipped() {
        let pool = TextPool::new(1, 1).unwrap();
        let (ran, room) = (Arc::new(AtomicUsize::new(0)), Arc::new(()));
        let (started, has_started) = sync_channel(1);
        let (release, released) = sync_channel::<()>(1);
        block_on(async {
            let first = pool.run((), move || {
                started.send(()).unwrap();
                released.recv().unwrap();
            });
            let count = Arc::clone(&ran);
            let work = move || count.fetch_add(1, Ordering::SeqCst);
            let mut second = Box::pin(pool.run(Arc::clone(&room), work));
            let mut first = Box::pin(first);
            // One running, one waiting: each future submits when it is first polled.
            assert!(is_pending(&mut first));
            has_started.recv().unwrap();
            assert!(is_pending(&mut second));
            assert_eq!(pool.run((), || ()).await, Err(PoolError::Busy { queued: 1 }));

            drop(second);
            assert_eq!(Arc::strong_count(&room), 2, "its text still waits in the queue");
            release.send(()).unwrap();
            assert_eq!(first.await, Ok(()));
            for _ in 0..5000 {
                if Arc::strong_count(&room) > 1 {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
            }
            assert_eq!(Arc::strong_count(&room), 1, "the job that was skipped is gone");
            assert_eq!(pool.run((), || 1).await, Ok(1));
        });
        assert_eq!(ran.load(Ordering::SeqCst), 0);
    }
}
