//! From a completion to the payloads that it hands back.

use super::completion::{Completion, Queue, WorkCompletion};
use super::ring::Ring;
use super::status::CompletionError;

/// What work request identifiers hold above the sequence number: which queue pair of this process, and
/// which of its queues. A completion with another tag is of something that is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tag(u64);

impl Tag {
    /// `epoch` numbers the queue pairs that were ever made.
    pub(super) fn new(epoch: u32, queue: Queue) -> Tag {
        let bit = match queue {
            Queue::Send => 0,
            Queue::Receive => 1 << 32,
        };
        // The highest bit is for identifiers of tables.
        Tag(u64::from(epoch & 0x3fff_ffff) << 33 | bit)
    }

    /// The identifier of a work request.
    #[inline]
    pub(super) fn id(self, sequence: u32) -> u64 {
        self.0 | u64::from(sequence)
    }

    /// The sequence number in an identifier, if it has this tag.
    #[inline]
    fn sequence(self, id: u64) -> Option<u32> {
        ((id ^ self.0) >> 32 == 0).then_some(id as u32)
    }
}

/// What a completion was about.
#[must_use = "it hands buffers back and says whether the transfer succeeded"]
pub enum Settled<'q, S, R> {
    /// A send, write or read, and all posted before it.
    Sent(Sent<'q, S>),
    /// A receive.
    Received(Received<R>),
    /// Nothing of this queue pair: of one that is gone, or settled before.
    Stale,
}

/// Completed sends: an iterator over their payloads, oldest first. Those not taken are dropped.
pub struct Sent<'q, S> {
    outcome: Result<Completion, CompletionError>,
    ring: &'q mut Ring<S>,
    /// Work requests that are done and still in the ring.
    left: u32,
}

/// A completed receive.
#[derive(Debug)]
pub struct Received<R> {
    /// The payload it was posted with.
    pub payload: R,
    /// How it went. After an error the payload's bytes are of no use.
    pub outcome: Result<Completion, CompletionError>,
}

impl<S> Sent<'_, S> {
    /// How the last of them went; those before it succeeded, unless their own completion said otherwise.
    pub fn outcome(&self) -> &Result<Completion, CompletionError> {
        &self.outcome
    }

    /// Work requests that are done with this completion and not yet taken, those without payload too.
    pub fn work_requests(&self) -> u32 {
        self.left
    }
}

impl<S> Iterator for Sent<'_, S> {
    type Item = S;

    #[inline]
    fn next(&mut self) -> Option<S> {
        while self.left > 0 {
            self.left -= 1;
            // SAFETY: `left` work requests were outstanding, and nobody else takes any meanwhile.
            if let Some(payload) = unsafe { self.ring.pop_unchecked() } {
                return Some(payload);
            }
        }
        None
    }
}

impl<S> Drop for Sent<'_, S> {
    #[inline]
    fn drop(&mut self) {
        for payload in self.by_ref() {
            drop(payload);
        }
    }
}

#[inline]
pub(super) fn settle<'q, S, R>(
    done: &WorkCompletion,
    (send, receive): (Tag, Tag),
    sends: &'q mut Ring<S>,
    receives: &mut Ring<R>,
) -> Settled<'q, S, R> {
    if let Some(sequence) = send.sequence(done.id()) {
        let left = sends.done_with(sequence);
        if left == 0 {
            return Settled::Stale;
        }
        return Settled::Sent(Sent {
            outcome: done.outcome(Queue::Send),
            ring: sends,
            left,
        });
    }
    let Some(sequence) = receive.sequence(done.id()) else {
        return Settled::Stale;
    };
    // Earlier ones are left only when their completions were thrown away unsettled.
    let mut newest = None;
    for _ in 0..receives.done_with(sequence) {
        // SAFETY: so many are outstanding.
        newest = unsafe { receives.pop_unchecked() };
    }
    match newest {
        Some(payload) => Settled::Received(Received {
            payload,
            outcome: done.outcome(Queue::Receive),
        }),
        None => Settled::Stale,
    }
}
