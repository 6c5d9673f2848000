//! Pinned memory that is at once io_uring's fixed buffers and an RDMA memory region.
//!
//! A [`Slab`] is one mapping cut into slots of one size. A [`Lease`] owns a slot: it is moved into
//! an operation and handed back by its completion, so memory that the kernel or a NIC may still
//! touch is out of everyone's reach. Dropping a lease gives the slot to the longest waiter.

mod mapping;
mod registered;

use std::collections::VecDeque;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::channel::oneshot;
use parking_lot::Mutex;

use mapping::Mapping;
pub use mapping::PageKind;

/// The unit in which slots are sized: a page, which is also what O_DIRECT needs at most.
pub const PAGE_BYTES: usize = 4096;

/// Why a slab could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SlabError {
    /// The slot size is not a positive number of pages.
    #[error(
        "slab {name}: a slot of {slot_bytes} bytes is not a positive multiple of {PAGE_BYTES}: \
         round it up to whole pages"
    )]
    SlotSize {
        /// The slab's name.
        name: String,
        /// What was asked for.
        slot_bytes: usize,
    },
    /// No slots, or more than an operation can address.
    #[error(
        "slab {name}: {slots} slots of {slot_bytes} bytes: ask for 1 to 65536 slots that fit in the address space"
    )]
    SlotCount {
        /// The slab's name.
        name: String,
        /// What was asked for.
        slots: usize,
        /// Bytes a slot.
        slot_bytes: usize,
    },
    /// The kernel would not give the memory.
    #[error(
        "slab {name}: mapping {bytes} bytes of memory failed ({source}): ask for fewer slots, or \
         raise the container's memory limit"
    )]
    Map {
        /// The slab's name.
        name: String,
        /// Bytes asked for.
        bytes: usize,
        /// What mmap or madvise said.
        source: std::io::Error,
    },
}

/// The most slots a slab may have: a slot's number travels as 16 bits.
const MAX_SLOTS: usize = 1 << 16;

/// One mapping of equal slots.
pub struct Slab {
    name: String,
    id: u64,
    mapping: Mapping,
    slot_bytes: usize,
    slots: usize,
    state: Mutex<State>,
}

struct State {
    /// Slots nobody owns. Last in, first out: the most recently used is the likeliest in a cache.
    free: Vec<u32>,
    /// Who waits, longest first. Nobody waits while a slot is free.
    waiting: VecDeque<oneshot::Sender<Lease>>,
}

impl Slab {
    /// Maps `slots` slots of `slot_bytes` each (a multiple of [`PAGE_BYTES`]) and touches every
    /// page, so that a shortage of memory shows here and not in the middle of a transfer.
    ///
    /// Huge pages from the system's pool are used if there are enough, else transparent ones are
    /// asked for, else plain pages; [`Slab::page_kind`] tells.
    pub fn new(name: &str, slot_bytes: usize, slots: usize) -> Result<Arc<Slab>, SlabError> {
        if slot_bytes == 0 || !slot_bytes.is_multiple_of(PAGE_BYTES) {
            return Err(SlabError::SlotSize {
                name: name.to_owned(),
                slot_bytes,
            });
        }
        let bytes = slot_bytes
            .checked_mul(slots)
            .filter(|&bytes| bytes > 0 && bytes <= isize::MAX as usize && slots <= MAX_SLOTS)
            .ok_or_else(|| SlabError::SlotCount {
                name: name.to_owned(),
                slots,
                slot_bytes,
            })?;
        let mapping = Mapping::anonymous(bytes).map_err(|source| SlabError::Map {
            name: name.to_owned(),
            bytes,
            source,
        })?;
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        Ok(Arc::new(Slab {
            name: name.to_owned(),
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            mapping,
            slot_bytes,
            slots,
            state: Mutex::new(State {
                free: (0..slots as u32).rev().collect(),
                waiting: VecDeque::new(),
            }),
        }))
    }

    /// A slot if one is free now. It holds whatever its last owner left in it.
    pub fn try_lease(self: &Arc<Self>) -> Option<Lease> {
        let slot = self.state.lock().free.pop()?;
        Some(Lease {
            slab: Arc::clone(self),
            slot,
        })
    }

    /// A slot, waiting for one in order of arrival. Dropping the future gives up the place, and
    /// a slot handed over at that very moment goes to the next in line.
    pub async fn lease(self: &Arc<Self>) -> Lease {
        let turn = {
            let mut state = self.state.lock();
            if let Some(slot) = state.free.pop() {
                return Lease {
                    slab: Arc::clone(self),
                    slot,
                };
            }
            let (sender, turn) = oneshot::channel();
            // Those who gave up are swept when they are many, so that a slab nobody returns to
            // does not gather them for ever.
            if state.waiting.len() >= 2 * self.slots {
                state.waiting.retain(|waiter| !waiter.is_canceled());
            }
            state.waiting.push_back(sender);
            turn
        };
        turn.await
            .expect("a slab that is borrowed here keeps its waiters until it served them")
    }

    /// Bytes of a slot.
    pub fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    /// Number of slots.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Slots that nobody owns at this moment.
    pub fn free_slots(&self) -> usize {
        self.state.lock().free.len()
    }

    /// The name given at creation, for logs and errors.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which pages back the slab.
    pub fn page_kind(&self) -> PageKind {
        self.mapping.kind()
    }

    /// Start of the first slot. The slots follow each other for [`Slab::bytes`]; the mapping
    /// neither moves nor ends before the slab is dropped.
    pub fn as_ptr(&self) -> *mut u8 {
        self.mapping.as_ptr()
    }

    /// Bytes of all slots together.
    pub fn bytes(&self) -> usize {
        self.slot_bytes * self.slots
    }

    /// A number no other slab of this process has or had.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    fn release(self: &Arc<Self>, slot: u32) {
        loop {
            let waiter = {
                let mut state = self.state.lock();
                match state.waiting.pop_front() {
                    Some(waiter) => waiter,
                    None => {
                        state.free.push(slot);
                        return;
                    }
                }
            };
            if waiter.is_canceled() {
                continue;
            }
            // Should the waiter give up right now, the lease comes back and its drop leads here
            // again, one waiter further; the lock is not held.
            drop(waiter.send(Lease {
                slab: Arc::clone(self),
                slot,
            }));
            return;
        }
    }
}

impl fmt::Debug for Slab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slab")
            .field("name", &self.name)
            .field("slot_bytes", &self.slot_bytes)
            .field("slots", &self.slots)
            .field("pages", &self.mapping.kind())
            .finish_non_exhaustive()
    }
}

/// An owned slot of a [`Slab`]: a byte slice over all of it, given back on drop.
pub struct Lease {
    slab: Arc<Slab>,
    slot: u32,
}

impl Lease {
    /// The slab this slot belongs to.
    pub fn slab(&self) -> &Arc<Slab> {
        &self.slab
    }

    /// The slot's number in its slab.
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// Start of the slot; valid for [`Slab::slot_bytes`] for as long as the lease lives.
    pub(crate) fn start(&self) -> *mut u8 {
        // SAFETY: `slot < slots` since creation, so the offset is inside the mapping.
        unsafe {
            self.slab
                .as_ptr()
                .add(self.slot as usize * self.slab.slot_bytes)
        }
    }
}

impl Deref for Lease {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the slot is initialised memory (the kernel zeroes it, later owners write bytes),
        // it lives as long as the slab, which this lease keeps, and this lease is its only owner.
        // Operations of the kernel or a NIC on the slot own the lease while they run. An arena slot
        // that a peer may still write is never inside a lease that is handed out: see `fabric`.
        unsafe { std::slice::from_raw_parts(self.start(), self.slab.slot_bytes) }
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the borrow exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.slab.slot_bytes) }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.slab.release(self.slot);
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({}[{}])", self.slab.name, self.slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use futures::executor::block_on;

    #[test]
    fn a_slot_given_back_can_be_leased_again() {
        let slab = Slab::new("test", PAGE_BYTES, 2).unwrap();
        let first = slab.try_lease().unwrap();
        let second = slab.try_lease().unwrap();
        assert_ne!(first.slot(), second.slot());
        assert!(slab.try_lease().is_none());
        drop(first);
        assert!(slab.try_lease().is_some());
    }

    #[test]
    fn slots_do_not_overlap() {
        let slab = Slab::new("test", 2 * PAGE_BYTES, 3).unwrap();
        let mut leases: Vec<Lease> = std::iter::from_fn(|| slab.try_lease()).collect();
        for (byte, lease) in leases.iter_mut().enumerate() {
            lease.fill(byte as u8 + 1);
        }
        for (byte, lease) in leases.iter().enumerate() {
            assert_eq!(lease.len(), 2 * PAGE_BYTES);
            assert!(lease.iter().all(|&found| found == byte as u8 + 1));
        }
    }

    #[test]
    fn waiters_are_served_in_order_of_arrival() {
        let slab = Slab::new("test", PAGE_BYTES, 1).unwrap();
        let held = slab.try_lease().unwrap();
        let mut first = Box::pin(slab.lease());
        let mut second = Box::pin(slab.lease());
        assert!(first.as_mut().now_or_never().is_none());
        assert!(second.as_mut().now_or_never().is_none());
        drop(held);
        assert!(
            slab.try_lease().is_none(),
            "the slot belongs to whoever waited for it"
        );
        assert!(second.as_mut().now_or_never().is_none());
        let served = first.as_mut().now_or_never().expect("first in line");
        drop(served);
        assert!(second.as_mut().now_or_never().is_some());
    }

    #[test]
    fn a_waiter_that_gives_up_loses_no_slot() {
        let slab = Slab::new("test", PAGE_BYTES, 1).unwrap();
        let held = slab.try_lease().unwrap();
        let mut gives_up_before = Box::pin(slab.lease());
        let mut gives_up_after = Box::pin(slab.lease());
        let mut patient = Box::pin(slab.lease());
        for waiter in [&mut gives_up_before, &mut gives_up_after, &mut patient] {
            assert!(waiter.as_mut().now_or_never().is_none());
        }
        drop(gives_up_before);
        drop(held);
        // The slot is now on its way to the second waiter, who leaves without looking.
        drop(gives_up_after);
        drop(
            patient
                .as_mut()
                .now_or_never()
                .expect("the slot went to the next in line"),
        );
        assert_eq!(slab.free_slots(), 1);
    }

    #[test]
    fn many_threads_share_few_slots_without_a_lost_wake_up() {
        let slab = Slab::new("test", PAGE_BYTES, 2).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..500u32 {
                        let mut lease = block_on(slab.lease());
                        lease[..4].copy_from_slice(&round.to_le_bytes());
                        assert_eq!(lease[..4], round.to_le_bytes());
                    }
                });
            }
        });
        assert_eq!(slab.free_slots(), 2);
    }

    #[test]
    fn impossible_shapes_are_refused_with_the_reason() {
        assert!(matches!(
            Slab::new("odd", 1000, 4),
            Err(SlabError::SlotSize { .. })
        ));
        assert!(matches!(
            Slab::new("none", PAGE_BYTES, 0),
            Err(SlabError::SlotCount { .. })
        ));
        assert!(matches!(
            Slab::new("huge", usize::MAX & !(PAGE_BYTES - 1), 4),
            Err(SlabError::SlotCount { .. })
        ));
        let error = Slab::new("large", 1 << 40, 1 << 14).unwrap_err();
        assert!(error.to_string().contains("large"), "{error}");
    }
}
