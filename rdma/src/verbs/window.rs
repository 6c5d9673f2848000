//! Memory of our own that a peer may write at any time.

use std::sync::Arc;

use super::error::VerbsError;
use super::mapping::Mapping;
use super::memory::{MemoryRegion, Pinned, ProtectionDomain, RemoteMemory};

/// Remotely writable memory. There is never a slice of it: bytes are copied out, one volatile read a
/// byte, and may be of different writes.
pub struct RemoteWindow {
    mapping: Arc<Mapping>,
    region: Arc<MemoryRegion>,
}

impl RemoteWindow {
    /// Maps, zeroes and registers `bytes` for writing by peers of this protection domain.
    pub fn new(pd: &Arc<ProtectionDomain>, bytes: usize) -> Result<RemoteWindow, VerbsError> {
        let mapping = Mapping::new(bytes).map_err(|source| VerbsError::Call {
            verb: "mmap",
            object: format!("{bytes} bytes"),
            source,
        })?;
        // SAFETY: the mapping has no pieces, so no slice of it exists; this type only copies out.
        let region = unsafe {
            MemoryRegion::register_remote_writable(pd, Arc::clone(&mapping) as Arc<dyn Pinned>)
        }?;
        Ok(RemoteWindow { mapping, region })
    }

    /// How a peer addresses it.
    pub fn remote(&self) -> RemoteMemory {
        self.region
            .remote()
            .expect("a window is registered remotely writable")
    }

    /// The byte at `offset` now; `None` past the end.
    pub fn byte(&self, offset: usize) -> Option<u8> {
        if offset >= self.mapping.len() {
            return None;
        }
        // SAFETY: inside the mapping; volatile, since the adapter may write it meanwhile.
        Some(unsafe { self.mapping.as_ptr().add(offset).read_volatile() })
    }

    /// Copies bytes from `offset` on into `target`; false, and nothing copied, past the end.
    #[must_use]
    pub fn copy_out(&self, offset: usize, target: &mut [u8]) -> bool {
        if offset
            .checked_add(target.len())
            .is_none_or(|end| end > self.mapping.len())
        {
            return false;
        }
        for (index, byte) in target.iter_mut().enumerate() {
            // SAFETY: inside the mapping, as checked; volatile, as above.
            *byte = unsafe { self.mapping.as_ptr().add(offset + index).read_volatile() };
        }
        true
    }
}
