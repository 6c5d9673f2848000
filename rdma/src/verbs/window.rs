//! Memory of our own that a peer may read, write or count in at any time.

use std::sync::Arc;

use super::error::VerbsError;
use super::memory::{MemoryRegion, ProtectionDomain, RemoteAccess, RemoteMemory};
use super::pages::MappingOptions;
use super::unsliced::Unsliced;

/// Memory that peers may use as its [`RemoteAccess`] says. There is never a slice of it: bytes are copied
/// in and out, one volatile access a byte, and what is copied out may be of different writes.
pub struct RemoteWindow {
    memory: Unsliced,
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
        let memory = Unsliced::map(bytes, options)?;
        // SAFETY: no slice of unsliced memory ever exists; this type only copies.
        let region = unsafe { MemoryRegion::register_remote(pd, memory.pinned(), access) }?;
        Ok(RemoteWindow { memory, region })
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
        self.memory.len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.memory.len() == 0
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

    /// Copies `bytes` to `offset` for peers to read; false, and nothing copied, past the end. A peer that
    /// reads meanwhile gets some of the old bytes and some of the new.
    #[must_use]
    pub fn copy_in(&mut self, offset: usize, bytes: &[u8]) -> bool {
        self.memory.copy_in(offset, bytes)
    }

    /// The word at `offset`, as peers' atomics leave it: in one access, so never half of two values.
    /// `None` past the end or where `offset` isn't a multiple of 8.
    pub fn word(&self, offset: usize) -> Option<u64> {
        self.memory.word(offset)
    }

    /// Sets the word at `offset`; false where [`RemoteWindow::word`] is `None`. A peer's atomic at the
    /// same moment may be lost: give words their first value before a peer learns of them.
    #[must_use]
    pub fn set_word(&mut self, offset: usize, value: u64) -> bool {
        self.memory.set_word(offset, value)
    }
}
