//! Memory of our own that many work requests use at once.

use std::ptr::NonNull;
use std::sync::Arc;

use super::error::VerbsError;
use super::memory::{Access, MemoryRegion, Pinned, ProtectionDomain, Sink, Source};
use super::pages::MappingOptions;
use super::unsliced::Unsliced;

/// Registered memory whose parts may be posted many times over, for sending as well as for receiving
/// and reading into: for measurements, where the bytes matter only when all is done.
///
/// As with a [`super::RemoteWindow`] there is never a slice of it. Bytes are copied in and out, one
/// volatile access a byte; those of a part that is posted may be of different messages.
pub struct Scratch {
    memory: Unsliced,
    region: Arc<MemoryRegion>,
}

/// A part of a [`Scratch`] to post. It gives no access to its bytes, so any number of parts may overlap.
pub struct ScratchPart {
    start: NonNull<u8>,
    len: usize,
    _memory: Arc<dyn Pinned>,
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
        let memory = Unsliced::map(bytes, options)?;
        let region = MemoryRegion::register(pd, memory.pinned(), Access::LocalWrite)?;
        Ok(Scratch { memory, region })
    }

    /// Its region, to be attached to the queue pairs that parts are posted on.
    pub fn region(&self) -> &Arc<MemoryRegion> {
        &self.region
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.memory.len() == 0
    }

    /// The part of `len` bytes from `offset` on; `None` past the end.
    pub fn part(&self, offset: usize, len: usize) -> Option<ScratchPart> {
        Some(ScratchPart {
            start: self.memory.address(offset, len)?,
            len,
            _memory: self.memory.pinned(),
        })
    }

    /// The byte at `offset` now; `None` past the end.
    pub fn byte(&self, offset: usize) -> Option<u8> {
        self.memory.byte(offset)
    }

    /// Copies bytes from `offset` on into `target`; false, and nothing copied, past the end.
    #[must_use]
    pub fn copy_out(&self, offset: usize, target: &mut [u8]) -> bool {
        self.memory.copy_out(offset, target)
    }

    /// Copies `bytes` to `offset`; false, and nothing copied, past the end. A message being sent from
    /// there meanwhile gets some of the old bytes and some of the new.
    #[must_use]
    pub fn copy_in(&mut self, offset: usize, bytes: &[u8]) -> bool {
        self.memory.copy_in(offset, bytes)
    }
}
