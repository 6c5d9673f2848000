//! From a completion to the payloads that it hands back.

use super::completion::{Completion, Queue, WorkCompletion};
use super::ring::{Ring, SEQUENCE_MASK};
use super::status::CompletionError;

/// Where work request identifiers hold what: the queue pair's epoch above, then which queue, then the
/// sequence number.
const RECEIVE_BIT: u64 = 1 << 31;

#[inline]
pub(super) fn work_request_id(epoch: u32, queue: Queue, sequence: u32) -> u64 {
    let bit = match queue {
        Queue::Send => 0,
        Queue::Receive => RECEIVE_BIT,
    };
    u64::from(epoch) << 32 | bit | u64::from(sequence & SEQUENCE_MASK)
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
    last: u32,
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
        if !self.ring.holds(self.last) {
            return 0;
        }
        self.last.wrapping_sub(self.ring.oldest()).wrapping_add(1) & SEQUENCE_MASK
    }
}

impl<S> Iterator for Sent<'_, S> {
    type Item = S;

    #[inline]
    fn next(&mut self) -> Option<S> {
        loop {
            if let Some(payload) = self.ring.pop_through(self.last)? {
                return Some(payload);
            }
        }
    }
}

impl<S> Drop for Sent<'_, S> {
    fn drop(&mut self) {
        for payload in self.by_ref() {
            drop(payload);
        }
    }
}

#[inline]
pub(super) fn settle<'q, S, R>(
    done: &WorkCompletion,
    epoch: u32,
    sends: &'q mut Ring<S>,
    receives: &mut Ring<R>,
) -> Settled<'q, S, R> {
    let id = done.id();
    if (id >> 32) as u32 != epoch {
        return Settled::Stale;
    }
    let sequence = id as u32 & SEQUENCE_MASK;
    if id & RECEIVE_BIT == 0 {
        if !sends.holds(sequence) {
            return Settled::Stale;
        }
        let outcome = done.outcome(Queue::Send);
        return Settled::Sent(Sent {
            outcome,
            ring: sends,
            last: sequence,
        });
    }
    // Earlier ones are left only when their completions were thrown away unsettled.
    let mut newest = None;
    while let Some(payload) = receives.pop_through(sequence) {
        newest = payload;
    }
    match newest {
        Some(payload) => Settled::Received(Received {
            payload,
            outcome: done.outcome(Queue::Receive),
        }),
        None => Settled::Stale,
    }
}
