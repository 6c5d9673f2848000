//! Both queues in the hand of one stream, while it looks through its results.

use io_uring::{CompletionQueue, SubmissionQueue, squeue};

use super::Ring;
use super::queues::{InHand, Queues};
use crate::shard::reads::STREAM_BITS;

/// Both queues of the ring in the hand of one stream, see [`Ring::exchange`].
pub(in crate::shard) struct Exchange<'r> {
    completion: InHand<'r, CompletionQueue<'r>>,
    submission: InHand<'r, SubmissionQueue<'r>>,
    queues: &'r Queues,
    /// The next completion is not the stream's.
    others_first: bool,
    /// What the user data of the stream's operations have in common.
    bits: u64,
}

impl Ring {
    /// Both queues, for one that looks through the results of the stream with these bits; none while
    /// another one does so. Until it is dropped, [`Ring::turn`] does nothing.
    pub(in crate::shard) fn exchange(&self, bits: u64) -> Option<Exchange<'_>> {
        let completion = self.queues.completion()?;
        let submission = self.queues.submission()?;
        Some(Exchange {
            others_first: self.queues.has_set_aside(),
            completion,
            submission,
            queues: &self.queues,
            bits,
        })
    }

    /// The edition of the buffers, see [`Buffers::edition`]. As long as an [`Exchange`] lasts, what
    /// stood in the table before stays there.
    pub(in crate::shard) fn edition(&self) -> u64 {
        self.state.borrow().buffers.edition()
    }
}

impl Exchange<'_> {
    /// The place and the result of the next completion, as long as that is the stream's.
    #[inline]
    pub(in crate::shard) fn next_completed(&mut self) -> Option<(u16, i32)> {
        if self.others_first {
            return None;
        }
        let entry = self.completion.next()?;
        if entry.user_data() & STREAM_BITS != self.bits {
            self.others_first = true;
            self.queues.set_aside.set(Some(entry));
            return None;
        }
        Some((entry.user_data() as u16, entry.result()))
    }

    /// Queues the operation of a place; false if there is no room.
    ///
    /// # Safety
    /// The stream must own what `entry` refers to until its result was taken.
    #[inline(always)]
    pub(in crate::shard) unsafe fn push(&mut self, entry: squeue::Entry, place: u16) -> bool {
        let entry = entry.user_data(self.bits | u64::from(place));
        // SAFETY: the caller's promise; the ring's table keeps the stream until all its places have
        // ended.
        unsafe { self.submission.push(&entry) }.is_ok()
    }
}
