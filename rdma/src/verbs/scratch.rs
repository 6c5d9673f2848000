//! Memory of our own that many work requests use at once.

use std::ptr::NonNull;
use std::sync::Arc;

use super::error::VerbsError;
use super::mapping::Mapping;
use super::memory::{Access, MemoryRegion, Pinned, ProtectionDomain, Sink, Source};
use super::pages::{MappingOptions, map};

/// Registered memory whose parts may be posted many times over, for sending as well as for receiving
/// and reading into: for measurements, where the bytes matter only when all is done.
///
/// As with a [`super::RemoteWindow`] there is never a slice of it. Bytes are copied in and out, one
/// volatile access a byte; those of a part that is posted may be of different messages.
pub struct Scratch {
    mapping: Arc<Mapping>,
    region: Arc<MemoryRegion>,
}

/// A part of a [`Scratch`] to post. It gives no access to its bytes, so any number of parts may overlap.
pub struct ScratchPart {
    start: NonNull<u8>,
    len: usize,
    _mapping: Arc<Mapping>,
}

// SAFETY: a part is an address range; it gives no access to the bytes.
unsafe impl Send for ScratchPart {}

// SAFETY: the mapping stays where it is while the part exists. No reference to its bytes is ever made:
// `Scratch` alone accesses them, one volatile byte at a time.
unsafe impl Source for ScratchPart {
    fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }
    fn len(&self) -> usize {
        self.len
    }
}
// SAFETY: as above: what the adapter writes, whenever it does, is behind no reference.
unsafe impl Sink for ScratchPart {}

impl Scratch {
    /// Maps, zeroes and registers `bytes` for our own work requests.
    pub fn mapped(
        pd: &Arc<ProtectionDomain>,
        bytes: usize,
        options: &MappingOptions,
    ) -> Result<Scratch, VerbsError> {
        let mapping = Arc::new(map(bytes.max(1), options)?);
        let memory = Arc::clone(&mapping) as Arc<dyn Pinned>;
        let region = MemoryRegion::register(pd, memory, Access::LocalWrite)?;
        Ok(Scratch { mapping, region })
    }

    /// Its region, to be attached to the queue pairs that parts are posted on.
    pub fn region(&self) -> &Arc<MemoryRegion> {
        &self.region
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.mapping.len() == 0
    }

    fn holds(&self, offset: usize, len: usize) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.len())
    }

    /// The part of `len` bytes from `offset` on; `None` past the end.
    pub fn part(&self, offset: usize, len: usize) -> Option<ScratchPart> {
        if !self.holds(offset, len) {
            return None;
        }
        // SAFETY: inside the mapping, as checked.
        let start = unsafe { self.mapping.as_ptr().add(offset) };
        Some(ScratchPart {
            start: NonNull::new(start)?,
            len,
            _mapping: Arc::clone(&self.mapping),
        })
    }

    /// The byte at `offset` now; `None` past the end.
    pub fn byte(&self, offset: usize) -> Option<u8> {
        if !self.holds(offset, 1) {
            return None;
        }
        // SAFETY: inside the mapping; volatile, since the adapter may write it meanwhile.
        Some(unsafe { self.mapping.as_ptr().add(offset).read_volatile() })
    }

    /// Copies bytes from `offset` on into `target`; false, and nothing copied, past the end.
    #[must_use]
    pub fn copy_out(&self, offset: usize, target: &mut [u8]) -> bool {
        if !self.holds(offset, target.len()) {
            return false;
        }
        for (index, byte) in target.iter_mut().enumerate() {
            // SAFETY: inside the mapping, as checked; volatile, as above.
            *byte = unsafe { self.mapping.as_ptr().add(offset + index).read_volatile() };
        }
        true
    }

    /// Copies `bytes` to `offset`; false, and nothing copied, past the end. A message being sent from
    /// there meanwhile gets some of the old bytes and some of the new.
    #[must_use]
    pub fn copy_in(&mut self, offset: usize, bytes: &[u8]) -> bool {
        if !self.holds(offset, bytes.len()) {
            return false;
        }
        for (index, byte) in bytes.iter().enumerate() {
            // SAFETY: inside the mapping, as checked; volatile, since the adapter may use it meanwhile;
            // `&mut` keeps other threads of ours away.
            unsafe {
                self.mapping
                    .as_ptr()
                    .add(offset + index)
                    .write_volatile(*byte);
            }
        }
        true
    }
}
