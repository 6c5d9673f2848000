//! From a completion queue's descriptor to settled work, for both ends of a link.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use crate::shard::{Ring, Socket};
use crate::verbs::{
    Completion, CompletionError, CompletionQueue, QueuePair, Received, Sent, Settled, Sink, Source,
    Status, VerbsError,
};

/// A connected queue pair with its completion queue, used by several futures of one task.
pub(super) struct Connection<S: Source, R: Sink> {
    /// Dropped before what the peer may write into or the adapter read from: see the drivers.
    pub(super) queue_pair: RefCell<QueuePair<S, R>>,
    queue: RefCell<CompletionQueue>,
    descriptor: Socket,
    /// Filled when the send queue has gained room.
    room: (async_channel::Sender<()>, async_channel::Receiver<()>),
}

/// What to do with settled work. An error ends the link with its reason.
pub(super) trait Settle<S, R> {
    /// Why a link ends.
    type End: From<VerbsError> + From<CompletionError>;

    /// Sends are done: one payload for each that was signalled.
    fn sent(&self, sent: Sent<'_, S>);

    /// A receive is done. Returns the payload to post again.
    fn received(&self, payload: R, completion: Completion) -> Result<R, Self::End>;

    /// Posts a receive.
    fn post_again(&self, queue_pair: &mut QueuePair<S, R>, payload: R) -> Result<(), Self::End>
    where
        S: Source,
        R: Sink;
}

impl<S: Source, R: Sink> Connection<S, R> {
    pub(super) fn new(
        queue_pair: QueuePair<S, R>,
        queue: CompletionQueue,
    ) -> Result<Connection<S, R>, io::Error> {
        let descriptor = queue
            .event_fd()
            .ok_or_else(|| io::Error::other("the completion queue has no descriptor"))?
            .try_clone_to_owned()?;
        Ok(Connection {
            queue_pair: RefCell::new(queue_pair),
            queue: RefCell::new(queue),
            descriptor: Arc::new(descriptor),
            room: async_channel::bounded(1),
        })
    }

    /// Waits until that many work requests can be posted.
    pub(super) async fn room_for(&self, work_requests: u32) {
        while self.queue_pair.borrow().send_room() < work_requests {
            // Can't fail: the other end is in this value.
            let _ = self.room.1.recv().await;
        }
    }

    /// Settles work as it completes, until something ends the link.
    pub(super) async fn settle_all<T: Settle<S, R>>(&self, ring: &Rc<Ring>, settle: &T) -> T::End {
        loop {
            // Armed before the poll: what comes after the poll's last look makes the descriptor
            // readable.
            if let Err(error) = self.queue.borrow_mut().request_notification() {
                return error.into();
            }
            if let Err(end) = self.settle_due(settle) {
                return end;
            }
            if let Err(error) = ring.readable(&self.descriptor).await {
                tracing::warn!(%error, "waiting for completions failed");
            }
            if let Err(error) = self.queue.borrow_mut().drain_events() {
                return error.into();
            }
        }
    }

    /// Settles what is complete now.
    fn settle_due<T: Settle<S, R>>(&self, settle: &T) -> Result<(), T::End> {
        let mut failure: Option<CompletionError> = None;
        while let Some(done) = self.queue.borrow_mut().poll()? {
            let mut queue_pair = self.queue_pair.borrow_mut();
            let mut again = None;
            let outcome = match queue_pair.settle(done) {
                Settled::Sent(sent) => {
                    let outcome = sent.outcome().map(|_| ());
                    settle.sent(sent);
                    // Full means that somebody is about to look already.
                    let _ = self.room.0.try_send(());
                    outcome
                }
                Settled::Received(Received { payload, outcome }) => {
                    outcome.map(|completion| again = Some((payload, completion)))
                }
                Settled::Stale => Ok(()),
            };
            if let Some((payload, completion)) = again {
                let payload = settle.received(payload, completion)?;
                settle.post_again(&mut queue_pair, payload)?;
            }
            // Flushes say only that there was something else.
            if let Err(error) = outcome
                && failure
                    .as_ref()
                    .is_none_or(|first| first.status == Status::Flushed)
            {
                failure = Some(error);
            }
        }
        failure.map_or(Ok(()), |error| Err(error.into()))
    }
}
