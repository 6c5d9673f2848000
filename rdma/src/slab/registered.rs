//! What makes a slab registrable with an adapter, and its leases postable.

use super::{Lease, Slab};
use crate::verbs::{Pinned, Sink, Source};

// SAFETY: the mapping stays where it is for the slab's life. References to its bytes come from leases
// only, each of which owns its slot alone.
unsafe impl Pinned for Slab {
    fn as_ptr(&self) -> *mut u8 {
        Slab::as_ptr(self)
    }

    fn len(&self) -> usize {
        self.bytes()
    }
}

// SAFETY: a lease keeps its slab, and so its slot, at one address however it is moved, and it is the
// only way to the slot's bytes.
unsafe impl Source for Lease {
    fn as_ptr(&self) -> *const u8 {
        self.start()
    }

    fn len(&self) -> usize {
        self.slab().slot_bytes()
    }
}

// SAFETY: slots don't overlap, and a slot has one lease at a time.
unsafe impl Sink for Lease {}
