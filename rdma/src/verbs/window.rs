//! Memory of our own that a peer may read, write or count in at any time.

use std::sync::Arc;

use super::error::VerbsError;
use super::mapping::Mapping;
use super::memory::{MemoryRegion, Pinned, ProtectionDomain, RemoteAccess, RemoteMemory};
use super::pages::{MappingOptions, map};

/// Memory that peers may use as its [`RemoteAccess`] says. There is never a slice of it: bytes are copied
/// in and out, one volatile access a byte, and what is copied out may be of different writes.
pub struct RemoteWindow {
    mapping: Arc<Mapping>,
    region: Arc<MemoryRegion>,
}

impl RemoteWindow {
    /// Maps, zeroes and registers `bytes` for writing by peers of this protection domain.
    pub fn new(pd: &Arc<ProtectionDomain>, bytes: usize) -> Result<RemoteWindow, VerbsError> {
        let access = RemoteAccess {
            write: true,
            ..RemoteAccess::default()
        };
        Self::new_with(pd, bytes, access)
    }

    /// Maps, zeroes and registers `bytes` with these rights for peers of this protection domain.
    pub fn new_with(
        pd: &Arc<ProtectionDomain>,
        bytes: usize,
        access: RemoteAccess,
    ) -> Result<RemoteWindow, VerbsError> {
        Self::mapped(pd, bytes, access, &MappingOptions::default())
    }

    /// As [`RemoteWindow::new_with`], with a say in the pages.
    pub fn mapped(
        pd: &Arc<ProtectionDomain>,
        bytes: usize,
        access: RemoteAccess,
        options: &MappingOptions,
    ) -> Result<RemoteWindow, VerbsError> {
        let mapping = Arc::new(map(bytes.max(1), options)?);
        // SAFETY: the mapping has no pieces, so no slice of it exists; this type only copies.
        let region = unsafe {
            MemoryRegion::register_remote(pd, Arc::clone(&mapping) as Arc<dyn Pinned>, access)
        }?;
        Ok(RemoteWindow { mapping, region })
    }

    /// How a peer addresses it.
    pub fn remote(&self) -> RemoteMemory {
        self.region
            .remote()
            .expect("a window is registered for peers")
    }

    /// What peers may do with it.
    pub fn access(&self) -> RemoteAccess {
        self.region.remote_access()
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

    /// Copies `bytes` to `offset` for peers to read; false, and nothing copied, past the end. A peer that
    /// reads meanwhile gets some of the old bytes and some of the new.
    #[must_use]
    pub fn copy_in(&mut self, offset: usize, bytes: &[u8]) -> bool {
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
    pub fn word(&self, offset: usize) -> Option<u64> {
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

    /// Sets the word at `offset`; false where [`RemoteWindow::word`] is `None`. A peer's atomic at the
    /// same moment may be lost: give words their first value before a peer learns of them.
    #[must_use]
    pub fn set_word(&mut self, offset: usize, value: u64) -> bool {
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
