//! The seals of a version's chunks: a file of them by chunk index, the recently used ones in memory.

use std::fs::File;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Device;
use crate::seal::{SEAL_BYTES, Seal};

/// Seals kept in memory for each version: about 5 MiB, for 64 GiB of chunks.
const IN_MEMORY: usize = 16 << 10;

/// A place that one of several chunks' seals can take.
type Place = Option<(u32, Arc<Seal>)>;

pub(super) struct Seals {
    file: Arc<File>,
    /// Each chunk has one place it can take; the latest of those that share it has it.
    recent: Mutex<Box<[Place]>>,
}

impl Seals {
    pub(super) fn new(file: File, chunks: u32) -> Seals {
        let places = (chunks as usize).clamp(1, IN_MEMORY);
        Seals {
            file: Arc::new(file),
            recent: Mutex::new(vec![None; places].into()),
        }
    }

    /// The seal, if it is in memory.
    pub(super) fn recent(&self, chunk: u32) -> Option<Arc<Seal>> {
        let recent = self.recent.lock();
        let place = recent[chunk as usize % recent.len()].as_ref()?;
        (place.0 == chunk).then(|| Arc::clone(&place.1))
    }

    pub(super) fn remember(&self, chunk: u32, seal: Arc<Seal>) {
        let mut recent = self.recent.lock();
        let place = chunk as usize % recent.len();
        recent[place] = Some((chunk, seal));
    }

    pub(super) fn forget(&self, chunk: u32) {
        let mut recent = self.recent.lock();
        let place = chunk as usize % recent.len();
        if recent[place]
            .as_ref()
            .is_some_and(|(there, _)| *there == chunk)
        {
            recent[place] = None;
        }
    }

    /// Where the seal is in [`Seals::file`], in bytes.
    pub(super) fn offset(chunk: u32) -> u64 {
        u64::from(chunk) * SEAL_BYTES as u64
    }

    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Puts a seal into the file, not yet synced.
    pub(super) fn write(
        &self,
        device: &dyn Device,
        chunk: u32,
        seal: &Arc<Seal>,
    ) -> io::Result<()> {
        device.write_small(&self.file, &seal.encode(), Seals::offset(chunk))?;
        self.remember(chunk, Arc::clone(seal));
        Ok(())
    }
}
