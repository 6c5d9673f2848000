//! Gathers the work requests of one batch.

use std::marker::PhantomData;
use std::mem::ManuallyDrop;

use super::send_queue::{Connected, Destination, SendQueue};
use super::{Fetch, PostError, Rejected, Work};
use crate::verbs::memory::{RemoteAddress, Segment, Sink, Source};

/// Work requests being gathered. Dropping it posts nothing and drops its payloads.
///
/// A batch that is forgotten ([`std::mem::forget`]) posts nothing either; its payloads come back with a
/// later completion. The provider may hold the queue pair's lock meanwhile (pthread spin locks, some do), so a batch stays
/// on its thread:
/// ```compile_fail,E0277
/// # use trackbed_rdma::verbs::*;
/// fn elsewhere(qp: &mut QueuePair<Piece, Piece>) {
///     let batch = qp.batch();
///     std::thread::scope(|scope| { scope.spawn(move || batch.commit().ok()); });
/// }
/// ```
pub struct SendBatch<'q, S: Source> {
    queue: &'q mut SendQueue<S>,
    start: u64,
    _stays_on_its_thread: PhantomData<*mut ()>,
}

impl<'q, S: Source> SendBatch<'q, S> {
    #[inline]
    pub(in crate::verbs) fn new(queue: &'q mut SendQueue<S>) -> SendBatch<'q, S> {
        if queue.batch_open {
            queue.close_forgotten_batch();
        }
        queue.batch_open = true;
        // SAFETY: none is open.
        unsafe { queue.work.start() };
        SendBatch {
            start: queue.ring.next(),
            queue,
            _stays_on_its_thread: PhantomData,
        }
    }

    /// Adds the work requests of one payload, which moves in and comes back when the last is done.
    #[inline(always)]
    pub fn push(&mut self, payload: S, work: &[Work<'_>]) -> Result<(), Rejected<S>> {
        // SAFETY: a connection names nothing else.
        unsafe { self.push_to(payload, Connected, work) }
    }

    /// As [`SendBatch::push`], to a destination.
    ///
    /// # Safety
    /// The destination must be of the queue pair's kind, and what it names live until the work requests
    /// have completed.
    #[inline(always)]
    pub(in crate::verbs) unsafe fn push_to<D: Destination>(
        &mut self,
        payload: S,
        to: D,
        work: &[Work<'_>],
    ) -> Result<(), Rejected<S>> {
        match work {
            // The usual case, taken apart so that nothing of it has to be in memory.
            [request] if request.segments.len() == 1 => {
                let segment = request.segments[0];
                let Work {
                    verb,
                    remote,
                    immediate,
                    ..
                } = *request;
                let flags = request.flags();
                self.queue
                    .push_one::<D, true>(payload, to, verb, remote, immediate, flags, segment)
            }
            work => self.queue.push_any(payload, to, work.iter().copied()),
        }
    }

    /// Adds reads and atomics that bring something into one payload, which moves in and comes back when
    /// the last is done. What they brought is to be relied on when [`Sent::next_outcome`] says that they
    /// succeeded.
    ///
    /// [`Sent::next_outcome`]: crate::verbs::Sent::next_outcome
    #[inline]
    pub fn push_fetch(&mut self, payload: S, fetches: &[Fetch<'_>]) -> Result<(), Rejected<S>>
    where
        S: Sink,
    {
        match fetches {
            // As in `push_to`.
            [fetch] if self.queue.reads_issued > 0 && self.queue.last_range.writable => {
                self.queue.push_fetch(payload, fetch.work())
            }
            fetches => {
                let work = fetches.iter().map(Fetch::work);
                self.queue.push_any(payload, Connected, work)
            }
        }
    }

    /// Adds one signalled [`Fetch::read`].
    pub fn push_read(
        &mut self,
        payload: S,
        remote: RemoteAddress,
        segments: &[Segment],
    ) -> Result<(), Rejected<S>>
    where
        S: Sink,
    {
        self.push_fetch(payload, &[Fetch::read(remote, segments).signaled()])
    }

    /// Adds one signalled [`Fetch::fetch_add`].
    pub fn push_fetch_add(
        &mut self,
        payload: S,
        result_at: u32,
        remote: RemoteAddress,
        add: u64,
    ) -> Result<(), Rejected<S>>
    where
        S: Sink,
    {
        let fetch = Fetch::fetch_add(remote, result_at, add);
        self.push_fetch(payload, &[fetch.signaled()])
    }

    /// Adds one signalled [`Fetch::compare_swap`].
    pub fn push_compare_swap(
        &mut self,
        payload: S,
        result_at: u32,
        remote: RemoteAddress,
        expected: u64,
        new: u64,
    ) -> Result<(), Rejected<S>>
    where
        S: Sink,
    {
        let fetch = Fetch::compare_swap(remote, result_at, expected, new);
        self.push_fetch(payload, &[fetch.signaled()])
    }

    /// The number of the work request added last.
    pub(in crate::verbs) fn last_number(&self) -> u64 {
        self.queue.ring.next().wrapping_sub(1)
    }

    /// Work requests in the batch.
    #[inline]
    pub fn len(&self) -> usize {
        self.queue.ring.next().wrapping_sub(self.start) as usize
    }

    /// Whether it has none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Posts the batch with one doorbell; how many work requests that were.
    #[inline(always)]
    pub fn commit(self) -> Result<usize, PostError<S>> {
        let count = self.len();
        if count == 0 {
            return Ok(0);
        }
        let mut batch = ManuallyDrop::new(self);
        batch.queue.batch_open = false;
        // SAFETY: the batch is open; its segments lie in attached regions, which the queue pair keeps
        // registered, and in payloads that the ring owns until they complete.
        let code = unsafe { batch.queue.work.complete() };
        if code == 0 {
            return Ok(count);
        }
        let start = batch.start;
        Err(batch.queue.refused(code, start))
    }
}

impl<S: Source> Drop for SendBatch<'_, S> {
    #[inline(always)]
    fn drop(&mut self) {
        self.queue.abandon(self.start);
    }
}
