//! The payloads of one queue's outstanding work requests, in posting order.
//!
//! Work requests of a reliable connection complete in order, so a completion stands for itself and all
//! before it on its queue. Each has a number of 64 bits, which is its identifier (`wr_id`); the low part
//! is its slot. Every ring counts from a start of its own, so a number that lies between the oldest and
//! the newest outstanding one is of this ring, and of no earlier round through it.

use std::mem::MaybeUninit;

use super::status::{CompletionError, Status};

/// Slots `head` to `tail` (exclusive, wrapping) hold a value, the others are vacant.
pub(super) struct Ring<B> {
    head: u64,
    tail: u64,
    /// Work requests it takes; there may be more slots.
    limit: u64,
    /// A power of two less one, and less than the number of slots.
    mask: u64,
    slots: Box<[MaybeUninit<Option<B>>]>,
    /// The first work request that failed, and how.
    failure: Option<(u64, CompletionError)>,
}

impl<B> Ring<B> {
    /// Room for `limit` work requests, and one more that [`Ring::push`] takes even when it is full.
    /// They are numbered from `start` on.
    pub(super) fn new(limit: u32, start: u64) -> Ring<B> {
        let limit = u64::from(limit);
        let slots = (limit + 1).next_power_of_two();
        Ring {
            head: start,
            tail: start,
            limit,
            mask: slots - 1,
            slots: (0..slots).map(|_| MaybeUninit::uninit()).collect(),
            failure: None,
        }
    }

    #[inline]
    fn slot(&mut self, number: u64) -> *mut Option<B> {
        let index = (number & self.mask) as usize;
        // SAFETY: the mask is less than the number of slots.
        unsafe { self.slots.as_mut_ptr().add(index) }.cast()
    }

    /// Work requests outstanding.
    #[inline]
    pub(super) fn len(&self) -> u32 {
        self.outstanding() as u32
    }

    #[inline]
    fn outstanding(&self) -> u64 {
        self.tail.wrapping_sub(self.head)
    }

    /// Whether one more may be added.
    #[inline]
    pub(super) fn has_room(&self) -> bool {
        self.outstanding() < self.limit
    }

    #[inline]
    pub(super) fn free(&self) -> u32 {
        self.limit.saturating_sub(self.outstanding()) as u32
    }

    /// Leaves no room from now on.
    pub(super) fn shut(&mut self) {
        self.limit = 0;
    }

    /// The number that the next work request gets.
    #[inline]
    pub(super) fn next(&self) -> u64 {
        self.tail
    }

    /// Adds a work request.
    ///
    /// # Panics
    /// When every slot is taken, which a caller that asks for room first never sees.
    pub(super) fn push(&mut self, payload: Option<B>) -> u64 {
        assert!(self.outstanding() <= self.mask, "the ring has no slot left");
        // SAFETY: as asserted.
        unsafe { self.push_unchecked(payload) }
    }

    /// Adds a work request.
    ///
    /// # Safety
    /// There must be room: [`Ring::has_room`].
    #[inline]
    pub(super) unsafe fn push_unchecked(&mut self, payload: Option<B>) -> u64 {
        let number = self.tail;
        // SAFETY: there are more slots than are taken, so this one is vacant; writing it drops nothing.
        unsafe { self.slot(number).write(payload) };
        self.tail = number.wrapping_add(1);
        number
    }

    /// Takes the last work request back, when at least one is beyond `from`.
    pub(super) fn pop_back(&mut self, from: u64) -> Option<Option<B>> {
        if self.tail == from {
            return None;
        }
        debug_assert!(self.len() > 0);
        self.tail = self.tail.wrapping_sub(1);
        let last = self.tail;
        // SAFETY: it was between head and tail, and now is no longer: it is read once.
        Some(unsafe { self.slot(last).read() })
    }

    /// Whether an outstanding work request has a payload of its own.
    pub(super) fn has_payload(&mut self, number: u64) -> bool {
        // SAFETY: slots of outstanding work requests hold a value.
        self.holds(number) && unsafe { (*self.slot(number)).is_some() }
    }

    /// Gives an outstanding work request a payload to hold, in place of the one it has.
    pub(super) fn keep_with(&mut self, number: u64, payload: B) {
        assert!(self.holds(number), "the work request is not outstanding");
        // SAFETY: slots of outstanding work requests hold a value.
        unsafe { *self.slot(number) = Some(payload) };
    }

    /// Whether this work request is outstanding.
    #[inline]
    pub(super) fn holds(&self, number: u64) -> bool {
        number.wrapping_sub(self.head) < self.outstanding()
    }

    /// How many of the oldest work requests are done when this one is; 0 when it isn't outstanding.
    #[inline]
    pub(super) fn done_with(&self, last: u64) -> u64 {
        let before = last.wrapping_sub(self.head);
        if before < self.outstanding() {
            before + 1
        } else {
            0
        }
    }

    /// Whether this work request, which had a place here once, is done, and so are all before it.
    pub(super) fn is_past(&self, number: u64) -> bool {
        let ago = self.head.wrapping_sub(number);
        self.len() == 0 || (ago != 0 && ago <= u64::MAX / 2)
    }

    /// Notes that a work request failed. None after it can succeed.
    #[cold]
    #[inline(never)]
    pub(super) fn note_failure(&mut self, number: u64, error: CompletionError) {
        self.failure.get_or_insert((number, error));
    }

    /// How the work request went that was taken last, when its completion is known by a later one only.
    pub(super) fn unsignaled_outcome(&self) -> Result<(), CompletionError> {
        match self.failure {
            // The adapter flushes what comes after a failure; whether or not it said so of this one, it
            // can't have carried it out.
            Some((first, error))
                if self.head.wrapping_sub(1).wrapping_sub(first) <= u64::MAX / 2 =>
            {
                Err(CompletionError {
                    status: Status::Flushed,
                    vendor_code: 0,
                    ..error
                })
            }
            _ => Ok(()),
        }
    }

    /// Takes the oldest work request.
    ///
    /// # Safety
    /// There must be one.
    #[inline]
    pub(super) unsafe fn pop_unchecked(&mut self) -> Option<B> {
        let number = self.head;
        self.head = number.wrapping_add(1);
        // SAFETY: it was between head and tail, and now is no longer: it is read once.
        unsafe { self.slot(number).read() }
    }

    /// Takes the oldest work request if it is not later than `last`.
    #[cfg(test)]
    pub(super) fn pop_through(&mut self, last: u64) -> Option<Option<B>> {
        if !self.holds(last) {
            return None;
        }
        // SAFETY: `last` is outstanding, so there is an oldest one.
        Some(unsafe { self.pop_unchecked() })
    }

    /// Forgets all payloads without dropping them.
    pub(super) fn leak(&mut self) {
        self.head = self.tail;
    }
}

impl<B> Drop for Ring<B> {
    fn drop(&mut self) {
        while self.len() > 0 {
            // SAFETY: there is one.
            drop(unsafe { self.pop_unchecked() });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Push(bool),
        PopThrough(usize),
        RollBack(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => any::<bool>().prop_map(Step::Push),
            2 => (0usize..8).prop_map(Step::PopThrough),
            1 => (0usize..4).prop_map(Step::RollBack),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        /// Also across the point where sequence numbers start again.
        #[test]
        fn payloads_come_back_once_and_in_order(steps in steps(), limit in 1u32..9, start in 0u64..40) {
            let first = u64::MAX - start;
            let mut ring: Ring<u64> = Ring::new(limit, first);
            let mut model: VecDeque<(u64, Option<u64>)> = VecDeque::new();
            let mut stamp = 0;
            for step in steps {
                match step {
                    Step::Push(with_payload) => {
                        prop_assert_eq!(ring.free() as usize, limit as usize - model.len());
                        if ring.free() > 0 {
                            stamp += 1;
                            let payload = with_payload.then_some(stamp);
                            model.push_back((ring.push(payload), payload));
                        }
                    }
                    Step::PopThrough(position) => {
                        let Some(&(last, _)) = model.get(position) else { continue };
                        for _ in 0..=position {
                            let expected = model.pop_front().map(|entry| entry.1);
                            prop_assert_eq!(ring.pop_through(last), expected);
                        }
                        prop_assert_eq!(ring.pop_through(last), None);
                    }
                    Step::RollBack(count) => {
                        let keep = model.len().saturating_sub(count);
                        let from = model.get(keep).map_or(ring.next(), |entry| entry.0);
                        while model.len() > keep {
                            let expected = model.pop_back().map(|entry| entry.1);
                            prop_assert_eq!(ring.pop_back(from), expected);
                        }
                        prop_assert_eq!(ring.pop_back(from), None);
                    }
                }
                prop_assert_eq!(ring.len() as usize, model.len());
            }
        }
    }

    #[test]
    fn payloads_still_there_are_dropped_with_the_ring_unless_they_are_leaked() {
        let shared = std::sync::Arc::new(());
        let mut ring = Ring::new(3, u64::MAX);
        for _ in 0..3 {
            ring.push(Some(std::sync::Arc::clone(&shared)));
        }
        ring.pop_through(u64::MAX);
        drop(ring);
        assert_eq!(std::sync::Arc::strong_count(&shared), 1);
        let mut ring = Ring::new(1, 0);
        ring.push(Some(std::sync::Arc::clone(&shared)));
        ring.leak();
        drop(ring);
        assert_eq!(std::sync::Arc::strong_count(&shared), 2);
    }

    #[test]
    fn a_completion_of_an_earlier_generation_takes_nothing() {
        let mut ring: Ring<u8> = Ring::new(2, 0);
        let old = ring.push(Some(1));
        assert_eq!(ring.pop_through(old), Some(Some(1)));
        ring.push(Some(2));
        ring.push(Some(3));
        assert!(!ring.holds(old));
        assert_eq!(ring.pop_through(old), None);
    }
}
