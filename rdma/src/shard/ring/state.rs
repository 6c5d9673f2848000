//! What a ring keeps beside its queues, and how entries and results move between the two.

use std::collections::VecDeque;
use std::rc::Rc;

use io_uring::{SubmissionQueue, squeue};

use super::owner::Owner;
use super::queues::Queues;
use super::{Event, Operation};
use crate::shard::buffers::Buffers;
use crate::shard::files::Files;
use crate::shard::reads::{Queue, Stream};
use crate::shard::table::{Key, Table};

/// What the ring keeps.
pub(super) struct State {
    pub(super) operations: Table<Operation>,
    pub(super) streams: Table<Rc<Stream>>,
    /// Streams that have reads for the kernel.
    pub(super) announced: Vec<Key>,
    /// Entries that found the submission queue full or in somebody's hand, in order.
    pub(super) backlog: VecDeque<squeue::Entry>,
    pub(super) buffers: Buffers,
    pub(super) files: Files,
}

impl State {
    /// Queues an entry for the kernel and keeps what it refers to.
    ///
    /// # Safety
    /// `operation` must own all that `entry` refers to, at addresses that don't change as it moves.
    pub(super) unsafe fn push(
        &mut self,
        queues: &Queues,
        entry: squeue::Entry,
        operation: Operation,
    ) -> Key {
        let key = self.operations.insert(operation);
        // SAFETY: the caller's promise; the operation stays in the table until the completion.
        unsafe { self.queue(queues, entry.user_data(key.to_bits())) };
        key
    }

    /// Queues an entry whose operation is in the table.
    ///
    /// # Safety
    /// The operation must own all that `entry` refers to, until the completion.
    #[inline]
    unsafe fn queue(&mut self, queues: &Queues, entry: squeue::Entry) {
        if self.backlog.is_empty()
            && let Some(mut submission) = queues.submission()
            // SAFETY: the caller's promise.
            && unsafe { submission.push(&entry) }.is_ok()
        {
            return;
        }
        self.backlog.push_back(entry);
        self.flush_backlog(queues);
    }

    /// Queues the reads that were pushed to streams since the last time.
    pub(super) fn hand_over_reads(&mut self, queues: &Queues) {
        let Some(mut submission) = queues.submission() else {
            return;
        };
        for key in self.announced.drain(..) {
            // A stream that was closed meanwhile has taken its reads back.
            let Some(stream) = self.streams.get_mut(key) else {
                continue;
            };
            let mut queue = ReadQueue {
                submission: &mut submission,
                backlog: &mut self.backlog,
                bits: Owner::stream_bits(key),
            };
            stream.hand_over(&self.buffers, &mut queue);
        }
    }

    /// Looks through the completion queue. Reads of streams are done with at once, being many.
    pub(super) fn take_in(&mut self, queues: &Queues, events: &mut Vec<Event>) {
        let Some(mut completion) = queues.completion() else {
            return;
        };
        let mut next = queues.set_aside.take().or_else(|| completion.next());
        while let Some(entry) = next {
            let (bits, result) = (entry.user_data(), entry.result());
            let key = match Owner::from_bits(bits) {
                Owner::Stream(key) => key,
                Owner::Operation(key) => {
                    events.push(Event::Completed(key, result));
                    next = completion.next();
                    continue;
                }
            };
            let Some(stream) = self.streams.get(key) else {
                tracing::error!(?key, result, "a completion belongs to no stream");
                next = completion.next();
                continue;
            };
            let dropped = |span| events.push(Event::Dropped(key, span));
            let (other, waker) = stream.take_in(&entry, &mut completion, dropped);
            events.extend(waker.map(Event::Wake));
            next = other;
        }
    }

    /// Takes a stream out if it is over, and its file with it: not before, as an entry that waits for
    /// room would find another file in that place.
    pub(super) fn close(&mut self, queues: &Queues, stream: Key) -> Option<Rc<Stream>> {
        if !self.streams.get_mut(stream)?.is_over() {
            return None;
        }
        let stream = self.streams.remove(stream)?;
        if let Some(place) = stream.registered() {
            self.files.unregister(queues.uring(), place);
        }
        Some(stream)
    }

    /// Operations that the kernel has, or will be told of.
    pub(super) fn in_flight(&self) -> usize {
        let reads: usize = self.streams.iter().map(|stream| stream.under_way()).sum();
        self.operations.len() + reads
    }

    /// Moves entries to the submission queue, making room once by handing it to the kernel.
    pub(super) fn flush_backlog(&mut self, queues: &Queues) {
        for tries_left in [1, 0] {
            let Some(mut submission) = queues.submission() else {
                return;
            };
            while let Some(entry) = self.backlog.front() {
                // SAFETY: what the entry refers to is owned by its operation in the table, which stays
                // there until the completion.
                if unsafe { submission.push(entry) }.is_err() {
                    break;
                }
                self.backlog.pop_front();
            }
            drop(submission);
            // The loop tries again after it has made room by reaping completions.
            if self.backlog.is_empty() || tries_left == 0 || queues.uring().submit().is_err() {
                return;
            }
        }
    }
}

/// Where the reads of a stream go.
struct ReadQueue<'r, 'q> {
    submission: &'r mut SubmissionQueue<'q>,
    backlog: &'r mut VecDeque<squeue::Entry>,
    /// What their user data has in common.
    bits: u64,
}

impl Queue for ReadQueue<'_, '_> {
    fn push(&mut self, entry: squeue::Entry, place: u16) {
        let entry = entry.user_data(self.bits | u64::from(place));
        // SAFETY: the stream keeps what the entry refers to, the lease in its place and the file,
        // until `Stream::take_in` brings its result; and the ring's table keeps the stream until all its
        // places have ended.
        if unsafe { self.submission.push(&entry) }.is_err() {
            self.backlog.push_back(entry);
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let operations = self.in_flight();
        if operations > 0 {
            tracing::error!(
                operations,
                "a ring ended with operations under way: their memory is leaked, as the kernel may still use it"
            );
            self.operations.leak();
            self.streams.leak();
        }
    }
}
