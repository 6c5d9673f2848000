//! From a completion to the payloads that it hands back.

use std::hint::cold_path;

use super::completion::{Completion, Queue, WorkCompletion};
use super::ring::Ring;
use super::status::CompletionError;

/// Where the work requests of a queue are numbered from. The starts of all queues that a process makes
/// lie as far apart as they can, however many there are (multiples of the golden ratio, see Knuth, The
/// Art of Computer Programming, volume 3, section 6.4), so a completion of one is not taken for one of
/// another. Sends and receives are told apart by bit 62, which no number of years carries into; bit 63
/// is that of [`super::table`].
pub(super) fn first_number(epoch: u64, queue: Queue) -> u64 {
    let bit = match queue {
        Queue::Send => 0,
        Queue::Receive => 1 << 62,
    };
    (epoch.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 3) | bit
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
    payloads: Payloads<'q, S>,
}

/// The payloads of completed sends that are not taken yet.
struct Payloads<'q, S> {
    ring: &'q mut Ring<S>,
    /// Work requests that are done and still in the ring.
    left: u64,
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
    #[inline(always)]
    pub fn outcome(&self) -> &Result<Completion, CompletionError> {
        &self.outcome
    }

    /// The next payload, as the iterator gives it, and how its last work request went. What a read or an
    /// atomic should have brought into it is there only if that is `Ok`.
    ///
    /// A completion tells of one work request; those before it that asked for none are done with it, and
    /// have succeeded unless one failed earlier (InfiniBand Architecture Specification, volume 1, section
    /// 10.8.6). So in what a failure hands back, the payloads before the last may well be good.
    pub fn next_outcome(&mut self) -> Option<(S, Result<(), CompletionError>)> {
        let payload = self.payloads.next()?;
        let outcome = if self.payloads.left == 0 {
            self.outcome.map(drop)
        } else {
            self.payloads.ring.unsignaled_outcome()
        };
        Some((payload, outcome))
    }

    /// Work requests that are done with this completion and not yet taken, those without payload too.
    pub fn work_requests(&self) -> u32 {
        self.payloads.left as u32
    }
}

impl<S> Payloads<'_, S> {
    #[inline(always)]
    fn next(&mut self) -> Option<S> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        // SAFETY: `left` work requests were outstanding, and nobody else takes any meanwhile.
        match unsafe { self.ring.pop_unchecked() } {
            Some(payload) => Some(payload),
            None => {
                cold_path();
                let payload;
                (payload, self.left) = skip(self.ring, self.left);
                payload
            }
        }
    }
}

/// Past the work requests of a payload that its last one holds. Apart, so that the loop over payloads
/// that have one each has none inside.
#[inline(never)]
fn skip<S>(ring: &mut Ring<S>, mut left: u64) -> (Option<S>, u64) {
    let mut payload = None;
    while left > 0 && payload.is_none() {
        left -= 1;
        // SAFETY: as above.
        payload = unsafe { ring.pop_unchecked() };
    }
    (payload, left)
}

impl<S> Iterator for Sent<'_, S> {
    type Item = S;

    #[inline(always)]
    fn next(&mut self) -> Option<S> {
        self.payloads.next()
    }
}

impl<S> Drop for Payloads<'_, S> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.left > 0 {
            drop_oldest(self.ring, self.left);
        }
    }
}

/// Apart, so that a loop over payloads needs none of this in reach.
#[inline(never)]
fn drop_oldest<S>(ring: &mut Ring<S>, left: u64) {
    let mut payloads = std::mem::ManuallyDrop::new(Payloads { ring, left });
    while let Some(payload) = payloads.next() {
        drop(payload);
    }
}

/// The sends that a completion is about; `None` when it is of no outstanding one.
#[inline(always)]
pub(super) fn settle_sends<'q, S>(
    done: &WorkCompletion,
    sends: &'q mut Ring<S>,
) -> Option<Sent<'q, S>> {
    let left = sends.done_with(done.id());
    if left == 0 {
        return None;
    }
    let outcome = done.outcome(Queue::Send);
    if let Err(error) = outcome {
        cold_path();
        sends.note_failure(done.id(), error);
    }
    Some(Sent {
        outcome,
        payloads: Payloads { ring: sends, left },
    })
}

#[inline(always)]
pub(super) fn settle<'q, S, R>(
    done: &WorkCompletion,
    sends: &'q mut Ring<S>,
    receives: &mut Ring<R>,
) -> Settled<'q, S, R> {
    if let Some(sent) = settle_sends(done, sends) {
        return Settled::Sent(sent);
    }
    // Earlier ones are left only when their completions were thrown away unsettled.
    let mut newest = None;
    for _ in 0..receives.done_with(done.id()) {
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
