//! The payloads of one queue's outstanding work requests, in posting order.
//!
//! Work requests of a reliable connection complete in order, so a completion stands for itself and all
//! before it on its queue. Sequence numbers run over 31 bits; a slot is the low part, what is above
//! tells generations apart.

/// Sequence numbers wrap here.
pub(super) const SEQUENCE_MASK: u32 = (1 << 31) - 1;

pub(super) struct Ring<B> {
    slots: Box<[Option<B>]>,
    limit: u32,
    head: u32,
    tail: u32,
}

impl<B> Ring<B> {
    /// Room for `limit` work requests.
    pub(super) fn new(limit: u32) -> Ring<B> {
        let slots = limit.max(1).next_power_of_two();
        Ring {
            slots: (0..slots).map(|_| None).collect(),
            limit,
            head: 0,
            tail: 0,
        }
    }

    #[inline]
    fn slot(&mut self, sequence: u32) -> &mut Option<B> {
        // The length is a power of two.
        let index = sequence as usize & (self.slots.len() - 1);
        &mut self.slots[index]
    }

    /// Work requests outstanding.
    #[inline]
    pub(super) fn len(&self) -> u32 {
        self.tail.wrapping_sub(self.head) & SEQUENCE_MASK
    }

    #[inline]
    pub(super) fn free(&self) -> u32 {
        self.limit - self.len()
    }

    /// The number of the oldest work request outstanding, if there is one.
    #[inline]
    pub(super) fn oldest(&self) -> u32 {
        self.head
    }

    /// The number that the next work request gets.
    #[inline]
    pub(super) fn next(&self) -> u32 {
        self.tail
    }

    /// Adds a work request. The caller has checked that there is room.
    #[inline]
    pub(super) fn push(&mut self, payload: Option<B>) -> u32 {
        debug_assert!(self.free() > 0);
        let sequence = self.tail;
        *self.slot(sequence) = payload;
        self.tail = (sequence + 1) & SEQUENCE_MASK;
        sequence
    }

    /// Takes the last work request back, when at least one is beyond `from`.
    pub(super) fn pop_back(&mut self, from: u32) -> Option<Option<B>> {
        if self.tail == from {
            return None;
        }
        self.tail = self.tail.wrapping_sub(1) & SEQUENCE_MASK;
        let last = self.tail;
        Some(self.slot(last).take())
    }

    /// Gives an outstanding work request a payload to hold.
    pub(super) fn keep_with(&mut self, sequence: u32, payload: B) {
        *self.slot(sequence) = Some(payload);
    }

    /// Whether this work request is outstanding.
    #[inline]
    pub(super) fn holds(&self, sequence: u32) -> bool {
        (sequence.wrapping_sub(self.head) & SEQUENCE_MASK) < self.len()
    }

    /// Takes the oldest work request if it is not later than `last`.
    #[inline]
    pub(super) fn pop_through(&mut self, last: u32) -> Option<Option<B>> {
        if !self.holds(last) {
            return None;
        }
        let sequence = self.head;
        self.head = (sequence + 1) & SEQUENCE_MASK;
        Some(self.slot(sequence).take())
    }

    /// Forgets all payloads without dropping them.
    pub(super) fn leak(&mut self) {
        for slot in &mut self.slots {
            std::mem::forget(slot.take());
        }
    }

    #[cfg(test)]
    pub(super) fn starting_at(limit: u32, sequence: u32) -> Ring<B> {
        Ring {
            head: sequence,
            tail: sequence,
            ..Ring::new(limit)
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
        fn payloads_come_back_once_and_in_order(steps in steps(), limit in 1u32..9, start in 0u32..40) {
            let first = SEQUENCE_MASK - start;
            let mut ring: Ring<u64> = Ring::starting_at(limit, first);
            let mut model: VecDeque<(u32, Option<u64>)> = VecDeque::new();
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
    fn a_completion_of_an_earlier_generation_takes_nothing() {
        let mut ring: Ring<u8> = Ring::new(2);
        let old = ring.push(Some(1));
        assert_eq!(ring.pop_through(old), Some(Some(1)));
        ring.push(Some(2));
        ring.push(Some(3));
        assert!(!ring.holds(old));
        assert_eq!(ring.pop_through(old), None);
    }
}
