//! Content that is dropped when nobody takes it: what an answer holds is freed although its
//! connection lives.
//!
//! A socket's deadline sees only bytes that wait in it. A reader of HTTP/2 that opens no window
//! leaves none there: its answer is just not asked for the next frame. The time runs while there is
//! something to take, from the moment in which the answer is there, a frame was taken, or what the
//! answer waits for has come; not while the answer itself has to wait.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use atomic_waker::AtomicWaker;
use tokio::task::AbortHandle;

/// Content behind a deadline.
pub(crate) struct Untaken<T> {
    shared: Arc<Shared<T>>,
    watch: AbortHandle,
}

struct Shared<T> {
    /// `None` once it was dropped.
    content: Mutex<Option<T>>,
    clock: Arc<Clock>,
}

/// Since when there is something to take. Without a lock: what an answer waits for may wake it from a
/// thread that must not wait.
struct Clock {
    began: Instant,
    /// Milliseconds after `began`, or [`NOTHING`].
    since_ms: AtomicU64,
    reader: AtomicWaker,
}

const NOTHING: u64 = u64::MAX;

impl<T: Send + 'static> Untaken<T> {
    /// Drops `content` once nothing of it is taken for `timeout`.
    pub(crate) fn new(content: T, timeout: Duration) -> Self {
        let clock = Arc::new(Clock {
            began: Instant::now(),
            since_ms: AtomicU64::new(0),
            reader: AtomicWaker::new(),
        });
        let shared = Arc::new(Shared { content: Mutex::new(Some(content)), clock });
        let watch = tokio::spawn(watch(Arc::downgrade(&shared), timeout)).abort_handle();
        Untaken { shared, watch }
    }

    /// Takes of the content; `None` if it was dropped.
    pub(crate) fn poll<R>(
        &self,
        cx: &mut Context<'_>,
        take: impl FnOnce(&mut T, &mut Context<'_>) -> Poll<R>,
    ) -> Poll<Option<R>> {
        let clock = &self.shared.clock;
        clock.reader.register(cx.waker());
        let mut content = self.shared.lock();
        let Some(content) = content.as_mut() else { return Poll::Ready(None) };
        clock.since_ms.store(NOTHING, Relaxed);
        let taken = take(content, &mut Context::from_waker(&Waker::from(clock.clone())));
        if taken.is_ready() {
            clock.start();
        }
        taken.map(Some)
    }

    /// Looks at the content, unless it was dropped.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&T) -> R) -> Option<R> {
        self.shared.lock().as_ref().map(look)
    }
}

impl<T> Drop for Untaken<T> {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Option<T>> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock {
    fn start(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(NOTHING - 1);
        // Only what waits for nothing else starts anew: the first sign counts.
        let _ = self.since_ms.compare_exchange(NOTHING, now, Relaxed, Relaxed);
    }

    /// How long there has been something to take.
    fn waited(&self) -> Option<Duration> {
        match self.since_ms.load(Relaxed) {
            NOTHING => None,
            since => Some(self.began.elapsed().saturating_sub(Duration::from_millis(since))),
        }
    }
}

/// What the content waits for has come.
impl Wake for Clock {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.start();
        self.reader.wake();
    }
}

/// Looks when the time could be over, no oftener.
async fn watch<T: Send>(shared: Weak<Shared<T>>, timeout: Duration) {
    loop {
        let left = {
            let Some(shared) = shared.upgrade() else { return };
            let waited = shared.clock.waited().unwrap_or_default();
            if waited >= timeout {
                let content = shared.lock().take();
                drop(content);
                tracing::debug!("an answer was dropped that nobody took");
                // Whoever asks for more is told.
                shared.clock.reader.wake();
                return;
            }
            timeout - waited
        };
        tokio::time::sleep(left).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn time_runs_only_while_there_is_something_to_take() {
        let untaken = Untaken::new(7, NEVER);
        let clock = untaken.shared.clock.clone();
        assert!(clock.waited().is_some(), "nobody has asked yet");
        let mut context = Context::from_waker(Waker::noop());
        let mut waker = None;
        let waits = untaken.poll(&mut context, |_, context| {
            waker = Some(context.waker().clone());
            Poll::<()>::Pending
        });
        assert!(waits.is_pending() && clock.waited().is_none());
        waker.unwrap().wake();
        assert!(clock.waited().is_some(), "what it waited for has come");
        let taken = untaken.poll(&mut context, |content, _| Poll::Ready(*content));
        assert_eq!(taken, Poll::Ready(Some(7)));
        assert!(clock.waited().is_some(), "there may be more");
        let woken_meanwhile = untaken.poll(&mut context, |_, context| {
            context.waker().wake_by_ref();
            Poll::<()>::Pending
        });
        assert!(woken_meanwhile.is_pending() && clock.waited().is_some());
    }

    #[tokio::test]
    async fn what_nobody_takes_is_dropped_although_its_owner_lives() {
        let content = Arc::new(());
        let untaken = Untaken::new(content.clone(), Duration::from_millis(1));
        while Arc::strong_count(&content) > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(untaken.look(|_| ()).is_none());
        let mut context = Context::from_waker(Waker::noop());
        let asked = untaken.poll(&mut context, |_, _| Poll::Ready(()));
        assert_eq!(asked, Poll::Ready(None));
    }

    #[tokio::test]
    async fn what_has_to_wait_itself_is_kept() {
        let untaken = Untaken::new((), Duration::from_millis(1));
        let mut context = Context::from_waker(Waker::noop());
        assert!(untaken.poll(&mut context, |_, _| Poll::<()>::Pending).is_pending());
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(untaken.look(|_| ()).is_some());
    }
}
