//! The payloads of outstanding work requests that complete in any order.
//!
//! A work request's identifier names a slot and how often the slot was used before, so that each payload
//! comes back once, whatever completions arrive.

use std::sync::atomic::{AtomicU32, Ordering};

/// Set in all identifiers of tables, and in none of a connected queue pair's.
const TABLE_BIT: u64 = 1 << 63;

/// Whether an identifier is of any table.
pub(super) fn is_of_table(id: u64) -> bool {
    id & TABLE_BIT != 0
}

pub(super) struct Table<B> {
    slots: Box<[Slot<B>]>,
    free: Vec<u32>,
    /// The upper half of this table's identifiers.
    tag: u64,
    index_bits: u32,
}

struct Slot<B> {
    uses: u32,
    payload: Option<B>,
}

impl<B> Table<B> {
    /// Room for `limit` work requests.
    pub(super) fn new(limit: u32) -> Table<B> {
        static TABLES: AtomicU32 = AtomicU32::new(0);
        let number = u64::from(TABLES.fetch_add(1, Ordering::Relaxed));
        let limit = limit.max(1);
        Table {
            slots: (0..limit)
                .map(|_| Slot {
                    uses: 0,
                    payload: None,
                })
                .collect(),
            free: (0..limit).rev().collect(),
            tag: TABLE_BIT | (number << 32 & !TABLE_BIT),
            index_bits: u32::BITS - (limit - 1).leading_zeros(),
        }
    }

    /// Work requests outstanding.
    pub(super) fn len(&self) -> u32 {
        self.slots.len() as u32 - self.room()
    }

    /// Work requests that can be added.
    pub(super) fn room(&self) -> u32 {
        self.free.len() as u32
    }

    /// Keeps a payload; the identifier for its work request. The caller has checked that there is room.
    pub(super) fn insert(&mut self, payload: B) -> u64 {
        let index = self.free.pop().expect("room, as the caller checked");
        let slot = &mut self.slots[index as usize];
        slot.payload = Some(payload);
        self.tag | u64::from(self.number(index))
    }

    fn number(&self, index: u32) -> u32 {
        let uses = self.slots[index as usize].uses;
        // With 2^32 slots no bits would be left for the uses.
        index | uses.checked_shl(self.index_bits).unwrap_or(0)
    }

    /// Whether an identifier is of this table, outstanding or not.
    #[inline]
    pub(super) fn made(&self, id: u64) -> bool {
        id & !u64::from(u32::MAX) == self.tag
    }

    /// The payload of a work request, once.
    pub(super) fn take(&mut self, id: u64) -> Option<B> {
        if !self.made(id) {
            return None;
        }
        let number = id as u32;
        let mask = 1u32
            .checked_shl(self.index_bits)
            .map_or(u32::MAX, |bit| bit - 1);
        let index = number & mask;
        if index as usize >= self.slots.len() || self.number(index) != number {
            return None;
        }
        let slot = &mut self.slots[index as usize];
        let payload = slot.payload.take()?;
        slot.uses = slot.uses.wrapping_add(1);
        self.free.push(index);
        Some(payload)
    }

    /// Forgets all payloads without dropping them.
    pub(super) fn leak(&mut self) {
        for slot in &mut self.slots {
            std::mem::forget(slot.payload.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever identifiers come, and however often each.
        #[test]
        fn each_payload_comes_back_once_and_by_its_own_identifier(
            limit in 1u32..9,
            steps in proptest::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 0..300),
        ) {
            let mut table: Table<u64> = Table::new(limit);
            let mut all: Vec<(u64, Option<u64>)> = Vec::new();
            for (stamp, (insert, which)) in steps.into_iter().enumerate() {
                let outstanding = all.iter().filter(|entry| entry.1.is_some()).count() as u32;
                prop_assert_eq!(table.len(), outstanding);
                prop_assert_eq!(table.room(), limit - outstanding);
                if insert && table.room() > 0 {
                    let stamp = stamp as u64;
                    all.push((table.insert(stamp), Some(stamp)));
                } else if !all.is_empty() {
                    let entry = which.index(all.len());
                    let (id, expected) = all[entry];
                    prop_assert!(table.made(id));
                    prop_assert_eq!(table.take(id), expected);
                    all[entry].1 = None;
                }
            }
        }

        #[test]
        fn arbitrary_identifiers_take_nothing(ids in proptest::collection::vec(any::<u64>(), 0..100)) {
            let mut table: Table<u8> = Table::new(5);
            let kept = table.insert(1);
            for id in ids {
                if id != kept {
                    prop_assert_eq!(table.take(id), None);
                    prop_assert_eq!(table.take(table.tag | id & 0xffff_ffff), (table.tag | id & 0xffff_ffff == kept).then_some(1));
                }
            }
        }
    }

    #[test]
    fn tables_do_not_take_each_others_identifiers() {
        let (mut one, mut other) = (Table::new(4), Table::new(4));
        let (at_one, at_other) = (one.insert(1), other.insert(2));
        assert_eq!((one.take(at_other), other.take(at_one)), (None, None));
        assert_eq!((one.take(at_one), other.take(at_other)), (Some(1), Some(2)));
    }
}
