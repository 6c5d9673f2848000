//! Mapped memory that is used while an adapter may be writing it.

use std::ptr::NonNull;
use std::sync::Arc;

use super::mapping::Mapping;
use super::memory::Pinned;
use super::pages::{MappingError, MappingOptions, map};

/// A mapping that was never cut into pieces and never is, so that no reference to its bytes exists:
/// they are copied in and out, one volatile access a byte.
pub(super) struct Unsliced {
    mapping: Arc<Mapping>,
}

impl Unsliced {
    /// Maps and zeroes so many bytes, one at least.
    pub(super) fn map(bytes: usize, options: &MappingOptions) -> Result<Unsliced, MappingError> {
        let mapping = Arc::new(map(bytes.max(1), options)?);
        Ok(Unsliced { mapping })
    }

    /// The memory itself, to be registered and kept.
    pub(super) fn pinned(&self) -> Arc<dyn Pinned> {
        Arc::clone(&self.mapping) as Arc<dyn Pinned>
    }

    pub(super) fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Where `len` bytes from `offset` on begin; `None` past the end.
    pub(super) fn address(&self, offset: usize, len: usize) -> Option<NonNull<u8>> {
        if !self.holds(offset, len) {
            return None;
        }
        // SAFETY: inside the mapping, as checked.
        NonNull::new(unsafe { self.mapping.as_ptr().add(offset) })
    }

    fn holds(&self, offset: usize, len: usize) -> bool {
        offset
            .checked_add(len)
            .is_some_and(|end| end <= self.mapping.len())
    }

    /// The byte at `offset` now; `None` past the end.
    pub(super) fn byte(&self, offset: usize) -> Option<u8> {
        if !self.holds(offset, 1) {
            return None;
        }
        // SAFETY: inside the mapping; volatile, since the adapter may write it meanwhile.
        Some(unsafe { self.mapping.as_ptr().add(offset).read_volatile() })
    }

    /// Copies bytes from `offset` on into `target`; false, and nothing copied, past the end.
    #[must_use]
    pub(super) fn copy_out(&self, offset: usize, target: &mut [u8]) -> bool {
        if !self.holds(offset, target.len()) {
            return false;
        }
        for (index, byte) in target.iter_mut().enumerate() {
            // SAFETY: inside the mapping, as checked; volatile, as above.
            *byte = unsafe { self.mapping.as_ptr().add(offset + index).read_volatile() };
        }
        true
    }

    /// Copies `bytes` to `offset`; false, and nothing copied, past the end.
    #[must_use]
    pub(super) fn copy_in(&mut self, offset: usize, bytes: &[u8]) -> bool {
        if !self.holds(offset, bytes.len()) {
            return false;
        }
        for (index, byte) in bytes.iter().enumerate() {
            // SAFETY: inside the mapping, as checked; volatile, since the adapter may read or write it
            // meanwhile; `&mut` keeps other threads of ours away.
            unsafe {
                self.mapping
                    .as_ptr()
                    .add(offset + index)
                    .write_volatile(*byte);
            }
        }
        true
    }

    /// The word at `offset`, as peers' atomics leave it: in one access, so never half of two values.
    /// `None` past the end or where `offset` isn't a multiple of 8.
    pub(super) fn word(&self, offset: usize) -> Option<u64> {
        if !offset.is_multiple_of(8) || !self.holds(offset, 8) {
            return None;
        }
        // SAFETY: inside the mapping and aligned, since mappings start at a page; volatile, as above.
        Some(unsafe {
            self.mapping
                .as_ptr()
                .add(offset)
                .cast::<u64>()
                .read_volatile()
        })
    }

    /// Sets the word at `offset`; false where [`Unsliced::word`] is `None`. A peer's atomic at the
    /// same moment may be lost: give words their first value before a peer learns of them.
    #[must_use]
    pub(super) fn set_word(&mut self, offset: usize, value: u64) -> bool {
        if !offset.is_multiple_of(8) || !self.holds(offset, 8) {
            return false;
        }
        // SAFETY: as for `word`; `&mut` keeps other threads of ours away.
        unsafe {
            self.mapping
                .as_ptr()
                .add(offset)
                .cast::<u64>()
                .write_volatile(value);
        }
        true
    }
}
