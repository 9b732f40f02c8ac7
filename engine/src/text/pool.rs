//! Few threads and bounded queues for tokenizing and rendering.
//!
//! Both take time and memory in proportion to the prompt and run foreign code over a client's text,
//! so they never run on a socket's thread. Long texts have one thread and short ones others: so at
//! most one long text takes memory at a time, and short texts never wait for long ones. A full
//! queue refuses at once; a panic ends one request; a client that has left costs nothing but a look
//! at the queue.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

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

/// Bytes of a text that is short: it is tokenized in a few hundredths of a second and some ten MiB.
pub const SHORT_TEXT_BYTES: usize = 64 << 10;

/// Threads for short texts beside one for long ones, a bounded queue for either. Dropping the pool
/// ends the threads once the queues are empty.
#[derive(Debug)]
pub struct TextPool {
    short: Arc<Queue>,
    long: Arc<Queue>,
}

impl TextPool {
    /// Starts `short_threads` threads for short texts and one for long ones, over queues of
    /// `queue_max` jobs.
    pub fn new(short_threads: usize, queue_max: usize) -> std::io::Result<Self> {
        let queue = || Arc::new(Queue { max: queue_max, ..Queue::default() });
        let pool = TextPool { short: queue(), long: queue() };
        for index in 0..short_threads.max(1) {
            work_off(&pool.short, format!("text-{index}"))?;
        }
        work_off(&pool.long, "text-long".into())?;
        Ok(pool)
    }

    /// Runs `work`, which takes what a text of `text_bytes` takes. Dropping the future before a
    /// thread took the job cancels it; afterwards its result is thrown away. `held` is what the
    /// work's input takes up: it is given back only when that is gone, however long the job waits.
    pub async fn run<T: Send + 'static>(
        &self,
        text_bytes: usize,
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
        let queue = if text_bytes <= SHORT_TEXT_BYTES { &self.short } else { &self.long };
        queue.push(text_bytes, job)?;
        answer.await.unwrap_or(Err(PoolError::Stopped))
    }
}

impl Drop for TextPool {
    fn drop(&mut self) {
        self.short.close();
        self.long.close();
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// Jobs that wait for a thread. Shorter texts overtake longer ones, each at most as many as its
/// length is multiples of a short text.
#[derive(Default)]
struct Queue {
    line: Mutex<Line>,
    changed: Condvar,
    max: usize,
}

#[derive(Default)]
struct Line {
    /// By bytes of text and short texts for every job that came before; then by arrival.
    jobs: BTreeMap<(u64, u64), Job>,
    arrivals: u64,
    is_closed: bool,
}

impl Queue {
    fn push(&self, text_bytes: usize, job: Job) -> Result<(), PoolError> {
        let mut line = self.lock();
        if line.jobs.len() >= self.max {
            return Err(PoolError::Busy { queued: self.max });
        }
        let arrival = line.arrivals;
        line.arrivals += 1;
        let handicap = arrival.saturating_mul(SHORT_TEXT_BYTES as u64);
        line.jobs.insert((handicap.saturating_add(text_bytes as u64), arrival), job);
        drop(line);
        self.changed.notify_one();
        Ok(())
    }

    /// Waits for a job; none once the queue is closed and empty.
    fn next(&self) -> Option<Job> {
        let is_idle = |line: &mut Line| line.jobs.is_empty() && !line.is_closed;
        let line = self.changed.wait_while(self.lock(), is_idle);
        let mut line = line.unwrap_or_else(PoisonError::into_inner);
        line.jobs.pop_first().map(|(_, job)| job)
    }

    fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Queue({} of {})", self.lock().jobs.len(), self.max)
    }
}

/// A thread that does the jobs of `queue` until it is closed.
fn work_off(queue: &Arc<Queue>, name: String) -> std::io::Result<()> {
    let queue = Arc::clone(queue);
    std::thread::Builder::new().name(name).spawn(move || {
        while let Some(job) = queue.next() {
            job()
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::Pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::sync_channel;
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
            let lost: Result<(), _> = pool.run(1, (), || panic!("a damaged merge table")).await;
            assert_eq!(lost, Err(PoolError::Panicked));
            assert_eq!(pool.run(1, (), || 7).await, Ok(7));
        });
    }

    #[test]
    fn a_full_queue_refuses_and_the_departed_are_skipped() {
        let pool = TextPool::new(1, 1).unwrap();
        let (ran, room) = (Arc::new(AtomicUsize::new(0)), Arc::new(()));
        let (started, has_started) = sync_channel(1);
        let (release, released) = sync_channel::<()>(1);
        block_on(async {
            let first = pool.run(1, (), move || {
                started.send(()).unwrap();
                released.recv().unwrap();
            });
            let count = Arc::clone(&ran);
            let work = move || count.fetch_add(1, Ordering::SeqCst);
            let mut second = Box::pin(pool.run(1, Arc::clone(&room), work));
            let mut first = Box::pin(first);
            // One running, one waiting: each future submits when it is first polled.
            assert!(is_pending(&mut first));
            has_started.recv().unwrap();
            assert!(is_pending(&mut second));
            assert_eq!(pool.run(1, (), || ()).await, Err(PoolError::Busy { queued: 1 }));

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
            assert_eq!(pool.run(1, (), || 1).await, Ok(1));
        });
        assert_eq!(ran.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn long_texts_go_one_at_a_time_and_hold_up_no_short_one() {
        let pool = TextPool::new(1, 16).unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let (started, has_started) = sync_channel(1);
        let (release, released) = sync_channel::<()>(1);
        let log = |name: &'static str| {
            let order = Arc::clone(&order);
            move || order.lock().unwrap().push(name)
        };
        block_on(async {
            let mut first = Box::pin(pool.run(SHORT_TEXT_BYTES + 1, (), move || {
                started.send(()).unwrap();
                released.recv().unwrap();
            }));
            assert!(is_pending(&mut first));
            has_started.recv().unwrap();
            let mut large = Box::pin(pool.run(4 * SHORT_TEXT_BYTES, (), log("large")));
            let mut same = Box::pin(pool.run(4 * SHORT_TEXT_BYTES, (), log("same")));
            let mut small = Box::pin(pool.run(SHORT_TEXT_BYTES + 2, (), log("small")));
            let mut late = Box::pin(pool.run(SHORT_TEXT_BYTES + 1, (), log("late")));
            assert!(is_pending(&mut large) && is_pending(&mut same));
            assert!(is_pending(&mut small) && is_pending(&mut late));
            assert_eq!(pool.run(SHORT_TEXT_BYTES, (), log("short")).await, Ok(()));
            assert_eq!(*order.lock().unwrap(), ["short"], "a long text runs, and none beside it");
            release.send(()).unwrap();
            let done = tokio::join!(first, large, same, small, late);
            assert_eq!(done, (Ok(()), Ok(()), Ok(()), Ok(()), Ok(())));
        });
        let order = order.lock().unwrap();
        assert_eq!(*order, ["short", "small", "large", "late", "same"], "few overtake a long text");
    }

    #[test]
    fn a_pool_that_is_dropped_does_what_waits() {
        let pool = TextPool::new(1, 4).unwrap();
        let (started, has_started) = sync_channel(1);
        let (release, released) = sync_channel::<()>(1);
        let (queues, done) = ([pool.short.clone(), pool.long.clone()], Arc::new(()));
        let mut first = Box::pin(async move {
            let work = move || {
                started.send(()).unwrap();
                released.recv().unwrap();
            };
            tokio::join!(pool.run(1, (), work), pool.run(1, (), || ()))
        });
        assert!(is_pending(&mut first));
        has_started.recv().unwrap();
        let work = Arc::clone(&done);
        queues[0].push(1, Box::new(move || drop(work))).unwrap();
        drop(first);
        release.send(()).unwrap();
        for _ in 0..5000 {
            if Arc::strong_count(&done) > 1 || queues.iter().any(|q| Arc::strong_count(q) > 1) {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
        assert_eq!(Arc::strong_count(&done), 1, "the job was done");
        assert!(queues.iter().all(|queue| Arc::strong_count(queue) == 1), "the threads have ended");
    }
}
