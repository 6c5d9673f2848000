//! Where the adapter writes the headers of datagrams.

use std::sync::Arc;

use crate::sys;
use crate::verbs::address::HEADER_BYTES;
use crate::verbs::error::VerbsError;
use crate::verbs::mapping::Mapping;
use crate::verbs::memory::{Access, MemoryRegion, Pinned, ProtectionDomain};
use crate::verbs::pages::{MappingOptions, map};

/// Memory for the header of each receive.
pub(super) struct Headers {
    memory: Arc<Mapping>,
    pub(super) region: Arc<MemoryRegion>,
    pub(super) free: Vec<u32>,
}

impl Headers {
    pub(super) fn new(pd: &Arc<ProtectionDomain>, count: u32) -> Result<Headers, VerbsError> {
        let memory = Arc::new(map(
            count as usize * HEADER_BYTES,
            &MappingOptions::default(),
        )?);
        let shared = Arc::clone(&memory) as Arc<dyn Pinned>;
        Ok(Headers {
            region: MemoryRegion::register(pd, shared, Access::LocalWrite)?,
            memory,
            free: (0..count).rev().collect(),
        })
    }

    pub(super) fn segment(&self, index: u32) -> sys::ibv_sge {
        let local = self.region.local();
        sys::ibv_sge {
            addr: (local.start + index as usize * HEADER_BYTES) as u64,
            length: HEADER_BYTES as u32,
            lkey: local.lkey,
        }
    }

    /// What the adapter wrote for a receive that is complete.
    pub(super) fn read(&self, index: u32) -> [u8; HEADER_BYTES] {
        // SAFETY: the index is of one of `count` headers, all inside the mapping; the adapter is done
        // with this one, and nothing else refers to it.
        unsafe {
            self.memory
                .as_ptr()
                .add(index as usize * HEADER_BYTES)
                .cast::<[u8; HEADER_BYTES]>()
                .read()
        }
    }
}
