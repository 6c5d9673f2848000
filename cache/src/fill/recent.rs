//! The chunks filled last, still in pinned memory, for readers who come back for the next file of
//! a pack or the next piece of a large one.
//!
//! Each slab, the node's own and each peer's arena, lends at most a quarter of its slots, so that
//! keeping never starves filling.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Filled;
use crate::digest::Digest;

type Key = (Digest, u32);

/// The least recently used is in front.
#[derive(Default)]
pub(super) struct Recent(Mutex<VecDeque<(Key, Arc<Filled>)>>);

impl Recent {
    pub(super) fn get(&self, key: &Key) -> Option<Arc<Filled>> {
        let mut recent = self.0.lock();
        let at = recent.iter().position(|(there, _)| there == key)?;
        let entry = recent.remove(at)?;
        let filled = Arc::clone(&entry.1);
        recent.push_back(entry);
        Some(filled)
    }

    pub(super) fn insert(&self, key: Key, filled: Arc<Filled>) {
        let allowed = filled.slab().slots() / 4;
        let mut dropped = Vec::new();
        {
            let mut recent = self.0.lock();
            recent.retain(|(there, _)| *there != key);
            let lent_by_same =
                |entry: &(Key, Arc<Filled>)| Arc::ptr_eq(entry.1.slab(), filled.slab());
            while recent.iter().filter(|entry| lent_by_same(entry)).count() >= allowed {
                let Some(oldest) = recent.iter().position(lent_by_same) else {
                    return;
                };
                dropped.extend(recent.remove(oldest));
            }
            recent.push_back((key, filled));
        }
        // Giving slots back wakes those who wait for them: not under the lock.
        drop(dropped);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::seal::{SEAL_BYTES, Seal};
    use trackbed_rdma::slab::Slab;

    pub(in crate::fill) fn filled(slab: &Arc<Slab>) -> Arc<Filled> {
        let lease = slab.try_lease().expect("a free slot");
        let seal = Arc::new(Seal::of(&lease[..SEAL_BYTES]).expect("some bytes"));
        Arc::new(Filled::new(lease, seal))
    }

    #[test]
    fn each_slab_lends_a_quarter_of_its_slots_to_the_chunks_used_last() {
        let (own, arena) = (Slab::new("own", 4096, 8), Slab::new("arena", 4096, 4));
        let (own, arena) = (own.expect("small"), arena.expect("small"));
        let (recent, version) = (Recent::default(), Digest::of(b"v"));
        recent.insert((version, 9), filled(&arena));
        for chunk in 0..2 {
            recent.insert((version, chunk), filled(&own));
        }
        assert!(
            recent.get(&(version, 0)).is_some(),
            "now used after chunk 1"
        );
        recent.insert((version, 2), filled(&own));
        assert!(recent.get(&(version, 1)).is_none());
        for chunk in [0, 2, 9] {
            assert!(recent.get(&(version, chunk)).is_some(), "chunk {chunk}");
        }
        assert_eq!(own.free_slots(), 6);
    }
}
