//! Awaiting completions and events on any executor that can watch a descriptor, without a thread.
//!
//! What tells that a descriptor is readable differs from one executor to the next; [`Readiness`] is all
//! that is asked of it. [`Completions`] owns the order that loses no wake-up: ask for a notification,
//! look again, only then sleep, and take all notifications before asking for the next.
//!
//! With tokio, where `fd` is a duplicate of [`CompletionQueue::event_fd`]:
//! ```text
//! struct Watched(tokio::io::unix::AsyncFd<OwnedFd>);
//! impl Readiness for Watched {
//!     fn poll_readable(&mut self, task: &mut task::Context<'_>) -> Poll<io::Result<()>> {
//!         // Cleared before the notifications are taken: one that comes in between sets it again.
//!         self.0.poll_read_ready(task).map_ok(|mut ready| ready.clear_ready())
//!     }
//! }
//! let mut completions = Completions::new(queue, Watched(AsyncFd::new(fd)?));
//! while let Some(done) = completions.next().await { … }
//! ```
//! On a shard: `Watch::new(move || shard::readable(Arc::clone(&fd)))`.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll, ready};

use futures::Stream;

use super::completion::{CompletionQueue, WorkCompletion};
use super::context::Context;
use super::error::VerbsError;
use super::event::AsyncEvent;

/// Watches one descriptor.
pub trait Readiness {
    /// Ready when the descriptor is, or may be, readable; else the task is woken when it becomes so.
    /// After each time it was ready the descriptor is read to its end, so it may be level-triggered or
    /// edge-triggered; being ready too often does no harm.
    fn poll_readable(&mut self, task: &mut task::Context<'_>) -> Poll<io::Result<()>>;
}

/// Watches a descriptor with futures that each end when it is readable.
pub struct Watch<F, W> {
    begin: F,
    // One box for the life of the watch: a sleep allocates nothing.
    waiting: Pin<Box<Option<W>>>,
}

impl<F, W> Watch<F, W>
where
    F: FnMut() -> W,
    W: Future<Output = io::Result<()>>,
{
    /// `begin` starts one such future; it is called each time there is something to wait for.
    pub fn new(begin: F) -> Watch<F, W> {
        Watch {
            begin,
            waiting: Box::pin(None),
        }
    }
}

impl<F, W> Readiness for Watch<F, W>
where
    F: FnMut() -> W,
    W: Future<Output = io::Result<()>>,
{
    fn poll_readable(&mut self, task: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        if self.waiting.is_none() {
            let begun = (self.begin)();
            self.waiting.set(Some(begun));
        }
        let outcome = match self.waiting.as_mut().as_pin_mut() {
            Some(waiting) => ready!(waiting.poll(task)),
            None => Ok(()),
        };
        self.waiting.set(None);
        Poll::Ready(outcome)
    }
}

/// The completions of a queue as they arrive: a stream that never ends of itself, one error apart.
/// Dropping a future that waits for the next one loses nothing.
pub struct Completions<W> {
    queue: CompletionQueue,
    readiness: W,
    failed: bool,
}

impl<W: Readiness> Completions<W> {
    /// `readiness` watches the queue's [`CompletionQueue::event_fd`]; the queue must have one.
    pub fn new(queue: CompletionQueue, readiness: W) -> Completions<W> {
        Completions {
            queue,
            readiness,
            failed: false,
        }
    }

    /// The queue, to make queue pairs on or to poll without waiting.
    pub fn queue(&mut self) -> &mut CompletionQueue {
        &mut self.queue
    }

    /// The queue, no longer watched.
    pub fn into_queue(self) -> CompletionQueue {
        self.queue
    }

    /// The next completion, when there is one.
    pub fn poll_completion(
        &mut self,
        task: &mut task::Context<'_>,
    ) -> Poll<Result<WorkCompletion, VerbsError>> {
        loop {
            if let Some(done) = self.queue.poll()? {
                return Poll::Ready(Ok(done));
            }
            if self.queue.arm()? {
                // What arrived before this request causes no notification: look again.
                continue;
            }
            ready!(self.readiness.poll_readable(task)).map_err(|source| VerbsError::Call {
                verb: "waiting for completions",
                object: self.queue.context().name().to_owned(),
                source,
            })?;
            self.queue.drain_events()?;
        }
    }

    /// Waits for the next completion.
    pub async fn completion(&mut self) -> Result<WorkCompletion, VerbsError> {
        std::future::poll_fn(|task| self.poll_completion(task)).await
    }
}

impl<W: Readiness + Unpin> Stream for Completions<W> {
    type Item = Result<WorkCompletion, VerbsError>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        task: &mut task::Context<'_>,
    ) -> Poll<Option<Self::Item>> {
        if self.failed {
            return Poll::Ready(None);
        }
        let outcome = ready!(self.poll_completion(task));
        self.failed = outcome.is_err();
        Poll::Ready(Some(outcome))
    }
}

/// The asynchronous events of a device as they happen.
pub struct Events<W> {
    context: Arc<Context>,
    readiness: W,
}

impl<W: Readiness> Events<W> {
    /// `readiness` watches the context's [`Context::async_fd`].
    pub fn new(context: Arc<Context>, readiness: W) -> Events<W> {
        Events { context, readiness }
    }

    /// The next event, when there is one.
    pub fn poll_event(
        &mut self,
        task: &mut task::Context<'_>,
    ) -> Poll<Result<AsyncEvent, VerbsError>> {
        loop {
            if let Some(event) = self.context.next_event()? {
                return Poll::Ready(Ok(event));
            }
            ready!(self.readiness.poll_readable(task)).map_err(|source| VerbsError::Call {
                verb: "waiting for events",
                object: self.context.name().to_owned(),
                source,
            })?;
        }
    }

    /// Waits for the next event.
    pub async fn event(&mut self) -> Result<AsyncEvent, VerbsError> {
        std::future::poll_fn(|task| self.poll_event(task)).await
    }
}
