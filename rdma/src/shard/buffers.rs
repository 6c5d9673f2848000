//! Which slabs a ring knows as fixed buffers, so that operations on them skip the page look-up.

use std::io;
use std::sync::Arc;

use io_uring::IoUring;

use super::memlock::raise_memlock;
use crate::slab::{Lease, Slab};

/// Places in the ring's table. A slab takes one for each GiB.
const PLACES: u16 = 1024;

/// The largest buffer the kernel registers.
const MAX_BUFFER_BYTES: usize = 1 << 30;

/// The ring's table of fixed buffers, and what stands in it.
pub(super) struct Buffers {
    /// False once the kernel refused the table: everything then goes by plain operations.
    usable: bool,
    free: Vec<u16>,
    /// A handful at most: looked through, from the first, for each operation.
    slabs: Vec<Registration>,
    /// Counts the changes of what stands in the table.
    edition: u64,
}

struct Registration {
    /// The slab's number.
    slab: u64,
    /// Table places in the order of the slab's bytes.
    places: Vec<u16>,
    /// Bytes a place covers, a whole number of slots; the last may cover fewer.
    stride: usize,
    slot_bytes: usize,
}

impl Buffers {
    /// Makes the table, or notes that this kernel has none (before 5.19).
    pub(super) fn new(uring: &IoUring) -> Buffers {
        let usable = match uring.submitter().register_buffers_sparse(u32::from(PLACES)) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "io_uring has no table of fixed buffers here: plain operations are used");
                false
            }
        };
        Buffers {
            usable,
            free: (0..PLACES).rev().collect(),
            slabs: Vec::new(),
            edition: 1,
        }
    }

    /// A number that is another as soon as [`Buffers::index_of`] may answer otherwise. Never 0.
    pub(super) fn edition(&self) -> u64 {
        self.edition
    }

    /// Pins the slab for this ring. Failing is no error, only slower: it is logged with its remedy.
    pub(super) fn register(&mut self, uring: &IoUring, slab: &Arc<Slab>) {
        if !self.usable || self.find(slab.id()).is_some() {
            return;
        }
        let slot_bytes = slab.slot_bytes();
        let stride = MAX_BUFFER_BYTES / slot_bytes * slot_bytes;
        let needed = if stride == 0 {
            usize::MAX
        } else {
            slab.bytes().div_ceil(stride)
        };
        if needed > self.free.len() {
            tracing::info!(
                slab = slab.name(),
                "slab too large for fixed buffers: plain operations are used"
            );
            return;
        }
        let mut registration = Registration {
            slab: slab.id(),
            places: Vec::new(),
            stride,
            slot_bytes,
        };
        for part in 0..needed {
            let from = part * stride;
            let buffer = libc::iovec {
                iov_base: slab.as_ptr().wrapping_add(from).cast(),
                iov_len: stride.min(slab.bytes() - from),
            };
            let place = self.free.pop().expect("counted above");
            registration.places.push(place);
            if let Err(error) = update_raising_limit(uring, place, buffer) {
                tracing::warn!(
                    slab = slab.name(), bytes = slab.bytes(), %error,
                    "pinning a slab for io_uring failed: plain operations are used; raise RLIMIT_MEMLOCK \
                     (ulimit -l, LimitMEMLOCK=, or the container runtime's) above the slab's size"
                );
                self.clear(uring, registration);
                return;
            }
        }
        self.slabs.push(registration);
        self.edition += 1;
    }

    /// Takes the slab out of the table. Operations under way keep the kernel's own reference.
    pub(super) fn unregister(&mut self, uring: &IoUring, slab: &Slab) {
        if let Some(position) = self.slabs.iter().position(|each| each.slab == slab.id()) {
            let registration = self.slabs.remove(position);
            self.edition += 1;
            self.clear(uring, registration);
        }
    }

    /// The place that covers byte `at` of the lease, and with it the rest of its slot.
    #[inline]
    pub(super) fn index_of(&self, lease: &Lease, at: usize) -> Option<u16> {
        let registration = self.find(lease.slab().id())?;
        if let [place] = *registration.places {
            return Some(place);
        }
        let byte = lease.slot() as usize * registration.slot_bytes + at;
        registration.places.get(byte / registration.stride).copied()
    }

    #[inline]
    fn find(&self, slab: u64) -> Option<&Registration> {
        self.slabs.iter().find(|each| each.slab == slab)
    }

    fn clear(&mut self, uring: &IoUring, registration: Registration) {
        for place in registration.places {
            let nothing = libc::iovec {
                iov_base: std::ptr::null_mut(),
                iov_len: 0,
            };
            match update(uring, place, nothing) {
                Ok(()) => self.free.push(place),
                // The place stays taken, and its pages pinned until the ring ends.
                Err(error) => tracing::warn!(%error, "emptying a fixed buffer failed"),
            }
        }
    }
}

/// Registers one buffer; if the limit on locked memory forbids it, raises that as far as this
/// process may and tries again.
fn update_raising_limit(uring: &IoUring, place: u16, buffer: libc::iovec) -> io::Result<()> {
    match update(uring, place, buffer) {
        Err(error) if error.raw_os_error() == Some(libc::ENOMEM) && raise_memlock() => {
            update(uring, place, buffer)
        }
        result => result,
    }
}

fn update(uring: &IoUring, place: u16, buffer: libc::iovec) -> io::Result<()> {
    // SAFETY: the buffer is part of a slab's mapping, or empty. The kernel pins the pages itself,
    // so a slab that goes away later leaves the ring with its own reference to them, not with a
    // dangling address.
    unsafe {
        uring
            .submitter()
            .register_buffers_update(u32::from(place), &[buffer], None)
    }
}
